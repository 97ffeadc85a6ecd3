//! Podman's own files about containers and images: `<store>/<driver>-containers/containers.json` and
//! `<store>/<driver>-images/images.json`.
//!
//! They tell a container's name and image without anybody to ask. What they do not tell (labels, networks, the pod's
//! name) is in podman's database, whose form changes between its versions, and which is not read.
//!
//! A file speaks for its owner alone: root's for root's containers, a user's for that user's. Files that have not
//! changed are not read again.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::FileStat;
use serde::Deserialize;

use crate::container::{ContainerId, Domain, Image, Str};
use crate::enrich::caps;
use crate::source::file::{self, Walk};
use crate::time::BootTime;

/// The list of containers, in the directory of containers.
pub(super) const CONTAINERS: &str = "containers.json";
/// A larger file is not read: some ten thousand containers.
const MAX_LEN: u64 = 16 << 20;
/// Stores that are remembered; when there are more, all are read anew.
const MAX_STORES: usize = 64;

/// What the store says of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) name: Option<Str>,
    pub(super) image: Option<Image>,
    pub(super) created_at: Option<BootTime>,
}

/// The stores that were read, each as of its files' last change.
#[derive(Debug, Default)]
pub(super) struct Stores {
    containers: HashMap<PathBuf, Remembered<Containers>>,
    images: HashMap<PathBuf, Remembered<Images>>,
}

type Containers = HashMap<String, Row>;
/// Digests, by the image's id.
type Images = HashMap<String, Str>;

#[derive(Debug)]
struct Remembered<T> {
    version: Version,
    content: Arc<T>,
}

/// The writer replaces its files by renaming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    len: i64,
    changed: (i64, i64),
}

impl Stores {
    /// What the store whose containers are in `dir` says of the container `id`, by the word of `domain`.
    pub(super) fn find(&mut self, domain: Domain, dir: &Path, id: &ContainerId) -> io::Result<Option<Stored>> {
        if self.containers.len().max(self.images.len()) >= MAX_STORES {
            *self = Self::default();
        }
        let containers = read(&mut self.containers, &dir.join(CONTAINERS), domain, containers)?;
        let Some(row) = containers.get(id.as_str()) else { return Ok(None) };
        let mut stored = row.stored();
        if let Some(image) = &mut stored.image
            && let Some(id) = image.id.as_deref().and_then(|id| id.strip_prefix("sha256:"))
            && let Some(path) = images_file(dir)
        {
            // An image may have been removed under its container; then there is no digest to be known.
            let images = read(&mut self.images, &path, domain, images).ok();
            image.digest = images.and_then(|images| images.get(id).cloned());
        }
        Ok(Some(stored))
    }
}

/// `<store>/overlay-images/images.json` beside `<store>/overlay-containers`.
fn images_file(containers_dir: &Path) -> Option<PathBuf> {
    let driver = containers_dir.file_name()?.to_str()?.strip_suffix("-containers")?;
    Some(containers_dir.parent()?.join(format!("{driver}-images")).join("images.json"))
}

fn read<T>(
    remembered: &mut HashMap<PathBuf, Remembered<T>>,
    path: &Path,
    domain: Domain,
    parse: fn(&[u8]) -> serde_json::Result<T>,
) -> io::Result<Arc<T>> {
    let (dir, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
    let (opened, stat) = file::open_regular(file::open_dir(dir)?, Path::new(name), Walk::Beneath, MAX_LEN)?;
    if !may_speak_for(&stat, domain) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it belongs to somebody else, or others may write it",
        ));
    }
    let version = Version { inode: stat.st_ino, len: stat.st_size, changed: (stat.st_ctime, stat.st_ctime_nsec) };
    if let Some(known) = remembered.get(path).filter(|known| known.version == version) {
        return Ok(Arc::clone(&known.content));
    }
    let content = Arc::new(parse(&file::read_all(opened, MAX_LEN)?)?);
    remembered.insert(path.to_owned(), Remembered { version, content: Arc::clone(&content) });
    Ok(content)
}

/// Whether a file is the word of the one whose container it is about. A user names the path: without this, root would
/// read any file for everybody.
pub(super) fn may_speak_for(stat: &FileStat, domain: Domain) -> bool {
    let owner = match domain {
        Domain::Host => 0,
        Domain::User(uid) => uid,
        Domain::Container(_) => return false,
    };
    stat.st_uid == owner && stat.st_mode & 0o022 == 0
}

