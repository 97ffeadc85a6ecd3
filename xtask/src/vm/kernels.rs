//! Debian's kernels for virtual machines, unpacked beside the build and never installed.
//!
//! apt fetches and verifies them, with lists and caches of its own under `target/vm/apt`: the machine's sources and
//! package state are neither changed nor trusted to be fresh. Only the mirror is the machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::{output_of, succeed};

pub(crate) struct Kernel {
    /// The release as `uname -r` will say.
    pub(crate) release: String,
    /// Its line, such as `6.12`.
    pub(crate) line: &'static str,
    /// The file to boot.
    pub(crate) image: PathBuf,
    /// Where its modules are.
    modules: PathBuf,
}

impl Kernel {
    /// Puts a module into a directory, as `name.ko`.
    pub(crate) fn module(&self, name: &str, into: &Path) -> Result<()> {
        let mut find = Command::new("find");
        find.arg(&self.modules).args(["-name", &format!("{name}.ko"), "-o", "-name", &format!("{name}.ko.xz")]);
        let found = output_of(&mut find)?;
        let found = found.lines().next();
        let from = found.with_context(|| format!("find the module `{name}` in `{}`", self.modules.display()))?;
        let to = into.join(format!("{name}.ko"));
        if !from.ends_with(".xz") {
            return fs::copy(from, &to).map(drop).with_context(|| format!("copy `{from}` to `{}`", to.display()));
        }
        // The machines' own `insmod` takes none that is compressed.
        let to = fs::File::create(&to).with_context(|| format!("create `{}`", to.display()))?;
        succeed(Command::new("xz").args(["--decompress", "--stdout", from]).stdout(to))
    }
}

/// The lines that are tested, and the package that depends on the newest kernel of each in Debian bookworm.
const LINES: &[(&str, &str)] = &[("6.1", "linux-image-cloud-amd64"), ("6.12", "linux-image-6.12-cloud-amd64")];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One kernel of each line; those already unpacked are taken as they are.
pub(crate) fn obtain(directory: &Path) -> Result<Vec<Kernel>> {
    let apt = Apt { directory: directory.join("apt") };
    let mut fresh = false;
    let mut kernels = Vec::new();
    for &(line, package) in LINES {
        let unpacked = directory.join(format!("linux-{line}"));
        let kernel = match unpacked_kernel(line, &unpacked) {
            Some(kernel) => kernel,
            None => {
                if !fresh {
                    apt.update()?;
                    fresh = true;
                }
                apt.unpack(package, &unpacked)?;
                unpacked_kernel(line, &unpacked).with_context(|| {
                    format!("`{package}` unpacked into `{}` has no boot/vmlinuz-*", unpacked.display())
                })?
            }
        };
        kernels.push(kernel);
    }
    Ok(kernels)
}

fn unpacked_kernel(line: &'static str, directory: &Path) -> Option<Kernel> {
    let entries = fs::read_dir(directory.join("boot")).ok()?;
    entries.flatten().find_map(|entry| {
        let release = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        let modules = directory.join("lib/modules").join(&release);
        Some(Kernel { release, line, image: entry.path(), modules })
    })
}

/// apt with a state of its own.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn update(&self) -> Result<()> {
        for name in ["lists/partial", "cache/archives/partial", "sources.d"] {
            let path = self.directory.join(name);
            fs::create_dir_all(&path).with_context(|| format!("create `{}`", path.display()))?;
        }
        let sources = self.directory.join("sources.list");
        let text = format!(
            "deb [signed-by={KEYRING}] {} bookworm main\ndeb [signed-by={KEYRING}] {} bookworm-security main\n",
            mirror("bookworm")?,
            mirror("bookworm-security")?,
        );
        fs::write(&sources, text).with_context(|| format!("write `{}`", sources.display()))?;
        succeed(self.command("apt-get").args(["update", "-qq"]))
    }

    /// Downloads what `package` stands for and unpacks it into `to`.
    fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        let depends = output_of(self.command("apt-cache").args(["depends", "--important", package]))?;
        let kernel = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .with_context(|| format!("find the kernel that `{package}` stands for in: {depends}"))?;

        let packages = self.directory.join("packages").join(kernel);
        fs::create_dir_all(&packages).with_context(|| format!("create `{}`", packages.display()))?;
        succeed(self.command("apt-get").current_dir(&packages).args(["download", "-qq", kernel]))?;
        let package = fs::read_dir(&packages)
            .with_context(|| format!("list `{}`", packages.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("find the package of `{kernel}` in `{}`", packages.display()))?;

        // Renamed when complete, so that an interrupted run leaves nothing that looks like a kernel.
        let partial = to.with_extension("partial");
        succeed(Command::new("dpkg").arg("-x").arg(&package).arg(&partial))?;
        fs::rename(&partial, to).with_context(|| format!("rename `{}` to `{}`", partial.display(), to.display()))?;
        fs::remove_dir_all(&packages).with_context(|| format!("remove `{}`", packages.display()))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, path: &str| format!("{name}={}", self.directory.join(path).display());
        for option in [
            option("Dir::Etc::SourceList", "sources.list"),
            option("Dir::Etc::SourceParts", "sources.d"),
            option("Dir::State::Lists", "lists"),
            option("Dir::Cache", "cache"),
            // The unprivileged user that apt downloads as could not write into a build directory.
            "APT::Sandbox::User=root".to_owned(),
            "APT::Architecture=amd64".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// Where this machine gets a suite from.
fn mirror(suite: &str) -> Result<String> {
    let configured = output_of(Command::new("apt-get").args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)"]))?;
    let mut suites = configured.lines().filter_map(|line| line.split_once(' '));
    let (_, mirror) = suites.find(|(release, _)| *release == suite).with_context(|| {
        format!("find Debian's `{suite}`, which the kernels come from, in this machine's apt sources: add it")
    })?;
    Ok(mirror.to_owned())
}
