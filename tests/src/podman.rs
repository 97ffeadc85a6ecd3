//! Real podman in a place of its own: storage, state, and the service's socket; root's, or a user's.
//!
//! A user is a number that nobody else has, without a line in any file of the machine: podman maps it alone into its
//! user namespace. What is not podman's own place is the OCI runtimes' usual one, which is part of what is tested.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::runc::Kind;
use crate::wait::{PATIENCE, within};
use crate::{image, requirement};

pub use crate::image::{IMAGE, PAUSE_IMAGE};

/// Users that tests make up have uids from here on: far above those of people, and of their subordinate ids.
const FIRST_UID: u32 = 1_900_000_000;

/// Where CNI's plugin that gives addresses keeps them, by the names of networks.
const LEASES: &str = "/var/lib/cni/networks";

/// A podman. All that it started ends with it.
pub struct Podman {
    service: Option<Process>,
    user: Option<u32>,
    networks: Vec<String>,
    directory: TempDir,
}

impl Podman {
    /// What it needs of the machine.
    pub fn requirement() -> Result<(), String> {
        requirement::root()?;
        requirement::program("podman")?;
        requirement::program("conmon")?;
        Kind::Crun.requirement()?;
        Kind::Runc.requirement().map(drop)
    }

    /// What it needs for networks of its own.
    pub fn network_requirement() -> Result<(), String> {
        requirement::program("iptables")?;
        let plugins = ["/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin", "/usr/local/lib/cni"];
        match plugins.iter().any(|directory| Path::new(directory).join("bridge").is_file()) {
            true => Ok(()),
            false => Err("needs CNI's plugin `bridge`".to_owned()),
        }
    }

    /// Root's own.
    pub fn start() -> Result<Podman> {
        Self::start_as(None)
    }

    /// That of a user that nobody else is. `number` tells the users of one test from each other.
    pub fn start_for_user(number: u32) -> Result<Podman> {
        Self::start_as(Some(FIRST_UID + std::process::id() * 10 + number))
    }

    fn start_as(user: Option<u32>) -> Result<Podman> {
        // Short, for a socket's path has at most 107 bytes; and lower case, for podman makes an image's name of it.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pod-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir();
        let directory = directory.context("create a directory for podman")?;
        let podman = Podman { service: None, user, networks: vec![], directory };
        // Users have to get through, and the image is the same for all.
        fs::set_permissions(podman.directory.path(), PermissionsExt::from_mode(0o755)).context("open a directory")?;
        image::write_layout(&podman.path("layout"))?;
        for place in ["root", "run", "tmp", "networks", "home"] {
            podman.create_dir(&podman.path(place))?;
        }
        if let Some(runtime_dir) = podman.runtime_dir() {
            podman.create_dir(&runtime_dir)?;
        }
        fs::write(podman.path("containers.conf"), podman.config()?).context("write podman's configuration")?;
        for image in [IMAGE, PAUSE_IMAGE] {
            let layout = format!("oci:{}:{image}", podman.path("layout").display());
            let id = podman.podman(&["pull", "--quiet", &layout])?;
            podman.podman(&["tag", id.trim_end(), image])?;
        }
        Ok(podman)
    }

