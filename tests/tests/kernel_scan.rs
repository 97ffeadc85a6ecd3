//! The scan: what was there before the probes, by the task iterator and by `/proc`, and what it repairs.

use std::collections::HashMap;
use std::os::fd::RawFd;

use anyhow::{Context, Result, bail};
use tracker::fact::{Birth, What};
use tracker::source::kernel::{Config, Kernel, Machine};
use tracker::source::scan::Scanner;
use tracker_common::record::TaskFacts;
use tracker_common::table::{Loss, Slot};
use tracker_tests::child::{Child, leave_a_thread, run_inner, wait_for_byte};
use tracker_tests::probes::{self, Probes};
use tracker_tests::{kernel, require, requirement, wait};

fn iterator() -> Result<Scanner> {
    let machine = Machine::examine()?;
    let scanner = Scanner::new(Ok(&machine), None)?;
    match scanner.why_not_iterator() {
        None => Ok(scanner),
        Some(error) => bail!("{error}: {error:?}"),
    }
}

fn of<'a>(children: &'a [Child], tasks: Vec<TaskFacts>) -> HashMap<u32, TaskFacts> {
    let ours = |task: &TaskFacts| children.iter().any(|child: &'a Child| child.pid() == task.tgid);
    tasks.into_iter().filter(ours).map(|task| (task.tgid, task)).collect()
}

#[test]
fn the_iterator_and_proc_tell_the_same() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let all = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWPID,
        libc::CLONE_NEWNS | libc::CLONE_NEWUSER | libc::CLONE_NEWCGROUP,
    ];
    let children: Vec<Child> = (0..30).map(|n| Child::exiting(all[n % 3], 0)).collect::<Result<_, _>>()?;
    let mut by_iterator = of(&children, iterator()?.tasks()?);
    let mut by_proc = of(&children, Scanner::of_proc()?.tasks()?);
    assert_eq!(by_iterator.len(), 30);
    assert_eq!(by_proc.len(), 30);
    for child in &children {
        let mut exact = by_iterator.remove(&child.pid()).context("the iterator shows each child")?;
        let mut read = by_proc.remove(&child.pid()).context("`/proc` shows each child")?;
        // `/proc` counts hundredths of a second, has unique ids from Linux 6.12 on, and reads flags at another moment.
        for time in [&mut exact.start_ns, &mut exact.parent_start_ns] {
            *time -= *time % 10_000_000;
        }
        assert_ne!(exact.mntns_id, 0);
        if read.mntns_id == 0 && kernel::version() < (6, 12) {
            read.mntns_id = exact.mntns_id;
        }
        assert_eq!(exact.has_executed(), read.has_executed());
        (exact.flags, read.flags) = (0, 0);
        assert_eq!(exact, read);
    }
    Ok(())
}

#[test]
fn a_process_whose_first_thread_ended_is_still_found() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    // SAFETY: calls the kernel alone.
    let child = unsafe { Child::clone(libc::CLONE_NEWNS, leave_a_thread) }?;
    let mntns = kernel::namespace(child.pid(), "mnt")?;
    child.go()?;
    wait::eventually("the first thread's end", || (!kernel::is_alive(child.pid())).then_some(()));
    for mut scanner in [iterator()?, Scanner::of_proc()?] {
        let found = scanner.scan()?.into_iter().find(|birth| birth.task.pid == child.pid());
        let found = found.with_context(|| format!("found by {:?}", scanner.source()))?;
        assert_eq!((found.task, found.namespaces.mnt), (child.task()?, mntns));
    }
    Ok(())
}

/// Waits, forks and waits again: a container with a long life.
fn old_container(pipe: RawFd) -> i32 {
    let code = run_inner(0, || 5);
    wait_for_byte(pipe);
    code
}

fn born(probes: &Probes, parent: u32) -> Vec<Birth> {
    probes.until("an answer", |facts| {
        let born = |what: &What| match what {
            What::Born(birth) if birth.parent.is_some_and(|task| task.pid == parent) => Some(*birth),
            _ => None,
        };
        Some(facts.iter().filter_map(|fact| born(&fact.what)).collect())
    })
}

#[test]
fn a_fork_in_an_old_container_is_not_a_birth_and_its_end_is_seen() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    // SAFETY: calls the kernel alone.
    let mut old = unsafe { Child::clone(libc::CLONE_NEWNS, old_container) }?;
    let task = old.task()?;
    let probes = Probes::start()?;
    old.go()?;
    old.go()?;
    old.wait()?;
    let life = probes.life(task.pid);
    let [What::Ended(end)] = &life[..] else { panic!("{life:#?}") };
    assert_eq!((end.task, end.exit.code), (task, 5));
    assert_eq!(born(&probes, task.pid), []);
    Ok(())
}

