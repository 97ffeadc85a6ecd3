//! Selectors: which containers are meant, in one line of text.
//!
//! ```text
//! selector = [ term { "," term } ]            all terms must hold; none means everything
//! term     = key                              it is known
//!          | "!" key                          it is not known
//!          | key ( "=" | "==" ) value         it is known and matches
//!          | key "!=" value                   it is not known, or does not match
//!          | key "in" "(" value { "," value } ")"      it is known and matches one of them
//!          | key "notin" "(" value { "," value } ")"   it is not known, or matches none of them
//! key      = "id" | "name" | "image" | "image-digest" | "runtime" | "pod" | "pod-namespace" | "kind" | "state"
//!          | "label:" label-key | "pod-label:" label-key
//! ```
//!
//! In a value `*` stands for any text and `?` for any one character. A backslash takes the next character literally,
//! in label keys too: `name=a\*b`, `label:odd\,key`. As with Kubernetes, `!=` and `notin` hold where nothing is known.
//!
//! A selector is parsed once; matching it allocates nothing and takes time in proportion to its length times the
//! text's. What does not parse is told with its column.

pub(crate) mod glob;
mod parse;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::glob::Pattern;
pub use self::parse::{Problem, SelectorError};
use crate::container::{Container, Kind, Labels, State, Str};

/// Picks containers. The default picks all.
///
/// ```
/// use tracker::selector::Selector;
/// let selector: Selector = "pod-namespace=shop, state in (running,paused), label:app=web-*".parse()?;
/// assert_eq!(selector.to_string(), "pod-namespace=shop,state in (running,paused),label:app=web-*");
/// # Ok::<(), tracker::selector::SelectorError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    terms: Box<[Term]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Term {
    key: Key,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Id,
    Name,
    Image,
    ImageDigest,
    Runtime,
    Pod,
    PodNamespace,
    Kind,
    State,
    Label(Str),
    PodLabel(Str),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Test {
    Known,
    Unknown,
    In(Box<[Pattern]>),
    NotIn(Box<[Pattern]>),
}

impl Selector {
    /// Longer selectors are refused, in bytes.
    pub const MAX_LEN: usize = 4096;

    /// The selector that picks every container.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether it picks every container.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Reads a selector, in the grammar of this module.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parse::selector(text)
    }

    /// Whether it picks `container`.
    pub fn matches(&self, container: &Container) -> bool {
        self.terms.iter().all(|term| {
            let value = term.key.of(container);
            match &term.test {
                Test::Known => value.is_some(),
                Test::Unknown => value.is_none(),
                Test::In(patterns) => value.is_some_and(|value| patterns.iter().any(|pattern| pattern.matches(value))),
                Test::NotIn(patterns) => {
                    value.is_none_or(|value| patterns.iter().all(|pattern| !pattern.matches(value)))
                }
            }
        })
    }
}

impl Key {
    /// What is known of `container` under this key.
    fn of<'a>(&self, container: &'a Container) -> Option<&'a str> {
        let image = container.image.as_ref();
        let pod = container.pod.as_ref();
        match self {
            Key::Id => Some(&container.id),
            Key::Name => container.name.as_deref(),
            Key::Image => image?.name.as_deref(),
            Key::ImageDigest => image?.digest.as_deref(),
            Key::Runtime => container.runtime.name.as_deref(),
            Key::Pod => pod?.name.as_deref(),
            Key::PodNamespace => pod?.namespace.as_deref(),
            Key::Kind => Some(container.kind.name()),
            Key::State => Some(container.state.name()),
            Key::Label(key) => label(&container.labels, key),
            Key::PodLabel(key) => label(pod?.labels.as_ref()?, key),
        }
    }

    /// The values it can have, where they are few.
    fn closed_list(&self) -> Option<&'static [&'static str]> {
        const KINDS: &[&str] =
            &[Kind::Container.name(), Kind::Sandbox.name(), Kind::Unmanaged.name(), Kind::SandboxedProcess.name()];
        const STATES: &[&str] = &[
            State::Provisional.name(),
            State::Created.name(),
            State::Running.name(),
            State::Paused.name(),
            State::Exited.name(),
            State::Aborted.name(),
        ];
        match self {
            Key::Kind => Some(KINDS),
            Key::State => Some(STATES),
            _ => None,
        }
    }
}

fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    labels.get(key).map(|value| &**value)
}

/// The keys without an argument, as they are spelt.
const PLAIN_KEYS: [(&str, Key); 9] = [
    ("id", Key::Id),
    ("name", Key::Name),
    ("image", Key::Image),
    ("image-digest", Key::ImageDigest),
    ("runtime", Key::Runtime),
    ("pod", Key::Pod),
    ("pod-namespace", Key::PodNamespace),
    ("kind", Key::Kind),
    ("state", Key::State),
];

/// Prints the selector in the form that parses to the same one.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            term.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Term { key, test } = self;
        match test {
            Test::Known => write!(f, "{key}"),
            Test::Unknown => write!(f, "!{key}"),
            Test::In(patterns) => match &**patterns {
                [pattern] => write!(f, "{key}={pattern}"),
                patterns => write!(f, "{key} in {}", List(patterns)),
            },
            Test::NotIn(patterns) => match &**patterns {
                [pattern] => write!(f, "{key}!={pattern}"),
                patterns => write!(f, "{key} notin {}", List(patterns)),
            },
        }
    }
}

struct List<'a>(&'a [Pattern]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            write!(f, "{}{pattern}", if index == 0 { '(' } else { ',' })?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, argument) = match self {
            Key::Label(argument) => ("label:", argument),
            Key::PodLabel(argument) => ("pod-label:", argument),
            plain => {
                let (name, _) = PLAIN_KEYS.iter().find(|(_, key)| key == plain).expect("the table has every plain key");
                return f.write_str(name);
            }
        };
        f.write_str(prefix)?;
        argument.chars().try_for_each(|c| parse::write_escaped(f, c, parse::ends_key(c)))
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
