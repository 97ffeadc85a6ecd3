//! Selections: BPF maps that always hold exactly the picked containers, and pins that end with their owner.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use aya::maps::{HashMap, IterableMap, Map, MapData};
use tracker::collection::view::Host;
use tracker::container::{ContainerId, ContainerKey, Domain, Exit, Namespaces, TaskId};
use tracker::fact::{Birth, End, Fact, Source, Statement, What};
use tracker::plane::selection::SelectionMaps;
use tracker::{BootTime, Config, Selection, Tracker};
use tracker_tests::house::{House, PATIENT};
use tracker_tests::runc::Kind;
use tracker_tests::wait::eventually;
use tracker_tests::{kernel, require, requirement};

const KEEPER: &str = env!("CARGO_BIN_EXE_keeper");

/// A container that the test made up.
#[derive(Clone, Debug)]
struct Life {
    id: String,
    task: TaskId,
    mntns: u32,
    cgroup: u64,
    generation: u64,
    app: &'static str,
}

impl Life {
    fn stated(&self) -> What {
        let key = ContainerKey {
            domain: Domain::Host,
            scope: "test".into(),
            id: ContainerId::new(&self.id).expect("made of letters and digits"),
        };
        let statement = Statement {
            task: Some(self.task),
            labels: Some([("app", self.app)].into_iter().collect()),
            ..Statement::default()
        };
        What::Stated { key, statement: Box::new(statement) }
    }

    fn born(&self) -> What {
        What::Born(Birth {
            task: self.task,
            parent: None,
            outer: None,
            namespaces: Namespaces { mnt: self.mntns, ..Namespaces::default() },
            generation: Some(self.generation),
            cgroup_id: Some(self.cgroup),
            uid: 0,
            born_at: BootTime::now(),
            executed: true,
        })
    }

    fn ended(&self) -> What {
        let (mntns, generation) = (self.mntns, Some(self.generation));
        What::Ended(End { task: self.task, mntns, generation, exit: Exit::default() })
    }
}

/// What the test made up, and what has to be in the maps therefore.
#[derive(Default)]
struct World {
    alive: Vec<Life>,
    next: u32,
}

const APPS: [&str; 3] = ["web", "db", "cron"];

impl World {
    /// Something happens: facts in the order in which they are told.
    fn happens(&mut self) -> Vec<What> {
        let any = |len: usize| fastrand::usize(..len);
        match fastrand::u8(..10) {
            0..5 => {
                self.next += 1;
                let number = self.next;
                let life = Life {
                    id: format!("c{number}"),
                    task: TaskId { pid: 10_000 + number, start_ticks: number.into() },
                    mntns: 4_026_530_000 + fastrand::u32(..40),
                    cgroup: 7_000 + fastrand::u64(..10),
                    generation: number.into(),
                    app: APPS[any(APPS.len())],
                };
                let mut facts = vec![life.stated(), life.born()];
                // Who had the number has ended, for else it would not be free; that may be told before, later or never.
                if let Some(former) = self.alive.iter().position(|other| other.mntns == life.mntns) {
                    let former = self.alive.remove(former);
                    match fastrand::u8(..3) {
                        0 => facts.insert(0, former.ended()),
                        1 => facts.push(former.ended()),
                        _ => {}
                    }
                }
                self.alive.push(life);
                facts
            }
            5..8 if !self.alive.is_empty() => {
                let life = self.alive.remove(any(self.alive.len()));
                vec![life.ended()]
            }
            _ if !self.alive.is_empty() => {
                let place = any(self.alive.len());
                self.alive[place].app = APPS[any(APPS.len())];
                vec![self.alive[place].stated()]
            }
            _ => Vec::new(),
        }
    }

    /// The latest holder of each number, if it is one of these apps.
    fn mntns(&self, apps: &[&str]) -> BTreeMap<u32, u64> {
        let latest: BTreeMap<u32, &Life> = self.alive.iter().map(|life| (life.mntns, life)).collect();
        let picked = latest.into_iter().filter(|(_, life)| apps.contains(&life.app));
        picked.map(|(ns, life)| (ns, life.generation)).collect()
    }
}

fn mntns_of(selection: &Selection) -> Result<BTreeMap<u32, u64>> {
    let fd = selection.mount_namespaces().context("it has that map")?.try_clone_to_owned()?;
    let map = Map::from_map_data(MapData::from_fd(fd)?)?;
    Ok(HashMap::<MapData, u32, u64>::try_from(map)?.iter().collect::<Result<_, _>>()?)
}

fn cgroups_of(selection: &Selection) -> Result<BTreeMap<u64, u64>> {
    let fd = selection.cgroups().context("it has that map")?.try_clone_to_owned()?;
    let map = Map::from_map_data(MapData::from_fd(fd)?)?;
    Ok(HashMap::<MapData, u64, u64>::try_from(map)?.iter().collect::<Result<_, _>>()?)
}

fn tracker() -> Result<Tracker> {
    Ok(Tracker::without_sources(&Config::default(), Host::default())?)
}

/// States facts, and returns when they are published.
fn tell(tracker: &Tracker, facts: Vec<What>) -> Result<()> {
    let fact = |what| Fact { source: Source::Kernel, at: BootTime::now(), what };
    tracker.facts().state_blocking(facts.into_iter().map(fact).collect())?;
    // Answered after what was told before is published.
    tracker.subscribe_blocking(tracker::FeedOptions::new("published")).map(drop)?;
    Ok(())
}

