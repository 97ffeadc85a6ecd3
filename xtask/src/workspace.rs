//! Where the workspace is, and how its commands are started.
//!
//! Promises that a build started here finds a protocol buffer compiler, and that a failed command says which command
//! it was. Knows nothing of what is built.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The directory of the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    // Cargo says it at run time; what was compiled in is right unless the directory was moved since.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(manifest).parent().map(Path::to_path_buf).unwrap_or_else(|| PathBuf::from("."))
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |given| root().join(given))
}

/// `cargo`, the one that runs us, in the workspace, with `PROTOC` set for the build scripts that need it.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(arguments);
    // What cargo told us about this package is not true of the packages it builds next.
    cargo.env_remove("CARGO_MANIFEST_DIR");
    if env::var_os("PROTOC").is_none() {
        match protoc_bin_vendored::protoc_bin_path() {
            Ok(protoc) => {
                cargo.env("PROTOC", protoc);
            }
            Err(error) => {
                eprintln!("xtask: no protoc comes with xtask for this platform ({error}); set PROTOC yourself")
            }
        }
    }
    cargo
}

/// Runs a command to its end; anything but success is an error that shows the command.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}`: {status}", shown(command));
    }
    Ok(())
}

/// Makes this process the command: a Ctrl-C is then for that alone, and the terminal is given back when it has ended.
pub(crate) fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("start `{}`", shown(command)))
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!("`{}`: {}\n{}", shown(command), output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command the way a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // The owner of our own entry in `/proc` is our effective user.
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// The program as root: itself when we are root, through `sudo` otherwise. `environment` survives either way.
pub(crate) fn as_root(program: impl AsRef<Path>, environment: &[(&str, &Path)]) -> Result<Command> {
    let program = program.as_ref();
    if is_root() {
        let mut command = Command::new(program);
        command.envs(environment.iter().copied());
        return Ok(command);
    }
    if find_program("sudo").is_none() {
        bail!("`{}` needs root: run xtask as root, or install sudo", program.display());
    }
    let mut command = Command::new("sudo");
    command.arg("env");
    for (name, value) in environment {
        command.arg(format!("{name}={}", value.display()));
    }
    command.arg(program);
    Ok(command)
}

/// A program's path, as a shell would find it. The system directories count although many users' `PATH` lacks them.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
