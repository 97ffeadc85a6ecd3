//! The way out for those who follow: first everything that matches now, then each change, in order and exactly once.
//!
//! Every feed has a bounded queue of its own, and nobody waits for anybody else. Who is too slow is told so
//! ([`FeedItem::Lagged`]) and gets a new full bundle; its missed changes are counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::door::{Ask, Delivery};
use super::state::State;
use crate::container::{Container, Kind, Str};
use crate::fact::Source;
use crate::selector::Selector;

/// What a subscriber wants to hear.
#[derive(Clone, Debug)]
pub struct FeedOptions {
    /// Its name in metrics and logs.
    pub name: Str,
    /// Kinds to report; all when empty.
    pub kinds: Vec<Kind>,
    /// Containers to report. One that begins to match is reported as added, one that ceases to as removed.
    pub selector: Selector,
    /// One source's own view instead of the merged one.
    pub source: Option<Source>,
    /// Kinds of changes to report; all when empty. The bundle comes in any case.
    pub changes: Vec<ChangeKind>,
    /// Feeds with a higher number are served first at each publication.
    pub priority: i32,
    /// Items that may wait for the subscriber before it is told that it lags.
    pub queue_len: usize,
}

impl FeedOptions {
    /// Everything about everything, for a subscriber of this name.
    pub fn new(name: &str) -> Self {
        FeedOptions {
            name: name.into(),
            kinds: Vec::new(),
            selector: Selector::default(),
            source: None,
            changes: Vec::new(),
            priority: 0,
            queue_len: 1024,
        }
    }
}

/// What became of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It is new to the subscriber.
    Added,
    /// Something about it is different.
    Updated,
    /// It is gone, or no longer what the subscriber asked for.
    Removed,
}

/// One change of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The collection's sequence number; rises from change to change, with gaps where other containers changed.
    pub sequence: u64,
    /// What became of it.
    pub kind: ChangeKind,
    /// As it was; absent when added.
    pub before: Option<Arc<Container>>,
    /// As it is; absent when removed.
    pub after: Option<Arc<Container>>,
}

/// What a feed delivers.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedItem {
    /// Everything that matches at this sequence number; comes first, always, even when empty, and again after a lag.
    Bundle {
        /// As of this change.
        sequence: u64,
        /// All that match.
        containers: Vec<Arc<Container>>,
    },
    /// One change after the bundle.
    Change(Change),
    /// The subscriber was too slow and missed changes: a new bundle follows.
    Lagged {
        /// How many changes were not delivered.
        missed: u64,
    },
}

/// A subscription. Dropping it ends it.
#[derive(Debug)]
pub struct Feed {
    id: u64,
    items: mpsc::Receiver<FeedItem>,
    lag: Arc<Lag>,
    /// Changes missed, while the writer has not been asked for a new bundle.
    missed: Option<u64>,
    writer: mpsc::Sender<Delivery>,
}

#[derive(Debug, Default)]
struct Lag {
    lagged: AtomicBool,
    missed: AtomicU64,
}

impl Feed {
    /// The next item; `None` when the collection has ended. May be cancelled: nothing is lost.
    pub async fn next(&mut self) -> Option<FeedItem> {
        loop {
            if let Some(missed) = self.missed_when_drained() {
                self.writer.reserve().await.ok()?.send(Delivery::Ask(Ask::Resync(self.id)));
                self.missed = None;
                return Some(FeedItem::Lagged { missed });
            }
            // The writer marks a lag only after filling the queue, so there is always an item to wake up for.
            if let Some(item) = self.items.recv().await {
                return Some(item);
            }
            if !self.lag.lagged.load(Ordering::Acquire) {
                return None;
            }
        }
    }

    /// [`Feed::next`] for threads. Panics inside an async task.
    pub fn next_blocking(&mut self) -> Option<FeedItem> {
        if let Some(missed) = self.missed_when_drained() {
            self.writer.blocking_send(Delivery::Ask(Ask::Resync(self.id))).ok()?;
            self.missed = None;
            return Some(FeedItem::Lagged { missed });
        }
        self.items.blocking_recv()
    }

    /// Items that wait in the queue.
    pub fn backlog(&self) -> usize {
        self.items.len()
    }

    /// What was missed, once everything from before has been taken.
    fn missed_when_drained(&mut self) -> Option<u64> {
        if self.items.is_empty() && self.lag.lagged.swap(false, Ordering::AcqRel) {
            *self.missed.get_or_insert(0) += self.lag.missed.swap(0, Ordering::AcqRel);
        }
        self.missed
    }
}

/// The writer's end of all feeds, highest priority first.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    feeds: Vec<Outlet>,
    next_id: u64,
}

#[derive(Debug)]
struct Outlet {
    id: u64,
    options: FeedOptions,
    items: mpsc::Sender<FeedItem>,
    lag: Arc<Lag>,
    /// Nothing is sent between a lag and the next bundle.
    paused: bool,
    /// For one source's own view: what was last delivered of it.
    own_view: HashMap<u64, Arc<Container>>,
}