    fn create_dir(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).with_context(|| format!("create `{}`", path.display()))?;
        fs::set_permissions(path, PermissionsExt::from_mode(0o700))?;
        chown(path, self.user, self.user).with_context(|| format!("give away `{}`", path.display()))
    }

    /// The limits that podman gives a container by default are above what it may set itself, in a machine that limits root.
    fn config(&self) -> Result<String> {
        let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).context("ask for the limit of open files")?;
        let (_, processes) = getrlimit(Resource::RLIMIT_NPROC).context("ask for the limit of processes")?;
        let most = fs::read_to_string("/proc/sys/kernel/pid_max").context("ask for the highest pid")?;
        let most: u64 = most.trim_end().parse().context("a number of pids")?;
        let processes = processes.min(most);
        Ok(format!(
            "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"
        ))
    }

    /// Its uid.
    pub fn uid(&self) -> u32 {
        self.user.unwrap_or(0)
    }

    /// The socket of its REST service.
    pub fn socket(&self) -> PathBuf {
        match self.runtime_dir() {
            Some(runtime_dir) => runtime_dir.join("podman.sock"),
            None => self.path("sock"),
        }
    }

    /// Where a user's login would have made a directory.
    fn runtime_dir(&self) -> Option<PathBuf> {
        self.user.map(|uid| Path::new("/run/user").join(uid.to_string()))
    }

    /// Starts the service, again if it ran, and waits until it answers.
    pub fn serve(&mut self) -> Result<()> {
        self.service = None;
        // What a killed one left behind.
        let _ = fs::remove_file(self.socket());
        let log = self.path("service.log");
        let mut command = self.command();
        command.args(["system", "service", "--time", "0"]).arg(format!("unix://{}", self.socket().display()));
        let mut service = Process::start(&mut command, &log)?;
        let answers = within(PATIENCE, || match service.ended() {
            Ok(None) => std::os::unix::net::UnixStream::connect(self.socket()).ok().map(|_| true),
            _ => Some(false),
        });
        if answers != Some(true) {
            bail!("podman's service does not answer: {}", fs::read_to_string(log).unwrap_or_default());
        }
        self.service = Some(service);
        Ok(())
    }

    /// The service's process, while there is one.
    pub fn service(&self) -> Option<&Process> {
        self.service.as_ref()
    }

    /// Asks the service to end, and waits until it has; containers and their conmons live on.
    pub fn stop_service(&mut self) -> Result<()> {
        self.service.take().map_or(Ok(()), Process::stop)
    }

    /// Kills the service; containers and their conmons live on.
    pub fn kill_service(&mut self) {
        self.service = None;
    }

    /// `podman run --detach` of [`IMAGE`] without a network; returns the container's id.
    pub fn run(&self, name: &str, options: &[&str], arguments: &[&str]) -> Result<String> {
        self.make("run", &[&["--detach", "--network", "none", "--name", name], options].concat(), arguments)
    }

    /// `podman run` or `create` with these options alone.
    pub fn make(&self, verb: &str, options: &[&str], arguments: &[&str]) -> Result<String> {
        let said = self.podman(&[&[verb], options, &[IMAGE], arguments].concat())?;
        Ok(said.trim_end().to_owned())
    }

    /// Makes a network of podman's on a bridge of its own, with these subnets.
    pub fn create_network(&mut self, name: &str, subnets: &[&str]) -> Result<()> {
        let mut create = vec!["network", "create", "--driver", "bridge"];
        if subnets.iter().any(|subnet| subnet.contains(':')) {
            create.push("--ipv6");
        }
        create.extend(subnets.iter().flat_map(|subnet| ["--subnet", subnet]));
        self.networks.push(name.to_owned());
        self.podman(&[&create[..], &[name]].concat()).map(drop)
    }

    /// Runs `podman` and returns what it printed.
    pub fn podman(&self, arguments: &[&str]) -> Result<String> {
        let (out, err) = (self.output()?, self.output()?);
        let mut command = self.command();
        // Files, not pipes: the conmon that it starts would hold a pipe open.
        command.args(arguments).stdin(Stdio::null()).stdout(out.reopen()?).stderr(err.reopen()?);
        let status = command.status().with_context(|| format!("start {command:?}"))?;
        if !status.success() {
            let said = fs::read_to_string(err.path()).unwrap_or_default();
            bail!("podman {}: {status}: {}", arguments.join(" "), said.trim_end());
        }
        fs::read_to_string(out.path()).context("read what podman printed")
    }

    fn output(&self) -> Result<tempfile::NamedTempFile> {
        tempfile::NamedTempFile::new().context("create a file for podman's output")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.env_clear().env("CONTAINERS_CONF", self.path("containers.conf")).env("HOME", self.path("home"));
        command.env("PATH", path()).current_dir(self.path("home"));
        command.arg("--root").arg(self.path("root")).arg("--runroot").arg(self.path("run"));
        command.arg("--tmpdir").arg(self.path("tmp")).arg("--network-config-dir").arg(self.path("networks"));
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        if let Some(runtime_dir) = self.runtime_dir() {
            command.env("XDG_RUNTIME_DIR", runtime_dir);
        }
        command
    }

    /// A file or directory of its own, which goes with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The machine's programs, wherever the test was started from.
fn path() -> OsString {
    let system = OsStr::new("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    std::env::var_os("PATH").map_or_else(|| system.to_owned(), |path| [path.as_os_str(), system].join(OsStr::new(":")))
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.service = None;
        let _ = self.podman(&["pod", "rm", "--force", "--all", "--time", "0"]);
        let _ = self.podman(&["rm", "--force", "--all", "--time", "0"]);
        for network in &self.networks {
            let _ = self.podman(&["network", "rm", "--force", network]);
            // The plugin that gives addresses keeps its book here, for everybody.
            let _ = fs::remove_dir_all(Path::new(LEASES).join(network));
        }
        // What podman could not end: its conmons name the directory. A user's podman leaves a process, too, that holds its
        // user namespace.
        let place = self.directory.path().to_string_lossy().into_owned();
        for pid in fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let is_ours =
                String::from_utf8_lossy(&line).contains(&place) || self.user.is_some_and(|uid| owner(pid) == Some(uid));
            if is_ours && pid != std::process::id() {
                let _ = kill(process::pid(pid), Signal::SIGKILL);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for point in points.filter(|point| point.starts_with(self.directory.path())) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
        if let Some(runtime_dir) = self.runtime_dir() {
            let _ = fs::remove_dir_all(runtime_dir);
        }
    }
}

fn owner(pid: u32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    Some(fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}
