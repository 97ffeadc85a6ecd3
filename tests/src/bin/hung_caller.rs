//! A caller whose argument list lies on a page that is not there: `hung_caller deliver|never|user PROGRAM ARGUMENT…` executes
//! PROGRAM with a list that has to be fetched through userfaultfd. Whoever reads the list while `execve` is held, hangs.
//!
//! Prints the milliseconds from the call of `execve` to the moment when `execve` itself wants the list, which is after
//! it was allowed. Then, but with `never`, it gets it. With `user` the caller is nobody by then.

#![allow(clippy::print_stdout, reason = "its output is how the test hears from it")]

use std::ffi::CString;
use std::io::Write;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

const PAGE: usize = 4096;
const UFFD_API: u64 = 0xAA;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_FEATURE_THREAD_ID: u64 = 1 << 8;

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

nix::ioctl_readwrite!(
    /// `UFFDIO_API`
    uffdio_api, 0xAA, 0x3F, Api
);
nix::ioctl_readwrite!(
    /// `UFFDIO_REGISTER`
    uffdio_register, 0xAA, 0x00, Register
);
nix::ioctl_readwrite!(
    /// `UFFDIO_COPY`
    uffdio_copy, 0xAA, 0x03, Copy
);

fn main() -> Result<()> {
    let mode = std::env::args().nth(1).unwrap_or_default();
    let words: Vec<CString> = std::env::args().skip(2).map(CString::new).collect::<Result<_, _>>()?;
    ensure!(!words.is_empty(), "hung_caller deliver|never|user PROGRAM ARGUMENT…");

    // SAFETY: takes an integer only.
    let uffd =
        Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) }).context("userfaultfd")?;
    let uffd = i32::try_from(uffd)?;
    let mut api = Api { api: UFFD_API, features: UFFD_FEATURE_THREAD_ID, ioctls: 0 };
    // SAFETY: `api` is what this request reads and writes.
    unsafe { uffdio_api(uffd, &mut api) }.context("UFFDIO_API")?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let page = unsafe {
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), PAGE, rights, flags, -1, 0)
    };
    ensure!(page != libc::MAP_FAILED, "mmap");
    let page = page as u64;
    let mut register = Register { start: page, len: PAGE as u64, mode: 1, ioctls: 0 };
    // SAFETY: `register` is what this request reads and writes, and names a mapping of ours that nobody uses yet.
    unsafe { uffdio_register(uffd, &mut register) }.context("UFFDIO_REGISTER")?;

    if mode == "user" {
        // Before there is another thread, and after the file was opened that only root may open.
        nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534)).context("become nobody")?;
    }
    let mut list: Vec<u64> = words.iter().map(|word| word.as_ptr() as u64).collect();
    list.resize(PAGE / size_of::<u64>(), 0);
    let program = words[0].clone();
    let begun = Instant::now();
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    thread::spawn(move || {
        // SAFETY: takes nothing.
        let _ = tell.send(unsafe { libc::gettid() });
        let environment = [std::ptr::null()];
        // SAFETY: a path ended by NUL, a list that the other thread delivers ended by null, and an empty environment.
        unsafe { libc::execve(program.as_ptr(), page as *const *const libc::c_char, environment.as_ptr()) };
        let _ = writeln!(std::io::stderr(), "execve: {}", Errno::last());
        std::process::exit(126);
    });
    let executing = told.recv()?;
    loop {
        let mut message = [0u8; 32];
        // SAFETY: reads into a buffer of this length.
        let len = unsafe { libc::read(uffd, message.as_mut_ptr().cast(), message.len()) };
        ensure!(len == 32 && message[0] == UFFD_EVENT_PAGEFAULT, "an event of userfaultfd");
        let tid = i32::from_ne_bytes([message[24], message[25], message[26], message[27]]);
        if tid == executing {
            break;
        }
    }
    println!("{}", begun.elapsed().as_millis());
    std::io::stdout().flush()?;
    if mode != "never" {
        let mut copy = Copy { dst: page, src: list.as_ptr() as u64, len: PAGE as u64, mode: 0, copied: 0 };
        // SAFETY: source and destination are pages of ours that live as long as this process's present image.
        unsafe { uffdio_copy(uffd, &mut copy) }.context("UFFDIO_COPY")?;
    }
    // The other thread's `execve` ends this one.
    loop {
        thread::park();
    }
}
