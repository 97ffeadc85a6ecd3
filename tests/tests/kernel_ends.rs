//! How processes end: exit codes, signals, threads that outlive the first one, and the out-of-memory killer.

use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use tracker::container::Exit;
use tracker::fact::What;
use tracker_tests::child::{Child, leave_a_thread};
use tracker_tests::probes::Probes;
use tracker_tests::wait::{eventually, within};
use tracker_tests::{kernel, process, require, requirement};

/// The exit that the probes stated about a process that was born and ended, and did nothing else.
#[track_caller]
fn exit(probes: &Probes, pid: u32) -> Exit {
    let life = probes.life(pid);
    let [What::Born(_), What::Ended(end)] = &life[..] else { panic!("{life:#?}") };
    end.exit
}

#[test]
fn exit_codes_and_signals_are_what_wait_reports() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let probes = Probes::start()?;
    for code in [0, 1, 137, 255] {
        let child = Child::exiting(libc::CLONE_NEWNS, code)?;
        let pid = child.pid();
        child.finish()?;
        let expected = Exit { code: code.into(), signal: None, oom: Some(false) };
        assert_eq!(exit(&probes, pid), expected, "exit {code}");
    }
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGUSR1] {
        let mut child = Child::exiting(libc::CLONE_NEWNS, 0)?;
        kill(process::pid(child.pid()), signal).context("kill the child")?;
        child.wait()?;
        let number = signal as u32;
        let expected = Exit { code: 128 + number, signal: Some(number), oom: Some(false) };
        assert_eq!(exit(&probes, child.pid()), expected, "{signal}");
    }
    Ok(())
}

#[test]
fn the_end_is_the_last_thread_s_and_its_code_the_process_s() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let probes = Probes::start()?;
    // SAFETY: calls the kernel alone.
    let mut child = unsafe { Child::clone(libc::CLONE_NEWNS, leave_a_thread) }?;
    let pid = child.pid();
    child.go()?;
    // The first thread has ended when the process has become a zombie that still has a task.
    eventually("the first thread's end", || (!kernel::is_alive(pid)).then_some(()));
    probes.until("the birth", |facts| {
        facts.iter().find(|fact| matches!(&fact.what, What::Born(b) if b.task.pid == pid)).map(drop)
    });
    assert_eq!(probes.stated(pid).len(), 1, "a thread is left");
    child.go()?;
    child.wait()?;
    assert_eq!(exit(&probes, pid).code, 42);
    Ok(())
}

/// A memory cgroup of its own, small; removed when dropped.
struct SmallMemory(PathBuf);

impl SmallMemory {
    fn create() -> Result<SmallMemory, String> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let v2 = Path::new("/sys/fs/cgroup");
        let (parent, limits) = if v1.join("memory.limit_in_bytes").exists() {
            (v1, [("memory.limit_in_bytes", "8388608"), ("memory.swappiness", "0")])
        } else {
            let enabled = fs::write(v2.join("cgroup.subtree_control"), "+memory");
            enabled.map_err(|error| format!("needs the memory controller: {error}"))?;
            (v2, [("memory.max", "8388608"), ("memory.swap.max", "0")])
        };
        let group = SmallMemory(parent.join(format!("tracker-oom-{}", std::process::id())));
        fs::create_dir(&group.0).map_err(|error| format!("needs a cgroup `{}`: {error}", group.0.display()))?;
        for (file, limit) in limits {
            let written = fs::write(group.0.join(file), limit);
            // A kernel without swap has no file to forbid it with.
            if let Err(error) = written.or_else(|error| if file.contains("swap") { Ok(()) } else { Err(error) }) {
                return Err(format!("needs to limit memory by `{file}`: {error}"));
            }
        }
        Ok(group)
    }
}

impl Drop for SmallMemory {
    fn drop(&mut self) {
        within(Duration::from_secs(2), || fs::remove_dir(&self.0).ok());
    }
}

/// Uses up 64 MiB, page by page.
fn use_memory(_: RawFd) -> i32 {
    const LEN: usize = 64 << 20;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new memory of its own.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return 1;
    }
    for page in (0..LEN).step_by(4096) {
        // SAFETY: inside the mapping.
        unsafe { memory.cast::<u8>().wrapping_add(page).write_volatile(1) };
    }
    2
}

#[test]
fn what_the_out_of_memory_killer_did_is_said() -> Result<()> {
    let group = SmallMemory::create();
    require!(requirement::root(), kernel::btf(), group.as_ref().map_err(Clone::clone));
    let probes = Probes::start()?;
    // SAFETY: calls the kernel alone.
    let mut child = unsafe { Child::clone(libc::CLONE_NEWNS, use_memory) }?;
    if let Ok(group) = &group {
        let procs = group.0.join("cgroup.procs");
        fs::write(&procs, child.pid().to_string()).with_context(|| format!("write `{}`", procs.display()))?;
    }
    child.go()?;
    child.wait()?;
    assert_eq!(exit(&probes, child.pid()), Exit { code: 137, signal: Some(9), oom: Some(true) });
    Ok(())
}
