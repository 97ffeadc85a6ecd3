//! Go's `flag` package, and urfave/cli's reordering before it, as runc uses them.
//!
//! One or two dashes mean the same; a value follows after `=` or as the next argument, whatever that looks like; parsing ends
//! at `--` or at the first operand. For that reason urfave/cli moves a verb's flags before its operands first, by a
//! rule that takes the argument after *any* flag, a switch too, for its value: `create --no-pivot ID --bundle B` is
//! an error in runc, and must be one here.

use super::{ArgvError, Flag, Parsed, Takes, take};

/// Takes one level of a command line apart; what follows the flags are the operands.
pub(super) fn parse<'a>(flags: &[Flag], arguments: &[&'a [u8]]) -> Result<Parsed<'a>, ArgvError> {
    let mut parsed = Parsed::default();
    let mut seen: Vec<(&'static str, &'static str)> = Vec::new();
    let mut rest = arguments;
    while let Some((&argument, behind)) = rest.split_first() {
        if argument == b"--" {
            parsed.operands = behind.to_vec();
            break;
        }
        if argument.len() < 2 || argument[0] != b'-' {
            parsed.operands = rest.to_vec();
            break;
        }
        rest = behind;
        let word = without_dashes(argument);
        if word.is_empty() || word[0] == b'-' || word[0] == b'=' {
            return Err(ArgvError::Usage("bad flag syntax"));
        }
        let (name, glued) = split_value(word);
        let Some((flag, name)) = find(flags, name) else { return Err(ArgvError::Usage("an unknown flag")) };
        let value = match (flag.takes, glued) {
            (Takes::Nothing, None) => b"true",
            (Takes::Nothing, Some(value)) => check_boolean(value)?,
            (_, Some(value)) => value,
            (_, None) => take(&mut rest).ok_or(ArgvError::Usage("a flag without its value"))?,
        };
        if flag.takes == Takes::Integer {
            check_integer(value)?;
        }
        if seen.iter().any(|(canonical, other)| *canonical == flag.names[0] && *other != name) {
            return Err(ArgvError::Usage("two forms of one flag"));
        }
        seen.push((flag.names[0], name));
        parsed.options.push((flag.names[0], value));
    }
    Ok(parsed)
}

/// urfave/cli v1.22 `reorderArgs`: the flags and what may be their values first, then the operands.
pub(super) fn reorder<'a>(flags: &[Flag], arguments: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut moved = Vec::with_capacity(arguments.len());
    let mut operands: Vec<&[u8]> = Vec::new();
    let mut value_may_follow = false;
    for (i, argument) in arguments.iter().copied().enumerate() {
        let is_flag = is_flag(flags, argument);
        if value_may_follow && !is_flag {
            value_may_follow = false;
            moved.push(argument);
        } else if argument == b"--" {
            operands.insert(0, argument);
            operands.extend(&arguments[i + 1..]);
            break;
        } else if is_flag {
            value_may_follow = !argument.contains(&b'=');
            moved.push(argument);
        } else {
            operands.push(argument);
        }
    }
    moved.extend(operands);
    moved
}

fn is_flag(flags: &[Flag], argument: &[u8]) -> bool {
    if argument == b"-" || argument == b"--" || !argument.starts_with(b"-") {
        return false;
    }
    find(flags, split_value(without_dashes(argument)).0).is_some()
}

fn without_dashes(argument: &[u8]) -> &[u8] {
    argument.strip_prefix(b"--").or_else(|| argument.strip_prefix(b"-")).unwrap_or(argument)
}

fn split_value(word: &[u8]) -> (&[u8], Option<&[u8]>) {
    match word.iter().position(|byte| *byte == b'=') {
        Some(at) => (&word[..at], Some(&word[at + 1..])),
        None => (word, None),
    }
}

fn find<'f>(flags: &'f [Flag], name: &[u8]) -> Option<(&'f Flag, &'static str)> {
    flags.iter().find_map(|flag| {
        let name = flag.names.iter().find(|known| known.as_bytes() == name)?;
        Some((flag, *name))
    })
}

/// `strconv.ParseBool`.
fn check_boolean(value: &[u8]) -> Result<&[u8], ArgvError> {
    let words: [&[u8]; 12] =
        [b"1", b"t", b"T", b"TRUE", b"true", b"True", b"0", b"f", b"F", b"FALSE", b"false", b"False"];
    if words.contains(&value) { Ok(value) } else { Err(ArgvError::Usage("not a boolean")) }
}

/// `strconv.ParseInt` with base 0, which knows `0x`, `0o`, `0b` and a leading `0` for octal.
fn check_integer(value: &[u8]) -> Result<(), ArgvError> {
    let refused = ArgvError::Usage("not an integer");
    let Ok(text) = str::from_utf8(value) else { return Err(refused) };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text).to_ascii_lowercase();
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x', ..] => (&digits[2..], 16),
        [b'0', b'o', ..] => (&digits[2..], 8),
        [b'0', b'b', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (&digits[..], 10),
    };
    let starts_with_digit = digits.as_bytes().first().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_with_digit && i64::from_str_radix(digits, radix).is_ok() { Ok(()) } else { Err(refused) }
}