#[test]
fn the_maps_hold_exactly_the_picked_containers_after_every_change() -> Result<()> {
    require!(requirement::root());
    let (tracker, mut world) = (tracker()?, World::default());
    for _ in 0..50 {
        tell(&tracker, world.happens())?;
    }
    let web = tracker.selection_blocking("web", "label:app=web".parse()?)?;
    let both = tracker.selection_blocking("both", "label:app in (web,db)".parse()?)?;
    // A program's own map, that is too small.
    let small = HashMap::<MapData, u32, u64>::create(4, 0)?;
    let fd = small.map().fd().as_fd().try_clone_to_owned()?;
    let small = tracker.selection_in_blocking("small", "".parse()?, SelectionMaps::from_fds(Some(fd), None)?)?;
    let mut was_full = false;
    for step in 0..3_000 {
        for (selection, apps) in [(&web, &APPS[..1]), (&both, &APPS[..2])] {
            let name = selection.name();
            let (held, truth) = (mntns_of(selection)?, world.mntns(apps));
            assert_eq!(held, truth, "mount ns of `{name}` at step {step}");
            let of_cgroups = cgroups_of(selection)?;
            let picked = |life: &&Life| apps.contains(&life.app);
            let truth: BTreeMap<u64, Vec<u64>> =
                world.alive.iter().filter(picked).fold(BTreeMap::new(), |mut truth, life| {
                    truth.entry(life.cgroup).or_insert_with(Vec::new).push(life.generation);
                    truth
                });
            assert!(of_cgroups.keys().eq(truth.keys()), "cgroups of `{name}` at step {step}");
            assert!(of_cgroups.iter().all(|(id, generation)| truth[id].contains(generation)), "{of_cgroups:?}");
            assert_eq!(selection.figures().missing, 0);
        }
        let (held, truth, figures) = (mntns_of(&small)?, world.mntns(&APPS), small.figures());
        assert!(held.iter().all(|(ns, generation)| truth.get(ns) == Some(generation)), "step {step}");
        assert_eq!(held.len(), truth.len().min(4), "all that there is room for");
        assert_eq!(figures.missing as usize, truth.len() - held.len());
        was_full |= figures.missing > 0;
        tell(&tracker, world.happens())?;
    }
    assert!(was_full && web.figures().changes > 100, "{:?}", web.figures());

    // Who has the map open no longer finds what nobody keeps up.
    let map = web.mount_namespaces().context("it has that map")?.try_clone_to_owned()?;
    let map = HashMap::<MapData, u32, u64>::try_from(Map::from_map_data(MapData::from_fd(map)?)?)?;
    assert!(map.iter().next().is_some());
    drop(web);
    assert!(map.iter().next().is_none());
    tell(&tracker, world.happens())?;
    assert!(map.iter().next().is_none());
    let map = both.mount_namespaces().context("it has that map")?.try_clone_to_owned()?;
    let map = HashMap::<MapData, u32, u64>::try_from(Map::from_map_data(MapData::from_fd(map)?)?)?;
    assert!(map.iter().next().is_some());
    tracker.shutdown();
    assert!(map.iter().next().is_none());
    Ok(())
}

#[test]
fn maps_of_another_shape_are_refused() -> Result<()> {
    require!(requirement::root());
    let wrong = HashMap::<MapData, u64, u64>::create(4, 0)?;
    let fd = || wrong.map().fd().as_fd().try_clone_to_owned();
    let said = SelectionMaps::from_fds(Some(fd()?), None).map(drop).expect_err("its keys are too long").to_string();
    assert!(said.contains("mntns") && said.contains("keys of 4"), "{said}");
    SelectionMaps::from_fds(None, Some(fd()?))?;
    let forgets = aya::maps::Array::<MapData, u64>::create(4, 0)?;
    let fd = forgets.map().fd().as_fd().try_clone_to_owned()?;
    assert!(SelectionMaps::from_fds(Some(fd), None).is_err());
    Ok(())
}

/// Whether the container of a held start was in the selection's map, by its id.
type Seen = Arc<Mutex<BTreeMap<String, bool>>>;

#[test]
fn a_held_container_is_in_the_map_before_its_first_instruction() -> Result<()> {
    require!(Kind::Runc.requirement(), kernel::btf(), kernel::permission_events());
    let house = House::new(Kind::Runc)?;
    let tracker = house.tracker(KEEPER, "")?;
    let selection = tracker.selection_blocking("held", "id=held-picked-*".parse()?)?;
    let fd = selection.mount_namespaces().context("it has that map")?.try_clone_to_owned()?;
    let map = HashMap::<MapData, u32, u64>::try_from(Map::from_map_data(MapData::from_fd(fd)?)?)?;
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let all = "id=held-*".parse()?;
    let stats = tracker.on_start("looks", all, PATIENT, move |container| {
        // Its first process still is the OCI runtime's own, which waits to be told to execute the entrypoint.
        let value = map.get(&container.namespaces.mnt, 0).ok();
        let is_its = value.is_some() && value == container.generation;
        assert!(value.is_none() || is_its, "{value:?} of {container:?}");
        noted.lock().expect("no panic while it is held").insert(container.id.to_string(), is_its);
    })?;
    let mut truth = BTreeMap::new();
    for number in 0..20 {
        let is_picked = number % 3 != 0;
        let id = format!("held-{}-{number}", if is_picked { "picked" } else { "other" });
        // It ends at once: numbers are reused by the next ones.
        let container = house.runtime().create(&house.bundle_with(&id, &["true"], |_| ())?, &id)?;
        container.start()?;
        truth.insert(id, is_picked);
        eventually("the entrypoint ends", || (!kernel::is_alive(container.pid())).then_some(()));
    }
    assert_eq!(*seen.lock().expect("no panic while it is held"), truth);
    assert_eq!((stats.late.load(Relaxed), stats.panicked.load(Relaxed)), (0, 0));
    eventually("all have gone", || (selection.figures().mount_namespaces == 0).then_some(()));
    Ok(())
}
