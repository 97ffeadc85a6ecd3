//! `/v1/selections`: live sets of containers as BPF maps, pinned for programs that know nothing of the library.
//!
//! Listed for everybody whom the socket lets in, made and removed by root alone. One ends with its owner, the process that
//! made it or one that it names, and with the tracker, unless it is to be kept: then it stays until somebody removes it,
//! and is adopted with its maps by the next tracker. There are at most `limits.selections`; one more is answered 503.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use serde::Deserialize;

use super::answer::{Refused, json};
use super::api::Selected;
use super::clock::Wall;
use super::limits::Peer;
use super::owned::{self, Namesake, Owned};
use super::routes::{Face, Shared};
use crate::plane::selection::pins::{Found, Pins, check_name};
use crate::plane::selection::{Selection, SelectionError};
use crate::selector::{Selector, SelectorError};
use crate::source::health::Condition;
use crate::time::BootTime;

/// How long kept selections wait for the sources to have reported: until then they would lose containers that are there.
const LONGEST_START: Duration = Duration::from_secs(10);
/// Between two looks at whether they have, and how many in a row have to show it: a source may not have begun yet.
const START_PAUSE: Duration = Duration::from_millis(50);
const START_LOOKS: u32 = 10;

pub(super) fn router() -> Router<Arc<Face>> {
    Router::new()
        .route("/v1/selections", get(list).post(select))
        .route("/v1/selections/{name}", get(one).delete(remove))
}

/// All selections that were made through this socket, or by an earlier tracker and kept.
#[derive(Debug)]
pub(super) struct Selections {
    owned: Owned<Made>,
    // Protects the right to the directory, which is taken when it is first needed; held while a pin is made.
    pins: Mutex<Option<Pins>>,
}

#[derive(Debug)]
struct Made {
    selection: Selection,
    owner: Option<u32>,
    since: Wall,
    pins: String,
}

/// The body of a POST.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    name: String,
    selector: String,
    owner: Option<u32>,
    #[serde(default)]
    keep: bool,
}

impl Selections {
    pub(super) fn new() -> Self {
        Self { owned: Owned::new("selections"), pins: Mutex::new(None) }
    }

    /// Does something with the directory of pins, which is taken first where that has not been possible so far.
    fn with_pins<T>(
        &self,
        face: &Face,
        act: impl FnOnce(&Pins) -> Result<T, SelectionError>,
    ) -> Result<T, SelectionError> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let pins = match &mut *pins {
            Some(pins) => pins,
            none => none.insert(Pins::open(&face.tracker.plane().pins)?),
        };
        act(pins)
    }

    /// Takes what an earlier tracker left: what was to be kept goes on once the sources have reported, all else is removed.
    pub(super) fn start(face: &Arc<Face>) {
        let pins = match Pins::open_left(&face.tracker.plane().pins) {
            None => return,
            Some(Ok(pins)) => pins,
            Some(Err(error)) => {
                return tracing::warn!(%error, remedy = error.remedy(), "selections of an earlier tracker are left alone");
            }
        };
        let found = pins.adopt();
        *face.selections.pins.lock().unwrap_or_else(PoisonError::into_inner) = Some(pins);
        if !found.is_empty() {
            tokio::spawn(adopt(found, Arc::clone(face)));
        }
    }

    /// Nobody keeps them up any more: those to be kept stay pinned as they are, the others are removed.
    pub(super) fn end(&self) {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner).take();
        for made in self.owned.remove_all() {
            match (made.owner, &pins) {
                (None, _) => made.selection.leave(),
                (Some(_), Some(pins)) => pins.unpin(made.selection.name()),
                (Some(_), None) => {}
            }
        }
    }

    fn unpin(&self, face: &Face, made: Made) {
        let name = made.selection.name().to_owned();
        // Emptied before it is removed, so that nobody opens what is no longer kept up.
        drop(made);
        // What pinned it holds the directory.
        let _ = self.with_pins(face, |pins| {
            pins.unpin(&name);
            Ok(())
        });
    }
}

