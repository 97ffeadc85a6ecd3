//! Who held a kernel number when: intervals in boot time.
//!
//! A [`Timeline`] is for numbers with one holder at a time (mount ns, init pid), a [`Membership`] for numbers that
//! several containers share (net ns, cgroup). Between a close and the next birth the answer is nothing, never a
//! neighbour.

use std::sync::Arc;

use imbl::OrdMap;

use crate::container::Container;
use crate::time::BootTime;

/// One holder after the other. The live one sits here, the dead ones behind a pointer, sorted by their opening.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    opened: BootTime,
    live: Option<Arc<Container>>,
    dead: Option<Arc<OrdMap<BootTime, Dead>>>,
}

#[derive(Clone, Debug)]
struct Dead {
    closed: BootTime,
    container: Arc<Container>,
}

/// A holder's time: from `opened` until before `closed` ([`BootTime::MAX`] while it lasts).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub opened: BootTime,
    pub closed: BootTime,
}

impl Interval {
    pub(crate) fn is_open(self) -> bool {
        self.closed == BootTime::MAX
    }

    fn contains(self, at: BootTime) -> bool {
        self.opened <= at && at < self.closed
    }
}

impl Timeline {
    #[inline]
    pub(crate) fn now(&self) -> Option<&Arc<Container>> {
        self.live.as_ref()
    }

    #[inline]
    pub(crate) fn at(&self, at: BootTime) -> Option<&Arc<Container>> {
        match &self.live {
            Some(live) if at >= self.opened => Some(live),
            _ => self.dead_at(at),
        }
    }

    fn dead_at(&self, at: BootTime) -> Option<&Arc<Container>> {
        let (_, dead) = self.dead.as_ref()?.get_prev(&at)?;
        (at < dead.closed).then_some(&dead.container)
    }

    /// Enters a holder or its new value. Of two live holders the one that came later is right: the number was reused,
    /// so the earlier one is closed at that birth even if nothing else told so.
    pub(crate) fn enter(&mut self, interval: Interval, container: Arc<Container>) {
        if !interval.is_open() {
            self.live.take_if(|live| live.instance == container.instance);
            return self.bury(interval, container);
        }
        match self.live.take() {
            Some(other) if other.instance != container.instance && self.opened > interval.opened => {
                let closed = self.opened;
                self.live = Some(other);
                self.bury(Interval { closed, ..interval }, container);
            }
            Some(other) if other.instance != container.instance => {
                self.bury(Interval { opened: self.opened, closed: interval.opened }, other);
                (self.opened, self.live) = (interval.opened, Some(container));
            }
            _ => (self.opened, self.live) = (interval.opened, Some(container)),
        }
    }

    /// Takes out the holder whose interval opened at `opened`, wherever it is.
    pub(crate) fn leave(&mut self, instance: u64, opened: BootTime) {
        if self.live.as_ref().is_some_and(|live| live.instance == instance) {
            self.live = None;
        }
        let Some(dead) = &mut self.dead else { return };
        if dead.get(&opened).is_some_and(|dead| dead.container.instance == instance) {
            Arc::make_mut(dead).remove(&opened);
        }
        if dead.is_empty() {
            self.dead = None;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_none() && self.dead.is_none()
    }

    fn bury(&mut self, interval: Interval, container: Arc<Container>) {
        if interval.opened >= interval.closed {
            return;
        }
        let dead = Dead { closed: interval.closed, container };
        Arc::make_mut(self.dead.get_or_insert_default()).insert(interval.opened, dead);
    }
}

/// All who share a number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Membership {
    live: Members,
    dead: Members,
}

impl Membership {
    pub(crate) fn enter(&mut self, interval: Interval, container: Arc<Container>) {
        let (into, out_of) = match interval.is_open() {
            true => (&mut self.live, &mut self.dead),
            false => (&mut self.dead, &mut self.live),
        };
        out_of.remove(container.instance);
        into.insert(Member { interval, container });
    }

    pub(crate) fn leave(&mut self, instance: u64) {
        self.live.remove(instance);
        self.dead.remove(instance);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.live.0.is_empty() && self.dead.0.is_empty()
    }

