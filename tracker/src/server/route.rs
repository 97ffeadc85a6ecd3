//! `GET /v1/route`: where a packet goes, once or with each change.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::answer::{Refused, json};
use super::api::route::{RouteAnswer, RouteLine};
use super::query::{self, RouteAsked, Start};
use super::routes::{Face, Shared, find};
use crate::route::{Found, Netns, Place, Route, RouteError, RouteQuery, Routes};
use crate::tracker::place_of;

pub(super) async fn route(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let asked = query::route(&query.unwrap_or_default())?;
    let answer = look(&face, &asked).await?;
    if !asked.watch {
        return Ok(json(StatusCode::OK, &answer));
    }
    let busy = |_| Refused::busy(format!("all {} watchers are in use", face.limits.watchers));
    let slot = Arc::clone(&face.watchers).try_acquire_owned().map_err(busy)?;
    let changes = routes(&face)?.changes();
    let watcher = Watcher { face, asked, changes, shown: None, _slot: slot };
    let lines = unfold(watcher, |mut watcher| async {
        let line = watcher.next().await?;
        Some((encode(&line), watcher))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Who is told of each change.
struct Watcher {
    face: Arc<Face>,
    asked: RouteAsked,
    changes: watch::Receiver<()>,
    shown: Option<RouteLine>,
    _slot: OwnedSemaphorePermit,
}

impl Watcher {
    /// The next answer that is another than the last; `None` at the tracker's end.
    async fn next(&mut self) -> Option<RouteLine> {
        loop {
            self.changes.mark_unchanged();
            let line = match look(&self.face, &self.asked).await {
                Ok(answer) => RouteLine::Route(Box::new(answer)),
                Err(refused) => RouteLine::Error(refused.refusal),
            };
            if self.shown.as_ref().is_none_or(|shown| shown.differs(&line)) {
                self.shown = Some(line.clone());
                return Some(line);
            }
            let cancel = self.face.cancel.clone();
            tokio::select! {
                // A container may have another net ns by now, and what no message announces shows with age.
                _ = tokio::time::timeout(LONGEST, self.changes.changed()) => {}
                () = cancel.cancelled() => return None,
            }
            // What changes often is shown as it is then.
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Between two looks at what changes all the time, and at what does not seem to.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

fn encode(line: &RouteLine) -> Result<Bytes, serde_json::Error> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

fn routes(face: &Face) -> Result<Routes, Refused> {
    match face.tracker.routes() {
        Some(Ok(routes)) => Ok(routes.clone()),
        Some(Err(error)) => Err(refused(error)),
        None => Err(Refused::not_found("this tracker does not know routes")),
    }
}

async fn look(face: &Face, asked: &RouteAsked) -> Result<RouteAnswer, Refused> {
    let routes = routes(face)?;
    let place = place(face, &asked.start)?;
    let netns = routes.find(&place).await.map_err(|error| refused(&error))?;
    let query = complete(&routes, &netns, asked).await?;
    let found = routes.lookup(&netns, &query, asked.fresh).await.map_err(|error| refused(&error))?;
    Ok(wire(&query, &found))
}

/// The query with its interfaces' names looked up.
async fn complete(routes: &Routes, netns: &Netns, asked: &RouteAsked) -> Result<RouteQuery, Refused> {
    let mut indices = [None; 2];
    for (index, interface) in indices.iter_mut().zip([&asked.input, &asked.output]) {
        let Some(interface) = interface else { continue };
        *index = Some(match interface.parse() {
            Ok(number) => number,
            Err(_) => routes.find_interface(netns, interface).await.map_err(|error| refused(&error))?,
        });
    }
    let [input, output] = indices;
    Ok(RouteQuery { input, output, ..asked.query }.normal())
}

fn place(face: &Face, start: &Start) -> Result<Place, Refused> {
    match start {
        Start::Host => Ok(Place::Host),
        Start::Netns(inode) => Ok(Place::Inode(*inode)),
        Start::Pid(pid) => Ok(Place::Pid(*pid)),
        Start::Path(path) => Ok(Place::Path(path.clone())),
        Start::Container(id) => {
            let mut reader = face.reader();
            let container = find(&mut reader, id)?;
            place_of(container).ok_or_else(|| {
                let (id, state) = (container.id.escape_debug(), container.state.name());
                Refused::not_found(format!("container `{id}` has no process to find its net ns by: it is {state}"))
            })
        }
    }
}

fn wire(query: &RouteQuery, found: &Found) -> RouteAnswer {
    RouteAnswer {
        src: query.source.or_else(|| found.hops.first().and_then(|hop| hop.source)),
        dst: query.destination,
        cached: found.cached,
        age_ms: u64::try_from(found.age.as_millis()).unwrap_or(u64::MAX),
        muted: found.muted,
        route: Route::clone(found),
    }
}

fn refused(error: &RouteError) -> Refused {
    let refused = match error {
        _ if error.is_not_found() => Refused::not_found(error.to_string()),
        _ if error.is_question() => Refused::bad(error.to_string()),
        RouteError::Busy(_) => return Refused::busy(error.to_string()),
        RouteError::TooSlow { .. } => Refused::too_slow(error.to_string()),
        _ => Refused::unanswered(error.to_string()),
    };
    match error.remedy() {
        Some(remedy) => refused.remedy(remedy),
        None => refused,
    }
}
