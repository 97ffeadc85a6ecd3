//! Filters: which containers the configuration leaves out of what is published. Pure: no IO, no clock.
//!
//! ```text
//! sandboxes ─▶ includes ─▶ excludes ─▶ kept
//!  excluded      kept        excluded
//! ```
//!
//! A [`Filter`] is made once from its [`Config`], which tells every bad pattern, and then asked about a [`Subject`] whenever
//! one of the fields that it looks at has changed. What cannot be decided yet, for a value is not known, is kept: a
//! container that is shown for a moment too long is a nuisance, one that is hidden by mistake a wrong answer.
//!
//! What becomes of an excluded container is the collection's business (docs/adr/0011).

mod decide;
mod rule;

use std::fmt;

use serde::Deserialize;

pub use self::decide::{Decision, Subject, Why};
pub use self::rule::{BadPattern, BadPatterns, Field, List};
use self::rule::{Listed, Rules};

/// Which containers are left out. In the config file under `[filter]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Rules by which a container stays, whatever `exclude` says: `FIELD:PATTERN` with one of the fields `name`, `image`
    /// and `pod-namespace`, and a regular expression.
    pub include: Vec<String>,
    /// Rules by which a container is left out.
    pub exclude: Vec<String>,
    /// Whether a pattern of `include` and `exclude` has to match the whole value rather than a part of it.
    pub strict: bool,
    /// Whether the sandboxes of pods are left out, before `include` is asked.
    pub exclude_sandboxes: bool,
    /// Whether annotations are rules, too. Off by default: whoever writes a pod could take it out of sight.
    pub annotations: bool,
}

/// A configuration whose patterns are understood. The default one keeps everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    include: Rules,
    exclude: Rules,
    exclude_sandboxes: bool,
    annotations: bool,
    warnings: Vec<Warning>,
}

/// A rule that is left aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    list: List,
    position: usize,
    rule: String,
    field: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Warning { list, position, rule, field } = self;
        let rule = rule.escape_debug();
        let fields = "a rule begins with `name:`, `image:` or `pod-namespace:`";
        match field.as_str() {
            "" => write!(f, "{list}, rule {position} `{rule}` names no field and is left aside: {fields}"),
            "namespace" | "kube_namespace" => {
                write!(f, "{list}, rule {position} `{rule}` is left aside: say `pod-namespace:`")
            }
            field => {
                let field = field.escape_debug();
                write!(f, "{list}, rule {position} `{rule}` is left aside: there is no field `{field}`; {fields}")
            }
        }
    }
}

impl Filter {
    /// Rules in one list that are read; a list with more is an error.
    pub const MAX_RULES: usize = 256;

    /// Understands a configuration, or tells everything that is wrong with it.
    pub fn new(config: &Config) -> Result<Filter, BadPatterns> {
        let mut bad = Vec::new();
        let mut warnings = Vec::new();
        let mut listed = |list, texts: &[String]| {
            let rules = rule::read(list, texts, config.strict, &mut bad);
            let mut known = Vec::new();
            for (position, rule) in rules {
                match rule {
                    Listed::Rule(rule) => known.push(rule),
                    Listed::UnknownField { rule, field } => warnings.push(Warning { list, position, rule, field }),
                }
            }
            Rules::new(known)
        };
        let include = listed(List::Include, &config.include);
        let exclude = listed(List::Exclude, &config.exclude);
        let Config { exclude_sandboxes, annotations, .. } = *config;
        match bad.is_empty() {
            true => Ok(Filter { include, exclude, exclude_sandboxes, annotations, warnings }),
            false => Err(BadPatterns(bad)),
        }
    }

    /// Whether it keeps everything.
    pub fn keeps_everything(&self) -> bool {
        self.exclude.is_empty() && !self.exclude_sandboxes && !self.annotations
    }

    /// What the operator should know of.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// What becomes of a container.
    pub fn decide(&self, subject: &Subject<'_>) -> Decision {
        decide::decide(self, subject)
    }
}

#[cfg(test)]
mod tests;
