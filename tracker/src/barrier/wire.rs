//! What the tracker and its keeper say to each other: fixed-size messages over a `SEQPACKET` socket pair.
//!
//! Both ends are one binary, so there is no negotiation; a message that does not decode is from outside and is an error to
//! the tracker (it replaces the keeper) and an end to the keeper (the kernel then allows what is pending). Nothing
//! here blocks: when the peer's buffer is full, sending says so.
//!
//! ```text
//! tracker                              keeper
//!    │ ◀──────────────── Ready ──────────── │   the group exists (or Refused: why not)
//!    │ ── Mark + fd ─────────────────────▶ │   ◀── Marked
//!    │ ◀── Event + fd of the binary ─────── │   a task is in execve of a marked binary, and is held
//!    │ ── Allow ─────────────────────────▶ │   ◀── Released: in time, or let go before
//!    │ ── Ping ──────────────────────────▶ │   ◀── Pong
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Bytes of one message: a kind, a small number and two large ones.
const LEN: usize = 24;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// To the keeper, with the binary's fd: mark it.
    Mark { request: u64 },
    /// To the keeper, with the binary's fd: take the mark off.
    Unmark { request: u64 },
    /// To the keeper: let this event's task go on.
    Allow { event: u64 },
    /// To the keeper: are you there.
    Ping { number: u64 },
    /// From the keeper: the group exists; whether it runs with real-time priority.
    Ready { realtime: bool },
    /// From the keeper: this step of its start was refused.
    Refused { step: Step, errno: i32 },
    /// From the keeper: the answer to `Mark` and `Unmark`; 0 or an errno.
    Marked { request: u64, errno: i32 },
    /// From the keeper, with an fd of the binary: this task is held in `execve` since this moment of `CLOCK_MONOTONIC`.
    Event { event: u64, tid: i32, since_ns: u64 },
    /// From the keeper: such a task was let go at once, because the tracker had not answered in time before.
    Passed { event: u64, tid: i32, since_ns: u64 },
    /// From the keeper: the answer to `Allow`; whether the task was still held.
    Released { event: u64, in_time: bool },
    /// From the keeper: the kernel dropped events, and allowed them.
    Overflow,
    /// From the keeper: the answer to `Ping`, with the number of events let go so far.
    Pong { number: u64, let_go: u64 },
}

/// A step of the keeper's start that can be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `fanotify_init`.
    Group,
    /// Getting file descriptors in reserve.
    Reserve,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes that are no message of the keeper's protocol")]
pub(crate) struct Malformed {
    len: usize,
}

impl Message {
    fn parts(self) -> (u32, i32, u64, u64) {
        match self {
            Message::Mark { request } => (1, 0, request, 0),
            Message::Unmark { request } => (2, 0, request, 0),
            Message::Allow { event } => (3, 0, event, 0),
            Message::Ping { number } => (4, 0, number, 0),
            Message::Ready { realtime } => (5, realtime.into(), 0, 0),
            Message::Refused { step: Step::Group, errno } => (6, errno, 0, 0),
            Message::Refused { step: Step::Reserve, errno } => (6, errno, 1, 0),
            Message::Marked { request, errno } => (7, errno, request, 0),
            Message::Event { event, tid, since_ns } => (8, tid, event, since_ns),
            Message::Passed { event, tid, since_ns } => (9, tid, event, since_ns),
            Message::Released { event, in_time } => (10, in_time.into(), event, 0),
            Message::Overflow => (11, 0, 0, 0),
            Message::Pong { number, let_go } => (12, 0, number, let_go),
        }
    }

