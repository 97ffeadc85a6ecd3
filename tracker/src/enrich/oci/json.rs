//! The part of `config.json` that is read, as its JSON spells it. Borrows from the file wherever that has no escapes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{MAX_KEY_LEN, NamespaceKind};

/// Values that are looked at, in bytes: CRI-O puts all labels into one annotation.
const MAX_READ_LEN: usize = 64 << 10;
/// Entries of one map that are looked at; the rest is counted and skipped.
const MAX_READ_ENTRIES: usize = 4096;

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config<'a> {
    #[serde(borrow)]
    pub(super) hostname: Option<Text<'a>>,
    pub(super) root: Option<Root<'a>>,
    pub(super) mounts: Option<Vec<Mount<'a>>>,
    pub(super) annotations: Option<Texts<'a>>,
    pub(super) linux: Option<Linux<'a>>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
pub(super) struct Root<'a> {
    #[serde(borrow)]
    pub(super) path: Option<Text<'a>>,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Linux<'a> {
    #[serde(borrow)]
    pub(super) cgroups_path: Option<Text<'a>>,
    pub(super) namespaces: Option<Vec<Namespace<'a>>>,
    pub(super) resources: Option<Resources<'a>>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
pub(super) struct Mount<'a> {
    #[serde(borrow)]
    pub(super) destination: Option<Text<'a>>,
    #[serde(rename = "type")]
    pub(super) kind: Option<Text<'a>>,
    pub(super) source: Option<Text<'a>>,
    pub(super) options: Option<Vec<Text<'a>>>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
pub(super) struct Resources<'a> {
    #[serde(borrow)]
    pub(super) cpu: Option<Cpu<'a>>,
    pub(super) memory: Option<Limit>,
    pub(super) pids: Option<Limit>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
pub(super) struct Cpu<'a> {
    pub(super) shares: Option<Count>,
    pub(super) quota: Option<Count>,
    pub(super) period: Option<Count>,
    #[serde(borrow)]
    pub(super) cpus: Option<Text<'a>>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
pub(super) struct Limit {
    pub(super) limit: Option<Count>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
pub(super) struct Namespace<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    pub(super) path: Option<Text<'a>>,
}

impl Namespace<'_> {
    /// Absent for a type that this program does not know.
    pub(super) fn kind(&self) -> Option<NamespaceKind> {
        Some(match &*self.kind.as_ref()?.0 {
            "cgroup" => NamespaceKind::Cgroup,
            "ipc" => NamespaceKind::Ipc,
            "mount" => NamespaceKind::Mount,
            "network" => NamespaceKind::Network,
            "pid" => NamespaceKind::Pid,
            "time" => NamespaceKind::Time,
            "user" => NamespaceKind::User,
            "uts" => NamespaceKind::Uts,
            _ => return None,
        })
    }
}

/// Reads one document; whatever follows it is ignored, as `runc` does.
pub(super) fn read(bytes: &[u8]) -> Result<Config<'_>, serde_json::Error> {
    // serde takes a sequence for a struct, too; runtimes do not.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(de::Error::custom("not a JSON object"));
    }
    Config::deserialize(&mut serde_json::Deserializer::from_slice(bytes))
}

/// Reads a map of texts out of an annotation's value.
pub(super) fn read_texts(json: &str) -> Option<Texts<'_>> {
    serde_json::from_str(json).ok()
}

/// Text whose bytes need not be Unicode: what is not becomes U+FFFD, as in Go.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Text<'de>, E> {
                Ok(Text(String::from_utf8_lossy(bytes)))
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text<'de>, E> {
                Ok(Text(String::from_utf8_lossy(bytes).into_owned().into()))
            }
        }
        // Asking for bytes rather than for a string is what makes serde_json hand over text that is not Unicode.
        deserializer.deserialize_bytes(TextVisitor)
    }
}

/// A number of the file's; none where it is not a whole one.
#[derive(Clone, Copy)]
pub(super) struct Count(pub(super) Option<i128>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountVisitor;
        impl Visitor<'_> for CountVisitor {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Count, E> {
                Ok(Count(Some(number.into())))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Count, E> {
                Ok(Count(Some(number.into())))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Count, E> {
                Ok(Count(None))
            }
        }
        deserializer.deserialize_any(CountVisitor)
    }
}

/// A map of texts, of bounded size. A key that comes twice has its last value.
#[derive(Default)]
pub(super) struct Texts<'a> {
    pub(super) entries: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    /// Entries beyond the limits.
    pub(super) left_out: usize,
}

impl Texts<'_> {
    /// The value of `key`, unless it is empty.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.entries.get(key).map(|value| &**value).filter(|value| !value.is_empty())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Texts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts<'de>, A::Error> {
                let mut texts = Texts::default();
                while texts.entries.len() < MAX_READ_ENTRIES {
                    let Some(Text(key)) = map.next_key()? else { return Ok(texts) };
                    let value = map.next_value::<Option<Text<'de>>>()?.map_or(Cow::Borrowed(""), |text| text.0);
                    if key.len() > MAX_KEY_LEN || value.len() > MAX_READ_LEN {
                        texts.left_out += 1;
                    } else {
                        texts.entries.insert(key, value);
                    }
                }
                while map.next_entry::<Text<'de>, IgnoredAny>()?.is_some() {
                    texts.left_out += 1;
                }
                Ok(texts)
            }
        }
        deserializer.deserialize_map(TextsVisitor)
    }
}
