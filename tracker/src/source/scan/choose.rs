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
    let mut groups: HashMap<u64, (Option<(u32, u64)>, TaskFacts)> = HashMap::new();
    for task in tasks.into_iter().filter(|task| task.flags & TaskFacts::KERNEL_THREAD == 0) {
        let key = life::key(&task);
        match groups.get_mut(&key) {
            None => {
                groups.insert(key, (known(key), task));
            }
            Some((known, best)) => {
                if rank(&task, *known) < rank(best, *known) {
                    *best = task;
                }
            }
        }
    }
    let mut inits: Vec<_> = groups.into_values().map(|(_, task)| task).collect();
    inits.sort_by_key(|task| (task.start_ns, task.tgid));
    inits
}

/// The smallest is the init. Threads of one process rank by number, so that one process has one answer.
fn rank(task: &TaskFacts, known: Option<(u32, u64)>) -> (bool, bool, u64, u32, u32) {
    let is_known = known == Some((task.tgid, task.start_ns));
    (!is_known, task.pid_in_ns != 1, task.start_ns, task.tgid, task.pid)
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
        check(&[joined, init, child], Some((11, 30)), &[11]);
        check(&[joined, init, child], Some((11, 31)), &[10]);
        check(&[], None, &[]);
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
