//! Where a container's processes are counted differs from host to host: cgroup v2 alone, v1 alone, both beside each
//! other. What the tracker says of a container's cgroup is what the kernel and the file system say, in each of them, and a
//! container's life has the same end. Runs in the virtual machines, too, which have v2 alone, and v1 alone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tracker::container::{Cgroup, Grade, State};
use tracker::{ById, Container, Group, Lookup, Reader};
use tracker_tests::house::House;
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");

/// Where the v2 hierarchy is mounted, if it is.
fn v2_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_v2 = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    of_v2.split(' ').nth(4).map(PathBuf::from)
}

/// The path of a process in the hierarchies that `wanted` picks by number and controllers.
fn path_in(pid: u32, wanted: impl Fn(&str, &str) -> bool) -> Option<String> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (hierarchy, controllers) = (fields.next()?, fields.next()?);
        wanted(hierarchy, controllers).then(|| fields.next().map(str::to_owned)).flatten()
    })
}

/// What the kernel and the file system say about a process's cgroup, asked by this test.
fn truth(pid: u32) -> Result<Cgroup> {
    let mut cgroup = Cgroup::default();
    if let Some(root) = v2_root() {
        let path = path_in(pid, |hierarchy, _| hierarchy == "0").context("a path in the v2 hierarchy")?;
        let directory = root.join(path.trim_start_matches('/'));
        cgroup.id = Some(fs::metadata(&directory).with_context(|| format!("find `{}`", directory.display()))?.ino());
        cgroup.path = Some(path.into());
    }
    let v1 = path_in(pid, |_, controllers| controllers.split(',').any(|controller| controller == "memory"));
    cgroup.v1_path = v1.map(Into::into);
    Ok(cgroup)
}

#[track_caller]
fn until(reader: &mut Reader, mntns: u32, what: &str, is_so: impl Fn(&Container) -> bool) -> Container {
    eventually(what, || match reader.by_mntns(mntns) {
        Lookup::Container(container) if is_so(container) => Some(container.clone()),
        _ => None,
    })
}

fn a_container_has_its_cgroup_and_its_end(kind: Kind) -> Result<()> {
    let house = House::new(kind)?;
    let tracker = house.tracker(KEEPER, "")?;
    let mut reader = tracker.reader();
    let id = format!("layouts-{}-{}", kind.name(), std::process::id());
    let path = format!("/{id}");
    // A path of its own: where runtimes put a container without one differs, too.
    let bundle = house.bundle_with(&id, &["sleep", "1000"], |config| config["linux"]["cgroupsPath"] = path.into())?;
    let container = house.runtime().create(&bundle, &id)?;
    container.start()?;
    let mntns = kernel::namespace(container.pid(), "mnt")?;
    let running = until(&mut reader, mntns, "it runs", |it| it.state == State::Running);
    assert_eq!((&*running.id, running.grade), (&*id, Some(Grade::Held)));
    assert_eq!(running.cgroup, truth(container.pid())?);
    if let Some(cgroup) = running.cgroup.id {
        let Group::Containers(by_cgroup) = reader.by_cgroup(cgroup) else { panic!("cgroup {cgroup} is not known") };
        let ids: Vec<_> = by_cgroup.map(|container| container.id.to_string()).collect();
        assert_eq!(ids, [&*id]);
    }

    container.kill("KILL")?;
    let over = eventually("it has ended", || match reader.by_id(&id) {
        ById::Found(container) if container.state == State::Exited => Some(container.clone()),
        _ => None,
    });
    assert_eq!(over.exit.map(|exit| (exit.code, exit.signal)), Some((137, Some(9))));
    // Its numbers end with its last process, where a cgroup of its own tells of that, else with its init; for the past
    // they are its own.
    let ended_at = over.exited_at.context("a time of its end")?;
    eventually("nobody has its mount ns", || match reader.by_mntns(mntns) {
        Lookup::Container(container) if container.state == State::Exited => Some(()),
        Lookup::Unknown => Some(()),
        _ => None,
    });
    let Lookup::Container(then) = reader.by_mntns_at(mntns, ended_at) else { panic!("{mntns} at its end") };
    assert_eq!(*then.id, *id);
    drop(container);
    Ok(())
}

#[test]
fn a_container_of_runc_has_its_cgroup_and_its_end() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::btf(), kernel::permission_events());
    a_container_has_its_cgroup_and_its_end(Kind::Runc)
}

#[test]
fn a_container_of_crun_has_its_cgroup_and_its_end() -> Result<()> {
    require!(Kind::Crun.requirement(), kernel::btf(), kernel::permission_events());
    a_container_has_its_cgroup_and_its_end(Kind::Crun)
}
