//! A kernel that lacks something: `without_call NUMBER ERRNO PROGRAM ARGUMENT…` executes PROGRAM, for which the system
//! call of this number always fails with this error. What runs is the real code, on a kernel that refuses it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

/// One instruction of the filter: what the kernel calls `struct sock_filter`.
fn instruction(code: u32, jump: (u8, u8), k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump.0, jf: jump.1, k }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = || -> Result<u32> { Ok(arguments.next().context("a number")?.parse()?) };
    let (call, errno) = (number()?, number()?);
    let program = arguments.next().context("a program")?;

    // The number of the call is the first word of `struct seccomp_data`. What runs here was built for this machine's own
    // architecture, so that there is one numbering only.
    let mut filter = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (0, 1), call),
        instruction(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ERRNO | errno),
        instruction(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program lives until the call returns; the kernel copies it. Root needs no `no_new_privs` for it.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    if set != 0 {
        bail!("set the filter: {}", Errno::last());
    }
    Err(Command::new(&program).args(arguments).exec()).with_context(|| format!("execute `{program}`"))
}
