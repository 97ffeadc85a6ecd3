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

fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(output)
}
