//! What works on this machine, what each missing thing costs, and what to do about it.
//!
//! Needs no running tracker and changes nothing: what it tries (a ring buffer, a fanotify mark) is on things of its own
//! and gone before it returns. It tries rather than infers: a kernel's version and configuration tell less than one call.

mod host;
mod kernel;
mod pins;
mod plane;
mod runtimes;

use serde::Serialize;

use crate::config::Config;

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The tracker works without, and knows less or knows it later.
    Warn,
    /// The tracker cannot do its work.
    Fail,
}

impl Verdict {
    /// Its name, as printed.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub subject: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What is lost by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<&'static str>,
}

impl Check {
    fn ok(subject: impl Into<String>, found: impl Into<String>) -> Self {
        let (subject, found) = (subject.into(), found.into());
        Check { subject, verdict: Verdict::Ok, found, costs: None, remedy: None }
    }

    fn lacking(
        verdict: Verdict,
        subject: impl Into<String>,
        found: impl Into<String>,
        costs: &'static str,
        remedy: &'static str,
    ) -> Self {
        let (subject, found) = (subject.into(), found.into());
        Check { subject, verdict, found, costs: Some(costs), remedy: Some(remedy) }
    }
}

/// Looks at everything that a tracker with this configuration would use.
pub fn examine(config: &Config) -> Vec<Check> {
    let mut checks = host::checks();
    checks.extend(kernel::checks());
    checks.extend(runtimes::checks(config));
    checks.push(plane::check(&config.plane));
    checks.push(pins::check(&config.plane));
    checks.push(runtimes::tracker(&config.server.socket));
    checks
}

/// The worst of `checks`.
pub fn worst(checks: &[Check]) -> Verdict {
    checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_lacking_has_a_price_and_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.server.socket = directory.path().join("none.sock");
        let checks = examine(&config);
        assert!(checks.len() > 10);
        for check in &checks {
            let complete = check.verdict == Verdict::Ok || (check.costs.is_some() && check.remedy.is_some());
            assert!(complete, "{check:?}");
        }
    }

    #[test]
    fn the_worst_check_decides() {
        let fail = Check::lacking(Verdict::Fail, "a", "b", "c", "d");
        assert_eq!(worst(&[Check::ok("a", "b"), fail]), Verdict::Fail);
        assert_eq!(worst(&[]), Verdict::Ok);
    }
}
