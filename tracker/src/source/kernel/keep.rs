//! What the probes leave for the next tracker, and what they find of the one before.
//!
//! Their table of slots is the pinned one that everybody looks up in. Where they are to go on without a tracker
//! (`[plane] keep`), links, records and counters are pinned as well, and a restart is:
//!
//! ```text
//!  take over own/{records,known,shared} ─▶ attach the new programs ─▶ pin their links over the old ones' ─▶ drain ─▶ scan
//! ```
//!
//! For a moment both generations of programs run, with the same tables: a key of [`Known`] is inserted once and removed
//! once, so that births and ends stay single; cgroup records come twice, and state the same twice.
//!
//! Where the tables cannot be taken over (nobody kept them, they were abandoned, another version or size), there is a gap:
//! what was born and gone in it is not known. Up to Linux 6.17 ids of mount namespaces tell how many there were: they are
//! handed out one by one. Later ones come in batches for each processor, shared with all other kinds of namespaces: then
//! only the gap's length is known.

use std::mem::offset_of;
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use aya::programs::BtfTracePoint;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::{Ebpf, EbpfLoader};
use tracker_common::layout::{ABSENT, Layout};
use tracker_common::table::{Known, Loss, Owner, Shared};

use super::{Config, KnownTable, PROGRAMS, Stats};
use crate::plane::pins::{LINKS, Mapping, OWN, Pinning, Place, Shape};

/// Names in the object and of pins.
const MAPS: [(&str, &str); 3] = [("RECORDS", "own/records"), ("KNOWN", "own/known"), ("SHARED", "own/shared")];

/// Where the probes' maps are pinned while they are loaded.
pub(super) struct Keep<'a> {
    pinning: &'a Pinning,
    places: Vec<(&'static str, Place)>,
    /// Whether the former probes' tables are used on.
    is_taken_over: bool,
    /// Records that the former probes left in a ring buffer of their own.
    leftover: Option<RingBuf<MapData>>,
}

/// What runs on from the one before to the next.
pub(super) struct Heritage {
    owner: Mapping<Owner>,
    /// What the former owner had taken of the counters that are used on.
    taken: Shared,
    pub(super) leftover: Option<RingBuf<MapData>>,
    /// Nobody watched before this start, and nothing was counted yet.
    gap: Option<Gap>,
    /// How long nobody watched, as long as it is told.
    pub(super) unwatched: Option<Duration>,
    newest: u64,
    /// Slots that are older were made for another owner.
    pub(super) since: u64,
    // They are attached for as long as they are pinned or this lives.
    _links: Vec<PinnedLink>,
    // Holds the directory's lock.
    _pinning: Pinning,
}

/// A time in which nobody watched.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Gap {
    /// Whether ids of mount namespaces are handed out one by one.
    is_countable: bool,
}

