//! The images that runtimes have stored: what each source last listed, for people who ask.
//!
//! Images have no kernel keys and nothing is held for them, so they stay outside the collection: a source replaces its
//! whole list when an event says that something changed. What a runtime stored stays listed while its daemon is away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use crate::container::Str;
use crate::fact::Source;

/// Images of one list that are kept; a source that has more says so.
pub const MAX_IMAGES: usize = 16_384;

/// An image as one runtime stores it. Absent means that the runtime does not say, or has not all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Who says so.
    pub source: Source,
    /// The runtime's own namespace for images, where it has such (containerd).
    pub namespace: Option<Str>,
    /// Its names, sorted.
    pub names: Vec<Str>,
    /// Digest of its config, which is what containers carry as image id.
    pub id: Option<Str>,
    /// Its repositories' names with the digest of manifest or index, `repository@sha256:…`, sorted.
    pub digests: Vec<Str>,
    /// Bytes: of its compressed layers and config (containerd), or of its unpacked layers (Docker, Podman).
    pub size: Option<u64>,
    /// Operating system, architecture and variant, `linux/arm64/v8`.
    pub platform: Option<Str>,
    /// When it was built, by its own word.
    pub created_at: Option<Timestamp>,
}

/// One list: whose it is, by source, socket and namespace.
type ListKey = (Source, Str, Option<Str>);

/// All sources' images. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Images {
    // Protects the lists; held for the time of a replacement or of copying references.
    lists: Arc<Mutex<BTreeMap<ListKey, Arc<[StoredImage]>>>>,
}

impl Images {
    /// What `source` has in `namespace` of the runtime behind `socket`: all of it, replacing what it had.
    pub fn replace(&self, source: Source, socket: &Str, namespace: Option<&Str>, images: Vec<StoredImage>) {
        let key = (source, Arc::clone(socket), namespace.cloned());
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        match images.is_empty() {
            true => drop(lists.remove(&key)),
            false => drop(lists.insert(key, images.into())),
        }
    }

    /// Adds to the images that the runtime behind `socket` has listed what it told of their platforms since.
    #[cfg(feature = "docker")]
    pub(crate) fn add_platforms(&self, source: Source, socket: &Str, platform: impl Fn(&str) -> Option<Str>) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, list) in lists.iter_mut().filter(|((of, by, _), _)| *of == source && by == socket) {
            let mut images = list.to_vec();
            for image in &mut images {
                image.platform = image.platform.take().or_else(|| platform(image.id.as_deref()?));
            }
            *list = images.into();
        }
    }

    /// Keeps of a runtime's lists only those of namespaces that `exists` knows.
    pub fn retain_namespaces(&self, source: Source, socket: &Str, exists: impl Fn(&str) -> bool) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists
            .retain(|(of, by, namespace), _| *of != source || by != socket || namespace.as_deref().is_none_or(&exists));
    }

    /// The runtime behind `socket` is not followed any more.
    pub fn forget(&self, source: Source, socket: &Str) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.retain(|(of, by, _), _| *of != source || by != socket);
    }

    /// All of them: by source, namespace and first name. One that is reached by two sockets comes once.
    pub fn all(&self) -> Vec<StoredImage> {
        let lists: Vec<_> = self.lists.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut all: Vec<StoredImage> = lists.iter().flat_map(|list| list.iter().cloned()).collect();
        let order = |image: &StoredImage| {
            (image.source, image.namespace.clone(), image.names.first().cloned(), image.id.clone())
        };
        all.sort_by_cached_key(order);
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> StoredImage {
        StoredImage {
            source: Source::Containerd,
            namespace: Some("default".into()),
            names: vec![name.into()],
            id: None,
            digests: vec![],
            size: None,
            platform: None,
            created_at: None,
        }
    }

    fn names(images: &Images) -> Vec<Str> {
        images.all().into_iter().flat_map(|image| image.names).collect()
    }

    #[test]
    fn a_list_replaces_its_former_one_and_no_other() {
        let images = Images::default();
        let (one, other): (Str, Str) = ("/one".into(), "/other".into());
        let (default, k8s): (Str, Str) = ("default".into(), "k8s.io".into());
        images.replace(Source::Containerd, &one, Some(&default), vec![image("b"), image("a")]);
        images.replace(Source::Containerd, &other, Some(&default), vec![image("c"), image("b")]);
        assert_eq!(names(&images), ["a".into(), "b".into(), "c".into()] as [Str; 3]);
        images.replace(Source::Containerd, &one, Some(&default), vec![]);
        images.replace(Source::Containerd, &one, Some(&k8s), vec![image("d")]);
        assert_eq!(names(&images), ["b".into(), "c".into(), "d".into()] as [Str; 3]);
        images.retain_namespaces(Source::Containerd, &one, |namespace| namespace == "default");
        assert_eq!(names(&images), ["b".into(), "c".into()] as [Str; 2]);
        images.forget(Source::Containerd, &other);
        assert_eq!(names(&images), [] as [Str; 0]);
    }
}
