//! How much the collection may hold, and for how long.

use std::time::Duration;

use serde::Deserialize;

use super::pause::KNOWN;

/// The collection's bounds. In the config file under `[collection]`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Containers the tracker is sized for; 16,384 by default. Containers that nobody vouches for share an eighth.
    pub max_containers: usize,
    /// How long a container that is over stays, for late events; 60,000 ms by default.
    pub linger_ms: u64,
    /// Memory for containers that are over, in bytes; 32 MiB by default. The oldest make room first.
    pub tombstone_bytes: usize,
    /// Whether services with private mounts, snaps and users' sandboxes are published, as `sandboxed-process`; not by
    /// default.
    pub sandboxed_processes: bool,
    /// Images that sandboxes are made of, for containers of which neither a label nor an annotation tells: names with or
    /// without a tag; `*` and `?` are wildcards.
    pub pause_images: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_containers: 16_384,
            linger_ms: 60_000,
            tombstone_bytes: 32 << 20,
            sandboxed_processes: false,
            pause_images: KNOWN.map(str::to_owned).into(),
        }
    }
}

impl Config {
    pub(crate) fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }
}
