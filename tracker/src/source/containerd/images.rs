//! Which image a name stands for: a small cache, and the reading of manifests. The asking is the session's.
//!
//! Two tables, both bounded (the oldest entry goes first, and is asked for again when needed). A name's target is valid
//! until containerd reports that the image changed. What config a manifest has never changes: both are named by their
//! digests.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use serde::Deserialize;

use crate::container::Str;

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
struct Bounded<K, V> {
    max: usize,
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    fn new(max: usize) -> Self {
        Self { max, entries: HashMap::new(), order: VecDeque::new() }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    fn insert(&mut self, key: K, value: V) {
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
    /// It is a manifest, with the digest of its config.
    Config(Str),
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
    }
    #[derive(Deserialize)]
    struct Descriptor {
        digest: String,
        platform: Option<Platform>,
    }
    #[derive(Deserialize)]
    struct Platform {
        os: String,
        architecture: String,
    }

    let document: Document = serde_json::from_slice(bytes)?;
    if let Some(config) = document.config {
        return digest(&config.digest).map(Manifest::Config).ok_or(NotAManifest::Neither);
    }
    let ours = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture();
    let chosen = match &document.manifests[..] {
        [only] => Some(only),
        several => several.iter().find(|manifest| manifest.platform.as_ref().is_some_and(ours)),
    };
    chosen.and_then(|manifest| digest(&manifest.digest)).map(Manifest::Index).ok_or(NotAManifest::Neither)
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
                r#"{"schemaVersion":2,"config":{"digest":"sha256:c"},"layers":[]}"#,
                Some(Manifest::Config("sha256:c".into())),
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
            let _ = parse(&bytes);
        }
    }
}
