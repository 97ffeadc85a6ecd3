//! Caps on what outsiders say: how many labels, and how long a text may be.
//!
//! A label that is cut short would be a wrong label, so what exceeds a cap is left out whole and counted. Control
//! characters are data here; whoever prints them escapes them.

use super::oci::{MAX_ENTRIES, MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::container::{Labels, Str};

/// Bytes of all of a container's labels together.
const MAX_LABELS_LEN: usize = 64 * 1024;
/// Bytes of a name: of an image, a network, a pod, a handler.
pub const MAX_NAME_LEN: usize = 1024;

/// The labels that are within the caps, the first ones in the order of their keys, and how many are not.
pub fn labels(all: impl IntoIterator<Item = (String, String)>) -> (Labels, u64) {
    let mut sorted: Vec<_> = all.into_iter().collect();
    sorted.sort_unstable();
    let (mut kept, mut left_out, mut len) = (Vec::<(Str, Str)>::new(), 0, 0);
    for (key, value) in sorted {
        let fits = key.len() <= MAX_KEY_LEN
            && value.len() <= MAX_VALUE_LEN
            && kept.len() < MAX_ENTRIES
            && len + key.len() + value.len() <= MAX_LABELS_LEN;
        if fits {
            len += key.len() + value.len();
            kept.push((key.into(), value.into()));
        } else {
            left_out += 1;
        }
    }
    (kept.into_iter().collect(), left_out)
}

/// A name, unless it is empty or longer than a name may be.
pub fn name(text: &str) -> Option<Str> {
    (!text.is_empty() && text.len() <= MAX_NAME_LEN).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_and_too_long_labels_are_left_out_whole() {
        let many = (0..5_000).map(|n| (format!("key-{n:04}"), "v".to_owned()));
        let (kept, left_out) = labels(many);
        assert_eq!((kept.len(), left_out), (MAX_ENTRIES, 5_000 - MAX_ENTRIES as u64));
        let long = [("long".to_owned(), "x".repeat(1 << 20)), ("bell".to_owned(), "\u{7}\n".to_owned())];
        let (kept, left_out) = labels(long);
        assert_eq!((kept.get("bell").map(|v| &**v), left_out), (Some("\u{7}\n"), 1));
        assert!(!kept.contains_key("long"));
    }

    #[test]
    fn a_name_is_something_and_not_endless() {
        assert_eq!((name("web").as_deref(), name(""), name(&"x".repeat(MAX_NAME_LEN + 1))), (Some("web"), None, None));
    }
}
