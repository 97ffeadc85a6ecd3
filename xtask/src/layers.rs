//! One layer of tests: a name, what it ran, and how it went.
//!
//! Counts come from the lines that Rust's test harness prints, the same whether a test program ran here, as root or in
//! a virtual machine. A program that ends badly without naming a failed test counts as one failed test, so that nothing
//! can be lost between a count and an exit code.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::workspace::shown;

/// How many tests ran, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl Tally {
    /// One thing that had to work and did not.
    pub(crate) const FAILURE: Tally = Tally { passed: 0, failed: 1 };

    /// Takes in a line that a test program printed; anything but its summary changes nothing.
    pub(crate) fn read_line(&mut self, line: &str) {
        *self += summary(line).unwrap_or_default();
    }
}

/// `test result: ok. 3 passed; 0 failed; …` as numbers.
fn summary(line: &str) -> Option<Tally> {
    let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| -> Option<u32> {
        counts.split(';').find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tally { passed: number("passed")?, failed: number("failed")? })
}

/// Tests that could not run here. They pass as far as Rust's harness knows; the file they wrote their reason to says
/// otherwise.
pub(crate) struct Skips {
    file: PathBuf,
}

impl Skips {
    pub(crate) const VARIABLE: &str = "TRACKER_TESTS_SKIPPED";

    pub(crate) fn new(target: &Path) -> Result<Skips> {
        let file = target.join("tests-skipped");
        std::fs::write(&file, "").with_context(|| format!("write `{}`", file.display()))?;
        Ok(Skips { file })
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The reasons, one line each.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Runs a test program (or `cargo test`), shows what it prints, and counts. It is ended, with all that it started in
/// its process group, when it takes longer than `seconds`.
pub(crate) fn run(command: &Command, seconds: u32) -> Tally {
    let mut tally = Tally::default();
    match stream(command, seconds, |line| tally.read_line(line)) {
        Ok(code) => {
            if code == Some(124) || code == Some(137) {
                println!("xtask: `{}` was ended after {seconds} s", shown(command));
            }
            if code != Some(0) && tally.failed == 0 {
                println!("xtask: `{}` ended with {code:?}", shown(command));
                tally += Tally::FAILURE;
            }
        }
        Err(error) => {
            println!("xtask: {error:#}");
            tally += Tally::FAILURE;
        }
    }
    tally
}

/// Runs a command under a deadline; every line it prints is shown and given to `on_line`. Returns its exit code.
pub(crate) fn stream(command: &Command, seconds: u32, mut on_line: impl FnMut(&str)) -> Result<Option<i32>> {
    // coreutils' timeout puts the command into a process group of its own and ends that group.
    let mut bounded = Command::new("timeout");
    bounded.arg("--kill-after=10").arg(seconds.to_string()).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        bounded.current_dir(directory);
    }
    let mut child = bounded
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}`", shown(&bounded)))?;

    let output = child.stdout.take().expect("stdout was asked for as a pipe");
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    // A kernel under test may print any bytes.
    while output.read_until(b'\n', &mut line).context("read the output of a test program")? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        writeln!(std::io::stdout(), "{text}").context("write to standard output")?;
        on_line(text);
        line.clear();
    }
    Ok(child.wait().context("wait for a test program")?.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_counted_and_other_lines_are_not() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test merge::any_order ... ok",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\r",
            "test result: it is not one",
            "3 passed; 4 failed",
        ] {
            tally.read_line(line);
        }
        assert_eq!(tally, Tally { passed: 7, failed: 2 });
    }

    #[test]
    fn a_program_that_dies_without_a_summary_is_a_failure() {
        assert_eq!(run(Command::new("sh").args(["-c", "exit 3"]), 10), Tally::FAILURE);
        assert_eq!(run(&Command::new("/does/not/exist"), 10), Tally::FAILURE);
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_is_a_failure() {
        assert_eq!(run(Command::new("sleep").arg("60"), 1), Tally::FAILURE);
    }
}
