//! One netlink socket, and questions over it. A socket belongs for ever to the net ns in which it was opened, whatever
//! thread uses it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, getsockopt, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

use super::reply::{Garbled, Message, messages};
use super::request::Request;

sockopt_impl!(
    /// Errors with words.
    ExtendedAck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, bool
);
sockopt_impl!(
    /// Errors without the request.
    CappedAck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, bool
);
sockopt_impl!(
    /// Nothing in a request is overlooked.
    StrictCheck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, bool
);
sockopt_impl!(
    /// The never-reused id of the socket's net ns (Linux 5.14).
    NetnsCookie, GetOnly, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, u64
);

/// The kernel answers while it is being asked, so this is only waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(2);
/// Room for one datagram: a route with all of its ways, or a part of a list.
const DATAGRAM: usize = 32 << 10;
/// A list longer than this is not read to its end.
const MAX_REPLIES: usize = 65_536;
/// How often a list is asked for again that changed while it was made.
pub(super) const LIST_ATTEMPTS: usize = 4;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// The kernel said no.
    #[error("{}{}", io::Error::from_raw_os_error(*errno), words.as_deref().map(|words| format!(" ({words})")).unwrap_or_default())]
    Refused { errno: i32, words: Option<String> },
    /// It was not understood.
    #[error("the kernel's reply is garbled: {0}")]
    Garbled(#[from] Garbled),
    /// The socket does not work.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// A list changed each time that it was read.
    #[error("it changed {LIST_ATTEMPTS} times while it was read")]
    Unsettled,
}

/// What the kernel says to one request.
pub(super) type Answer<T> = Result<T, AskError>;

impl From<Errno> for AskError {
    fn from(errno: Errno) -> Self {
        AskError::Socket(errno.into())
    }
}

impl AskError {
    /// The errno, where it comes down to one.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            AskError::Refused { errno, .. } => Some(*errno),
            AskError::Socket(error) => error.raw_os_error(),
            AskError::Garbled(_) | AskError::Unsettled => None,
        }
    }
}

/// A socket that asks.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    request: Vec<u8>,
    datagram: Box<[u8]>,
}

