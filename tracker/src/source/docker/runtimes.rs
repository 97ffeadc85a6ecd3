//! Which OCI runtimes are meant by Docker's names for them: pure.
//!
//! `dockerd --add-runtime fast=/opt/bin/crun` calls a program whatever it likes, and a container's inspection tells that
//! name alone. People ask for the program, and everybody else who tells about the container names that. So the daemon is
//! asked once what its names mean, when a name turns up that does not speak for itself.

use std::collections::BTreeMap;
use std::path::Path;

use super::wire;
use crate::container::Str;
use crate::enrich::caps;

/// Names that are kept: each is a line of a daemon's configuration.
const MAX_RUNTIMES: usize = 256;
/// The one that every daemon has, and whose name no other may take.
const BUILT_IN: &str = "runc";
/// Shims that run runc, by containerd's names.
const RUNC_SHIMS: &str = "io.containerd.runc.";

/// What an inspection calls a container's runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A shim by containerd's name, and the OCI runtime where that name tells it.
    Shim(Str, Option<Str>),
    /// An OCI runtime by its own name.
    Program(Str),
    /// A name whose meaning the daemon's configuration tells.
    Alias(Str),
}

impl Named {
    pub(super) fn read(name: &str) -> Option<Named> {
        let name = caps::name(name)?;
        Some(match &*name {
            shim if shim.starts_with(RUNC_SHIMS) => Named::Shim(name, Some(BUILT_IN.into())),
            shim if shim.contains(['.', '/']) => Named::Shim(name, None),
            BUILT_IN => Named::Program(name),
            _ => Named::Alias(name),
        })
    }
}

/// Names and the programs behind them.
#[derive(Debug, Default)]
pub(super) struct Runtimes(BTreeMap<Str, Str>);

impl Runtimes {
    pub(super) fn told(runtimes: Option<BTreeMap<String, wire::Runtime>>) -> Self {
        let named = runtimes.into_iter().flatten().take(MAX_RUNTIMES).filter_map(|(name, runtime)| {
            let path = runtime.path?;
            let program = Path::new(&path).file_name()?.to_str()?;
            Some((caps::name(&name)?, caps::name(program)?))
        });
        Self(named.collect())
    }

    /// The program's name; `None` where none is configured by this name, any more or yet.
    pub(super) fn program(&self, alias: &str) -> Option<Str> {
        self.0.get(alias).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_not_speak_for_itself_is_an_alias() {
        let shim = |name: &str, oci: Option<&str>| Named::Shim(name.into(), oci.map(Str::from));
        for (name, expected) in [
            ("runc", Some(Named::Program("runc".into()))),
            ("io.containerd.runc.v2", Some(shim("io.containerd.runc.v2", Some("runc")))),
            ("io.containerd.kata.v2", Some(shim("io.containerd.kata.v2", None))),
            ("/opt/bin/shim", Some(shim("/opt/bin/shim", None))),
            ("crun", Some(Named::Alias("crun".into()))),
            ("", None),
        ] {
            assert_eq!(Named::read(name), expected, "{name}");
        }
    }

    #[test]
    fn a_name_means_the_program_at_its_path() {
        let runtime = |path: Option<&str>| wire::Runtime { path: path.map(str::to_owned) };
        let told = [("fast", Some("/opt/bin/crun")), ("bare", Some("runc")), ("shim", None), ("root", Some("/"))];
        let told = told.into_iter().map(|(name, path)| (name.to_owned(), runtime(path))).collect();
        let runtimes = Runtimes::told(Some(told));
        for (alias, expected) in
            [("fast", Some("crun")), ("bare", Some("runc")), ("shim", None), ("root", None), ("other", None)]
        {
            assert_eq!(runtimes.program(alias).as_deref(), expected, "{alias}");
        }
    }
}
