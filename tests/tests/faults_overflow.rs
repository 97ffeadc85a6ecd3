//! The kernel's queue of executions that wait for an answer runs over: what finds no place in it goes on unseen, which is
//! counted and looked for. Alone in its file: for a moment, groups that are made get a short queue.

use std::fs;
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::sync_channel;
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use tracker::container::Grade;
use tracker_tests::house::House;
use tracker_tests::process::pid;
use tracker_tests::runc::Kind;
use tracker_tests::wait::{PATIENCE, eventually};
use tracker_tests::{kernel, require};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");
/// Short for a keeper that is stopped; long enough for anybody else's who reads it.
const QUEUE: usize = 16;
const BOUND: &str = "/proc/sys/fs/fanotify/max_queued_events";

/// The bound of the queues of all groups that are made while this lives.
struct ShortQueues {
    usual: String,
}

impl ShortQueues {
    fn new() -> Result<ShortQueues> {
        let usual = fs::read_to_string(BOUND).context("read the bound of queues")?;
        fs::write(BOUND, QUEUE.to_string()).context("set the bound of queues")?;
        Ok(ShortQueues { usual })
    }
}

impl Drop for ShortQueues {
    fn drop(&mut self) {
        let _ = fs::write(BOUND, &self.usual);
    }
}

#[test]
fn a_queue_that_runs_over_denies_nobody_and_is_followed_by_a_scan() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::btf(), kernel::permission_events());
    require!(fs::metadata(BOUND).map_err(|error| format!("needs `{BOUND}`: {error}")));
    let house = House::new(Kind::Runc)?;
    let tracker = {
        let _short = ShortQueues::new()?;
        house.tracker(KEEPER, "")?
    };
    let (barrier, scans) = (&tracker.stats().barrier, &tracker.stats().scan.scans);
    let keeper = barrier.keeper_pid.load(Relaxed);
    let scanned = eventually("the first scan", || Some(scans.load(Relaxed)).filter(|scans| *scans > 0));

    let signal = |signal| kill(pid(u32::try_from(keeper)?), signal).context("the keeper is there");
    signal(Signal::SIGSTOP)?;
    let (executed, through) = sync_channel(2 * QUEUE);
    let children = thread::scope(|scope| -> Result<Vec<Child>> {
        let execute = |_| {
            let (executed, mut command) = (executed.clone(), house.runtime().command());
            command.args(["start", "nothing"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            scope.spawn(move || {
                let child = command.spawn().context("the execution was denied");
                executed.send(()).expect("there is room for all");
                child
            })
        };
        let executing: Vec<_> = (0..2 * QUEUE).map(execute).collect();
        // Nobody reads the queue: whoever is through found no place in it. The others are once it is read.
        let first = through.recv_timeout(PATIENCE);
        signal(Signal::SIGCONT)?;
        first.context("nobody was let go")?;
        executing.into_iter().map(|executing| executing.join().expect("no panic")).collect()
    })?;
    for mut child in children {
        assert_eq!(child.wait()?.code(), Some(1), "the runtime itself says that there is no such container");
    }
    eventually("the loss is counted", || (barrier.overflows.load(Relaxed) > 0).then_some(()));
    eventually("a scan looks for what was missed", || (scans.load(Relaxed) > scanned).then_some(()));

    let next = house.started("overflow-after")?;
    let mut reader = tracker.reader();
    let known = reader.by_pid(next.pid());
    let known = known.container().context("it was published before its start went on")?;
    assert_eq!((&*known.id, known.grade), ("overflow-after", Some(Grade::Held)));
    assert_eq!(barrier.keeper_pid.load(Relaxed), keeper, "it is the same keeper that told");
    Ok(())
}
