//! Which image a name stands for: a small cache, and the reading of manifests and configs. The asking is the catalog's.
//!
//! Two tables, both bounded (the oldest entry goes first, and is asked for again when needed). A name's target is valid
//! until containerd reports that the image changed. What config a manifest has never changes: both are named by their
//! digests.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use jiff::Timestamp;
use serde::Deserialize;

use crate::container::Str;
use crate::enrich::caps;

/// Names remembered, over all namespaces.
const MAX_NAMES: usize = 4096;
/// Manifests and indexes remembered.
const MAX_MANIFESTS: usize = 4096;
/// Bytes of a manifest or index that is read; containerd itself refuses more than 8 MiB.
pub(super) const MAX_MANIFEST_LEN: usize = 4 << 20;
/// `sha512:` and 128 digits fit.
const MAX_DIGEST_LEN: usize = 256;

/// The cache.
#[derive(Debug)]
pub(super) struct Images {
    targets: Bounded<(Str, Str), Str>,
    configs: Bounded<Str, Str>,
}

impl Default for Images {
    fn default() -> Self {
        Self { targets: Bounded::new(MAX_NAMES), configs: Bounded::new(MAX_MANIFESTS) }
    }
}

impl Images {
    /// Digest of what the name stands for in the namespace.
    pub(super) fn target(&self, namespace: &Str, name: &Str) -> Option<Str> {
        self.targets.get(&(namespace.clone(), name.clone())).cloned()
    }

    /// A name's target was read.
    pub(super) fn set_target(&mut self, namespace: Str, name: Str, target: Str) {
        self.targets.insert((namespace, name), target);
    }

    /// A name may point elsewhere now.
    pub(super) fn forget(&mut self, namespace: &Str, name: &Str) {
        self.targets.remove(&(namespace.clone(), name.clone()));
    }

    /// No name is known to be valid any more: events may have been missed.
    pub(super) fn forget_names(&mut self) {
        self.targets = Bounded::new(MAX_NAMES);
    }

    /// Digest of the config that belongs to a manifest or index.
    pub(super) fn config(&self, target: &Str) -> Option<Str> {
        self.configs.get(target).cloned()
    }

    /// A manifest or index was read.
    pub(super) fn set_config(&mut self, target: Str, config: Str) {
        self.configs.insert(target, config);
    }
}

/// A map that lets its oldest entry go when it is full.
#[derive(Debug)]
pub(super) struct Bounded<K, V> {
    max: usize,
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    pub(super) fn new(max: usize) -> Self {
        Self { max, entries: HashMap::new(), order: VecDeque::new() }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.entries.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        if self.entries.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &K) {
        if self.entries.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }
}

/// What a blob that an image's name points to leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Manifest {
    /// It is a manifest.
    Config {
        /// Digest of its config.
        digest: Str,
        /// Bytes of its config and its layers, as they are stored; absent where it does not say.
        size: Option<u64>,
    },
    /// It is an index: read the manifest with this digest, the one for this machine.
    Index(Str),
}

/// Why a blob is not a manifest.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAManifest {
    #[error("parse an image manifest")]
    Json(#[from] serde_json::Error),
    #[error("an image manifest that names neither a config nor a manifest for this machine")]
    Neither,
}

/// Reads an OCI or Docker manifest or index.
pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, NotAManifest> {
    // Both kinds in one: the media type is optional in both, and older Docker manifests lack other fields too.
    #[derive(Deserialize)]
    struct Document {
        config: Option<Descriptor>,
        #[serde(default)]
        manifests: Vec<Descriptor>,
        layers: Option<Vec<Part>>,
    }
    #[derive(Deserialize)]
    struct Descriptor {
        digest: String,
        size: Option<u64>,
        platform: Option<Platform>,
    }
    #[derive(Deserialize)]
    struct Part {
        size: Option<u64>,
    }
    #[derive(Deserialize)]
    struct Platform {
        os: String,
        architecture: String,
    }

    let document: Document = serde_json::from_slice(bytes)?;
    if let Some(config) = document.config {
        let parts = document.layers.iter().flatten().map(|layer| layer.size).chain([config.size]);
        let size = document.layers.is_some().then(|| parts.flatten().fold(0, u64::saturating_add));
        let digest = digest(&config.digest).ok_or(NotAManifest::Neither)?;
        return Ok(Manifest::Config { digest, size });
    }
    let ours = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture();
    let chosen = match &document.manifests[..] {
        [only] => Some(only),
        several => several.iter().find(|manifest| manifest.platform.as_ref().is_some_and(ours)),
    };
    chosen.and_then(|manifest| digest(&manifest.digest)).map(Manifest::Index).ok_or(NotAManifest::Neither)
}

