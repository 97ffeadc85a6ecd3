//! What both halves of `tcpconnect` agree on: the bytes of one connection. The kernel half
//! (`tracker-ebpf/src/bin/tcpconnect.rs`) includes this file, too: nothing here needs more than `core`.

use super::head::Head;

/// One TCP connection that is begun, before its first packet. No padding: every byte is written. Addresses and the port are
/// as they are on the wire.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Connect {
    /// When, where, and by whom.
    pub head: Head,
    /// Where to, of a socket for IPv6.
    pub to_v6: [u64; 2],
    /// From where, of a socket for IPv6.
    pub from_v6: [u64; 2],
    /// Where to, of a socket for IPv4.
    pub to_v4: u32,
    /// From where, of a socket for IPv4.
    pub from_v4: u32,
    /// Inode number of the socket's net namespace.
    pub netns: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// The port there.
    pub port: u16,
}

const _: () = assert!(size_of::<Connect>() == size_of::<Head>() + 48);

// The kernel half has no use for these.
#[allow(dead_code)]
mod user {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::{Connect, Head};

    const AF_INET: u16 = 2;

    impl Connect {
        /// Takes the bytes of one record apart; `None` when they are too few.
        pub(crate) fn decode(bytes: &[u8]) -> Option<Connect> {
            let (head, bytes) = Head::decode(bytes)?;
            let (to, bytes) = bytes.split_first_chunk::<16>()?;
            let (from, bytes) = bytes.split_first_chunk::<16>()?;
            let (to_v4, bytes) = bytes.split_first_chunk()?;
            let (from_v4, bytes) = bytes.split_first_chunk()?;
            let (netns, bytes) = bytes.split_first_chunk()?;
            let (family, bytes) = bytes.split_first_chunk()?;
            Some(Connect {
                head,
                to_v6: words(*to),
                from_v6: words(*from),
                to_v4: u32::from_ne_bytes(*to_v4),
                from_v4: u32::from_ne_bytes(*from_v4),
                netns: u32::from_ne_bytes(*netns),
                family: u16::from_ne_bytes(*family),
                port: u16::from_ne_bytes(*bytes.first_chunk()?),
            })
        }

        /// Where to.
        pub(crate) fn to(&self) -> IpAddr {
            self.address(self.to_v4, self.to_v6)
        }

        /// From where; `None` where that is not decided yet.
        pub(crate) fn from(&self) -> Option<IpAddr> {
            Some(self.address(self.from_v4, self.from_v6)).filter(|address| !address.is_unspecified())
        }

        /// The port there, as a number.
        pub(crate) fn port(&self) -> u16 {
            u16::from_be(self.port)
        }

        /// An address of IPv4 that a socket for IPv6 is connected to is one of IPv4.
        fn address(&self, v4: u32, v6: [u64; 2]) -> IpAddr {
            if self.family == AF_INET {
                return Ipv4Addr::from(v4.to_ne_bytes()).into();
            }
            let [high, low] = v6.map(|word| u128::from(u64::from_be(word)));
            IpAddr::from(Ipv6Addr::from(high << 64 | low)).to_canonical()
        }
    }

    fn words(bytes: [u8; 16]) -> [u64; 2] {
        let number = u128::from_ne_bytes(bytes);
        // In the order in which they lie in memory.
        let halves = [number as u64, (number >> 64) as u64];
        if cfg!(target_endian = "little") { halves } else { [halves[1], halves[0]] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(family: u16, to_v4: [u8; 4], to_v6: std::net::Ipv6Addr) -> Vec<u8> {
        let mut bytes = [101_u64, 102, 103].map(u64::to_ne_bytes).concat();
        bytes.extend([3_u32.to_ne_bytes(), 4_u32.to_ne_bytes()].concat());
        bytes.extend(b"curl\0garbage\0\0\0\0");
        bytes.extend(to_v6.octets());
        bytes.extend([0; 16]);
        bytes.extend(to_v4);
        bytes.extend([10, 0, 0, 1]);
        bytes.extend(5_u32.to_ne_bytes());
        bytes.extend(family.to_ne_bytes());
        bytes.extend(443_u16.to_be_bytes());
        bytes
    }

    #[test]
    fn every_field_is_read_from_its_place_and_a_cut_record_is_refused() {
        let v6 = "2001:db8::7".parse().unwrap();
        let bytes_v4 = bytes(2, [192, 0, 2, 1], v6);
        assert_eq!(bytes_v4.len(), size_of::<Connect>());
        let v4 = Connect::decode(&bytes_v4).unwrap();
        assert_eq!((v4.head.pid, v4.head.mntns, v4.netns, v4.port()), (3, 4, 5, 443));
        assert_eq!((v4.to().to_string().as_str(), v4.from().unwrap().to_string().as_str()), ("192.0.2.1", "10.0.0.1"));
        let other = Connect::decode(&bytes(10, [0; 4], v6)).unwrap();
        assert_eq!((other.to().to_string().as_str(), other.from()), ("2001:db8::7", None));
        let mapped = Connect::decode(&bytes(10, [0; 4], "::ffff:192.0.2.9".parse().unwrap())).unwrap();
        assert_eq!(mapped.to().to_string(), "192.0.2.9");
        assert!((0..bytes_v4.len()).all(|len| Connect::decode(&bytes_v4[..len]).is_none()));
    }
}
