//! What the tracker relies on in every kernel it supports, asked of the kernel that runs this. Runs in the virtual
//! machines, too, where it also shows that the machine is the one that was meant.

use anyhow::{Context, Result};
use tracker_tests::{kernel, require, requirement};

#[test]
fn the_machine_runs_the_kernel_that_was_meant() {
    let Ok(meant) = std::env::var("TRACKER_TESTS_KERNEL") else {
        // Outside of the virtual machines any supported kernel will do.
        assert!(kernel::version() >= (6, 1), "Linux {} is older than 6.1", kernel::release());
        return;
    };
    let (major, minor) = kernel::version();
    assert_eq!(format!("{major}.{minor}"), meant);
    assert!(kernel::only_cgroup2(), "the machines have cgroup v2 only");
}

#[test]
fn the_kernel_carries_its_type_information() -> Result<()> {
    require!(kernel::btf());
    let types = std::fs::read("/sys/kernel/btf/vmlinux").context("read `/sys/kernel/btf/vmlinux`")?;
    assert_eq!(types[..2], 0xeb9f_u16.to_ne_bytes(), "the magic number of BTF");
    Ok(())
}

#[test]
fn starts_can_be_held() {
    require!(requirement::root(), kernel::permission_events());
}

#[test]
fn a_process_is_told_from_its_successor_by_its_start_time() -> Result<()> {
    let own = kernel::start_ticks(std::process::id())?;
    let mut child = std::process::Command::new("sleep").arg("100").spawn().context("start `sleep`")?;
    let ticks = kernel::start_ticks(child.id());
    child.kill().context("kill `sleep`")?;
    child.wait().context("wait for `sleep`")?;
    assert!(ticks? >= own);
    assert!(!kernel::is_alive(child.id()));
    Ok(())
}
