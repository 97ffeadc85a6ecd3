//! Which question it is, in 128 bits.
//!
//! A question takes up to 64 bytes, in which most are zero, and is compared and hashed with every look-up. What stands for
//! it is the sum of its words, each multiplied by a number of its own that nobody knows, once for each half of the key
//! ("multilinear" hashing, Lemire and Kaser 2014). It is proven to be strongly universal: two different questions,
//! whoever chose them, have the same key with a chance of one in 2¹²⁸, and nobody can choose many that end up in one
//! place of a table. So keys are compared, and questions need not be kept.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use super::query::RouteQuery;

/// Words of a question, the net ns included.
const WORDS: usize = 8;

/// A net ns and a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) low: u64,
    pub(super) high: u64,
}

/// The numbers that make keys: others in each process.
pub(super) struct Secret {
    begin: [u128; 2],
    factors: [[u128; 2]; WORDS],
}

impl Secret {
    /// Chosen at random.
    pub(super) fn new() -> Self {
        // Std's own keyed hash, whose key is from the kernel, says as many numbers as are wanted.
        let random = RandomState::new();
        let number =
            |index: usize| u128::from(random.hash_one(2 * index)) << 64 | u128::from(random.hash_one(2 * index + 1));
        let pair = |index: usize| [number(2 * index), number(2 * index + 1)];
        Self { begin: pair(WORDS), factors: std::array::from_fn(pair) }
    }

    /// The key of a query, in whichever spelling, in the net ns with this cookie.
    #[inline]
    pub(super) fn key(&self, netns: u64, query: &RouteQuery) -> Key {
        let [a, b, c, d, wide @ ..] = query.packed();
        let mut sums = self.begin;
        let mut add = |from: usize, words: &[u64]| {
            for (word, factors) in words.iter().zip(&self.factors[from..]) {
                for (sum, factor) in sums.iter_mut().zip(factors) {
                    *sum = sum.wrapping_add(factor.wrapping_mul(u128::from(*word)));
                }
            }
        };
        add(0, &[netns, a, b, c, d]);
        // A word that is zero adds nothing, and these are for IPv4.
        if wide != [0; 3] {
            add(5, &wide);
        }
        // The upper halves are the ones for which it is proven.
        let [low, high] = sums.map(|sum| (sum >> 64) as u64);
        Key { low, high }
    }
}

/// A key is a hash already.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

/// Hashes keys, and keys alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ByKey(u64);

impl BuildHasher for ByKey {
    type Hasher = ByKey;

    fn build_hasher(&self) -> ByKey {
        ByKey(0)
    }
}

impl Hasher for ByKey {
    fn write(&mut self, bytes: &[u8]) {
        // Never called: a key is one number.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn each_bit_of_a_question_changes_both_halves_of_its_key() {
        let secret = Secret::new();
        let of = |netns, query: &RouteQuery| secret.key(netns, query);
        let query = |address: IpAddr| RouteQuery { mark: Some(1), ..RouteQuery::to(address) };
        for address in ["10.0.0.1", "fe80::1"] {
            let plain = query(address.parse().unwrap());
            let key = of(7, &plain);
            for bit in 0..32 {
                let others = [
                    of(7 ^ 1 << bit, &plain),
                    of(7, &RouteQuery { mark: Some(1 ^ 1 << bit), ..plain }),
                    of(7, &RouteQuery { uid: Some(1 << bit), ..plain }),
                    of(7, &RouteQuery { output: Some(1 << bit), ..plain }),
                    of(7, &RouteQuery { source: Some((u128::from(1_u32 << bit) << 96).to_be_bytes().into()), ..plain }),
                ];
                assert!(others.iter().all(|other| other.low != key.low && other.high != key.high), "bit {bit}");
            }
        }
        let other = Secret::new().key(7, &query([10, 0, 0, 1].into()));
        assert_ne!(of(7, &query([10, 0, 0, 1].into())), other, "each has numbers of its own");
    }

    #[test]
    fn neighbours_have_different_keys_all_over_the_range() {
        let secret = Secret::new();
        let keys: Vec<_> = (0..100_000_u32).map(|n| secret.key(1, &RouteQuery::to(IpAddr::V4(n.into())))).collect();
        assert_eq!(keys.iter().map(|key| key.low).collect::<HashSet<_>>().len(), keys.len());
        assert_eq!(keys.iter().map(|key| key.high).collect::<HashSet<_>>().len(), keys.len());
        for half in [|key: &Key| key.low, |key: &Key| key.high] {
            let places = keys.iter().map(|key| half(key) % 4_096).collect::<HashSet<_>>();
            assert!(places.len() > 2_048, "{} of 4,096 places", places.len());
        }
    }
}
