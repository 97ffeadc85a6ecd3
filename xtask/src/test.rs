//! `test`: every layer, or the ones asked for.
//!
//! | layer | what | where |
//! |---|---|---|
//! | unit | unit, property and doc tests, with and without the default features | next to the code |
//! | tidy | tests that read the source tree | `tests/tests/tidy.rs` |
//! | component | one part as its peers see it: the debug socket, and containerd's source against a stand-in that speaks the real protocol | modules `component_tests`, next to the code |
//! | privileged | the real kernel and real runtimes | everything else in `tests/tests/` |
//! | ebpf | the committed objects are what the source says | `tracker-ebpf/` |
//! | vm | `tests/tests/kernel_*.rs`, `barrier_held.rs`, `execsnoop.rs` and `tcpconnect.rs` on older kernels, cgroup v2 only | [`crate::vm`] |

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::ebpf;
use crate::layers::{self, Skips, Tally};
use crate::packages;
use crate::vm;
use crate::workspace::{as_root, cargo, output_of, target};

/// Kernel tests load programs and count their own events: enough parallelism to overlap their waits, not to starve
/// each other on a small machine.
const PRIVILEGED_THREADS: u32 = 2;

/// No test program has a reason to take longer.
const PROGRAM_SECONDS: u32 = 600;

/// What the names of component tests contain: their module. The unit layer leaves them out.
const COMPONENT: &str = "::component_tests::";

/// `cargo test` also compiles, on a small machine for a while.
const CARGO_SECONDS: u32 = 1800;

#[derive(Args)]
pub(crate) struct Test {
    /// Only the virtual machines; the same as `--layer vm`
    #[arg(long)]
    vm: bool,
    /// Only these layers
    #[arg(long, value_enum, value_delimiter = ',')]
    layer: Vec<Layer>,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layer {
    Unit,
    Tidy,
    Component,
    Privileged,
    Ebpf,
    Vm,
}

impl Layer {
    const ALL: &[Layer] = &[Layer::Unit, Layer::Tidy, Layer::Component, Layer::Privileged, Layer::Ebpf, Layer::Vm];

    fn name(self) -> &'static str {
        match self {
            Layer::Unit => "unit, property and doc",
            Layer::Tidy => "tidy",
            Layer::Component => "component",
            Layer::Privileged => "privileged",
            Layer::Ebpf => "kernel side as committed",
            Layer::Vm => "virtual machines",
        }
    }

    /// Which layer a test program of `tracker-tests` belongs to here, on this kernel.
    fn of(program: &str) -> Layer {
        match program.split('_').next() {
            Some("tidy") => Layer::Tidy,
            _ => Layer::Privileged,
        }
    }
}

impl Test {
    pub(crate) fn run(&self) -> Result<()> {
        let skips = Skips::new(&target())?;
        let mut summary = Vec::new();
        for &layer in Layer::ALL.iter().filter(|layer| self.wants(**layer)) {
            println!("\n── {} ──", layer.name());
            let start = Instant::now();
            let tally = self.layer(layer, &skips).unwrap_or_else(|error| {
                println!("xtask: {error:#}");
                Tally::FAILURE
            });
            summary.push((layer, tally, start.elapsed()));
        }

        println!("\n{:<24}{:>8}{:>8}{:>8}", "layer", "passed", "failed", "time");
        let mut total = Tally::default();
        for (layer, tally, time) in summary {
            println!("{:<24}{:>8}{:>8}{:>7}s", layer.name(), tally.passed, tally.failed, time.as_secs());
            total += tally;
        }
        // In CI a test that cannot run has failed on its own; elsewhere it must at least not look like a success.
        let skipped = skips.reasons();
        for reason in &skipped {
            println!("could not run: {reason}");
        }
        let skipped = u32::try_from(skipped.len()).unwrap_or(u32::MAX);
        total.passed = total.passed.saturating_sub(skipped);
        println!("{} passed, {} failed", total.passed, total.failed);
        if total.failed > 0 {
            bail!("tests failed");
        }
        Ok(())
    }

    fn wants(&self, layer: Layer) -> bool {
        match (self.vm, self.layer.as_slice()) {
            (false, []) => true,
            (vm, layers) => layers.contains(&layer) || (vm && layer == Layer::Vm),
        }
    }

    fn layer(&self, layer: Layer, skips: &Skips) -> Result<Tally> {
        match layer {
            Layer::Unit => Ok(self.unit()),
            Layer::Component => self.component(),
            Layer::Tidy => self.programs(layer, skips),
            Layer::Privileged => {
                packages::ensure(packages::RUNTIMES)?;
                self.programs(layer, skips)
            }
            Layer::Ebpf => self.ebpf(),
            Layer::Vm => {
                packages::ensure(packages::EMULATOR)?;
                vm::test(self.filter.as_deref())
            }
        }
    }

