//! Rows through their narrow door: containers in, what the words of the plane say out.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tracker_common::plane::word::copy_bytes;
use tracker_common::plane::{OPEN, TEXT_MAX};

use super::*;
use crate::collection::Interval;
use crate::collection::view;
use crate::container::{Cgroup, Container, Domain, Image, Kind, Namespaces, State};
use crate::fact::SourceSet;

const HOST: HostNumbers = HostNumbers { mntns: 1, netns: 2, cgroup: 1 };
const LINGER_NS: u64 = 60;

/// A running container born at `instance * 10`, whose numbers are its own.
fn container(instance: u64) -> view::Row {
    let container = Container {
        id: format!("id-{instance}").into(),
        domain: Domain::Host,
        instance,
        name: Some(format!("name-{instance}").into()),
        kind: Kind::Container,
        state: State::Running,
        grade: None,
        sequence: instance,
        awaiting: SourceSet::EMPTY,
        sources: SourceSet::EMPTY,
        runtime: Default::default(),
        image: None,
        pod: None,
        labels: Default::default(),
        annotations: Default::default(),
        details: Default::default(),
        parent: None,
        task: Some(TaskId { pid: 1000 + instance as u32, start_ticks: instance }),
        namespaces: Namespaces { mnt: 2000 + instance as u32, net: 3000 + instance as u32, ..Namespaces::default() },
        generation: Some(instance),
        host_network: None,
        cgroup: Cgroup { id: Some(4000 + instance), ..Cgroup::default() },
        bundle: None,
        created_at: Some(BootTime(instance * 10)),
        started_at: None,
        exited_at: None,
        exit: None,
    };
    let opened = BootTime(instance * 10);
    let whole = Interval { opened, closed: BootTime::MAX };
    view::Row { container: Arc::new(container), here: whole, init: whole, excluded: None }
}

fn changed(row: &view::Row, change: impl FnOnce(&mut Container)) -> view::Row {
    let mut row = row.clone();
    change(Arc::make_mut(&mut row.container));
    row
}

fn exited(row: &view::Row, at: u64) -> view::Row {
    let over = changed(row, |container| {
        (container.state, container.exited_at) = (State::Exited, Some(BootTime(at)));
    });
    let closed = BootTime(at + 1);
    view::Row { here: Interval { closed, ..row.here }, init: Interval { closed, ..row.init }, ..over }
}

fn nobodys(row: &view::Row) -> view::Row {
    changed(row, |container| container.kind = Kind::Unmanaged)
}

fn rows(capacity: usize) -> Rows<Memory> {
    let geometry = Geometry::of(capacity);
    Rows::new(private_table(geometry, HOST), geometry, LINGER_NS)
}

/// Every row in use, by its id, with its number and its texts.
fn all(rows: &Rows<Memory>) -> BTreeMap<String, (u32, Row, Vec<String>)> {
    let table = rows.table();
    let used = table.get32(offset_of!(Header, rows_used));
    let in_use = (0..used).map(|number| (number, table.row(number))).filter(|(_, row)| row.flags & Row::IN_USE != 0);
    let told = in_use.map(|(number, row)| {
        assert_eq!(row.lock & 1, 0, "nobody is writing");
        let mut bytes = vec![0; row.text_len as usize];
        copy_bytes(table.memory(), row.text_at as usize, &mut bytes);
        let mut rest = std::str::from_utf8(&bytes).unwrap();
        let texts = row.text_lens().map(|len| {
            let (text, after) = rest.split_at(len.into());
            rest = after;
            text.to_owned()
        });
        (texts[0].clone(), (number, row, texts.to_vec()))
    });
    told.collect()
}

/// Takes the memory to another owner, as a restart does.
fn handed_over(rows: &Rows<Memory>) -> (Table<Memory>, Vec<(u32, Row)>) {
    let words = rows.table().memory().iter().map(|word| AtomicU64::new(word.load(Ordering::Relaxed))).collect();
    let capacity = rows.table().get32(offset_of!(Header, capacity)) as usize;
    Table::adopt(Memory::Private(words), capacity, HOST)
}