/// One entry of `containers.json`.
#[derive(Debug, Deserialize)]
struct Row {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    image: Option<String>,
    /// JSON in a string: podman's own part.
    #[serde(default)]
    metadata: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Metadata {
    image_name: Option<String>,
    image_id: Option<String>,
    name: Option<String>,
    created_at: Option<u64>,
}

impl Row {
    fn stored(&self) -> Stored {
        let metadata: Metadata =
            self.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let given = |text: &Option<String>| text.as_deref().and_then(caps::name);
        // `podman rename` changes the first of the names alone.
        let renamed = self.names.as_deref().and_then(|names| names.first()).and_then(|name| caps::name(name));
        let image = Image {
            name: given(&metadata.image_name),
            id: image_id(self.image.as_deref().or(metadata.image_id.as_deref())),
            digest: None,
        };
        Stored {
            name: renamed.or_else(|| given(&metadata.name)),
            image: (image != Image::default()).then_some(image),
            created_at: metadata.created_at.map(|seconds| BootTime::from_unix(Duration::from_secs(seconds))),
        }
    }
}

/// An image's id as podman writes it, without its algorithm, made into one as others write it.
pub(super) fn image_id(id: Option<&str>) -> Option<Str> {
    let id = id?;
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    (digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| format!("sha256:{digits}").into())
}

/// A digest with its algorithm.
pub(super) fn digest(text: &str) -> Option<Str> {
    let (algorithm, digits) = text.split_once(':')?;
    let is_one = !algorithm.is_empty() && digits.len() >= 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_one && text.len() <= 256).then(|| text.into())
}

fn containers(json: &[u8]) -> serde_json::Result<Containers> {
    let rows: Vec<Row> = serde_json::from_slice(json)?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row)).collect())
}

fn images(json: &[u8]) -> serde_json::Result<Images> {
    #[derive(Deserialize)]
    struct Row {
        id: String,
        digest: Option<String>,
    }
    let rows: Vec<Row> = serde_json::from_slice(json)?;
    Ok(rows.into_iter().filter_map(|row| Some((row.id, digest(&row.digest?)?))).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    const IMAGE: &str = "62cc0bbf1217039e7ce6d600a59ed632c35ee01c983274527b3e6905cd8bef72";

    fn write(dir: &Path, name: &str, text: &str) {
        // As podman does: a new file under the old name.
        let new = dir.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::rename(new, dir.join(name)).unwrap();
    }

    fn own() -> Domain {
        match nix::unistd::geteuid().as_raw() {
            0 => Domain::Host,
            uid => Domain::User(uid),
        }
    }

    #[test]
    fn a_container_has_its_present_name_and_its_image() {
        let temp = tempfile::tempdir().unwrap();
        let (containers, images) = (temp.path().join("overlay-containers"), temp.path().join("overlay-images"));
        std::fs::create_dir(&containers).unwrap();
        std::fs::create_dir(&images).unwrap();
        let id = ContainerId::new("2a6a").unwrap();
        let mut stores = Stores::default();
        stores.find(own(), &containers, &id).unwrap_err();

        let row = |name: &str| {
            format!(
                r#"[{{"id":"2a6a","names":["{name}"],"image":"{IMAGE}","metadata":
                "{{\"image-name\":\"docker.io/bb:1\",\"name\":\"web\",\"created-at\":1795265745}}"}}]"#
            )
        };
        write(&containers, "containers.json", &row("web"));
        let stored = stores.find(own(), &containers, &id).unwrap().unwrap();
        assert_eq!(stored.name.as_deref(), Some("web"));
        assert!(stored.created_at.is_some());
        let digest = format!("sha256:{IMAGE}");
        let image = |digest: Option<&str>| Image {
            name: Some("docker.io/bb:1".into()),
            id: Some(format!("sha256:{IMAGE}").into()),
            digest: digest.map(Str::from),
        };
        assert_eq!(stored.image, Some(image(None)));

        write(&images, "images.json", &format!(r#"[{{"id":"{IMAGE}","digest":"{digest}"}}, {{"id":"x"}}]"#));
        write(&containers, "containers.json", &row("other"));
        let stored = stores.find(own(), &containers, &id).unwrap().unwrap();
        assert_eq!((stored.name.as_deref(), stored.image), (Some("other"), Some(image(Some(&digest)))));
        assert_eq!(stores.find(own(), &containers, &ContainerId::new("none").unwrap()).unwrap(), None);
    }

    #[test]
    fn a_file_that_others_could_have_written_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        write(temp.path(), "containers.json", "[]");
        let id = ContainerId::new("2a6a").unwrap();
        let find = |domain| Stores::default().find(domain, temp.path(), &id);
        assert_eq!(find(own()).unwrap(), None);
        find(Domain::User(4711)).unwrap_err();
        let open = PermissionsExt::from_mode(0o662);
        std::fs::set_permissions(temp.path().join("containers.json"), open).unwrap();
        find(own()).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(json: Vec<u8>, metadata: String, id: String) {
            let _ = (containers(&json), images(&json), image_id(Some(&id)), digest(&id));
            Row { id, names: Some(vec![]), image: None, metadata: Some(metadata) }.stored();
        }
    }
}
