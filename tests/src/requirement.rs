//! What a test needs of the machine, and what happens when it is not there.
//!
//! Rust's test harness knows passed and failed only. A test that cannot run prints why; in CI (the variable `CI` is
//! set) it fails, elsewhere its reason goes into the file that `cargo xtask test` names, which does not count it as
//! passed.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::{env, fs};

/// Returns from the test, with the reason told, unless all requirements are met.
///
/// A requirement is any `Result` whose error says what is missing, such as [`root`] or [`program`].
#[macro_export]
macro_rules! require {
    ($($requirement:expr),+ $(,)?) => {
        $(if let Err(missing) = $requirement {
            $crate::requirement::cannot_run(&missing.to_string());
            return $crate::requirement::Skipped::skipped();
        })+
    };
}

/// What a test returns when it did not run.
pub trait Skipped {
    /// That value.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() {}
}

impl Skipped for anyhow::Result<()> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Tells that the test on this thread cannot run.
pub fn cannot_run(why: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    if env::var_os("CI").is_some_and(|ci| !ci.is_empty()) {
        panic!("{test} cannot run: {why}");
    }
    eprintln!("{test} cannot run: {why}");
    if let Some(file) = env::var_os("TRACKER_TESTS_SKIPPED") {
        // One line, one write: test programs share the file.
        let told = OpenOptions::new()
            .append(true)
            .open(file)
            .and_then(|mut file| file.write_all(format!("{test}: {why}\n").as_bytes()));
        told.expect("the file of tests that could not run is writable");
    }
}

/// Root's privileges.
pub fn root() -> Result<(), String> {
    match nix::unistd::Uid::effective().is_root() {
        true => Ok(()),
        false => Err("needs root".to_owned()),
    }
}

/// A program, by name or path.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    env::split_paths(&path)
        .chain(system.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("needs the program `{name}`"))
}

/// The tracker's own binary, the one of this build.
///
/// `cargo xtask test` builds it and names it in `TRACKER_BINARY`; without it, it is looked for beside this program,
/// where `cargo build` puts it, and must not be older than the test.
pub fn tracker() -> Result<PathBuf, String> {
    if let Some(given) = env::var_os("TRACKER_BINARY") {
        return Ok(PathBuf::from(given));
    }
    let here = env::current_exe().map_err(|error| format!("needs to know its own path: {error}"))?;
    // Programs lie beside it, tests one directory below.
    let mut built = here.ancestors().skip(1).take(2).map(|directory| directory.join("tracker"));
    built
        .find(|built| fs::metadata(built).is_ok_and(|built| built.is_file()))
        .ok_or_else(|| "needs the tracker: `cargo build --package tracker`, or `cargo xtask test`".to_owned())
}

/// The demo runtime of the same build, beside the tracker.
pub fn demo_runtime() -> Result<PathBuf, String> {
    let path = tracker()?.with_file_name("tracker-demo-runtime");
    if path.is_file() { Ok(path) } else { Err(format!("needs `{}`: `cargo build --package tracker`", path.display())) }
}

/// An example of the same build, where cargo puts it.
pub fn example(name: &str) -> Result<PathBuf, String> {
    let path = tracker()?.with_file_name("examples").join(name);
    let how = || format!("needs `{}`: `cargo build --package tracker --example {name}`", path.display());
    path.is_file().then(|| path.clone()).ok_or_else(how)
}