#[test]
fn a_container_keeps_its_row_while_it_changes_and_gives_it_up_at_its_end() {
    let mut rows = rows(16);
    let web = container(1);
    rows.enter(&web);
    let (number, row, texts) = all(&rows)["id-1"].clone();
    assert_eq!((row.mntns, row.pid, row.opened, row.closed), (2001, 1001, 10, OPEN));
    assert_eq!(texts[..2], ["id-1", "name-1"]);
    rows.enter(&changed(&web, |container| container.name = Some("other".into())));
    let (same, later, texts) = all(&rows)["id-1"].clone();
    assert_eq!((same, later.uses, texts[1].as_str()), (number, row.uses, "other"));
    assert!(later.lock > row.lock);
    rows.leave(1);
    assert!(all(&rows).is_empty());
}

#[test]
fn the_oldest_tombstone_makes_room_and_who_finds_none_waits_for_it() {
    let mut rows = rows(16);
    (1..=16).for_each(|instance| rows.enter(&container(instance)));
    rows.enter(&exited(&container(5), 700));
    rows.enter(&exited(&container(3), 800));
    rows.enter(&container(20));
    assert!(!all(&rows).contains_key("id-5") && all(&rows).contains_key("id-3"), "the oldest goes first");
    rows.enter(&container(21));
    rows.enter(&container(22));
    rows.enter(&container(22));
    assert_eq!((rows.waiting(), rows.counts()), (1, (1, 2)), "waiting is counted once");
    rows.leave(7);
    assert_eq!((rows.waiting(), all(&rows).contains_key("id-22")), (0, true));
    rows.enter(&container(23));
    assert_eq!(rows.waiting(), 1);
    rows.enter(&exited(&container(8), 900));
    assert_eq!((rows.waiting(), all(&rows).contains_key("id-8")), (0, false), "whoever exits makes room at once");
}

#[test]
fn what_nobody_vouches_for_has_its_share_and_takes_from_its_like() {
    let mut rows = rows(16);
    (1..=3).for_each(|instance| rows.enter(&nobodys(&container(instance))));
    assert_eq!((all(&rows).len(), rows.waiting()), (2, 1), "an eighth");
    (10..=23).for_each(|instance| rows.enter(&container(instance)));
    assert_eq!(all(&rows).len(), 16);
    rows.enter(&exited(&container(10), 900));
    rows.enter(&nobodys(&container(30)));
    assert!(all(&rows).contains_key("id-10"), "it takes nobody's tombstone but its like's");
    rows.enter(&nobodys(&exited(&container(1), 910)));
    assert!(all(&rows).contains_key("id-3") || all(&rows).contains_key("id-1"));
    rows.leave(1);
    assert!(all(&rows).contains_key("id-3"), "who waits longest gets it");
}

#[test]
fn a_reused_number_has_one_holder_at_a_time() {
    let mut rows = rows(16);
    let first = container(1);
    rows.enter(&first);
    let second = changed(&container(9), |container| container.namespaces.mnt = first.container.namespaces.mnt);
    rows.enter(&second);
    let told = all(&rows);
    assert_eq!((told["id-1"].1.closed, told["id-9"].1.closed), (90, OPEN));
    // The same the other way round: the earlier one is told later.
    let mut rows = self::rows(16);
    rows.enter(&second);
    rows.enter(&first);
    assert_eq!((all(&rows)["id-1"].1.closed, all(&rows)["id-9"].1.closed), (90, OPEN));
}

