//! What each source counts about its own work.

use std::sync::atomic::Ordering;

use nix::errno::Errno;

use super::text::Families;
use super::{buckets, read};
use crate::barrier;
use crate::plane;
use crate::route;
use crate::source::{find, kernel, podman, proc, scan};
use crate::tracker::Stats;

pub(super) fn add(families: &mut Families, stats: &Stats) {
    probes(families, &stats.kernel);
    barrier(families, &stats.barrier);
    scans(families, &stats.scan);
    state_directories(families, &stats.proc);
    podman(families, &stats.podman);
    #[cfg(feature = "containerd")]
    containerd(families, &stats.containerd);
    #[cfg(feature = "cri")]
    cri(families, &stats.cri);
    #[cfg(feature = "docker")]
    docker(families, &stats.docker);
    finder(families, &stats.find);
    routes(families, &stats.route);
    plane(families, &stats.plane);
}

fn probes(families: &mut Families, stats: &kernel::Stats) {
    let hits = [("process", read(&stats.process_records)), ("cgroup", read(&stats.cgroup_records))];
    let hits = hits.map(|(record, count)| (vec![("record", record.to_owned())], count));
    families.counters("probe_records", "Records that the probes made, lost ones included", hits);
    let losses = stats.losses().map(|(cause, count)| (vec![("cause", cause.to_owned())], count));
    families.counters("probe_losses", "What the probes could not record; each is answered with an audit", losses);
    families.counter("probe_records_decoded", "Records read", read(&stats.records));
    families.counter("probe_records_malformed", "Records that could not be decoded", read(&stats.malformed));
    families.counter("probe_paths_cut", "Cgroup records whose path was cut", read(&stats.cut_paths));
    let help = "Births of processes in namespaces that a scan had found already";
    families.counter("probe_births_superseded", help, read(&stats.superseded));
    let help = "For how long nobody watched before this start: since the former tracker's last sign of life";
    families.gauge("probe_unwatched_seconds", help, read(&stats.unwatched_ms) as f64 / 1e3);
    let help = "Mount namespaces that came and went meanwhile, as far as their ids tell (up to Linux 6.17)";
    families.counter("probe_unseen_namespaces", help, read(&stats.unseen));
    families.counter("probe_wakes", "Times that the thread that reads the probes woke", read(&stats.wakes));
}

fn barrier(families: &mut Families, stats: &barrier::Stats) {
    families.counter("barrier_events", "Executions of marked binaries that were looked at", read(&stats.events));
    families.counter("barrier_nested", "Executions inside containers that were read", read(&stats.nested));
    families.counter("barrier_holds", "Held creates and starts that were given to the collection", read(&stats.holds));
    let help = "Time from the keeper's reading of an execution to the tracker's answer";
    families.histogram("barrier_hold_seconds", help, stats.hold_times.sum().as_secs_f64(), buckets(&stats.hold_times));
    families.counter("barrier_let_go", "Answers that came after the keeper had let go", read(&stats.let_go));
    let help = "Times that the kernel's queue ran over; it allowed what it dropped";
    families.counter("barrier_overflows", help, read(&stats.overflows));
    let reasons = [
        ("user", &stats.refused_user),
        ("user_namespace", &stats.refused_user_namespace),
        ("nested", &stats.refused_nested),
        ("no_thread", &stats.refused_jobs),
        ("unread", &stats.unread),
        ("argv", &stats.argv_errors),
        ("unproven", &stats.unproven),
    ];
    let reasons = reasons.map(|(reason, count)| (vec![("reason", reason.to_owned())], read(count)));
    families.counters("barrier_not_held", "Executions that were allowed without being held, by the reason", reasons);
    families.counter("barrier_itself", "Runtimes executing themselves, allowed at once", read(&stats.itself));
    families.counter("barrier_unwatched", "Runtimes whose end is not waited for: too many", read(&stats.unwatched));
    families.counter("barrier_panics", "Panics contained on the held path", read(&stats.panics));
    families.counter("barrier_learnt", "Binaries learnt from what they started", read(&stats.learnt));
    families.gauge("barrier_lost_threads", "Threads that are stuck at this moment", read(&stats.lost_threads) as f64);
    families.counter("keeper_restarts", "Keepers started after the first one", read(&stats.keeper_restarts));
}

fn scans(families: &mut Families, stats: &scan::Stats) {
    families.counter("scans", "Scans of all tasks", read(&stats.scans));
    families.counter("scans_failed", "Scans that failed", read(&stats.failed));
    let help = "Namespaces that an audit found and that the probes did not know: what was lost, repaired";
    families.counter("scan_repairs", help, read(&stats.corrections));
    families.gauge("scan_last_seconds", "How long the last scan took", read(&stats.last_micros) as f64 / 1e6);
    families.gauge("scan_last_found", "Namespaces that the last scan found", read(&stats.last_found) as f64);
}

