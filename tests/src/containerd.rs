//! A real containerd of its own: temporary root, state and socket, and an image made of a static busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::runc::{Kind, Runtime};
use crate::wait::{PATIENCE, within};
use crate::{image, kernel, kubelet, requirement};

pub use crate::image::IMAGE;

/// A running daemon. All that it started ends with it.
pub struct Containerd {
    daemon: Option<Process>,
    /// The process in whose mount and pid namespaces it runs, if not in the host's.
    inside: Option<u32>,
    runtime: Runtime,
    crun: Option<Runtime>,
    directory: TempDir,
}

impl Containerd {
    /// Starts a daemon and waits until it answers.
    pub fn start() -> Result<Containerd> {
        Self::start_with(None, |_| Ok(String::new()))
    }

    /// The same in the mount and pid namespaces of a process, which has the host's programs and `/tmp`.
    pub fn start_inside(pid: u32) -> Result<Containerd> {
        Self::start_with(Some(pid), |_| Ok(String::new()))
    }

    /// The same with the plugin that a kubelet talks to, for [`Kubelet`](kubelet::Kubelet). Its images are imported.
    pub fn start_with_cri() -> Result<Containerd> {
        let containerd = Self::start_with(None, kubelet::configure)?;
        containerd.import_image(kubelet::NAMESPACE)?;
        Ok(containerd)
    }

    /// `more` may prepare files in the daemon's directory, and returns what is added to its configuration.
    fn start_with(inside: Option<u32>, more: impl FnOnce(&Containerd) -> Result<String>) -> Result<Containerd> {
        // Short: a socket's path has at most 107 bytes.
        let directory =
            tempfile::Builder::new().prefix("ctrd-").tempdir().context("create a directory for containerd")?;
        let runtime = Runtime::copy(Kind::Runc, directory.path())?;
        // A second handler of pods; `ctr` and the default one use runc.
        let crun = Runtime::copy(Kind::Crun, directory.path()).ok();
        let mut containerd = Containerd { daemon: None, inside, runtime, crun, directory };
        let more = more(&containerd)?;
        let disabled = if more.is_empty() { "\"io.containerd.grpc.v1.cri\", " } else { "" };
        let config = containerd.config(disabled) + &more;
        fs::write(containerd.path("config.toml"), config).context("write containerd's config")?;
        containerd.restart()?;
        Ok(containerd)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.path("sock")
    }

    /// The private copy of runc that it uses.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The private copy of crun for pods of the handler [`CRUN`](kubelet::CRUN), where the machine can run it.
    pub fn crun(&self) -> Option<&Runtime> {
        self.crun.as_ref()
    }

    /// Whether it runs inside a container.
    pub(crate) fn is_inside(&self) -> bool {
        self.inside.is_some()
    }

    /// The daemon's process, unless it was [killed](Self::kill).
    pub fn daemon(&self) -> Option<&Process> {
        self.daemon.as_ref()
    }

