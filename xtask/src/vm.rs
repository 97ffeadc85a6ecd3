//! Tests on other kernels: Debian's 6.1 and 6.12, booted by QEMU without any help of the machine's processor, with
//! cgroup v2 and nothing else; and once with cgroup v1 and nothing else, for the tests that are about cgroups.
//!
//! A machine is a kernel and one initramfs: a static busybox, the tests linked statically, the tracker, runc, crun and ip
//! with their libraries, the kernels' modules for virtual interfaces. There is no disk and no network. Standard output of the
//! tests is the second serial port; the first one is the kernel's, kept in a file. A machine that ends without saying `END
//! rc=0` has failed, whatever it printed before.
//!
//! Emulation is 15 to 20 times slower than the machine: what passes here is right, how fast it was means nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::layers::{self, Tally};
use crate::test::{self, Built};
use crate::workspace::{find_program, output_of, succeed, target};

mod kernels;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const MACHINE_SECONDS: u32 = 1_200;

/// Test programs whose names begin so run in the machines, too. Of the barrier's, those that show that the kernel asks
/// and is answered; hundreds of starts at once would take minutes here and show nothing else. The examples have
/// probes of their own, and what selects is a map that those look up. Of routes, those about what kernels say and announce.
const PREFIXES: &[&str] =
    &["kernel_", "barrier_held", "execsnoop", "tcpconnect", "routes_cache", "routes_hops", "routes_oracle", CGROUPS];

/// The test programs that run where there is only cgroup v1, too.
const CGROUPS: &str = "cgroup_";

/// Interfaces that net namespaces are connected by; each after those that it needs.
const MODULES: &[&str] = &["llc", "stp", "bridge", "macvlan", "veth"];

/// Makes a cargo command for [`TARGET`] produce programs that need nothing but a kernel.
pub(crate) fn link_statically(cargo: &mut Command) {
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-feature=+crt-static -Cstrip=debuginfo");
}

/// Runs the tests on each kernel.
pub(crate) fn test(filter: Option<&str>) -> Result<Tally> {
    ensure!(cfg!(target_arch = "x86_64"), "the virtual machines are made of x86-64 programs, this is another machine");
    let directory = target().join("vm");
    fs::create_dir_all(&directory).with_context(|| format!("create `{}`", directory.display()))?;

    let mut built = test::test_programs(Some(TARGET))?;
    built.tests.retain(|program| PREFIXES.iter().any(|prefix| program.name.starts_with(prefix)));
    ensure!(!built.tests.is_empty(), "there is no test program whose name starts with one of {PREFIXES:?}");
    let tracker = test::build_tracker(Some(TARGET))?;
    let kernels = kernels::obtain(&directory)?;
    let initramfs = initramfs(&directory, &kernels, &built, &tracker)?;

    let mut tally = Tally::default();
    for kernel in &kernels {
        println!("\nLinux {}:", kernel.release);
        tally += boot(&directory, kernel, Cgroups::V2, &initramfs, filter)?;
    }
    // The oldest: what is gone from a younger kernel's v1, nobody runs it for.
    if let Some(kernel) = kernels.first() {
        println!("\nLinux {} with cgroup v1:", kernel.release);
        tally += boot(&directory, kernel, Cgroups::V1, &initramfs, filter)?;
    }
    Ok(tally)
}

