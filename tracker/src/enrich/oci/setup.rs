//! How `config.json` sets its container up: host name, mounts from outside, limits.

use super::MAX_VALUE_LEN;
use super::convention::bounded;
use super::json::{self, Config, Text};
use crate::container::{Details, Mount, Resources, Str};

/// Mounts that are kept, in the file's order.
const MAX_MOUNTS: usize = 256;

/// `None` where the file says nothing of it.
pub(super) fn details(config: &Config<'_>) -> Option<Box<Details>> {
    let linux = config.linux.as_ref();
    let details = Details {
        hostname: config.hostname.as_ref().and_then(text),
        mounts: config.mounts.as_ref().map(|mounts| mounts.iter().filter_map(mount).take(MAX_MOUNTS).collect()),
        resources: linux.and_then(|linux| linux.resources.as_ref()).and_then(resources),
        ..Details::default()
    };
    (details != Details::default()).then(|| Box::new(details))
}

fn text(text: &Text<'_>) -> Option<Str> {
    bounded(&text.0).filter(|text| !text.is_empty())
}

/// A mount that brings something into the container. What the kernel makes up (`proc`, `sysfs`, `cgroup`, devices) is in
/// every container, and so are the in-memory file systems under `/dev`.
fn mount(mount: &json::Mount<'_>) -> Option<Mount> {
    let destination = text(mount.destination.as_ref()?)?;
    let options = mount.options.as_deref().unwrap_or_default();
    let has = |wanted: &str| options.iter().any(|option| option.0 == wanted);
    let kind = mount.kind.as_ref().map_or("", |kind| &kind.0);
    let is_bind = has("bind") || has("rbind") || kind == "bind";
    let is_scratch = kind == "tmpfs" && !destination.starts_with("/dev") && !destination.starts_with("/sys");
    if !is_bind && !is_scratch {
        return None;
    }
    let source = if is_bind { Some(text(mount.source.as_ref()?)?) } else { None };
    Some(Mount { destination, source, read_only: has("ro") })
}

fn resources(resources: &json::Resources<'_>) -> Option<Resources> {
    let limit =
        |number: Option<json::Count>| number.and_then(|number| u64::try_from(number.0?).ok()).filter(|n| *n > 0);
    let cpu = resources.cpu.as_ref();
    let (quota, period) = (limit(cpu.and_then(|cpu| cpu.quota)), limit(cpu.and_then(|cpu| cpu.period)));
    let resources = Resources {
        // The kernel's own period where none is given: 100 ms.
        cpu_millis: quota
            .map(|quota| u128::from(quota) * 1000 / u128::from(period.unwrap_or(100_000)))
            .and_then(|millis| u64::try_from(millis).ok()),
        cpu_shares: limit(cpu.and_then(|cpu| cpu.shares)),
        cpuset: cpu.and_then(|cpu| cpu.cpus.as_ref()).and_then(text).filter(|cpus| cpus.len() <= MAX_VALUE_LEN),
        memory: limit(resources.memory.as_ref().and_then(|memory| memory.limit)),
        pids: limit(resources.pids.as_ref().and_then(|pids| pids.limit)),
    };
    (resources != Resources::default()).then_some(resources)
}
