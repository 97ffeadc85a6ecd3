//! The kernel without us: one socket in a net ns, requests as bytes. The baseline, and who changes routes.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily as Family, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use tracker_tests::net::Net;

/// A socket.
pub(crate) struct Raw {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Raw {
    /// Opens one there.
    pub(crate) fn open(net: &Net) -> Result<Raw> {
        let path = net.path();
        let opened = std::thread::spawn(move || -> Result<OwnedFd> {
            setns(std::fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            Ok(socket(Family::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?)
        });
        let fd = opened.join().map_err(|_| io::Error::other("it panicked"))??;
        Ok(Raw { fd, buffer: vec![0; 32 << 10] })
    }

    /// `ip route get`, its reply unread.
    pub(crate) fn get(&mut self, to: Ipv4Addr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.attributes.push(RouteAttribute::Destination(to.into()));
        self.exchange(RouteNetlinkMessage::GetRoute(message), NLM_F_REQUEST).map(drop)
    }

    /// `ip route replace default via`, back when it is done.
    pub(crate) fn replace_default(&mut self, gateway: Ipv4Addr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let length = self.exchange(RouteNetlinkMessage::NewRoute(message), flags)?;
        let errno = self.buffer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        ensure!(errno == Some(0), "replace the default route by {gateway}: {errno:?}");
        Ok(())
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<usize> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let length = message.buffer_len();
        message.serialize(&mut self.buffer[..length]);
        send(self.fd.as_raw_fd(), &self.buffer[..length], MsgFlags::empty()).context("send a request")?;
        recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()).context("receive a reply")
    }
}
