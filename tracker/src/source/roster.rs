//! Which daemon of a source has which container: so that one daemon's list never withdraws another's containers.
//!
//! Two containerds on one host (Kubernetes' own beside the system's) share scopes such as `containerd/default`, while a
//! `Listed` fact speaks for the whole scope. The list that is stated is therefore that of all of them. And it is about the
//! host's containers: who speaks for a user or a container takes back one by one.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::container::{ContainerKey, Domain, Str};
use crate::fact::What;

/// Who has what, and who is live.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    // Protects the roster; never held across an await.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    holders: HashMap<ContainerKey, HashSet<PathBuf>>,
    live: HashSet<PathBuf>,
}

impl Roster {
    /// A daemon has a container.
    pub(crate) fn add(&self, peer: &Path, key: ContainerKey) {
        self.with(|inner| {
            let holders = inner.holders.entry(key).or_default();
            if !holders.contains(peer) {
                holders.insert(peer.to_owned());
            }
        });
    }

    /// A daemon no longer has it. Returns whether nobody has it any more.
    pub(crate) fn remove(&self, peer: &Path, key: &ContainerKey) -> bool {
        self.with(|inner| match inner.holders.get_mut(key) {
            Some(holders) => {
                holders.remove(peer);
                let gone = holders.is_empty();
                if gone {
                    inner.holders.remove(key);
                }
                gone
            }
            None => true,
        })
    }

    /// Whether a daemon has it.
    #[cfg(feature = "cri")]
    pub(crate) fn is_known(&self, key: &ContainerKey) -> bool {
        self.with(|inner| inner.holders.contains_key(key))
    }

    /// A daemon's whole list for one scope. Returns what takes back what it had there and has no more.
    pub(crate) fn listed(&self, peer: &Path, domain: Domain, scope: Str, keys: Vec<ContainerKey>) -> Vec<What> {
        match domain {
            Domain::Host => {
                let keys = self.replace(peer, &scope, keys);
                vec![What::Listed { scope, keys }]
            }
            Domain::User(_) | Domain::Container(_) => {
                let listed: HashSet<ContainerKey> = keys.into_iter().collect();
                let mut gone = self.held_by(peer, &scope);
                gone.retain(|key| !listed.contains(key) && self.remove(peer, key));
                listed.into_iter().for_each(|key| self.add(peer, key));
                gone.into_iter().map(|key| What::Withdrawn { key }).collect()
            }
        }
    }

    /// A daemon's whole list for one scope. Returns that of all of them.
    pub(crate) fn replace(&self, peer: &Path, scope: &Str, keys: Vec<ContainerKey>) -> Vec<ContainerKey> {
        self.with(|inner| {
            inner.holders.retain(|key, holders| {
                if key.scope == *scope {
                    holders.remove(peer);
                }
                !holders.is_empty()
            });
            for key in keys {
                inner.holders.entry(key).or_default().insert(peer.to_owned());
            }
            inner.holders.keys().filter(|key| key.scope == *scope).cloned().collect()
        })
    }

    /// What a daemon has in one scope.
    fn held_by(&self, peer: &Path, scope: &Str) -> Vec<ContainerKey> {
        self.with(|inner| {
            let held = inner.holders.iter().filter(|(key, holders)| key.scope == *scope && holders.contains(peer));
            held.map(|(key, _)| key.clone()).collect()
        })
    }

    /// Whether a daemon reports. Returns whether this changes whether any of them does.
    pub(crate) fn set_live(&self, peer: &Path, live: bool) -> bool {
        self.with(|inner| {
            let before = !inner.live.is_empty();
            if live {
                inner.live.insert(peer.to_owned());
            } else {
                inner.live.remove(peer);
            }
            before == inner.live.is_empty()
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerId, Domain};

    fn key(scope: &str, id: &str) -> ContainerKey {
        ContainerKey { domain: Domain::Host, scope: scope.into(), id: ContainerId::new(id).unwrap() }
    }

    #[test]
    fn one_daemon_s_list_keeps_another_s_containers() {
        let roster = Roster::default();
        let (system, k3s) = (Path::new("/system"), Path::new("/k3s"));
        let scope: Str = "containerd/default".into();
        roster.replace(system, &scope, vec![key(&scope, "a"), key(&scope, "b")]);
        roster.add(k3s, key(&scope, "c"));
        roster.add(k3s, key("containerd/k8s.io", "d"));
        let mut all = roster.replace(system, &scope, vec![key(&scope, "b")]);
        all.sort();
        assert_eq!(all, [key(&scope, "b"), key(&scope, "c")]);
        roster.add(k3s, key(&scope, "b"));
        assert!(!roster.remove(system, &key(&scope, "b")));
        assert!(roster.remove(k3s, &key(&scope, "b")));
    }

    #[test]
    fn who_speaks_for_a_user_takes_back_its_own_one_by_one() {
        let roster = Roster::default();
        let scope: Str = "containerd/moby".into();
        let of = |domain, id: &str| ContainerKey { domain, ..key(&scope, id) };
        let (one, two) = (Domain::User(1), Domain::User(2));
        let list = |domain, ids: &[&str]| {
            let path = PathBuf::from(format!("/{domain:?}"));
            roster.listed(&path, domain, Str::clone(&scope), ids.iter().map(|id| of(domain, id)).collect())
        };
        for domain in [one, two] {
            assert_eq!(list(domain, &["a", "b"]), []);
        }
        assert_eq!(list(one, &["a"]), [What::Withdrawn { key: of(one, "b") }]);
        assert_eq!(list(one, &["a"]), [], "said once");
        assert_eq!(list(two, &["a", "b"]), [], "the other's are untouched");
        assert!(matches!(&list(Domain::Host, &["a"])[..], [What::Listed { .. }]));
    }

    #[test]
    fn the_source_is_live_while_any_daemon_is() {
        let roster = Roster::default();
        let (one, other) = (Path::new("/one"), Path::new("/other"));
        assert!(!roster.set_live(one, false));
        assert!(roster.set_live(one, true));
        assert!(!roster.set_live(other, true));
        assert!(!roster.set_live(one, false));
        assert!(roster.set_live(other, false));
    }
}
