//! A file system that does not answer: `silent_fs MOUNTPOINT` mounts it and prints `ready`. Its directories, and that its
//! files are there, are told; the content of a file never is, nor whether there is anything of another name. Prints
//! `read NAME TID` and `lookup NAME TID` for each question that it leaves open. Ends with its standard input, and whoever
//! waits for an answer then gets an error.

#![allow(clippy::print_stdout, reason = "its output is how the test hears from it")]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEntry, Request, SessionACL,
};
use nix::mount::{MntFlags, umount2};

/// What is there: each inode's number is its place in this list, and one.
const TREE: [(&str, u64, FileType); 5] = [
    ("", 0, FileType::Directory),
    ("arguments", 1, FileType::RegularFile),
    ("environment", 1, FileType::RegularFile),
    ("bundle", 1, FileType::Directory),
    ("config.json", 4, FileType::RegularFile),
];
/// Nothing of it ever changes.
const FOR_EVER: Duration = Duration::from_secs(3600);
const PAGE: u64 = 4096;

#[derive(Default)]
struct Silent {
    // Protects what was left open: an answer that is dropped says that there was an error.
    open: Mutex<(Vec<ReplyEntry>, Vec<ReplyData>)>,
}

impl Filesystem for Silent {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Two that ask for different names are not to wait for each other. A kernel that cannot do that is fine, too.
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match TREE.iter().position(|(known, directory, _)| name == *known && u64::from(parent) == *directory) {
            Some(place) => reply.entry(&FOR_EVER, &attributes(place), Generation(0)),
            None => {
                self.open.lock().unwrap_or_else(PoisonError::into_inner).0.push(reply);
                tell("lookup", &name.to_string_lossy(), request.pid());
            }
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match place(inode) {
            Some(place) => reply.attr(&FOR_EVER, &attributes(place)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).1.push(reply);
        tell("read", place(inode).map_or("?", |place| TREE[place].0), request.pid());
    }
}

fn place(inode: INodeNo) -> Option<usize> {
    let place = usize::try_from(u64::from(inode)).ok()?.checked_sub(1)?;
    (place < TREE.len()).then_some(place)
}

fn attributes(place: usize) -> FileAttr {
    let (_, _, kind) = TREE[place];
    FileAttr {
        ino: INodeNo(place as u64 + 1),
        size: PAGE,
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

fn tell(question: &str, name: &str, tid: u32) {
    println!("{question} {name} {tid}");
    let _ = std::io::stdout().flush();
}

fn main() -> Result<()> {
    let mountpoint = PathBuf::from(std::env::args_os().nth(1).context("silent_fs MOUNTPOINT")?);
    let mut config = Config::default();
    config.acl = SessionACL::All;
    let session = fuser::Session::new(Silent::default(), &mountpoint, &config).context("mount a file system")?;
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = umount2(&mountpoint, MntFlags::MNT_DETACH);
        // With the last descriptor of the device all that waits is let go.
        std::process::exit(0);
    });
    println!("ready");
    std::io::stdout().flush()?;
    session.run().context("serve a file system")
}
