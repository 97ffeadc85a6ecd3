//! The three readers of the plane, asked the same questions: the Rust one in this process, the C one and the Python one in
//! processes of their own.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tracker_common::plane::{Index, Row};
use tracker_common::reader::{Answer, Found, Group, Plane, TextBuffer, Texts, When};

use crate::wait::eventually;

/// Where the readers in other languages are.
pub fn readers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tracker-common/readers")
}

/// The Python reader, which is also a command.
pub fn python_reader() -> PathBuf {
    readers().join("python/tracker_plane.py")
}

/// Warnings that nobody who includes the header should get.
pub const STRICT: [&str; 7] = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror"];

/// Builds a program beside the C reader with the system's compiler.
pub fn build_c(source: &str, program: &Path) -> Result<()> {
    let mut cc = Command::new("cc");
    cc.args(STRICT).arg("-O2").arg("-o").arg(program).arg(readers().join("c").join(source));
    let output = cc.output().context("run the C compiler")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A question about a number.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Which number it is.
    pub index: Index,
    /// The number.
    pub key: u64,
    /// The time.
    pub when: When,
}

impl Question {
    /// As the readers in other processes read it.
    fn line(self) -> String {
        let index = match self.index {
            Index::Mntns => "mntns",
            Index::Netns => "netns",
            Index::Cgroup => "cgroup",
            Index::Pid => "pid",
        };
        match self.when {
            When::Now => format!("{index} {} now", self.key),
            When::At(time) => format!("{index} {} {time}", self.key),
        }
    }
}

/// One of the three.
pub enum Reader {
    /// In this process.
    Rust(Box<Plane>),
    /// In another one, which answers lines with lines.
    Other {
        /// Its language.
        language: &'static str,
        /// The process; killed when dropped.
        process: std::process::Child,
        /// Where it is asked.
        questions: ChildStdin,
        /// Where it answers.
        answers: BufReader<ChildStdout>,
    },
}

impl Reader {
    /// All three on this plane; the C one is built into `directory`.
    pub fn all(plane: &Path, directory: &Path) -> Result<[Reader; 3]> {
        let c = directory.join("plane-lookup");
        build_c("plane-lookup.c", &c)?;
        let mut python = Command::new("python3");
        // Without leaving compiled modules in the source tree.
        python.arg("-B").arg(python_reader()).arg("--plane").arg(plane).arg("serve");
        Ok([
            Reader::Rust(Box::new(Plane::open(plane)?)),
            Reader::start("C", Command::new(c).arg(plane), &directory.join("c.log"))?,
            Reader::start("Python", &mut python, &directory.join("python.log"))?,
        ])
    }

    fn start(language: &'static str, command: &mut Command, log: &Path) -> Result<Reader> {
        let log = File::create(log).context("create a reader's log")?;
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start the {language} reader"))?;
        let questions = process.stdin.take().context("a pipe")?;
        let answers = BufReader::new(process.stdout.take().context("a pipe")?);
        Ok(Reader::Other { language, process, questions, answers })
    }

