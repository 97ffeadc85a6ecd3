//! `ebpf`: builds the kernel side into `tracker/bpf/`, or checks that what lies there is what the source says.
//!
//! The objects are committed, so that nobody needs a BPF toolchain to build the tracker. A build is the same bit for bit
//! in every directory: paths are remapped, debug sections are stripped (type and line information for the kernel stay),
//! and the versions it was made with are recorded in `tracker/bpf/versions`. With other versions other bytes come out;
//! `--check` then says so, and runs the kernel tests against the fresh objects instead.
//!
//! `core` is built from source, so a toolchain needs its own sources: a nightly with the component rust-src, or a
//! distribution's Rust with the source package of the same version, and permission to use unstable features. Any cargo
//! drives either.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::packages;
use crate::workspace::{cargo, find_program, is_root, output_of, root, succeed};

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// Kernel tests that show that objects load, attach and tell the truth.
const TESTS: &[&str] = &["kernel_births", "kernel_scan"];

/// Builds every program of `tracker-ebpf/src/bin/` into `tracker/bpf/<name>.bpf.o`; with `check`, compares instead.
pub(crate) fn ebpf(check: bool) -> Result<()> {
    let committed = root().join("tracker/bpf");
    let recorded = fs::read_to_string(committed.join("versions")).unwrap_or_default();
    let tools = Tools::find(&recorded)?;
    let fresh = tools.build()?;
    let versions = tools.versions()?;
    if !check {
        for (name, object) in &fresh {
            write(&committed.join(name), object)?;
            println!("xtask: {name}, {} bytes", object.len());
        }
        return write(&committed.join("versions"), versions.as_bytes());
    }
    let differing = differing(&committed, &fresh)?;
    if differing.is_empty() {
        println!("xtask: the {} committed objects are what the source says", fresh.len());
        return Ok(());
    }
    if versions == recorded {
        bail!("{} are not what the source says: run `cargo xtask ebpf` and commit them", differing.join(", "));
    }
    println!("xtask: {} come out different with these versions, which is no proof of anything:", differing.join(", "));
    println!("{versions}xtask: committed with:\n{recorded}xtask: running the kernel tests with the fresh ones instead");
    verify_by_running(&committed, &fresh)
}