/// Packs everything that a machine has.
fn initramfs(directory: &Path, kernels: &[kernels::Kernel], built: &Built, tracker: &Path) -> Result<PathBuf> {
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove `{}`", root.display()))?;
    }
    for name in ["bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "run", "root", "new", "tests", "usr", "var"] {
        fs::create_dir_all(root.join(name)).with_context(|| format!("create `{name}` in `{}`", root.display()))?;
    }
    let busybox = find_program("busybox").context("find busybox")?;
    install(&busybox, &root.join("bin/busybox"))?;
    for applet in output_of(Command::new(&busybox).arg("--list"))?.lines() {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", &link).with_context(|| format!("link `{}`", link.display()))?;
        }
    }
    for (name, text) in [("init", include_str!("vm/init")), ("init2", include_str!("vm/init2"))] {
        let path = root.join(name);
        fs::write(&path, text).with_context(|| format!("write `{}`", path.display()))?;
        executable(&path)?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
        .context("write `etc/passwd`")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").context("write `etc/group`")?;

    for program in &built.tests {
        install(&program.path, &root.join("tests").join(&program.name))?;
    }
    // Where the tests were compiled to look for them.
    for helper in &built.helpers {
        install(helper, &root.join(helper.strip_prefix("/").unwrap_or(helper)))?;
    }
    install(tracker, &root.join("bin/tracker"))?;
    for example in ["execsnoop", "tcpconnect"] {
        install(&tracker.with_file_name("examples").join(example), &root.join("bin/examples").join(example))?;
    }
    // The oracle of routes: busybox has an `ip`, too, which knows little.
    fs::remove_file(root.join("bin/ip")).context("remove busybox's `ip`")?;
    for name in ["runc", "crun", "ip"] {
        let program = find_program(name).with_context(|| format!("find {name}"))?;
        install(&program, &root.join("bin").join(name))?;
        for library in libraries(&program)? {
            let inside = root.join(library.strip_prefix("/").unwrap_or(&library));
            install(&library, &inside)?;
        }
    }

    for kernel in kernels {
        let modules = root.join("modules").join(&kernel.release);
        fs::create_dir_all(&modules).with_context(|| format!("create `{}`", modules.display()))?;
        for name in MODULES {
            kernel.module(name, &modules)?;
        }
    }

    // Uncompressed: the kernel would spend longer unpacking than the emulator spends reading.
    let archive = directory.join("initramfs.cpio");
    let mut pack = Command::new("sh");
    pack.current_dir(&root).args(["-c", "find . | cpio --quiet -o -H newc > \"$0\""]).arg(&archive);
    succeed(&mut pack)?;
    Ok(archive)
}

/// The shared libraries of a program and its loader, at the paths where they are looked for.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = output_of(Command::new("ldd").arg(program))?;
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn install(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create `{}`", parent.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copy `{}` to `{}`", from.display(), to.display()))?;
    executable(to)
}

fn executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make `{}` executable", path.display()))
}

/// The one version of cgroups that a machine has.
#[derive(Clone, Copy)]
enum Cgroups {
    V1,
    V2,
}

fn boot(
    directory: &Path,
    kernel: &kernels::Kernel,
    cgroups: Cgroups,
    initramfs: &Path,
    filter: Option<&str>,
) -> Result<Tally> {
    let (suffix, layout) = match cgroups {
        Cgroups::V1 => ("-v1", format!(" tests.cgroups=v1 tests.programs={CGROUPS}")),
        Cgroups::V2 => ("", String::new()),
    };
    let console = directory.join(format!("console-{}{suffix}", kernel.release));
    let mut machine = Command::new("qemu-system-x86_64");
    machine.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"]);
    machine.args(["-nodefaults", "-display", "none", "-monitor", "none", "-no-reboot"]);
    machine.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    // A panic reboots at once, and a reboot is the end of the machine.
    let filter = filter.map(|filter| format!(" tests.filter={filter}")).unwrap_or_default();
    let expected = format!(" tests.kernel={} tests.modules={}", kernel.line, MODULES.join(","));
    machine.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 tsc=reliable{expected}{layout}{filter}"));
    machine.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);

    let mut tally = Tally::default();
    let mut ended_well = false;
    layers::stream(&machine, MACHINE_SECONDS, |line| {
        tally.read_line(line);
        ended_well |= line.trim_end() == "END rc=0";
    })?;
    if !ended_well && tally.failed == 0 {
        println!("xtask: the machine did not get to its end; its last words are in `{}`:", console.display());
        let words = fs::read(&console).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        for line in words.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev() {
            println!("  {line}");
        }
        tally += Tally::FAILURE;
    }
    Ok(tally)
}
