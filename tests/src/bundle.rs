//! OCI bundles made of a static busybox: no image, no network.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::process::copy_program;
use crate::requirement;

/// A root file system with a shell. Shared by all bundles of a test: runtimes are told to use it read-only.
pub struct RootFs {
    path: PathBuf,
}

impl RootFs {
    /// Makes one in `directory`.
    pub fn create(directory: &Path) -> Result<RootFs> {
        let path = directory.join("rootfs");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(path.join(name)).with_context(|| format!("create `{name}` in `{}`", path.display()))?;
        }
        let busybox = requirement::program("busybox").map_err(anyhow::Error::msg)?;
        copy_program(&busybox, &path.join("bin/busybox"))?;
        for applet in ["sh", "sleep", "true", "cat", "echo", "kill"] {
            symlink("busybox", path.join("bin").join(applet)).with_context(|| format!("link `{applet}`"))?;
        }
        Ok(RootFs { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A bundle: a directory with a `config.json`.
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// Makes the bundle `name` in `directory`, which runs `arguments`.
    pub fn create(directory: &Path, name: &str, root: &RootFs, arguments: &[&str]) -> Result<Bundle> {
        Bundle::create_with(directory, name, root, arguments, |_| ())
    }

    /// The same, with its config changed by `change` before it is written.
    pub fn create_with(
        directory: &Path,
        name: &str,
        root: &RootFs,
        arguments: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Result<Bundle> {
        let path = directory.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create `{}`", path.display()))?;
        let mut config = config(root, arguments);
        change(&mut config);
        let file = path.join("config.json");
        fs::write(&file, config.to_string()).with_context(|| format!("write `{}`", file.display()))?;
        Ok(Bundle { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The smallest config that both runc and crun take everywhere: no limits to set, no devices to filter, namespaces of
/// its own.
pub fn config(root: &RootFs, arguments: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": root.path(), "readonly": true },
        "hostname": "test",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
            ],
        },
    })
}