fn state_directories(families: &mut Families, stats: &proc::Stats) {
    families.counter("proc_looks", "Births that were looked for in state directories", read(&stats.requested));
    let ends =
        [("found", &stats.found), ("unknown", &stats.unknown), ("gone", &stats.gone), ("dropped", &stats.dropped)];
    let ends = ends.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], read(count)));
    families.counters("proc_look_outcomes", "How these looks ended", ends);
    let help = "Bundles whose config.json could not be read";
    families.counter("proc_unreadable_bundles", help, read(&stats.unreadable_bundles));
    let help = "Looks that stayed behind at a file that does not answer";
    families.counter("proc_lost_looks", help, read(&stats.lost_looks));
}

#[cfg(feature = "containerd")]
fn containerd(families: &mut Families, stats: &crate::source::containerd::Stats) {
    families.counter("containerd_events", "Events received", read(&stats.events));
    families.counter("containerd_events_garbled", "Events that could not be read", read(&stats.events_garbled));
    families.counter("containerd_exec_exits", "Exits of processes executed in a container", read(&stats.exec_exits));
    let calls = [
        ("container", &stats.calls_container),
        ("image", &stats.calls_image),
        ("catalog", &stats.calls_catalog),
        ("list", &stats.calls_list),
        ("alive", &stats.calls_alive),
    ];
    let calls = calls.map(|(call, count)| (vec![("call", call.to_owned())], read(count)));
    families.counters("containerd_calls", "Calls, by what they are for", calls);
    families.counter("containerd_calls_late", "Calls without an answer in time", read(&stats.calls_late));
    families.counter("containerd_calls_failed", "Calls answered by an error", read(&stats.calls_failed));
    families.counter("containerd_lists", "Times that everything was listed", read(&stats.lists));
    families.counter("containerd_sessions_lost", "Connections that worked and then ended", read(&stats.sessions_lost));
    families.counter("containerd_labels_left_out", "Labels that were too many or too long", read(&stats.left_out));
}

#[cfg(feature = "cri")]
fn cri(families: &mut Families, stats: &crate::source::cri::Stats) {
    families.counter("cri_events", "Events received", read(&stats.events));
    families.counter("cri_hints", "Changes seen by others that made it ask", read(&stats.hints));
    let calls = [("status", &stats.calls_status), ("list", &stats.calls_list), ("alive", &stats.calls_alive)];
    let calls = calls.map(|(call, count)| (vec![("call", call.to_owned())], read(count)));
    families.counters("cri_calls", "Calls, by what they are for", calls);
    families.counter("cri_calls_late", "Calls without an answer in time", read(&stats.calls_late));
    families.counter("cri_calls_failed", "Calls answered by an error", read(&stats.calls_failed));
    let help = "Answers behind what others had seen; it was asked once more";
    families.counter("cri_behind", help, read(&stats.behind));
    families.counter("cri_lists", "Times that everything was listed", read(&stats.lists));
    families.counter("cri_sessions_lost", "Connections that worked and then ended", read(&stats.sessions_lost));
    families.counter("cri_labels_left_out", "Labels that were too many or too long", read(&stats.left_out));
}

fn podman(families: &mut Families, stats: &podman::Stats) {
    families.counter("podman_events", "Events received", read(&stats.events));
    families.counter("podman_events_garbled", "Events that could not be read", read(&stats.events_garbled));
    families.counter("podman_exec_exits", "Exits of processes executed in a container", read(&stats.exec_exits));
    let calls = [
        ("inspect", &stats.calls_inspect),
        ("pod", &stats.calls_pod),
        ("list", &stats.calls_list),
        ("alive", &stats.calls_alive),
    ];
    let calls = calls.map(|(call, count)| (vec![("call", call.to_owned())], read(count)));
    families.counters("podman_calls", "Calls, by what they are for", calls);
    families.counter("podman_calls_late", "Calls without an answer in time", read(&stats.calls_late));
    families.counter("podman_calls_failed", "Calls answered by an error", read(&stats.calls_failed));
    families.counter("podman_lists", "Times that everything was listed", read(&stats.lists));
    families.counter("podman_sessions_lost", "Services that worked and then ended", read(&stats.sessions_lost));
    families.counter("podman_labels_left_out", "Labels that were too many or too long", read(&stats.left_out));
    let help = "Looks at processes that may be containers of podman's, by its files";
    families.counter("podman_looks", help, read(&stats.looks));
    let ends = [
        ("found", &stats.found),
        ("refused", &stats.refused),
        ("dropped", &stats.looks_dropped),
        ("lost", &stats.looks_lost),
    ];
    let ends = ends.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], read(count)));
    families.counters("podman_look_outcomes", "How these looks ended", ends);
}

