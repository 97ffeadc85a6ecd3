//! What readers of the plane find while it is being written, after its writer ended at any store, and after bits of it
//! were flipped: the writer is ours, the look-up that of `tracker_common::plane::lookup`, and the memory under both is
//! one that shows what real memory does only sometimes.

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use loom::sync::atomic as checked;
use proptest::prelude::*;
use tracker_common::plane::lookup::{Answer, Group, Places, Tables, TextBuffer, When};
use tracker_common::plane::word::Word;
use tracker_common::plane::{Entry, Geometry, Index, OPEN, Row, TEXTS, WORD_LEN};

use super::table::{HostNumbers, Image, Table};

const HOST: HostNumbers = HostNumbers { mntns: 1_000_001, netns: 1_000_002, cgroup: 1 };

const IN_USE: Row = Row { flags: Row::IN_USE, ..Row::FREE };

/// What a test puts into a row. Its texts say which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    mntns: u32,
    netns: u32,
    generation: u64,
    opened: u64,
    closed: u64,
}

impl Life {
    fn new(mntns: u32, generation: u64) -> Self {
        Life { mntns, netns: 77, generation, opened: 10 * generation, closed: OPEN }
    }

    fn closed(self, closed: u64) -> Self {
        Life { closed, ..self }
    }

    /// Differently long: in the row, and in slots of two sizes.
    fn name(self) -> String {
        format!("{}-", self.generation).repeat([5, 200, 400][self.generation as usize % 3])
    }

    fn put<W: Word>(self, table: &mut Table<Vec<W>>, number: u32, anew: bool) {
        let name = self.name();
        self.put_as(table, number, anew, ["", &name, "", "", "", ""]);
    }

    fn put_as<W: Word, M: std::ops::Deref<Target = [W]>>(
        self,
        table: &mut Table<M>,
        number: u32,
        anew: bool,
        texts: [&str; TEXTS],
    ) {
        let Life { mntns, netns, generation, opened, closed } = self;
        let row = Row { mntns, netns, generation, opened, closed, kind: 1, pid: mntns, ..IN_USE };
        let row = Row { init_opened: opened, init_closed: closed, cgroup: 90 + u64::from(mntns), ..row };
        table.put(number, &Image { row, texts }, anew);
    }
}

fn places<W: Word>(words: &[W]) -> Places {
    Places::check(words, (words.len() * WORD_LEN) as u64).unwrap()
}

/// What a reader says of a mount ns: the generation, if what it read is that life as a whole.
fn look_up<W: Word>(words: &[W], mntns: u32, when: When, lives: &[Life]) -> Answer<u64> {
    let places = places(words);
    let tables = Tables::new(words, &places).unwrap();
    let mut buffer = TextBuffer::new();
    let answer = tables.one_with_texts(Index::Mntns, mntns.into(), when, &mut buffer);
    answer.map(|(row, texts)| {
        let life = lives.iter().find(|life| life.name() == texts.name).expect("the name of one of them");
        assert_eq!((row.mntns, row.generation, row.opened), (life.mntns, life.generation, life.opened), "torn");
        assert_eq!(row.mntns, mntns, "another one's");
        row.generation
    })
}

// ---------------------------------------------------------------------------------------------- a death at any store

