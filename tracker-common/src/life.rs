//! What the probes decide once a task has been read: is this a birth, a first execution, an end, and may it wake user
//! space. Plain functions over [`TaskFacts`] and [`Tables`], compiled into the probes and tested without a kernel.
//!
//! ```text
//!            forked, or executed           first exec, init's first exec          init's last thread ends
//!  unknown ─────────────────────▶ known ────────────────────────────────▶ known ──────────────────────▶ unknown
//!            Report: Fork/Exec+BORN        Report: Exec                           Report: Exit
//! ```
//!
//! "Init" is the process that a namespace's birth was seen on. Comparing a child's namespace with its parent's would
//! miss runc's containers (its child unshares and then forks, so both have the new one); what counts is that the
//! namespace is not the host's and not known. Two processors may decide about one namespace at the same time: inserting
//! and removing its key are the only decisions, and each happens once.

use crate::record::{ProcessRecord, TaskFacts};
use crate::table::{Known, Loss, Slot};

/// What a record is to say beside the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// [`ProcessRecord::BORN`] and [`ProcessRecord::BY_INIT`].
    pub flags: u32,
    /// When the namespace's birth was seen.
    pub born: u64,
    /// Whether user space is woken for it.
    pub wake: bool,
}

/// How an attempt to insert a key ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It was not there: the caller is the one who saw it first.
    New,
    /// It was there.
    Known,
    /// There is no room.
    Full,
}

/// The tables and limits, as the probes see them.
pub trait Tables {
    /// What is known under a key.
    fn known(&self, key: u64) -> Option<Known>;
    /// Inserts a key unless it is there.
    fn insert(&self, key: u64, known: &Known) -> Inserted;
    /// Counts an execution under a key; returns the count before, or `None` when the key is gone.
    fn count_exec(&self, key: u64) -> Option<u64>;
    /// Notes that the init process has executed.
    fn init_executed(&self, key: u64);
    /// Removes a key; whether it was there.
    fn remove(&self, key: u64) -> bool;
    /// The slot of a mount namespace.
    fn slot(&self, mntns: u32) -> Option<Slot>;
    /// Writes the slot of a mount namespace, whatever it held; whether there was room.
    fn set_slot(&self, mntns: u32, slot: &Slot) -> bool;
    /// Flags the slot of a mount namespace as ended, if it is still this generation's.
    fn end_slot(&self, mntns: u32, generation: u64);
    /// Counts a loss.
    fn lost(&self, loss: Loss);
    /// The initial user namespace.
    fn host_userns(&self) -> u32;
    /// Takes one of the places for births outside the initial user namespace; whether there was one.
    fn take_foreign(&self) -> bool;
    /// Gives such a place back.
    fn give_foreign(&self);
    /// Whether a process outside the initial user namespace may wake user space now.
    fn may_foreign_wake(&self, now: u64) -> bool;
}

/// The key of a task's mount namespace: its never-reused id, else its inode number.
#[inline(always)]
pub fn key(task: &TaskFacts) -> u64 {
    if task.mntns_id != 0 { task.mntns_id } else { task.mntns as u64 }
}

/// A process was forked, and is in a mount namespace that is not the host's.
#[inline(always)]
pub fn forked<T: Tables>(tables: &T, task: &TaskFacts, now: u64) -> Option<Report> {
    // Every process of every container comes by here: one look-up, and away.
    if tables.known(key(task)).is_some() {
        return None;
    }
    if !learn(tables, task, now, 0, 0) {
        return None;
    }
    let flags = ProcessRecord::BORN | ProcessRecord::BY_INIT;
    Some(Report { flags, born: now, wake: may_wake(tables, task, now) })
}

/// A process executed, and is in a mount namespace that is not the host's.
#[inline(always)]
pub fn executed<T: Tables>(tables: &T, task: &TaskFacts, now: u64) -> Option<Report> {
    let key = key(task);
    let Some(known) = tables.known(key) else {
        // `unshare --mount` without a fork: its namespace shows itself only now.
        if !learn(tables, task, now, 1, Known::INIT_EXECUTED) {
            return None;
        }
        let flags = ProcessRecord::BORN | ProcessRecord::BY_INIT;
        return Some(Report { flags, born: now, wake: may_wake(tables, task, now) });
    };
    let by_init = known.init_tgid == task.tgid && known.init_start == task.start_ns;
    let first_of_init = by_init && known.init_executed == 0;
    if first_of_init {
        tables.init_executed(key);
    }
    let first = known.execs == 0 && tables.count_exec(key) == Some(0);
    if !first && !first_of_init {
        return None;
    }
    let flags = if by_init { ProcessRecord::BY_INIT } else { 0 };
    Some(Report { flags, born: known.born, wake: may_wake(tables, task, now) })
}