impl Socket {
    /// Opens one in the calling thread's net ns.
    pub(super) fn open() -> io::Result<Self> {
        let fd = open_raw(SockFlag::empty())?;
        setsockopt(&fd, ExtendedAck, &true)?;
        setsockopt(&fd, CappedAck, &true)?;
        setsockopt(&fd, StrictCheck, &true)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as _, 0))?;
        // From now on only the kernel's own answers arrive.
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0, request: Vec::new(), datagram: vec![0; DATAGRAM].into() })
    }

    /// The never-reused id of its net ns.
    pub(super) fn cookie(&self) -> io::Result<u64> {
        Ok(getsockopt(&self.fd, NetnsCookie)?)
    }

    /// Asks for one thing; `decode` makes of its reply what the caller wants.
    pub(super) fn ask<T>(
        &mut self,
        request: &Request,
        decode: impl FnOnce(&[u8]) -> Result<T, Garbled>,
    ) -> Result<T, AskError> {
        let first = self.send(&[request])?;
        let mut decode = Some(decode);
        self.receive(first, |payload| decode.take().ok_or(Garbled("two replies to one request"))?(payload))?
            .ok_or(AskError::Garbled(Garbled("no reply, and no error")))
    }

    /// Asks for something to be done.
    pub(super) fn order(&mut self, request: &Request) -> Result<(), AskError> {
        let first = self.send(&[request])?;
        self.receive(first, |_| Err::<(), _>(Garbled("a reply to an order"))).map(drop)
    }

    /// Asks two things at once, which takes one system call less; each has its own answer.
    pub(super) fn ask_both<A, B>(
        &mut self,
        requests: [&Request; 2],
        first: impl FnOnce(&[u8]) -> Result<A, Garbled>,
        second: impl FnOnce(&[u8]) -> Result<B, Garbled>,
    ) -> Result<(Answer<A>, Answer<B>), AskError> {
        let sequence = self.send(&requests)?;
        let (mut first, mut second) = (Some(first), Some(second));
        let missing = || AskError::Garbled(Garbled("no reply, and no error"));
        let a = self.receive(sequence, |payload| first.take().ok_or(Garbled("two replies to one request"))?(payload));
        let a = a.and_then(|a| a.ok_or_else(missing));
        // A socket that fails has no second answer either.
        if let Err(AskError::Socket(_)) = &a {
            return a.map(|_| unreachable!("it is an error"));
        }
        let sequence = sequence.wrapping_add(1);
        let b = self.receive(sequence, |payload| second.take().ok_or(Garbled("two replies to one request"))?(payload));
        Ok((a, b.and_then(|b| b.ok_or_else(missing))))
    }

    /// Asks for a list.
    pub(super) fn list<T>(
        &mut self,
        request: &Request,
        decode: impl Fn(&[u8]) -> Result<T, Garbled>,
    ) -> Result<Vec<T>, AskError> {
        for _ in 0..LIST_ATTEMPTS {
            let first = self.send(&[request])?;
            if let Some(list) = self.receive_list(first, &decode)? {
                return Ok(list);
            }
        }
        Err(AskError::Unsettled)
    }

    /// Sends requests in one datagram and tells the first one's sequence number.
    fn send(&mut self, requests: &[&Request]) -> Result<u32, AskError> {
        let first = self.sequence;
        self.request.clear();
        for request in requests {
            request.write(self.sequence, &mut self.request);
            self.sequence = self.sequence.wrapping_add(1);
        }
        send(self.fd.as_raw_fd(), &self.request, MsgFlags::empty())?;
        Ok(first)
    }

    /// The one reply to the request with this number; none where it was acknowledged without one.
    fn receive<T>(
        &mut self,
        wanted: u32,
        mut decode: impl FnMut(&[u8]) -> Result<T, Garbled>,
    ) -> Result<Option<T>, AskError> {
        loop {
            let length = self.next_datagram()?;
            for message in messages(&self.datagram[..length]) {
                match message? {
                    Message::Reply { sequence, payload, .. } if sequence == wanted => {
                        return Ok(Some(decode(payload)?));
                    }
                    Message::Error { sequence, errno: 0, .. } if sequence == wanted => return Ok(None),
                    Message::Error { sequence, errno, words } if sequence == wanted => {
                        return Err(AskError::Refused { errno, words });
                    }
                    // What is left of an earlier request whose reply was not understood.
                    _ => {}
                }
            }
        }
    }

    fn receive_list<T>(
        &mut self,
        wanted: u32,
        decode: impl Fn(&[u8]) -> Result<T, Garbled>,
    ) -> Result<Option<Vec<T>>, AskError> {
        let (mut list, mut was_interrupted) = (Vec::new(), false);
        loop {
            let length = self.next_datagram()?;
            for message in messages(&self.datagram[..length]) {
                match message? {
                    Message::Reply { sequence, interrupted, payload, .. } if sequence == wanted => {
                        was_interrupted |= interrupted;
                        list.push(decode(payload)?);
                        if list.len() > MAX_REPLIES {
                            return Err(Garbled("a list that is too long").into());
                        }
                    }
                    Message::Done { sequence, interrupted } if sequence == wanted => {
                        return Ok((!interrupted && !was_interrupted).then_some(list));
                    }
                    Message::Error { sequence, errno, words } if sequence == wanted => {
                        return Err(AskError::Refused { errno, words });
                    }
                    _ => {}
                }
            }
        }
    }

    fn next_datagram(&mut self) -> Result<usize, AskError> {
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut self.datagram, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let silent = format!("no reply within {} s", PATIENCE.as_secs());
                    return Err(AskError::Socket(io::Error::new(io::ErrorKind::TimedOut, silent)));
                }
                received => break received?,
            }
        };
        if length > self.datagram.len() {
            return Err(Garbled("a reply larger than any that is known").into());
        }
        Ok(length)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A plain socket of `NETLINK_ROUTE` in the calling thread's net ns.
pub(super) fn open_raw(flags: SockFlag) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | flags;
    socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
}