/// Goes on with kept selections.
async fn adopt(found: Vec<Found>, face: Arc<Face>) {
    let most = face.limits.selections;
    let keep_place = |found: Found| match face.selections.owned.keep_place(&found.name, most, Namesake::Kept) {
        Ok(place) => Some((place, found)),
        Err(refused) => {
            tracing::warn!(name = found.name, reason = refused.refusal.error, "a kept selection is not adopted");
            None
        }
    };
    let found: Vec<_> = found.into_iter().filter_map(keep_place).collect();
    let is_starting = || {
        let scanned = face.tracker.stats().scan.scans.load(Ordering::Relaxed) > 0;
        !scanned || face.tracker.health().iter().any(|line| line.condition == Condition::Starting)
    };
    let reported = async {
        let mut quiet = 0;
        while quiet < START_LOOKS {
            tokio::time::sleep(START_PAUSE).await;
            quiet = if is_starting() { 0 } else { quiet + 1 };
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(LONGEST_START, reported) => {}
        () = face.cancel.cancelled() => return,
    }
    for (place, Found { name, selector, maps }) in found {
        match face.tracker.selection_in(&name, selector, maps).await {
            Ok(selection) => {
                let pins = face.tracker.plane().pins.join("selections").join(&name);
                let since = face.clock.wall(BootTime::now());
                place.fill(Made { selection, owner: None, since, pins: pins.display().to_string() });
                tracing::info!(name, "a kept selection is kept up again");
            }
            Err(error) => tracing::warn!(name, %error, "a kept selection is not adopted"),
        }
    }
}

async fn list(State(face): Shared) -> Response {
    json(StatusCode::OK, &face.selections.owned.list(line))
}

async fn one(State(face): Shared, name: Result<Path<String>, PathRejection>) -> Result<Response, Refused> {
    let Path(name) = name.map_err(|error| Refused::bad(error.body_text()))?;
    let line = face.selections.owned.get(&name, line).ok_or_else(|| no_such_selection(&name))?;
    Ok(json(StatusCode::OK, &line))
}

async fn select(State(face): Shared, Extension(peer): Extension<Peer>, body: Body) -> Result<Response, Refused> {
    owned::only_root(peer)?;
    let (Wish { name, selector: text, owner, keep }, selector) = understand(&owned::receive(body, face.limits).await?)?;
    let owner = if keep { None } else { Some(owned::owner(owner, peer)?) };

    let place = face.selections.owned.keep_place(&name, face.limits.selections, Namesake::Kept)?;
    // Before anything is made that could not be pinned.
    face.selections.with_pins(&face, |_| Ok(())).map_err(|error| refuse(&error))?;
    let selection = face.tracker.selection(&name, selector).await.map_err(|error| refuse(&error))?;
    let pins = face
        .selections
        .with_pins(&face, |pins| pins.pin(&selection, keep.then_some(&*text)))
        .map_err(|error| refuse(&error))?;
    let pid = owner.as_ref().map(|(pid, _)| *pid);
    let since = face.clock.wall(BootTime::now());
    let made = Made { selection, owner: pid, since, pins: pins.display().to_string() };
    let answer = json(StatusCode::CREATED, &line(&made));
    let waiting = place.fill(made);
    if let Some((_, process)) = owner {
        let face = Arc::clone(&face);
        tokio::spawn(async move {
            if let Some(made) = face.selections.owned.ended_with(process, waiting, &name, &face.cancel).await {
                face.selections.unpin(&face, made);
                tracing::info!(name, "a selection ended with its owner");
            }
        });
    }
    Ok(answer)
}

async fn remove(
    State(face): Shared,
    Extension(peer): Extension<Peer>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    owned::only_root(peer)?;
    let Path(name) = name.map_err(|error| Refused::bad(error.body_text()))?;
    let made = face.selections.owned.remove(&name).ok_or_else(|| no_such_selection(&name))?;
    let answer = json(StatusCode::OK, &line(&made));
    face.selections.unpin(&face, made);
    Ok(answer)
}

fn no_such_selection(name: &str) -> Refused {
    Refused::not_found(format!("there is no selection `{}`", name.escape_debug())).remedy("see `tracker select --list`")
}

fn line(made: &Made) -> Selected {
    let Made { selection, owner, since, pins } = made;
    let figures = selection.figures();
    Selected {
        name: selection.name().into(),
        selector: selection.selector().to_string(),
        owner: *owner,
        keep: owner.is_none(),
        since: *since,
        pins: pins.clone(),
        containers: figures.containers,
        mount_namespaces: figures.mount_namespaces,
        cgroups: figures.cgroups,
        full: figures.missing > 0,
        missing: figures.missing,
        changes: figures.changes,
    }
}

/// What is wanted, and of which containers.
fn understand(body: &[u8]) -> Result<(Wish, Selector), Refused> {
    let wish: Wish = serde_json::from_slice(body).map_err(|error| {
        Refused::bad(format!("a selection: {error}"))
            .remedy(r#"for example {"name": "web", "selector": "image=*nginx*", "owner": 4711}"#)
    })?;
    check_name(&wish.name).map_err(Refused::bad)?;
    if wish.keep && wish.owner.is_some() {
        return Err(Refused::bad("a selection that is to be kept has no owner").remedy("leave `owner` or `keep` out"));
    }
    let selector = Selector::parse(&wish.selector).map_err(|error: SelectorError| Refused::selector(&error))?;
    Ok((wish, selector))
}

fn refuse(error: &SelectionError) -> Refused {
    if let SelectionError::Ended(ended) = error {
        return (*ended).into();
    }
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    Refused::conflict(text).remedy(error.remedy())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wish_has_a_plain_name_and_a_selector_and_an_owner_or_none() {
        let (wish, selector) = understand(br#"{"name":"web","selector":"image=*nginx*","owner":7}"#).unwrap();
        assert_eq!((wish.owner, wish.keep, selector.to_string().as_str()), (Some(7), false, "image=*nginx*"));
        for (wrong, said) in [
            (&br#"{"name":"a/b","selector":""}"#[..], "other characters"),
            (br#"{"name":"","selector":""}"#, "has a name"),
            (br#"{"name":"a"}"#, "selector"),
            (br#"{"name":"a","selector":"","colour":"blue"}"#, "colour"),
            (br#"{"name":"a","selector":"","keep":true,"owner":1}"#, "no owner"),
            (b"", "EOF"),
        ] {
            let refused = understand(wrong).unwrap_err().refusal;
            assert!(refused.error.contains(said), "{}: {}", String::from_utf8_lossy(wrong), refused.error);
        }
        let refused = understand(br#"{"name":"a","selector":"image=x,?"}"#).unwrap_err().refusal;
        assert_eq!(refused.column, Some(9));
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[{\":,}0-9a-z]{0,80}") {
            let _ = (understand(&body), understand(text.as_bytes()));
        }
    }
}
