//! A real dockerd of its own, on a containerd of its own: temporary data, sockets and networks, and an image that it
//! pulled from a registry of the test's.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

use crate::containerd::Containerd;
use crate::process::Process;
use crate::wait::{PATIENCE, within};
use crate::{image, requirement};

/// What the daemon calls its runtimes: by no name that tells which program it is.
pub const RUNC: &str = "own";
/// The one that runs crun, where the machine can.
pub const CRUN: &str = "light";

/// A running daemon. All that it started ends with it.
pub struct Docker {
    // Before its containerd, which ends the containers.
    daemon: Option<Process>,
    /// Its socket, where that outlives it.
    listener: Option<UnixListener>,
    /// Where it answers at present.
    answers_at: PathBuf,
    containerd: Containerd,
    image: String,
    digest: String,
    directory: TempDir,
}

impl Docker {
    /// What it needs of the machine.
    pub fn requirement() -> Result<(), String> {
        requirement::root()?;
        ["dockerd", "docker", "containerd", "runc"]
            .into_iter()
            .try_for_each(|name| requirement::program(name).map(drop))
    }

    /// Starts a daemon, waits until it answers, and has it pull the image.
    pub fn start() -> Result<Docker> {
        Self::start_on(Containerd::start()?, |_| Ok(None))
    }

    /// The same in the mount and pid namespaces of a process, which has the host's programs and `/tmp`: one that
    /// [`run_host`](Self::run_host) made.
    pub fn start_inside(pid: u32) -> Result<Docker> {
        Self::start_on(Containerd::start_inside(pid)?, |_| Ok(None))
    }

    /// The same with a socket that is made for it and handed to it, as systemd does, and that outlives it.
    pub fn start_activated() -> Result<Docker> {
        Self::start_on(Containerd::start()?, |socket| {
            Ok(Some(UnixListener::bind(socket).context("listen for docker")?))
        })
    }

    fn start_on(containerd: Containerd, listen: impl FnOnce(&Path) -> Result<Option<UnixListener>>) -> Result<Docker> {
        // Short: a socket's path has at most 107 bytes.
        let directory = tempfile::Builder::new().prefix("dkr-").tempdir().context("create a directory for docker")?;
        fs::write(directory.path().join("daemon.json"), "{}").context("write docker's config")?;
        let (image, digest) = (String::new(), String::new());
        let answers_at = directory.path().join("sock");
        let listener = listen(&answers_at)?;
        let mut docker = Docker { daemon: None, listener, answers_at, containerd, image, digest, directory };
        docker.restart()?;
        let layout = docker.path("image");
        image::write_layout(&layout)?;
        docker.digest = fs::read_to_string(layout.join("digest")).context("read the digest of the image")?;
        let registry = Registry::serve(layout, docker.digest.clone())?;
        docker.image = format!("127.0.0.1:{}/busybox:test", registry.port);
        docker.cli(&["pull", "--quiet", &docker.image])?;
        Ok(docker)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.path("sock")
    }

    /// The containerd that it uses.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// The image's name, as one asks for it.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The digest of the image's manifest.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The same, for what happens to that daemon.
    pub fn containerd_mut(&mut self) -> &mut Containerd {
        &mut self.containerd
    }

    /// The daemon's process, unless it was [killed](Self::kill).
    pub fn daemon(&self) -> Option<&Process> {
        self.daemon.as_ref()
    }

