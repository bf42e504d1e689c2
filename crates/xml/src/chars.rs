//! Characters: what XML 1.0 allows where, references, and the normalisation of line ends.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr2, memchr3, memmem};

use crate::ScanError;
use crate::names::{self, NameChar};

/// White space: tab, line feed, carriage return, space.
pub(crate) const SPACE: u8 = 1;
/// May begin a name (ASCII).
pub(crate) const NAME_START: u8 = 2;
/// May stand in a name (ASCII, the colon excluded).
pub(crate) const NAME: u8 = 4;
/// A control character that XML 1.0 has no place for.
pub(crate) const CONTROL: u8 = 8;
/// Beyond ASCII.
pub(crate) const HIGH: u8 = 16;
/// `<`
pub(crate) const LT: u8 = 32;
/// `&`
pub(crate) const AMP: u8 = 64;
/// Tab, line feed, carriage return (white space that is normalised somewhere) and `]`, which may begin `]]>`.
pub(crate) const SPECIAL: u8 = 128;

/// What each byte can be.
pub(crate) static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'\t' | b'\n' | b'\r' => SPACE | SPECIAL,
            b' ' => SPACE,
            0..0x20 => CONTROL,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => NAME_START | NAME,
            b'0'..=b'9' | b'-' | b'.' => NAME,
            b'<' => LT,
            b'&' => AMP,
            b']' => SPECIAL,
            0x80.. => HIGH,
            _ => 0,
        };
        byte += 1;
    }
    table
}

/// The classes that occur in `bytes`.
pub(crate) fn survey(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |seen, byte| seen | CLASS[*byte as usize])
}

pub(crate) fn is_space(byte: u8) -> bool {
    CLASS[byte as usize] & SPACE != 0
}

/// A name character beyond ASCII at the start of `bytes`: its length and what kind it is, or `None` when bytes are
/// missing.
pub(crate) fn wide_name_char(bytes: &[u8], first: bool) -> Result<Option<(usize, NameChar)>, ScanError> {
    let length = match bytes[0] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => return Err(ScanError::Utf8),
    };
    let there = &bytes[..length.min(bytes.len())];
    match std::str::from_utf8(there) {
        Ok(text) => {
            let c = text.chars().next().expect("invariant: a whole character was sliced");
            match names::classify(c, first) {
                NameChar::No => Err(ScanError::NotWellFormed("a character that no name may have")),
                kind => Ok(Some((length, kind))),
            }
        }
        Err(error) if error.error_len().is_none() => Ok(None),
        Err(_) => Err(ScanError::Utf8),
    }
}

/// XML 1.0 s.2.2 `Char`, for what UTF-8 and the class table leave to check: U+FFFE and U+FFFF.
pub(crate) fn check_wide(bytes: &[u8]) -> Result<(), ScanError> {
    match std::str::from_utf8(bytes) {
        Ok(_) => check_noncharacters(bytes),
        Err(_) => Err(ScanError::Utf8),
    }
}

fn check_noncharacters(bytes: &[u8]) -> Result<(), ScanError> {
    for at in memchr_iter(0xEF, bytes) {
        if matches!(bytes[at..], [_, 0xBF, 0xBE | 0xBF, ..]) {
            return Err(ScanError::NotWellFormed("U+FFFE or U+FFFF"));
        }
    }
    Ok(())
}

/// The longest reference there may be. XML sets no bound on leading zeros; a bound keeps references resumable.
const LONGEST_REFERENCE: usize = 32;

/// Checks a run of character data in which no `<` occurs. Returns how much of it is settled: all of it when `whole`,
/// else up to what may continue in the bytes to come.
pub(crate) fn check_text(bytes: &[u8], whole: bool) -> Result<usize, ScanError> {
    let seen = survey(bytes);
    let mut settled = bytes.len();
    if seen & CONTROL != 0 {
        return Err(ScanError::NotWellFormed("a control character"));
    }
    if seen & HIGH != 0 {
        match std::str::from_utf8(bytes) {
            Ok(_) => {}
            Err(error) if !whole && error.error_len().is_none() => settled = error.valid_up_to(),
            Err(_) => return Err(ScanError::Utf8),
        }
        check_noncharacters(bytes)?;
    }
    if seen & SPECIAL != 0 {
        if memmem::find(bytes, b"]]>").is_some() {
            return Err(ScanError::NotWellFormed("']]>' in character data"));
        }
        if !whole {
            let brackets = bytes.iter().rev().take(2).take_while(|byte| **byte == b']').count();
            settled = settled.min(bytes.len() - brackets);
        }
    }
    if seen & AMP != 0 {
        settled = settled.min(check_references(bytes, whole)?);
    }
    Ok(settled)
}

