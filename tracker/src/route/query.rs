//! What is asked: where would this packet go? Plain values, no IO.
//!
//! A query says what the kernel's own look-up may depend on. It is the cache's key too, so it has one spelling for each
//! meaning: IPv4 addresses that are mapped into IPv6 become IPv4, and a *translated* destination (NAT) takes the place of
//! the original one, since it is what is routed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One question. Everything but the destination may be left out.
///
/// ```
/// use tracker::route::RouteQuery;
/// let query = RouteQuery { mark: Some(7), ..RouteQuery::to("::ffff:10.0.0.1".parse().unwrap()) };
/// assert_eq!(query.normal().destination.to_string(), "10.0.0.1");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteQuery {
    /// Where to.
    pub destination: IpAddr,
    /// Where the destination is translated to before it is routed (NAT); this is what the kernel is asked about.
    pub translated: Option<IpAddr>,
    /// From which address; the kernel chooses one where it is left out.
    pub source: Option<IpAddr>,
    /// The interface by which the packet came in, for one that is forwarded.
    pub input: Option<u32>,
    /// The interface that the sender is bound to.
    pub output: Option<u32>,
    /// The packet's mark.
    pub mark: Option<u32>,
    /// The sender's uid; the tracker's own where it is left out.
    pub uid: Option<u32>,
    /// Type of service, DSCP in its upper six bits.
    pub tos: u8,
    /// IP protocol, such as 6 for TCP.
    pub protocol: Option<u8>,
    /// Source port.
    pub source_port: Option<u16>,
    /// Destination port.
    pub destination_port: Option<u16>,
}

impl RouteQuery {
    /// A query of which nothing is known but where it goes.
    pub fn to(destination: IpAddr) -> Self {
        Self {
            destination,
            translated: None,
            source: None,
            input: None,
            output: None,
            mark: None,
            uid: None,
            tos: 0,
            protocol: None,
            source_port: None,
            destination_port: None,
        }
    }

    /// The same question in its one spelling.
    pub fn normal(mut self) -> Self {
        self.destination = self.translated.take().unwrap_or(self.destination).to_canonical();
        self.source = self.source.map(|source| source.to_canonical()).filter(|source| !source.is_unspecified());
        // Zero is the kernel's word for "none".
        self.input = self.input.filter(|index| *index != 0);
        self.output = self.output.filter(|index| *index != 0);
        self
    }

    /// Whether source and destination speak the same IP. Of a query in its one spelling.
    pub(super) fn is_of_one_family(&self) -> bool {
        self.source.is_none_or(|source| source.is_ipv4() == self.destination.is_ipv4())
    }

    /// The query in 56 bytes, its one spelling whichever it has: two are packed alike if they are one question. The last
    /// three words are zero where only IPv4 is spoken.
    #[inline]
    pub(super) fn packed(&self) -> [u64; 7] {
        let to = Bits::of(self.translated.unwrap_or(self.destination));
        let from = self.source.map_or(Bits::NONE, Bits::of);
        // An address that is not specified is none, whichever IP it is of.
        let from_is_v6 = from.is_v6 && (from.high | from.low) != 0;
        let is_wide = to.is_v6 || from_is_v6;
        let given = u16::from(to.is_v6)
            | u16::from(from_is_v6) << 1
            | u16::from(self.mark.is_some()) << 2
            | u16::from(self.uid.is_some()) << 3
            | u16::from(self.protocol.is_some()) << 4
            | u16::from(self.source_port.is_some()) << 5
            | u16::from(self.destination_port.is_some()) << 6;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let small = u32::from(given) | u32::from(self.tos) << 16 | u32::from(self.protocol.unwrap_or(0)) << 24;
        let ports = u32::from(self.source_port.unwrap_or(0)) | u32::from(self.destination_port.unwrap_or(0)) << 16;
        let narrow = [
            pair(self.mark.unwrap_or(0), self.uid.unwrap_or(0)),
            pair(self.input.unwrap_or(0), self.output.unwrap_or(0)),
            pair(small, ports),
        ];
        let [marks, interfaces, rest] = narrow;
        match is_wide {
            false => [to.low | from.low << 32, marks, interfaces, rest, 0, 0, 0],
            true => [to.low, marks, interfaces, rest, to.high, from.low, from.high],
        }
    }
}

/// The bits of an address; those of an IPv4 one that is mapped into IPv6 are that one's.
#[derive(Clone, Copy)]
struct Bits {
    low: u64,
    high: u64,
    is_v6: bool,
}

impl Bits {
    const NONE: Bits = Bits { low: 0, high: 0, is_v6: false };

    #[inline]
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Bits { low: address.to_bits().into(), ..Bits::NONE },
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                let (low, high) = (bits as u64, (bits >> 64) as u64);
                match high == 0 && low >> 32 == 0xffff {
                    true => Bits { low: low & u64::from(u32::MAX), ..Bits::NONE },
                    false => Bits { low, high, is_v6: true },
                }
            }
        }
    }
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an IP address: column {column} does not belong there")]
pub struct NotAnAddress {
    /// The text, its control characters escaped, its end cut.
    pub text: String,
    /// The first character that cannot be part of an address, counted from 1; one past the end where something is
    /// missing.
    pub column: usize,
}

