//! What goes wrong on purpose.
//!
//! `TRACKER_DEMO_FAULT` is a comma-separated list of
//!
//! | fault | what happens |
//! |---|---|
//! | `STEP:delay=MILLISECONDS` | the runtime sleeps there |
//! | `STEP:crash` | the runtime is killed there, as by `kill -9` |
//! | `STEP:fail` | the runtime ends there with exit code 1 |
//! | `pid-file=none` | no pid file is written; one that is there stays as it is |
//! | `pid-file=TEXT` | the pid file has this text |
//! | `state-file=none` | no state file is written |
//! | `state-file=late-start` | the state file has the start time of a later process |
//! | `init=dies` | init ends instead of waiting for `start` |
//!
//! with the steps `create-begins`, `init-born`, `state-written`, `create-ends`, `start-begins`, `start-ends` and
//! `delete-begins`.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

use crate::state::Failure;

const VARIABLE: &str = "TRACKER_DEMO_FAULT";

/// Moments at which something can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    CreateBegins,
    InitBorn,
    StateWritten,
    CreateEnds,
    StartBegins,
    StartEnds,
    DeleteBegins,
}

const STEPS: [(&str, Step); 7] = [
    ("create-begins", Step::CreateBegins),
    ("init-born", Step::InitBorn),
    ("state-written", Step::StateWritten),
    ("create-ends", Step::CreateEnds),
    ("start-begins", Step::StartBegins),
    ("start-ends", Step::StartEnds),
    ("delete-begins", Step::DeleteBegins),
];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    Delay(Duration),
    Crash,
    Fail,
}

/// What is written into a file instead of the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// The file is not written.
    None,
    /// The file has this text.
    Text(String),
}

/// Everything that shall go wrong. By default nothing does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    acts: Vec<(Step, Act)>,
    /// What becomes of the pid file.
    pub(crate) pid_file: Option<Lie>,
    /// Whether there is no state file.
    pub(crate) no_state_file: bool,
    /// Whether the state file names a later process.
    pub(crate) late_start: bool,
    /// Whether init ends before it is started.
    pub(crate) init_dies: bool,
}

impl Faults {
    /// Those of `TRACKER_DEMO_FAULT`.
    pub(crate) fn from_environment() -> Result<Self, Failure> {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        Self::parse(&text).map_err(|fault| Failure::new(format!("unknown fault `{fault}` in {VARIABLE}")))
    }

    /// The fault that is none, otherwise.
    fn parse(text: &str) -> Result<Self, &str> {
        let mut faults = Self::default();
        for fault in text.split(',').filter(|fault| !fault.is_empty()) {
            match fault.split_once('=') {
                Some(("pid-file", "none")) => faults.pid_file = Some(Lie::None),
                Some(("pid-file", text)) => faults.pid_file = Some(Lie::Text(text.to_owned())),
                Some(("state-file", "none")) => faults.no_state_file = true,
                Some(("state-file", "late-start")) => faults.late_start = true,
                Some(("init", "dies")) => faults.init_dies = true,
                _ => faults.acts.push(act(fault).ok_or(fault)?),
            }
        }
        Ok(faults)
    }

    /// Does what shall happen at `step`.
    pub(crate) fn reach(&self, step: Step) -> Result<(), Failure> {
        for (_, act) in self.acts.iter().filter(|(at, _)| *at == step) {
            match act {
                Act::Delay(time) => thread::sleep(*time),
                Act::Crash => {
                    raise(Signal::SIGKILL).map_err(|error| Failure::of("kill this process", error))?;
                }
                Act::Fail => return Err(Failure::new(format!("told to fail at {step:?}"))),
            }
        }
        Ok(())
    }
}

fn act(fault: &str) -> Option<(Step, Act)> {
    let (at, act) = fault.split_once(':')?;
    let (_, step) = STEPS.iter().find(|(name, _)| *name == at)?;
    let act = match act.split_once('=') {
        None if act == "crash" => Act::Crash,
        None if act == "fail" => Act::Fail,
        Some(("delay", time)) => Act::Delay(Duration::from_millis(time.parse().ok()?)),
        _ => return None,
    };
    Some((*step, act))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_and_what_is_none_is_named() {
        let faults = Faults::parse("init-born:delay=500,pid-file=none,start-begins:crash").unwrap();
        let delay = Act::Delay(Duration::from_millis(500));
        assert_eq!(faults.acts, [(Step::InitBorn, delay), (Step::StartBegins, Act::Crash)]);
        assert_eq!(faults.pid_file, Some(Lie::None));
        assert_eq!(Faults::parse("pid-file=1").unwrap().pid_file, Some(Lie::Text("1".into())));
        assert_eq!(Faults::parse(""), Ok(Faults::default()));
        for fault in ["crash", "start:crash", "start-begins:delay=x", "pid-file"] {
            assert_eq!(Faults::parse(fault), Err(fault));
        }
    }
}
