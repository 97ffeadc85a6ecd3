//! A BPF file system of a test's own, and what is pinned in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// Mounted on a directory of its own, until it is dropped.
#[derive(Debug)]
pub struct BpfFs(TempDir);

impl BpfFs {
    /// An empty one.
    pub fn mount() -> Result<BpfFs> {
        Self::mount_with(MsFlags::empty())
    }

    /// An empty one that stays so.
    pub fn mount_read_only() -> Result<BpfFs> {
        Self::mount_with(MsFlags::MS_RDONLY)
    }

    fn mount_with(flags: MsFlags) -> Result<BpfFs> {
        let directory = tempfile::Builder::new().prefix("bpf-").tempdir().context("create a directory")?;
        mount(Some("bpf"), directory.path(), Some("bpf"), flags, None::<&str>).context("mount a BPF file system")?;
        Ok(BpfFs(directory))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// A map that is pinned; it stays open when it is no longer.
pub fn open<K: Pod>(path: &Path) -> Result<HashMap<MapData, K, u64>> {
    let map = MapData::from_pin(path).with_context(|| format!("open the map `{}`", path.display()))?;
    Ok(HashMap::try_from(Map::from_map_data(map)?)?)
}

/// What is in a map.
pub fn content<K: Pod + Ord>(map: &HashMap<MapData, K, u64>) -> Result<BTreeMap<K, u64>> {
    Ok(map.iter().collect::<Result<_, _>>()?)
}
