//! Images made of a static busybox: an OCI image layout that containerd imports.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::bundle::RootFs;
use crate::process;

/// The image that containers are made of.
pub const IMAGE: &str = "docker.io/library/busybox:test";

/// The image that pods' sandboxes are made of: the same files, and a program that does nothing.
pub const PAUSE_IMAGE: &str = "docker.io/library/pause:test";

/// Writes an OCI image layout with both images, and the digest of [`IMAGE`]'s manifest beside it in `digest`.
pub(crate) fn write_layout(layout: &Path) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("create an image's directory")?;
    let files = tempfile::tempdir().context("create a directory for an image's files")?;
    let root = RootFs::create(files.path())?;
    let layer = files.path().join("layer.tar");
    process::run(Command::new("tar").arg("-C").arg(root.path()).arg("-cf").arg(&layer).arg("."))?;

    let layer = blob(&blobs, &fs::read(&layer).context("read a layer")?)?;
    let image = manifest(&blobs, &layer, &["/bin/sh"])?;
    let pause = manifest(&blobs, &layer, &["/bin/sleep", "1000000"])?;
    let named = [(IMAGE, &image), (PAUSE_IMAGE, &pause)].map(|(name, (digest, size))| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": size,
            "annotations": { "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name },
        })
    });
    let index = json!({ "schemaVersion": 2, "manifests": named });
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("write an image's layout")?;
    fs::write(layout.join("index.json"), index.to_string()).context("write an image's index")?;
    fs::write(layout.join("digest"), &image.0).context("write an image's digest")
}

/// Stores the config and the manifest of an image of one layer; returns the manifest's digest and length.
fn manifest(blobs: &Path, layer: &(String, usize), program: &[&str]) -> Result<(String, usize)> {
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": program, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer.0] },
    });
    let config = blob(blobs, config.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1 },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.0, "size": layer.1 }],
    });
    blob(blobs, manifest.to_string().as_bytes())
}

/// Stores bytes under their digest; returns it with their length.
fn blob(blobs: &Path, bytes: &[u8]) -> Result<(String, usize)> {
    let file = blobs.join("new");
    fs::write(&file, bytes).context("write a blob")?;
    let printed = Command::new("sha256sum").arg(&file).output().context("run sha256sum")?;
    let printed = String::from_utf8_lossy(&printed.stdout);
    let digest = printed.split(' ').next().filter(|digest| digest.len() == 64).context("a digest from sha256sum")?;
    fs::rename(&file, blobs.join(digest)).context("name a blob")?;
    Ok((format!("sha256:{digest}"), bytes.len()))
}