    pub(crate) fn encode(self) -> [u8; LEN] {
        let (kind, small, first, second) = self.parts();
        let mut bytes = [0; LEN];
        bytes[0..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&small.to_le_bytes());
        bytes[8..16].copy_from_slice(&first.to_le_bytes());
        bytes[16..24].copy_from_slice(&second.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = Malformed { len: bytes.len() };
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| malformed)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (small, first, second) = (word(4).cast_signed(), long(8), long(16));
        Ok(match word(0) {
            1 => Message::Mark { request: first },
            2 => Message::Unmark { request: first },
            3 => Message::Allow { event: first },
            4 => Message::Ping { number: first },
            5 => Message::Ready { realtime: small != 0 },
            6 => Message::Refused { step: if first == 0 { Step::Group } else { Step::Reserve }, errno: small },
            7 => Message::Marked { request: first, errno: small },
            8 => Message::Event { event: first, tid: small, since_ns: second },
            9 => Message::Passed { event: first, tid: small, since_ns: second },
            10 => Message::Released { event: first, in_time: small != 0 },
            11 => Message::Overflow,
            12 => Message::Pong { number: first, let_go: second },
            _ => return Err(malformed),
        })
    }
}

/// Sends one message, with an fd if there is one. Never blocks: a full buffer is `EAGAIN`.
pub(crate) fn send(socket: BorrowedFd<'_>, message: Message, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let bytes = message.encode();
    let fds = fd.map(|fd| [fd.as_raw_fd()]);
    let rights = fds.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
    let control = rights.as_ref().map_or(&[][..], |rights| rights);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None).map(drop)
}

/// What [`receive`] found.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message, and the fd that came with it. The fd is absent when none was sent or when this process had no room for it.
    Message(Message, Option<OwnedFd>),
    /// Nothing there now.
    Nothing,
    /// The peer has gone, or speaks another language.
    Closed,
}

/// Takes one message from the socket, without waiting.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Received {
    // One byte more than a message, so that a longer one does not pass for one.
    let mut bytes = [0; LEN + 1];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let (len, fd) = match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
        Ok(message) => {
            let fd = message.cmsgs().into_iter().flatten().find_map(|control| match control {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            });
            // SAFETY: the kernel has just put this fd into our table for us, and nobody else knows its number.
            (message.bytes, fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
        Err(_) => return Received::Closed,
    };
    match Message::decode(&bytes[..len]) {
        Ok(message) => Received::Message(message, fd),
        Err(_) => Received::Closed,
    }
}

/// A connected pair of sockets: the tracker's end and the keeper's.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Whether `fd` is a socket of the kind that [`pair`] makes.
pub(crate) fn is_ours(fd: impl AsFd) -> bool {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    getsockopt(&fd, sockopt::SockType) == Ok(SockType::SeqPacket)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_message_arrives_as_it_was_sent_with_its_fd() {
        let (here, there) = pair().unwrap();
        assert!(is_ours(&here));
        let messages = [
            Message::Mark { request: u64::MAX },
            Message::Unmark { request: 2 },
            Message::Allow { event: 1 << 40 },
            Message::Ping { number: 3 },
            Message::Ready { realtime: true },
            Message::Refused { step: Step::Reserve, errno: -1 },
            Message::Refused { step: Step::Group, errno: 22 },
            Message::Marked { request: 4, errno: 13 },
            Message::Event { event: 5, tid: i32::MAX, since_ns: 1 << 50 },
            Message::Passed { event: 6, tid: 7, since_ns: 8 },
            Message::Released { event: 9, in_time: false },
            Message::Overflow,
            Message::Pong { number: 10, let_go: 11 },
        ];
        for message in messages {
            send(here.as_fd(), message, Some(here.as_fd())).unwrap();
            let Received::Message(received, Some(_)) = receive(there.as_fd()) else {
                panic!("{message:?} did not arrive")
            };
            assert_eq!(received, message);
        }
        assert!(matches!(receive(there.as_fd()), Received::Nothing));
        drop(here);
        assert!(matches!(receive(there.as_fd()), Received::Closed));
    }

    #[test]
    fn a_full_buffer_is_told_and_does_not_block() {
        let (here, _there) = pair().unwrap();
        let refused = (0..100_000).find_map(|number| send(here.as_fd(), Message::Ping { number }, None).err());
        assert_eq!(refused, Some(Errno::EAGAIN));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
            }
        }
    }
}