    /// Kills the daemon; its containers live on.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Asks the daemon to end, and waits until it has; its containers live on.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), Process::stop)
    }

    /// Starts the daemon, again if it ran, and waits until it answers: on the socket that outlives it, or on a new one of
    /// the same name.
    pub fn restart(&mut self) -> Result<()> {
        let listener = self.listener.as_ref().map(|listener| listener.try_clone()).transpose()?;
        self.restart_on(self.socket(), listener.map(OwnedFd::from))
    }

    /// The same, where nobody but [`cli`](Self::cli) looks for it.
    pub fn restart_elsewhere(&mut self) -> Result<()> {
        self.restart_on(self.path("other"), None)
    }

    fn restart_on(&mut self, socket: PathBuf, handed: Option<OwnedFd>) -> Result<()> {
        self.daemon = None;
        self.answers_at = socket;
        // A daemon that was killed leaves it behind, and its pid may have another holder.
        let _ = fs::remove_file(self.path("pid"));
        let program = requirement::program("dockerd").map_err(anyhow::Error::msg)?;
        let (log, runc) = (self.path("log"), self.containerd.runtime().program().display().to_string());
        let mut command = match &handed {
            None => self.containerd.command(&program),
            Some(_) => {
                // The handed socket comes as the standard input, and goes where systemd puts it.
                let hand = r#"export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@" 3<&0 0</dev/null"#;
                let mut command = Command::new("sh");
                command.args(["-c", hand]).arg(program);
                command
            }
        };
        command.arg("--config-file").arg(self.path("daemon.json"));
        command.arg("--containerd").arg(self.containerd.socket());
        match &handed {
            None => command.arg("--host").arg(format!("unix://{}", self.answers_at.display())),
            Some(_) => command.args(["--host", "fd://"]),
        };
        command.arg("--data-root").arg(self.path("data")).arg("--exec-root").arg(self.path("run"));
        command.arg("--pidfile").arg(self.path("pid"));
        command.arg("--add-runtime").arg(format!("{RUNC}={runc}")).args(["--default-runtime", RUNC]);
        if let Some(crun) = self.containerd.crun() {
            command.arg("--add-runtime").arg(format!("{CRUN}={}", crun.program().display()));
        }
        command.arg(format!("--cgroup-parent=/{}", self.containerd.cgroup()));
        // Nothing of the host's network is touched, and containers live on without the daemon.
        command.args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ]);
        command.args(["--storage-driver=vfs", "--live-restore"]);
        let input = handed.map_or_else(Stdio::null, Stdio::from);
        let mut daemon = Process::start_with(&mut command, input, &log)?;
        let answered = within(PATIENCE, || match daemon.ended() {
            Ok(None) => self.cli(&["version"]).ok().map(|_| true),
            _ => Some(false),
        });
        if answered != Some(true) {
            bail!("dockerd does not answer: {}", fs::read_to_string(log).unwrap_or_default());
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Runs `docker` and returns what it printed, without the line break at its end.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let program = requirement::program("docker").map_err(anyhow::Error::msg)?;
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", format!("unix://{}", self.answers_at.display())).env("HOME", self.directory.path());
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("start {command:?}"))?;
        if !output.status.success() {
            bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// `docker run --detach` of the image; returns the container's id.
    pub fn run(&self, options: &[&str], arguments: &[&str]) -> Result<String> {
        let all = [&["run", "--detach"], options, &[&self.image], arguments].concat();
        self.cli(&all)
    }

    /// A container with the host's programs, in which other containers can be made by those who come in from the host: they
    /// bring all privileges along, so that it needs none itself.
    pub fn run_host(&self, options: &[&str]) -> Result<String> {
        let lent = ["/usr", "/lib", "/lib64", "/etc", "/tmp", "/sys", "/sys/fs/cgroup"];
        let volumes: Vec<String> = lent.iter().flat_map(|path| ["--volume".into(), format!("{path}:{path}")]).collect();
        let volumes: Vec<&str> = volumes.iter().map(String::as_str).collect();
        self.run(&[&volumes[..], options].concat(), &["/bin/sleep", "1000"])
    }

    /// What the daemon answers to `GET path`.
    pub fn api(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.socket()).context("connect to docker")?;
        // Of this version, an answer ends with its connection.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        if !head.contains(" 200 ") {
            bail!("GET {path}: {head}: {body}");
        }
        Ok(body.to_owned())
    }

    /// The pid of a container's init, by Docker's word.
    pub fn pid(&self, id: &str) -> Result<u32> {
        let pid = self.cli(&["inspect", "--format", "{{.State.Pid}}", id])?;
        pid.parse().with_context(|| format!("a pid, not `{pid}`"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            // Their networks and mounts go with them. What is left over is for the containerd.
            let all = self.cli(&["ps", "--all", "--quiet"]).unwrap_or_default();
            let all: Vec<&str> = all.lines().collect();
            if !all.is_empty() {
                let _ = self.cli(&[&["rm", "--force"], &all[..]].concat());
            }
            let _ = self.cli(&["network", "prune", "--force"]);
        }
        if let Some(daemon) = self.daemon.take().filter(|_| self.containerd.is_inside()) {
            daemon.kill_children();
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for point in points.filter(|point| point.starts_with(self.directory.path())) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

/// As much of a registry as a pull of one image takes. Lives as long as the test's process.
struct Registry {
    port: u16,
}

impl Registry {
    fn serve(layout: PathBuf, manifest: String) -> Result<Registry> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen for a registry")?;
        let port = listener.local_addr().context("the registry's address")?.port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (layout, manifest) = (layout.clone(), manifest.clone());
                // One that does not get its answer pulls nothing, and the test says so.
                thread::spawn(move || answer(stream, &layout, &manifest));
            }
        });
        Ok(Registry { port })
    }
}

fn answer(mut stream: TcpStream, layout: &Path, manifest: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (kind, name) = path.rsplit_once('/').unwrap_or_default();
    let is_manifest = kind.ends_with("/manifests");
    let digest = if is_manifest { manifest } else { name };
    let blob = digest.strip_prefix("sha256:").map(|digits| layout.join("blobs/sha256").join(digits));
    let body = blob.and_then(|blob| fs::read(blob).ok()).unwrap_or_default();
    let media = if is_manifest { "application/vnd.oci.image.manifest.v1+json" } else { "application/octet-stream" };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Length: {length}\r\nDocker-Content-Digest: {digest}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    if !request.starts_with("HEAD ") {
        stream.write_all(&body)?;
    }
    Ok(())
}
