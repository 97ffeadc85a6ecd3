//! Finding a container's init process, and believing it only with proof.
//!
//! A pid is a number that somebody wrote into a file: a stale pid file names whoever has the number now. So a pid file is
//! believed only when its process started after the `create` that we saw, and a runtime's state file only when the
//! process has the start time that the file records; and neither when the process is in the host's mount
//! namespace. That the kernel recorded this very start time is checked by the collection, which joins by it.
//!
//! Of a nested caller's files none is asked for a pid: the kernel saw which process its `create` gave birth to, and that
//! one is it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::book::{Entry, Place};
use super::caller::{Host, Root};
use crate::collection::door::Facts;
use crate::container::{Cgroup, ContainerKey, Namespaces, TaskId};
use crate::fact::Statement;
use crate::source::proc::state_file::{self, StateFile};
use crate::source::task::Task;
use crate::time::BootTime;

/// A pid, and whatever white space its writer adds.
const MAX_PID_FILE_LEN: u64 = 32;
/// The first and the longest pause while the kernel's record of a birth is on its way to the collection. It takes
/// microseconds; on a machine that has no time for us, longer.
const RECORD_PAUSES: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(8));

/// An init process that was proven to be its container's.
#[derive(Debug)]
pub(super) struct Init {
    task: TaskId,
    namespaces: Namespaces,
    cgroup: Option<Cgroup>,
}

/// Why no process is believed to be the container's init.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Doubt {
    #[error("neither a pid file nor a state file names its init process")]
    Unnamed,
    #[error("process {0}, which its files name, has gone")]
    Gone(u32),
    #[error("process {0}, which its files name, is older than its creation")]
    Older(u32),
    #[error("process {0}, which its files name, is not the one that the runtime started")]
    Another(u32),
    #[error("process {0}, which its files name, is in the host's mount namespace")]
    OnHost(u32),
    #[error("the kernel source shows no process that its creation gave birth to")]
    Unshown,
}

impl Init {
    /// Adds what the process shows to what the bundle says.
    pub(super) fn apply(self, statement: &mut Statement) {
        statement.task = Some(self.task);
        statement.namespaces = Some(self.namespaces);
        statement.cgroup = self.cgroup;
    }
}

/// The init process of a container of the host's: by its pid file, else by the runtime's state file.
pub(super) fn find(entry: &Entry, host: &Host) -> Result<Init, Doubt> {
    let by_pid_file = entry.creator.zip(entry.pid_file.as_deref()).and_then(|((_, created), pid_file)| {
        let pid = read_pid(pid_file)?;
        Some(check(pid, host, |task| if started_after(task, created) { Ok(()) } else { Err(Doubt::Older(pid)) }))
    });
    match by_pid_file {
        Some(Ok(init)) => Ok(init),
        Some(Err(doubt)) => by_state_file(&entry.place, host).unwrap_or(Err(doubt)),
        None => by_state_file(&entry.place, host).unwrap_or(Err(Doubt::Unnamed)),
    }
}

/// The init process of a nested caller's container: the one that the kernel saw its `create` give birth to.
/// A record that has not come yet is waited for `patience`, the collection's answer until `deadline`.
pub(super) fn shown(
    key: &ContainerKey,
    facts: &Facts,
    host: &Host,
    patience: Duration,
    deadline: Instant,
) -> Result<Init, Doubt> {
    let (mut pause, longest) = RECORD_PAUSES;
    let patient_until = Instant::now() + patience;
    loop {
        if let Some(init) = facts.shown_init(key.clone(), deadline) {
            return check(init.pid, host, |task| if task == init { Ok(()) } else { Err(Doubt::Gone(init.pid)) });
        }
        if Instant::now() + pause >= patient_until {
            return Err(Doubt::Unshown);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(longest);
    }
}

/// The runtime's own state file of the host's container in this place.
pub(super) fn state_file(Place { root, id, .. }: &Place) -> Option<StateFile> {
    let directory = root.join(id.as_str());
    state_file::FORMATS
        .iter()
        .find_map(|(name, read)| read(&Root::Host.read(&directory.join(name), state_file::MAX_LEN).ok()?))
}

fn by_state_file(place: &Place, host: &Host) -> Option<Result<Init, Doubt>> {
    let init = state_file(place)?.task;
    Some(check(init.pid, host, |task| if task == init { Ok(()) } else { Err(Doubt::Another(init.pid)) }))
}

fn check(pid: u32, host: &Host, prove: impl FnOnce(TaskId) -> Result<(), Doubt>) -> Result<Init, Doubt> {
    let gone = |_| Doubt::Gone(pid);
    let process = Task::open(pid).map_err(gone)?;
    let task = process.id().map_err(gone)?;
    prove(task)?;
    let namespaces = process.namespaces();
    // 0: it has none any more, or it may not be asked.
    if namespaces.mnt == 0 {
        return Err(Doubt::Gone(pid));
    }
    if host.has_mount_ns(namespaces.mnt) {
        return Err(Doubt::OnHost(pid));
    }
    Ok(Init { task, namespaces, cgroup: process.cgroup().ok() })
}

fn started_after(task: TaskId, moment: BootTime) -> bool {
    task.start_ticks >= moment.0 / TaskId::TICK_NS
}

fn read_pid(path: &Path) -> Option<u32> {
    let bytes = Root::Host.read(path, MAX_PID_FILE_LEN).ok()?;
    let pid = str::from_utf8(&bytes).ok()?.trim().parse().ok()?;
    (pid > 0).then_some(pid)
}
