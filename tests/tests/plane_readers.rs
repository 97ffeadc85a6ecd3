//! The three readers of the plane, in Rust, C and Python, on the plane of a running daemon: they say the same, and what
//! they say is true, also while containers come and go and their numbers are used again, and of broken files.
//!
//! The truth is the test's own: it knows whose namespace and whose pid it was, and a moment at which it was.

use std::collections::HashSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tracker::BootTime;
use tracker_common::plane::{Geometry, Header, Index, VERSION};
use tracker_common::reader::{Condition, Plane, When};
use tracker_tests::daemon::Daemon;
use tracker_tests::house::{House, PATIENT};
use tracker_tests::plane::{Question, Reader, STRICT, build_c, python_reader, readers};
use tracker_tests::process::Process;
use tracker_tests::runc::Kind;
use tracker_tests::wait::{PATIENCE, eventually};
use tracker_tests::{kernel, require, requirement};

/// Where the kernel looks for the next free pid from. To set it back makes pids be used again, and harms nobody: those that
/// are in use are passed over.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// One container's numbers, and two moments between which they were its own.
#[derive(Clone, Debug)]
struct Truth {
    id: String,
    pid: u32,
    mntns: u32,
    from: BootTime,
    until: BootTime,
}

impl Truth {
    /// About both numbers, at the beginning, in the middle and at the end.
    fn questions(&self) -> Vec<Question> {
        let middle = self.from.0 + (self.until.0 - self.from.0) / 2;
        let times = [self.from.0, middle, self.until.0];
        let about = |index, key: u32| times.map(|at| Question { index, key: key.into(), when: When::At(at) });
        [about(Index::Mntns, self.mntns), about(Index::Pid, self.pid)].concat()
    }
}

