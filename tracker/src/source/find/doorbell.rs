//! Rings when something appears where a runtime may listen: a daemon that was away for long is found as soon as it is back,
//! and not by the next look.
//!
//! Watches directories by inotify, and only those that root alone writes to: nobody else makes the tracker look. Where the
//! directory itself is missing, the one above it is watched for its coming. Whatever cannot be watched (no inotify instance
//! to spare, too many places, somebody else's directory) is left to the next look.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;

use crate::readable::readable;

/// Directories that are watched; further ones are left to the next look.
const MAX_DIRECTORIES: usize = 128;
/// Names that are waited for in one directory.
const MAX_NAMES: usize = 128;

/// Where to watch. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Doorbell {
    inotify: Arc<Inotify>,
    // Protects the names; held for moments, never while a path is looked up.
    names: Arc<Mutex<Names>>,
}

/// The names that are waited for in each directory.
type Names = HashMap<WatchDescriptor, HashSet<OsString>>;

/// Who hears it.
#[derive(Debug)]
pub(super) struct Ear {
    bell: Doorbell,
    /// Another descriptor of the same.
    ready: AsyncFd<OwnedFd>,
}

impl Doorbell {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify: Arc::new(inotify), names: Arc::default() })
    }

    /// Rings when a file appears at `path`, or a directory that is missing on the way there. Blocks as long as the file
    /// system does.
    pub(super) fn watch(&self, path: &Path) {
        let Some((mut directory, mut name)) = path.parent().zip(path.file_name()) else { return };
        let metadata = loop {
            match fs::metadata(directory) {
                Ok(metadata) => break metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let Some(above) = directory.parent().zip(directory.file_name()) else { return };
                    (directory, name) = above;
                }
                Err(_) => return,
            }
        };
        if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
            return;
        }
        let appears = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let goes = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ONLYDIR;
        let is_full = self.names().len() >= MAX_DIRECTORIES;
        // The same directory has the same descriptor each time; when full, another one is not kept.
        let Ok(watch) = self.inotify.add_watch(directory, appears | goes) else { return };
        let mut names = self.names();
        if is_full && !names.contains_key(&watch) {
            drop(names);
            let _ = self.inotify.rm_watch(watch);
            return;
        }
        let waited_for = names.entry(watch).or_default();
        if waited_for.len() < MAX_NAMES {
            waited_for.insert(name.to_owned());
        }
    }

    /// To be called on a runtime with IO enabled.
    pub(super) fn ear(&self) -> io::Result<Ear> {
        let ready = readable(self.inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Ear { bell: self.clone(), ready })
    }

    /// Reads all that has happened. Returns whether any of it counts.
    fn drain(&self) -> bool {
        let mut rings = false;
        while let Ok(events) = self.inotify.read_events() {
            for event in &events {
                rings |= self.counts(event);
            }
        }
        rings
    }

    fn counts(&self, event: &InotifyEvent) -> bool {
        let mut names = self.names();
        match &event.name {
            // A directory that is about to be waited in is in no list yet.
            Some(name) => names.get(&event.wd).is_none_or(|names| names.contains(name)),
            // The directory has gone, so that the one above has to be watched; or the queue ran over. The last word
            // about a watch says nothing more.
            None if event.mask.contains(AddWatchFlags::IN_IGNORED) => names.remove(&event.wd).is_some_and(|_| false),
            None => true,
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ear {
    /// Waits until it rings; for ever, if it cannot.
    pub(super) async fn rings(&self) {
        loop {
            let Ok(mut ready) = self.ready.readable().await else { return std::future::pending().await };
            let rings = self.bell.drain();
            ready.clear_ready();
            if rings {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Somebody's who is not root cannot be watched by a test that root does not run.
    fn is_root() -> bool {
        nix::unistd::geteuid().is_root()
    }

    #[tokio::test]
    async fn it_rings_for_what_is_waited_for_and_for_directories_on_the_way() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/x/docker.sock");
        let bell = Doorbell::new().unwrap();
        let ear = bell.ear().unwrap();
        bell.watch(&path);
        fs::write(directory.path().join("other"), "").unwrap();
        assert!(!bell.drain(), "nobody waits for it");
        for (directory, next) in [("run", "x"), ("run/x", "docker.sock")] {
            fs::create_dir(path.ancestors().nth(3).unwrap().join(directory)).unwrap();
            ear.rings().await;
            bell.watch(&path);
            assert!(!bell.drain(), "{next} is waited for, and not there yet");
        }
        fs::write(&path, "").unwrap();
        ear.rings().await;
        // Away, and what is above it is to be watched anew.
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        ear.rings().await;
        bell.watch(&path);
        assert!(timeout(Duration::from_millis(50), ear.rings()).await.is_err());
        fs::create_dir(path.parent().unwrap()).unwrap();
        ear.rings().await;
    }

    #[test]
    fn nobody_but_root_rings_and_nobody_fills_it() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let bell = Doorbell::new().unwrap();
        let commons = directory.path().join("commons");
        fs::create_dir(&commons).unwrap();
        fs::set_permissions(&commons, fs::Permissions::from_mode(0o1777)).unwrap();
        bell.watch(&commons.join("docker.sock"));
        let own = directory.path().join("own");
        fs::create_dir(&own).unwrap();
        std::os::unix::fs::chown(&own, Some(65_534), None).unwrap();
        bell.watch(&own.join("docker.sock"));
        assert!(bell.names().is_empty());
        for n in 0..MAX_DIRECTORIES + 10 {
            let one = directory.path().join(n.to_string());
            fs::create_dir(&one).unwrap();
            bell.watch(&one.join("docker.sock"));
        }
        (0..MAX_NAMES + 10).for_each(|n| bell.watch(&directory.path().join(format!("0/{n}"))));
        let sizes: Vec<usize> = bell.names().values().map(HashSet::len).collect();
        assert_eq!((sizes.len(), sizes.iter().max()), (MAX_DIRECTORIES, Some(&MAX_NAMES)));
    }
}
