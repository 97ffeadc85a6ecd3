//! The kernel source against real processes: each is born once, with the namespaces that `/proc` shows.

use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::wait::WaitStatus;
use tracker::container::{Namespaces, TaskId};
use tracker::fact::{Birth, Execution, What};
use tracker_tests::child::{Child, become_user, run_inner};
use tracker_tests::probes::Probes;
use tracker_tests::{kernel, process, require, requirement};

const NEW_MOUNT_NS: i32 = libc::CLONE_NEWNS;

fn namespaces(pid: u32) -> Result<Namespaces> {
    let get = |kind| kernel::namespace(pid, kind).with_context(|| format!("read the {kind} ns of {pid}"));
    Ok(Namespaces { mnt: get("mnt")?, net: get("net")?, pid: get("pid")?, cgroup: get("cgroup")?, user: get("user")? })
}

fn own_task() -> Result<TaskId> {
    let pid = std::process::id();
    Ok(TaskId { pid, start_ticks: kernel::start_ticks(pid)? })
}

#[test]
fn a_forked_process_is_born_with_the_namespaces_that_proc_shows() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let probes = Probes::start()?;
    let all = NEW_MOUNT_NS | libc::CLONE_NEWNET | libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP | libc::CLONE_NEWUTS;
    let child = Child::exiting(all, 7)?;
    let (task, expected) = (child.task()?, namespaces(child.pid())?);
    let status = child.finish()?;

    let life = probes.life(task.pid);
    let [What::Born(born), What::Ended(end)] = &life[..] else { panic!("{life:#?}") };
    assert_eq!((born.task, born.namespaces, born.parent), (task, expected, Some(own_task()?)));
    assert_eq!((born.uid, born.executed), (0, false));
    assert!(born.generation.is_some(), "every supported kernel has unique ids");
    assert_eq!((end.task, end.mntns, end.generation), (task, expected.mnt, born.generation));
    assert_eq!((end.exit.code, end.exit.signal), (7, None));
    assert_eq!(status, WaitStatus::Exited(process::pid(task.pid), 7));
    Ok(())
}

#[test]
fn unsharing_without_a_fork_is_a_birth_at_the_exec() -> Result<()> {
    require!(requirement::root(), kernel::btf(), requirement::program("unshare"));
    let probes = Probes::start()?;
    let mut child = Command::new("unshare").args(["-m", "/bin/sh", "-c", "exit 3"]).spawn().context("start unshare")?;
    let pid = child.id();
    child.wait().context("wait for unshare")?;
    let life = probes.life(pid);
    let [What::Born(born), What::Executed(Execution { task, by_init: true }), What::Ended(end)] = &life[..] else {
        panic!("{life:#?}")
    };
    // Who made it is looked at once, for its birth.
    let outer = Some(kernel::namespace(std::process::id(), "mnt")?);
    assert_eq!((born.outer, Birth { executed: true, outer: None, ..*born }), (outer, *task));
    assert_eq!((born.parent, end.exit.code), (Some(own_task()?), 3));
    Ok(())
}

#[test]
fn unsharing_with_a_fork_is_a_birth_at_the_fork_and_an_exec_later() -> Result<()> {
    require!(requirement::root(), kernel::btf(), requirement::program("unshare"));
    let probes = Probes::start()?;
    let mut outer = Command::new("unshare")
        .args(["-m", "-p", "-f", "/bin/sh", "-c", "/bin/true; exit 4"])
        .spawn()
        .context("start unshare")?;
    let parent = TaskId { pid: outer.id(), start_ticks: kernel::start_ticks(outer.id())? };
    outer.wait().context("wait for unshare")?;
    let born = probes.until("the birth", |facts| {
        facts.iter().find_map(|fact| match fact.what {
            What::Born(born) if born.parent == Some(parent) => Some(born),
            _ => None,
        })
    });
    let life = probes.life(born.task.pid);
    let [What::Born(_), What::Executed(Execution { task, by_init: true }), What::Ended(end)] = &life[..] else {
        panic!("{life:#?}")
    };
    assert_eq!((task.born_at, end.exit.code), (born.born_at, 4));
    assert_eq!(probes.stated(parent.pid), [], "unshare itself neither forked into its namespace nor executed in it");
    Ok(())
}

#[test]
fn host_processes_and_threads_are_not_born() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let probes = Probes::start()?;
    let host = Child::exiting(0, 0)?;
    let pid = host.pid();
    host.finish()?;
    thread::spawn(|| ()).join().expect("a thread that does nothing does not panic");
    // Whatever was recorded is there before what comes later.
    let marker = Child::exiting(NEW_MOUNT_NS, 0)?;
    let marker_pid = marker.pid();
    marker.finish()?;
    probes.life(marker_pid);
    assert_eq!(probes.stated(pid), []);
    assert_eq!(probes.stated(std::process::id()), []);
    Ok(())
}

#[test]
fn a_process_of_another_user_is_born_with_its_uid_and_user_namespace() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let probes = Probes::start()?;
    // Two steps, as in `unshare --user --mount` by somebody: first another user, then namespaces of its own.
    // SAFETY: calls the kernel alone.
    let child = unsafe {
        Child::clone(0, |_| {
            become_user(4321);
            run_inner(libc::CLONE_NEWUSER | NEW_MOUNT_NS, || 9)
        })
    }?;
    let parent = child.task()?;
    let status = child.finish()?;
    ensure!(status == WaitStatus::Exited(process::pid(parent.pid), 9), "a user namespace could be made: {status:?}");
    let born = probes.until("the birth", |facts| {
        facts.iter().find_map(|fact| match fact.what {
            What::Born(born) if born.parent == Some(parent) => Some(born),
            _ => None,
        })
    });
    assert_eq!(born.uid, 4321);
    assert_ne!(born.namespaces.user, kernel::namespace(std::process::id(), "user")?);
    probes.life(born.task.pid);
    Ok(())
}

/// What the test knows about a child, to compare with what the probes stated.
struct Truth {
    task: TaskId,
    mntns: u32,
    code: u8,
}

#[test]
fn two_hundred_namespaces_from_eight_threads_are_each_born_and_ended_once() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let probes = Probes::start()?;
    let make = |thread: u8| -> Result<Vec<Truth>> {
        (0..25_u8)
            .map(|n| {
                let code = thread * 25 + n;
                let child = Child::exiting(NEW_MOUNT_NS, code)?;
                let truth = Truth { task: child.task()?, mntns: kernel::namespace(child.pid(), "mnt")?, code };
                child.finish()?;
                Ok(truth)
            })
            .collect()
    };
    let truths: Vec<Truth> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || make(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no test thread panics")).collect::<Result<Vec<_>>>()
    })?
    .into_iter()
    .flatten()
    .collect();

    let mut generations = std::collections::HashSet::new();
    for truth in &truths {
        let life = probes.life(truth.task.pid);
        let [What::Born(born), What::Ended(end)] = &life[..] else { panic!("{life:#?}") };
        assert_eq!((born.task, born.namespaces.mnt), (truth.task, truth.mntns));
        assert_eq!((end.task, end.mntns, end.generation), (truth.task, truth.mntns, born.generation));
        assert_eq!(end.exit.code, u32::from(truth.code));
        assert!(generations.insert(born.generation), "a generation was reused: {born:?}");
    }
    assert_eq!(generations.len(), 200);
    assert!(probes.stats.losses().all(|(_, lost)| lost == 0), "{:?}", probes.stats);
    Ok(())
}