/// What look-ups by one reader said.
#[derive(Debug, Default)]
struct Answers {
    right: AtomicUsize,
    unknown: AtomicUsize,
    busy: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Answers {
    fn note(&self, truth: &Truth, question: Question, answer: &Value) {
        let count = match answer["answer"].as_str() {
            Some("container") if answer["containers"][0]["id"] == *truth.id => &self.right,
            Some("unknown") => &self.unknown,
            Some("busy") => &self.busy,
            _ => {
                let wrong = format!("{question:?} about {truth:?} is {answer}");
                return self.wrong.lock().expect("no panic while it is held").push(wrong);
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn all(&self) -> usize {
        [&self.right, &self.unknown, &self.busy].map(|count| count.load(Ordering::Relaxed)).iter().sum()
    }
}

/// The same question to each of the three, whose answers are the same; asked again where the plane changed meanwhile.
#[track_caller]
fn agreed(readers: &mut [Reader; 3], question: Question) -> Value {
    eventually(&format!("all readers say the same to {question:?}"), || {
        let [rust, c, python] = readers.each_mut().map(|reader| reader.ask(question).expect("an answer"));
        (rust == c && rust == python).then_some(rust)
    })
}

/// One life, from `create` to its end. While it is running, each reader says so by both of its numbers.
fn live(house: &House, id: &str, readers: &Mutex<[Reader; 3]>) -> Result<Truth> {
    let container = house.started(id)?;
    let from = BootTime::now();
    let pid = container.pid();
    let mntns = kernel::namespace(pid, "mnt")?;
    for reader in &mut *readers.lock().expect("no panic while it is held") {
        for (index, key) in [(Index::Mntns, mntns), (Index::Pid, pid)] {
            let answer = reader.ask(Question { index, key: key.into(), when: When::Now })?;
            let language = reader.language();
            ensure!(
                answer["containers"][0]["id"] == id,
                "{language}: {index:?} {key} of {id}, which runs, is {answer}"
            );
        }
    }
    let truth = Truth { id: id.to_owned(), pid, mntns, from, until: BootTime::now() };
    container.kill("KILL")?;
    Ok(truth)
}

/// The same without questions.
fn live_unasked(house: &House, id: &str) -> Result<Truth> {
    let container = house.started(id)?;
    let (from, pid) = (BootTime::now(), container.pid());
    let mntns = kernel::namespace(pid, "mnt")?;
    let truth = Truth { id: id.to_owned(), pid, mntns, from, until: BootTime::now() };
    container.kill("KILL")?;
    Ok(truth)
}

#[test]
fn numbers_that_are_used_again_are_never_told_for_another_container_by_any_reader() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    require!(requirement::program("cc"), requirement::program("python3"));
    require!(fs::metadata(LAST_PID).map_err(|error| format!("needs `{LAST_PID}`: {error}")));
    const LIVES: usize = 120;
    const LOOK_UPS: usize = 10_000;
    let house = House::new(Kind::Runc)?;
    let daemon = Daemon::start(&house.config(PATIENT, "[collection]\nlinger-ms = 600000\n"))?;
    let plane = daemon.plane();
    let all = [Answers::default(), Answers::default(), Answers::default()];
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let truths: Mutex<Vec<Truth>> = Mutex::default();
    let first_pid = fs::read_to_string(LAST_PID)?;
    let now = Mutex::new(Reader::all(&plane, house.directory())?);
    thread::scope(|scope| -> Result<()> {
        let churn = || -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                // On and on until each reader has looked up often enough, and at least as many lives as that takes.
                if number >= LIVES && all.iter().all(|answers| answers.all() >= LOOK_UPS)
                    || over.load(Ordering::Relaxed)
                {
                    return Ok(());
                }
                if number % 8 == 0 {
                    fs::write(LAST_PID, &first_pid)?;
                }
                let truth = live(&house, &format!("readers-{number}"), &now)?;
                truths.lock().expect("no panic while it is held").push(truth);
            }
        };
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(churn)).collect();
        let mut readers = Vec::new();
        for (mut reader, answers) in Reader::all(&plane, house.directory())?.into_iter().zip(&all) {
            let (over, truths) = (&over, &truths);
            readers.push(scope.spawn(move || -> Result<()> {
                let mut at = 0;
                while !over.load(Ordering::Relaxed) {
                    let sample = {
                        let truths = truths.lock().expect("no panic while it is held");
                        truths.get(at % truths.len().max(1)).cloned()
                    };
                    // A large odd step visits old and new ones alike.
                    at += 7_919;
                    let Some(truth) = sample else {
                        thread::yield_now();
                        continue;
                    };
                    for question in truth.questions() {
                        answers.note(&truth, question, &reader.ask(question)?);
                    }
                }
                Ok(())
            }));
        }
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join().expect("no panic")).collect();
        over.store(true, Ordering::Relaxed);
        readers.into_iter().try_for_each(|reader| reader.join().expect("no panic"))?;
        ended.into_iter().collect()
    })?;

    for (answers, language) in all.into_iter().zip(["Rust", "C", "Python"]) {
        let wrong = answers.wrong.into_inner()?;
        assert!(wrong.is_empty(), "{language}: {} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
        let (right, others) = (answers.right.into_inner(), answers.unknown.into_inner() + answers.busy.into_inner());
        assert!(right + others >= LOOK_UPS);
        // A record may be late, and then nothing is claimed; but that is the exception.
        assert!(others * 100 <= right, "{language}: {others} unknown or busy, {right} right");
    }
    let truths = truths.into_inner()?;
    for (what, number) in [("mount ns", (|truth| truth.mntns) as fn(&Truth) -> u32), ("pid", |truth| truth.pid)] {
        let distinct: HashSet<u32> = truths.iter().map(number).collect();
        assert!(distinct.len() < truths.len(), "no {what} has been used again: this shows nothing");
    }
    // All of it once more, now that everything is over: nothing was lost, and the three agree in every field.
    let mut readers = now.into_inner()?;
    for truth in &truths {
        for question in truth.questions() {
            assert_eq!(agreed(&mut readers, question)["containers"][0]["id"], *truth.id, "{question:?} {truth:?}");
        }
    }
    Ok(())
}

