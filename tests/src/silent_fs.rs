//! A file system that does not answer, mounted for as long as a test needs it: who reads a file on it, or looks for
//! what it does not have, sleeps in the kernel until it is gone.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};

use crate::wait::{PATIENCE, within};

/// Most questions left open that a test may ignore.
const MOST_QUESTIONS: usize = 1024;

/// The mounted file system. When dropped it is gone, and whoever waits for it gets an error.
pub struct SilentFs {
    server: Child,
    mountpoint: PathBuf,
    questions: Receiver<Question>,
}

/// A question that is never answered, and the thread that sleeps until it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// `read` of a file's content, or `lookup` of a name.
    pub kind: String,
    /// The file's name.
    pub name: String,
    /// Who asked.
    pub tid: u32,
}

/// The kernel's side of it (`CONFIG_FUSE_FS`).
pub fn requirement() -> Result<(), String> {
    fs::File::open("/dev/fuse").map(drop).map_err(|error| format!("needs /dev/fuse: {error}"))
}

impl SilentFs {
    /// Mounts one in `directory`, served by this program.
    pub fn mount(server: &str, directory: &Path) -> Result<SilentFs> {
        let mountpoint = directory.join("silent");
        fs::create_dir(&mountpoint).context("create a mount point")?;
        let mut command = Command::new(server);
        command.arg(&mountpoint).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = command.spawn().context("start a file system")?;
        let mut lines = BufReader::new(server.stdout.take().context("its standard output")?).lines();
        let (sender, questions) = sync_channel(MOST_QUESTIONS);
        let fs = SilentFs { server, mountpoint, questions };
        ensure!(lines.next().transpose()?.as_deref() == Some("ready"), "the file system is not mounted");
        thread::spawn(move || {
            let questions = lines.map_while(Result::ok).filter_map(|line| Question::parse(&line));
            // The test that is over wants no more of them.
            questions.map(|question| sender.try_send(question)).take_while(Result::is_ok).for_each(drop);
        });
        Ok(fs)
    }

    /// A path on it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// The next question that is left open.
    pub fn next_question(&self) -> Result<Question> {
        self.questions.recv_timeout(PATIENCE).context("nobody asks the file system anything")
    }
}

impl Question {
    fn parse(line: &str) -> Option<Question> {
        let mut words = line.split(' ');
        let (kind, name) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Question { kind, name, tid: words.next()?.parse().ok()? })
    }

    /// Whether a thread of this process asked.
    pub fn is_by(&self, pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}/task/{}", self.tid)).exists()
    }
}

impl Drop for SilentFs {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        let ended: Option<io::Result<_>> = within(PATIENCE, || self.server.try_wait().transpose());
        if ended.is_none() {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
        // Done already, unless it was killed.
        let _ = umount2(&self.mountpoint, MntFlags::MNT_DETACH);
    }
}
