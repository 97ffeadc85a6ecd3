//! Numbers out of lives.

use std::time::Duration;

use tracker::container::Grade;
use tracker_tests::lives::Way;

use crate::witness::AllSeen;
use crate::{Answer, Lived, percentiles};

/// Of a set of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Percentiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

impl Percentiles {
    /// All zero where there is nothing.
    pub(crate) fn of(mut durations: Vec<Duration>) -> Percentiles {
        durations.sort_unstable();
        let at = |share: f64| {
            let index = (durations.len() as f64 * share).ceil() as usize;
            durations.get(index.saturating_sub(1)).copied().unwrap_or_default()
        };
        Percentiles { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }

    fn shown(&self) -> String {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        format!("{:.2} ms | {:.2} ms | {:.2} ms", ms(self.p50), ms(self.p99), ms(self.max))
    }
}

/// What one run came to.
pub(crate) struct Figures {
    lives: usize,
    per_second: f64,
    seen: usize,
    grades: [usize; 4],
    missed: usize,
    wrong: usize,
    start: Percentiles,
    exit: Percentiles,
    watched: bool,
}

impl Figures {
    pub(crate) fn new(took: Duration, lived: &[Lived], seen: &AllSeen) -> Figures {
        let seen_of = |one: &Lived| seen.get(&one.life.id).copied();
        let graded =
            |grade: Grade| lived.iter().filter(|one| seen_of(one).and_then(|seen| seen.grade) == Some(grade)).count();
        let answered = |answer: Answer| lived.iter().filter(|one| one.answer == answer).count();
        Figures {
            lives: lived.len(),
            per_second: lived.len() as f64 / took.as_secs_f64(),
            seen: lived.iter().filter(|one| seen_of(one).is_some()).count(),
            grades: [Grade::Held, Grade::LetGo, Grade::FirstExec, Grade::Observed].map(graded),
            missed: answered(Answer::Missed),
            wrong: answered(Answer::Wrong),
            start: percentiles(lived.iter().map(|one| one.life.start)),
            exit: percentiles(lived.iter().filter_map(|one| Some(seen_of(one)?.exited?.since(one.life.killed)))),
            watched: !seen.is_empty(),
        }
    }

    pub(crate) fn print(&self, way: Way, tracker: &str) {
        print!("| {} | {tracker} | {} | {:.1} | ", way.name(), self.lives, self.per_second);
        if self.watched {
            let [held, let_go, first_exec, observed] = self.grades;
            print!(
                "{} | {held} | {let_go} | {first_exec} | {observed} | {} | {} | ",
                self.seen, self.missed, self.wrong
            );
            println!("{} | {} |", self.start.shown(), self.exit.shown());
        } else {
            println!("– | – | – | – | – | – | – | {} | – | – | – |", self.start.shown());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let ms = Duration::from_millis;
        let all = Percentiles::of((1..=100).rev().map(ms).collect());
        assert_eq!(all, Percentiles { p50: ms(50), p99: ms(99), max: ms(100) });
        assert_eq!(Percentiles::of(vec![ms(7)]), Percentiles { p50: ms(7), p99: ms(7), max: ms(7) });
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