#[test]
fn a_tracker_that_is_killed_and_started_again_amid_churn_leaves_no_wrong_answer_behind() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    require!(requirement::program("cc"), requirement::program("python3"));
    require!(fs::metadata(LAST_PID).map_err(|error| format!("needs `{LAST_PID}`: {error}")));
    let house = House::new(Kind::Runc)?;
    // A budget that a killed tracker may cost, and no more than that.
    let config = house.config(Duration::from_millis(200), "[collection]\nlinger-ms = 600000\n");
    let mut daemon = Daemon::start(&config)?;
    let mut readers = Reader::all(&daemon.plane(), house.directory())?;
    let (over, first_pid) = (AtomicBool::new(false), fs::read_to_string(LAST_PID)?);
    let mut truths = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let churn = |worker: usize| {
            let (house, over, first_pid) = (&house, &over, &first_pid);
            move || -> Result<Vec<Truth>> {
                let mut truths = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    if truths.len() % 4 == 0 {
                        fs::write(LAST_PID, first_pid)?;
                    }
                    truths.push(live_unasked(house, &format!("killed-{worker}-{}", truths.len()))?);
                }
                Ok(truths)
            }
        };
        let workers: Vec<_> = (0..2).map(|worker| scope.spawn(churn(worker))).collect();
        let mut restarts = || -> Result<()> {
            for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
                daemon.process().signal(signal)?;
                daemon.process().wait(PATIENT * 3)?;
                daemon.restart()?;
            }
            Ok(())
        };
        let restarted = restarts();
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            truths.extend(worker.join().expect("no panic")?);
        }
        restarted
    })?;
    eventually("what was taken over has been compared with what there is", || {
        let plane = Plane::open(daemon.plane()).ok()?;
        (!plane.status().is_adopting && plane.status().condition == Condition::Fresh).then_some(())
    });
    // Those before are known where somebody was there to see them, and never as another.
    for truth in &truths {
        for question in truth.questions() {
            let answer = agreed(&mut readers, question);
            let is_right = answer["containers"][0]["id"] == *truth.id || answer["answer"] == "unknown";
            assert!(is_right, "{question:?} about {truth:?} is {answer}");
        }
    }
    // And from now on all are.
    for number in 0..12 {
        let truth = live_unasked(&house, &format!("killed-after-{number}"))?;
        for question in truth.questions() {
            let answer = agreed(&mut readers, question);
            assert_eq!(answer["containers"][0]["id"], *truth.id, "{question:?} about {truth:?} is {answer}");
        }
    }
    Ok(())
}

#[test]
fn the_three_readers_agree_on_every_row_and_number_also_after_the_tracker_was_killed() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    require!(requirement::program("cc"), requirement::program("python3"));
    let house = House::new(Kind::Runc)?;
    let mut daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let mut readers = Reader::all(&daemon.plane(), house.directory())?;
    let living = (0..4).map(|number| house.started(&format!("agree-{number}"))).collect::<Result<Vec<_>>>()?;
    // Two who share a net ns, and one who has ended.
    let share = house.bundle_with("agree-shares", &["sleep", "1000"], |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "network");
        let path = format!("/proc/{}/ns/net", living[0].pid());
        namespaces.push(serde_json::json!({"type": "network", "path": path}));
    })?;
    let sharing = house.runtime().create(&share, "agree-shares")?;
    sharing.start()?;
    let ended = house.started("agree-ended")?;
    ended.kill("KILL")?;
    eventually("its end is known", || daemon.in_state("agree-ended", "exited"));

    let compare = |readers: &mut [Reader; 3]| -> Result<Vec<Value>> {
        // Others may run containers on this machine, which come and go.
        let rows = eventually("all readers list the same", || {
            let [rust, c, python] = readers.each_mut().map(|reader| reader.list().expect("an answer"));
            (rust == c && rust == python).then_some(rust)
        });
        let rows = rows.as_array().context("a list")?.clone();
        for row in &rows {
            for (index, name) in
                [(Index::Mntns, "mntns"), (Index::Netns, "netns"), (Index::Cgroup, "cgroup"), (Index::Pid, "pid")]
            {
                let key = row[name].as_u64().context("a number")?;
                let [opened, closed] = ["opened", "closed"].map(|end| row[end].as_u64().unwrap_or(0));
                for when in [opened.wrapping_sub(1), opened, opened + 1, closed.wrapping_sub(1), closed] {
                    agreed(readers, Question { index, key, when: When::At(when.min(u64::MAX - 1)) });
                }
                agreed(readers, Question { index, key, when: When::Now });
            }
        }
        Ok(rows)
    };
    let rows = compare(&mut readers)?;
    for id in living.iter().chain([&sharing]).map(|container| container.id()).chain(["agree-ended"]) {
        assert!(rows.iter().any(|row| row["id"] == id), "{id} is in {rows:#?}");
    }
    let ask = |readers: &mut [Reader; 3], index, key: u64| agreed(readers, Question { index, key, when: When::Now });
    let shared = ask(&mut readers, Index::Netns, kernel::namespace(sharing.pid(), "net")?.into());
    let mut names: Vec<&str> =
        shared["containers"].as_array().context("a list")?.iter().filter_map(|row| row["id"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["agree-0", "agree-shares"], "all who share it");
    for (index, kind) in [(Index::Mntns, "mnt"), (Index::Netns, "net")] {
        let own = kernel::namespace(std::process::id(), kind)?;
        assert_eq!(ask(&mut readers, index, own.into())["answer"], "host");
    }
    for index in Index::ALL {
        for key in [0, 1 << 40, u64::from(u32::MAX)] {
            assert_eq!(ask(&mut readers, index, key)["answer"], "unknown");
        }
    }
    let condition = |readers: &mut [Reader; 3]| readers.each_mut().map(|reader| reader.condition().expect("an answer"));
    assert_eq!(condition(&mut readers), ["fresh"; 3]);

    let plane = daemon.plane();
    daemon.process().signal(Signal::SIGKILL)?;
    daemon.process().wait(PATIENCE)?;
    compare(&mut readers)?;
    // As a person asks, without anything that remembers.
    for container in &living {
        let mntns = kernel::namespace(container.pid(), "mnt")?.to_string();
        let said = python(&plane, &["lookup", "--mntns", &mntns])?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.status.success() && text.contains(container.id()), "{text}");
    }
    eventually("the owner is gone", || (condition(&mut readers) == ["gone"; 3]).then_some(()));
    // Bits of it are flipped, it is cut, and its header is somebody else's.
    meddle(&plane, house.directory())
}