/// A change of the merged collection, as the writer offers it to all feeds.
pub(super) struct Offer<'a> {
    pub instance: u64,
    pub sequence: u64,
    pub before: Option<&'a Arc<Container>>,
    pub after: Option<&'a Arc<Container>>,
}

impl Feeds {
    /// Opens a feed. Its bundle is the state as it is published now.
    pub(super) fn open(
        &mut self,
        options: FeedOptions,
        state: &State,
        all: &mut dyn Iterator<Item = &Arc<Container>>,
        writer: mpsc::Sender<Delivery>,
    ) -> Feed {
        // One more than asked for, so that the bundle never counts against the queue.
        let (items, receiver) = mpsc::channel(options.queue_len.clamp(1, 1 << 20) + 1);
        let lag = Arc::new(Lag::default());
        let id = self.next_id;
        self.next_id += 1;
        let mut outlet = Outlet { id, options, items, lag: Arc::clone(&lag), paused: false, own_view: HashMap::new() };
        outlet.send_bundle(state, all);
        let place = self.feeds.partition_point(|other| other.options.priority >= outlet.options.priority);
        self.feeds.insert(place, outlet);
        Feed { id, items: receiver, lag, missed: None, writer }
    }

    /// Gives a feed that lagged its new bundle.
    pub(super) fn resync(&mut self, id: u64, state: &State, all: &mut dyn Iterator<Item = &Arc<Container>>) {
        if let Some(outlet) = self.feeds.iter_mut().find(|outlet| outlet.id == id) {
            // What it missed since it asked is in the bundle.
            outlet.lag.lagged.store(false, Ordering::Release);
            outlet.lag.missed.store(0, Ordering::Release);
            outlet.send_bundle(state, all);
        }
    }

    /// Offers the changes of one publication to every feed, and forgets feeds that were dropped.
    pub(super) fn offer(&mut self, offers: &[Offer<'_>], state: &State) -> u64 {
        let mut lagged = 0;
        self.feeds.retain_mut(|outlet| {
            for offer in offers {
                if let Some(change) = outlet.change(offer, state) {
                    lagged += u64::from(!outlet.send(change));
                }
            }
            !outlet.items.is_closed()
        });
        lagged
    }

    /// Name and queued items of every feed.
    pub(super) fn backlogs(&self) -> Vec<(Str, usize)> {
        let backlog = |outlet: &Outlet| outlet.items.max_capacity() - outlet.items.capacity();
        self.feeds.iter().map(|outlet| (outlet.options.name.clone(), backlog(outlet))).collect()
    }
}

impl Outlet {
    fn wants(&self, container: &Container) -> bool {
        (self.options.kinds.is_empty() || self.options.kinds.contains(&container.kind))
            && self.options.selector.matches(container)
    }

    fn send_bundle(&mut self, state: &State, all: &mut dyn Iterator<Item = &Arc<Container>>) {
        let containers: Vec<Arc<Container>> = match self.options.source {
            None => all.filter(|container| self.wants(container)).cloned().collect(),
            Some(source) => {
                let own = all.filter_map(|container| state.derive(container.instance, Some(source), None));
                let own: Vec<Arc<Container>> = own.map(|row| row.container).filter(|own| self.wants(own)).collect();
                self.own_view = own.iter().map(|own| (own.instance, Arc::clone(own))).collect();
                own
            }
        };
        let bundle = FeedItem::Bundle { sequence: state.sequence(), containers };
        // A queue without room even for a bundle belongs to a subscriber that asked for one and did not wait for it.
        self.paused = self.items.try_send(bundle).is_err();
    }

    fn change(&mut self, offer: &Offer<'_>, state: &State) -> Option<Change> {
        let (before, after) = match self.options.source {
            None => (offer.before.cloned(), offer.after.cloned()),
            Some(source) => {
                let after = offer.after.and_then(|_| state.derive(offer.instance, Some(source), None));
                let after = after.map(|row| row.container).filter(|own| self.wants(own));
                let before = match &after {
                    Some(after) => self.own_view.insert(offer.instance, Arc::clone(after)),
                    None => self.own_view.remove(&offer.instance),
                };
                (before, after)
            }
        };
        let before = before.filter(|container| self.wants(container));
        let after = after.filter(|container| self.wants(container));
        let kind = match (&before, &after) {
            (None, None) => return None,
            (None, Some(_)) => ChangeKind::Added,
            (Some(_), None) => ChangeKind::Removed,
            (Some(before), Some(after)) if before.eq_but_sequence(after) => return None,
            (Some(_), Some(_)) => ChangeKind::Updated,
        };
        let wanted = self.options.changes.is_empty() || self.options.changes.contains(&kind);
        wanted.then_some(Change { sequence: offer.sequence, kind, before, after })
    }

    /// Whether the subscriber keeps up.
    fn send(&mut self, change: Change) -> bool {
        if !self.paused && self.items.try_send(FeedItem::Change(change)).is_ok() {
            return true;
        }
        self.paused = true;
        self.lag.missed.fetch_add(1, Ordering::AcqRel);
        self.lag.lagged.store(true, Ordering::Release);
        false
    }
}
