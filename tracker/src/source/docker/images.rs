//! What is known of images: a small cache by image id, and the choice among an image's digests. Pure.

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

/// The images.
#[derive(Debug, Default)]
pub(super) struct Images {
    known: HashMap<Str, Known>,
    order: VecDeque<Str>,
}

/// What is remembered of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Its digests, as `repository@sha256:…`, sorted.
    digests: Vec<Str>,
    platform: Platform,
}

/// What is known of an image's platform, which never changes: its id is the digest of what says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Platform {
    /// A list does not tell.
    #[default]
    NotAsked,
    Asked(Option<Str>),
}

impl Known {
    /// By an inspection.
    pub(super) fn inspected(image: &wire::Image) -> Known {
        let part = |part: &Option<String>| part.clone().filter(|part| !part.is_empty());
        let platform = part(&image.os).zip(part(&image.architecture)).and_then(|(os, architecture)| {
            let variant = part(&image.variant).map(|variant| format!("/{variant}")).unwrap_or_default();
            caps::name(&format!("{os}/{architecture}{variant}"))
        });
        Known { digests: digests(image), platform: Platform::Asked(platform) }
    }

    /// One that there is no more, though there are containers of it.
    pub(super) fn gone() -> Known {
        Known { digests: vec![], platform: Platform::Asked(None) }
    }
}

impl Images {
    /// Its digests, if it is known.
    pub(super) fn digests(&self, id: &Str) -> Option<&[Str]> {
        Some(&self.known.get(id)?.digests)
    }

    /// Its platform, where that was asked for and told.
    pub(super) fn platform(&self, id: &str) -> Option<Str> {
        match &self.known.get(id)?.platform {
            Platform::Asked(platform) => platform.clone(),
            Platform::NotAsked => None,
        }
    }

    /// Those that were listed and not asked for yet.
    pub(super) fn not_asked(&self) -> impl Iterator<Item = &Str> {
        self.order.iter().filter(|id| self.known.get(*id).is_some_and(|known| known.platform == Platform::NotAsked))
    }

    pub(super) fn insert(&mut self, id: Str, known: Known) {
        if self.known.insert(id.clone(), known).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > MAX_IMAGES
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// What a list of images says: to be shown, and to be looked up in. Of platforms `former` knows more.
pub(super) fn listed(all: Vec<wire::Image>, former: &Images) -> (Vec<StoredImage>, Images) {
    let mut cache = Images::default();
    let stored = all.into_iter().map(|image| {
        let (id, digests) = (image.id.as_deref().and_then(caps::name), digests(&image));
        if let Some(id) = &id {
            let platform = former.known.get(id).map(|known| known.platform.clone()).unwrap_or_default();
            cache.insert(id.clone(), Known { digests: digests.clone(), platform });
        }
        StoredImage {
            source: Source::Docker,
            namespace: None,
            names: names(image.repo_tags),
            platform: id.as_deref().and_then(|id| former.platform(id)),
            id,
            digests,
            size: image.size.and_then(|size| u64::try_from(size).ok()),
            created_at: image.created.and_then(created),
        }
    });
    (stored.collect(), cache)
}

/// An image's digests, sorted.
fn digests(image: &wire::Image) -> Vec<Str> {
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
        (0..=MAX_IMAGES).for_each(|n| images.insert(id(n), Known::default()));
        assert!(images.digests(&id(0)).is_none() && images.digests(&id(1)).is_some());
        images.insert(id(1), Known { digests: vec!["a@b:c".into()], ..Known::default() });
        assert_eq!(images.digests(&id(1)).map(<[_]>::len), Some(1));
    }

    #[test]
    fn a_platform_is_asked_for_once_and_outlives_lists() {
        let image = |json: &str| serde_json::from_str::<wire::Image>(json).unwrap();
        let list = || [r#"{"Id":"a"}"#, r#"{"Id":"b"}"#, r#"{"Id":"c"}"#].map(image).into();
        let (stored, mut images) = listed(list(), &Images::default());
        assert!(stored.iter().all(|image| image.platform.is_none()));
        assert_eq!(images.not_asked().map(|id| &**id).collect::<Vec<_>>(), ["a", "b", "c"]);
        let told = image(r#"{"Id":"a","Os":"linux","Architecture":"arm64","Variant":"v8"}"#);
        images.insert("a".into(), Known::inspected(&told));
        images.insert("b".into(), Known::gone());
        let untold = image(r#"{"Id":"c","Os":"linux","Architecture":""}"#);
        images.insert("c".into(), Known::inspected(&untold));
        let (stored, images) = listed(list(), &images);
        let platforms: Vec<_> = stored.iter().map(|image| image.platform.as_deref()).collect();
        assert_eq!(platforms, [Some("linux/arm64/v8"), None, None]);
        assert_eq!(images.not_asked().count(), 0);
    }
}
