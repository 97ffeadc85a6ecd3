//! How each source is doing: what was tried, what is used, what was refused and why.
//!
//! Sources report here; `health()`, `tracker sources`, `/readyz` and the metrics read. A source that is absent, hung
//! or restarted is a state here, never an end.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::container::Str;
use crate::fact::Source;
use crate::time::BootTime;

/// What a source is doing right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// It has begun and said nothing yet.
    Starting,
    /// It works.
    Live,
    /// It works with less than it could have: the detail says what is missing.
    Degraded,
    /// What it would ask is not there or does not answer; it tries again for ever.
    Waiting,
    /// It must not or cannot be used here; it will not try again.
    Refused,
}

impl Condition {
    /// Its name, as printed and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Condition::Starting => "starting",
            Condition::Live => "live",
            Condition::Degraded => "degraded",
            Condition::Waiting => "waiting",
            Condition::Refused => "refused",
        }
    }
}

/// One line of `tracker sources`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The source.
    pub source: Source,
    /// Which one of its kind: a socket's path, `tp_btf`, `fanotify`, …
    pub what: Str,
    /// What it is doing.
    pub condition: Condition,
    /// For people: what was tried, what came back, what to do about it. Empty when there is nothing to say.
    pub detail: Str,
    /// Since when it is in this condition.
    pub since: BootTime,
    /// How often the condition changed.
    pub changes: u64,
}

/// All sources' health. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct HealthBoard {
    // Protects the list; held for the time of a copy.
    lines: Arc<Mutex<Vec<Health>>>,
}

impl HealthBoard {
    /// A board without lines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports the condition of one source. Repeating the same condition and detail changes nothing.
    /// Returns whether anything changed, so that the caller logs once.
    pub fn report(&self, source: Source, what: &str, condition: Condition, detail: &str) -> bool {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match lines.iter_mut().find(|line| line.source == source && &*line.what == what) {
            Some(line) if line.condition == condition && &*line.detail == detail => false,
            Some(line) => {
                if line.condition != condition {
                    line.since = BootTime::now();
                    line.changes += 1;
                }
                line.condition = condition;
                line.detail = detail.into();
                true
            }
            None => {
                let since = BootTime::now();
                lines.push(Health { source, what: what.into(), condition, detail: detail.into(), since, changes: 0 });
                true
            }
        }
    }

    /// All lines, in the order in which the sources first reported.
    pub fn lines(&self) -> Vec<Health> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether any line of `source` is live or degraded.
    pub fn is_reporting(&self, source: Source) -> bool {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .any(|line| line.source == source && matches!(line.condition, Condition::Live | Condition::Degraded))
    }
}
