//! A caller whose arguments lie on a file system: `fuse_caller root|user ARGUMENTS ENVIRONMENT PROGRAM` executes PROGRAM
//! as `execve(PROGRAM, [first page of ARGUMENTS, "start", "nothing"], [first page of ENVIRONMENT])`. Whoever reads its
//! argument list while `execve` is held reads ARGUMENTS first; `execve` itself, once it is allowed, reads ENVIRONMENT
//! first. With `user` the caller is nobody by then.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::unistd::{Uid, setuid};

const PAGE: usize = 4096;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [who, list, environment, program] = arguments.as_slice() else {
        bail!("fuse_caller root|user ARGUMENTS ENVIRONMENT PROGRAM")
    };
    let (list, environment, program) = (map(list)?, map(environment)?, CString::new(program.as_str())?);
    if who == "user" {
        setuid(Uid::from_raw(65_534)).context("become nobody")?;
    }
    let list = [list, c"start".as_ptr(), c"nothing".as_ptr(), std::ptr::null()];
    let environment = [environment, std::ptr::null()];
    // SAFETY: a path ended by NUL and two lists ended by null; that what they point to may not be there is for the kernel
    // to find out.
    unsafe { libc::execve(program.as_ptr(), list.as_ptr(), environment.as_ptr()) };
    bail!("execve: {}", Errno::last())
}

/// The first page of a file, which is not read for that.
fn map(path: &str) -> Result<*const libc::c_char> {
    let file = File::open(path).with_context(|| format!("open `{path}`"))?;
    let fd = file.as_raw_fd();
    // SAFETY: a new mapping at an address of the kernel's choice, of a file that is open.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0) };
    ensure!(page != libc::MAP_FAILED, "map `{path}`: {}", Errno::last());
    Ok(page.cast_const().cast())
}
