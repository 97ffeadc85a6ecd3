//! What the kernel tests share: the probes running in a thread, and processes in namespaces of their own.

use std::process::Command;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use tracker::fact::Fact;
use tracker::source::kernel::{Config, Kernel, Machine, Stats};
use tracker::source::scan::audits;

pub struct Probes {
    stop: Arc<EventFd>,
    facts: Receiver<Vec<Fact>>,
    pub stats: Arc<Stats>,
    thread: Option<JoinHandle<()>>,
}

impl Probes {
    pub fn start() -> Self {
        let machine = Machine::examine().unwrap();
        println!("{machine:?}");
        let t = Instant::now();
        let kernel = Kernel::load(&Config::default(), &machine).unwrap_or_else(|e| panic!("{e}: {e:?}: {}", e.remedy()));
        println!("load {:?}", t.elapsed());
        let stop = Arc::new(EventFd::new().unwrap());
        let stats = Arc::new(Stats::default());
        let (sender, facts) = sync_channel(100_000);
        let (ask, inbox) = audits();
        let thread = std::thread::spawn({
            let (stop, stats) = (stop.clone(), stats.clone());
            move || {
                let _inbox = inbox;
                kernel.run_with(|batch| { sender.send(batch).unwrap(); Ok(()) }, stop.as_fd(), &ask, &stats).unwrap();
            }
        });
        Self { stop, facts, stats, thread: Some(thread) }
    }

    pub fn until(&self, enough: impl Fn(&[Fact]) -> bool) -> Vec<Fact> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut all = Vec::new();
        while !enough(&all) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.facts.recv_timeout(left) {
                Ok(batch) => all.extend(batch),
                Err(error) => panic!("{error} after {all:#?}"),
            }
        }
        all
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

pub fn unshare(args: &[&str]) -> u32 {
    let mut child = Command::new("unshare").args(args).spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    pid
}