/// Reads an IPv4 or IPv6 address.
pub fn parse_address(text: &str) -> Result<IpAddr, NotAnAddress> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        NotAnAddress { text: shown.escape_debug().to_string(), column: wrong_column(text) }
    })
}

/// The column where it goes wrong: behind the longest beginning that some address has, too.
fn wrong_column(text: &str) -> usize {
    let is_beginning = |end: usize| {
        let begun = &text[..end];
        let completed = |rest: &str| {
            let whole = format!("{begun}{rest}");
            whole.parse::<Ipv4Addr>().is_ok() || whole.parse::<Ipv6Addr>().is_ok()
        };
        let v4 = ["", "0", ".0", "0.0", ".0.0", "0.0.0", ".0.0.0", "0.0.0.0"];
        let v6 = ["::", ":", "0", ":0", "::0"];
        let mut tails = (0..8).map(|groups| ":0".repeat(groups)).flat_map(|tail| [format!("0{tail}"), tail]);
        v4.iter().chain(&v6).any(|rest| completed(rest)) || tails.any(|rest| completed(&rest))
    };
    // No address is longer than 45 characters, and none of them is longer than a byte.
    let ends = text.char_indices().map(|(at, character)| at + character.len_utf8()).take(46);
    ends.take_while(|end| is_beginning(*end)).count() + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_one_and_a_translated_one_is_what_is_routed() {
        let to = |text: &str| RouteQuery::to(text.parse().unwrap());
        assert_eq!(to("::ffff:10.0.0.1").normal(), to("10.0.0.1"));
        let translated = RouteQuery { translated: Some("::ffff:10.2.0.1".parse().unwrap()), ..to("10.0.0.1") };
        assert_eq!(translated.normal(), to("10.2.0.1"));
        let unspecified = RouteQuery { source: Some("0.0.0.0".parse().unwrap()), input: Some(0), ..to("10.0.0.1") };
        assert_eq!(unspecified.normal(), to("10.0.0.1"));
        assert!(!RouteQuery { source: Some("::1".parse().unwrap()), ..to("10.0.0.1") }.is_of_one_family());
    }

    #[test]
    fn a_malformed_address_is_refused_with_its_column() {
        for (text, column) in [
            ("", 1),
            ("x", 1),
            ("10.0.0.256", 10),
            ("10.0.0", 7),
            ("10.0.0.1.2", 9),
            ("10..0.1", 4),
            ("1.2.3.4 ", 8),
            ("fe80::1::2", 9),
            ("fe80::12345", 11),
            ("fe80::1%eth0", 8),
            ("2001:db8", 9),
            ("::ffff:10.0.0.x", 15),
            ("10.0.0.1\u{e9}", 9),
        ] {
            assert_eq!(parse_address(text).unwrap_err().column, column, "`{text}`");
        }
        assert!(parse_address(&"1".repeat(10_000)).unwrap_err().to_string().len() < 200);
        assert!(parse_address("fe80::1").is_ok() && parse_address("::ffff:10.0.0.1").is_ok());
    }

    fn queries() -> impl Strategy<Value = RouteQuery> {
        let address = || {
            prop_oneof![
                any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
                any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
                // Mapped, and as many bits as an IPv4 address without being one.
                any::<u32>().prop_map(|bits| IpAddr::V6(Ipv4Addr::from_bits(bits).to_ipv6_mapped())),
                any::<u32>().prop_map(|bits| IpAddr::V6(u128::from(bits).into())),
                Just(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
                Just(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            ]
        };
        let addresses = (address(), proptest::option::of(address()), proptest::option::of(address()));
        let numbers = proptest::array::uniform4(proptest::option::of(any::<u32>()));
        let ports = (
            any::<u8>(),
            proptest::option::of(any::<u8>()),
            proptest::array::uniform2(proptest::option::of(any::<u16>())),
        );
        (addresses, numbers, ports).prop_map(
            |(
                (destination, translated, source),
                [input, output, mark, uid],
                (tos, protocol, [source_port, destination_port]),
            )| {
                RouteQuery {
                    destination,
                    translated,
                    source,
                    input,
                    output,
                    mark,
                    uid,
                    tos,
                    protocol,
                    source_port,
                    destination_port,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn two_questions_are_packed_alike_only_if_they_are_one(a in queries(), b in queries()) {
            prop_assert_eq!(a.packed(), a.normal().packed());
            let (a, b) = (a.normal(), b.normal());
            prop_assert_eq!(a == b, a.packed() == b.packed());
            prop_assert_eq!(a.normal(), a);
            // One field differs, if any: random queries alone are never so close.
            for near in [
                RouteQuery { mark: b.mark, ..a },
                RouteQuery { uid: b.uid, ..a },
                RouteQuery { source: b.source, ..a },
                RouteQuery { input: b.input, ..a },
                RouteQuery { output: b.output, ..a },
                RouteQuery { tos: b.tos, ..a },
                RouteQuery { protocol: b.protocol, ..a },
                RouteQuery { source_port: b.source_port, ..a },
                RouteQuery { destination_port: b.destination_port, ..a },
            ] {
                prop_assert_eq!(a == near, a.packed() == near.packed());
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = parse_address(&text);
        }

        #[test]
        fn no_almost_right_text_panics_and_the_column_is_in_it(text in "[0-9a-f:.%x]{0,50}") {
            if let Err(error) = parse_address(&text) {
                prop_assert!(error.column <= text.len() + 1);
            }
        }
    }
}
