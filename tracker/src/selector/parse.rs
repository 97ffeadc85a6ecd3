//! Reading a selector, with errors that point at their column.

use std::fmt::{self, Write};
use std::iter::Peekable;
use std::str::CharIndices;

use super::glob::{Pattern, Token};
use super::{Key, PLAIN_KEYS, Selector, Term, Test};

/// Why a text is not a selector. Prints the text with a caret below the column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorError {
    text: String,
    column: usize,
    problem: Problem,
}

/// What is wrong with a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// More than [`Selector::MAX_LEN`] bytes.
    #[error("a selector has at most {max} bytes", max = Selector::MAX_LEN)]
    TooLong,
    /// A term begins with something that is no key.
    #[error("expected a key")]
    KeyExpected,
    /// No such key.
    #[error(
        "unknown key; known are id, name, image, image-digest, runtime, pod, pod-namespace, kind, state, label:… and pod-label:…"
    )]
    UnknownKey,
    /// `label:` without the label's key.
    #[error("expected the label's key after the colon")]
    LabelKeyExpected,
    /// Something else than an operator after a key.
    #[error("expected `=`, `!=`, `in (…)`, `notin (…)`, a comma or the end")]
    OperatorExpected,
    /// No list after `in` or `notin`.
    #[error("expected `(`")]
    ListExpected,
    /// An empty place in a list.
    #[error("expected a value; the empty value is written `key=`")]
    ValueExpected,
    /// A list goes on with something else.
    #[error("expected `,` or `)`")]
    ListEndExpected,
    /// A term goes on with something else.
    #[error("expected a comma or the end; a backslash makes a character part of the value")]
    EndExpected,
    /// A backslash at the end.
    #[error("expected a character after the backslash")]
    EscapeExpected,
    /// A value that this key never has.
    #[error("no container matches this; possible are {}", .possible.join(", "))]
    ImpossibleValue {
        /// All values it can have.
        possible: &'static [&'static str],
    },
}

impl SelectorError {
    /// Where the problem is: characters from the start, the first is 1.
    pub fn column(&self) -> usize {
        self.column
    }

    /// What is wrong there.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl std::error::Error for SelectorError {}

impl fmt::Display for SelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, column, problem } = self;
        write!(f, "selector, column {column}: {problem}")?;
        if text.is_empty() {
            return Ok(());
        }
        f.write_str("\n  ")?;
        // One place on the screen for each character, and nothing that a terminal would obey.
        text.chars().try_for_each(|c| f.write_char(if c.is_control() { '\u{fffd}' } else { c }))?;
        write!(f, "\n  {:>column$}", '^')
    }
}

/// Whether an unescaped `c` is no part of a key.
pub(super) fn ends_key(c: char) -> bool {
    ends_value(c) || matches!(c, '=' | '!')
}

/// Whether an unescaped `c` is no part of a value.
pub(super) fn ends_value(c: char) -> bool {
    c.is_whitespace() || matches!(c, ',' | '(' | ')')
}

/// Writes `c` so that it is read back as itself.
pub(super) fn write_escaped(f: &mut fmt::Formatter<'_>, c: char, special: bool) -> fmt::Result {
    if special || c == '\\' {
        f.write_char('\\')?;
    }
    f.write_char(c)
}

/// Reads the whole of `text`.
pub(super) fn selector(text: &str) -> Result<Selector, SelectorError> {
    let mut parser = Parser { text, chars: text.char_indices().peekable() };
    if text.len() > Selector::MAX_LEN {
        return Err(SelectorError { text: String::new(), column: 1, problem: Problem::TooLong });
    }
    let mut terms = Vec::new();
    parser.skip_whitespace();
    if parser.peek().is_some() {
        terms.push(parser.term()?);
        while parser.peek().is_some() {
            parser.expect(',', Problem::EndExpected)?;
            terms.push(parser.term()?);
        }
    }
    Ok(Selector { terms: terms.into() })
}

