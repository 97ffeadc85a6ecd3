//! What a statement says that its source had not said before: what a line of a story names.

use std::fmt;

use crate::container::State;
use crate::fact::Statement;

/// Fields that are new or have another value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// One bit for each of [`FIELDS`].
    fields: u32,
    state: Option<State>,
}

/// Whether a field of the first statement is known, and other than in the second.
type IsNew = fn(&Statement, &Statement) -> bool;

macro_rules! fields {
    ($($name:literal: $field:ident),+ $(,)?) => {
        [$(($name, |new, former| new.$field.is_some() && new.$field != former.$field)),+]
    };
}

/// In the order in which a line names them.
const FIELDS: [(&str, IsNew); 16] = fields![
    "kind": kind,
    "pid": task,
    "namespaces": namespaces,
    "name": name,
    "runtime": runtime,
    "image": image,
    "pod": pod,
    "labels": labels,
    "annotations": annotations,
    "details": details,
    "host network": host_network,
    "cgroup": cgroup,
    "bundle": bundle,
    "start": started_at,
    "end": exited_at,
    "exit": exit,
];

impl News {
    /// What `new` says and `former`, the same source's statement before it, did not.
    pub(crate) fn of(new: &Statement, former: Option<&Statement>) -> Self {
        let nothing = Statement::default();
        let former = former.unwrap_or(&nothing);
        let bits = FIELDS.iter().enumerate().filter(|(_, (_, is_new))| is_new(new, former));
        News {
            fields: bits.fold(0, |fields, (bit, _)| fields | 1 << bit),
            state: new.state.filter(|state| former.state != Some(*state)),
        }
    }

    /// Whether the statement says nothing new.
    pub(crate) fn is_empty(self) -> bool {
        self == News::default()
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.map(State::name);
        let fields = FIELDS.iter().enumerate().filter(|(bit, _)| self.fields & 1 << bit != 0);
        for (number, name) in state.into_iter().chain(fields.map(|(_, (name, _))| *name)).enumerate() {
            f.write_str(if number == 0 { "" } else { ", " })?;
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Kind;

    #[test]
    fn what_is_new_or_different_is_named_and_what_is_no_longer_said_is_not() {
        let former = Statement { kind: Some(Kind::Container), state: Some(State::Created), ..Statement::default() };
        for (new, expected) in [
            (Statement::default(), ""),
            (former.clone(), ""),
            (
                Statement { state: Some(State::Running), host_network: Some(false), ..former.clone() },
                "running, host network",
            ),
            (Statement { kind: Some(Kind::Sandbox), name: Some("web".into()), ..former.clone() }, "kind, name"),
        ] {
            let news = News::of(&new, Some(&former));
            assert_eq!((news.to_string().as_str(), news.is_empty()), (expected, expected.is_empty()));
        }
        assert_eq!(News::of(&former, None).to_string(), "created, kind");
    }
}
