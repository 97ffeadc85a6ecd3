//! Cgroups of the v2 hierarchy: made, emptied, removed, and the one that a process is born in.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tracker::fact::What;
use tracker_tests::child::Child;
use tracker_tests::probes::Probes;
use tracker_tests::{kernel, require, requirement};

/// A cgroup of its own, below the v2 hierarchy's root; removed when dropped.
struct Cgroup {
    directory: PathBuf,
    path: String,
    id: u64,
}

impl Cgroup {
    fn create(name: &str) -> Result<Cgroup> {
        let v2 = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let root = v2.into_iter().find(|root| root.join("cgroup.controllers").exists()).context("find cgroup v2")?;
        let path = format!("/tracker-{name}-{}", std::process::id());
        let directory = root.join(&path[1..]);
        fs::create_dir(&directory).with_context(|| format!("create `{}`", directory.display()))?;
        let id = fs::metadata(&directory).context("look at the new cgroup")?.ino();
        Ok(Cgroup { directory, path, id })
    }

    fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.directory.join("cgroup.procs"), pid.to_string()).context("move a process")
    }

    fn remove(&self) -> Result<()> {
        fs::remove_dir(&self.directory).with_context(|| format!("remove `{}`", self.directory.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The test may have removed it.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// One at a time: a flood of cgroups is in every ring buffer on the machine, and one that is not read yet loses some.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_cgroup_is_made_holds_a_container_and_is_emptied_and_removed() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let probes = Probes::start()?;
    let cgroup = Cgroup::create("life")?;
    // Born by a process in the cgroup, as a runtime's helper is: the birth's record has it already.
    // SAFETY: calls the kernel alone.
    let outer = unsafe { Child::clone(0, |_| tracker_tests::child::run_inner(libc::CLONE_NEWNS, || 0)) }?;
    cgroup.add(outer.pid())?;
    let parent = outer.task()?;
    outer.finish()?;
    let born = probes.until("the birth", |facts| {
        facts.iter().find_map(|fact| match fact.what {
            What::Born(born) if born.parent == Some(parent) => Some(born),
            _ => None,
        })
    });
    assert_eq!(born.cgroup_id, Some(cgroup.id));
    probes.until("the cgroup made", |facts| {
        let made = What::CgroupMade { id: cgroup.id, path: cgroup.path.as_str().into() };
        facts.iter().any(|fact| fact.what == made).then_some(())
    });
    let emptied = |times| {
        // Cgroups wake nobody: they are read with what the next container brings.
        Child::exiting(libc::CLONE_NEWNS, 0)?.finish()?;
        probes.until("the cgroup emptied", |facts| {
            let emptied = facts.iter().filter(|fact| fact.what == What::CgroupEmptied { id: cgroup.id });
            (emptied.count() == times).then_some(())
        });
        anyhow::Ok(())
    };
    emptied(1)?;
    cgroup.remove()?;
    emptied(2)
}

#[test]
fn many_cgroups_without_any_container_are_read_before_the_ring_buffer_is_full() -> Result<()> {
    require!(requirement::root(), kernel::btf());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let probes = Probes::start()?;
    let mut last = 0;
    // Three times what the ring buffer holds, and no container that would wake anybody.
    for _ in 0..3000 {
        let cgroup = Cgroup::create("many")?;
        cgroup.remove()?;
        last = cgroup.id;
    }
    Child::exiting(libc::CLONE_NEWNS, 0)?.finish()?;
    probes.until("the last removal", |facts| {
        facts.iter().any(|fact| fact.what == What::CgroupEmptied { id: last }).then_some(())
    });
    assert!(probes.stats.losses().all(|(_, lost)| lost == 0), "{:?}", probes.stats);
    Ok(())
}