/// The last thread of a process is ending, and is in a mount namespace that is not the host's.
#[inline(always)]
pub fn ended<T: Tables>(tables: &T, task: &TaskFacts, now: u64) -> Option<Report> {
    let key = key(task);
    let known = tables.known(key)?;
    if known.init_tgid != task.tgid || known.init_start != task.start_ns {
        return None;
    }
    // Two last threads may each believe to be the last: the one that removes the key is.
    if !tables.remove(key) {
        return None;
    }
    if known.flags & Known::FOREIGN != 0 {
        tables.give_foreign();
    }
    tables.end_slot(known.mntns, generation(task, known.born));
    Some(Report { flags: ProcessRecord::BY_INIT, born: known.born, wake: may_wake(tables, task, now) })
}

/// Enters a namespace that was not known; whether the caller is the one who saw it first.
#[inline(always)]
fn learn<T: Tables>(tables: &T, task: &TaskFacts, now: u64, execs: u64, init_executed: u32) -> bool {
    // Anybody may make user namespaces, and mount namespaces in them: they never use up the room of the others.
    let foreign = task.userns != tables.host_userns();
    if foreign && !tables.take_foreign() {
        tables.lost(Loss::ForeignShare);
        return false;
    }
    let flags = if foreign { Known::FOREIGN } else { 0 };
    let (init_tgid, init_start, mntns) = (task.tgid, task.start_ns, task.mntns);
    let known = Known { born: now, init_start, execs, init_tgid, mntns, init_executed, flags };
    let inserted = tables.insert(key(task), &known);
    if inserted != Inserted::New {
        if foreign {
            tables.give_foreign();
        }
        if inserted == Inserted::Full {
            tables.lost(Loss::KnownFull);
        }
        return false;
    }
    let generation = generation(task, now);
    // Slots outlive the tracker that made them: what a former one said about this very namespace stays true.
    if tables.slot(mntns).is_some_and(|held| held.generation == generation && held.flags & Slot::ENDED == 0) {
        return true;
    }
    let slot = Slot { generation, born: now, row: Slot::NO_ROW, flags: Slot::PROVISIONAL };
    if !tables.set_slot(mntns, &slot) {
        tables.lost(Loss::SlotsFull);
    }
    true
}

#[inline(always)]
fn generation(task: &TaskFacts, born: u64) -> u64 {
    if task.mntns_id != 0 { task.mntns_id } else { born }
}

#[inline(always)]
fn may_wake<T: Tables>(tables: &T, task: &TaskFacts, now: u64) -> bool {
    task.userns == tables.host_userns() || tables.may_foreign_wake(now)
}

#[cfg(test)]
mod tests {
    use core::cell::{Cell, RefCell};
    use std::collections::HashMap;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const HOST_USERNS: u32 = 0xEFFF_FFFD;

    /// The maps, as hash maps; `room` bounds the table of known namespaces.
    struct Maps {
        known: RefCell<HashMap<u64, Known>>,
        slots: RefCell<HashMap<u32, Slot>>,
        lost: RefCell<Vec<Loss>>,
        room: usize,
        foreign_left: Cell<u32>,
        last_wake: Cell<u64>,
    }

    impl Maps {
        fn new() -> Self {
            Self {
                known: RefCell::default(),
                slots: RefCell::default(),
                lost: RefCell::default(),
                room: 8,
                foreign_left: Cell::new(2),
                last_wake: Cell::new(0),
            }
        }
    }

