//! Patterns with `*` and `?`, matched without allocation and without recursion.

use std::fmt::{self, Write};

use super::parse::{ends_value, write_escaped};

/// Text that may have wildcards.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pattern(Box<[Token]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Token {
    /// This character.
    Literal(char),
    /// `?`: any one character.
    AnyOne,
    /// `*`: any text, also none.
    AnyText,
}

impl Pattern {
    /// A pattern of `tokens`.
    pub(super) fn new(mut tokens: Vec<Token>) -> Self {
        // `**` means what `*` means.
        tokens.dedup_by(|a, b| *a == Token::AnyText && *b == Token::AnyText);
        Self(tokens.into())
    }

    /// The pattern that `text` spells: `*` and `?` are wildcards, everything else stands for itself.
    pub(crate) fn wild(text: &str) -> Self {
        let token = |character| match character {
            '*' => Token::AnyText,
            '?' => Token::AnyOne,
            other => Token::Literal(other),
        };
        Self::new(text.chars().map(token).collect())
    }

    /// Whether it matches the whole of `text`.
    ///
    /// Only the last `*` ever needs to be reconsidered: an earlier one that took less leaves more to it. That bounds
    /// the time by the product of both lengths.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let mut tokens = &self.0[..];
        let mut rest = text.chars();
        // Where to go on when the present attempt fails: the tokens after the last `*`, and what it leaves to them.
        let mut retry = None;
        loop {
            match tokens.split_first() {
                Some((Token::AnyText, after)) => {
                    retry = Some((after, rest.clone()));
                    tokens = after;
                    continue;
                }
                Some((token, after)) => {
                    if let Some(c) = rest.next()
                        && (*token == Token::AnyOne || *token == Token::Literal(c))
                    {
                        tokens = after;
                        continue;
                    }
                }
                None if rest.as_str().is_empty() => return true,
                None => {}
            }
            let Some((after, left)) = &mut retry else { return false };
            if left.next().is_none() {
                return false;
            }
            (tokens, rest) = (after, left.clone());
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, token)| match token {
            // A leading `=` would belong to the operator.
            Token::Literal('=') if index > 0 => f.write_char('='),
            Token::Literal(c) => write_escaped(f, *c, ends_value(*c) || matches!(c, '*' | '?' | '=')),
            Token::AnyOne => f.write_char('?'),
            Token::AnyText => f.write_char('*'),
        })
    }
}
