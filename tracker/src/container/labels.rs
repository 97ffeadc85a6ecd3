//! A map of texts that is read often, shared by many and never changed: sorted pairs that lie together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Str;

/// Labels or annotations: keys and values as their source spelt them. Cloning shares them.
///
/// ```
/// use tracker::container::Labels;
/// let labels: Labels = [("app", "web"), ("tier", "front")].into_iter().collect();
/// assert_eq!(labels.get("app").map(|value| &**value), Some("web"));
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(Arc<[(Str, Str)]>);

impl Labels {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Str> {
        let place = self.0.binary_search_by(|(other, _)| (**other).cmp(key)).ok()?;
        Some(&self.0[place].1)
    }

    /// Whether there is a value for `key`.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// All of them, sorted by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Str, &Str)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These, and those of `others` whose keys are not among them.
    pub(crate) fn or(&self, others: &Labels) -> Labels {
        if Arc::ptr_eq(&self.0, &others.0) || others.iter().all(|(key, _)| self.contains_key(key)) {
            return self.clone();
        }
        // Of equal keys the last one counts.
        others.0.iter().chain(&*self.0).cloned().collect()
    }

    /// Whether a clone of these is in use.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// The keys, if nobody else has these labels.
    pub(crate) fn keys_mut(&mut self) -> impl Iterator<Item = &mut Str> {
        Arc::get_mut(&mut self.0).into_iter().flatten().map(|(key, _)| key)
    }
}

/// Of equal keys the last one counts.
impl<K: Into<Str>, V: Into<Str>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let sorted: BTreeMap<Str, Str> = pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Labels(sorted.into_iter().collect())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::<Str, Str>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_what_a_map_of_the_same_pairs_is(
            pairs in prop::collection::vec(("[a-d]{0,2}", "[x-z]?"), 0..12),
            others in prop::collection::vec(("[a-d]{0,2}", "[x-z]?"), 0..12),
        ) {
            let map = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<BTreeMap<_, _>>();
            let labels = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<Labels>();
            let texts = |labels: &Labels| {
                labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>()
            };
            let (truth, mut union) = (map(&pairs), map(&others));
            prop_assert_eq!(texts(&labels(&pairs)), truth.clone().into_iter().collect::<Vec<_>>());
            for key in ["", "a", "ab", "dd"] {
                prop_assert_eq!(labels(&pairs).get(key).map(|value| value.to_string()), truth.get(key).cloned());
            }
            union.extend(truth);
            prop_assert_eq!(texts(&labels(&pairs).or(&labels(&others))), union.into_iter().collect::<Vec<_>>());
        }
    }
}