struct Parser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl Parser<'_> {
    fn term(&mut self) -> Result<Term, SelectorError> {
        self.skip_whitespace();
        let negated = self.eat('!');
        self.skip_whitespace();
        let key = self.key()?;
        self.skip_whitespace();
        let test = match self.peek() {
            _ if negated => Test::Unknown,
            None | Some(',') => Test::Known,
            Some('=') => {
                self.eat('=');
                self.eat('=');
                Test::In(self.one_value(&key)?)
            }
            Some('!') => {
                self.eat('!');
                self.expect('=', Problem::OperatorExpected)?;
                Test::NotIn(self.one_value(&key)?)
            }
            Some(_) => {
                let at = self.offset();
                match &*self.word()? {
                    "in" => Test::In(self.values(&key)?),
                    "notin" => Test::NotIn(self.values(&key)?),
                    _ => return Err(self.error(at, Problem::OperatorExpected)),
                }
            }
        };
        self.skip_whitespace();
        Ok(Term { key, test })
    }

    fn key(&mut self) -> Result<Key, SelectorError> {
        let at = self.offset();
        let word = self.word()?;
        let label = |key: &str| if key.is_empty() { Err(Problem::LabelKeyExpected) } else { Ok(key.into()) };
        let key = if let Some(key) = word.strip_prefix("label:") {
            label(key).map(Key::Label)
        } else if let Some(key) = word.strip_prefix("pod-label:") {
            label(key).map(Key::PodLabel)
        } else if word.is_empty() {
            Err(Problem::KeyExpected)
        } else {
            let known = PLAIN_KEYS.iter().find(|(name, _)| *name == word);
            known.map(|(_, key)| key.clone()).ok_or(Problem::UnknownKey)
        };
        key.map_err(|problem| {
            let at = if problem == Problem::LabelKeyExpected { self.offset() } else { at };
            self.error(at, problem)
        })
    }

    /// What stands before the end of a key, without its backslashes.
    fn word(&mut self) -> Result<String, SelectorError> {
        let mut word = String::new();
        while let Some(c) = self.peek().filter(|c| !ends_key(*c)) {
            self.chars.next();
            word.push(if c == '\\' { self.escaped()? } else { c });
        }
        Ok(word)
    }

    fn one_value(&mut self, key: &Key) -> Result<Box<[Pattern]>, SelectorError> {
        self.skip_whitespace();
        Ok([self.value(key)?].into())
    }

    fn values(&mut self, key: &Key) -> Result<Box<[Pattern]>, SelectorError> {
        self.skip_whitespace();
        self.expect('(', Problem::ListExpected)?;
        let mut values = Vec::new();
        loop {
            self.skip_whitespace();
            if self.peek().is_none_or(ends_value) {
                let at = self.offset();
                return Err(self.error(at, Problem::ValueExpected));
            }
            values.push(self.value(key)?);
            self.skip_whitespace();
            if self.eat(')') {
                return Ok(values.into());
            }
            self.expect(',', Problem::ListEndExpected)?;
        }
    }

    fn value(&mut self, key: &Key) -> Result<Pattern, SelectorError> {
        let at = self.offset();
        let mut tokens = Vec::new();
        while let Some(c) = self.peek().filter(|c| !ends_value(*c)) {
            self.chars.next();
            tokens.push(match c {
                '*' => Token::AnyText,
                '?' => Token::AnyOne,
                '\\' => Token::Literal(self.escaped()?),
                c => Token::Literal(c),
            });
        }
        let pattern = Pattern::new(tokens);
        match key.closed_list() {
            Some(possible) if !possible.iter().any(|value| pattern.matches(value)) => {
                Err(self.error(at, Problem::ImpossibleValue { possible }))
            }
            _ => Ok(pattern),
        }
    }

    fn escaped(&mut self) -> Result<char, SelectorError> {
        match self.chars.next() {
            Some((_, c)) => Ok(c),
            None => Err(self.error(self.text.len(), Problem::EscapeExpected)),
        }
    }

    fn skip_whitespace(&mut self) {
        while self.chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn peek(&mut self) -> Option<char> {
        self.chars.peek().map(|(_, c)| *c)
    }

    fn eat(&mut self, expected: char) -> bool {
        self.chars.next_if(|(_, c)| *c == expected).is_some()
    }

    fn expect(&mut self, expected: char, problem: Problem) -> Result<(), SelectorError> {
        if self.eat(expected) {
            return Ok(());
        }
        let at = self.offset();
        Err(self.error(at, problem))
    }

    /// Offset of the next character in bytes.
    fn offset(&mut self) -> usize {
        self.chars.peek().map_or(self.text.len(), |(offset, _)| *offset)
    }

    fn error(&self, offset: usize, problem: Problem) -> SelectorError {
        SelectorError { text: self.text.to_owned(), column: self.text[..offset].chars().count() + 1, problem }
    }
}
