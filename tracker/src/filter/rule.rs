//! One rule: a field and a regular expression; and what is wrong with those that are none.

use std::fmt;

use regex::{Regex, RegexBuilder};

use super::Filter;
use crate::container::Str;

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The container's name.
    Name,
    /// The name of its image, as the runtime resolved it.
    Image,
    /// The namespace of its pod.
    PodNamespace,
}

impl Field {
    const ALL: [Field; 3] = [Field::Name, Field::Image, Field::PodNamespace];

    /// As it is spelt in rules, in selectors and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Field::Name => "name",
            Field::Image => "image",
            Field::PodNamespace => "pod-namespace",
        }
    }
}

/// Where a rule stands in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// `include`.
    Include,
    /// `exclude`.
    Exclude,
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            List::Include => "include",
            List::Exclude => "exclude",
        })
    }
}

/// A rule whose pattern is understood.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) field: Field,
    /// As people are told: its list and its text.
    pub(super) told: Str,
    pattern: Regex,
    /// The one pattern that matches what is known to be nothing.
    matches_nothing: bool,
}

impl Rule {
    pub(super) fn matches(&self, value: &str) -> bool {
        match value.is_empty() {
            // `.*` is meant for what has a value: who wants those without one says so.
            true => self.matches_nothing,
            false => self.pattern.is_match(value),
        }
    }
}

/// The rules of one list, in the order in which they were written.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules(Box<[Rule]>);

impl Rules {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Rules(rules.into())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }
}

/// What stands at one place of a list.
pub(super) enum Listed {
    Rule(Rule),
    UnknownField { rule: String, field: String },
}

/// Longer patterns are refused, in bytes.
const MAX_LEN: usize = 4_096;
/// What anchors add to it.
const ANCHORS: usize = "^(?:\n)$".len();
/// What one pattern may take when it is compiled, and again while it is matched.
const MAX_COMPILED: usize = 1 << 20;

/// Everything that is wrong with a filter's patterns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct BadPatterns(pub Vec<BadPattern>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPattern {
    /// The list that it is in.
    pub list: List,
    /// Which one of the list, counted from 1.
    pub position: usize,
    /// The rule as it was written.
    pub rule: String,
    /// Where in the rule it goes wrong, where that is one place: the column, counted from 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl fmt::Display for BadPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns = if self.0.len() == 1 { "pattern" } else { "patterns" };
        write!(f, "the filter has {} bad {patterns}", self.0.len())?;
        self.0.iter().try_for_each(|bad| write!(f, "\n  {bad}"))
    }
}

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BadPattern { list, position, rule, column, problem, remedy } = self;
        // Enough of it to be found again.
        let (shown, cut) = match rule.char_indices().nth(100) {
            Some((end, _)) => (&rule[..end], "…"),
            None => (rule.as_str(), ""),
        };
        write!(f, "{list}, rule {position} `{}{cut}`", shown.escape_debug())?;
        if let Some(column) = column {
            write!(f, ", column {column}")?;
        }
        write!(f, ": {problem} ({remedy})")
    }
}

/// Reads one list. What is wrong with it goes to `bad`; with the others goes their position, counted from 1.
pub(super) fn read(list: List, texts: &[String], strict: bool, bad: &mut Vec<BadPattern>) -> Vec<(usize, Listed)> {
    let mut rules = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let position = index + 1;
        let mut refuse = |column, problem: String, remedy| {
            bad.push(BadPattern { list, position, rule: text.clone(), column, problem, remedy });
        };
        if index == Filter::MAX_RULES {
            refuse(None, format!("a list has at most {} rules", Filter::MAX_RULES), "put several into one: `a|b`");
            break;
        }
        let (field, pattern) = text.split_once(':').unwrap_or(("", text));
        let Some(field) = Field::ALL.into_iter().find(|known| known.name() == field) else {
            rules.push((position, Listed::UnknownField { rule: text.clone(), field: field.to_owned() }));
            continue;
        };
        // As it was written first, so that a column is one of the rule's, and `a)|(b` does not become right by anchors.
        let compiled = compile(pattern).and_then(|regex| if strict { compile_anchored(pattern) } else { Ok(regex) });
        match compiled {
            Ok(regex) => {
                let told = format!("{list} `{text}`").into();
                let rule = Rule { field, told, pattern: regex, matches_nothing: pattern == "^$" };
                rules.push((position, Listed::Rule(rule)));
            }
            Err(Unusable { column, problem, remedy }) => {
                let before = text[..text.len() - pattern.len()].chars().count();
                refuse(column.map(|column| column + before), problem, remedy);
            }
        }
    }
    rules
}

/// The same pattern, for whole values. One that ends in a comment of verbose mode hides what follows on its line.
fn compile_anchored(pattern: &str) -> Result<Regex, Unusable> {
    compile(&format!("^(?:{pattern})$")).or_else(|_| compile(&format!("^(?:{pattern}\n)$")))
}

struct Unusable {
    column: Option<usize>,
    problem: String,
    remedy: &'static str,
}

fn compile(pattern: &str) -> Result<Regex, Unusable> {
    const SYNTAX: &str = "see the syntax at docs.rs/regex; a backslash takes the next character literally";
    if pattern.len() > MAX_LEN + ANCHORS {
        let problem = format!("a pattern has at most {MAX_LEN} bytes, this one has {}", pattern.len());
        return Err(Unusable { column: None, problem, remedy: "make several rules of it" });
    }
    if pattern.is_empty() {
        let problem = "it has no pattern, which would match everything".to_owned();
        return Err(Unusable { column: None, problem, remedy: "write `.*` for every value, `^$` for none" });
    }
    let built = RegexBuilder::new(pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => Unusable {
            column: None,
            problem: format!("it takes more than {} KiB", MAX_COMPILED >> 10),
            remedy: "make its repetitions smaller",
        },
        error => {
            let (column, problem) = undrawn(&error.to_string());
            Unusable { column, problem, remedy: SYNTAX }
        }
    })
}

/// The column and the problem of an error that the crate draws for a terminal: the pattern, below it a mark, below that
/// the problem.
fn undrawn(drawn: &str) -> (Option<usize>, String) {
    const INDENT: usize = 4;
    let problem = drawn.lines().last().unwrap_or(drawn);
    let problem = problem.strip_prefix("error: ").unwrap_or(problem).to_owned();
    // A pattern of several lines is drawn with numbers.
    let mark = drawn.lines().nth(2).filter(|_| drawn.lines().count() == 4).and_then(|line| line.find('^'));
    (mark.and_then(|mark| Some(mark.checked_sub(INDENT)? + 1)), problem)
}
