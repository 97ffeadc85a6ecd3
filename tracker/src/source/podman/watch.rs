//! Podman's stores that change while nobody tells: a watch on each directory that holds a `containers.json`.
//!
//! Podman replaces that file whenever it makes, renames or removes a container. Only root's stores are watched: whoever may
//! write into a directory decides how often its watcher wakes.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::fstat;
use tokio::io::unix::AsyncFd;

use super::store::{CONTAINERS, may_speak_for};
use crate::container::Domain;
use crate::readable::readable;
use crate::source::file;

/// Directories that are watched at most: those of further stores are looked at now and then, as users' are.
const MAX_WATCHES: usize = 64;

/// Adds directories. Cheap to clone; a clone has its own memory of what it added, and adding again does no harm.
#[derive(Clone, Debug)]
pub(super) struct Watcher {
    inotify: Arc<Inotify>,
    /// By device and inode: a directory that is made again is another one.
    known: HashSet<(u64, u64)>,
}

/// Tells that something has changed.
#[derive(Debug)]
pub(super) struct Changes {
    inotify: Arc<Inotify>,
    readable: AsyncFd<OwnedFd>,
}

/// A watch on nothing yet. To be called inside a tokio runtime with io.
pub(super) fn watch() -> io::Result<(Watcher, Changes)> {
    let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?);
    let readable = readable(inotify.as_fd().try_clone_to_owned()?)?;
    Ok((Watcher { inotify: Arc::clone(&inotify), known: HashSet::new() }, Changes { inotify, readable }))
}

impl Watcher {
    /// Watches a directory of root's, unless it is watched already. May take as long as opening a directory does.
    pub(super) fn add(&mut self, dir: &Path) -> io::Result<()> {
        let opened = file::open_dir(dir)?;
        let stat = fstat(&opened)?;
        let is_known = self.known.contains(&(stat.st_dev, stat.st_ino));
        if is_known || self.known.len() >= MAX_WATCHES || !may_speak_for(&stat, Domain::Host) {
            return Ok(());
        }
        // The directory that was looked at, whatever the path leads to by now.
        let same = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let what = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ONLYDIR;
        self.inotify.add_watch(same.as_str(), what)?;
        self.known.insert((stat.st_dev, stat.st_ino));
        Ok(())
    }
}

impl Changes {
    /// Waits until a list of containers was written. Loses nothing when it is dropped.
    pub(super) async fn next(&mut self) {
        loop {
            // An error means that the runtime is going, and all that waits in it.
            let Ok(mut ready) = self.readable.readable().await else { return std::future::pending().await };
            let Ok(events) = self.inotify.read_events() else {
                ready.clear_ready();
                continue;
            };
            let is_lost = |mask: AddWatchFlags| mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            let is_list = |name: Option<&std::ffi::OsString>| name.is_some_and(|name| name == CONTAINERS);
            if events.iter().any(|event| is_lost(event.mask) || is_list(event.name.as_ref())) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    async fn tells(changes: &mut Changes) -> bool {
        tokio::time::timeout(Duration::from_millis(200), changes.next()).await.is_ok()
    }

    #[tokio::test]
    async fn a_list_that_is_replaced_is_told_and_nothing_else() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (mut watcher, mut changes) = watch().unwrap();
        for _ in 0..2 {
            watcher.add(directory.path()).unwrap();
        }
        let put = |name: &str| {
            let new = directory.path().join("new");
            fs::write(&new, "[]").unwrap();
            fs::rename(new, directory.path().join(name)).unwrap();
        };
        put("containers.lock");
        assert!(!tells(&mut changes).await);
        put(CONTAINERS);
        assert!(tells(&mut changes).await);
        assert!(!tells(&mut changes).await, "once");

        // One that others may write into is let alone.
        let open = tempfile::tempdir().unwrap();
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o777)).unwrap();
        watcher.add(open.path()).unwrap();
        fs::write(open.path().join(CONTAINERS), "[]").unwrap();
        assert!(!tells(&mut changes).await);
        assert!(watcher.add(&directory.path().join("absent")).is_err());
    }
}
