//! Digests of images: a small cache by image id, and the choice among an image's digests. Pure.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;

use super::wire;
use crate::container::Str;
use crate::enrich::caps;
use crate::fact::Source;
use crate::source::images::StoredImage;

/// Images remembered. The oldest goes first, and is asked for again when it is needed.
const MAX_IMAGES: usize = 4096;
/// `sha512:` and 128 digits, and room for others.
const MAX_DIGEST_LEN: usize = 256;
/// Names and digests of one image.
const MAX_NAMES: usize = 256;

/// The digests of images, as `repository@sha256:…`.
#[derive(Debug, Default)]
pub(super) struct Images {
    digests: HashMap<Str, Vec<Str>>,
    order: VecDeque<Str>,
}

impl Images {
    pub(super) fn get(&self, id: &Str) -> Option<&[Str]> {
        self.digests.get(id).map(Vec::as_slice)
    }

    pub(super) fn insert(&mut self, id: Str, digests: Vec<Str>) {
        if self.digests.insert(id.clone(), digests).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > MAX_IMAGES
            && let Some(oldest) = self.order.pop_front()
        {
            self.digests.remove(&oldest);
        }
    }
}

/// What a list of images says: to be shown, and to be looked up in.
pub(super) fn listed(all: Vec<wire::Image>) -> (Vec<StoredImage>, Images) {
    let mut cache = Images::default();
    let stored = all.into_iter().map(|image| {
        let (id, digests) = (image.id.as_deref().and_then(caps::name), digests(&image));
        if let Some(id) = &id {
            cache.insert(id.clone(), digests.clone());
        }
        StoredImage {
            source: Source::Docker,
            namespace: None,
            names: names(image.repo_tags),
            id,
            digests,
            size: image.size.and_then(|size| u64::try_from(size).ok()),
            platform: None,
            created_at: image.created.and_then(created),
        }
    });
    (stored.collect(), cache)
}

/// An image's digests, sorted.
pub(super) fn digests(image: &wire::Image) -> Vec<Str> {
    names(image.repo_digests.clone())
}

/// Docker writes `<none>` for the name of what has none.
fn names(names: Option<Vec<String>>) -> Vec<Str> {
    let mut names: Vec<Str> = names
        .iter()
        .flatten()
        .filter(|name| !name.starts_with('<'))
        .filter_map(|name| caps::name(name))
        .take(MAX_NAMES)
        .collect();
    names.sort_unstable();
    names
}

fn created(created: wire::Created) -> Option<Timestamp> {
    let created = match created {
        wire::Created::Seconds(seconds) => Timestamp::from_second(seconds).ok(),
        wire::Created::Text(text) => text.parse().ok(),
    };
    // Reproducible builds say the epoch, or the year 0: as good as nothing.
    created.filter(|at| *at > Timestamp::UNIX_EPOCH)
}

/// The digest by which an image's registry knows it: that of the repository by which it was asked for, else the first.
pub(super) fn digest(digests: &[Str], asked_for: Option<&str>) -> Option<Str> {
    let split = || digests.iter().filter_map(|digest| digest.split_once('@'));
    let asked_for = asked_for.map(repository);
    let own = split().find(|(repository, _)| Some(*repository) == asked_for);
    let (_, digest) = own.or_else(|| split().next())?;
    (digest.contains(':') && digest.len() <= MAX_DIGEST_LEN).then(|| digest.into())
}

/// An image's name without tag and digest. A colon before the last slash belongs to a registry's port.
fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_repository_asked_for() {
        let digests: Vec<Str> = ["busybox@sha256:a", "host:5000/bb@sha256:b"].map(Str::from).to_vec();
        for (asked_for, expected) in [
            (Some("busybox:1"), "sha256:a"),
            (Some("host:5000/bb"), "sha256:b"),
            (Some("host:5000/bb:1"), "sha256:b"),
            (Some("host:5000/bb@sha256:b"), "sha256:b"),
            (Some("d4ac81df658d"), "sha256:a"),
            (None, "sha256:a"),
        ] {
            assert_eq!(digest(&digests, asked_for).as_deref(), Some(expected), "{asked_for:?}");
        }
        assert_eq!(digest(&[], Some("busybox")), None);
        assert_eq!(digest(&["none".into(), "x@y".into()], None), None);
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut images = Images::default();
        let id = |n: usize| Str::from(n.to_string());
        (0..=MAX_IMAGES).for_each(|n| images.insert(id(n), vec![]));
        assert!(images.get(&id(0)).is_none() && images.get(&id(1)).is_some());
        images.insert(id(1), vec!["a@b:c".into()]);
        assert_eq!(images.get(&id(1)).map(<[_]>::len), Some(1));
    }
}
