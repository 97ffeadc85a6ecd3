//! The process that looks up.
//!
//! Look-ups in the mapped file are measured under a seccomp filter by which the kernel ends the process at its first system
//! call but for `write` and the end: that there are none is shown by living on. (Seccomp's strict mode forbids the processor's
//! clock, too, so that nothing could be measured.)

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use tracker_common::reader::{Answer, Plane, TextBuffer, When};

use crate::owner::{FIRST_CGROUP, FIRST_MNTNS};

/// What the program is called with to be this process.
pub(crate) const WORD: &str = "look";
/// Look-ups of each kind in the mapped file.
const LOOKUPS: usize = 4_000_000;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bytes<const N: usize>([u8; N]);
// SAFETY: bytes, of which every pattern is a value.
unsafe impl<const N: usize> aya::Pod for Bytes<N> {}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [plane, socket, pins, containers] = arguments else { anyhow::bail!("four arguments") };
    let containers: u32 = containers.parse()?;
    let plane = Plane::open(plane)?;
    let keys = random_keys(containers);
    // Room for all, so that nothing is asked of the system later.
    let mut table = String::with_capacity(4096);
    table.push_str("| from another process, at random | ns each |\n|---|---|\n");
    let mut row = |what: &str, each: Duration| {
        table.push_str(&format!("| {what} | {:.1} |\n", each.as_secs_f64() * 1e9));
    };
    row("debug socket, `GET /v1/lookup`, connection kept", by_socket(Path::new(socket), &keys[..2_000])?);
    row("`bpf()`: cgroup, then row", by_map(Path::new(pins), &keys[..200_000])?);
    let [mut best, mut texts] = [TextBuffer::new(), TextBuffer::new()];
    warm_up(&plane, &keys, &mut best);

    forbid_system_calls()?;
    // None from here on.
    let mut times = [Duration::MAX; 4];
    for _ in 0..5 {
        times[0] = times[0].min(each(&keys, |number| match plane.by_mntns(FIRST_MNTNS + number, When::Now) {
            Answer::Container(found) => usize::try_from(found.number).unwrap_or(0),
            _ => usize::MAX,
        }));
        times[1] = times[1].min(each(&keys, |number| match plane.by_mntns(FIRST_MNTNS - 1 - number, When::Now) {
            Answer::Unknown => 0,
            _ => usize::MAX,
        }));
        times[2] =
            times[2].min(each(&keys, |number| match plane.by_mntns(FIRST_MNTNS + number, When::At(u64::MAX - 1)) {
                Answer::Container(found) => usize::try_from(found.number).unwrap_or(0),
                _ => usize::MAX,
            }));
        times[3] = times[3].min(each(&keys, |number| {
            match plane.by_mntns_with_texts(FIRST_MNTNS + number, When::Now, &mut texts) {
                Answer::Container((_, texts)) => texts.name.len(),
                _ => usize::MAX,
            }
        }));
    }
    row("mapped file, hit, now", times[0]);
    row("mapped file, miss", times[1]);
    row("mapped file, hit, at a time", times[2]);
    row("mapped file, hit, with all texts", times[3]);
    std::io::stdout().write_all(table.as_bytes())?;
    // What the ordinary way out does, unmapping and so on, is forbidden.
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(0) }
}

/// Container numbers, at random.
fn random_keys(containers: u32) -> Vec<u32> {
    let mut random = fastrand::Rng::with_seed(42);
    (0..LOOKUPS).map(|_| random.u32(..containers)).collect()
}

/// The mean of one pass over the keys; the answers are wanted, and whoever is busy is asked again.
fn each(keys: &[u32], mut look: impl FnMut(u32) -> usize) -> Duration {
    let begun = Instant::now();
    let mut failed = 0_u64;
    for number in keys {
        failed += u64::from(black_box(look(black_box(*number))) == usize::MAX);
    }
    let each = begun.elapsed() / keys.len() as u32;
    // A panic here would be a system call, and so an end.
    assert!(failed <= keys.len() as u64 / 100_000, "answers are right but for rows that change at this moment");
    each
}

fn warm_up(plane: &Plane, keys: &[u32], texts: &mut TextBuffer) {
    for number in &keys[..1_000_000] {
        black_box(plane.by_mntns_with_texts(FIRST_MNTNS + number, When::Now, texts).container().is_some());
    }
    // The clock is read once: the first look at it may map what it needs.
    black_box(Instant::now());
}

/// From here on the kernel ends this process at any system call but `write` and `exit_group`.
fn forbid_system_calls() -> Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    // The number of the call is what a filter is given first.
    let mut filter = [
        instruction(LOAD, 0, 0),
        instruction(JUMP_IF_EQUAL, 2, libc::SYS_write as u32),
        instruction(JUMP_IF_EQUAL, 1, libc::SYS_exit_group as u32),
        instruction(RETURN, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: takes integers only.
    let refused = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    ensure!(refused == 0, "give up new privileges: {}", std::io::Error::last_os_error());
    // SAFETY: `program` and the filter that it points to outlive the call, which copies them.
    let refused = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    ensure!(refused == 0, "forbid system calls: {}", std::io::Error::last_os_error());
    Ok(())
}

fn by_map(pins: &Path, keys: &[u32]) -> Result<Duration> {
    let open = |name: &str| MapData::from_pin(pins.join(name)).with_context(|| format!("open the pin `{name}`"));
    let cgroups = HashMap::<_, u64, Bytes<16>>::try_from(Map::HashMap(open("cgroups")?))?;
    let rows = Array::<_, Bytes<{ size_of::<tracker_common::plane::BpfRow>() }>>::try_from(Map::Array(open("rows")?))?;
    let begun = Instant::now();
    for number in keys {
        let slot = cgroups.get(&(FIRST_CGROUP + u64::from(*number)), 0).context("look up a cgroup")?;
        let row = u32::from_le_bytes(slot.0[8..12].try_into()?);
        black_box(rows.get(&row, 0).context("look up a row")?);
    }
    Ok(begun.elapsed() / keys.len() as u32)
}

fn by_socket(socket: &Path, keys: &[u32]) -> Result<Duration> {
    let mut stream = UnixStream::connect(socket).context("connect to the debug socket")?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let begun = Instant::now();
    for number in keys {
        write!(stream, "GET /v1/lookup?mntns={} HTTP/1.1\r\nhost: tracker\r\n\r\n", FIRST_MNTNS + number)?;
        let (mut line, mut len) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            answers.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse()?;
            }
        }
        let mut body = vec![0; len];
        answers.read_exact(&mut body)?;
        ensure!(body.windows(12).any(|window| window == b"\"containers\""), "a container is found");
    }
    Ok(begun.elapsed() / keys.len() as u32)
}