#[test]
fn what_no_owner_has_seen_since_another_one_s_end_is_nobody_s_from_its_beginning_on() {
    let mut first = rows(16);
    first.enter(&container(1));
    let geometry = Geometry::of(16);
    let (table, left) = handed_over(&first);
    let mut second = Rows::new(table, geometry, LINGER_NS);
    second.inherit(left, 500, 1000, |_, _| true);
    // It ends before it has seen what it took over; its own heartbeats tell nothing about that.
    second.table().set32(offset_of!(Header, flags), Header::ADOPTING);
    let (table, left) = handed_over(&second);
    let mut third = Rows::new(table, geometry, LINGER_NS);
    third.inherit(left, 5000, 6000, |_, _| false);
    let (_, row, _) = &all(&third)["id-1"];
    assert_eq!((row.closed, row.state_name()), (row.opened, Some("exited")));
}

#[test]
fn rows_of_living_processes_are_kept_until_they_are_seen_and_the_others_end_at_the_last_heartbeat() {
    let mut before = rows(16);
    (1..=4).for_each(|instance| before.enter(&container(instance)));
    before.enter(&exited(&container(4), 45));
    let (table, left) = handed_over(&before);
    assert_eq!(left.len(), 4);
    let geometry = Geometry::of(16);
    let mut rows = Rows::new(table, geometry, LINGER_NS);
    rows.inherit(left, 500, 1000, |task, _| task.start_ticks != 2);
    let told = all(&rows);
    assert_eq!((told["id-1"].1.closed, told["id-1"].1.flags & Row::INHERITED), (OPEN, Row::INHERITED));
    assert_eq!((told["id-2"].1.closed, told["id-2"].1.state_name()), (500, Some("exited")));
    assert_eq!(told["id-4"].1.closed, 46, "what was known stays");

    // The same process under a new instance number, and with a new name: it keeps its row.
    let seen = changed(&container(1), |container| (container.instance, container.name) = (71, Some("again".into())));
    rows.enter(&seen);
    let (number, row, texts) = all(&rows)["id-1"].clone();
    assert_eq!((number, row.flags & Row::INHERITED, row.uses), (told["id-1"].0, 0, told["id-1"].1.uses));
    assert_eq!(texts[1], "again");
    assert!(rows.is_adopting(), "of one nobody has told");
    rows.end_inheritance(500, 1000);
    assert_eq!((all(&rows)["id-3"].1.closed, rows.is_adopting()), (500, false));
    rows.expire(1000 + LINGER_NS);
    assert_eq!(all(&rows).keys().collect::<Vec<_>>(), ["id-1"]);
}

#[test]
fn what_an_earlier_owner_said_stands_until_the_runtimes_had_their_time_to_tell() {
    let mut before = rows(16);
    (1..=3).for_each(|instance| before.enter(&container(instance)));
    let (table, left) = handed_over(&before);
    let mut rows = Rows::new(table, Geometry::of(16), LINGER_NS);
    rows.inherit(left, 500, 1000, |_, _| true);
    let seen = |instance: u64| {
        nobodys(&changed(&container(instance), |container| {
            (container.id, container.name) = (format!("mntns-{instance}").into(), None);
        }))
    };
    (1..=3).for_each(|instance| rows.enter(&seen(instance)));
    rows.end_inheritance(500, 1000);
    assert_eq!(all(&rows).keys().collect::<Vec<_>>(), ["id-1", "id-2", "id-3"], "the kernel alone knows less");
    rows.enter(&container(1));
    assert_eq!(all(&rows)["id-1"].1.flags & Row::INHERITED, 0);
    // Its end is believed at once.
    rows.enter(&exited(&seen(2), 1100));
    assert_eq!(all(&rows)["mntns-2"].1.closed, 1101);
    (0..rows::BEATS_TO_BE_TOLD).for_each(|_| rows.expire(1000));
    assert_eq!(all(&rows).keys().collect::<Vec<_>>(), ["id-1", "mntns-2", "mntns-3"], "nobody has told of the third");
    assert_eq!(all(&rows)["mntns-3"].1.kind_name(), Some("unmanaged"));
}