/// Reads an image's config: its platform, and when it was built. What it does not say, or says in no known way, is absent.
pub(super) fn parse_config(bytes: &[u8]) -> (Option<Str>, Option<Timestamp>) {
    #[derive(Deserialize, Default)]
    struct Config {
        os: Option<String>,
        architecture: Option<String>,
        variant: Option<String>,
        created: Option<String>,
    }
    let Ok(config) = serde_json::from_slice::<Config>(bytes) else { return (None, None) };
    let platform = match (config.os, config.architecture) {
        (Some(os), Some(architecture)) => {
            let variant = config.variant.filter(|variant| !variant.is_empty());
            let parts: Vec<String> = [os, architecture].into_iter().chain(variant).collect();
            caps::name(&parts.join("/")).filter(|platform| platform.len() <= MAX_DIGEST_LEN)
        }
        _ => None,
    };
    // Reproducible builds say the year 0 or the epoch, which is as good as nothing.
    let created = config.created.and_then(|text| text.parse::<Timestamp>().ok());
    (platform, created.filter(|at| *at > Timestamp::UNIX_EPOCH))
}

/// An image's name without its tag: what follows the last colon is one unless it holds a slash, since a registry's name
/// may have a port.
pub(super) fn repository(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// A digest as text, if it looks like one.
pub(super) fn digest(text: &str) -> Option<Str> {
    (text.contains(':') && text.len() <= MAX_DIGEST_LEN).then(|| text.into())
}

/// This machine's architecture, as image indexes spell it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        let arch = architecture();
        let index = format!(
            r#"{{"manifests":[{{"digest":"sha256:a","platform":{{"os":"linux","architecture":"other"}}}},
                {{"digest":"sha256:b","platform":{{"os":"linux","architecture":"{arch}"}}}},
                {{"digest":"sha256:c","platform":{{"os":"unknown","architecture":"unknown"}}}}]}}"#
        );
        for (text, expected) in [
            (
                r#"{"config":{"digest":"sha256:c","size":7},"layers":[{"size":3},{"size":18446744073709551610}]}"#,
                Some(Manifest::Config { digest: "sha256:c".into(), size: Some(u64::MAX) }),
            ),
            (
                r#"{"schemaVersion":2,"config":{"digest":"sha256:c"}}"#,
                Some(Manifest::Config { digest: "sha256:c".into(), size: None }),
            ),
            (r#"{"manifests":[{"digest":"sha256:m"}]}"#, Some(Manifest::Index("sha256:m".into()))),
            (&*index, Some(Manifest::Index("sha256:b".into()))),
            (r#"{"manifests":[]}"#, None),
            (r#"{"config":{"digest":"none"}}"#, None),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, None),
            ("[]", None),
        ] {
            assert_eq!(parse(text.as_bytes()).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_config_tells_platform_and_time_or_nothing() {
        let config = br#"{"os":"linux","architecture":"arm64","variant":"v8","created":"2024-02-03T04:05:06Z"}"#;
        let created = "2024-02-03T04:05:06Z".parse().unwrap();
        assert_eq!(parse_config(config), (Some("linux/arm64/v8".into()), Some(created)));
        let odd = br#"{"os":"linux","architecture":"amd64","variant":"","created":"0001-01-01T00:00:00Z"}"#;
        assert_eq!(parse_config(odd), (Some("linux/amd64".into()), None));
        assert_eq!(parse_config(b"[]"), (None, None));
        assert_eq!(parse_config(br#"{"created":"yesterday"}"#), (None, None));
    }

    #[test]
    fn a_port_is_no_tag() {
        for (name, expected) in [("a/b:1", "a/b"), ("host:5000/b", "host:5000/b"), ("host:5000/b:x", "host:5000/b")] {
            assert_eq!(repository(name), expected);
        }
    }

    #[test]
    fn the_oldest_entry_goes_first() {
        let mut map = Bounded::new(2);
        for n in [1, 2, 2, 3] {
            map.insert(n, ());
        }
        assert_eq!((map.get(&1), map.get(&2), map.get(&3)), (None, Some(&()), Some(&())));
        map.remove(&2);
        map.insert(4, ());
        assert_eq!((map.get(&3), map.get(&4), map.order.len()), (Some(&()), Some(&()), 2));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (parse(&bytes), parse_config(&bytes));
        }
    }
}
