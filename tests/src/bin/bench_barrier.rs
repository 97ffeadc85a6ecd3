//! How long the barrier holds: `bench_barrier [ROUNDS]` starts containers of a private crun, one at a time and fifty at once,
//! answers them as a collection without subscribers would, and prints the time from the keeper's reading of the event to
//! the answer, and the time of the whole `start` with and without the barrier.

#![allow(clippy::print_stdout, reason = "its figures are what it is for")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tracker_tests::buckets::Buckets;
use tracker_tests::bundle::{Bundle, RootFs};
use tracker_tests::runc::{Container, Kind, Runtime};

const AT_ONCE: usize = 50;

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(10), |rounds| rounds.parse())?;
    let temp = TempDir::new()?;
    let (root, runtime) = (RootFs::create(temp.path())?, Runtime::copy(Kind::Crun, temp.path())?);
    let bundle = Bundle::create(temp.path(), "bundle", &root, &["true"])?;
    println!("{:<36} {:>10} {:>10} {:>10}", "", "p50", "p99", "max");
    for (name, at_once) in [("one start", 1), ("50 starts at once", AT_ONCE)] {
        let bare = churn(&runtime, &bundle, at_once, rounds, || Ok(()))?;
        let mut holder = Holder::start(&runtime)?;
        let mut held = Buckets::default();
        let mut before = None;
        let with = churn(&runtime, &bundle, at_once, rounds, || {
            // Called before and after the starts of each round: the creates between the rounds are not counted.
            let now = holder.times()?;
            before = match before.take() {
                None => Some(now),
                Some(before) => {
                    held.add(&now.since(&before));
                    None
                }
            };
            Ok(())
        })?;
        let name_held = format!("{name}, read to answer");
        println!("{name_held:<36} {:>10} {:>10} {:>10}", held.at(0.5), held.at(0.99), held.at(1.0));
        print_times(&format!("{name}, whole, held"), with);
        print_times(&format!("{name}, whole, bare"), bare);
    }
    Ok(())
}

/// Creates containers and starts them all at once, again and again; returns how long each start took.
fn churn(
    runtime: &Runtime,
    bundle: &Bundle,
    at_once: usize,
    rounds: usize,
    mut around: impl FnMut() -> Result<()>,
) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for _ in 0..rounds.max(200 / at_once) {
        let containers: Vec<Container<'_>> =
            (0..at_once).map(|number| runtime.create(bundle, &format!("c{number}"))).collect::<Result<_>>()?;
        let mut waiting = containers.iter().map(|one| Waiting::to_start(runtime, one)).collect::<Result<Vec<_>>>()?;
        around()?;
        let begun = waiting.iter_mut().map(Waiting::go).collect::<Result<Vec<_>>>()?;
        let ended: Vec<Result<Instant>> = std::thread::scope(|scope| {
            let ending: Vec<_> = waiting.iter_mut().map(|waiting| scope.spawn(|| waiting.end())).collect();
            ending.into_iter().map(|ending| ending.join().expect("no panic")).collect()
        });
        around()?;
        for (begun, ended) in begun.into_iter().zip(ended) {
            took.push(ended?.saturating_duration_since(begun));
        }
    }
    took.sort();
    Ok(took)
}

/// A process of its own that executes the runtime's `start` when it is told. As with the shims and monitors of real managers,
/// the memory that its arguments lie in is nobody else's.
struct Waiting {
    child: Child,
    input: ChildStdin,
}

impl Waiting {
    fn to_start(runtime: &Runtime, container: &Container<'_>) -> Result<Waiting> {
        let mut command = Command::new("sh");
        command.args(["-c", r#"read -r go && exec "$@""#, "sh"]);
        command.arg(runtime.program()).arg("--root").arg(runtime.root()).args(["start", container.id()]);
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("its standard input")?;
        Ok(Waiting { child, input })
    }

    fn go(&mut self) -> Result<Instant> {
        self.input.write_all(b"\n")?;
        Ok(Instant::now())
    }

    fn end(&mut self) -> Result<Instant> {
        ensure!(self.child.wait()?.success(), "a start failed");
        Ok(Instant::now())
    }
}

fn print_times(name: &str, sorted: Vec<Duration>) {
    let at = |share: f64| format!("{:.2} ms", sorted[((sorted.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3);
    println!("{name:<36} {:>10} {:>10} {:>10}", at(0.5), at(0.99), at(1.0));
}

/// A tracker in a process of its own: the load must not share its memory and its locks.
struct Holder {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Holder {
    fn start(runtime: &Runtime) -> Result<Holder> {
        let beside = |name: &str| std::env::current_exe().map(|path| path.with_file_name(name));
        let mut command = Command::new(beside("holder")?);
        command.arg(beside("keeper")?).arg(runtime.program()).args(["200", "quiet"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("its standard input")?;
        let output = BufReader::new(child.stdout.take().context("its standard output")?);
        let mut holder = Holder { child, input, output };
        holder.line("ready ")?;
        Ok(holder)
    }

    fn times(&mut self) -> Result<Buckets> {
        self.input.write_all(b"\n")?;
        let counts = self.line("times ")?;
        Ok(Buckets(counts.split(' ').map(str::parse).collect::<Result<_, _>>()?))
    }

    /// The rest of the next line that begins so.
    fn line(&mut self, beginning: &str) -> Result<String> {
        loop {
            let mut line = String::new();
            ensure!(self.output.read_line(&mut line)? > 0, "the holder has ended");
            if let Some(rest) = line.trim_end().strip_prefix(beginning) {
                return Ok(rest.to_owned());
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
