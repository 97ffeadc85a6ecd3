//! How each source is doing: what was tried, what is used, what was refused and why.
//!
//! Sources report here; `health()`, `tracker sources`, `/readyz` and the metrics read. A source that is absent, hung
//! or restarted is a state here, never an end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// How it came to be asked: by the configuration, or how it was found. Absent for what needs no finding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Str>,
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
    // Protects the lists; held for the time of a copy.
    board: Arc<Mutex<Board>>,
}

#[derive(Debug, Default)]
struct Board {
    lines: Vec<Health>,
    /// Where peers come from, also those that have not reported yet.
    origins: HashMap<(Source, Str), Str>,
}

impl HealthBoard {
    /// A board without lines.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports the condition of one source. Repeating the same condition and detail changes nothing.
    /// Returns whether anything changed, so that the caller logs once.
    pub fn report(&self, source: Source, what: &str, condition: Condition, detail: &str) -> bool {
        let mut board = self.lock();
        match board.lines.iter_mut().find(|line| line.source == source && &*line.what == what) {
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
                let (what, since) = (Str::from(what), BootTime::now());
                let origin = board.origins.get(&(source, Str::clone(&what))).cloned();
                board.lines.push(Health { source, what, condition, origin, detail: detail.into(), since, changes: 0 });
                true
            }
        }
    }

    /// Notes how one peer of a source came to be asked, whether it has reported or not.
    pub fn set_origin(&self, source: Source, what: &str, origin: &str) {
        let mut board = self.lock();
        let key = (source, Str::from(what));
        if board.origins.get(&key).is_some_and(|known| &**known == origin) {
            return;
        }
        let origin = Str::from(origin);
        for line in board.lines.iter_mut().filter(|line| line.source == source && &*line.what == what) {
            line.origin = Some(Str::clone(&origin));
        }
        board.origins.insert(key, origin);
    }

    /// Takes the line of a peer away: there is no such peer any more.
    pub fn forget(&self, source: Source, what: &str) {
        let mut board = self.lock();
        board.lines.retain(|line| line.source != source || &*line.what != what);
        board.origins.remove(&(source, Str::from(what)));
    }

    /// All lines, in the order in which the sources first reported.
    pub fn lines(&self) -> Vec<Health> {
        self.lock().lines.clone()
    }

    /// Whether any line of `source` is live or degraded.
    pub fn is_reporting(&self, source: Source) -> bool {
        let is_reporting = |line: &Health| matches!(line.condition, Condition::Live | Condition::Degraded);
        self.lock().lines.iter().any(|line| line.source == source && is_reporting(line))
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
