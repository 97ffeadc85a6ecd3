//! How the plane is set up.

use std::path::PathBuf;

use serde::Deserialize;
use tracker_common::plane::{Geometry, PATH};

/// The plane's part of the configuration. In the config file under `[plane]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Whether there is a plane. By default `tracker run` makes one, and a program that the library is part of does not:
    /// there is one plane on a host, and it is the daemon's.
    pub enabled: Option<bool>,
    /// The file. Its directory is made if it is missing; it should be in a tmpfs.
    pub path: PathBuf,
    /// A group that may read the file, besides root.
    pub group: Option<String>,
    /// Rows: containers that are there, and those that have exited and linger. 512 bytes each, and as much again for all
    /// else; from 16 to 1,048,576.
    pub capacity: u32,
    /// The directory, in a BPF file system, where maps for BPF programs are pinned; none are where it is empty.
    pub pins: PathBuf,
    /// Whether the probes go on recording while no tracker runs.
    pub keep: bool,
    /// For how long they do, without a sign of life from a tracker, which gives one each second; at least 5.
    pub keep_for_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: None,
            path: PATH.into(),
            group: None,
            capacity: 16_384,
            pins: "/sys/fs/bpf/tracker".into(),
            keep: false,
            keep_for_seconds: 600,
        }
    }
}

impl Config {
    /// The number of rows, within its limits.
    pub(crate) fn rows(&self) -> usize {
        (self.capacity as usize).clamp(16, Geometry::MAX_CAPACITY)
    }

    /// How long the probes go on without a sign of life, in nanoseconds; 0 where they end with the tracker.
    pub(crate) fn keep_ns(&self) -> u64 {
        if self.keep { self.keep_for_seconds.max(5).saturating_mul(1_000_000_000) } else { 0 }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(false)
    }
}
