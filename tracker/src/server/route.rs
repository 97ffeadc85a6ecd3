//! `GET /v1/route`: where a packet goes.

use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::answer::{Refused, json};
use super::api;
use super::query::{self, RouteAsked, Start};
use super::routes::{Face, Shared, find};
use crate::route::{Found, Place, RouteError, RouteQuery, Routes};
use crate::tracker::place_of;

/// How long the kernel may take. A net ns that is asked for by a path may lie on a file system that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn route(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let asked = query::route(&query.unwrap_or_default())?;
    let routes = match face.tracker.routes() {
        Some(Ok(routes)) => routes.clone(),
        Some(Err(error)) => return Err(refused(error)),
        None => return Err(Refused::not_found("this tracker does not know routes")),
    };
    let place = place(&face, &asked.start)?;
    let looked = tokio::task::spawn_blocking(move || look(&routes, &place, &asked));
    let looked = tokio::time::timeout(PATIENCE, looked).await;
    let (query, found) = match looked {
        Ok(Ok(found)) => found.map_err(|error| refused(&error))?,
        Ok(Err(panicked)) => return Err(Refused::unanswered(format!("the look-up panicked: {panicked}"))),
        Err(_) => return Err(Refused::too_slow(format!("not answered within {} s", PATIENCE.as_secs()))),
    };
    Ok(json(StatusCode::OK, &wire(&query, &found)))
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

fn look(routes: &Routes, place: &Place, asked: &RouteAsked) -> Result<(RouteQuery, Found), RouteError> {
    let netns = routes.netns(place)?;
    let index = |interface: &Option<String>| match interface {
        None => Ok(None),
        Some(text) => text.parse().map(Some).or_else(|_| routes.interface(&netns, text).map(Some)),
    };
    let query = RouteQuery { input: index(&asked.input)?, output: index(&asked.output)?, ..asked.query }.normal();
    let found = routes.ask(&netns, &query)?;
    Ok((query, found))
}

fn wire(query: &RouteQuery, found: &Found) -> api::Route {
    api::Route {
        src: query.source.or_else(|| found.route.hops.first().and_then(|hop| hop.source)),
        dst: query.destination,
        cached: found.cached,
        age_ms: u64::try_from(found.age.as_millis()).unwrap_or(u64::MAX),
        route: (*found.route).clone(),
    }
}

fn refused(error: &RouteError) -> Refused {
    let refused = match error {
        _ if error.is_not_found() => Refused::not_found(error.to_string()),
        _ if error.is_question() => Refused::bad(error.to_string()),
        RouteError::Busy(_) => return Refused::busy(error.to_string()),
        _ => Refused::unanswered(error.to_string()),
    };
    match error.remedy() {
        Some(remedy) => refused.remedy(remedy),
        None => refused,
    }
}
