//! What the tracker is told: each module's own `Config`, put together. TOML; unknown keys are refused.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::enrich::env::EnvAllow;
use crate::{barrier, collection, filter, plane, route, server, source};

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
    /// Environment variables of containers whose values may be read and shown; by default none.
    pub env_allow: EnvAllow,
    /// How much is kept, and for how long.
    pub collection: collection::config::Config,
    /// Which containers are left out of what is published.
    pub filter: filter::Config,
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
    /// The tables that other programs look up in.
    pub plane: plane::Config,
    /// How runtimes are looked for.
    pub find: source::find::Config,
    /// Where podman's service is looked for.
    pub podman: source::podman::Config,
    /// Where containerds are looked for.
    #[cfg(feature = "containerd")]
    pub containerd: source::containerd::Config,
    /// Where CRI servers are looked for, besides the containerds.
    #[cfg(feature = "cri")]
    pub cri: source::cri::Config,
    /// Where dockerds are looked for.
    #[cfg(feature = "docker")]
    pub docker: source::docker::Config,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration `{path}`: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is not what is expected; the error names line and column.
    #[error("understand the configuration `{path}`: {error}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads a file of TOML, of at most 1 MiB.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = File::open(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        Self::read_from(file, path)
    }

    /// Reads TOML of at most 1 MiB from what errors call `path`.
    pub fn read_from(reader: impl Read, path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(reader).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        toml::from_str(&text).map_err(|error| ConfigError::Parse { path: path.to_owned(), error: Box::new(error) })
    }
}

/// More than any configuration, and soon read: a device without an end may have been named.
const MAX_LEN: u64 = 1 << 20;

fn read_text(reader: impl Read) -> io::Result<String> {
    let mut text = String::new();
    let len = reader.take(MAX_LEN + 1).read_to_string(&mut text)? as u64;
    if len > MAX_LEN {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB"));
    }
    Ok(text)
}

#[cfg(all(test, feature = "containerd", feature = "cri", feature = "docker"))]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_refused() {
        let said = Config::read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(said, "read the configuration `/dev/zero`: it is longer than 1 MiB");
    }

    #[test]
    fn the_operators_manual_lists_every_key_with_its_default() {
        let manual = include_str!("../../docs/operating.md");
        let listed = manual.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let mut config: Config = toml::from_str(listed).unwrap();
        // These have no value by default, so that an example stands for them.
        let examples = (config.node.take(), config.server.group.take(), config.barrier.keeper_program.take());
        assert!(matches!(examples, (Some(_), Some(_), Some(_))));
        assert!((config.plane.group.take(), config.plane.enabled.take()) == (Some("tracker".into()), Some(true)));
        assert!(config.docker.containerd_namespace.take().is_some());
        let default = format!("{:#?}", Config::default());
        assert_eq!(format!("{config:#?}"), default);
        for line in default.lines() {
            // Struct fields, and not the elements of lists.
            let Some((name, _)) = line.trim().split_once(": ") else { continue };
            let key = name.replace('_', "-");
            let is_listed =
                listed.lines().any(|line| line.starts_with(&format!("{key} =")) || line.contains(&format!("{key}]")));
            assert!(is_listed, "`{key}` is not in docs/operating.md");
        }
    }
}
