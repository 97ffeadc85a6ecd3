//! One look at a container's first process, at the conmon above it, and at podman's files about both.
//!
//! Everything that is read here is somebody else's: a user's conmon may be any program of that name. So what is found is
//! the word of whoever conmon runs as, by the kernel's account, and of nobody else. A look may take for ever, and is to
//! be taken aside.

use std::path::Path;

use super::answer::default_root;
use super::conmon::{self, Conmon};
use super::ledger::{Found, Name, Named};
use super::store::{Stored, Stores, may_speak_for};
use super::watch::Watcher;
use crate::container::{Details, Domain, Kind, Labels, Mount, Namespaces, Runtime, Str, TaskId};
use crate::enrich::env::EnvAllow;
use crate::enrich::oci::{self, OciFacts};
use crate::enrich::scope;
use crate::fact::Statement;
use crate::source::file::{self, Walk};
use crate::source::task::{Task, TaskView, own_namespaces};

/// What came of a look.
#[derive(Debug)]
pub(super) enum Looked {
    /// A container of podman's.
    Found(Name, Box<Found>),
    /// Its parent is no conmon: either it is not podman's, or its OCI runtime has not left yet.
    NoConmon,
    /// It is not podman's, or nobody may say so.
    NotPodmans,
    /// The process has ended.
    Gone,
}

/// Looks, and remembers the stores that it read.
#[derive(Debug)]
pub(super) struct Looker {
    stores: Stores,
    env_allow: EnvAllow,
    /// Root's stores are watched from before they are read.
    watcher: Option<Watcher>,
    own: Option<Namespaces>,
}

impl Looker {
    pub(super) fn new(env_allow: EnvAllow, watcher: Option<Watcher>) -> Self {
        Self { stores: Stores::default(), env_allow, watcher, own: own_namespaces().ok() }
    }

    /// Looks at an init process.
    pub(super) fn look(&mut self, init: TaskId) -> Looked {
        let Ok(task) = Task::open(init.pid) else { return Looked::Gone };
        let Some(view) = task.view().ok().filter(|view| view.task == init) else { return Looked::Gone };
        let Some(parent) = view.parent else { return Looked::NoConmon };
        let Ok(above) = Task::open(parent.pid) else { return Looked::NoConmon };
        if !above.name().is_ok_and(|name| name == b"conmon") {
            return Looked::NoConmon;
        }
        let Some(domain) = self.domain(&above) else { return Looked::NotPodmans };
        let conmon = above.arguments(conmon::MAX_LEN).ok().and_then(|arguments| conmon::read(&arguments));
        let Some(conmon) = conmon.filter(|_| above.is(parent)) else { return Looked::NotPodmans };
        let Some(found) = self.describe(domain, &conmon, view) else { return Looked::NotPodmans };
        // What was read belongs to this process only if it is still the same one.
        match task.is(init) {
            true => Looked::Found(Name { domain, id: conmon.id }, Box::new(found)),
            false => Looked::Gone,
        }
    }

    /// Those whose names in their stores are no longer those that were found.
    pub(super) fn renamed(&mut self, found: Vec<Named>) -> Vec<Named> {
        let mut renamed = found;
        renamed.retain(|Named { name, bundle, called, .. }| {
            let containers = Path::new(&**bundle).ancestors().nth(2);
            let stored = containers.and_then(|containers| self.stores.find(name.domain, containers, &name.id).ok()?);
            stored.is_some_and(|stored| stored.name.is_some() && stored.name != *called)
        });
        renamed
    }

    /// Whose word a process's is: root's on the host, or a user's who shares the host's pids. One inside a container
    /// speaks for nobody here, whatever its uid.
    fn domain(&self, process: &Task) -> Option<Domain> {
        let (own, namespaces) = (self.own?, process.namespaces());
        if namespaces.pid != own.pid {
            return None;
        }
        match process.uid().ok()? {
            0 => ((namespaces.mnt, namespaces.user) == (own.mnt, own.user)).then_some(Domain::Host),
            uid => Some(Domain::User(uid)),
        }
    }

