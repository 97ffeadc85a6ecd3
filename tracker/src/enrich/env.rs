//! Environment variables of containers: secrets, unless somebody says otherwise.

use serde::Deserialize;

use super::caps;
use crate::container::Labels;

/// Names of variables whose values may be read and shown. Empty by default: then no variable of any container is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct EnvAllow(Vec<String>);

impl EnvAllow {
    /// Whether no variable is allowed.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of `variables` (`NAME=value`) that are allowed, within the caps on labels. `None` where nothing is allowed.
    pub(crate) fn pick<'a>(&self, variables: impl IntoIterator<Item = &'a str>) -> Option<Labels> {
        if self.0.is_empty() {
            return None;
        }
        let pairs = variables.into_iter().filter_map(|variable| variable.split_once('='));
        let allowed = pairs.filter(|(name, _)| self.0.iter().any(|allowed| allowed == name));
        Some(caps::labels(allowed.map(|(name, value)| (name.to_owned(), value.to_owned()))).0)
    }
}

impl<N: Into<String>> FromIterator<N> for EnvAllow {
    fn from_iter<I: IntoIterator<Item = N>>(names: I) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_told() {
        let variables = ["PATH=/bin", "TOKEN=secret", "STAGE=a=b", "BARE"];
        assert_eq!(EnvAllow::default().pick(variables), None);
        let allow: EnvAllow = ["STAGE", "BARE", "TOKE"].into_iter().collect();
        assert_eq!(allow.pick(variables), Some([("STAGE", "a=b")].into_iter().collect()));
    }
}
