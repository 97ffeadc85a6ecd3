//! A tracker reduced to its barrier, for tests that stop, kill or starve it: `holder KEEPER RUNTIME BUDGET_MS at-once|never`
//! holds starts of RUNTIME and answers them at once or never. Prints `ready`, then lines `ID starts` and
//! `ID GRADE` for each held start; ends with its standard input.

use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use tracker::container::State;
use tracker::fact::What;
use tracker_tests::barrier::{Answer, Barrier};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [keeper, runtime, budget_ms, answer] = arguments.as_slice() else {
        bail!("holder KEEPER RUNTIME BUDGET_MS at-once|never")
    };
    let budget = Duration::from_millis(budget_ms.parse()?);
    let answer = if answer == "never" { Answer::Never } else { Answer::AtOnce };
    let barrier = Barrier::start(keeper, &[Path::new(runtime)], budget, answer)?;
    println!("ready {}", barrier.keeper());
    std::io::stdout().flush()?;
    let end = thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
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
