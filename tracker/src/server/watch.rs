//! `GET /v1/watch`: one bundle, then changes, as lines of JSON.
//!
//! A line is made when the connection can take it: a watcher that reads slowly fills its own feed's queue, lags, is told
//! so and gets a new bundle. Nobody else waits for it.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;

use super::answer::Refused;
use super::api::WatchLine;
use super::query;
use super::routes::{Face, Shared, selector, shown};
use crate::collection::feed::{Change, ChangeKind, Feed, FeedItem, FeedOptions};
use crate::container::Container;

/// What one watcher's connection holds.
struct Watcher {
    face: Arc<Face>,
    feed: Feed,
    _slot: OwnedSemaphorePermit,
}

pub(super) async fn watch(State(face): Shared, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let query = query::watch(&query.unwrap_or_default())?;
    let busy = |_| Refused::busy(format!("all {} watchers are in use", face.limits.watchers));
    let slot = Arc::clone(&face.watchers).try_acquire_owned().map_err(busy)?;
    let options = FeedOptions { kinds: shown(&query), selector: selector(&query)?, ..FeedOptions::new("debug-socket") };
    let feed = face.tracker.subscribe(options).await?;
    let watcher = Watcher { face, feed, _slot: slot };
    let lines = unfold(watcher, |mut watcher| async {
        let cancel = watcher.face.cancel.clone();
        let item = tokio::select! {
            item = watcher.feed.next() => item?,
            () = cancel.cancelled() => return None,
        };
        let line = encode(&line(&watcher.face, item));
        Some((line, watcher))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn encode(line: &WatchLine) -> Result<Bytes, serde_json::Error> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

fn line(face: &Face, item: FeedItem) -> WatchLine {
    let boxed = |container: Arc<Container>| Box::new(face.wire(&container));
    match item {
        FeedItem::Bundle { sequence, containers } => WatchLine::Bundle {
            sequence,
            containers: containers.iter().map(|container| face.wire(container)).collect(),
        },
        FeedItem::Lagged { missed } => WatchLine::Lagged { missed },
        FeedItem::Change(Change { sequence, kind, before, after }) => match (kind, before, after) {
            (ChangeKind::Added, _, Some(after)) => WatchLine::Added { sequence, after: boxed(after) },
            (ChangeKind::Removed, Some(before), _) => WatchLine::Removed { sequence, before: boxed(before) },
            (_, Some(before), Some(after)) => {
                WatchLine::Updated { sequence, before: boxed(before), after: boxed(after) }
            }
            (kind, ..) => unreachable!("a feed's {kind:?} without the container it is about"),
        },
    }
}
