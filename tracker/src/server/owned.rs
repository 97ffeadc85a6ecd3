//! What peers make through the debug socket and what ends with its owner: a bounded book of it, by name.
//!
//! An owner is a process. Who makes something first takes a place for it, so that of two at the same time one too many is
//! told so; what has been replaced or taken back is not ended a second time by its former owner's end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::answer::Refused;
use super::limits::{Limits, Peer};
use super::owner::Owner;

/// All that was made of one kind.
#[derive(Debug)]
pub(super) struct Owned<T> {
    /// Its plural, for people.
    what: &'static str,
    // Protects the book; never held while anything is waited for.
    book: Mutex<Book<T>>,
}

#[derive(Debug)]
struct Book<T> {
    entries: BTreeMap<String, Entry<T>>,
    /// Names for which places are kept, and how many there are for which it does not matter whether there is one already.
    making: BTreeSet<String>,
    replacing: usize,
}

#[derive(Debug)]
struct Entry<T> {
    thing: T,
    /// Ends the task that waits for the owner.
    _waiting: DropGuard,
}

/// What happens where there is one of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Namesake {
    /// It is replaced.
    Replaced,
    /// The new one is refused.
    Kept,
}

/// A place for what is being made: given back when dropped, also by a peer that hangs up.
#[derive(Debug)]
pub(super) struct Place<'a, T> {
    owned: &'a Owned<T>,
    name: String,
    namesake: Namesake,
}

impl<T> Owned<T> {
    /// An empty book of `what`.
    pub(super) fn new(what: &'static str) -> Self {
        let book = Book { entries: BTreeMap::new(), making: BTreeSet::new(), replacing: 0 };
        Self { what, book: Mutex::new(book) }
    }

    fn with<R>(&self, change: impl FnOnce(&mut Book<T>) -> R) -> R {
        change(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for `name`, unless there are `most` already and this is another one.
    pub(super) fn keep_place(&self, name: &str, most: usize, namesake: Namesake) -> Result<Place<'_, T>, Refused> {
        self.with(|book| {
            let is_there = book.entries.contains_key(name);
            let name = name.to_owned();
            if namesake == Namesake::Kept && (is_there || book.making.contains(&name)) {
                let error = format!("one of the {} has the name `{}` already", self.what, name.escape_debug());
                return Err(Refused::conflict(error).remedy("choose another name, or remove that one"));
            }
            if !is_there && book.entries.len() + book.making.len() + book.replacing >= most {
                return Err(Refused::busy(format!("there are {most} {} already", self.what)));
            }
            match namesake {
                Namesake::Replaced => book.replacing += 1,
                Namesake::Kept => drop(book.making.insert(name.clone())),
            }
            Ok(Place { owned: self, name, namesake })
        })
    }

    /// Something of each of them, in the order of their names.
    pub(super) fn list<R>(&self, of: impl Fn(&T) -> R) -> Vec<R> {
        self.with(|book| book.entries.values().map(|entry| of(&entry.thing)).collect())
    }

    /// Something of one of them.
    pub(super) fn get<R>(&self, name: &str, of: impl Fn(&T) -> R) -> Option<R> {
        self.with(|book| book.entries.get(name).map(|entry| of(&entry.thing)))
    }

    /// Takes one out.
    pub(super) fn remove(&self, name: &str) -> Option<T> {
        self.with(|book| book.entries.remove(name)).map(|entry| entry.thing)
    }

    /// Takes all out.
    pub(super) fn remove_all(&self) -> Vec<T> {
        let entries = self.with(|book| std::mem::take(&mut book.entries));
        entries.into_values().map(|entry| entry.thing).collect()
    }

    /// Waits for the end of an owner and takes out what was its: nothing, where that was replaced or taken back before
    /// (`waiting` of [`Place::fill`]), or the tracker ended.
    pub(super) async fn ended_with(
        &self,
        owner: Owner,
        waiting: CancellationToken,
        name: &str,
        cancel: &CancellationToken,
    ) -> Option<T> {
        tokio::select! {
            () = owner.ended() => {}
            () = waiting.cancelled() => return None,
            () = cancel.cancelled() => return None,
        }
        // Between the owner's end and the lock another may have taken the name: then this token is cancelled.
        let ended = self.with(|book| if waiting.is_cancelled() { None } else { book.entries.remove(name) });
        ended.map(|entry| entry.thing)
    }
}

impl<T> Place<'_, T> {
    /// Puts what was made into its place; what is returned is cancelled when it is taken out or replaced.
    pub(super) fn fill(self, thing: T) -> CancellationToken {
        let waiting = CancellationToken::new();
        let entry = Entry { thing, _waiting: waiting.clone().drop_guard() };
        self.owned.with(|book| book.entries.insert(self.name.clone(), entry));
        waiting
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        self.owned.with(|book| match self.namesake {
            Namesake::Replaced => book.replacing -= 1,
            Namesake::Kept => drop(book.making.remove(&self.name)),
        });
    }
}

/// The process with whose end something ends: the one that is named, else the peer.
pub(super) fn owner(named: Option<u32>, peer: Peer) -> Result<(u32, Owner), Refused> {
    let pid = named.or(peer.pid).ok_or_else(|| {
        Refused::bad("the peer's pid cannot be seen from here").remedy("name the owner: {\"owner\": PID, …}")
    })?;
    let process = Owner::open(pid).map_err(|error| {
        Refused::bad(format!("look at the owner, pid {pid}: {error}")).remedy("name a process that lives as `owner`")
    })?;
    Ok((pid, process))
}

/// Whoever changes anything has to be root.
pub(super) fn only_root(peer: Peer) -> Result<(), Refused> {
    if peer.uid == 0 {
        return Ok(());
    }
    Err(Refused::forbidden(format!("uid {} may look, but not change anything", peer.uid)).remedy("do it as root"))
}

/// Reads a body, within its bounds of size and time.
pub(super) async fn receive(body: Body, limits: Limits) -> Result<Bytes, Refused> {
    let received = tokio::time::timeout(Duration::from_secs(limits.header_seconds), to_bytes(body, limits.body_bytes));
    match received.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(Refused::too_large(format!("a body has at most {} bytes", limits.body_bytes))),
        Err(_) => Err(Refused::too_slow(format!("a body arrives within {} s", limits.header_seconds))),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn only_root_changes_anything() {
        assert!(only_root(Peer { uid: 0, pid: Some(1) }).is_ok());
        let refused = only_root(Peer { uid: 1000, pid: Some(1) }).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let owned = Owned::new("things");
        let refused = |name, namesake| owned.keep_place(name, 2, namesake).map(drop).unwrap_err().status;
        let first = owned.keep_place("a", 2, Namesake::Kept).unwrap();
        assert_eq!(refused("a", Namesake::Kept), StatusCode::CONFLICT, "it is being made");
        let second = owned.keep_place("b", 2, Namesake::Replaced).unwrap();
        assert_eq!(refused("c", Namesake::Kept), StatusCode::SERVICE_UNAVAILABLE);
        drop(second);
        let former = first.fill(1);
        assert_eq!(refused("a", Namesake::Kept), StatusCode::CONFLICT);
        owned.keep_place("a", 1, Namesake::Replaced).unwrap().fill(2);
        assert!(former.is_cancelled(), "it was replaced");
        owned.keep_place("b", 2, Namesake::Kept).unwrap().fill(3);
        assert_eq!((owned.list(|thing| *thing), owned.remove("a"), owned.remove("a")), (vec![2, 3], Some(2), None));
        assert_eq!(owned.remove_all(), [3]);
    }
}
