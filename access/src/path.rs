//! The path of a request, as a rule sees it.
//!
//! What a path names is decided by the app, and apps differ: one takes "%2F" for "/", another resolves "..", a third cuts off what
//! stands behind ";". So there are two questions. An Allow rule asks for the one form that RFC 3986 section 6.2.2 gives a path, and is
//! not met by a path that could be read otherwise: it is *ambiguous*. A Deny rule asks whether any reading is the one that it
//! refuses ([`readings`]). What goes to the app is the path as it came, always.
//!
//! What is no matter of reading is left to the rule: letters of two cases are two letters here, and one to a Deny rule.

mod readings;

use std::borrow::Cow;
use std::cell::OnceCell;

use self::readings::Readings;
pub use self::readings::{MAX_BYTES, MAX_READINGS};

/// The path of a request, without its query.
#[derive(Debug)]
pub struct RequestPath<'a> {
    raw: &'a str,
    normal: Cow<'a, str>,
    form: Form,
    readings: OnceCell<Readings>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// It is what it is to everybody.
    Plain,
    /// Something is encoded that must be, and decoded by whoever needs it.
    Encoded,
    /// Apps take it for different paths.
    Ambiguous,
    /// Nobody knows what apps make of it: a "%" before something else than two digits, what is not UTF-8, no path at all.
    Broken,
}

impl<'a> RequestPath<'a> {
    /// Reads it. Where nothing in it is encoded or could be read in another way, nothing is allocated.
    pub fn new(raw: &'a str) -> Self {
        let (normal, form) = match raw == "*" || is_plain(raw) {
            true => (Cow::Borrowed(raw), Form::Plain),
            false => (Cow::Owned(normal(raw)), form(raw)),
        };
        Self {
            raw,
            normal,
            form,
            readings: OnceCell::new(),
        }
    }

    /// The form of RFC 3986 section 6.2.2: unreserved characters stand for themselves, each other byte that a path may not have is
    /// %XX with upper case letters. Dots and empty segments are left alone.
    pub fn normal(&self) -> &str {
        &self.normal
    }

    /// Whether an app may read it in another way than as [`Self::normal`].
    pub fn is_ambiguous(&self) -> bool {
        matches!(self.form, Form::Ambiguous | Form::Broken)
    }

    /// Whether a path that some app may take it for passes the test. True without a test where nobody knows what apps make of it.
    pub fn may_be(&self, mut test: impl FnMut(&[u8]) -> bool) -> bool {
        match self.form {
            Form::Plain => test(self.raw.as_bytes()),
            Form::Broken => true,
            Form::Encoded | Form::Ambiguous => match self.readings.get_or_init(|| Readings::of(self.raw)) {
                Readings::All(all) => all.iter().any(|reading| test(reading)),
                Readings::Unknown => true,
            },
        }
    }
}

/// The same form for a path that a rule names: a character that no path has is encoded. `None`: it does not begin with "/", or it has a query.
pub(crate) fn normal_of_rule(path: &str) -> Option<String> {
    (path.starts_with('/') && !path.contains(['?', '#'])).then(|| normal(path))
}

/// Each %XX is its byte, once.
pub(crate) fn decoded(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        match triplet(path, at) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

/// The byte that %XX at this place stands for.
fn triplet(path: &[u8], at: usize) -> Option<u8> {
    let [b'%', high, low] = *path.get(at..at + 3)? else {
        return None;
    };
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

fn has_triplet(path: &[u8]) -> bool {
    (0..path.len()).any(|at| triplet(path, at).is_some())
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// What a path may have as it is, RFC 3986 section 3.3: `pchar` but what is encoded, and the slash.
fn is_of_path(byte: u8) -> bool {
    is_unreserved(byte) || b"/!$&'()*+,;=:@".contains(&byte)
}

/// Begins with "/" and has nothing that is encoded, or that anybody reads otherwise than as it is.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let mut before = b'/';
    let Some((b'/', rest)) = bytes.split_first() else {
        return false;
    };
    rest.iter().all(|&byte| {
        let plain = is_of_path(byte) && byte != b';' && !(before == b'/' && matches!(byte, b'/' | b'.'));
        before = byte;
        plain
    })
}

fn normal(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut normal = String::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let encoded = triplet(bytes, at);
        match encoded {
            Some(value) if is_unreserved(value) => normal.push(char::from(value)),
            None if is_of_path(byte) => normal.push(char::from(byte)),
            _ => push_encoded(&mut normal, encoded.unwrap_or(byte)),
        }
        at += if encoded.is_some() { 3 } else { 1 };
    }
    normal
}

/// Of a path that is not plain.
fn form(path: &str) -> Form {
    let bytes = path.as_bytes();
    let decoded = decoded(bytes);
    let is_delimiter = |&byte: &u8| matches!(byte, b'\\' | b';') || byte.is_ascii_control();
    let slashes = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'/').count();
    let stray = |(at, &byte): (usize, &u8)| byte == b'%' && triplet(bytes, at).is_none();
    if !path.starts_with('/') || bytes.iter().enumerate().any(stray) {
        return Form::Broken;
    }
    let Ok(text) = std::str::from_utf8(&decoded) else {
        return Form::Broken;
    };
    let ambiguous = !path.is_ascii()
        || decoded.iter().any(is_delimiter)
        || slashes(&decoded) > slashes(bytes)
        || has_triplet(&decoded)
        || text.contains("//")
        || text.split('/').any(|segment| matches!(segment, "." | ".."));
    if ambiguous { Form::Ambiguous } else { Form::Encoded }
}

fn push_encoded(text: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.push('%');
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}

#[cfg(test)]
#[path = "path/tests.rs"]
mod tests;
