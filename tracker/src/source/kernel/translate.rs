//! Records into facts: pure.

use tracker_common::record::{Kind, ProcessRecord, Record, TaskFacts};

use crate::container::{Exit, Namespaces, TaskId};
use crate::fact::{Birth, End, Execution, Fact, Source, What};
use crate::time::BootTime;

/// What the kernel says about a task, as a fact's values. `v2` tells whether cgroup ids are of the v2 hierarchy.
pub(crate) fn birth(task: &TaskFacts, born: u64, executed: bool, v2: bool) -> Birth {
    Birth {
        task: task_id(task),
        parent: parent_id(task),
        outer: None,
        namespaces: Namespaces {
            mnt: task.mntns,
            net: task.netns,
            pid: task.pidns,
            cgroup: task.cgroupns,
            user: task.userns,
        },
        generation: generation(task),
        cgroup_id: (v2 && task.cgroup_id != 0).then_some(task.cgroup_id),
        uid: task.uid,
        born_at: BootTime(born),
        executed,
    }
}

/// A process's identity.
pub(crate) fn task_id(task: &TaskFacts) -> TaskId {
    TaskId { pid: task.tgid, start_ticks: task.start_ns / TaskId::TICK_NS }
}

/// Its parent's identity. Process 0 is the kernel itself, and started nothing that could be looked up.
fn parent_id(task: &TaskFacts) -> Option<TaskId> {
    let start_ticks = task.parent_start_ns / TaskId::TICK_NS;
    (task.parent_tgid != 0).then_some(TaskId { pid: task.parent_tgid, start_ticks })
}

fn generation(task: &TaskFacts) -> Option<u64> {
    (task.mntns_id != 0).then_some(task.mntns_id)
}

/// Appends the facts of one record; a cgroup whose path had to be cut states nothing.
pub(crate) fn translate(record: &Record<'_>, v2: bool, facts: &mut Vec<Fact>) {
    let mut push = |at: u64, what: What| facts.push(Fact { source: Source::Kernel, at: BootTime(at), what });
    match *record {
        Record::Process(kind, record) => {
            let by_init = record.flags & ProcessRecord::BY_INIT != 0;
            if record.flags & ProcessRecord::BORN != 0 {
                push(record.time, What::Born(birth(&record.task, record.born, false, v2)));
            }
            if kind == Kind::Exec {
                let task = birth(&record.task, record.born, by_init, v2);
                push(record.time, What::Executed(Execution { task, by_init }));
            }
            if kind == Kind::Exit {
                let (task, mntns) = (task_id(&record.task), record.task.mntns);
                let generation = generation(&record.task);
                push(record.time, What::Ended(End { task, mntns, generation, exit: exit(&record) }));
            }
        }
        Record::Cgroup { kind: Kind::CgroupMade, time, id, path, truncated: false, .. } => {
            push(time, What::CgroupMade { id, path: String::from_utf8_lossy(path).into() });
        }
        Record::Cgroup { kind: Kind::CgroupEmptied | Kind::CgroupRemoved, time, id, .. } => {
            push(time, What::CgroupEmptied { id });
        }
        Record::Cgroup { .. } => {}
    }
}

fn exit(record: &ProcessRecord) -> Exit {
    let signal = record.status & 0x7f;
    let code = if signal == 0 { record.status >> 8 & 0xff } else { 128 + signal };
    // The killer marks its victims when it picks them; one that ended by itself first was not killed by it.
    let oom = record.flags & ProcessRecord::OOM != 0 && signal == 9;
    let oom_known = record.flags & ProcessRecord::OOM_KNOWN != 0;
    Exit { code, signal: (signal != 0).then_some(signal), oom: oom_known.then_some(oom) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(flags: u32, status: u32) -> ProcessRecord {
        let task = TaskFacts { tgid: 7, start_ns: 35_000_000, mntns: 100, mntns_id: 5, ..TaskFacts::default() };
        ProcessRecord { kind: 0, flags, time: 20, born: 10, task, status, reserved: 0 }
    }

    fn facts(record: Record<'_>) -> Vec<What> {
        let mut facts = Vec::new();
        translate(&record, true, &mut facts);
        facts.into_iter().map(|fact| fact.what).collect()
    }

    #[test]
    fn an_exec_that_is_a_birth_states_both() {
        let record = record(ProcessRecord::BORN | ProcessRecord::BY_INIT, 0);
        let facts = facts(Record::Process(Kind::Exec, record));
        let [What::Born(born), What::Executed(executed)] = &facts[..] else { panic!("{facts:?}") };
        assert_eq!((born.task, born.executed), (TaskId { pid: 7, start_ticks: 3 }, false));
        assert!(executed.by_init && executed.task.executed);
        assert_eq!(executed.task.born_at, BootTime(10));
    }

    #[test]
    fn exits_carry_code_signal_and_whether_it_was_the_oom_killer() {
        let check = |flags, status, code, signal, oom| {
            let facts = facts(Record::Process(Kind::Exit, record(flags, status)));
            let [What::Ended(end)] = &facts[..] else { panic!("{facts:?}") };
            assert_eq!(end.exit, Exit { code, signal, oom });
        };
        let (known, oom) = (ProcessRecord::OOM_KNOWN, ProcessRecord::OOM);
        check(known, 7 << 8, 7, None, Some(false));
        check(known, 9, 137, Some(9), Some(false));
        check(known | oom, 9, 137, Some(9), Some(true));
        check(known | oom, 0, 0, None, Some(false));
        check(0, 11 | 0x80, 139, Some(11), None);
    }

    #[test]
    fn a_cut_cgroup_path_states_nothing() {
        let cgroup =
            |truncated| Record::Cgroup { kind: Kind::CgroupMade, time: 1, id: 2, hierarchy: 0, path: b"/a", truncated };
        assert_eq!(facts(cgroup(false)), [What::CgroupMade { id: 2, path: "/a".into() }]);
        assert_eq!(facts(cgroup(true)), []);
    }
}