    impl Tables for Maps {
        fn known(&self, key: u64) -> Option<Known> {
            self.known.borrow().get(&key).copied()
        }
        fn insert(&self, key: u64, known: &Known) -> Inserted {
            let mut table = self.known.borrow_mut();
            if table.contains_key(&key) {
                Inserted::Known
            } else if table.len() == self.room {
                Inserted::Full
            } else {
                table.insert(key, *known);
                Inserted::New
            }
        }
        fn count_exec(&self, key: u64) -> Option<u64> {
            let mut table = self.known.borrow_mut();
            let known = table.get_mut(&key)?;
            known.execs += 1;
            Some(known.execs - 1)
        }
        fn init_executed(&self, key: u64) {
            if let Some(known) = self.known.borrow_mut().get_mut(&key) {
                known.init_executed = Known::INIT_EXECUTED;
            }
        }
        fn remove(&self, key: u64) -> bool {
            self.known.borrow_mut().remove(&key).is_some()
        }
        fn slot(&self, mntns: u32) -> Option<Slot> {
            self.slots.borrow().get(&mntns).copied()
        }
        fn set_slot(&self, mntns: u32, slot: &Slot) -> bool {
            self.slots.borrow_mut().insert(mntns, *slot);
            true
        }
        fn end_slot(&self, mntns: u32, generation: u64) {
            if let Some(slot) = self.slots.borrow_mut().get_mut(&mntns).filter(|slot| slot.generation == generation) {
                slot.flags |= Slot::ENDED;
            }
        }
        fn lost(&self, loss: Loss) {
            self.lost.borrow_mut().push(loss);
        }
        fn host_userns(&self) -> u32 {
            HOST_USERNS
        }
        fn take_foreign(&self) -> bool {
            let left = self.foreign_left.get();
            self.foreign_left.set(left.saturating_sub(1));
            left > 0
        }
        fn give_foreign(&self) {
            self.foreign_left.set(self.foreign_left.get() + 1);
        }
        fn may_foreign_wake(&self, now: u64) -> bool {
            let due = now >= self.last_wake.get() + 20;
            if due {
                self.last_wake.set(now);
            }
            due
        }
    }

    fn task(tgid: u32, mntns: u32, mntns_id: u64) -> TaskFacts {
        let start_ns = u64::from(tgid) * 1000;
        TaskFacts { tgid, pid: tgid, start_ns, mntns, mntns_id, userns: HOST_USERNS, ..TaskFacts::default() }
    }

    const BORN: u32 = ProcessRecord::BORN | ProcessRecord::BY_INIT;

    #[test]
    fn a_container_is_born_once_executes_once_and_ends_once() {
        let maps = Maps::new();
        let (init, worker) = (task(7, 100, 5), task(8, 100, 5));
        let report = |flags, born| Some(Report { flags, born, wake: true });
        assert_eq!(forked(&maps, &init, 1), report(BORN, 1));
        assert_eq!(forked(&maps, &worker, 2), None);
        assert_eq!(executed(&maps, &init, 3), report(ProcessRecord::BY_INIT, 1));
        assert_eq!(executed(&maps, &init, 4), None);
        assert_eq!(executed(&maps, &worker, 5), None);
        assert_eq!(ended(&maps, &worker, 6), None);
        assert_eq!(ended(&maps, &init, 7), report(ProcessRecord::BY_INIT, 1));
        assert_eq!(ended(&maps, &init, 8), None);
        assert_eq!(maps.slots.borrow()[&100].flags, Slot::PROVISIONAL | Slot::ENDED);
    }

    #[test]
    fn an_exec_without_a_fork_is_a_birth_and_the_first_exec() {
        let maps = Maps::new();
        assert_eq!(executed(&maps, &task(7, 100, 5), 1), Some(Report { flags: BORN, born: 1, wake: true }));
        assert_eq!(executed(&maps, &task(8, 100, 5), 2), None);
    }

    #[test]
    fn the_first_exec_and_the_init_s_first_exec_are_two_when_somebody_else_is_faster() {
        let maps = Maps::new();
        forked(&maps, &task(7, 100, 5), 1);
        assert_eq!(executed(&maps, &task(8, 100, 5), 2).map(|report| report.flags), Some(0));
        assert_eq!(executed(&maps, &task(7, 100, 5), 3).map(|report| report.flags), Some(ProcessRecord::BY_INIT));
    }