/// Names of objects that are not the same as the committed ones, or on one side alone.
fn differing(committed: &Path, fresh: &BTreeMap<String, Vec<u8>>) -> Result<Vec<String>> {
    let mut names: Vec<String> = fresh
        .iter()
        .filter(|(name, object)| fs::read(committed.join(name)).ok().as_ref() != Some(*object))
        .map(|(name, _)| name.clone())
        .collect();
    for entry in fs::read_dir(committed).with_context(|| format!("list `{}`", committed.display()))? {
        let name = entry.context("list the committed objects")?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".bpf.o") && !fresh.contains_key(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Puts the fresh objects in place of the committed ones for as long as the tests run.
fn verify_by_running(committed: &Path, fresh: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    ensure!(is_root(), "loading BPF programs needs root: run `cargo xtask ebpf --check` as root");
    let mut kept = Kept(Vec::new());
    for (name, object) in fresh {
        let path = committed.join(name);
        kept.0.push((path.clone(), fs::read(&path).ok()));
        write(&path, object)?;
    }
    let mut tests = cargo(&["test", "--package", "tracker-tests"]);
    for test in TESTS {
        tests.args(["--test", test]);
    }
    succeed(&mut tests)
}

/// Files to be put back as they were.
struct Kept(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Drop for Kept {
    fn drop(&mut self) {
        for (path, content) in &self.0 {
            let restored = match content {
                Some(content) => fs::write(path, content),
                None => fs::remove_file(path),
            };
            if let Err(error) = restored {
                eprintln!("xtask: `{}` is not what was committed any more: {error}", path.display());
            }
        }
    }
}

/// What the build is made with.
struct Tools {
    /// The compiler, with sources of its own version beside it.
    rustc: PathBuf,
    sysroot: PathBuf,
    linker: PathBuf,
    objcopy: PathBuf,
}

impl Tools {
    /// Finds the tools, the recorded compiler first; installs what is missing where that can be done.
    fn find(recorded: &str) -> Result<Self> {
        let compiler = compilers().into_iter().max_by_key(|(rustc, _)| {
            // The recorded one compares equal only if its version line is there.
            version_line(rustc).is_ok_and(|line| recorded.lines().any(|recorded| recorded == line))
        });
        let (rustc, sysroot) = match compiler {
            Some(found) => found,
            None => {
                packages::ensure(packages::EBPF)?;
                compilers().into_iter().next().context(
                    "find a Rust compiler with its own sources: `rustup toolchain install nightly --component rust-src`, \
                     or on Debian `apt-get install rustc-web rust-web-src`",
                )?
            }
        };
        Ok(Self { rustc, sysroot, linker: linker()?, objcopy: objcopy()? })
    }

    /// All programs, linked and stripped, by the name of their object.
    fn build(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let directory = root().join("tracker-ebpf");
        let target = directory.join("target");
        let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")));
        let mut flags = vec!["-Ctarget-cpu=v3".to_owned(), "-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
        flags.push(format!("-Clinker={}", self.linker.display()));
        flags.push(format!("--remap-path-prefix={}=/tracker", root().display()));
        flags.push(format!("--remap-path-prefix={}=/rust", self.sysroot.join("lib/rustlib/src/rust").display()));
        flags.extend(cargo_home.map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));

        let mut build = cargo(&["build", "--release", "--locked", "--target", TARGET, "-Z", "build-std=core"]);
        build.current_dir(&directory).env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env("CARGO_TARGET_DIR", &target);
        build.env_remove("RUSTFLAGS").env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
        succeed(&mut build)?;

        let mut objects = BTreeMap::new();
        for name in programs(&directory)? {
            let linked = target.join(TARGET).join("release").join(&name);
            let stripped = target.join(format!("{name}.bpf.o"));
            succeed(Command::new(&self.objcopy).arg("--strip-debug").arg(&linked).arg(&stripped))?;
            let object = fs::read(&stripped).with_context(|| format!("read `{}`", stripped.display()))?;
            objects.insert(format!("{name}.bpf.o"), object);
        }
        ensure!(!objects.is_empty(), "there is no program in `tracker-ebpf/src/bin`");
        Ok(objects)
    }

    /// One line per tool that the bytes depend on.
    fn versions(&self) -> Result<String> {
        let mut text = String::new();
        let linker = output_of(Command::new(&self.linker).arg("--version"))?;
        let objcopy = output_of(Command::new(&self.objcopy).arg("--version"))?;
        let llvm = objcopy.lines().find(|line| line.contains("version")).unwrap_or("unknown").trim();
        writeln!(text, "{}\n{}\nobjcopy: {llvm}", version_line(&self.rustc)?, linker.trim())?;
        Ok(text)
    }
}

/// Compilers that have the sources of `core` beside them, with their sysroots.
fn compilers() -> Vec<(PathBuf, PathBuf)> {
    let system = Some(PathBuf::from("/usr/bin/rustc"));
    let nightly = output_of(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]));
    let nightly = nightly.ok().map(|path| PathBuf::from(path.trim()));
    // `max_by_key` takes the last of equals: with nothing recorded, the system's.
    [nightly, system]
        .into_iter()
        .flatten()
        .filter_map(|rustc| {
            let sysroot = output_of(Command::new(&rustc).args(["--print", "sysroot"])).ok()?;
            let sysroot = PathBuf::from(sysroot.trim());
            sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file().then_some((rustc, sysroot))
        })
        .collect()
}

fn version_line(rustc: &Path) -> Result<String> {
    Ok(output_of(Command::new(rustc).arg("--version"))?.trim().to_owned())
}

/// bpf-linker in the version that the objects are made with.
fn linker() -> Result<PathBuf> {
    let installed = || {
        let beside = home().map(|home| home.join(".cargo/bin/bpf-linker")).filter(|path| path.is_file());
        let path = find_program("bpf-linker").or(beside)?;
        let version = output_of(Command::new(&path).arg("--version")).ok()?;
        version.trim().ends_with(LINKER).then_some(path)
    };
    if let Some(path) = installed() {
        return Ok(path);
    }
    if !Path::new(LLVM_PREFIX).is_dir() {
        packages::ensure(packages::EBPF)?;
    }
    println!("xtask: installing bpf-linker {LINKER}");
    let mut install = cargo(&["install", "bpf-linker", "--version", LINKER, "--force", "--no-default-features"]);
    succeed(install.args(["--features", "llvm-22"]).env("LLVM_PREFIX", LLVM_PREFIX))?;
    installed().context("find the bpf-linker that was just installed: is cargo's `bin` directory in PATH?")
}

fn objcopy() -> Result<PathBuf> {
    let find = || {
        let own = PathBuf::from(LLVM_PREFIX).join("bin/llvm-objcopy");
        own.is_file()
            .then_some(own)
            .or_else(|| find_program("llvm-objcopy-22"))
            .or_else(|| find_program("llvm-objcopy"))
    };
    if find().is_none() {
        packages::ensure(packages::EBPF)?;
    }
    find().context("find llvm-objcopy")
}

/// The programs: one per file or directory of `src/bin`.
fn programs(directory: &Path) -> Result<Vec<String>> {
    let bin = directory.join("src/bin");
    let mut names = Vec::new();
    for entry in fs::read_dir(&bin).with_context(|| format!("list `{}`", bin.display()))? {
        let path = entry.context("list the BPF programs")?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write `{}`", path.display()))
}
