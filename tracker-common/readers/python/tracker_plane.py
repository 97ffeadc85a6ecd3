#!/usr/bin/env python3
"""Look-ups in the tracker's plane: which container a mount ns, net ns, cgroup id or pid belongs to.

Works whether the tracker runs or not. Standard library only, Python 3.9 or later. docs/plane.md tells how it works.

    from tracker_plane import MNTNS, Plane

    with Plane() as plane:
        meaning = plane.lookup(MNTNS, 4026532281)
        if meaning.containers:
            print(meaning.containers[0].name)
        else:
            print(meaning.answer)  # "host", "unknown" or "busy"

As a command:

    python3 tracker_plane.py lookup --mntns $(stat -Lc %i /proc/PID/ns/mnt)

The file is read with pread, word by word where it matters, and never mapped but for the page that is waited on: whatever
becomes of the file, there is an answer or an exception.
"""

# SPDX-License-Identifier: Apache-2.0 OR MIT

import argparse
import ctypes
import errno
import json
import mmap
import os
import platform
import stat
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Iterator, List, Optional, Tuple

PATH = "/run/tracker/plane"
MAGIC = b"TRKPLANE"
VERSION = 1
SCHEMA = 0x21162369E1942975
OPEN = (1 << 64) - 1
OLD_NS = 5_000_000_000
RETRIES = 1000

MNTNS, NETNS, CGROUP, PID = range(4)

IN_USE, TRUNCATED, EXCLUDED, INHERITED, EXIT_KNOWN = 1, 2, 4, 8, 16
SUPERSEDED, STOPPED, ADOPTING = 1, 2, 4

KINDS = ("unknown", "container", "sandbox", "unmanaged", "sandboxed-process")
STATES = ("unknown", "provisional", "created", "running", "paused", "exited", "aborted")
GRADES = ("unknown", "held", "let-go", "first-exec", "observed")

_HEADER = struct.Struct("<8sIIQQ16sIIQII4QQQIIQQQIIIIQIIIIQQQ")
_ROW = struct.Struct("<QIIIIIIQQQBBBBIQQQQQQQQQQI6H32s")
_ENTRY = struct.Struct("<QQQII")
_HEADER_LEN, _ROW_LEN, _ENTRY_LEN, _TEXT_MAX = 4096, 512, 32, 4096
_MAX_CAPACITY = 1 << 20
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
assert (_HEADER.size, _ROW.size, _ENTRY.size) == (216, 192, 32)


class PlaneError(Exception):
    """Why a plane cannot be read, and what to do about it."""


@dataclass
class Container:
    """A row as it was at one moment. Times are ns of CLOCK_BOOTTIME; 0 and "" are unknown."""

    row: int
    kind: str
    state: str
    grade: str
    flags: int
    uses: int
    mntns: int
    netns: int
    pidns: int
    pid: int
    exit_code: int
    opened: int
    closed: int
    init_opened: int
    init_closed: int
    generation: int
    cgroup: int
    start_ticks: int
    born: int
    started: int
    died: int
    sequence: int
    instance: int
    id: str
    name: str
    pod: str
    pod_namespace: str
    image: str
    runtime: str

    @property
    def is_vouched_for(self) -> bool:
        """Whether a runtime or a machine manager says that this is a container."""
        return self.kind in ("container", "sandbox")

    @property
    def is_excluded(self) -> bool:
        """Whether the tracker's configuration leaves it out of answers."""
        return self.flags & EXCLUDED != 0


@dataclass
class Meaning:
    """What a number means."""

    answer: str  # "container", "host", "unknown" or "busy"
    containers: List[Container] = field(default_factory=list)
    excluded: int = 0  # those that share the number, but that the configuration leaves out of answers
    busy: int = 0  # rows that could not be read


