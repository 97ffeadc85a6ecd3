//! What the runtime needs of a bundle.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::state::Failure;

/// A container to be made.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Its directory, absolute.
    pub(crate) path: PathBuf,
    /// The entrypoint's arguments; absent for this program itself.
    pub(crate) arguments: Option<Vec<CString>>,
    /// The entrypoint's environment.
    pub(crate) environment: Vec<CString>,
    /// The host name, in a UTS namespace of its own.
    pub(crate) hostname: Option<String>,
    /// Namespaces to be made.
    pub(crate) new_namespaces: CloneFlags,
    /// Namespaces to be joined.
    pub(crate) joined_namespaces: Vec<(CloneFlags, PathBuf)>,
    /// Its cgroup below the root of the v2 hierarchy.
    pub(crate) cgroup: Option<PathBuf>,
}

impl Bundle {
    /// Reads `config.json` in `directory`.
    pub(crate) fn read(directory: &Path) -> Result<Self, Failure> {
        let path = directory
            .canonicalize()
            .map_err(|error| Failure::of(format!("find the bundle `{}`", directory.display()), error))?;
        let config = path.join("config.json");
        let spec = Spec::load(&config).map_err(|error| Failure::of(format!("read `{}`", config.display()), error))?;
        let mut bundle = Self {
            path,
            arguments: None,
            environment: Vec::new(),
            hostname: spec.hostname().clone(),
            new_namespaces: CloneFlags::empty(),
            joined_namespaces: Vec::new(),
            cgroup: None,
        };
        if let Some(process) = spec.process() {
            let arguments = process.args().as_deref().filter(|arguments| *arguments != ["init"]);
            bundle.arguments = arguments.map(c_strings).transpose()?;
            bundle.environment = c_strings(process.env().as_deref().unwrap_or_default())?;
        }
        if let Some(linux) = spec.linux() {
            let cgroup = linux.cgroups_path().as_ref();
            bundle.cgroup = cgroup.and_then(|path| path.strip_prefix("/").ok()).map(PathBuf::from);
            for namespace in linux.namespaces().iter().flatten() {
                let flag = clone_flag(namespace.typ())?;
                match namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                    // Only children of the one who joins would be in it.
                    Some(_) if flag == CloneFlags::CLONE_NEWPID => {
                        return Err(Failure::new("joining a pid namespace is not supported"));
                    }
                    Some(path) => bundle.joined_namespaces.push((flag, path.clone())),
                    None => bundle.new_namespaces |= flag,
                }
            }
        }
        if !bundle.new_namespaces.contains(CloneFlags::CLONE_NEWNS) {
            // Everything that is mounted on the way would change the host.
            return Err(Failure::new("a container needs a new mount namespace"));
        }
        Ok(bundle)
    }
}

fn clone_flag(kind: LinuxNamespaceType) -> Result<CloneFlags, Failure> {
    match kind {
        LinuxNamespaceType::Mount => Ok(CloneFlags::CLONE_NEWNS),
        LinuxNamespaceType::Pid => Ok(CloneFlags::CLONE_NEWPID),
        LinuxNamespaceType::Network => Ok(CloneFlags::CLONE_NEWNET),
        LinuxNamespaceType::Ipc => Ok(CloneFlags::CLONE_NEWIPC),
        LinuxNamespaceType::Uts => Ok(CloneFlags::CLONE_NEWUTS),
        LinuxNamespaceType::Cgroup => Ok(CloneFlags::CLONE_NEWCGROUP),
        other => Err(Failure::new(format!("{other:?} namespaces are not supported"))),
    }
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>, Failure> {
    let c_string = |text: &String| {
        CString::new(text.as_str()).map_err(|error| Failure::of(format!("pass {text:?} to the entrypoint"), error))
    };
    texts.iter().map(c_string).collect()
}
