//! Cuts JSON text into the objects of a list, or of a stream: `[{…},{…}]` or `{…}\n{…}\n`. Pure.
//!
//! Only braces, brackets and strings are looked at; whether an object means anything is for whoever reads it. An object
//! that exceeds the cap is left out and reported as such, and the next one is found all the same.

use std::collections::VecDeque;

use serde::Deserialize;

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// Its text.
    Whole(Vec<u8>),
    /// It was longer than it may be.
    TooLong,
}

impl Object {
    /// Its meaning; `None` for one that was too long.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(&self) -> Option<serde_json::Result<T>> {
        match self {
            Object::Whole(text) => Some(serde_json::from_slice(text)),
            Object::TooLong => None,
        }
    }
}

/// What stands between objects is no list's punctuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a list of objects, or a stream of them, has no byte {0:#04x} between them")]
pub(super) struct Stray(u8);

/// Takes bytes as they come, gives objects.
#[derive(Debug)]
pub(super) struct Splitter {
    max: usize,
    /// The object that has begun, unless it is too long already.
    current: Vec<u8>,
    is_too_long: bool,
    /// Objects and lists that are open, the outermost list not counted.
    depth: usize,
    /// In a string, and behind its backslash.
    string: Option<bool>,
    complete: VecDeque<Object>,
    stray: Option<Stray>,
}

impl Splitter {
    /// For objects of at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            current: Vec::new(),
            is_too_long: false,
            depth: 0,
            string: None,
            complete: VecDeque::new(),
            stray: None,
        }
    }

    /// More bytes. What they complete is kept until it is asked for: they should be few.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.stray.is_some() {
                return;
            }
            self.take(*byte);
        }
    }

    /// The next complete object. After a stray byte there is none any more.
    pub(super) fn next(&mut self) -> Result<Option<Object>, Stray> {
        match (self.complete.pop_front(), self.stray) {
            (None, Some(stray)) => Err(stray),
            (object, _) => Ok(object),
        }
    }

    /// Whether no object has begun and not ended.
    pub(super) fn is_between(&self) -> bool {
        self.depth == 0
    }

    fn take(&mut self, byte: u8) {
        if self.depth == 0 {
            match byte {
                b'{' => self.depth = 1,
                b'[' | b']' | b',' | b' ' | b'\t' | b'\r' | b'\n' => return,
                _ => {
                    self.stray = Some(Stray(byte));
                    return;
                }
            }
        } else {
            match (self.string, byte) {
                (Some(true), _) => self.string = Some(false),
                (Some(false), b'\\') => self.string = Some(true),
                (Some(false), b'"') => self.string = None,
                (Some(false), _) => {}
                (None, b'"') => self.string = Some(false),
                (None, b'{' | b'[') => self.depth += 1,
                (None, b'}' | b']') => self.depth -= 1,
                (None, _) => {}
            }
        }
        if self.current.len() == self.max {
            self.is_too_long = true;
            self.current = Vec::new();
        }
        if !self.is_too_long {
            self.current.push(byte);
        }
        if self.depth == 0 {
            let text = std::mem::take(&mut self.current);
            let is_too_long = std::mem::take(&mut self.is_too_long);
            self.complete.push_back(if is_too_long { Object::TooLong } else { Object::Whole(text) });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn split(text: &str, max: usize, chunk: usize) -> Result<Vec<Object>, Stray> {
        let mut splitter = Splitter::new(max);
        let mut objects = vec![];
        for bytes in text.as_bytes().chunks(chunk) {
            splitter.push(bytes);
            while let Some(object) = splitter.next()? {
                objects.push(object);
            }
        }
        assert!(splitter.is_between());
        Ok(objects)
    }

    #[test]
    fn one_that_is_too_long_costs_no_other() {
        let text = format!("{{\"a\":1}}\n{{\"b\":\"{}\"}}\n{{\"c\":[{{}}]}}\n", "}".repeat(100));
        let whole = |text: &str| Object::Whole(text.as_bytes().to_vec());
        assert_eq!(split(&text, 12, 7).unwrap(), [whole("{\"a\":1}"), Object::TooLong, whole("{\"c\":[{}]}")]);
    }

    #[test]
    fn what_is_neither_list_nor_stream_is_refused() {
        assert_eq!(split("[\"a\"]", 16, 1), Err(Stray(b'"')));
        assert_eq!(split("{}x{}", 16, 1), Err(Stray(b'x')));
        assert_eq!(split("[]\n", 16, 1), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn objects_come_out_as_they_went_in(
            texts in prop::collection::vec("[\\PC\"\\\\{}\\[\\]]{0,20}", 0..5), chunk in 1..50_usize, is_list: bool,
        ) {
            let objects: Vec<_> = texts.iter().map(|text| json!({ text: [{ "x": text }, []] })).collect();
            let text = match is_list {
                true => serde_json::to_string_pretty(&objects).unwrap(),
                false => objects.iter().map(|object| format!("{object}\n")).collect(),
            };
            let read: Vec<serde_json::Value> = split(&text, 1 << 20, chunk).unwrap().iter().map(|object| {
                let Object::Whole(text) = object else { panic!("{object:?}") };
                serde_json::from_slice(text).unwrap()
            }).collect();
            prop_assert_eq!(read, objects);
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..200), max in 0..20_usize) {
            let mut splitter = Splitter::new(max);
            splitter.push(&bytes);
            while let Ok(Some(object)) = splitter.next() {
                let len = match object { Object::Whole(text) => text.len(), Object::TooLong => 0 };
                prop_assert!(len <= max);
            }
        }
    }
}
