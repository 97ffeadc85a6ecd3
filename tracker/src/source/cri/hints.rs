//! What the collection has heard from others about CRI's containers: the moment to ask the server.
//!
//! The kernel, the barrier and containerd's events tell of a start or an end within milliseconds, and the CRI of most
//! servers tells nothing by itself. A feed of the collection is therefore followed, and every change of the state of a
//! container that a CRI server has is a hint. A hint only says when to ask, never what is so.

use std::convert::Infallible;

use tokio::sync::broadcast;

use super::ledger::{Hint, Phase};
use super::server;
use crate::collection::feed::{Change, Feed, FeedItem, FeedOptions};
use crate::container::{Container, ContainerId, Domain, Kind, State};

/// Hints that may wait for one server's session; one that is too slow lists everything instead.
pub(super) const QUEUE_LEN: usize = 1024;

/// What a session hears.
#[derive(Clone, Debug)]
pub(super) enum Heard {
    /// Something has been seen.
    Hint(Hint),
    /// More than can be told: a list will bring it.
    Much,
}

/// What is to be followed of the collection.
pub fn options() -> FeedOptions {
    FeedOptions { kinds: vec![Kind::Container, Kind::Sandbox], ..FeedOptions::new("cri") }
}

/// Passes on what concerns CRI servers, for ever. Sessions that are not there miss it: they begin with a list.
pub(super) async fn pass_on(feed: Option<Feed>, hints: &broadcast::Sender<Heard>) -> Infallible {
    let Some(mut feed) = feed else { return std::future::pending().await };
    // Nobody may be listening at the moment.
    let tell = |heard| drop(hints.send(heard));
    while let Some(item) = feed.next().await {
        match item {
            FeedItem::Change(change) => {
                if let Some(hint) = of_change(&change) {
                    tell(Heard::Hint(hint));
                }
            }
            // The first one finds sessions that are about to list; a later one follows a lag.
            FeedItem::Bundle { .. } => {}
            FeedItem::Lagged { .. } => tell(Heard::Much),
        }
    }
    std::future::pending().await
}

fn of_change(change: &Change) -> Option<Hint> {
    let after = change.after.as_deref()?;
    let before = change.before.as_deref().filter(|before| is_of_cri(before));
    if !is_of_cri(after) || before.is_some_and(|before| before.state == after.state) {
        return None;
    }
    let phase = match after.state {
        State::Running | State::Paused => Phase::Running,
        State::Exited | State::Aborted => Phase::Over,
        // Its server has nothing to add before it runs; one that stays so is in the next list.
        State::Created | State::Provisional => return None,
    };
    let sandbox_id = after.pod.as_ref().and_then(|pod| pod.sandbox_id.clone());
    Some(Hint { id: ContainerId::new(&after.id).ok()?, kind: after.kind, phase, sandbox_id })
}

/// Whether a CRI server has it: pods are made by nobody else, as far as the runtimes that serve one are concerned.
fn is_of_cri(container: &Container) -> bool {
    let runtime = &container.runtime;
    container.domain == Domain::Host
        && container.pod.is_some()
        && (runtime.namespace.as_deref() == Some(server::NAMESPACE) || runtime.name.as_deref() == Some("cri-o"))
}
