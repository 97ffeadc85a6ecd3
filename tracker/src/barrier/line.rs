//! The tracker's end of the line to one keeper, and the tasks held at its other end.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Stats;
use super::wire::{self, Message, Received};

/// How long the keeper may take to say whether an answer was in time; it answers in microseconds or not at all.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// The socket to one keeper. Ends with it: the next keeper has another line.
#[derive(Debug)]
pub(super) struct Line {
    socket: OwnedFd,
    // Protects who waits for which `Released`; `None` once the keeper has gone.
    waiting: Mutex<Option<HashMap<u64, SyncSender<bool>>>>,
}

impl Line {
    pub(super) fn new(socket: OwnedFd) -> Arc<Self> {
        Arc::new(Self { socket, waiting: Mutex::new(Some(HashMap::new())) })
    }

    /// Sends without waiting.
    pub(super) fn send(&self, message: Message, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        wire::send(self.socket.as_fd(), message, fd)
    }

    /// What the keeper has said, without waiting.
    pub(super) fn receive(&self) -> Received {
        wire::receive(self.socket.as_fd())
    }

    /// To wait for the next message.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The keeper told whether it still held the task of `event`.
    pub(super) fn released(&self, event: u64, in_time: bool) {
        if let Some(waiter) = self.waiting().as_mut().and_then(|waiting| waiting.remove(&event)) {
            let _ = waiter.try_send(in_time);
        }
    }

    /// The keeper has gone: whoever waits for its answer learns that the kernel was faster.
    pub(super) fn hang_up(&self) {
        *self.waiting() = None;
    }

    /// Lets the task go on, and returns whether it had been held until now.
    fn allow(&self, event: u64) -> bool {
        let (sender, answer) = sync_channel(1);
        match self.waiting().as_mut() {
            Some(waiting) => waiting.insert(event, sender),
            None => return false,
        };
        if self.send(Message::Allow { event }, None).is_err() {
            return false;
        }
        let in_time = answer.recv_timeout(REPLY_TIMEOUT).unwrap_or(false);
        if let Some(waiting) = self.waiting().as_mut() {
            waiting.remove(&event);
        }
        in_time
    }

    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, SyncSender<bool>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who may let a held task go while somebody else is busy with it.
#[derive(Debug)]
pub(super) struct Deputy {
    line: Arc<Line>,
    event: u64,
}

impl Deputy {
    pub(super) fn new(line: Arc<Line>, event: u64) -> Self {
        Self { line, event }
    }

    /// Lets the task go on. Whoever answers later learns that it was not held until then.
    pub(super) fn dismiss(&self) {
        let _ = self.line.send(Message::Allow { event: self.event }, None);
    }
}

/// A task that the keeper holds, or has just let go. Let go when dropped, at the latest.
#[derive(Debug)]
pub(super) struct HeldTask {
    line: Arc<Line>,
    stats: Arc<Stats>,
    event: u64,
    /// Its thread, in the host's pid namespace.
    pub(super) tid: i32,
    /// When the keeper read the event.
    pub(super) since: Instant,
    /// The program that it executes, where there was a descriptor to spare for it.
    pub(super) binary: Option<File>,
    /// The keeper did not hold it: it lets all go until it hears from us.
    pub(super) passed: bool,
    answered: bool,
}

impl HeldTask {
    pub(super) fn new(
        line: Arc<Line>,
        stats: Arc<Stats>,
        (event, tid, since): (u64, i32, Instant),
        binary: Option<OwnedFd>,
        passed: bool,
    ) -> Self {
        Self { line, stats, event, tid, since, binary: binary.map(File::from), passed, answered: false }
    }

    /// Who can answer in this one's stead.
    pub(super) fn deputy(&self) -> Deputy {
        Deputy::new(Arc::clone(&self.line), self.event)
    }

    /// Takes the mark off the program that this task executes. The answer arrives at the supervisor.
    pub(super) fn unmark(&self, request: u64) {
        if let Some(binary) = &self.binary {
            let _ = self.line.send(Message::Unmark { request }, Some(binary.as_fd()));
        }
    }

    /// Lets the task go on, and returns whether it had been held until now.
    pub(super) fn release(&mut self) -> bool {
        self.answered = true;
        let time = self.since.elapsed();
        let in_time = self.line.allow(self.event) && !self.passed;
        self.stats.hold_times.add(time);
        if !in_time {
            self.stats.let_go.fetch_add(1, Ordering::Relaxed);
        }
        in_time
    }

    /// Lets the task go on without asking whether it had been held.
    pub(super) fn dismiss(&mut self) {
        if !self.answered {
            self.answered = true;
            let _ = self.line.send(Message::Allow { event: self.event }, None);
            self.stats.hold_times.add(self.since.elapsed());
        }
    }
}

impl Drop for HeldTask {
    fn drop(&mut self) {
        self.dismiss();
    }
}
