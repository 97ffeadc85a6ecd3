//! Everything that counts while a tracker runs: each module's own counters, read by the metrics.

use std::sync::Arc;

use crate::collection::writer::Stats as CollectionStats;
use crate::source::{self, find, kernel, scan};
use crate::{barrier, plane, route};

/// Everything that counts while the tracker runs.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// The collection's.
    pub collection: Arc<CollectionStats>,
    /// The barrier's.
    pub barrier: Arc<barrier::Stats>,
    /// The probes'.
    pub kernel: Arc<kernel::Stats>,
    /// The scans'.
    pub scan: Arc<scan::Stats>,
    /// The `proc` source's.
    pub proc: Arc<source::proc::Stats>,
    /// The podman source's.
    pub podman: Arc<source::podman::Stats>,
    /// The containerd source's.
    #[cfg(feature = "containerd")]
    pub containerd: Arc<source::containerd::Stats>,
    /// The CRI source's.
    #[cfg(feature = "cri")]
    pub cri: Arc<source::cri::Stats>,
    /// The finder's.
    pub find: Arc<find::Stats>,
    /// The Docker source's.
    #[cfg(feature = "docker")]
    pub docker: Arc<source::docker::Stats>,
    /// The routes'.
    pub route: Arc<route::Stats>,
    /// The plane's.
    pub plane: Arc<plane::Stats>,
}
