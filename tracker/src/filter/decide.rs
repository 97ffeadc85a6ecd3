//! What becomes of one container, and by which rule.

use super::Filter;
use super::rule::{Field, Rules};
use crate::container::{Container, Domain, Kind, Labels, Str};

/// All that a filter looks at. Two containers with equal subjects have the same fate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subject<'a> {
    /// Who says what it is.
    pub domain: Domain,
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: Option<&'a str>,
    /// Name of its image.
    pub image: Option<&'a str>,
    /// Namespace of its pod.
    pub pod_namespace: Option<&'a str>,
    /// The annotations of its pod, as far as they are known.
    pub pod_annotations: Option<&'a Labels>,
    /// Its own annotations; some runtimes hand the pod's on to its containers.
    pub annotations: &'a Labels,
    /// Whether a source will still say something about it.
    pub is_awaited: bool,
}

impl<'a> From<&'a Container> for Subject<'a> {
    fn from(container: &'a Container) -> Self {
        let pod = container.pod.as_ref();
        Subject {
            domain: container.domain,
            kind: container.kind,
            name: container.name.as_deref(),
            image: container.image.as_ref().and_then(|image| image.name.as_deref()),
            pod_namespace: pod.and_then(|pod| pod.namespace.as_deref()),
            pod_annotations: pod.and_then(|pod| pod.annotations.as_ref()),
            annotations: &container.annotations,
            is_awaited: !container.awaiting.is_empty(),
        }
    }
}

/// What becomes of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is published.
    Kept(Why),
    /// It is left out, by this rule.
    Excluded(Str),
}

/// Why a container is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// No rule matches it.
    NoRule,
    /// This rule keeps it.
    Included(Str),
    /// A rule excludes it, but this one might keep it, and looks at what is not known yet.
    Undecided(Str),
    /// What it is called is not the host's word: nobody but the host's root takes a container out of sight.
    NotTheHosts,
}

impl Decision {
    /// The rule by which it is left out.
    pub fn excluded_by(self) -> Option<Str> {
        match self {
            Decision::Excluded(rule) => Some(rule),
            Decision::Kept(_) => None,
        }
    }
}

/// What is known of a field.
#[derive(Clone, Copy)]
enum Value<'a> {
    /// This; empty where it is known that there is nothing.
    Known(&'a str),
    Unknown,
}

impl<'a> Subject<'a> {
    fn value(&self, field: Field) -> Value<'a> {
        let value = match field {
            Field::Name => self.name,
            Field::Image => self.image,
            Field::PodNamespace => self.pod_namespace,
        };
        match value {
            Some(value) => Value::Known(value),
            // Whoever vouches for it has said all there is to say.
            None if self.is_told() => Value::Known(""),
            None => Value::Unknown,
        }
    }

    fn is_told(&self) -> bool {
        self.kind.is_vouched_for() && !self.is_awaited
    }

    /// The annotation that says so, of the container by its name or of its whole pod.
    fn annotated(&self, verb: &str) -> Option<Str> {
        let own = self.name.map(|name| format!("{ANNOTATION_PREFIX}{name}.{verb}"));
        let of_pod = format!("{ANNOTATION_PREFIX}{verb}");
        let maps = || [self.pod_annotations, Some(self.annotations)].into_iter().flatten();
        let says = |key: &String| maps().any(|said| said.get(key).is_some_and(|value| &**value == "true"));
        let key = own.into_iter().chain([of_pod]).find(says)?;
        Some(format!("annotation `{key}`").into())
    }
}

/// What the keys of annotations that are rules begin with.
const ANNOTATION_PREFIX: &str = "tracker.io/";

/// What the rules of one kind say of a container.
enum Found {
    /// This one matches.
    Match(Str),
    /// This one looks at what is not known yet, and none matches.
    Unknown(Str),
    Nothing,
}

pub(super) fn decide(filter: &Filter, subject: &Subject<'_>) -> Decision {
    if subject.domain != Domain::Host {
        return Decision::Kept(Why::NotTheHosts);
    }
    if filter.exclude_sandboxes && subject.kind == Kind::Sandbox {
        return Decision::Excluded("exclude-sandboxes".into());
    }
    let included = match found(filter, &filter.include, "include", subject) {
        Found::Match(rule) => return Decision::Kept(Why::Included(rule)),
        Found::Unknown(rule) => Some(rule),
        Found::Nothing => None,
    };
    match (found(filter, &filter.exclude, "exclude", subject), included) {
        (Found::Match(_), Some(undecided)) => Decision::Kept(Why::Undecided(undecided)),
        (Found::Match(rule), None) => Decision::Excluded(rule),
        (Found::Unknown(_) | Found::Nothing, _) => Decision::Kept(Why::NoRule),
    }
}

fn found(filter: &Filter, rules: &Rules, verb: &str, subject: &Subject<'_>) -> Found {
    let mut unknown = None;
    for rule in rules.iter() {
        match subject.value(rule.field) {
            Value::Known(value) if rule.matches(value) => return Found::Match(Str::clone(&rule.told)),
            Value::Known(_) => {}
            Value::Unknown => _ = unknown.get_or_insert(&rule.told),
        }
    }
    if filter.annotations {
        match subject.annotated(verb) {
            Some(rule) => return Found::Match(rule),
            None if unknown.is_none() && !subject.is_told() => {
                return Found::Unknown(format!("annotation `{ANNOTATION_PREFIX}{verb}`").into());
            }
            None => {}
        }
    }
    unknown.map_or(Found::Nothing, |rule| Found::Unknown(Str::clone(rule)))
}