    pub(crate) fn now(&self) -> Containers<'_> {
        Containers { living: self.live.iter(), dead: MembersIter::default(), at: None, only_vouched: false }
    }

    pub(crate) fn at(&self, at: BootTime) -> Containers<'_> {
        Containers { living: self.live.iter(), dead: self.dead.iter(), at: Some(at), only_vouched: false }
    }
}

/// The containers that share a number, in the order in which they were first seen (the dead after the living).
/// Iterating allocates nothing.
#[derive(Clone, Debug)]
pub struct Containers<'a> {
    living: MembersIter<'a>,
    dead: MembersIter<'a>,
    at: Option<BootTime>,
    only_vouched: bool,
}

impl Containers<'_> {
    /// Leaves out those that nobody vouches for, where somebody vouches for another.
    pub(crate) fn vouched(mut self) -> Self {
        self.only_vouched = true;
        if self.clone().next().is_none() {
            self.only_vouched = false;
        }
        self
    }
}

impl<'a> Iterator for Containers<'a> {
    type Item = &'a Container;

    fn next(&mut self) -> Option<&'a Container> {
        let (at, only_vouched) = (self.at, self.only_vouched);
        let wanted = |member: &&Member| {
            at.is_none_or(|at| member.interval.contains(at))
                && (!only_vouched || member.container.kind.is_vouched_for())
        };
        self.living.find(wanted).or_else(|| self.dead.find(wanted)).map(|member| &*member.container)
    }
}

#[derive(Clone, Debug)]
struct Member {
    interval: Interval,
    container: Arc<Container>,
}

/// Members sorted by instance, in shared chunks: a change copies one chunk and the list of chunks, so that ten
/// thousand containers on one net ns cost little more than ten thousand on their own.
#[derive(Clone, Debug, Default)]
struct Members(Arc<Vec<Arc<Vec<Member>>>>);

const CHUNK_LEN: usize = 64;

impl Members {
    fn iter(&self) -> MembersIter<'_> {
        MembersIter { chunks: self.0.iter(), chunk: [].iter() }
    }

    /// Index of the chunk where `instance` is or belongs.
    fn chunk_of(&self, instance: u64) -> usize {
        let after = self.0.partition_point(|chunk| chunk[0].container.instance <= instance);
        after.saturating_sub(1)
    }

    fn insert(&mut self, member: Member) {
        let instance = member.container.instance;
        let at = self.chunk_of(instance);
        let chunks = Arc::make_mut(&mut self.0);
        let Some(chunk) = chunks.get_mut(at) else {
            return chunks.push(Arc::new(vec![member]));
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by_key(&instance, |member| member.container.instance) {
            Ok(same) => chunk[same] = member,
            Err(place) => chunk.insert(place, member),
        }
        if chunk.len() > CHUNK_LEN {
            // The newest usually comes last: leave the old chunk full, so that appending fills chunks.
            let tail = chunk.split_off(CHUNK_LEN);
            chunks.insert(at + 1, Arc::new(tail));
        }
    }

    fn remove(&mut self, instance: u64) {
        let at = self.chunk_of(instance);
        let found = self
            .0
            .get(at)
            .and_then(|chunk| chunk.binary_search_by_key(&instance, |member| member.container.instance).ok());
        if let Some(place) = found {
            let chunks = Arc::make_mut(&mut self.0);
            if chunks[at].len() == 1 {
                chunks.remove(at);
            } else {
                Arc::make_mut(&mut chunks[at]).remove(place);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct MembersIter<'a> {
    chunks: std::slice::Iter<'a, Arc<Vec<Member>>>,
    chunk: std::slice::Iter<'a, Member>,
}

impl<'a> Iterator for MembersIter<'a> {
    type Item = &'a Member;

    fn next(&mut self) -> Option<&'a Member> {
        loop {
            if let Some(member) = self.chunk.next() {
                return Some(member);
            }
            self.chunk = self.chunks.next()?.iter();
        }
    }
}