@dataclass
class Status:
    """Who writes the plane, and whether what it says is still true.

    The condition is "fresh"; "old" (the tracker is there, but was not seen for a while); "gone" (it was killed or
    crashed); "stopped" (it ended in an orderly way); or "superseded" (another file has taken this one's place).
    """

    condition: str
    age_ns: int
    owner_pid: int
    epoch: int
    is_adopting: bool
    sequence: int
    changes: int
    capacity: int
    rows: int
    tombstones: int
    waiting: int
    refused: int
    evicted: int
    truncated: int


def now_ns() -> int:
    """Now, in the plane's time."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _is_within(when: Optional[int], opened: int, closed: int) -> bool:
    return closed == OPEN if when is None else opened <= when < closed


class Plane:
    """A plane that was opened and checked. For one thread; threads open one each."""

    def __init__(self, path: str = PATH):
        self.path = path
        self._page: Optional[mmap.mmap] = None
        self._fd = _open(path)
        try:
            self._check()
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise

    def __enter__(self) -> "Plane":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes it; safe to do twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, at: int, size: int) -> bytes:
        """Bytes that are within the plane; fewer are there only if the file was cut."""
        data = os.pread(self._fd, size, at)
        if len(data) != size:
            raise PlaneError(f"the plane `{self.path}` was cut while it was read: open it again")
        return data

    def _check(self) -> None:
        def refuse(why: str) -> PlaneError:
            return PlaneError(f"open the plane `{self.path}`: {why}")

        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("not a regular file: name the plane itself, not a link to it")
        self._file = (status.st_dev, status.st_ino)
        if status.st_size < _HEADER_LEN:
            raise refuse(f"{status.st_size} bytes are too few for a plane: start the tracker, which makes a new one")
        header = _HEADER.unpack(self._read(0, _HEADER.size))
        magic, version, header_len, schema, file_len, boot_id, capacity, row_len, rows_at, entries, entry_len = header[:11]
        index_at, texts_at, texts_len = header[11:15], header[15], header[16]
        if magic != MAGIC:
            raise refuse("this is no plane: it does not begin with `TRKPLANE`; check the path")
        same = "use a reader of the same release as the tracker that writes the plane"
        if version != VERSION:
            raise refuse(f"the plane has layout version {version}, and this reader reads version {VERSION}: {same}")
        if schema != SCHEMA:
            raise refuse(f"the plane has schema {schema:#018x}, and this reader reads {SCHEMA:#018x}: {same}")
        if file_len > status.st_size:
            raise refuse(f"the plane was cut: {status.st_size} of {file_len} bytes are left; restart the tracker")
        sections = [(rows_at, capacity * _ROW_LEN), (texts_at, texts_len)]
        sections += [(at, entries * _ENTRY_LEN) for at in index_at]
        is_sound = (
            (header_len, row_len, entry_len) == (_HEADER_LEN, _ROW_LEN, _ENTRY_LEN)
            and 0 < capacity <= _MAX_CAPACITY
            and 0 < entries <= 4 * _MAX_CAPACITY
            and entries & (entries - 1) == 0
            and all(at >= _HEADER_LEN and at % 8 == 0 and size % 8 == 0 and at + size <= file_len for at, size in sections)
        )
        if not is_sound:
            raise refuse("the plane is broken: its header says what cannot be; restart the tracker, which makes a new one")
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                if bytes.fromhex(file.read().strip().replace("-", "")) != boot_id:
                    raise refuse("it is of an earlier boot of this machine: start `tracker run`")
        except OSError:
            pass  # Without /proc nobody can tell.
        self._capacity, self._rows_at, self._entries, self._index_at = capacity, rows_at, entries, index_at
        self._texts_at, self._texts_end = texts_at, texts_at + texts_len

    # Looking up ------------------------------------------------------------------------------------------------------

    def lookup(self, index: int, key: int, when: Optional[int] = None) -> Meaning:
        """What a number means now, or at a time in ns of CLOCK_BOOTTIME.

        By mount ns and init pid there is one container at a time; net ns and cgroups may be shared, and then all
        are told. Of a cgroup's, those that nobody vouches for are left out where somebody vouches for another.
        """
        header = self._header()
        host = (header["host_mntns"], header["host_netns"], header["host_cgroup"], 0)[index]
        if key != 0 and key == host:
            return Meaning("host")
        found, busy = self._walk(index, key, when)
        if index == CGROUP and any(container.is_vouched_for for container in found):
            found = [container for container in found if container.is_vouched_for]
        shown = [container for container in found if not container.is_excluded]
        excluded = len(found) - len(shown)
        if index in (MNTNS, PID):
            # Who holds the number is known, whatever could not be read.
            busy, excluded = (0, 0) if found else (busy, 0)
            shown = shown[:1]
        name = "container" if shown else "busy" if busy else "unknown"
        return Meaning(name, shown, excluded, busy)

    def _walk(self, index: int, key: int, when: Optional[int]) -> Tuple[List[Container], int]:
        """All rows that have a number at a time, and how many more could not be read."""
        found: List[Container] = []
        busy = 0
        retries = RETRIES
        # 0 is nobody's number, and what free places have.
        at, end = 0, self._entries if key != 0 else 0
        while at < end:
            place = self._index_at[index] + _place(key, at, self._entries) * _ENTRY_LEN
            while True:
                entry_key, opened, closed, row, passed = _ENTRY.unpack(self._read(place, _ENTRY_LEN))
                if entry_key != key or not _is_within(when, opened, closed):
                    break
                if row >= self._capacity:
                    busy += 1
                    break
                # Of entries, only those of the row cannot change while the row does not.
                container = self._read_row(row, lambda: self._names(place, key, row))
                if container is not None:
                    keys = (container.mntns, container.netns, container.cgroup, container.pid)
                    interval = (container.opened, container.closed)
                    if index == PID:
                        interval = (container.init_opened, container.init_closed)
                    if not container.flags & IN_USE or keys[index] != key:
                        busy += 1  # The tracker leaves no entry for another row.
                    elif _is_within(when, *interval):
                        found.append(container)
                    break
                if retries == 0:
                    busy += 1
                    break
                retries -= 1
            at += 1
            if passed == 0 or (found and index in (MNTNS, PID)):
                break
        return found, busy

    def _names(self, place: int, key: int, row: int) -> bool:
        entry = _ENTRY.unpack(self._read(place, _ENTRY_LEN))
        return entry[0] == key and entry[3] == row

    def _read_row(self, number: int, also=lambda: True) -> Optional[Container]:
        """A row and its texts; None where it is being changed. `also` is asked while it is known not to change."""
        at = self._rows_at + number * _ROW_LEN
        # The lock alone, first and last: one read of many words may see them in any order.
        lock = self._read(at, 8)
        if lock[0] & 1 or not also():
            return None
        data = self._read(at, _ROW.size)
        (_, flags, uses, mntns, netns, pidns, pid, opened, closed, generation, kind, state, grade, _, exit_code) = (
            _ROW.unpack(data)[:15]
        )
        init_opened, init_closed, cgroup, start_ticks, born, started, died, sequence, instance = _ROW.unpack(data)[15:24]
        text_at, text_len = _ROW.unpack(data)[24:26]
        lens = _ROW.unpack(data)[26:32]
        is_own = text_at == at + _ROW.size and text_len <= _ROW_LEN - _ROW.size
        is_slot = self._texts_at <= text_at and text_at + text_len <= self._texts_end
        is_sound = text_len <= _TEXT_MAX and text_len == sum(lens) and text_at % 8 == 0 and (is_own or is_slot)
        texts = self._read(text_at, text_len) if is_sound and text_len else b""
        if self._read(at, 8) != lock or not (is_sound or text_len == sum(lens) == 0):
            return None
        parts, begin = [], 0
        for length in lens:
            parts.append(texts[begin : begin + length].decode("utf-8", "replace"))
            begin += length

        def named(names: Tuple[str, ...], value: int) -> str:
            return names[value] if value < len(names) else "unknown"

        return Container(
            number, named(KINDS, kind), named(STATES, state), named(GRADES, grade), flags, uses, mntns, netns, pidns, pid,
            exit_code, opened, closed, init_opened, init_closed, generation, cgroup, start_ticks, born, started, died,
            sequence, instance, *parts,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Container]:
        """All containers, each as it was at one moment; those that cannot be read are left out."""
        for number in range(min(self._header()["rows_used"], self._capacity)):
            for _ in range(RETRIES):
                container = self._read_row(number)
                if container is not None:
                    if container.flags & IN_USE and not container.is_excluded:
                        yield container
                    break

    # The owner, changes ----------------------------------------------------------------------------------------------

    def _header(self) -> dict:
        names = (
            "owner_pid epoch owner_start heartbeat sequence changes flags host_mntns host_netns host_cgroup rows_used rows "
            "tombstones waiting refused evicted truncated"
        )
        return dict(zip(names.split(), _HEADER.unpack(self._read(0, _HEADER.size))[17:]))

    def status(self) -> Status:
        """Who writes the plane, and whether what it says is still true."""
        header = self._header()
        age = max(0, now_ns() - header["heartbeat"])
        if header["flags"] & SUPERSEDED or self._is_replaced():
            condition = "superseded"
        elif header["flags"] & STOPPED:
            condition = "stopped"
        elif age < OLD_NS:
            condition = "fresh"
        else:
            condition = "old" if _is_there(header["owner_pid"], header["owner_start"]) else "gone"
        counts = "owner_pid epoch sequence changes rows tombstones waiting refused evicted truncated"
        is_adopting = header["flags"] & ADOPTING != 0
        return Status(
            condition=condition, age_ns=age, is_adopting=is_adopting, capacity=self._capacity,
            **{name: header[name] for name in counts.split()},
        )  # fmt: skip

    def changes(self) -> int:
        """How often something was published. Wraps."""
        return self._header()["changes"]

    def wait(self, seen: int, timeout: float) -> int:
        """Waits until something is published after changes() was `seen`, or the time (in seconds) is over."""
        if self._page is None:
            self._page = mmap.mmap(self._fd, _HEADER_LEN, mmap.MAP_SHARED, mmap.PROT_READ)
            self._changes = _address_of(self._page) + 152
        deadline = time.monotonic() + timeout
        while True:
            changes = self.changes()
            left = deadline - time.monotonic()
            if changes != seen or left <= 0:
                return changes
            # At most a second, so that a signal is noticed, and that a kernel without this futex only makes us late.
            _futex_wait(self._changes, seen, min(left, 1.0))

    def _is_replaced(self) -> bool:
        """Whether the path names another file; not where it names none."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) != self._file

    def reopen_if_superseded(self) -> bool:
        """Opens the path again where another file has taken this one's place, and says whether it did."""
        if not self._is_replaced() and not self._header()["flags"] & SUPERSEDED:
            return False
        fresh = Plane(self.path)
        self.close()
        self.__dict__ = fresh.__dict__
        return True


