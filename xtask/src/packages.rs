//! What the tests need of the machine, and how it gets there.
//!
//! A package counts as present when its program is, whoever installed it: a machine with another vendor's containerd
//! keeps it. Only what is missing is installed, with apt-get, and only where there is one and root allows it.

use std::path::Path;

use anyhow::{Result, bail};

use crate::workspace::{as_root, find_program, succeed};

/// A Debian package and the file that shows that it is there.
pub(crate) struct Package {
    name: &'static str,
    shows: Shows,
}

enum Shows {
    Program(&'static str),
    /// A program that must not need the dynamic loader, since it will be alone in a container or an initramfs.
    StaticProgram(&'static str),
}

/// Real runtimes, and what their containers are made of.
pub(crate) const RUNTIMES: &[Package] = &[
    Package { name: "containerd", shows: Shows::Program("containerd") },
    Package { name: "runc", shows: Shows::Program("runc") },
    Package { name: "crun", shows: Shows::Program("crun") },
    Package { name: "podman", shows: Shows::Program("podman") },
    Package { name: "conmon", shows: Shows::Program("conmon") },
    // With its command line: Debian 12 has both in one package.
    Package { name: "docker.io", shows: Shows::Program("dockerd") },
    Package { name: "busybox-static", shows: Shows::StaticProgram("busybox") },
    Package { name: "containernetworking-plugins", shows: Shows::Program("/usr/lib/cni/bridge") },
    Package { name: "iproute2", shows: Shows::Program("ip") },
    Package { name: "iptables", shows: Shows::Program("iptables") },
    Package { name: "bubblewrap", shows: Shows::Program("bwrap") },
    Package { name: "systemd-container", shows: Shows::Program("systemd-nspawn") },
    Package { name: "lxc", shows: Shows::Program("lxc-start") },
    // Readers of the plane in other languages.
    Package { name: "gcc", shows: Shows::Program("cc") },
    Package { name: "libc6-dev", shows: Shows::Program("/usr/include/stdio.h") },
    Package { name: "python3", shows: Shows::Program("python3") },
];

/// Booting other kernels.
pub(crate) const EMULATOR: &[Package] = &[
    Package { name: "qemu-system-x86", shows: Shows::Program("qemu-system-x86_64") },
    Package { name: "cpio", shows: Shows::Program("cpio") },
    Package { name: "busybox-static", shows: Shows::StaticProgram("busybox") },
    Package { name: "runc", shows: Shows::Program("runc") },
    Package { name: "crun", shows: Shows::Program("crun") },
    Package { name: "iproute2", shows: Shows::Program("ip") },
    Package { name: "xz-utils", shows: Shows::Program("xz") },
];

/// Building the kernel side: a Rust compiler with its own sources, and LLVM for bpf-linker.
pub(crate) const EBPF: &[Package] = &[
    Package { name: "rustc-web", shows: Shows::Program("/usr/bin/rustc") },
    Package { name: "rust-web-src", shows: Shows::Program("/usr/lib/rustlib/src/rust/library/core/src/lib.rs") },
    Package { name: "llvm-22-dev", shows: Shows::Program("/usr/lib/llvm-22/bin/llvm-objcopy") },
];

/// Whether nothing would have to be installed.
pub(crate) fn are_present(packages: &[Package]) -> bool {
    packages.iter().all(Package::is_present)
}

/// Installs what is missing, or says what to install.
pub(crate) fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|package| !package.is_present()).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if find_program("apt-get").is_none() {
        bail!("the tests need programs of these Debian packages, and there is no apt-get here: {}", missing.join(" "));
    }
    println!("xtask: installing {}", missing.join(" "));
    let noninteractive = [("DEBIAN_FRONTEND", Path::new("noninteractive"))];
    let installed = as_root("apt-get", &noninteractive)
        .and_then(|mut apt| succeed(apt.args(["update", "-qq"])))
        .and_then(|()| as_root("apt-get", &noninteractive))
        .and_then(|mut apt| succeed(apt.args(["install", "-qq", "-y", "--no-install-recommends"]).args(&missing)));
    if let Err(error) = installed {
        bail!("{error:#}; the tests need: {by_hand}");
    }
    Ok(())
}

impl Package {
    fn is_present(&self) -> bool {
        match self.shows {
            Shows::Program(name) => find_program(name).is_some(),
            Shows::StaticProgram(name) => find_program(name).is_some_and(|path| !needs_loader(&path)),
        }
    }
}

/// Whether a program names a dynamic loader. Its path stands in the first page of every ELF file that has one.
fn needs_loader(program: &Path) -> bool {
    use std::io::Read;
    let mut start = Vec::with_capacity(4096);
    let read = std::fs::File::open(program).and_then(|file| file.take(4096).read_to_end(&mut start));
    read.is_err() || start.windows(8).any(|window| window == b"/ld-linu" || window == b"/ld-musl")
}