    #[test]
    fn a_reused_inode_number_is_a_new_container() {
        let maps = Maps::new();
        forked(&maps, &task(7, 100, 5), 1);
        assert!(forked(&maps, &task(9, 100, 6), 2).is_some());
        assert_eq!(maps.slots.borrow()[&100].generation, 6);
        // The end of the former holder leaves the new holder's slot alone.
        assert!(ended(&maps, &task(7, 100, 5), 3).is_some());
        assert_eq!(maps.slots.borrow()[&100].flags, Slot::PROVISIONAL);
    }

    #[test]
    fn a_slot_from_before_keeps_its_row_and_that_of_a_former_holder_does_not() {
        let maps = Maps::new();
        let held = Slot { generation: 5, born: 1, row: 3, flags: 0 };
        maps.slots.borrow_mut().insert(100, held);
        assert!(forked(&maps, &task(7, 100, 5), 11).is_some());
        assert_eq!(maps.slots.borrow()[&100], held);
        assert!(forked(&maps, &task(8, 100, 6), 12).is_some());
        let fresh = Slot { generation: 6, born: 12, row: Slot::NO_ROW, flags: Slot::PROVISIONAL };
        assert_eq!(maps.slots.borrow()[&100], fresh);
    }

    #[test]
    fn without_unique_ids_the_inode_number_is_the_key_and_the_birth_the_generation() {
        let maps = Maps::new();
        assert!(forked(&maps, &task(7, 100, 0), 11).is_some());
        assert_eq!(maps.slots.borrow()[&100].generation, 11);
        assert!(ended(&maps, &task(7, 100, 0), 12).is_some());
        assert!(forked(&maps, &task(9, 100, 0), 13).is_some());
    }

    #[test]
    fn a_recycled_pid_does_not_end_the_container() {
        let maps = Maps::new();
        forked(&maps, &task(7, 100, 5), 1);
        assert_eq!(ended(&maps, &TaskFacts { start_ns: 1, ..task(7, 100, 5) }, 2), None);
    }

    #[test]
    fn a_full_table_is_a_counted_loss() {
        let maps = Maps { room: 1, ..Maps::new() };
        forked(&maps, &task(7, 100, 5), 1);
        assert_eq!(forked(&maps, &task(8, 101, 6), 2), None);
        assert_eq!(*maps.lost.borrow(), [Loss::KnownFull]);
    }

    #[test]
    fn foreign_births_use_up_their_own_share_alone_and_give_it_back() {
        let maps = Maps::new();
        let foreign = |tgid| TaskFacts { userns: 77, ..task(tgid, tgid, tgid.into()) };
        assert!(forked(&maps, &foreign(1), 100).is_some_and(|report| report.wake));
        assert!(forked(&maps, &foreign(2), 101).is_some_and(|report| !report.wake), "woken twice within the limit");
        assert_eq!(forked(&maps, &foreign(3), 102), None);
        assert_eq!(*maps.lost.borrow(), [Loss::ForeignShare]);
        assert!(forked(&maps, &task(4, 4, 4), 103).is_some_and(|report| report.wake));
        assert!(ended(&maps, &foreign(1), 104).is_some());
        assert!(forked(&maps, &foreign(3), 130).is_some());
    }

    proptest! {
        /// Whatever happens in whatever order: between two births of a key there is an end, and no end without a birth.
        #[test]
        fn births_and_ends_alternate(events in proptest::collection::vec((0_u8..3, 1_u32..5, 1_u64..4), 0..200)) {
            let maps = Maps { foreign_left: Cell::new(100), ..Maps::new() };
            let mut alive = HashMap::<u64, u32>::new();
            for (now, (event, tgid, id)) in events.into_iter().enumerate() {
                let task = task(tgid, 100 + id as u32, id);
                let report = match event {
                    0 => forked(&maps, &task, now as u64),
                    1 => executed(&maps, &task, now as u64),
                    _ => ended(&maps, &task, now as u64),
                };
                match report {
                    Some(report) if event == 2 => {
                        prop_assert_eq!(alive.remove(&id), Some(tgid));
                        prop_assert_eq!(report.flags, ProcessRecord::BY_INIT);
                    }
                    Some(report) if report.flags & ProcessRecord::BORN != 0 => {
                        prop_assert_eq!(alive.insert(id, tgid), None);
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(maps.known.borrow().len(), alive.len());
        }
    }
}
