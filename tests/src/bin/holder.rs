//! A tracker reduced to its barrier, for tests that stop, kill or starve it: `holder KEEPER RUNTIME BUDGET_MS at-once|never|quiet`
//! holds starts of RUNTIME and answers them at once or never; `quiet` is at once without saying so. With `never` a forked
//! copy shares all that is open, as when whoever links the tracker forks: it outlives this process if need be.
//!
//! Prints `ready`, then lines `ID starts` and `ID GRADE` for each held start, and for each line of its standard input the
//! counts of its hold times; ends with that input.

#![allow(clippy::print_stdout, reason = "its output is how the test hears from it")]

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, fork};
use tracker::container::State;
use tracker::fact::What;
use tracker_tests::barrier::{Answer, Barrier};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [keeper, runtime, budget_ms, answer_name] = arguments.as_slice() else {
        bail!("holder KEEPER RUNTIME BUDGET_MS at-once|never|quiet")
    };
    let budget = Duration::from_millis(budget_ms.parse()?);
    let answer = if answer_name == "never" { Answer::Never } else { Answer::AtOnce };
    let barrier = Barrier::start(keeper, &[Path::new(runtime)], budget, answer)?;
    println!("ready {}", barrier.keeper());
    std::io::stdout().flush()?;
    if answer == Answer::Never {
        leave_a_copy()?;
    }
    let stats = Arc::clone(&barrier.stats);
    let end = thread::spawn(move || {
        for _ in std::io::stdin().lines() {
            let counts = stats.hold_times.counts().map(|count| count.to_string());
            println!("times {}", counts.join(" "));
        }
    });
    if answer_name == "quiet" {
        // Nobody at ordinary priority may hold the lock that the answers need: this is what is measured.
        let _ = end.join();
        return Ok(());
    }
    let mut told = 0;
    while !end.is_finished() {
        let facts = barrier.facts();
        for fact in &facts[told..] {
            match &fact.what {
                What::Graded { key, grade } => println!("{} {grade:?}", key.id),
                What::Stated { key, statement } if statement.state == Some(State::Running) => {
                    println!("{} starts", key.id)
                }
                _ => {}
            }
            std::io::stdout().flush()?;
        }
        told = facts.len();
        barrier.wait_for_more(told, Duration::from_millis(100));
    }
    Ok(())
}

/// Forks. The copy ends when the other side of the standard input is closed, whatever became of this process.
fn leave_a_copy() -> Result<()> {
    // SAFETY: the copy calls nothing but `poll` and `_exit`.
    if let ForkResult::Child = unsafe { fork() }? {
        let _ = poll(&mut [PollFd::new(std::io::stdin().as_fd(), PollFlags::empty())], PollTimeout::NONE);
        // SAFETY: ends the copy at once.
        unsafe { libc::_exit(0) };
    }
    Ok(())
}