#[test]
fn excluded_containers_are_marked_and_nameless() {
    let mut rows = rows(16);
    rows.enter(&view::Row { excluded: Some("a rule".into()), ..container(1) });
    let told = all(&rows);
    let (_, row, _) = &told[""];
    assert_eq!(row.flags & Row::EXCLUDED, Row::EXCLUDED);
}

#[test]
fn long_texts_have_slots_of_their_own_and_give_them_back() {
    let mut rows = rows(16);
    let long = |len: usize| Image { name: Some("i".repeat(len).into()), ..Image::default() };
    let web = |len| changed(&container(1), |container| container.image = Some(long(len)));
    // Back and forth through all sizes, more often than there are slots.
    for round in 0..50 {
        for len in [10, 400, 900, 3000, 100, 2000] {
            rows.enter(&web(len));
            let (_, row, texts) = &all(&rows)["id-1"];
            assert_eq!((texts[4].len(), row.flags & Row::TRUNCATED), (len, 0), "round {round}");
        }
    }
    rows.enter(&web(5000));
    let (_, row, texts) = &all(&rows)["id-1"];
    assert_eq!((row.text_len as usize, row.flags & Row::TRUNCATED), (TEXT_MAX, Row::TRUNCATED));
    assert_eq!((texts[0].as_str(), texts[1].as_str()), ("id-1", "name-1"), "the image is cut, and not the name");
    rows.enter(&web(10));
    assert_eq!(all(&rows)["id-1"].1.flags & Row::TRUNCATED, 0);
}

#[test]
fn without_a_free_slot_a_text_is_cut_where_a_character_ends() {
    let mut rows = rows(16);
    let greek = |instance| changed(&container(instance), |container| container.name = Some("λ".repeat(1500).into()));
    // 16 rows have one slot of the largest size.
    (1..=3).for_each(|instance| rows.enter(&greek(instance)));
    let told = all(&rows);
    let lens: Vec<usize> = told.values().map(|(_, _, texts)| texts[1].len()).collect();
    assert_eq!(lens.iter().filter(|len| **len == 3000).count(), 1);
    assert!(told.values().all(|(_, row, texts)| (row.flags & Row::TRUNCATED != 0) == (texts[1].len() < 3000)));
}

proptest! {
    /// Whatever happens, the words say what was entered last, and a new owner finds the same.
    #[test]
    fn the_plane_says_what_was_entered(
        steps in prop::collection::vec((1_u64..30, 0_usize..4, 0_usize..1200), 1..120),
    ) {
        let mut rows = rows(32);
        let mut truth: BTreeMap<String, (State, usize)> = BTreeMap::new();
        for (at, (instance, what, len)) in steps.into_iter().enumerate() {
            let id = format!("id-{instance}");
            let image = Image { name: Some("x".repeat(len).into()), ..Image::default() };
            let row = changed(&container(instance), |container| container.image = Some(image));
            match what {
                0 => {
                    rows.leave(instance);
                    truth.remove(&id);
                }
                1 => {
                    rows.enter(&exited(&row, 10_000 + at as u64));
                    truth.insert(id, (State::Exited, len));
                }
                _ => {
                    rows.enter(&row);
                    truth.insert(id, (State::Running, len));
                }
            }
            let told = all(&rows);
            prop_assert_eq!(told.keys().collect::<Vec<_>>(), truth.keys().collect::<Vec<_>>());
            for (id, (state, len)) in &truth {
                let (_, row, texts) = &told[id];
                prop_assert_eq!(row.state_name(), Some(state.name()));
                prop_assert!(texts[4].len() == *len || row.flags & Row::TRUNCATED != 0);
            }
        }
        let (table, left) = handed_over(&rows);
        prop_assert_eq!(left.len(), truth.len());
        let geometry = Geometry::of(32);
        let mut later = Rows::new(table, geometry, LINGER_NS);
        later.inherit(left, u64::MAX, 0, |_, _| true);
        let told = all(&later);
        prop_assert_eq!(told.keys().collect::<Vec<_>>(), truth.keys().collect::<Vec<_>>());
    }
}