fn python(plane: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("python3");
    command.arg("-B").arg(python_reader()).arg("--plane").arg(plane).args(arguments);
    command.output().context("run the Python reader")
}

/// The C reader on a plane, asked these questions.
fn c(program: &Path, plane: &Path, questions: &str) -> Result<Output> {
    use std::io::Write;
    let mut command = Command::new(program);
    command.arg(plane).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().context("run the C reader")?;
    // One that refuses the plane reads no questions.
    let _ = process.stdin.take().context("a pipe")?.write_all(questions.as_bytes());
    process.wait_with_output().context("wait for the C reader")
}

/// What readers do with copies of a real plane that were broken in all ways.
fn meddle(plane: &Path, directory: &Path) -> Result<()> {
    let whole = fs::read(plane)?;
    let (broken, program) = (directory.join("broken"), directory.join("plane-lookup"));
    let both = |bytes: &[u8]| -> Result<[Output; 2]> {
        fs::write(&broken, bytes)?;
        Ok([c(&program, &broken, "list\n")?, python(&broken, &["list", "--json"])?])
    };
    let refused = |bytes: &[u8], words: &[&str]| -> Result<()> {
        for output in both(bytes)? {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(words.iter().all(|word| text.contains(word)), "{words:?} in: {text}");
        }
        Ok(())
    };
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let at = |name: &str| Header::FIELDS.iter().find(|field| field.name == name).expect("a field").at;
    let ours = format!("version {VERSION}");
    refused(&with(at("version"), &77_u32.to_le_bytes()), &["version 77", &ours])?;
    refused(&with(at("schema"), &1_u64.to_le_bytes()), &["0x0000000000000001", "same release"])?;
    refused(&with(0, b"XYZ"), &["no plane", "check the path"])?;
    refused(&with(at("boot_id"), &[0; 16]), &["earlier boot"])?;
    refused(&whole[..whole.len() - 8], &["was cut"])?;
    refused(&whole[..100], &["too few"])?;
    refused(&[], &["too few"])?;
    for field in ["capacity", "entries", "rows_at", "netns_at", "texts_at", "texts_len"] {
        refused(&with(at(field), &[0xFF; 4]), &["broken"])?;
    }

    // Cut while it is open: whoever maps it lives on, and whoever does not says so.
    fs::write(&broken, &whole)?;
    let [_, mut mapping, mut reading] = Reader::all(&broken, directory)?;
    let question = Question { index: Index::Mntns, key: 1, when: When::Now };
    for reader in [&mut mapping, &mut reading] {
        assert_eq!(reader.ask(question)?["answer"], "unknown");
    }
    fs::OpenOptions::new().write(true).open(&broken)?.set_len(4096)?;
    assert_eq!(mapping.ask(question)?["answer"], "busy");
    assert_eq!(mapping.condition()?, "broken");
    assert!(reading.ask(question).is_err());
    assert!(fs::read_to_string(directory.join("python.log"))?.contains("was cut while it was read: open it again"));

    // Any bits at all: an answer or a refusal, and soon.
    let geometry = Geometry::of(16_384);
    let mut random = fastrand::Rng::with_seed(5);
    let questions: String = (0..200)
        .map(|number| {
            format!(
                "{} {} now\n",
                ["mntns", "netns", "cgroup", "pid"][number % 4],
                random.u32(4_026_531_800..4_026_533_500)
            )
        })
        .chain(["list\n".to_owned()])
        .collect();
    for round in 0..12 {
        let mut flipped = whole.clone();
        for _ in 0..200 {
            let end = [256, geometry.rows_at + 64 * 512, flipped.len()][round % 3];
            let at = random.usize(if round % 3 == 0 { 0..end } else { 128..end });
            flipped[at] ^= 1 << random.u8(0..8);
        }
        fs::write(&broken, &flipped)?;
        let outputs = [c(&program, &broken, &questions)?, python(&broken, &["list"])?];
        for output in outputs {
            let code = output.status.code();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(matches!(code, Some(0..=2)), "{code:?} {:?} {text}", output.status.signal());
            assert!(!text.contains("Traceback"), "{text}");
        }
    }
    Ok(())
}

