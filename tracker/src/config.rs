//! What the tracker is told: each module's own `Config`, put together. TOML; unknown keys are refused.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{barrier, collection, route, server, source};

/// The whole configuration. Everything has a default, so that an empty file is a valid one.
///
/// ```
/// let config: tracker::Config = toml::from_str("node = 'db-1'\n[collection]\nlinger-ms = 5000").unwrap();
/// assert_eq!(config.collection.linger_ms, 5000);
/// assert!(toml::from_str::<tracker::Config>("nodes = 'db-1'").is_err());
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Name of this node in every answer; the host name by default.
    pub node: Option<String>,
    /// How much is kept, and for how long.
    pub collection: collection::config::Config,
    /// The debug socket. The library does not serve it by itself: [`crate::server::Server`] does.
    pub server: server::Config,
    /// Holding starts.
    pub barrier: barrier::Config,
    /// The probes.
    pub kernel: source::kernel::Config,
    /// The scan at start and the audits.
    pub scan: source::scan::Config,
    /// Where OCI runtimes keep what they know.
    pub proc: source::proc::Config,
    /// Where packets go.
    pub route: route::Config,
    /// Where containerds are looked for.
    #[cfg(feature = "containerd")]
    pub containerd: source::containerd::Config,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what is expected; the source names line and column.
    #[error("understand the configuration `{path}`: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads a file of TOML.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
    }
}