thread_local! {
    /// How many stores still reach the memory.
    static STORES: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// A word of a writer that may have ended: from some store on, none arrives. The writer itself does not notice.
#[derive(Default)]
struct Mortal {
    written: AtomicU64,
    arrived: AtomicU64,
}

impl Mortal {
    fn store(&self, value: u64) {
        self.written.store(value, Ordering::Relaxed);
        let left = STORES.get();
        if left > 0 {
            STORES.set(left - 1);
            self.arrived.store(value, Ordering::Relaxed);
        }
    }
}

impl Word for Mortal {
    fn load_relaxed(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
    fn load_acquire(&self) -> u64 {
        self.load_relaxed()
    }
    fn store_relaxed(&self, value: u64) {
        self.store(value);
    }
    fn store_release(&self, value: u64) {
        self.store(value);
    }
    fn fence_acquire() {}
    fn fence_release() {}
}

fn mortal_table(capacity: usize) -> Table<Vec<Mortal>> {
    let memory = (0..Geometry::of(capacity).file_len / WORD_LEN).map(|_| Mortal::default()).collect();
    Table::create(memory, capacity, [7; 16], HOST)
}

/// Does `step` to what `before` prepares, with the writer ending after each number of stores, and gives each outcome to
/// `check`, the last time a whole one.
fn end_after_each_store(
    before: impl Fn(&mut Table<Vec<Mortal>>),
    step: impl Fn(&mut Table<Vec<Mortal>>),
    mut check: impl FnMut(&[AtomicU64], bool),
) {
    for stores in 0.. {
        assert!(stores < 10_000, "a step is a few hundred stores");
        let mut table = mortal_table(4);
        before(&mut table);
        STORES.set(stores);
        step(&mut table);
        let is_whole = STORES.replace(usize::MAX) > 0;
        let arrived = table.memory().iter().map(|word| AtomicU64::new(word.arrived.load(Ordering::Relaxed)));
        check(&arrived.collect::<Vec<_>>(), is_whole);
        if is_whole {
            return;
        }
    }
}

#[track_caller]
fn one_of<T: PartialEq + Debug>(answer: T, allowed: &[T]) {
    assert!(allowed.contains(&answer), "{answer:?} is none of {allowed:?}");
}

#[test]
fn a_writer_that_ends_while_it_adds_a_row_leaves_nothing_or_busy_or_the_row() {
    let (there, new) = (Life::new(5, 1), Life::new(6, 2));
    let before = |table: &mut Table<_>| {
        table.take();
        there.put(table, 0, true);
    };
    let add = |table: &mut Table<_>| {
        let row = table.take().unwrap();
        new.put(table, row, true);
    };
    let mut outcomes = Vec::new();
    end_after_each_store(before, add, |words, is_whole| {
        let answer = look_up(words, 6, When::Now, &[there, new]);
        one_of(answer, &[Answer::Unknown, Answer::Busy, Answer::Container(2)]);
        assert_eq!(look_up(words, 5, When::Now, &[there, new]), Answer::Container(1), "the other row is as it was");
        assert!(!is_whole || answer == Answer::Container(2));
        outcomes.push(answer);
    });
    assert!(outcomes.contains(&Answer::Busy), "the step was seen in its middle: {outcomes:?}");
}

#[test]
fn a_writer_that_ends_while_it_changes_texts_leaves_the_old_ones_or_busy_or_the_new_ones() {
    // From a slot into the row, and from the row into a slot.
    for (old, new) in [(Life::new(5, 1), Life::new(5, 3)), (Life::new(5, 3), Life::new(5, 2))] {
        let before = |table: &mut Table<_>| {
            table.take();
            old.put(table, 0, true);
        };
        end_after_each_store(
            before,
            |table| new.put(table, 0, false),
            |words, is_whole| {
                let answer = look_up(words, 5, When::Now, &[old, new]);
                let (old, new) = (Answer::Container(old.generation), Answer::Container(new.generation));
                one_of(answer, &[old, Answer::Busy, new]);
                assert!(!is_whole || answer == new);
            },
        );
    }
}

#[test]
fn a_writer_that_ends_while_a_mount_ns_changes_hands_never_makes_the_old_holder_the_new_one() {
    let (old, new) = (Life::new(5, 1), Life::new(5, 4));
    let lives = [old, new, Life::new(6, 2)];
    let before = |table: &mut Table<_>| {
        for (row, life) in [old, lives[2]].into_iter().enumerate() {
            table.take();
            life.put(table, row as u32, true);
        }
    };
    let hand_over = |table: &mut Table<_>| {
        old.closed(35).put(table, 0, false);
        let row = table.take().unwrap();
        new.put(table, row, true);
        table.free(0);
    };
    end_after_each_store(before, hand_over, |words, is_whole| {
        let now = look_up(words, 5, When::Now, &lives);
        one_of(now, &[Answer::Container(1), Answer::Busy, Answer::Unknown, Answer::Container(4)]);
        let before = look_up(words, 5, When::At(20), &lives);
        one_of(before, &[Answer::Container(1), Answer::Busy, Answer::Unknown]);
        // The old one's interval is open until it is known to have ended.
        one_of(look_up(words, 5, When::At(50), &lives), &[now, Answer::Busy]);
        assert_eq!(look_up(words, 6, When::Now, &lives), Answer::Container(2), "the other row is as it was");
        assert!(!is_whole || (now, before) == (Answer::Container(4), Answer::Unknown));
    });
}

#[test]
fn a_writer_that_ends_while_a_row_is_used_again_never_mixes_two_containers() {
    // All rows are taken, so that the one that is freed is the one that is used next.
    let (old, new) = (Life::new(5, 1), Life::new(8, 2));
    let others = [Life::new(6, 3), Life::new(7, 6), Life::new(9, 9)];
    let lives = [old, new, others[0], others[1], others[2]];
    let before = |table: &mut Table<_>| {
        for (row, life) in [old].into_iter().chain(others).enumerate() {
            table.take();
            life.put(table, row as u32, true);
        }
    };
    let use_again = |table: &mut Table<_>| {
        table.free(0);
        let row = table.take().unwrap();
        assert_eq!(row, 0);
        new.put(table, row, true);
    };
    end_after_each_store(before, use_again, |words, is_whole| {
        let (was, is) = (look_up(words, 5, When::Now, &lives), look_up(words, 8, When::Now, &lives));
        one_of(was, &[Answer::Container(1), Answer::Busy, Answer::Unknown]);
        one_of(is, &[Answer::Container(2), Answer::Busy, Answer::Unknown]);
        assert!(!is_whole || (was, is) == (Answer::Unknown, Answer::Container(2)));
        for other in others {
            assert_eq!(look_up(words, other.mntns, When::Now, &lives), Answer::Container(other.generation));
        }
        // The group that all of them share has each of the others once, and never one of them torn.
        let places = places(words);
        let tables = Tables::new(words, &places).unwrap();
        let Group::Containers(mut group) = tables.all(Index::Netns, 77, When::Now) else { panic!("not the host") };
        let mut generations: Vec<u64> = group.by_ref().map(|found| found.generation).collect();
        generations.retain(|generation| ![1, 2].contains(generation));
        generations.sort_unstable();
        assert_eq!(generations, [3, 6, 9]);
        assert!(group.busy() <= 1);
    });
}

// ------------------------------------------------------------------------------------------ everything memory may do

/// A word that the model checker watches, or one that nobody changes while it does.
enum Checked {
    Watched(checked::AtomicU64),
    Still(AtomicU64),
}

impl Word for Checked {
    fn load_relaxed(&self) -> u64 {
        match self {
            Checked::Watched(word) => word.load(Ordering::Relaxed),
            Checked::Still(word) => word.load(Ordering::Relaxed),
        }
    }
    fn load_acquire(&self) -> u64 {
        match self {
            Checked::Watched(word) => word.load(Ordering::Acquire),
            Checked::Still(word) => word.load(Ordering::Acquire),
        }
    }
    fn store_relaxed(&self, value: u64) {
        match self {
            Checked::Watched(word) => word.store(value, Ordering::Relaxed),
            Checked::Still(word) => word.store(value, Ordering::Relaxed),
        }
    }
    fn store_release(&self, value: u64) {
        match self {
            Checked::Watched(word) => word.store(value, Ordering::Release),
            Checked::Still(word) => word.store(value, Ordering::Release),
        }
    }
    fn fence_acquire() {
        checked::fence(Ordering::Acquire);
    }
    fn fence_release() {
        checked::fence(Ordering::Release);
    }
    fn pause() {
        loom::thread::yield_now();
    }
}

/// Memory that two threads of a model share.
#[derive(Clone)]
struct Shared(Arc<Vec<Checked>>);

impl std::ops::Deref for Shared {
    type Target = [Checked];

    fn deref(&self) -> &[Checked] {
        &self.0
    }
}

/// A plane of two rows, of which the words that tell two lives apart are watched.
fn watched_table() -> Table<Shared> {
    let geometry = Geometry::of(2);
    let mut is_watched = vec![false; geometry.file_len / WORD_LEN];
    for row in 0..2 {
        // Lock, flags, mount ns, beginning and end, generation; and the name's first bytes.
        let first = geometry.row_at(row) / WORD_LEN;
        for word in [0, 1, 2, 4, 5, 6] {
            is_watched[first + word] = true;
        }
        is_watched[geometry.inline_text_at(row) / WORD_LEN] = true;
    }
    let index = geometry.indexes_at[Index::Mntns as usize] / WORD_LEN;
    is_watched[index..index + geometry.entries * Entry::LEN / WORD_LEN].fill(true);
    let words = is_watched.into_iter().map(|is_watched| match is_watched {
        true => Checked::Watched(checked::AtomicU64::new(0)),
        false => Checked::Still(AtomicU64::new(0)),
    });
    // The other indexes stay empty: they are not watched.
    let host = HostNumbers { netns: 77, cgroup: 0, ..HOST };
    Table::create(Shared(Arc::new(words.collect())), 2, [7; 16], host)
}

/// A life that is in the index by mount ns alone, and whose name is one word.
fn put_watched(table: &mut Table<Shared>, number: u32, life: Life, anew: bool) {
    let Life { mntns, netns, generation, opened, closed } = life;
    let row = Row { mntns, netns, generation, opened, closed, kind: 1, ..IN_USE };
    let name = format!("life{generation:04}");
    table.put(number, &Image { row, texts: ["", &name, "", "", "", ""] }, anew);
}

fn look_up_watched(memory: &Shared, mntns: u32) -> Answer<u64> {
    let places = places(memory);
    let tables = Tables::new(memory, &places).unwrap();
    let mut buffer = TextBuffer::new();
    tables.one_with_texts(Index::Mntns, mntns.into(), When::Now, &mut buffer).map(|(row, texts)| {
        assert_eq!(row.mntns, mntns, "another one's");
        assert_eq!(texts.name, format!("life{:04}", row.generation), "torn");
        row.generation
    })
}

/// Runs writer and reader in all orders with at most so many preemptions, and in each order with all values that a load
/// may return. What answers there were.
fn answers(
    before: impl Fn(&mut Table<Shared>) + Sync + Send + 'static,
    step: impl Fn(&mut Table<Shared>) + Sync + Send + 'static,
    mntns: u32,
) -> Vec<Answer<u64>> {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.max_branches = 100_000;
    let (step, results) = (Arc::new(step), Arc::clone(&seen));
    model.check(move || {
        let mut table = watched_table();
        before(&mut table);
        let memory = table.memory().clone();
        let step = Arc::clone(&step);
        let writer = loom::thread::spawn(move || step(&mut table));
        let answer = look_up_watched(&memory, mntns);
        writer.join().unwrap();
        let mut seen = results.lock().unwrap();
        if !seen.contains(&answer) {
            seen.push(answer);
        }
    });
    let seen = seen.lock().unwrap().clone();
    // What the threads of a model do is over with the model.
    fence(Ordering::SeqCst);
    seen
}

/// Three mount ns whose first place is the same in an index of four, as `watched_table` has.
fn of_one_place() -> [u32; 3] {
    let mut found = (1..10_000).filter(|key| Entry::place(u64::from(*key), 0, 4) == 2);
    std::array::from_fn(|_| found.next().unwrap())
}

#[test]
fn a_row_that_is_used_again_for_the_same_number_is_the_old_one_or_the_new_one() {
    let [number, ..] = of_one_place();
    let (old, other, new) = (Life::new(number, 1), Life::new(number + 1, 2), Life::new(number, 3));
    let seen = answers(
        move |table| {
            for (row, life) in [old, other].into_iter().enumerate() {
                table.take();
                put_watched(table, row as u32, life, true);
            }
        },
        move |table| {
            table.free(0);
            let row = table.take().unwrap();
            put_watched(table, row, new, true);
        },
        number,
    );
    for answer in &seen {
        one_of(*answer, &[Answer::Container(1), Answer::Unknown, Answer::Container(3)]);
    }
    assert_eq!(seen.len(), 3, "each of them was seen: {seen:?}");
}

#[test]
fn a_place_that_is_used_again_for_another_number_is_never_an_answer_for_the_first() {
    let [number, other, _] = of_one_place();
    let (old, new) = (Life::new(number, 1), Life::new(other, 2));
    let seen = answers(
        move |table| {
            table.take();
            put_watched(table, 0, old, true);
            table.take();
            put_watched(table, 1, Life::new(number + 1, 9), true);
        },
        move |table| {
            table.free(0);
            let row = table.take().unwrap();
            put_watched(table, row, new, true);
        },
        number,
    );
    for answer in &seen {
        one_of(*answer, &[Answer::Container(1), Answer::Unknown]);
    }
    assert_eq!(seen.len(), 2, "each of them was seen: {seen:?}");
}

#[test]
fn a_row_that_does_not_change_is_found_whatever_happens_to_those_before_it() {
    let [first, second, third] = of_one_place();
    let seen = answers(
        move |table| {
            table.take();
            put_watched(table, 0, Life::new(first, 1), true);
            table.take();
            put_watched(table, 1, Life::new(second, 2), true);
        },
        move |table| {
            // The one that is looked for lies behind it, and stays there.
            table.free(0);
            let row = table.take().unwrap();
            put_watched(table, row, Life::new(third, 3), true);
        },
        second,
    );
    assert_eq!(seen, [Answer::Container(2)]);
}

// ------------------------------------------------------------------------------------------------------ broken planes

/// A plane with a few of everything.
fn populated() -> Vec<u64> {
    let memory: Vec<AtomicU64> = (0..Geometry::of(16).file_len / WORD_LEN).map(|_| AtomicU64::new(0)).collect();
    let mut table = Table::create(memory, 16, [7; 16], HOST);
    for generation in 0..12 {
        let number = table.take().unwrap();
        let life = Life::new(5 + generation as u32 % 7, generation);
        let life = if generation < 7 { life.closed(10 * generation + 5) } else { life };
        let name = life.name();
        life.put_as(&mut table, number, true, ["", &name, "", "", "", ""]);
    }
    table.memory().iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

/// Asks everything that can be asked.
fn ask_everything(words: &[u64]) {
    let words: Vec<AtomicU64> = words.iter().map(|word| AtomicU64::new(*word)).collect();
    let Ok(places) = Places::check(&words, (words.len() * WORD_LEN) as u64) else { return };
    let Some(tables) = Tables::new(&words[..], &places) else { return };
    let mut buffer = TextBuffer::new();
    for when in [When::Now, When::At(0), When::At(55), When::At(u64::MAX)] {
        for key in (0..20).chain(90..110).chain([77, u64::MAX]) {
            for index in Index::ALL {
                if let Answer::Container(found) = tables.one(index, key, when) {
                    assert!(tables.whole(&found).is_some_and(|row| index.key(&row) == key), "an answer has its number");
                }
                tables.one_with_texts(index, key, when, &mut buffer);
                if let Group::Containers(group) = tables.all(index, key, when) {
                    group.take(100).for_each(|found| {
                        assert!(tables.texts(&found, &mut buffer).is_none_or(|(row, _)| row.lock == found.lock))
                    });
                }
            }
        }
    }
    for number in (0..20).chain([u32::MAX]) {
        tables.row(number);
    }
}

proptest! {
    // Each case asks some hundred questions, of which those for broken rows are tried a thousand times.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn flipped_bits_make_no_reader_panic_or_go_on_for_ever(
        flips in prop::collection::vec((0.0..1.0, 0_u32..64, 0_u8..4), 1..40),
    ) {
        let mut words = populated();
        let geometry = Geometry::of(16);
        let (header, rows, indexes) = (64, geometry.rows_at / WORD_LEN, geometry.indexes_at[0] / WORD_LEN);
        for (place, bit, section) in flips {
            // As many in each part as in the others, though the header is small.
            let (from, to) = [(0, header), (rows, indexes), (indexes, words.len()), (0, words.len())][usize::from(section)];
            let at = from + (place * (to - from) as f64) as usize;
            words[at] ^= 1 << bit;
        }
        ask_everything(&words);
    }

    #[test]
    fn a_header_of_any_numbers_is_refused_or_read_within_its_bounds(
        at in 2_usize..32, number in prop_oneof![any::<u64>(), Just(u64::MAX), Just(0), 0_u64..100_000, Just(1 << 63)],
    ) {
        let mut words = populated();
        words[at] = number;
        ask_everything(&words);
    }
}

#[test]
fn every_way_of_being_cut_is_noticed() {
    let words = populated();
    let words: Vec<AtomicU64> = words.into_iter().map(AtomicU64::new).collect();
    for len in (0..words.len()).step_by(7) {
        Places::check(&words[..len], (len * WORD_LEN) as u64).unwrap_err();
        // A header alone is enough to know where everything is, but not to look up.
        if len >= 512 {
            let places = Places::check(&words[..len], (words.len() * WORD_LEN) as u64).unwrap();
            assert!(Tables::new(&words[..len], &places).is_none());
        }
    }
}
