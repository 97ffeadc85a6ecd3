//! `GET /v1/route`: where a packet goes.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::answer::{Refused, json};
use super::api;
use super::query::{self, RouteAsked, Start};
use super::routes::{Face, Shared, find};
use crate::route::{Found, Netns, Place, Route, RouteError, RouteQuery, Routes};
use crate::tracker::place_of;

pub(super) async fn route(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let asked = query::route(&query.unwrap_or_default())?;
    let routes = match face.tracker.routes() {
        Some(Ok(routes)) => routes.clone(),
        Some(Err(error)) => return Err(refused(error)),
        None => return Err(Refused::not_found("this tracker does not know routes")),
    };
    let place = place(&face, &asked.start)?;
    let netns = routes.find(&place).await.map_err(|error| refused(&error))?;
    let query = complete(&routes, &netns, &asked).await?;
    let found = routes.lookup(&netns, &query, asked.fresh).await.map_err(|error| refused(&error))?;
    Ok(json(StatusCode::OK, &wire(&query, &found)))
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

fn wire(query: &RouteQuery, found: &Found) -> api::Route {
    api::Route {
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