impl<'a> Keep<'a> {
    /// Decides what is taken over.
    pub(super) fn prepare(pinning: &'a Pinning, config: &Config) -> Result<Keep<'a>, KeepError> {
        let directory = &pinning.directory;
        let shapes = [
            Shape::ring(config.ring_bytes()),
            Shape::hash::<u64, Known>(config.max_namespaces),
            Shape::array::<Shared>(1, 0),
        ];
        let links_pinned = PROGRAMS.iter().all(|(program, _)| directory.pin(&link(program)).exists());
        let maps_pinned = MAPS.iter().zip(&shapes).all(|((_, name), shape)| shape.is_pinned(directory, name));
        let is_taken_over = pinning.was_kept() && links_pinned && maps_pinned;
        let leftover = (pinning.former.is_some() && !is_taken_over).then(|| leftover(pinning)).flatten();
        let mut places = Vec::new();
        if is_taken_over || pinning.keep_ns != 0 {
            for name in [OWN, LINKS] {
                directory.make(name).map_err(|error| KeepError("make a directory of pins", error.into()))?;
            }
            places.extend(MAPS.map(|(map, name)| (map, Place::of(directory, name, is_taken_over))));
        }
        Ok(Keep { pinning, places, is_taken_over, leftover })
    }

    /// Lets the loader use what is taken over, and pin what is new.
    pub(super) fn set_paths(&self, loader: &mut EbpfLoader<'_>) {
        let directory = &self.pinning.directory;
        loader.map_pin_path("OWNER", directory.pin("owner"));
        loader.map_pin_path("MOUNT_NAMESPACES", directory.pin("mount_namespaces"));
        for (map, place) in &self.places {
            loader.map_pin_path(map, place.path.clone());
        }
    }

    /// The new programs are attached: lets the old ones go. What cannot be pinned ends with this process.
    pub(super) fn settle(
        self,
        ebpf: &mut Ebpf,
        ids: Vec<(&'static str, BtfTracePointLinkId)>,
        layout: &Layout,
    ) -> Result<Heritage, KeepError> {
        let Keep { pinning, places, is_taken_over, leftover } = self;
        let directory = &pinning.directory;
        let mut links = Vec::new();
        if pinning.keep_ns != 0 {
            for (program, id) in ids {
                links.push(pin_link(ebpf, program, id, directory.new_pin(&link(program)))?);
            }
            for (program, _) in PROGRAMS {
                directory.replace(&link(program)).map_err(|error| KeepError("put into place a link", error.into()))?;
            }
            for (_, place) in &places {
                place.settle(directory).map_err(|error| KeepError("put into place a map", error.into()))?;
            }
        } else {
            for name in [LINKS, OWN] {
                directory.remove(name).map_err(|error| KeepError("remove the pins of former probes", error.into()))?;
            }
        }
        let Some(Map::Array(owner)) = ebpf.map("OWNER") else { unreachable!("the object has this array") };
        let owner =
            Mapping::<Owner>::new(owner.fd(), 1).map_err(|error| KeepError("map the array `owner`", error.into()))?;
        let former = pinning.former.unwrap_or_default();
        let taken = if is_taken_over { taken_by(&former) } else { Shared::default() };
        let unwatched_ns = match pinning.former {
            Some(former) if !is_taken_over => {
                let until = former.heartbeat.saturating_add(if leftover.is_some() { former.keep_ns } else { 0 });
                Some(pinning.since.saturating_sub(until))
            }
            _ => None,
        };
        let is_countable = layout.mnt_namespace_seq != ABSENT && layout.ns_common_ns_id == ABSENT;
        Ok(Heritage {
            owner,
            taken,
            leftover,
            gap: unwatched_ns.map(|_| Gap { is_countable }),
            unwatched: unwatched_ns.map(Duration::from_nanos),
            newest: former.newest_mntns,
            since: pinning.since,
            _links: links,
            _pinning: pinning.clone(),
        })
    }
}

impl Heritage {
    /// The counters, without what a former owner had taken of them already. What was lost while nobody ran stays in.
    pub(super) fn ours(&self, shared: &Shared) -> Shared {
        let mut ours = *shared;
        ours.process_records = shared.process_records.wrapping_sub(self.taken.process_records);
        ours.cgroup_records = shared.cgroup_records.wrapping_sub(self.taken.cgroup_records);
        for (ours, taken) in ours.lost.iter_mut().zip(self.taken.lost) {
            *ours = ours.wrapping_sub(taken);
        }
        ours
    }

    /// Notes for the next owner what we have taken.
    pub(super) fn note_taken(&self, shared: &Shared) {
        self.owner.store(0, offset_of!(Owner, taken_process_records), shared.process_records);
        self.owner.store(0, offset_of!(Owner, taken_cgroup_records), shared.cgroup_records);
        for cause in Loss::ALL {
            let place = offset_of!(Owner, taken_lost) + cause as usize * size_of::<u64>();
            self.owner.store(0, place, shared.lost[cause as usize]);
        }
    }

    /// A mount ns was born. The first one after a gap tells how many there were in it: those between the last that was
    /// told of before and this one, without those that are known now. `is_leftover`: it was born before the gap.
    pub(super) fn note_birth(&mut self, id: u64, is_leftover: bool, known: &KnownTable, stats: &Stats) {
        if let Some(gap) = self.gap.take_if(|_| !is_leftover)
            && gap.is_countable
            && self.newest != 0
        {
            let between = id.saturating_sub(self.newest + 1);
            let known = known.keys().filter(|key| (self.newest + 1..id).contains(key)).count() as u64;
            let unseen = between.saturating_sub(known);
            stats.unseen.fetch_add(unseen, std::sync::atomic::Ordering::Relaxed);
            if unseen > 0 {
                tracing::warn!(unseen, "mount namespaces came and went while nobody watched: they stay unknown");
            }
        }
        if id > self.newest {
            self.newest = id;
            self.owner.store(0, offset_of!(Owner, newest_mntns), id);
        }
    }
}

/// Why the probes do not outlive this process.
#[derive(Debug, thiserror::Error)]
#[error("{0}: {1}")]
pub struct KeepError(&'static str, Box<dyn std::error::Error + Send + Sync>);

fn link(program: &str) -> String {
    format!("{LINKS}/{program}")
}

fn pin_link(ebpf: &mut Ebpf, program: &str, id: BtfTracePointLinkId, path: PathBuf) -> Result<PinnedLink, KeepError> {
    let pin = || -> Result<PinnedLink, Box<dyn std::error::Error + Send + Sync>> {
        let probe: &mut BtfTracePoint = ebpf.program_mut(program).ok_or("no such program")?.try_into()?;
        let link: FdLink = probe.take_link(id)?.into();
        Ok(link.pin(path)?)
    };
    pin().map_err(|error| KeepError("pin the link of a probe", error))
}

/// The former probes' ring buffer, with what is still in it.
fn leftover(pinning: &Pinning) -> Option<RingBuf<MapData>> {
    let map = MapData::from_pin(pinning.directory.pin("own/records")).ok()?;
    RingBuf::try_from(Map::from_map_data(map).ok()?).ok()
}

fn taken_by(owner: &Owner) -> Shared {
    Shared {
        process_records: owner.taken_process_records,
        cgroup_records: owner.taken_cgroup_records,
        lost: owner.taken_lost,
        ..Shared::default()
    }
}
