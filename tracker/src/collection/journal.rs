//! Why a container is as it is: who said what about it when. Bounded; what a person asks for with `explain`.

use super::door::HeldStep;
use super::news::News;
use crate::container::{Exit, Grade, Str};
use crate::fact::Source;
use crate::time::BootTime;

/// Lines kept from the beginning of a life, and as many from its end.
const HALF_LEN: usize = 24;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Born,
    Scanned,
    Executed { by_init: bool },
    Ended(Exit),
    Missing,
    Gone,
    Stated(News),
    Withdrawn,
    Held(HeldStep),
    Graded(Grade),
    Aborted(Str),
    Noted(Str),
}

/// One line of a container's story.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub at: BootTime,
    pub source: Source,
    pub event: Event,
}

/// The lines of one container's story, in the order in which they happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    lines: Vec<Line>,
    left_out: u32,
}

impl Journal {
    /// Adds a line where its time belongs. A line that is already there is not repeated.
    pub(crate) fn add(&mut self, line: Line) {
        let place = self.lines.partition_point(|other| other.at <= line.at);
        // A source that restates the same thing again and again would push out what matters.
        let repeats =
            self.lines[..place].last().is_some_and(|last| last.source == line.source && last.event == line.event);
        if repeats || self.lines.contains(&line) {
            return;
        }
        self.lines.insert(place, line);
        if self.lines.len() > 2 * HALF_LEN {
            self.lines.remove(HALF_LEN);
            self.left_out += 1;
        }
    }

    pub(crate) fn absorb(&mut self, other: Journal) {
        self.left_out += other.left_out;
        other.lines.into_iter().for_each(|line| self.add(line));
    }

    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Whether a statement of this source is in it.
    pub(crate) fn tells_of(&self, source: Source) -> bool {
        self.lines.iter().any(|line| line.source == source && matches!(line.event, Event::Stated(_)))
    }

    /// How many lines from the middle of its life were dropped.
    pub(crate) fn left_out(&self) -> u32 {
        self.left_out
    }
}

impl Event {
    /// The line as a person reads it.
    pub(crate) fn text(&self) -> String {
        match self {
            Event::Born => "its mount namespace was seen for the first time".into(),
            Event::Scanned => "found alive by a scan".into(),
            Event::Executed { by_init: true } => "its init process executed the entrypoint".into(),
            Event::Executed { by_init: false } => "a process executed in its mount namespace".into(),
            Event::Ended(exit) => match (exit.signal, exit.oom) {
                (Some(signal), Some(true)) => {
                    format!("ended by signal {signal} of the out-of-memory killer (exit code {})", exit.code)
                }
                (Some(signal), _) => format!("ended by signal {signal} (exit code {})", exit.code),
                (None, _) => format!("ended with exit code {}", exit.code),
            },
            Event::Missing => "gone without a record of its end: corrected by a scan".into(),
            Event::Gone => "its last process has gone".into(),
            Event::Stated(news) => format!("described it: {news}"),
            Event::Withdrawn => "no longer knows it".into(),
            Event::Held(HeldStep::Create) => "held its create until it was published".into(),
            Event::Held(HeldStep::Start) => "held its start until it was published".into(),
            Event::Graded(Grade::LetGo) => "let its start go: the budget was over first".into(),
            Event::Graded(Grade::Held) => "its start was held until all was known".into(),
            Event::Graded(grade) => format!("graded it {}", grade.name()),
            Event::Aborted(reason) => format!("it never came to life: {reason}"),
            Event::Noted(note) => note.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_of_a_life_are_kept() {
        let mut journal = Journal::default();
        for at in 0..1000 {
            let event = Event::Noted(format!("{at}").into());
            journal.add(Line { at: BootTime(at), source: Source::Barrier, event });
        }
        assert_eq!(journal.lines().len(), 2 * HALF_LEN);
        assert_eq!(journal.left_out() as usize, 1000 - 2 * HALF_LEN);
        assert_eq!(journal.lines()[0].at, BootTime(0));
        assert_eq!(journal.lines().last().map(|line| line.at), Some(BootTime(999)));
    }
}
