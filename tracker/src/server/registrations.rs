//! `/v1/registrations`: what no source can see is made known by people and programs.
//!
//! Listed for everybody whom the socket lets in, made and taken back by root alone. A registration ends with its owner, the
//! process that made it or one that it names: what has been forgotten does not stay. There are at most
//! `limits.registrations`; one more is answered 503.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, get};
use axum::{Extension, Router};
use serde_json::{Map, Value};

use super::answer::{Refused, json};
use super::api::Registered;
use super::limits::Peer;
use super::owned::{self, Namesake, Owned};
use super::routes::{Face, Shared};
use crate::source::manual::{RegisterError, Registration};
use crate::time::BootTime;

/// All registrations that were made through this socket.
pub(super) type Registrations = Owned<Registered>;

pub(super) fn router() -> Router<Arc<Face>> {
    Router::new()
        .route("/v1/registrations", get(list).post(register))
        .route("/v1/registrations/{id}", delete(unregister))
}

async fn list(State(face): Shared) -> Response {
    json(StatusCode::OK, &face.registrations.list(Registered::clone))
}

async fn register(State(face): Shared, Extension(peer): Extension<Peer>, body: Body) -> Result<Response, Refused> {
    owned::only_root(peer)?;
    let (owner, registration, about) = understand(&owned::receive(body, face.limits).await?)?;
    let (owner, process) = owned::owner(owner, peer)?;

    // First the place, then the look, and listed is only what passed it.
    let (id, most) = (registration.id.clone(), face.limits.registrations);
    let place = face.registrations.keep_place(&id, most, Namesake::Replaced)?;
    face.tracker.register(&registration).await.map_err(refuse)?;
    let line =
        Registered { id: id.as_str().into(), owner, since: face.clock.wall(BootTime::now()), registration: about };
    let waiting = place.fill(line.clone());
    let book = Arc::clone(&face);
    tokio::spawn(async move {
        let ended = book.registrations.ended_with(process, waiting, &id, &book.cancel).await;
        if ended.is_some() && book.tracker.unregister(&id).await.is_ok() {
            tracing::info!(id, "a registration ended with its owner");
        }
    });
    Ok(json(StatusCode::CREATED, &line))
}

async fn unregister(
    State(face): Shared,
    Extension(peer): Extension<Peer>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    owned::only_root(peer)?;
    let Path(id) = id.map_err(|error| Refused::bad(error.body_text()))?;
    let Some(line) = face.registrations.remove(&id) else {
        return Err(Refused::not_found(format!("there is no registration `{}`", id.escape_debug())));
    };
    face.tracker.unregister(&id).await.map_err(refuse)?;
    Ok(json(StatusCode::OK, &line))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
