//! Environment variables in a `config.json`: only those that somebody has allowed, and never another one.
//!
//! A second reading of the file, made only where any is allowed: what reads the rest skips a process's environment
//! without storing it.

use serde::Deserialize;

use super::MAX_LEN;
use super::json::Text;
use crate::container::Labels;
use crate::enrich::env::EnvAllow;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config<'a> {
    #[serde(borrow)]
    process: Option<Process<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Process<'a> {
    #[serde(borrow)]
    env: Option<Vec<Text<'a>>>,
}

/// The allowed ones of the variables that a container's init is given. `None` where none is allowed, and where the file
/// cannot be read or does not say.
pub(crate) fn env(config_json: &[u8], allow: &EnvAllow) -> Option<Labels> {
    if allow.is_empty() || config_json.len() > MAX_LEN {
        return None;
    }
    let config = Config::deserialize(&mut serde_json::Deserializer::from_slice(config_json)).ok()?;
    let variables = config.process?.env.unwrap_or_default();
    allow.pick(variables.iter().map(|variable| &*variable.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_allowed_is_told_and_nothing_else() {
        let allow: EnvAllow = ["STAGE", "ODD"].into_iter().collect();
        let file =
            b"{\"process\":{\"args\":[\"a\"],\"env\":[\"PATH=/bin\",\"STAGE=a=b\",\"TOKEN=x\",\"ODD=\xff\"]}} trailing";
        let told = [("STAGE", "a=b"), ("ODD", "\u{fffd}")].into_iter().collect();
        assert_eq!(env(file, &allow), Some(told));
        assert_eq!(env(file, &EnvAllow::default()), None);
        assert_eq!(env(br#"{"process":{"env":null}}"#, &allow), Some(Labels::default()), "it has none of them");
        for unsaid in ["{}", r#"{"process":null}"#, "{", r#"{"process":{"env":[1]}}"#, ""] {
            assert_eq!(env(unsaid.as_bytes(), &allow), None, "{unsaid}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            env(&bytes, &["A"].into_iter().collect());
        }
    }
}