/// Checks every reference in `bytes`; returns where the first unfinished one begins.
fn check_references(bytes: &[u8], whole: bool) -> Result<usize, ScanError> {
    let mut from = 0;
    while let Some(amp) = memchr(b'&', &bytes[from..]) {
        let start = from + amp;
        let after = &bytes[start + 1..];
        match memchr(b';', &after[..after.len().min(LONGEST_REFERENCE)]) {
            Some(end) => {
                resolve(&after[..end])?;
                from = start + 1 + end + 1;
            }
            None if whole || after.len() >= LONGEST_REFERENCE => {
                return Err(ScanError::NotWellFormed("'&' that begins no reference"));
            }
            None if after.iter().all(|byte| CLASS[*byte as usize] & (NAME | HIGH) != 0 || *byte == b'#') => {
                return Ok(start);
            }
            None => return Err(ScanError::NotWellFormed("'&' that begins no reference")),
        }
    }
    Ok(bytes.len())
}

/// Checks the value of an attribute, whose classes are `seen`.
pub(crate) fn check_value(bytes: &[u8], seen: u8) -> Result<(), ScanError> {
    if seen & LT != 0 {
        return Err(ScanError::NotWellFormed("'<' in the value of an attribute"));
    }
    if seen & CONTROL != 0 {
        return Err(ScanError::NotWellFormed("a control character"));
    }
    if seen & HIGH != 0 {
        check_wide(bytes)?;
    }
    if seen & AMP != 0 {
        check_references(bytes, true)?;
    }
    Ok(())
}

/// The character that the reference `name` (without `&` and `;`) stands for.
fn resolve(name: &[u8]) -> Result<char, ScanError> {
    let code = match name {
        b"lt" => return Ok('<'),
        b"gt" => return Ok('>'),
        b"amp" => return Ok('&'),
        b"quot" => return Ok('"'),
        b"apos" => return Ok('\''),
        [b'#', b'x', digits @ ..] => number(digits, 16),
        [b'#', digits @ ..] => number(digits, 10),
        [first, rest @ ..]
            if CLASS[*first as usize] & (NAME_START | HIGH) != 0
                && rest.iter().all(|byte| CLASS[*byte as usize] & (NAME | HIGH) != 0) =>
        {
            return Err(ScanError::Restricted("an entity other than the five predefined ones"));
        }
        _ => return Err(ScanError::NotWellFormed("'&' that begins no reference")),
    };
    match code.and_then(char::from_u32) {
        Some(c @ ('\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)) => Ok(c),
        _ => Err(ScanError::NotWellFormed("a reference to a character that XML has no place for")),
    }
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    if digits.is_empty() {
        return None;
    }
    digits
        .iter()
        .try_fold(0u32, |sum, digit| sum.checked_mul(radix)?.checked_add((*digit as char).to_digit(radix)?))
}

/// Appends checked character data to `out`, references resolved and line ends normalised (XML 1.0 s.2.11).
pub(crate) fn unescape_into(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = memchr2(b'&', b'\r', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        rest = unescape_one(&rest[at..], out);
    }
    out.push_str(rest);
}

/// Resolves the reference or line end that `text` begins with; returns what follows it.
fn unescape_one<'a>(text: &'a str, out: &mut String) -> &'a str {
    if let Some(rest) = text.strip_prefix('\r') {
        out.push('\n');
        return rest.strip_prefix('\n').unwrap_or(rest);
    }
    match text.split_once(';') {
        Some((name, rest)) => {
            // Checked when it was scanned, so the replacement character is never seen.
            out.push(resolve(&name.as_bytes()[1..]).unwrap_or(char::REPLACEMENT_CHARACTER));
            rest
        }
        None => "",
    }
}

/// Appends a CDATA section's content: nothing but line ends is special there.
pub(crate) fn unescape_cdata_into(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = memchr(b'\r', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        out.push('\n');
        rest = &rest[at + 1..];
        rest = rest.strip_prefix('\n').unwrap_or(rest);
    }
    out.push_str(rest);
}

/// An attribute's value: references resolved, white space normalised (XML 1.0 s.3.3.3; without a document type every
/// attribute is CDATA).
pub(crate) fn unescape_value(text: &str) -> Cow<'_, str> {
    let special = |rest: &str| {
        let white = memchr3(b'\t', b'\n', b'\r', rest.as_bytes());
        let amp = memchr(b'&', &rest.as_bytes()[..white.unwrap_or(rest.len())]);
        amp.or(white)
    };
    let Some(mut at) = special(text) else {
        return Cow::Borrowed(text);
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with('&') {
            rest = unescape_one(rest, &mut out);
        } else {
            out.push(' ');
            rest = rest.strip_prefix("\r\n").unwrap_or(&rest[1..]);
        }
        match special(rest) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Whether a namespace name has none of the ASCII characters that no URI has (RFC 3986 s.2).
pub(crate) fn is_uri(name: &[u8]) -> bool {
    !name.iter().any(|byte| {
        matches!(byte, 0..=b' ' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7F)
    })
}
