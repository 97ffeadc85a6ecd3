//! The one listening socket, in the host's net ns: every net ns that has a number there is heard through it, and none is
//! kept alive by it.
//!
//! Reading is strictly in order and under one lock, so whoever has drained it knows all that was said before.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, SockFlag, bind, recvmsg, setsockopt, sockopt};
use nix::{setsockopt_impl, sockopt_impl};

use super::reply::{Message, Nsid, messages};
use super::socket::open_raw;

sockopt_impl!(
    /// Messages of all net namespaces that have a number in the socket's own.
    ListenAllNsid, SetOnly, libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID, bool
);
sockopt_impl!(
    /// A group, by its number.
    AddMembership, SetOnly, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, u32
);

/// Links, addresses, routes, rules, nexthops: all that a route depends on; and the ends of net namespaces
/// (`enum rtnetlink_groups` in `linux/rtnetlink.h`). Only all of them together are enough: a link that goes down takes
/// its IPv4 routes along without a message about routes, a nexthop that is deleted does so, too.
const GROUPS: [u32; 9] = [1, 5, 7, 8, 9, 11, 19, 32, 28];
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWNSID: u16 = 88;
const RTM_DELNSID: u16 = 89;
/// Some ten thousand messages. The kernel counts their bookkeeping, too.
const BUFFER: usize = 8 << 20;
/// The largest message: a link with all that it has.
const DATAGRAM: usize = 64 << 10;
/// Messages that are read in one go. More, and we would be kept busy by whoever talks.
const MOST: usize = 65_536;

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Something changed in the net ns with this number, or in the listener's own: an interface, or something else.
    Change { nsid: Option<i32>, interface: Option<u32> },
    /// The net ns with this number has ended.
    End { nsid: i32 },
    /// Something was said and is lost.
    Lost,
}

/// The listening socket.
#[derive(Debug)]
pub(super) struct Ear {
    fd: OwnedFd,
    datagram: Box<[u8]>,
    control: Vec<u8>,
}

impl Ear {
    /// Opens one in the calling thread's net ns.
    pub(super) fn open() -> io::Result<Self> {
        let fd = open_raw(SockFlag::SOCK_NONBLOCK)?;
        // Beyond the limit for all where that is allowed; else as much as is.
        if setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &BUFFER)?;
        }
        setsockopt(&fd, ListenAllNsid, &true)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        for group in GROUPS {
            setsockopt(&fd, AddMembership, &group)?;
        }
        Ok(Self { fd, datagram: vec![0; DATAGRAM].into(), control: nix::cmsg_space!(libc::c_int, libc::c_int) })
    }

    /// Reads all that has been said until now. False when more was said than is read in one go.
    pub(super) fn drain(&mut self, mut heard: impl FnMut(Heard)) -> bool {
        for _ in 0..MOST {
            let mut buffers = [IoSliceMut::new(&mut self.datagram)];
            let received =
                recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut buffers, Some(&mut self.control), MsgFlags::empty());
            let received = match received {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return true,
                Err(Errno::EINTR) => continue,
                // ENOBUFS; and whatever else it is, something may have been lost.
                Err(_) => {
                    heard(Heard::Lost);
                    continue;
                }
            };
            let is_cut = received.flags.contains(MsgFlags::MSG_TRUNC) || received.flags.contains(MsgFlags::MSG_CTRUNC);
            let nsid = received.cmsgs().ok().and_then(|mut all| all.find_map(|message| nsid(&message)));
            let length = received.bytes;
            if is_cut {
                heard(Heard::Lost);
                continue;
            }
            messages(&self.datagram[..length])
                .filter_map(|message| understand(message.as_ref().ok(), nsid))
                .for_each(&mut heard);
        }
        false
    }
}

fn nsid(message: &ControlMessageOwned) -> Option<i32> {
    let ControlMessageOwned::Unknown(unknown) = message else { return None };
    let header = unknown.cmsg_header;
    let is_nsid = header.cmsg_level == libc::SOL_NETLINK && header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID;
    let number = unknown.data_bytes.first_chunk().copied().map(i32::from_ne_bytes);
    number.filter(|_| is_nsid)
}

/// What a message says, if it matters. One that is not understood says that something changed.
fn understand(message: Option<&Message<'_>>, nsid: Option<i32>) -> Option<Heard> {
    let Some(Message::Reply { kind, payload, .. }) = message else {
        return Some(Heard::Change { nsid, interface: None });
    };
    // Both kinds begin with a header that has the index at the same place.
    let index = payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    match *kind {
        RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR => Some(Heard::Change { nsid, interface: index }),
        // Numbers that others have for each other say nothing about who has one here.
        RTM_NEWNSID | RTM_DELNSID if nsid.is_some() => None,
        RTM_NEWNSID => None,
        RTM_DELNSID => match Nsid::decode(payload) {
            Ok(Nsid { number: Some(nsid), .. }) => Some(Heard::End { nsid }),
            _ => Some(Heard::Lost),
        },
        _ => Some(Heard::Change { nsid, interface: None }),
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reply(kind: u16, payload: &[u8]) -> Message<'_> {
        Message::Reply { sequence: 0, kind, interrupted: false, payload }
    }

    #[test]
    fn what_is_said_about_an_interface_names_it() {
        let header = [0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for kind in [RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR] {
            let expected = Heard::Change { nsid: Some(3), interface: Some(7_u32.to_le()) };
            assert_eq!(understand(Some(&reply(kind, &header)), Some(3)), Some(expected));
        }
        let route = Heard::Change { nsid: None, interface: None };
        assert_eq!(understand(Some(&reply(24, &header)), None), Some(route));
        assert_eq!(understand(None, None), Some(route));
    }

    #[test]
    fn the_end_of_a_net_ns_is_its_number_here_not_elsewhere() {
        let mut payload = vec![0; 4];
        payload.extend(8_u16.to_ne_bytes());
        payload.extend(1_u16.to_ne_bytes());
        payload.extend(5_i32.to_ne_bytes());
        assert_eq!(understand(Some(&reply(RTM_DELNSID, &payload)), None), Some(Heard::End { nsid: 5 }));
        assert_eq!(understand(Some(&reply(RTM_DELNSID, &payload)), Some(2)), None);
        assert_eq!(understand(Some(&reply(RTM_DELNSID, &payload[..11])), None), Some(Heard::Lost));
    }

    proptest! {
        #[test]
        fn no_message_panics(kind in 0_u16..120, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            understand(Some(&reply(kind, &payload)), None);
        }
    }
}
