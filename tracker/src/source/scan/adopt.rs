//! What a scan finds, made known to the probes: their tables then show a container from before us, or one whose birth
//! found no room, as if its birth had been seen.

use std::collections::HashSet;

use tracker_common::life;
use tracker_common::record::TaskFacts;
use tracker_common::table::{Known, Slot};

use crate::source::kernel::tables::Room;
use crate::source::kernel::{Kernel, KernelError, KnownTable, SlotTable};

/// The probes' tables, as a scan uses them.
pub(super) struct Adoption {
    known: KnownTable,
    slots: SlotTable,
    host_userns: u32,
    /// How many namespaces from outside the initial user namespace may be known for scans to add more. The probes count
    /// those that they add themselves, so that together it is twice that at most.
    foreign_max: u64,
    corrections: u64,
}

impl Adoption {
    pub(super) fn of(kernel: &Kernel) -> Result<Self, KernelError> {
        let (known, slots) = (kernel.known()?, kernel.slots()?);
        let (host_userns, foreign_max) = (kernel.machine().host_userns, kernel.foreign_max());
        Ok(Self { known, slots, host_userns, foreign_max, corrections: 0 })
    }

    /// Namespaces that scans found and the probes did not know.
    pub(super) fn corrections(&self) -> u64 {
        self.corrections
    }

    /// What is known under a key.
    pub(super) fn known(&self, key: u64) -> Option<Known> {
        self.known.get(key)
    }

    /// The birth that the probes saw, if it is this process's.
    pub(super) fn born(&self, init: &TaskFacts) -> Option<u64> {
        let known = self.known.get(life::key(init))?;
        (known.init_start == init.start_ns && known.init_tgid == init.tgid).then_some(known.born)
    }

    /// Makes the inits of a whole scan known, each of which has a slot afterwards that it can be looked up in.
    ///
    /// Returns whether slots were taken from numbers that nobody had any more: another look is due then, for one of them
    /// may have been given away meanwhile.
    pub(super) fn adopt(&mut self, inits: &[TaskFacts]) -> bool {
        let is_known_foreigner =
            |init: &&TaskFacts| init.userns != self.host_userns && self.known.get(life::key(init)).is_some();
        let mut foreign = inits.iter().filter(is_known_foreigner).count() as u64;
        let mut reclaimed = false;
        for init in inits {
            let is_foreign = init.userns != self.host_userns;
            let born = match self.known.get(life::key(init)) {
                Some(held) if held.init_start > init.start_ns => {
                    // A fork in a namespace that was there before us was taken for its birth.
                    self.known.correct(life::key(init), Known { flags: held.flags, ..entry(init) });
                    self.corrections += 1;
                    held.born
                }
                Some(held) => held.born,
                // Anybody may make user namespaces, and mount namespaces in them: nobody else's room is theirs.
                None if is_foreign && foreign >= self.foreign_max => continue,
                None if self.known.adopt(life::key(init), entry(init)) => {
                    self.corrections += 1;
                    foreign += u64::from(is_foreign);
                    init.start_ns
                }
                // Born meanwhile, or there is no room.
                None => continue,
            };
            let generation = if init.mntns_id != 0 { init.mntns_id } else { born };
            let slot = Slot { generation, born, row: Slot::NO_ROW, flags: Slot::PROVISIONAL };
            if self.slots.adopt(init.mntns, slot) == Room::Full && !reclaimed {
                reclaimed = true;
                let alive = inits.iter().map(|init| init.mntns).collect::<HashSet<u32>>();
                self.slots.reclaim(&alive);
                self.slots.adopt(init.mntns, slot);
            }
        }
        reclaimed
    }
}

fn entry(init: &TaskFacts) -> Known {
    Known {
        born: init.start_ns,
        init_start: init.start_ns,
        execs: u64::from(init.has_executed()),
        init_tgid: init.tgid,
        mntns: init.mntns,
        init_executed: u32::from(init.has_executed()),
        flags: 0,
    }
}