#[test]
fn a_fork_between_attaching_and_scanning_is_put_right_by_the_scan() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    // SAFETY: calls the kernel alone.
    let mut old = unsafe { Child::clone(libc::CLONE_NEWNS, waits_with_a_child) }?;
    let task = old.task()?;
    let kernel = probes::load(&Config::default())?;
    // The fork looks like a birth: nothing is known about the namespace yet.
    old.go()?;
    let inner = wait::eventually("a child of the container", || child_of(task.pid));
    let births = Scanner::new(Ok(kernel.machine()), Some(&kernel))?.scan()?;
    let found = births.iter().find(|birth| birth.namespaces.mnt == kernel::namespace(task.pid, "mnt").unwrap_or(0));
    assert_eq!(found.context("the scan finds the container")?.task.pid, task.pid, "not its child {inner}");
    let probes = Probes::run(kernel)?;
    let superseded = || probes.stats.superseded.load(std::sync::atomic::Ordering::Relaxed) > 0;
    wait::eventually("the record of the fork", || superseded().then_some(()));
    old.go()?;
    old.wait()?;
    let life = probes.life(task.pid);
    let [What::Ended(end)] = &life[..] else { panic!("{life:#?}") };
    assert_eq!(end.task, task);
    assert_eq!(born(&probes, task.pid), []);
    Ok(())
}

/// Has a child for as long as it waits.
fn waits_with_a_child(pipe: RawFd) -> i32 {
    run_inner(0, || {
        wait_for_byte(pipe);
        6
    })
}

fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_full_ring_buffer_is_a_counted_loss_and_the_scan_finds_what_was_lost() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let config = Config { ring_bytes: 4096, ..Config::default() };
    let kernel = probes::load(&config)?;
    let mut scanner = Scanner::new(Ok(kernel.machine()), Some(&kernel))?;
    // Nobody reads yet, and 4 KiB hold fewer than 40 records.
    let children: Vec<Child> = (0..60).map(|_| Child::exiting(libc::CLONE_NEWNS, 0)).collect::<Result<_, _>>()?;
    let births = scanner.scan()?;
    for child in &children {
        let found = births.iter().find(|birth| birth.task.pid == child.pid()).context("the scan finds each child")?;
        assert_eq!(found.task, child.task()?);
        let slot = kernel.slots()?.get(found.namespaces.mnt).context("other programs can look it up")?;
        assert_eq!((Some(slot.generation), slot.row), (found.generation, Slot::NO_ROW));
    }
    let probes = Probes::run(kernel)?;
    wait::eventually("the loss", || (probes.stats.lost(Loss::ProcessRecord) > 0).then_some(()));
    assert!(probes.audits.wait(wait::PATIENCE), "a loss asks for an audit");
    // It goes on where it was: ends of children whose births were lost are seen.
    for child in children {
        let pid = child.pid();
        child.finish()?;
        assert!(matches!(probes.life(pid).last(), Some(What::Ended(_))));
    }
    Ok(())
}

/// Those of the children that the probes' tables let other programs look up.
fn with_slots(kernel: &Kernel, children: &[Child]) -> Result<usize> {
    let slots = kernel.slots()?;
    let is_current = |child: &&Child| {
        let slot = kernel::namespace(child.pid(), "mnt").ok().and_then(|mntns| slots.get(mntns));
        slot.is_some_and(|slot| slot.flags & Slot::ENDED == 0)
    };
    Ok(children.iter().filter(is_current).count())
}

fn children(count: usize, flags: i32) -> Result<Vec<Child>> {
    Ok((0..count).map(|_| Child::exiting(flags, 0)).collect::<Result<_, _>>()?)
}

#[test]
fn users_namespaces_that_a_scan_finds_have_their_share_and_no_more() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let before = children(100, libc::CLONE_NEWUSER | libc::CLONE_NEWNS)?;
    let hosts = children(10, libc::CLONE_NEWNS)?;
    let kernel = probes::load(&Config { max_namespaces: 512, ..Config::default() })?;
    let mut scanner = Scanner::new(Ok(kernel.machine()), Some(&kernel))?;
    for _ in 0..2 {
        let found = with_slots(&kernel, &before)?;
        assert!(found <= 64, "{found} of them, and an eighth is 64");
        assert_eq!(with_slots(&kernel, &hosts)?, 10);
        scanner.scan()?;
    }
    // The probes' own share is theirs.
    let after = children(100, libc::CLONE_NEWUSER | libc::CLONE_NEWNS)?;
    let found = with_slots(&kernel, &after)?;
    assert!((1..=64).contains(&found), "{found} of them");
    Ok(())
}

#[test]
fn a_full_table_of_slots_is_freed_of_those_that_are_over() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let kernel = probes::load(&Config { max_namespaces: 256, ..Config::default() })?;
    let mut scanner = Scanner::new(Ok(kernel.machine()), Some(&kernel))?;
    let mut children = children(300, libc::CLONE_NEWNS)?;
    assert!(with_slots(&kernel, &children)? <= 256);
    for over in children.drain(..200) {
        over.finish()?;
    }
    // Their slots stay for those who ask late; the ones still without any had found no room.
    assert!(with_slots(&kernel, &children)? < 100);
    scanner.scan()?;
    assert_eq!(with_slots(&kernel, &children)?, 100);
    Ok(())
}
