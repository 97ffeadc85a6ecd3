//! The pinned maps as a mirror of the plane's rows: the same numbers, fewer columns.
//!
//! A slot is filled in when its container has a row, and again when somebody vouches for it; a cgroup names the one
//! container that is in it. What has not changed is not written again: a call into the kernel takes a microsecond.

use std::collections::HashMap;

use tracker_common::plane::BpfRow;
use tracker_common::table::{CgroupSlot, Slot};

use super::image;
use super::pins::{Pinning, Pins};
use super::rows::Touched;
use crate::collection::view;
use crate::container::Kind;

/// See the module.
#[derive(Debug)]
pub(super) struct Mirror {
    pins: Pins,
    /// The host's own cgroup, which is nobody's.
    host_cgroup: u64,
    /// Whether there may be what an earlier owner wrote.
    is_inherited: bool,
    rows: HashMap<u32, Mirrored>,
    /// Rows of containers that are in a cgroup now.
    cgroups: HashMap<u64, Vec<u32>>,
}

/// What was written about a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mirrored {
    generation: u64,
    /// What its slot says, if it was filled in.
    slot: Option<(u32, bool)>,
    /// The cgroup that it is in now; 0 for none.
    cgroup: u64,
    /// Whether it is a container or a sandbox: what is neither is not named beside one.
    is_whole: bool,
}

impl Mirror {
    pub(super) fn new(pins: Pins, host_cgroup: u64) -> Self {
        let is_inherited = pins.is_inherited();
        Mirror { pins, host_cgroup, is_inherited, rows: HashMap::new(), cgroups: HashMap::new() }
    }

    pub(super) fn pinning(&self) -> Pinning {
        self.pins.pinning()
    }

    /// Whether there is what an earlier owner wrote.
    pub(super) fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    pub(super) fn heartbeat(&self, now: u64) {
        self.pins.heartbeat(crate::time::BootTime(now));
    }

    /// All rows will be written again, under numbers of their own.
    pub(super) fn begin_anew(&mut self) {
        self.rows.clear();
        self.cgroups.clear();
        self.pins.begin_anew();
        self.is_inherited = false;
    }

    /// All that lives has been written: other cgroups are those of an earlier owner's containers.
    pub(super) fn end_inheritance(&mut self) {
        if std::mem::replace(&mut self.is_inherited, false) {
            let cgroups = &self.cgroups;
            self.pins.retain_cgroups(|id| cgroups.contains_key(&id));
        }
    }

    pub(super) fn follow(&mut self, touched: &[Touched], uses: impl Fn(u32) -> u32) {
        for touched in touched {
            match touched {
                Touched::Put(number, row) => self.put(*number, row, uses(*number)),
                Touched::Freed(number) => self.free(*number),
            }
        }
    }

    fn put(&mut self, number: u32, row: &view::Row, uses: u32) {
        let value = BpfRow { uses, ..image::for_bpf(&image::of(row)) };
        // The row first: who comes by way of the slot finds it.
        self.pins.write(number, &value);
        let former = self.rows.get(&number).copied().filter(|former| former.generation == value.generation);
        let kind = row.container.kind;
        let (mntns, is_provisional) = (row.container.namespaces.mnt, !kind.is_vouched_for());
        let wanted =
            Some((mntns, is_provisional)).filter(|_| mntns != 0 && row.here.is_open() && row.excluded.is_none());
        let held = former.and_then(|former| former.slot);
        let slot = match wanted {
            Some(_) if wanted == held => held,
            Some((mntns, is_provisional)) => {
                let is_filled = self.pins.fill(mntns, value.generation, Some(number), is_provisional);
                wanted.filter(|_| is_filled)
            }
            None => None,
        };
        let is_inside = row.here.is_open() && value.cgroup != self.host_cgroup;
        let cgroup = if is_inside { value.cgroup } else { 0 };
        let is_whole = matches!(kind, Kind::Container | Kind::Sandbox);
        self.note(number, Some(Mirrored { generation: value.generation, slot, cgroup, is_whole }));
    }

    fn free(&mut self, number: u32) {
        self.pins.clear(number);
        self.note(number, None);
    }

    /// Notes what a row says, and writes what that changes about cgroups.
    fn note(&mut self, number: u32, row: Option<Mirrored>) {
        let former = match row {
            Some(row) => self.rows.insert(number, row),
            None => self.rows.remove(&number),
        };
        if former == row {
            return;
        }
        let (before, after) = (former.map_or(0, |row| row.cgroup), row.map_or(0, |row| row.cgroup));
        if before != after && before != 0 {
            self.cgroups.entry(before).or_default().retain(|inside| *inside != number);
            self.tell(before);
        }
        if after != 0 {
            if before != after {
                self.cgroups.entry(after).or_default().push(number);
            }
            self.tell(after);
        }
    }

    fn tell(&mut self, cgroup: u64) {
        let inside = self.cgroups.get(&cgroup).map_or(&[][..], Vec::as_slice);
        match named(inside.iter().filter_map(|number| Some((*number, *self.rows.get(number)?)))) {
            Some(slot) => self.pins.set_cgroup(cgroup, slot),
            None => {
                self.cgroups.remove(&cgroup);
                self.pins.remove_cgroup(cgroup);
            }
        }
    }
}

/// What is said of a cgroup that these rows are in.
fn named(inside: impl Iterator<Item = (u32, Mirrored)> + Clone) -> Option<CgroupSlot> {
    let has_whole = inside.clone().any(|(_, row)| row.is_whole);
    let mut candidates = inside.filter(|(_, row)| row.is_whole || !has_whole);
    let (number, row) = candidates.next()?;
    Some(match candidates.next() {
        None => CgroupSlot { generation: row.generation, row: number, flags: 0 },
        Some(_) => CgroupSlot { generation: 0, row: Slot::NO_ROW, flags: CgroupSlot::SHARED },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_names_the_one_container_in_it_and_never_one_of_several() {
        let row = |number, is_whole| (number, Mirrored { generation: 9, slot: None, cgroup: 1, is_whole });
        let of = |rows: &[(u32, Mirrored)]| named(rows.iter().copied());
        let one = |number| Some(CgroupSlot { generation: 9, row: number, flags: 0 });
        let several = Some(CgroupSlot { generation: 0, row: Slot::NO_ROW, flags: CgroupSlot::SHARED });
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[row(3, false)]), one(3));
        assert_eq!(of(&[row(3, false), row(4, true), row(5, false)]), one(4));
        assert_eq!(of(&[row(3, true), row(4, true)]), several);
        assert_eq!(of(&[row(3, false), row(4, false)]), several);
    }
}