#[cfg(feature = "docker")]
fn docker(families: &mut Families, stats: &crate::source::docker::Stats) {
    families.counter("docker_events", "Events received", read(&stats.events));
    families.counter("docker_events_garbled", "Events that could not be read", read(&stats.events_garbled));
    let calls = [
        ("inspect", &stats.calls_inspect),
        ("image", &stats.calls_image),
        ("list", &stats.calls_list),
        ("alive", &stats.calls_alive),
    ];
    let calls = calls.map(|(call, count)| (vec![("call", call.to_owned())], read(count)));
    families.counters("docker_calls", "Calls, by what they are for", calls);
    families.counter("docker_calls_late", "Calls without an answer in time", read(&stats.calls_late));
    families.counter("docker_calls_failed", "Calls answered by an error", read(&stats.calls_failed));
    families.counter("docker_lists", "Times that everything was listed", read(&stats.lists));
    families.counter("docker_sessions_lost", "Connections that worked and then ended", read(&stats.sessions_lost));
    families.counter("docker_labels_left_out", "Labels that were too many or too long", read(&stats.left_out));
}

fn finder(families: &mut Families, stats: &find::Stats) {
    families.counter("find_looks", "Looks for runtimes' sockets", read(&stats.looks));
    families.counter("find_lost_looks", "Looks that stayed behind at a file that does not answer", read(&stats.lost));
    families.gauge("find_looks_behind", "Looks that have not come back yet", read(&stats.lost_now) as f64);
    families.gauge("find_last_seconds", "How long the last look took", read(&stats.last_micros) as f64 / 1e6);
    families.gauge("find_used", "Sockets that are used because they were found", read(&stats.used) as f64);
    families.gauge("find_refused", "Sockets that were found and are refused", read(&stats.refused) as f64);
}

fn routes(families: &mut Families, stats: &route::Stats) {
    let lookups = [("hit", stats.hits.sum()), ("miss", stats.misses.sum())];
    let lookups = lookups.map(|(result, count)| (vec![("result", result.to_owned())], count));
    families.counters("route_lookups", "Look-ups of routes: known, or asked for", lookups);
    families.counter("route_exchanges", "Requests to the kernel for routes", stats.exchanges.sum());
    families.counter("route_errors", "Look-ups that ended without an answer", read(&stats.errors));
    let errnos = stats.errnos.counts().into_iter();
    let errnos = errnos.map(|(errno, count)| (vec![("errno", format!("{:?}", Errno::from_raw(errno)))], count));
    families.counters("route_refusals", "Requests that the kernel answered by an error, by errno", errnos);
    families.counter("route_moves", "Messages that moved a net ns's generation", read(&stats.moves));
    families.counter("route_strangers", "Messages of net namespaces that nobody asked about", read(&stats.strangers));
    families.counter("route_overruns", "Times that messages about routes were lost", read(&stats.overruns));
    families.counter("route_muted", "Times that a net ns changed too often to be kept", read(&stats.muted));
    families.counter("route_entered", "Times that a net ns was entered", read(&stats.entered));
    families.gauge("route_netns_known", "Net namespaces that are listened to", read(&stats.known) as f64);
    families.gauge("route_netns_open", "Net namespaces that a socket is open in", read(&stats.open) as f64);
    let subnets = &stats.subnets;
    let results =
        [("found", &subnets.found), ("none", &subnets.none), ("failed", &subnets.failed), ("cached", &subnets.cached)];
    let labels = |result: &str| vec![("source", "ec2".to_owned()), ("result", result.to_owned())];
    let results = results.map(|(result, count)| (labels(result), read(count)));
    families.counters("route_subnet_lookups", "Look-ups of a cloud's names for subnets", results);
}

fn plane(families: &mut Families, stats: &plane::Stats) {
    let is_written = stats.is_written.load(Ordering::Relaxed);
    families.gauge("plane_written", "1 while this tracker writes the plane's file", f64::from(u8::from(is_written)));
    families.gauge("plane_epoch", "How many owners the plane's file has had", read(&stats.epoch) as f64);
    families.gauge("plane_capacity", "Rows that the plane has", read(&stats.capacity) as f64);
    families.gauge("plane_rows", "Rows of the plane that are in use", read(&stats.rows) as f64);
    families.gauge("plane_waiting", "Containers that wait for a row of the plane", read(&stats.waiting) as f64);
    families.counter("plane_refused", "Containers that found the plane full", read(&stats.refused));
    families.counter("plane_evicted", "Tombstones that made room in the plane before their time", read(&stats.evicted));
    families.counter("plane_truncated", "Rows of the plane whose texts were cut", read(&stats.truncated));
    families.counter("plane_changes", "Changes written to the plane", read(&stats.changes));
    families.counter("plane_write_nanoseconds", "Time that writing them took", read(&stats.write_ns));
    families.gauge("plane_adopted", "Rows that were taken over from an earlier tracker", read(&stats.adopted) as f64);
    let is_pinned = stats.is_pinned.load(Ordering::Relaxed);
    families.gauge("plane_pinned", "1 while maps are pinned for BPF programs", f64::from(u8::from(is_pinned)));
    let results = [
        ("done", &stats.pins.filled),
        ("absent", &stats.pins.absent),
        ("other", &stats.pins.others),
        ("refused", &stats.pins.refused),
    ];
    let results = results.map(|(result, count)| (vec![("result", result.to_owned())], read(count)));
    families.counters("plane_fills", "Attempts to write a container's row into its mount ns's slot", results);
}