#[test]
fn the_header_compiles_without_a_warning_for_everybody() -> Result<()> {
    require!(requirement::program("cc"));
    let directory = tempfile::tempdir()?;
    build_c("plane-lookup.c", &directory.path().join("plane-lookup"))?;
    let source = directory.path().join("one.c");
    let text = "#define _GNU_SOURCE\n#include \"tracker_plane.h\"\nint main(void) {\n    struct tracker_plane plane;\n    \
                char error[TRACKER_ERROR_LEN];\n    return tracker_plane_open(&plane, NULL, error);\n}\n";
    fs::write(&source, text)?;
    let include = readers().join("c");
    let program = directory.path().join("one");
    let compile = |compiler: &str, arguments: &[&str], source: &Path| -> Result<()> {
        let mut command = Command::new(compiler);
        let output = command.args(arguments).arg("-I").arg(&include).arg("-o").arg(&program).arg(source).output()?;
        ensure!(output.status.success(), "{compiler} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    compile("cc", &STRICT, &source)?;
    if requirement::program("c++").is_ok() {
        let source = directory.path().join("one.cc");
        // It defines this itself.
        fs::write(&source, text.replace("#define _GNU_SOURCE\n", ""))?;
        compile("c++", &["-std=c++11", "-Wall", "-Wextra", "-Wshadow", "-Werror"], &source)?;
    }
    Ok(())
}

#[test]
fn a_tracer_in_c_that_knows_the_plane_alone_tells_whose_exec_it_was() -> Result<()> {
    require!(Kind::Runc.requirement(), requirement::tracker(), kernel::btf(), kernel::permission_events());
    require!(requirement::program("cc"));
    let house = House::new(Kind::Runc)?;
    let mut daemon = Daemon::start(&house.config(PATIENT, ""))?;
    let program = house.path("execwho");
    build_c("execwho.c", &program)?;
    let said = house.path("execwho.log");
    let mut tracer = Process::start(Command::new(&program).arg("--plane").arg(daemon.plane()), &said)?;
    let line = |what: &str, wanted: &[&str]| {
        eventually(what, || {
            let text = fs::read_to_string(&said).ok()?;
            text.lines().find(|line| wanted.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    };
    line("it listens", &["listening; the plane is fresh"]);
    // Each turn executes a program.
    let turns = ["sh", "-c", "while :; do /bin/busybox sleep 0.2; done"];
    let run = |id: &str| -> Result<_> {
        let container = house.runtime().create(&house.bundle_with(id, &turns, |_| ())?, id)?;
        container.start()?;
        Ok(container)
    };
    let _first = run("execwho-first")?;
    line("a container's exec", &["\tcontainer\texecwho-first\t"]);
    let mut own = Command::new("sleep").arg("5").spawn()?;
    let pid = format!("\t{}\t", own.id());
    line("the host's own exec", &[&pid, "\thost"]);
    own.kill()?;
    own.wait()?;

    // A new tracker is nothing to it.
    daemon.restart()?;
    let _second = run("execwho-second")?;
    line("an exec after a restart", &["\tcontainer\texecwho-second\t"]);
    let text = fs::read_to_string(&said)?;
    assert!(text.lines().all(|line| line.split('\t').nth(3) != Some("busy")), "{text}");
    assert!(tracer.ended()?.is_none(), "it goes on: {text}");
    Ok(())
}
