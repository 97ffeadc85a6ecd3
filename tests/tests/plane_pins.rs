//! From an event's numbers to a container by pinned maps alone, while a daemon runs, after it was killed, and when there
//! is another.

use std::collections::HashSet;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tracker::source::task::Task;
use tracker_common::plane::BpfRow;
use tracker_common::table::Slot;
use tracker_tests::bpf::{PinDirectory, Pinned};
use tracker_tests::child::Child;
use tracker_tests::daemon::Daemon;
use tracker_tests::demo::Place;
use tracker_tests::wait::{PATIENCE, eventually};
use tracker_tests::{kernel, require, requirement};

/// The pinned maps, opened once, as a tracer opens them.
struct Maps {
    namespaces: Pinned,
    cgroups: Pinned,
    rows: Pinned,
}

/// What they say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    id: String,
    kind: u8,
    state: u8,
    generation: u64,
}

impl Maps {
    fn open(pins: &Path) -> Result<Maps> {
        let open = |name| Pinned::open(&pins.join(name)).with_context(|| format!("open `{name}`"));
        Ok(Maps { namespaces: open("mount_namespaces")?, cgroups: open("cgroups")?, rows: open("rows")? })
    }

    fn slot(&self, mntns: u32) -> Option<Slot> {
        let bytes: [u8; size_of::<Slot>()] = self.namespaces.lookup(&mntns.to_ne_bytes()).ok()?;
        let (generation, born) = (number(&bytes, 0), number(&bytes, 8));
        let (row, flags) = (number(&bytes, 16) as u32, (number(&bytes, 16) >> 32) as u32);
        Some(Slot { generation, born, row, flags })
    }

    /// The row that a cgroup names, and the generation that it means.
    fn cgroup(&self, id: u64) -> Option<(u32, u64)> {
        let bytes: [u8; 16] = self.cgroups.lookup(&id.to_ne_bytes()).ok()?;
        Some((number(&bytes, 8) as u32, number(&bytes, 0)))
    }

    /// The row, if it is that generation's, once nobody writes it.
    fn row(&self, row: u32, generation: u64) -> Option<Said> {
        let read = || self.rows.lookup::<{ size_of::<BpfRow>() }>(&row.to_ne_bytes()).ok();
        let bytes = eventually("nobody writes the row", || {
            let (Some(bytes), Some(again)) = (read(), read()) else { return Some(None) };
            let lock = number(&bytes, 0);
            (lock.is_multiple_of(2) && lock == number(&again, 0)).then_some(Some(bytes))
        })?;
        if number(&bytes, 8) != generation {
            return None;
        }
        let id = String::from_utf8_lossy(&bytes[40..40 + usize::from(bytes[35])]).into_owned();
        Some(Said { id, kind: bytes[32], state: bytes[33], generation })
    }

