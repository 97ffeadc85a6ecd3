//! Reading images: which config a name stands for, and all that a namespace has stored.
//!
//! Blobs are named by their digests and never change, so each is read once: a container's image costs calls only when it
//! is new, and a namespace's list costs one call when nothing in it is.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::Stats;
use super::client::Client;
use super::images::{self, Bounded, Manifest};
use crate::container::{Image, Str};
use crate::enrich::caps;
use crate::fact::Source;
use crate::source::grpc::CallError;
use crate::source::images::{MAX_IMAGES, StoredImage};

/// What an image's name stands for; the inner error is for people. At most three calls, and none for a name that is known.
pub(super) async fn resolve(
    client: &Client,
    namespace: &Str,
    name: Str,
    images: &mut images::Images,
) -> Result<Result<Image, Str>, CallError> {
    let target = match images.target(namespace, &name) {
        Some(target) => target,
        None => match client.image_target(namespace, &name).await {
            Ok(target) => {
                let Some(target) = images::digest(&target) else { return Ok(Err("its digest is none".into())) };
                images.set_target(Arc::clone(namespace), Arc::clone(&name), Arc::clone(&target));
                target
            }
            Err(error @ CallError::Answer { .. }) => return Ok(Err(error.to_string().into())),
            Err(error) => return Err(error),
        },
    };
    let id = match images.config(&target) {
        Some(id) => id,
        None => match manifest(client, namespace, &target, |stats| &stats.calls_image).await? {
            Ok((config, _)) => {
                images.set_config(Arc::clone(&target), Arc::clone(&config));
                config
            }
            Err(reason) => return Ok(Err(reason)),
        },
    };
    Ok(Ok(Image { name: Some(name), id: Some(id), digest: Some(target) }))
}

/// The config of the image behind `target`, and how large the image is: an index leads to a manifest, a manifest to its
/// config. The inner error is for people.
async fn manifest(
    client: &Client,
    namespace: &Str,
    target: &Str,
    calls: fn(&Stats) -> &AtomicU64,
) -> Result<Result<(Str, Option<u64>), Str>, CallError> {
    let mut blob = Arc::clone(target);
    for _ in 0..2 {
        let bytes = match client.blob(namespace, &blob, calls).await {
            Ok(bytes) => bytes,
            Err(error @ CallError::Answer { .. }) => return Ok(Err(error.to_string().into())),
            Err(error) => return Err(error),
        };
        match images::parse(&bytes) {
            Ok(Manifest::Config { digest, size }) => return Ok(Ok((digest, size))),
            Ok(Manifest::Index(manifest)) => blob = manifest,
            Err(error) => return Ok(Err(error.to_string().into())),
        }
    }
    Ok(Err("an index of indexes".into()))
}

/// What an image's blobs say of it.
#[derive(Clone, Debug, Default)]
struct Content {
    id: Option<Str>,
    size: Option<u64>,
    platform: Option<Str>,
    created_at: Option<Timestamp>,
}

/// Contents of images by the digest that their names point to, over all namespaces. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Catalog {
    // Protects the table; never held across an await.
    contents: Arc<Mutex<Bounded<Str, Content>>>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self { contents: Arc::new(Mutex::new(Bounded::new(MAX_IMAGES))) }
    }
}

impl Catalog {
    /// All that a namespace has stored, and whether there was more than is kept. Two or three small blobs are read for an
    /// image that is new, one after the other; an image whose blobs are not all there is listed with what is known.
    pub(super) async fn list(&self, client: &Client, namespace: &Str) -> Result<(Vec<StoredImage>, bool), CallError> {
        let mut by_target: BTreeMap<Str, Vec<Str>> = BTreeMap::new();
        for (name, target) in client.image_targets(namespace).await? {
            if let (Some(name), Some(target)) = (caps::name(&name), images::digest(&target)) {
                by_target.entry(target).or_default().push(name);
            }
        }
        let is_cut_short = by_target.len() > MAX_IMAGES;
        let mut all = Vec::with_capacity(by_target.len().min(MAX_IMAGES));
        for (target, names) in by_target.into_iter().take(MAX_IMAGES) {
            let content = self.content(client, namespace, &target).await?;
            all.push(stored(namespace, &target, names, content));
        }
        Ok((all, is_cut_short))
    }

    async fn content(&self, client: &Client, namespace: &Str, target: &Str) -> Result<Content, CallError> {
        if let Some(known) = self.contents.lock().unwrap_or_else(PoisonError::into_inner).get(target) {
            return Ok(known.clone());
        }
        // Not remembered when something is missing: it may still be on its way.
        let calls: fn(&Stats) -> &AtomicU64 = |stats| &stats.calls_catalog;
        let Ok((id, size)) = manifest(client, namespace, target, calls).await? else { return Ok(Content::default()) };
        let mut content = Content { id: Some(Arc::clone(&id)), size, ..Content::default() };
        match client.blob(namespace, &id, calls).await {
            Ok(bytes) => (content.platform, content.created_at) = images::parse_config(&bytes),
            Err(CallError::Answer { .. }) => return Ok(content),
            Err(error) => return Err(error),
        }
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        contents.insert(Arc::clone(target), content.clone());
        Ok(content)
    }
}

/// The CRI plugin stores an image under its names, its digests and its id alike.
fn stored(namespace: &Str, target: &Str, spelt: Vec<Str>, content: Content) -> StoredImage {
    let (mut names, mut digests) = (vec![], vec![]);
    for name in spelt {
        if name.contains('@') {
            digests.push(name);
        } else if !name.starts_with("sha256:") {
            digests.push(format!("{}@{target}", images::repository(&name)).into());
            names.push(name);
        }
    }
    for list in [&mut names, &mut digests] {
        list.sort_unstable();
        list.dedup();
    }
    let Content { id, size, platform, created_at } = content;
    StoredImage {
        source: Source::Containerd,
        namespace: Some(Arc::clone(namespace)),
        names,
        id,
        digests,
        size,
        platform,
        created_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_digests_and_ids_are_told_apart() {
        let spelt =
            ["docker.io/library/nginx:1", "docker.io/library/nginx@sha256:aa", "sha256:bb", "localhost:5000/web"];
        let image = stored(&"k8s.io".into(), &"sha256:aa".into(), spelt.map(Str::from).to_vec(), Content::default());
        assert_eq!(image.names, [Str::from("docker.io/library/nginx:1"), "localhost:5000/web".into()]);
        let digests: Vec<&str> = image.digests.iter().map(|digest| &**digest).collect();
        assert_eq!(digests, ["docker.io/library/nginx@sha256:aa", "localhost:5000/web@sha256:aa"]);
    }
}
