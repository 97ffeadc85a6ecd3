//! Who held a kernel number when: intervals in boot time.
//!
//! A [`Timeline`] is for numbers with one holder at a time (mount ns, init pid), a [`Membership`] for numbers that
//! several containers share (net ns, cgroup). Between a close and the next birth the answer is nothing, never a
//! neighbour.

use std::sync::Arc;

use super::chunks::{self, Chunks, Keyed};
use crate::container::Container;
use crate::time::BootTime;

/// One holder after the other. The live one sits here, the dead ones behind a pointer, sorted by their opening.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    opened: BootTime,
    live: Option<Arc<Container>>,
    dead: Chunks<Dead>,
}

#[derive(Clone, Debug)]
struct Dead {
    interval: Interval,
    container: Arc<Container>,
}

impl Keyed for Dead {
    fn key(&self) -> u64 {
        self.interval.opened.0
    }
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

    pub(crate) fn contains(self, at: BootTime) -> bool {
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
        let dead = self.dead.up_to(at.0)?;
        dead.interval.contains(at).then_some(&dead.container)
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
        if self.dead.get(opened.0).is_some_and(|dead| dead.container.instance == instance) {
            self.dead.remove(opened.0);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_none() && self.dead.is_empty()
    }

    fn bury(&mut self, interval: Interval, container: Arc<Container>) {
        if interval.opened >= interval.closed {
            return;
        }
        self.dead.put(Dead { interval, container });
    }
}

/// All who share a number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Membership {
    live: Chunks<Member>,
    dead: Chunks<Member>,
}

impl Membership {
    pub(crate) fn enter(&mut self, interval: Interval, container: Arc<Container>, is_excluded: bool) {
        let (into, out_of) = match interval.is_open() {
            true => (&mut self.live, &mut self.dead),
            false => (&mut self.dead, &mut self.live),
        };
        out_of.remove(container.instance);
        into.put(Member { interval, container, is_excluded });
    }

    pub(crate) fn leave(&mut self, instance: u64) {
        self.live.remove(instance);
        self.dead.remove(instance);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.dead.is_empty()
    }

    pub(crate) fn now(&self) -> Containers<'_> {
        Containers { living: self.live.iter(), dead: chunks::Iter::default(), at: None, only_vouched: false }
    }

    pub(crate) fn at(&self, at: BootTime) -> Containers<'_> {
        Containers { living: self.live.iter(), dead: self.dead.iter(), at: Some(at), only_vouched: false }
    }
}

/// The containers that share a number, in the order in which they were first seen (the dead after the living).
/// Iterating allocates nothing.
#[derive(Clone, Debug)]
pub struct Containers<'a> {
    living: chunks::Iter<'a, Member>,
    dead: chunks::Iter<'a, Member>,
    at: Option<BootTime>,
    only_vouched: bool,
}

impl Containers<'_> {
    /// Leaves out those that nobody vouches for, where somebody vouches for another.
    pub(crate) fn vouched(mut self) -> Self {
        self.only_vouched = true;
        if self.clone().next_member().is_none() {
            self.only_vouched = false;
        }
        self
    }
}

impl<'a> Containers<'a> {
    /// Those that share the number, too, but that the configuration's filter excludes: they are not among the others. An
    /// event with this number may be theirs.
    pub fn excluded(&self) -> impl Iterator<Item = &'a Container> + use<'a> {
        let mut all = self.clone();
        std::iter::from_fn(move || all.next_member())
            .filter(|member| member.is_excluded)
            .map(|member| &*member.container)
    }

    fn next_member(&mut self) -> Option<&'a Member> {
        let (at, only_vouched) = (self.at, self.only_vouched);
        let wanted = |member: &&Member| {
            at.is_none_or(|at| member.interval.contains(at))
                && (!only_vouched || member.container.kind.is_vouched_for())
        };
        self.living.find(wanted).or_else(|| self.dead.find(wanted))
    }
}

impl<'a> Iterator for Containers<'a> {
    type Item = &'a Container;

    fn next(&mut self) -> Option<&'a Container> {
        loop {
            let member = self.next_member()?;
            if !member.is_excluded {
                return Some(&member.container);
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Member {
    interval: Interval,
    container: Arc<Container>,
    is_excluded: bool,
}

impl Keyed for Member {
    fn key(&self) -> u64 {
        self.container.instance
    }
}