    fn of_mntns(&self, mntns: u32) -> Option<Said> {
        let slot = self.slot(mntns)?;
        self.row(slot.row, slot.generation)
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes are 8 bytes"))
}

#[test]
fn the_maps_lead_to_the_container_with_and_without_a_daemon() -> Result<()> {
    require!(requirement::root(), kernel::btf(), requirement::tracker(), requirement::demo_runtime());
    let (place, pins) = (Place::new(), PinDirectory::new());
    let config = format!(
        "[barrier]\nknown-paths = false\nruntimes = ['{}']\n[proc]\nroots = ['{}']\nusual-roots = false\n\
         [collection]\nlinger-ms = 1000\n[plane]\npath = '{}'\npins = '{}'\n",
        place.program().display(),
        place.root().display(),
        place.path("plane").display(),
        pins.path().display()
    );
    let mut daemon = Daemon::start(&config)?;
    let maps = Maps::open(pins.path())?;
    let init = place.created("web", |_| ());
    let view = Task::open(init)?.view()?;
    let mntns = view.namespaces.mnt;
    place.succeed(&["start", "web"]);
    eventually("it runs", || daemon.in_state("web", "running"));
    let said = maps.of_mntns(mntns).context("the maps know it")?;
    assert_eq!((&*said.id, said.kind, said.state), ("web", 1, 3));
    let slot = maps.slot(mntns).context("it has a slot")?;
    assert_eq!(slot.flags, 0, "somebody vouches for it, and it has not ended");
    if let Some(cgroup) = daemon.find("web").and_then(|web| web["cgroup"]["id"].as_u64())
        && maps.cgroup(cgroup).is_some_and(|(row, _)| row != Slot::NO_ROW)
    {
        assert_eq!(maps.cgroup(cgroup), Some((slot.row, slot.generation)));
    }

    daemon.process().signal(Signal::SIGKILL)?;
    daemon.process().wait(PATIENCE)?;
    assert_eq!(maps.of_mntns(mntns), Some(said.clone()), "nobody is needed to ask");

    // The next one takes the same maps over, and the name with them until it has asked around.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let wrong = thread::scope(|scope| -> Result<usize> {
        let watcher = scope.spawn(|| {
            let mut wrong = 0;
            while !stop.load(std::sync::atomic::Ordering::Acquire) {
                wrong += usize::from(maps.of_mntns(mntns).is_none_or(|said| said.id != "web"));
            }
            wrong
        });
        let restarted = daemon.restart();
        eventually("it runs", || daemon.in_state("web", "running"));
        stop.store(true, std::sync::atomic::Ordering::Release);
        restarted?;
        Ok(watcher.join().expect("the watcher does not panic"))
    })?;
    assert_eq!(wrong, 0);
    assert_eq!(maps.of_mntns(mntns).map(|said| said.id).as_deref(), Some("web"));

    place.succeed(&["delete", "--force", "web"]);
    let ended = eventually("its end", || maps.slot(mntns).filter(|slot| slot.flags & Slot::ENDED != 0));
    assert_eq!(ended.generation, slot.generation);
    eventually("it is forgotten", || maps.row(ended.row, ended.generation).is_none().then_some(()));
    Ok(())
}

#[test]
fn numbers_that_are_used_again_never_lead_to_a_former_holder() -> Result<()> {
    require!(requirement::root(), kernel::btf(), requirement::tracker());
    let (place, pins) = (tempfile::tempdir()?, PinDirectory::new());
    let plane = place.path().join("plane");
    let config = format!("[plane]\npath = '{}'\npins = '{}'\n", plane.display(), pins.path().display());
    let daemon = Daemon::start(&config)?;
    let maps = Maps::open(pins.path())?;
    // Each has a number, and what the slot under it says while it lives: its generation, and its row's id if there is one.
    let one = || -> Result<(u32, u64, Option<String>)> {
        let child = Child::exiting(libc::CLONE_NEWNS, 0)?;
        let mntns = kernel::namespace(child.pid(), "mnt")?;
        let slot = maps.slot(mntns).context("a slot is there from the birth on")?;
        let mut said = maps.row(slot.row, slot.generation);
        // Half of them look until they are known.
        if child.pid() % 2 == 0 {
            said = Some(eventually("its row", || maps.of_mntns(mntns)));
        }
        ensure!(
            maps.slot(mntns).is_some_and(|again| again.generation == slot.generation),
            "it lives, and has its slot"
        );
        child.finish()?;
        Ok((mntns, slot.generation, said.map(|said| said.id)))
    };
    let told: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..75).map(|_| one()).collect::<Result<Vec<_>>>())).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect::<Result<Vec<_>>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    let numbers: HashSet<u32> = told.iter().map(|(mntns, ..)| *mntns).collect();
    assert!(numbers.len() < told.len(), "numbers were used again: {} of {}", numbers.len(), told.len());
    let generations: HashSet<u64> = told.iter().map(|(_, generation, _)| *generation).collect();
    assert_eq!(generations.len(), told.len(), "no slot was a former holder's");
    let mut known = 0;
    for (_, generation, id) in &told {
        if let Some(id) = id {
            assert_eq!(*id, format!("mntns-{generation}"));
            known += 1;
        }
    }
    assert!(known >= told.len() / 3, "{known}");
    drop(daemon);
    Ok(())
}