    /// Its language.
    pub fn language(&self) -> &'static str {
        match self {
            Reader::Rust(_) => "Rust",
            Reader::Other { language, .. } => language,
        }
    }

    /// What a number means: `answer`, `containers` in the order of their rows, `excluded`, `busy`.
    pub fn ask(&mut self, question: Question) -> Result<Value> {
        let mut answer = match self {
            Reader::Rust(plane) => {
                plane.reopen_if_superseded()?;
                answer_of(plane, question)
            }
            Reader::Other { .. } => self.say(&question.line())?,
        };
        if let Some(containers) = answer["containers"].as_array_mut() {
            containers.sort_by_key(|container| container["row"].as_u64());
        }
        Ok(answer)
    }

    /// All containers, in the order of their rows.
    pub fn list(&mut self) -> Result<Value> {
        match self {
            Reader::Rust(plane) => {
                let mut texts = TextBuffer::new();
                let rows: Vec<Value> = plane
                    .rows()
                    .filter_map(|(number, row)| {
                        let texts = plane.texts_of(number, &row, &mut texts)?;
                        Some(describe(number, &row, &texts))
                    })
                    .collect();
                Ok(Value::Array(rows))
            }
            Reader::Other { .. } => self.say("list"),
        }
    }

    /// Whether the plane's owner keeps it up to date.
    pub fn condition(&mut self) -> Result<String> {
        match self {
            Reader::Rust(plane) => Ok(plane.status().condition.name().to_owned()),
            Reader::Other { .. } => Ok(self.say("status")?["condition"].as_str().context("a condition")?.to_owned()),
        }
    }

    /// Sends another process a line, and reads its answer.
    pub fn say(&mut self, line: &str) -> Result<Value> {
        let Reader::Other { language, questions, answers, .. } = self else { return Ok(Value::Null) };
        let mut answer = String::new();
        writeln!(questions, "{line}")
            .and_then(|()| answers.read_line(&mut answer))
            .with_context(|| format!("ask the {language} reader `{line}`"))?;
        serde_json::from_str(&answer).with_context(|| format!("the {language} reader says `{answer}` to `{line}`"))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Reader::Other { process, .. } = self {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn answer_of(plane: &Plane, Question { index, key, when }: Question) -> Value {
    let short = u32::try_from(key).unwrap_or(0);
    match index {
        Index::Mntns => of_one(plane, || plane.by_mntns(short, when)),
        Index::Pid => of_one(plane, || plane.by_pid(short, when)),
        Index::Netns => of_all(plane, plane.by_netns(short, when)),
        Index::Cgroup => of_all(plane, plane.by_cgroup(key, when)),
    }
}

fn of_one(plane: &Plane, ask: impl Fn() -> Answer<Found>) -> Value {
    let mut texts = TextBuffer::new();
    let mut containers = Vec::new();
    // It may change between the two steps, but not for ever.
    let answer = eventually("a row stays the same for a moment", || match ask() {
        Answer::Container(found) => {
            let (row, texts) = plane.texts(&found, &mut texts)?;
            containers.push(describe(found.number, &row, &texts));
            Some("container")
        }
        Answer::Host => Some("host"),
        Answer::Unknown => Some("unknown"),
        Answer::Busy => Some("busy"),
    });
    json!({"answer": answer, "containers": containers, "excluded": 0, "busy": 0})
}

fn of_all(plane: &Plane, group: Group<'_>) -> Value {
    let Group::Containers(mut members) = group else {
        return json!({"answer": "host", "containers": [], "excluded": 0, "busy": 0});
    };
    let mut texts = TextBuffer::new();
    let (mut containers, mut changed) = (Vec::new(), 0);
    for found in members.by_ref() {
        match plane.texts(&found, &mut texts) {
            Some((row, texts)) => containers.push(describe(found.number, &row, &texts)),
            None => changed += 1,
        }
    }
    let busy = members.busy() + changed;
    let answer = match (containers.is_empty(), busy) {
        (false, _) => "container",
        (true, 0) => "unknown",
        (true, _) => "busy",
    };
    json!({"answer": answer, "containers": containers, "excluded": members.excluded(), "busy": busy})
}

/// As the other readers tell a row.
fn describe(number: u32, row: &Row, texts: &Texts<'_>) -> Value {
    json!({
        "row": number,
        "kind": row.kind_name().unwrap_or("unknown"),
        "state": row.state_name().unwrap_or("unknown"),
        "grade": row.grade_name().unwrap_or("unknown"),
        "flags": row.flags,
        "uses": row.uses,
        "mntns": row.mntns,
        "netns": row.netns,
        "pidns": row.pidns,
        "pid": row.pid,
        "exit_code": row.exit_code,
        "opened": row.opened,
        "closed": row.closed,
        "init_opened": row.init_opened,
        "init_closed": row.init_closed,
        "generation": row.generation,
        "cgroup": row.cgroup,
        "start_ticks": row.start_ticks,
        "born": row.born,
        "started": row.started,
        "died": row.died,
        "sequence": row.sequence,
        "instance": row.instance,
        "id": texts.id,
        "name": texts.name,
        "pod": texts.pod,
        "pod_namespace": texts.pod_namespace,
        "image": texts.image,
        "runtime": texts.runtime,
    })
}
