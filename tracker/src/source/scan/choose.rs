//! Which process of a mount namespace is its init: pure.

use std::collections::HashMap;

use tracker_common::life;
use tracker_common::record::TaskFacts;

/// One task per mount namespace, its init, in the order of their births.
///
/// That is the process that the probes saw the namespace being born on, if they did and it lives; else the namespace's
/// process number 1; else its oldest process. A host process that joined later (`nsenter`) may be older than the
/// container: it is chosen only where nothing else tells. Threads of the kernel's own are nobody's container, though one
/// of them (`kdevtmpfs`) has a mount namespace of its own on every machine.
pub(super) fn inits(tasks: Vec<TaskFacts>, known: impl Fn(u64) -> Option<(u32, u64)>) -> Vec<TaskFacts> {
    let mut groups: HashMap<u64, Vec<TaskFacts>> = HashMap::new();
    for task in tasks.into_iter().filter(|task| task.flags & TaskFacts::KERNEL_THREAD == 0) {
        groups.entry(life::key(&task)).or_default().push(task);
    }
    let mut inits: Vec<_> = groups.iter().filter_map(|(key, tasks)| init(tasks, known(*key))).collect();
    inits.sort_by_key(|task| (task.start_ns, task.tgid));
    inits
}

fn init(tasks: &[TaskFacts], known: Option<(u32, u64)>) -> Option<TaskFacts> {
    // Threads of one process rank by number, so that one process has one answer.
    let order = |task: &&TaskFacts| (task.pid_in_ns != 1, task.start_ns, task.tgid, task.pid);
    let born = tasks.iter().filter(|task| known == Some((task.tgid, task.start_ns))).min_by_key(order);
    // A fork in a namespace that was there before us is taken for its birth, as that of a health check. It is none where
    // the number 1 of the same processes is older.
    let is_before = |task: &&TaskFacts| {
        born.is_some_and(|born| task.pid_in_ns == 1 && task.pidns == born.pidns && task.start_ns < born.start_ns)
    };
    let before = tasks.iter().filter(is_before).min_by_key(order);
    before.or(born).or_else(|| tasks.iter().min_by_key(order)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(tgid: u32, start_ns: u64, pid_in_ns: u32, mntns_id: u64) -> TaskFacts {
        TaskFacts { tgid, pid: tgid, start_ns, pid_in_ns, mntns_id, mntns: 1, ..TaskFacts::default() }
    }

    fn check(tasks: &[TaskFacts], known: Option<(u32, u64)>, expected: &[u32]) {
        let found = inits(tasks.to_vec(), |_| known);
        assert_eq!(found.iter().map(|task| task.tgid).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn one_init_per_namespace() {
        let (joined, init, child) = (task(3, 1, 3, 5), task(10, 20, 1, 5), task(11, 30, 2, 5));
        check(&[joined, init, child, task(12, 10, 1, 6)], None, &[12, 10]);
        check(&[child, joined], None, &[3]);
        check(&[joined, init, child], Some((10, 20)), &[10]);
        check(&[joined, init, child], Some((11, 31)), &[10]);
        check(&[], None, &[]);
    }

    #[test]
    fn who_joined_a_namespace_before_a_scan_did_not_begin_it() {
        let (init, exec) = (task(10, 20, 1, 5), task(11, 30, 2, 5));
        check(&[exec, init], Some((11, 30)), &[10]);
        // The first of other processes tells nothing: neither one that is younger, nor one that came from elsewhere.
        let within = TaskFacts { pidns: 7, ..task(12, 40, 1, 5) };
        let joined = TaskFacts { pidns: 8, ..task(9, 10, 1, 5) };
        check(&[joined, within, exec], Some((11, 30)), &[11]);
    }

    #[test]
    fn threads_of_the_kernel_are_nobodys_init() {
        let kernel_thread = TaskFacts { flags: TaskFacts::KERNEL_THREAD, ..task(2, 1, 2, 5) };
        check(&[kernel_thread], None, &[]);
        check(&[kernel_thread, task(10, 20, 3, 5)], None, &[10]);
    }

    #[test]
    fn namespaces_without_unique_ids_are_told_apart_by_number() {
        let other = TaskFacts { mntns: 2, ..task(4, 2, 1, 0) };
        check(&[task(3, 1, 1, 0), other], None, &[3, 4]);
    }
}
