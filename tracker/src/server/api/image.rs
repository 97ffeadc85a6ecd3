//! Stored images on the wire.

use serde::{Deserialize, Serialize};

use crate::container::Str;
use crate::fact::Source;
use crate::server::clock::Wall;
use crate::source::images::StoredImage;

/// An image that a runtime has stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Who says so.
    pub source: Source,
    /// The runtime's own namespace for images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Str>,
    /// Its names.
    #[serde(default)]
    pub names: Vec<Str>,
    /// Digest of its config: the image id of its containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Str>,
    /// Its repositories' names with the digest of manifest or index.
    #[serde(default)]
    pub digests: Vec<Str>,
    /// Bytes, as the runtime counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Operating system, architecture and variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Str>,
    /// When it was built, by its own word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Wall>,
    /// How many containers that are not over were made from it, whatever runs them.
    pub containers: usize,
}

impl Image {
    /// `image` as it goes over the wire.
    pub fn new(image: StoredImage, containers: usize) -> Self {
        let StoredImage { source, namespace, names, id, digests, size, platform, created_at } = image;
        let created_at = created_at.map(Wall);
        Self { source, namespace, names, id, digests, size, platform, created_at, containers }
    }

    /// What people call it: its first name, else its first digest, else its id.
    pub fn display_name(&self) -> &str {
        self.names.first().or(self.digests.first()).or(self.id.as_ref()).map_or("", |name| name)
    }
}
