//! glibc's argp with `ARGP_IN_ORDER`, as crun uses it.
//!
//! Long options may be cut to a unique prefix and take their value after `=` or as the next argument; short ones may be
//! bundled, and the first that takes a value takes the rest of its word. The first operand ends the options:
//! crun's verbs count what follows, so an option behind the id is an operand too many.

use super::{ArgvError, Flag, Parsed, Takes, take};

/// Takes one level of a command line apart; what follows the options are the operands.
pub(super) fn parse<'a>(flags: &[Flag], arguments: &[&'a [u8]]) -> Result<Parsed<'a>, ArgvError> {
    let mut parsed = Parsed::default();
    let mut rest = arguments;
    while let Some((&argument, behind)) = rest.split_first() {
        if argument == b"--" {
            parsed.operands = behind.to_vec();
            break;
        }
        if let Some(word) = argument.strip_prefix(b"--") {
            rest = behind;
            let (name, glued) = match word.iter().position(|byte| *byte == b'=') {
                Some(at) => (&word[..at], Some(&word[at + 1..])),
                None => (word, None),
            };
            let flag = find_long(flags, name)?;
            let value = match (flag.takes, glued) {
                (Takes::Nothing, None) => b"".as_slice(),
                (Takes::Nothing, Some(_)) => return Err(ArgvError::Usage("a value for a switch")),
                (_, Some(value)) => value,
                (_, None) => take(&mut rest).ok_or(ArgvError::Usage("an option without its value"))?,
            };
            parsed.options.push((flag.names[0], value));
        } else if argument.len() >= 2 && argument[0] == b'-' {
            rest = behind;
            let mut letters = &argument[1..];
            while let Some((letter, glued)) = letters.split_first() {
                let flag = find_short(flags, *letter)?;
                letters = glued;
                let value = match flag.takes {
                    Takes::Nothing => b"".as_slice(),
                    _ if !glued.is_empty() => std::mem::take(&mut letters),
                    _ => take(&mut rest).ok_or(ArgvError::Usage("an option without its value"))?,
                };
                parsed.options.push((flag.names[0], value));
            }
        } else {
            parsed.operands = rest.to_vec();
            break;
        }
    }
    Ok(parsed)
}

/// The option of this name, or the only one that begins so.
fn find_long<'f>(flags: &'f [Flag], name: &[u8]) -> Result<&'f Flag, ArgvError> {
    let long = || flags.iter().flat_map(|flag| flag.names.iter().map(move |name| (name.as_bytes(), flag)));
    let long = || long().filter(|(known, _)| known.len() > 1);
    if let Some((_, flag)) = long().find(|(known, _)| *known == name) {
        return Ok(flag);
    }
    let mut candidates = long().filter(|(known, _)| known.starts_with(name));
    let Some((_, flag)) = candidates.next() else { return Err(ArgvError::Usage("an unknown option")) };
    if candidates.any(|(_, other)| other.names[0] != flag.names[0]) {
        return Err(ArgvError::Usage("an ambiguous option"));
    }
    Ok(flag)
}

fn find_short(flags: &[Flag], letter: u8) -> Result<&Flag, ArgvError> {
    flags
        .iter()
        .find(|flag| flag.names.iter().any(|name| name.as_bytes() == [letter]))
        .ok_or(ArgvError::Usage("an unknown option"))
}