    fn describe(&mut self, domain: Domain, conmon: &Conmon, view: TaskView) -> Option<Found> {
        let containers = conmon.containers_dir()?;
        let bundle = read_bundle(domain, &conmon.bundle, &self.env_allow);
        let is_podmans = match &bundle {
            Ok((OciFacts { manager: Some(manager), .. }, _)) => &**manager == "podman",
            _ => conmon.calls_podman,
        };
        let oci = Str::from(conmon.oci().filter(|_| is_podmans)?);
        let root = conmon.root.clone().unwrap_or_else(|| default_root(domain, &oci));
        let mut statement = Statement {
            task: Some(view.task),
            namespaces: Some(view.namespaces),
            runtime: Some(Runtime { name: Some("podman".into()), oci: Some(oci), ..Runtime::default() }),
            bundle: Some(conmon.bundle.to_string_lossy().into()),
            ..Statement::default()
        };
        if let Some(watcher) = self.watcher.as_mut().filter(|_| domain == Domain::Host) {
            // Where that cannot be, the next look brings what has changed.
            let _ = watcher.add(containers);
        }
        match self.stores.find(domain, containers, &conmon.id) {
            Ok(Some(Stored { name, image, created_at })) => {
                statement.name = name;
                statement.image = image;
                statement.created_at = created_at;
            }
            Ok(None) => statement.missing.push(("image", "podman's store does not know the container".into())),
            Err(error) => {
                let reason = format!("read podman's store `{}`: {error}", containers.display());
                statement.missing.push(("image", reason.into()));
            }
        }
        statement.name = statement.name.take().or_else(|| conmon.name.clone());
        if statement.name.as_deref().is_some_and(is_infra) {
            statement.kind = Some(Kind::Sandbox);
        }
        match bundle {
            Ok((facts, env)) => {
                facts.apply(&mut statement);
                if env.is_some() {
                    statement.details.get_or_insert_default().env = env;
                }
                let privileged =
                    facts.annotations.get("io.podman.annotations.privileged").map(|word| &**word == "TRUE");
                if privileged.is_some() {
                    statement.details.get_or_insert_default().privileged = privileged;
                }
                statement.details.as_deref_mut().into_iter().for_each(leave_out_podmans_own);
            }
            Err(reason) => statement.missing.push(("annotations", reason)),
        }
        if statement.labels.is_none() {
            let reason = "podman keeps them in its database: only its REST service tells them, and none has";
            statement.missing.push(("labels", reason.into()));
        }
        Some(Found { scope: scope::oci(&root), statement })
    }
}

/// Whether podman gave this name to the container that holds a pod's namespaces: the beginning of the pod's id with
/// `-infra`. Nothing else on the disk tells it from others.
fn is_infra(name: &str) -> bool {
    let of_pod = name.strip_suffix("-infra");
    of_pod.is_some_and(|id| id.len() == 12 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// The service does not tell of the files that podman mounts into every container (`/etc/hosts` and the like), which lie in
/// a directory of that container's or of its pod's.
fn leave_out_podmans_own(details: &mut Details) {
    let lies_there = |source: &str| source.contains("-containers/") && source.contains("/userdata/");
    let is_podmans = |mount: &Mount| mount.source.as_deref().is_some_and(lies_there);
    if let Some(mounts) = &mut details.mounts
        && mounts.iter().any(is_podmans)
    {
        *mounts = mounts.iter().filter(|mount| !is_podmans(mount)).cloned().collect();
    }
}

/// Reads a bundle that is the word of `domain`: what it says, and what may be told of the environment.
fn read_bundle(domain: Domain, bundle: &Path, env_allow: &EnvAllow) -> Result<(OciFacts, Option<Labels>), Str> {
    let name = Path::new("config.json");
    let open = || file::open_regular(file::open_dir(bundle)?, name, Walk::Beneath, oci::MAX_LEN as u64);
    let told = |error: std::io::Error| Str::from(format!("read `{}`: {error}", bundle.join(name).display()));
    let (opened, stat) = open().map_err(told)?;
    if !may_speak_for(&stat, domain) {
        return Err(
            format!("`{}` belongs to somebody else, or others may write it", bundle.join(name).display()).into()
        );
    }
    let bytes = file::read_all(opened, oci::MAX_LEN as u64).map_err(told)?;
    let facts = oci::parse(&bytes).map_err(|error| Str::from(error.to_string()))?;
    Ok((facts, oci::env(&bytes, env_allow)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_conmon_is_not_podmans() {
        let own = Task::open(std::process::id()).unwrap().id().unwrap();
        let mut looker = Looker::new(EnvAllow::default(), None);
        assert!(matches!(looker.look(own), Looked::NoConmon));
        assert!(matches!(looker.look(TaskId { start_ticks: own.start_ticks + 1, ..own }), Looked::Gone));
    }

    #[test]
    fn only_podmans_own_names_are_an_infra_container_s() {
        assert!(is_infra("48875c184e6f-infra"));
        for name in ["infra", "-infra", "web-infra", "48875c184e6f", "48875C184E6F-infra"] {
            assert!(!is_infra(name), "{name}");
        }
    }
}
