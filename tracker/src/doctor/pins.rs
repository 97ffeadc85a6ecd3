//! Pinned maps for BPF programs: whether they can be had, and what lies there.

use std::path::Path;
use std::time::Duration;

use tracker_common::plane::OLD_NS;
use tracker_common::table::SCHEMA;

use super::{Check, Verdict};
use crate::plane::Config;
use crate::plane::pins::{Look, look};
use crate::time::BootTime;

const SUBJECT: &str = "pinned maps";

pub(super) fn check(config: &Config) -> Check {
    if config.enabled == Some(false) || config.pins.as_os_str().is_empty() {
        return Check::ok(SUBJECT, "off, by `plane.enabled` or `plane.pins`");
    }
    let path = config.pins.display();
    match look(&config.pins) {
        Ok(Look::Mountable) => {
            Check::ok(SUBJECT, format!("no BPF file system yet for `{path}`; the tracker mounts one"))
        }
        Ok(Look::Absent) => Check::ok(SUBJECT, format!("none yet at `{path}`; they can be made")),
        Ok(Look::There { owner, kept }) => Check::ok(SUBJECT, there(&config.pins, owner, kept)),
        Err(error) => Check::lacking(
            Verdict::Warn,
            SUBJECT,
            error.to_string(),
            "BPF programs cannot look up containers; records of the probes end with the tracker",
            error.remedy(),
        ),
    }
}

fn there(path: &Path, owner: Option<tracker_common::table::Owner>, kept: bool) -> String {
    let path = path.display();
    let Some(owner) = owner.filter(|owner| owner.schema == SCHEMA) else {
        return format!("at `{path}` those of another version, to be made anew at the next start");
    };
    let age = BootTime::now().0.saturating_sub(owner.heartbeat);
    let seconds = Duration::from_nanos(age).as_secs();
    match (age < OLD_NS, kept, age <= owner.keep_ns) {
        (true, true, _) => format!("at `{path}`, a tracker writes them; its probes go on without it"),
        (true, false, _) => format!("at `{path}`, a tracker writes them"),
        (false, true, true) => format!("at `{path}`, without a tracker for {seconds} s; kept probes are recording"),
        (false, true, false) => format!("at `{path}`, without a tracker for {seconds} s; kept probes have stopped"),
        (false, false, _) => format!("at `{path}`, without a tracker for {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use tracker_common::table::Owner;

    use super::*;

    #[test]
    fn who_writes_them_is_told_by_the_last_sign_of_life() {
        let path = Path::new("/p");
        let now = BootTime::now().0;
        let said = |heartbeat, keep_ns, kept| {
            there(path, Some(Owner { schema: SCHEMA, heartbeat, keep_ns, ..Owner::default() }), kept)
        };
        assert_eq!(said(now, 0, false), "at `/p`, a tracker writes them");
        assert_eq!(
            said(now.saturating_sub(OLD_NS + 1), u64::MAX, true).split("; ").nth(1),
            Some("kept probes are recording")
        );
        assert_eq!(said(now.saturating_sub(OLD_NS + 1), 1, true).split("; ").nth(1), Some("kept probes have stopped"));
        assert!(there(path, Some(Owner::default()), false).contains("another version"));
        assert!(there(path, None, false).contains("another version"));
    }

    #[test]
    fn a_directory_elsewhere_is_lacking() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { pins: directory.path().into(), ..Config::default() };
        assert_eq!(check(&config).verdict, Verdict::Warn);
        assert!(check(&Config { pins: "".into(), ..config }).found.starts_with("off"));
    }
}