def _place(key: int, at: int, entries: int) -> int:
    """The `at`-th place to look for a key in an index."""
    hashed = (key * 0x9E3779B97F4A7C15) & OPEN
    return ((hashed >> 32) + at * (hashed & 0xFFFFFFFF | 1)) & (entries - 1)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        why = {
            errno.ENOENT: "there is none: start `tracker run`, or name the path of its `[plane]`",
            errno.EACCES: "permission denied: run as root, or as a member of the group that `group` in the tracker's "
            "`[plane]` names",
            errno.ELOOP: "not a regular file: name the plane itself, not a link to it",
            errno.ENXIO: "not a regular file: name the plane itself, not a link to it",
        }.get(error.errno or 0, error.strerror)
        raise PlaneError(f"open the plane `{path}`: {why}") from error


def _is_there(pid: int, start_ticks: int) -> bool:
    """Whether the process that started then is still running; a zombie is not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The program's name stands in parentheses, and may contain anything. The start time is the 22nd field.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return len(fields) > 19 and fields[0] not in (b"Z", b"X") and int(fields[19]) == start_ticks


class _Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


def _address_of(page: mmap.mmap) -> int:
    """Where a read-only mapping is: ctypes lends only writable ones, so the buffer is asked for by hand."""

    class Buffer(ctypes.Structure):
        _fields_ = [
            ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
            ("readonly", ctypes.c_int), ("ndim", ctypes.c_int), ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p),
            ("strides", ctypes.c_void_p), ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
        ]  # fmt: skip

    buffer = Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(page), ctypes.byref(buffer), 0)
    address = buffer.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def _futex_wait(address: int, seen: int, seconds: float) -> None:
    number = {"x86_64": 202}.get(platform.machine(), 98)
    timeout = _Timespec(int(seconds), int(seconds % 1 * 1e9))
    libc = ctypes.CDLL(None, use_errno=True)
    # Not private: who wakes is another process. FUTEX_WAIT is 0.
    result = libc.syscall(
        ctypes.c_long(number), ctypes.c_void_p(address), ctypes.c_int(0), ctypes.c_uint32(seen), ctypes.byref(timeout),
        None, ctypes.c_int(0),
    )  # fmt: skip
    if result != 0 and ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
        time.sleep(min(seconds, 0.1))


# The command ------------------------------------------------------------------------------------------------------------


def _describe(container: Container) -> str:
    name = container.name or container.id[:12] or f"{container.kind} of pid {container.pid}"
    more = [container.kind, container.state, f"pid {container.pid}"]
    if container.pod:
        more.append(f"pod {container.pod_namespace}/{container.pod}")
    if container.image:
        more.append(container.image)
    return printable(f"{name}\t{', '.join(more)}\t{container.id}")


def printable(text: str) -> str:
    """What others chose as a name may steer a terminal."""
    return "".join(char if char.isprintable() or char == "\t" else "\ufffd" for char in text)


def _print_answer(meaning: Meaning, as_json: bool) -> int:
    if as_json:
        print(json.dumps(asdict(meaning)))
    else:
        for container in meaning.containers:
            print(_describe(container))
        if meaning.answer != "container":
            explained = {
                "host": "host",
                "unknown": "unknown: nothing that the tracker knows",
                "busy": "busy: it is just being changed, or was when the tracker ended; try again",
            }
            print(explained[meaning.answer])
        if meaning.excluded:
            print(f"and {meaning.excluded} that the tracker's configuration excludes")
    sys.stdout.flush()
    return 0 if meaning.answer in ("container", "host") else 1


def _lookup(plane: Plane, options: argparse.Namespace) -> int:
    numbers = (options.mntns, options.netns, options.cgroup, options.pid)
    index = next(index for index, number in enumerate(numbers) if number is not None)
    return _print_answer(plane.lookup(index, numbers[index], options.at), options.json)


def _list(plane: Plane, options: argparse.Namespace) -> int:
    containers = list(plane)
    if options.json:
        print(json.dumps([asdict(container) for container in containers]))
    else:
        for container in containers:
            print(_describe(container))
    return 0 if containers else 1


def _watch(plane: Plane, options: argparse.Namespace) -> int:
    deadline = None if options.seconds is None else time.monotonic() + options.seconds
    before: dict = {}
    while True:
        changes = plane.changes()
        after = {(container.row, container.uses): container for container in plane}
        for key in [*before, *(key for key in after if key not in before)]:
            old, new = before.get(key), after.get(key)
            if old == new:
                continue
            what = "added" if old is None else "removed" if new is None else "changed"
            container = new or old
            assert container is not None
            print(json.dumps({"change": what, **asdict(container)}) if options.json else f"{what}\t{_describe(container)}")
        sys.stdout.flush()
        before = after
        left = 1.0 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return 0
        plane.wait(changes, min(left, 1.0))
        if plane.reopen_if_superseded():
            before = {}


def _status(plane: Plane, options: argparse.Namespace) -> int:
    status = plane.status()
    if options.json:
        print(json.dumps(asdict(status)))
        return 0
    explained = {
        "fresh": "fresh: the tracker keeps it up to date",
        "old": "old: the tracker is there, but has not been seen for a while; is it stopped?",
        "gone": "gone: the tracker was killed or crashed; what the plane says was true then. Start `tracker run`",
        "stopped": "stopped: the tracker was ended; what the plane says was true then. Start `tracker run`",
        "superseded": "superseded: another file has taken its place",
    }
    print(explained[status.condition])
    for name, value in asdict(status).items():
        if name != "condition":
            print(f"{name}\t{value}")
    return 0


def _serve(plane: Plane, _: argparse.Namespace) -> int:
    """Answers questions on standard input, one per line, each with a line of JSON."""
    names = {"mntns": MNTNS, "netns": NETNS, "cgroup": CGROUP, "pid": PID}
    for line in sys.stdin:
        words = line.split()
        plane.reopen_if_superseded()
        if words == ["list"]:
            print(json.dumps([asdict(container) for container in plane]), flush=True)
        elif words == ["status"]:
            print(json.dumps(asdict(plane.status())), flush=True)
        elif len(words) == 3 and words[0] in names:
            when = None if words[2] == "now" else int(words[2])
            _print_answer(plane.lookup(names[words[0]], int(words[1]), when), True)
        else:
            print(f"tracker_plane: what is: {line}", file=sys.stderr)
            return 2
    return 0


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number <= OPEN:
        raise ValueError
    return number


_number.__name__ = "number"


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        description="Look-ups in the tracker's plane: which container a number in an event belongs to.",
        epilog="Ends with 0 if something was found, 1 if nothing was, and 2 if the question or the plane cannot be read.",
    )
    parser.add_argument("--plane", default=PATH, metavar="PATH", help="the plane (default: %(default)s)")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON value instead of words for people")
    common.add_argument("--plane", default=argparse.SUPPRESS, metavar="PATH", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    lookup = commands.add_parser("lookup", parents=[common], help="what a number means, now or at a time")
    which = lookup.add_mutually_exclusive_group(required=True)
    which.add_argument("--mntns", type=_number, metavar="N", help="inode number of a mount ns: stat -Lc %%i /proc/PID/ns/mnt")
    which.add_argument("--netns", type=_number, metavar="N", help="inode number of a net ns")
    which.add_argument("--cgroup", type=_number, metavar="ID", help="id of a cgroup in the v2 hierarchy")
    which.add_argument("--pid", type=_number, metavar="PID", help="a container's first process, as the host sees it")
    lookup.add_argument("--at", type=_number, metavar="NS", help="at this time, in ns of CLOCK_BOOTTIME, instead of now")
    lookup.set_defaults(run=_lookup)
    commands.add_parser("list", parents=[common], help="all containers").set_defaults(run=_list)
    watch = commands.add_parser("watch", parents=[common], help="all containers, then what changes")
    watch.add_argument("--seconds", type=float, metavar="S", help="end after so long")
    watch.set_defaults(run=_watch)
    status = commands.add_parser("status", parents=[common], help="who writes the plane, and whether it is up to date")
    status.set_defaults(run=_status)
    serve = commands.add_parser("serve", parents=[common], help="answer lines such as `mntns N now` with lines of JSON")
    serve.set_defaults(run=_serve)
    options = parser.parse_args(arguments)
    try:
        with Plane(options.plane) as plane:
            return options.run(plane, options)
    except PlaneError as error:
        print(f"tracker_plane: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        # Whoever read our output has gone; there is nobody to tell.
        sys.stdout = None  # type: ignore[assignment]
        return 0


if __name__ == "__main__":
    sys.exit(main())