    /// Kills the daemon; containers and their shims live on.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Asks the daemon to end, and waits until it has; containers and their shims live on.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), Process::stop)
    }

    /// Starts the daemon, again if it ran, and waits until it answers.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon = None;
        let program = requirement::program("containerd").map_err(anyhow::Error::msg)?;
        let log = self.path("log");
        let mut command = self.command(&program);
        let mut daemon = Process::start(command.arg("--config").arg(self.path("config.toml")), &log)?;
        let answered = within(PATIENCE, || match daemon.ended() {
            Ok(None) => self.ctr("default", &["version"]).ok().map(|_| true),
            _ => Some(false),
        });
        if answered != Some(true) {
            bail!("containerd does not answer: {}", fs::read_to_string(log).unwrap_or_default());
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Runs `ctr` in a containerd namespace and returns what it printed.
    pub fn ctr(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        let log = self.path("ctr.log");
        let out = tempfile::NamedTempFile::new().context("create a file for the output of ctr")?;
        let program = requirement::program("ctr").map_err(anyhow::Error::msg)?;
        let mut command = self.command(&program);
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--timeout", "10s", "--namespace", namespace])
            .args(arguments);
        // Files, not pipes: the shim that it starts would hold a pipe open.
        let status =
            command.stdin(std::process::Stdio::null()).stdout(out.reopen()?).stderr(fs::File::create(&log)?).status();
        let status = status.with_context(|| format!("start {command:?}"))?;
        if !status.success() {
            bail!("{command:?}: {status}: {}", fs::read_to_string(log).unwrap_or_default().trim_end());
        }
        fs::read_to_string(out.path()).context("read the output of ctr")
    }

    /// `ctr run --detach`: a container of [`IMAGE`], which must have been imported into the containerd namespace.
    pub fn run(&self, namespace: &str, id: &str, options: &[&str], arguments: &[&str]) -> Result<()> {
        let runc = self.runtime.program().to_string_lossy().into_owned();
        // Shims keep runc's state in one place per containerd namespace, whatever daemon they belong to: two daemons
        // could not both have a container of one name. Cgroups likewise.
        let state = self.runtime.root().to_string_lossy().into_owned();
        let cgroup = format!("/{}/{namespace}/{id}", self.cgroup());
        // The native snapshotter copies and needs no overlay, which does not work on every directory.
        let mut all = vec!["run", "--detach", "--snapshotter", "native", "--runc-binary", &runc];
        all.extend(["--runc-root", &state, "--cgroup", &cgroup]);
        all.extend(options);
        all.extend([IMAGE, id]);
        all.extend(arguments);
        self.ctr(namespace, &all).map(drop)
    }

    /// The pid of a container's init.
    pub fn pid(&self, namespace: &str, id: &str) -> Result<u32> {
        let tasks = self.ctr(namespace, &["tasks", "list"])?;
        let mut words = tasks.lines().map(|line| line.split_whitespace());
        let pid = words.find_map(|mut words| if words.next() == Some(id) { words.next()?.parse().ok() } else { None });
        pid.with_context(|| format!("find the task `{id}` in: {tasks}"))
    }

    /// Imports [`IMAGE`] and [`PAUSE_IMAGE`](image::PAUSE_IMAGE) into a containerd namespace and unpacks them. Returns
    /// the digest of [`IMAGE`]'s manifest.
    pub fn import_image(&self, namespace: &str) -> Result<String> {
        let layout = self.path("image");
        if !layout.exists() {
            image::write_layout(&layout)?;
        }
        let archive = self.path("image.tar");
        process::run(Command::new("tar").arg("-C").arg(&layout).arg("-cf").arg(&archive).arg("."))?;
        self.ctr(namespace, &["images", "import", "--snapshotter", "native", &archive.to_string_lossy()])?;
        fs::read_to_string(layout.join("digest")).context("read the digest of the image")
    }

    /// The first component of all its containers' cgroup paths: the name of its directory, which is unique.
    pub fn cgroup(&self) -> String {
        self.directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A program, there where the daemon runs.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let Some(pid) = self.inside else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--mount", "--pid", "--"]).arg(program);
        command
    }

    /// A file or directory of its own, which goes with it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, disabled: &str) -> String {
        // What is disabled always needs the network, other file systems, or minutes.
        format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [{disabled}\"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.tracing.processor.v1.otlp\"]\n[grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n",
            root = self.path("root"),
            state = self.path("state"),
            socket = self.socket(),
            ttrpc = self.path("ttrpc"),
        )
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let (Some(daemon), Some(_)) = (&self.daemon, self.inside) {
            daemon.kill_children();
        }
        self.daemon = None;
        // Shims outlive the daemon by design. Ours name our socket; their children are our containers.
        let socket = self.socket();
        for shim in processes(|pid| names(pid, &socket)) {
            for child in processes(|pid| parent(pid) == Some(shim)) {
                let _ = kill(process::pid(child), Signal::SIGKILL);
            }
            let _ = kill(process::pid(shim), Signal::SIGKILL);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for point in points.filter(|point| point.starts_with(self.directory.path())) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
        kernel::remove_cgroup(&self.cgroup());
    }
}

/// The pids that `wanted` picks.
fn processes(wanted: impl Fn(u32) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| wanted(*pid)).collect()
}

/// Whether a word of a process's command line is this path.
fn names(pid: u32, path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word == path.as_os_str().as_bytes())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
