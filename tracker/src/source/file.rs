//! Reading small files that somebody else put where they are: nothing that is opened here can hang the reader by
//! being a FIFO, a device or a terminal, lead it elsewhere by a symbolic link, or fill its memory.
//!
//! What is left is a file system that does not answer (FUSE, NFS): whoever reads paths that others choose does it in
//! a thread that may be lost, or with [`Walk::Beneath`], which leaves no file system's ground.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

/// How a path may be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Anywhere; only the last component must not be a symbolic link.
    Free,
    /// Below the directory that is given, through no symbolic link, on its file system.
    Beneath,
    /// As by a process whose root directory is the one that is given: absolute paths and links begin there, and nothing
    /// leads out of it.
    InRoot,
}

/// Opens a directory, to read files below it.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    open(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Walk::Free)
}

/// Opens a directory below `dir`.
pub fn open_dir_at(dir: impl AsFd, path: &Path, walk: Walk) -> io::Result<OwnedFd> {
    open(dir, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, walk)
}

/// A regular file of at most `max_len` bytes below `dir`: its attributes, to be asked before reading it.
pub fn open_regular(dir: impl AsFd, path: &Path, walk: Walk, max_len: u64) -> io::Result<(File, FileStat)> {
    let file = open(dir, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, walk)?;
    let stat = fstat(&file)?;
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
        return refuse("not a regular file");
    }
    if stat.st_size as u64 > max_len {
        return refuse("larger than what is read");
    }
    Ok((file.into(), stat))
}

/// The content of a regular file of at most `max_len` bytes below `dir`. One that grows meanwhile is cut.
pub fn read_regular(dir: impl AsFd, path: &Path, walk: Walk, max_len: u64) -> io::Result<Vec<u8>> {
    read_all(open_regular(dir, path, walk, max_len)?.0, max_len)
}

/// At most `max_len` bytes of `file`.
pub fn read_all(file: File, max_len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max_len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open(dir: impl AsFd, path: &Path, flags: OFlag, walk: Walk) -> io::Result<OwnedFd> {
    let resolve = match walk {
        Walk::Free => ResolveFlag::RESOLVE_NO_MAGICLINKS,
        Walk::InRoot => ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        Walk::Beneath => ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
    };
    let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).mode(Mode::empty()).resolve(resolve);
    Ok(openat2(dir, path, how)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_small_regular_files_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let dir = open_dir(temp.path()).unwrap();
        let read = |name: &str, walk| read_regular(&dir, Path::new(name), walk, 4).ok();
        std::fs::write(temp.path().join("small"), "1234").unwrap();
        std::fs::write(temp.path().join("large"), "12345").unwrap();
        mkfifo(&temp.path().join("fifo"), Mode::S_IRWXU).unwrap();
        symlink("small", temp.path().join("link")).unwrap();
        for walk in [Walk::Free, Walk::Beneath] {
            assert_eq!(read("small", walk).unwrap(), b"1234");
            for name in ["large", "fifo", "link", ".", "absent"] {
                assert_eq!(read(name, walk), None, "{name}");
            }
        }
    }

    #[test]
    fn a_walk_in_a_root_finds_what_a_process_there_would() {
        let temp = tempfile::tempdir().unwrap();
        let inside = temp.path().join("root");
        std::fs::create_dir_all(inside.join("etc")).unwrap();
        std::fs::write(inside.join("etc/name"), "in").unwrap();
        std::fs::create_dir(temp.path().join("etc")).unwrap();
        std::fs::write(temp.path().join("etc/name"), "out").unwrap();
        symlink("/etc", inside.join("absolute")).unwrap();
        symlink("../../../etc", inside.join("upward")).unwrap();
        let root = open_dir(&inside).unwrap();
        for path in ["/etc/name", "etc/name", "../etc/name", "absolute/name", "upward/name", "/absolute/../etc/name"] {
            assert_eq!(read_regular(&root, Path::new(path), Walk::InRoot, 9).unwrap(), b"in", "{path}");
        }
        let out = temp.path().join("etc/name");
        read_regular(&root, &out, Walk::InRoot, 9).unwrap_err();
        let root = open_dir(Path::new("/")).unwrap();
        let magic = format!("/proc/self/root{}", out.display());
        read_regular(&root, Path::new(&magic), Walk::InRoot, 9).unwrap_err();
        assert_eq!(read_regular(&root, &out, Walk::InRoot, 9).unwrap(), b"out");
    }

    #[test]
    fn a_walk_beneath_does_not_leave() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("below")).unwrap();
        std::fs::write(temp.path().join("secret"), "1").unwrap();
        symlink("..", temp.path().join("below/up")).unwrap();
        let dir = open_dir(&temp.path().join("below")).unwrap();
        for path in ["../secret", "up/secret"] {
            read_regular(&dir, Path::new(path), Walk::Beneath, 9).unwrap_err();
            assert_eq!(read_regular(&dir, Path::new(path), Walk::Free, 9).unwrap(), b"1");
        }
        let root = open_dir(Path::new("/")).unwrap();
        read_regular(&root, Path::new("proc/version"), Walk::Beneath, 4096).unwrap_err();
    }
}
