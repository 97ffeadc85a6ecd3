//! `/v1/registrations`: what no source can see is made known by people and programs.
//!
//! Listed for everybody whom the socket lets in, made and taken back by root alone. A registration ends with its owner, the
//! process that made it or one that it names: what has been forgotten does not stay. There are at most
//! `limits.registrations`; one more is answered 503.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, get};
use axum::{Extension, Router};
use serde_json::{Map, Value};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::answer::{Refused, json};
use super::api::Registered;
use super::limits::{Limits, Peer};
use super::owner::Owner;
use super::routes::{Face, Shared};
use crate::source::manual::{RegisterError, Registration};
use crate::time::BootTime;

pub(super) fn router() -> Router<Arc<Face>> {
    Router::new()
        .route("/v1/registrations", get(list).post(register))
        .route("/v1/registrations/{id}", delete(unregister))
}

/// All registrations that were made through this socket.
#[derive(Debug, Default)]
pub(super) struct Registrations {
    // Protects the book; never held while anything is waited for.
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    entries: BTreeMap<String, Entry>,
    /// Places kept for those that are being looked at.
    kept: usize,
}

/// A place for a registration that is being looked at: given back when dropped, also by a peer that hangs up.
struct Place<'a> {
    registrations: &'a Registrations,
}

#[derive(Debug)]
struct Entry {
    line: Registered,
    /// Ends the task that waits for the owner.
    _waiting: DropGuard,
}

impl Registrations {
    fn with<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        change(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for `id`, unless there are `most` already and this is another one.
    fn keep_place(&self, id: &str, most: usize) -> Result<Place<'_>, Refused> {
        self.with(|book| {
            let is_full = book.entries.len() + book.kept >= most && !book.entries.contains_key(id);
            if is_full {
                return Err(Refused::busy(format!("there are {most} registrations already")));
            }
            book.kept += 1;
            Ok(Place { registrations: self })
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.registrations.with(|book| book.kept -= 1);
    }
}

async fn list(State(face): Shared) -> Response {
    let lines: Vec<_> = face.registrations.with(|book| book.entries.values().map(|entry| entry.line.clone()).collect());
    json(StatusCode::OK, &lines)
}

async fn register(State(face): Shared, Extension(peer): Extension<Peer>, body: Body) -> Result<Response, Refused> {
    only_root(peer)?;
    let (owner, registration, about) = understand(&receive(body, face.limits).await?)?;
    let owner = owner.or(peer.pid).ok_or_else(|| {
        Refused::bad("the peer's pid cannot be seen from here").remedy("name the owner: {\"owner\": PID, …}")
    })?;
    let process = Owner::open(owner).map_err(|error| {
        Refused::bad(format!("look at the owner, pid {owner}: {error}")).remedy("name a process that lives as `owner`")
    })?;

    // First the place, then the look, and listed is only what passed it: of two at the same time, one too many is told so.
    let place = face.registrations.keep_place(&registration.id, face.limits.registrations)?;
    face.tracker.register(&registration).await.map_err(refuse)?;
    let waiting = CancellationToken::new();
    let id = registration.id.clone();
    let line =
        Registered { id: id.as_str().into(), owner, since: face.clock.wall(BootTime::now()), registration: about };
    let entry = Entry { line: line.clone(), _waiting: waiting.clone().drop_guard() };
    face.registrations.with(|book| book.entries.insert(id.clone(), entry));
    drop(place);
    tokio::spawn(end_with(process, waiting, id, Arc::clone(&face)));
    Ok(json(StatusCode::CREATED, &line))
}

async fn unregister(
    State(face): Shared,
    Extension(peer): Extension<Peer>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    only_root(peer)?;
    let Path(id) = id.map_err(|error| Refused::bad(error.body_text()))?;
    let Some(entry) = face.registrations.with(|book| book.entries.remove(&id)) else {
        return Err(Refused::not_found(format!("there is no registration `{}`", id.escape_debug())));
    };
    face.tracker.unregister(&id).await.map_err(refuse)?;
    Ok(json(StatusCode::OK, &entry.line))
}

fn only_root(peer: Peer) -> Result<(), Refused> {
    if peer.uid == 0 {
        return Ok(());
    }
    Err(Refused::forbidden(format!("uid {} may look, but not change anything", peer.uid)).remedy("do it as root"))
}

/// Reads a body, within its bounds of size and time.
async fn receive(body: Body, limits: Limits) -> Result<Bytes, Refused> {
    let received = tokio::time::timeout(Duration::from_secs(limits.header_seconds), to_bytes(body, limits.body_bytes));
    match received.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(Refused::too_large(format!("a body has at most {} bytes", limits.body_bytes))),
        Err(_) => Err(Refused::too_slow(format!("a body arrives within {} s", limits.header_seconds))),
    }
}

/// The owner it names, what is to be registered, and the same as it was written.
fn understand(body: &[u8]) -> Result<(Option<u32>, Registration, Value), Refused> {
    let refused = |error: serde_json::Error| {
        Refused::bad(format!("a registration: {error}")).remedy(
            r#"for example {"id": "vm-1", "name": "blue", "labels": {}, "netns": "/run/netns/blue", "owner": 4711}"#,
        )
    };
    let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(refused)?;
    let owner = fields.remove("owner").map(serde_json::from_value).transpose().map_err(refused)?;
    let about = Value::Object(fields);
    let registration = serde_json::from_value(about.clone()).map_err(refused)?;
    Ok((owner, registration, about))
}

fn refuse(error: RegisterError) -> Refused {
    match error {
        RegisterError::Ended(ended) => ended.into(),
        error => Refused::bad(error.to_string()),
    }
}

/// Takes the registration back when its owner has ended, unless it was replaced or taken back before.
async fn end_with(owner: Owner, waiting: CancellationToken, id: String, face: Arc<Face>) {
    tokio::select! {
        () = owner.ended() => {}
        () = waiting.cancelled() => return,
        () = face.cancel.cancelled() => return,
    }
    // Between the owner's end and the lock another may have taken the id: then this token is cancelled.
    let ended = face.registrations.with(|book| if waiting.is_cancelled() { None } else { book.entries.remove(&id) });
    if ended.is_some() && face.tracker.unregister(&id).await.is_ok() {
        tracing::info!(id, "a registration ended with its owner");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_root_changes_anything() {
        assert!(only_root(Peer { uid: 0, pid: Some(1) }).is_ok());
        let refused = only_root(Peer { uid: 1000, pid: Some(1) }).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
    }

    #[test]
    fn a_registration_is_about_one_thing_and_has_no_other_fields() {
        let (owner, registration, about) = understand(br#"{"id":"vm","netns":"/run/netns/blue","owner":7}"#).unwrap();
        assert_eq!((owner, registration.id.as_str()), (Some(7), "vm"));
        assert_eq!(about, serde_json::json!({"id": "vm", "netns": "/run/netns/blue"}));
        for wrong in [
            &br#"{"id":"vm"}"#[..],
            br#"{"id":"vm","pid":1,"netns":"/x"}"#,
            br#"{"id":"vm","pid":1,"colour":"blue"}"#,
            br#"{"id":"vm","pid":1,"owner":"me"}"#,
            b"[]",
            b"",
        ] {
            assert!(understand(wrong).is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[{\":,}0-9a-z]{0,80}") {
            let _ = (understand(&body), understand(text.as_bytes()));
        }
    }
}
