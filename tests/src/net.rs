//! Net namespaces of a test's own, and `ip` in them: what sets them up, and the oracle for routes.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A named net ns, deleted with everything in it when dropped.
#[derive(Debug)]
pub struct Net {
    name: String,
}

impl Net {
    /// Makes one whose name contains `label`, with its loopback up.
    pub fn new(label: &str) -> Result<Net> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("trk-{}-{}-{label}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let net = Net { name };
        net.ip("link set lo up")?;
        Ok(net)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that it is mounted on.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Its inode number.
    pub fn inode(&self) -> u32 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.path()).map_or(0, |metadata| metadata.ino() as u32)
    }

    /// Runs `ip` in it, its arguments separated by blanks.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        run(&mut self.command(arguments)).map(drop)
    }

    /// Runs several lines of `ip`'s in it at once.
    pub fn batch(&self, lines: &str) -> Result<()> {
        use std::io::Write;
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-force", "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start `ip -batch`")?;
        child.stdin.take().context("its input")?.write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        Ok(())
    }

    /// Runs `ip -j` in it and understands what it prints; its complaint as the error.
    pub fn ip_json(&self, arguments: &str) -> Result<Value> {
        let output = run(&mut self.command(&format!("-j -d {arguments}")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("understand `{text}`"))
    }

    /// Runs a program in it, its arguments separated by blanks.
    pub fn run(&self, line: &str) -> Result<Output> {
        run(Command::new("ip").args(["netns", "exec", &self.name]).args(line.split_whitespace()))
    }

    /// Index of an interface in it.
    pub fn index(&self, interface: &str) -> Result<u32> {
        let links = self.ip_json(&format!("link show dev {interface}"))?;
        let index = links[0]["ifindex"].as_u64().with_context(|| format!("an index in {links}"))?;
        Ok(u32::try_from(index)?)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(arguments.split_whitespace());
        command
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// A veth between two of them, both ends up.
pub fn veth(a: &Net, a_end: &str, b: &Net, b_end: &str) -> Result<()> {
    a.ip(&format!("link add {a_end} type veth peer name {b_end} netns {}", b.name()))?;
    a.ip(&format!("link set {a_end} up"))?;
    b.ip(&format!("link set {b_end} up"))
}

/// Subnets that no other test on the machine has: two for IPv4, one for IPv6; others for each of three `block`s.
pub fn subnets(block: u32) -> ([String; 2], String) {
    let (pid, first) = (std::process::id(), 64 * (block % 3 + 1));
    let v4 = |n: u32| format!("10.{}.{}.{}/28", first + (pid >> 12) % 64, (pid >> 4) % 256, (pid % 4) * 64 + n * 16);
    ([v4(0), v4(1)], format!("fd{block:02x}:{:x}:{:x}::/64", pid >> 16, pid % 65_536))
}

/// Runs a command to its end; its complaint as the error.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(output)
}

/// A bridge in the host's net ns, with a subnet that nobody else has (198.18.0.0/15 is for benchmarks).
#[derive(Debug)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    subnet: u8,
}

impl Bridge {
    /// The bridge of 198.18.`subnet`.0/24, with the address .1.
    pub fn new(subnet: u8) -> Result<Bridge> {
        let bridge = Bridge { name: format!("trk{}b{subnet}", std::process::id() % 100_000), subnet };
        host(&format!("link add {} type bridge", bridge.name))?;
        host(&format!("addr add 198.18.{subnet}.1/24 dev {}", bridge.name))?;
        host(&format!("link set {} up", bridge.name))?;
        Ok(bridge)
    }

    /// Connects the net ns of a process, as a bridge plugin does: with the address .2. Returns the host's end of the veth.
    pub fn connect(&self, pid: u32) -> Result<String> {
        let (end, subnet) = (format!("trk{}v{}", std::process::id() % 100_000, self.subnet), self.subnet);
        host(&format!("link add {end} type veth peer name eth0 netns {pid}"))?;
        host(&format!("link set {end} master {} up", self.name))?;
        let inside = |arguments: &str| {
            let pid = pid.to_string();
            let mut command = Command::new("nsenter");
            command.args(["-t", &pid, "-n", "ip"]).args(arguments.split_whitespace());
            run(&mut command)
        };
        inside("link set lo up")?;
        inside("link set eth0 up")?;
        inside(&format!("addr add 198.18.{subnet}.2/24 dev eth0"))?;
        inside(&format!("route add default via 198.18.{subnet}.1"))?;
        Ok(end)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = host(&format!("link del {}", self.name));
    }
}

/// Runs `ip` on the host, its arguments separated by blanks.
pub fn host(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split_whitespace())).map(drop)
}

/// What `ip route get` says on the host; `None` where that is an error.
pub fn host_route(arguments: &str) -> Result<Option<Value>> {
    let output = Command::new("ip").args(["-j", "route", "get"]).args(arguments.split_whitespace()).output()?;
    if !output.status.success() {
        return Ok(None);
    }
    let answers: Value = serde_json::from_slice(&output.stdout).context("understand `ip -j route get`")?;
    Ok(Some(answers[0].clone()))
}
