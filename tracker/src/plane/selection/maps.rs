//! A selection's two BPF maps: made, taken from a program that has them, or opened where they are pinned.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, IterableMap, Map, MapData, MapError};

use super::SelectionError;
use super::keys::{Keys, Table};

/// The names of the pins, and of the maps in errors.
const MNTNS: &str = "mntns";
const CGROUPS: &str = "cgroups";

/// The maps of a selection; either may be left out.
#[derive(Debug)]
pub struct SelectionMaps {
    mntns: Option<MapData>,
    cgroups: Option<MapData>,
}

impl SelectionMaps {
    /// Makes both, with room for `capacity` containers. Needs CAP_BPF.
    pub fn create(capacity: u32) -> Result<Self, SelectionError> {
        // Memory for all keys at once: later there may be none, and the writer would have to wait for it.
        let flags = 0;
        let failed = map_error("make");
        let mntns = HashMap::<MapData, u32, u64>::create(capacity, flags).map_err(&failed)?;
        let cgroups = HashMap::<MapData, u64, u64>::create(capacity, flags).map_err(&failed)?;
        Ok(Self { mntns: Some(own(mntns.map())?), cgroups: Some(own(cgroups.map())?) })
    }

    /// Takes maps that a program of this process has: hashes from `u32` (mount ns) and from `u64` (cgroup) to `u64`.
    pub fn from_fds(mntns: Option<OwnedFd>, cgroups: Option<OwnedFd>) -> Result<Self, SelectionError> {
        let open = |fd: OwnedFd| MapData::from_fd(fd).map_err(map_error("open"));
        Self { mntns: mntns.map(open).transpose()?, cgroups: cgroups.map(open).transpose()? }.checked()
    }

    /// Opens those that are pinned in `directory` by [`Selection::pin`](super::Selection::pin).
    pub(super) fn from_pins(directory: &Path) -> Result<Self, SelectionError> {
        let open = |name| MapData::from_pin(directory.join(name)).map_err(map_error("open"));
        Self { mntns: Some(open(MNTNS)?), cgroups: Some(open(CGROUPS)?) }.checked()
    }

    /// Takes everything out of them.
    pub(super) fn clear(&self) {
        if let Ok((mut mntns, mut cgroups)) = self.tables() {
            mntns.clear();
            cgroups.clear();
        }
    }

    fn checked(self) -> Result<Self, SelectionError> {
        self.tables()?;
        Ok(self)
    }

    pub(super) fn mount_namespaces(&self) -> Option<BorrowedFd<'_>> {
        Some(self.mntns.as_ref()?.fd().as_fd())
    }

    pub(super) fn cgroups(&self) -> Option<BorrowedFd<'_>> {
        Some(self.cgroups.as_ref()?.fd().as_fd())
    }

    /// Both as the writer has them, with what is in them.
    #[allow(clippy::type_complexity)]
    pub(super) fn tables(
        &self,
    ) -> Result<(Keys<u32, Option<BpfTable<u32>>>, Keys<u64, Option<BpfTable<u64>>>), SelectionError> {
        Ok((BpfTable::keys(MNTNS, self.mntns.as_ref())?, BpfTable::keys(CGROUPS, self.cgroups.as_ref())?))
    }

    /// See [`Selection::pin`](super::Selection::pin). Pins both or none.
    pub(super) fn pin(&self, directory: &Path) -> Result<(), SelectionError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| SelectionError::Directory { path: directory.to_owned(), source })?;
        let maps = [(MNTNS, &self.mntns), (CGROUPS, &self.cgroups)];
        let mut pinned = Vec::new();
        for (name, map) in maps {
            let Some(map) = map else { continue };
            let path = directory.join(name);
            if let Err(error) = map.pin(&path) {
                // Those that this call made, and no others.
                pinned.iter().for_each(|path| drop(fs::remove_file(path)));
                return Err(SelectionError::Pin { path, source: Box::new(error) });
            }
            pinned.push(path);
        }
        Ok(())
    }
}

/// Removes what [`SelectionMaps::pin`] pinned, and the directory. What is not there is no error.
pub(super) fn unpin(directory: &Path, more: &[&str]) -> io::Result<()> {
    let gone = |done: io::Result<()>| match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for name in [MNTNS, CGROUPS].iter().chain(more) {
        gone(fs::remove_file(directory.join(name)))?;
    }
    gone(fs::remove_dir(directory))
}

/// The writer's end of one map.
#[derive(Debug)]
pub(super) struct BpfTable<K: Pod>(HashMap<MapData, K, u64>);

impl<K: Pod + Ord + std::hash::Hash> BpfTable<K> {
    /// A map that is left out has room for everything.
    fn keys(what: &'static str, map: Option<&MapData>) -> Result<Keys<K, Option<Self>>, SelectionError> {
        let Some(map) = map else { return Ok(Keys::new(None, usize::MAX, [])) };
        let shape = || SelectionError::Shape { what, key_len: size_of::<K>() };
        let capacity = map.info().map_err(map_error("look at"))?.max_entries() as usize;
        let map = Map::from_map_data(own(map)?).map_err(map_error("open"))?;
        // No other kind of hash: one that forgets what was used least would be silently wrong.
        if !matches!(map, Map::HashMap(_)) {
            return Err(shape());
        }
        let map = HashMap::<MapData, K, u64>::try_from(map).map_err(|_| shape())?;
        let found: Result<Vec<_>, MapError> = map.iter().collect();
        let found = found.map_err(map_error("read"))?;
        Ok(Keys::new(Some(BpfTable(map)), capacity, found))
    }
}

impl<K: Pod> Table<K> for Option<BpfTable<K>> {
    fn put(&mut self, key: K, value: u64) -> bool {
        self.as_mut().is_none_or(|table| table.0.insert(key, value, 0).is_ok())
    }

    fn take(&mut self, key: K) -> bool {
        self.as_mut().is_none_or(|table| match table.0.remove(&key) {
            // Somebody else was first.
            Err(MapError::SyscallError(error)) => error.io_error.kind() == io::ErrorKind::NotFound,
            removed => removed.is_ok(),
        })
    }
}

/// Another descriptor of the same map.
fn own(map: &MapData) -> Result<MapData, SelectionError> {
    let failed = map_error("open");
    let fd = map.fd().as_fd().try_clone_to_owned().map_err(|error| failed(MapError::IoError(error)))?;
    MapData::from_fd(fd).map_err(failed)
}

pub(super) fn map_error(what: &'static str) -> impl Fn(MapError) -> SelectionError {
    move |source| SelectionError::Map { what, source: Box::new(source) }
}
