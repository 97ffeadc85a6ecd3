//! Maps as somebody sees them who knows nothing of us: pinned files and `bpf()`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const OBJECT_PIN: libc::c_int = 6;
const OBJECT_GET: libc::c_int = 7;

/// A pinned map, opened.
pub struct Pinned(OwnedFd);

/// `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` for elements of maps.
#[repr(C)]
struct Element {
    fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Pinned {
    /// Opens what is pinned there.
    pub fn open(path: &Path) -> io::Result<Pinned> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut attributes = Get { path: path.as_ptr() as u64, fd: 0, flags: 0 };
        let fd = call(OBJECT_GET, &mut attributes)?;
        // SAFETY: the kernel has just put this fd into our table for us.
        Ok(Pinned(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Pins it under another name, too.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let fd = self.0.as_raw_fd() as u32;
        call(OBJECT_PIN, &mut Get { path: path.as_ptr() as u64, fd, flags: 0 }).map(drop)
    }

    /// The value under a key.
    pub fn lookup<const LEN: usize>(&self, key: &[u8]) -> io::Result<[u8; LEN]> {
        let mut value = [0; LEN];
        let mut attributes = self.element(key, value.as_mut_ptr());
        call(MAP_LOOKUP, &mut attributes)?;
        Ok(value)
    }

    /// Sets the value under a key.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut attributes = self.element(key, value.as_ptr().cast_mut());
        call(MAP_UPDATE, &mut attributes).map(drop)
    }

    fn element(&self, key: &[u8], value: *mut u8) -> Element {
        Element { fd: self.0.as_raw_fd() as u32, padding: 0, key: key.as_ptr() as u64, value: value as u64, flags: 0 }
    }
}

fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are those of the command, and their pointers point to what the kernel reads or writes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// A directory of pins of the test's own, removed in the end.
pub struct PinDirectory(PathBuf);

impl PinDirectory {
    /// A name that nobody else has. The directory is not made.
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> PinDirectory {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        PinDirectory(format!("/sys/fs/bpf/tracker-tests-{}-{count}", std::process::id()).into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The names in it, sorted, those of directories in it with theirs.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        list(&self.0, "", &mut names);
        names.sort();
        names
    }
}

fn list(directory: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            list(&entry.path(), &format!("{name}/"), names);
        } else {
            names.push(name);
        }
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
