//! What the tracker's process itself uses, as the kernel tells in `/proc/self`.

use procfs::process::Process;
use procfs::{WithCurrentSystemInfo, ticks_per_second};

use super::text::Families;

/// Adds what can be read; nothing where `/proc` is not to be read.
pub(super) fn add(families: &mut Families) {
    let Ok(me) = Process::myself() else { return };
    if let Ok(stat) = me.stat() {
        let seconds = (stat.utime + stat.stime) as f64 / ticks_per_second() as f64;
        families.gauge("process_cpu_seconds", "Processor time used, user and system", seconds);
        let resident = stat.rss_bytes().get();
        families.gauge("process_resident_memory_bytes", "Memory in use, shared pages included", resident as f64);
        families.gauge("process_threads", "Threads", stat.num_threads as f64);
    }
    if let Ok(rollup) = me.smaps_rollup() {
        let pss = rollup.memory_map_rollup.iter().filter_map(|map| map.extension.map.get("Pss")).sum::<u64>();
        families.gauge("process_proportional_memory_bytes", "Memory in use, shared pages by their share", pss as f64);
    }
    if let Ok(count) = me.fd_count() {
        families.gauge("process_open_fds", "Open file descriptors", count as f64);
    }
}