    /// One test: the committed objects are what the source says. Its toolchain is a download of 300 MB, which only CI and
    /// those who ask for this layer get.
    fn ebpf(&self) -> Result<Tally> {
        let wanted = std::env::var_os("CI").is_some() || self.layer.contains(&Layer::Ebpf);
        if !wanted && !packages::are_present(packages::EBPF) {
            println!(
                "left out: `cargo xtask test --layer ebpf` installs the toolchain of the kernel side and checks it"
            );
            return Ok(Tally::default());
        }
        ebpf::ebpf(true)?;
        Ok(Tally { passed: 1, failed: 0 })
    }

    fn unit(&self) -> Tally {
        let mut tally = Tally::default();
        for features in [&[][..], &["--no-default-features"]] {
            let mut test = cargo(&["test", "--no-fail-fast"]);
            test.args(features).args(["--", "--skip", COMPONENT]).args(self.filter.iter());
            tally += layers::run(&test, CARGO_SECONDS);
        }
        tally
    }

    fn component(&self) -> Result<Tally> {
        let mut build = cargo(&["test", "--package", "tracker", "--lib", "--no-run", "--message-format=json"]);
        build.stderr(std::process::Stdio::inherit());
        let built = Built::from_messages(&output_of(&mut build)?);
        let program = built.tests.first().context("find the library's tests among what cargo built")?;
        // The harness runs what matches any of its filters, and wanted is what matches both.
        let list = output_of(Command::new(&program.path).args(["--list", "--format=terse", COMPONENT]))?;
        let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
        let wanted: Vec<&str> = names.filter(|name| self.filter.iter().all(|text| name.contains(text))).collect();
        if wanted.is_empty() {
            return Ok(Tally::default());
        }
        let mut test = Command::new(&program.path);
        test.arg("--exact").args(wanted).current_dir(crate::workspace::root().join("tracker"));
        Ok(layers::run(&test, PROGRAM_SECONDS))
    }

    fn programs(&self, layer: Layer, skips: &Skips) -> Result<Tally> {
        let tracker = build_tracker(None)?;
        let mut tally = Tally::default();
        for program in test_programs(None)?.tests {
            if Layer::of(&program.name) != layer {
                continue;
            }
            println!("\n{}:", program.name);
            let mut environment = vec![(Skips::VARIABLE, skips.file()), ("TRACKER_BINARY", tracker.as_path())];
            if std::env::var_os("CI").is_some() {
                environment.push(("CI", Path::new("true")));
            }
            let mut test = if layer == Layer::Privileged {
                as_root(&program.path, &environment)?
            } else {
                let mut test = Command::new(&program.path);
                test.envs(environment);
                test
            };
            test.arg(format!("--test-threads={PRIVILEGED_THREADS}")).args(self.filter.iter());
            test.current_dir(crate::workspace::root().join("tests"));
            tally += layers::run(&test, PROGRAM_SECONDS);
        }
        Ok(tally)
    }
}

/// What a build of `tracker-tests` made.
#[derive(Default)]
pub(crate) struct Built {
    /// Programs that run tests.
    pub(crate) tests: Vec<Program>,
    /// Programs that tests start, by the path they are compiled to know.
    pub(crate) helpers: Vec<PathBuf>,
}

/// A compiled test program.
pub(crate) struct Program {
    /// The name of its file in `tests/tests/`, or of what its unit tests belong to.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Builds the binaries and examples that tests start, and returns the daemon's path; the examples are beside it in
/// `examples`. `target`: for this target, not for the host.
pub(crate) fn build_tracker(for_target: Option<&str>) -> Result<PathBuf> {
    let mut build = cargo(&["build", "--package", "tracker", "--bins", "--examples"]);
    let mut directory = target();
    if let Some(name) = for_target {
        build.args(["--target", name]);
        vm::link_statically(&mut build);
        directory.push(name);
    }
    crate::workspace::succeed(&mut build)?;
    Ok(directory.join("debug/tracker"))
}

/// Builds the test programs of `tracker-tests`, and the programs that they start.
pub(crate) fn test_programs(for_target: Option<&str>) -> Result<Built> {
    let mut build = cargo(&["test", "--package", "tracker-tests", "--tests", "--no-run", "--message-format=json"]);
    if let Some(name) = for_target {
        build.args(["--target", name]);
        vm::link_statically(&mut build);
    }
    build.stderr(std::process::Stdio::inherit());
    Ok(Built::from_messages(&output_of(&mut build)?))
}

impl Built {
    /// What cargo's messages tell.
    fn from_messages(messages: &str) -> Built {
        let mut built = Built::default();
        messages.lines().for_each(|message| built.read(message));
        built.tests.sort_by(|a, b| a.name.cmp(&b.name));
        built
    }

    /// Takes in a line of cargo's messages; anything but an executable changes nothing.
    fn read(&mut self, message: &str) {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(message) else { return };
        let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) else {
            return;
        };
        let path = PathBuf::from(path);
        if message["profile"]["test"] == true {
            self.tests.push(Program { name: name.to_owned(), path });
        } else if message["target"]["kind"][0] == "bin" {
            self.helpers.push(path);
        }
    }
}
