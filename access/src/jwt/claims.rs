//! What a verified token says.

use std::borrow::Cow;
use std::fmt;

use http::HeaderValue;
use serde_json::{Map, Number, Value};

use super::Failure;

/// Of the value of a header that is made from a claim, in bytes: apps take 8 KiB of all headers together.
const MAX_HEADER_VALUE: usize = 4096;
/// The last second that has four digits of a year. What is later is no date that somebody meant.
const MAX_DATE: f64 = 253_402_300_799.0;

/// Verified claims.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Claims(pub(super) Value);

/// Which claim is meant: the name of one at the top, or, where it begins with "/", a JSON Pointer (RFC 6901) into them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClaimName(String);

impl ClaimName {
    pub(crate) fn new(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl fmt::Display for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Claims {
    pub(super) fn new(claims: Map<String, Value>) -> Self {
        Self(Value::Object(claims))
    }

    pub(super) fn find(&self, name: &ClaimName) -> Option<&Value> {
        match name.0.starts_with('/') {
            true => self.0.pointer(&name.0),
            false => self.0.get(&name.0),
        }
    }

    /// Whether the claim is one of the values, or a list with one of them in it.
    pub(crate) fn matches(&self, name: &ClaimName, values: &[String]) -> bool {
        let is_one = |value: &Value| text(value).is_some_and(|text| values.iter().any(|one| *one == text));
        match self.find(name) {
            Some(Value::Array(items)) => items.iter().any(is_one),
            Some(value) => is_one(value),
            None => false,
        }
    }

    /// Whether the token was given for the scope (RFC 8693 section 4.2; `scp` is what some providers call it).
    pub(crate) fn has_scope(&self, scope: &str) -> bool {
        let claims = ["scope", "scp"].into_iter().filter_map(|name| self.0.get(name));
        let mut has = claims.map(|claim| match claim {
            Value::String(scopes) => scopes.split(' ').any(|one| one == scope),
            Value::Array(scopes) => scopes.iter().any(|one| one == scope),
            _ => false,
        });
        !scope.is_empty() && has.any(|has| has)
    }

    /// The claim as the value of a header; a list with commas between its items. `None`: there is no such claim, or it cannot be
    /// written in a header so that the app reads the same.
    pub(super) fn header(&self, name: &ClaimName) -> Option<HeaderValue> {
        let text = match self.find(name)? {
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(text).collect::<Option<_>>()?;
                if items.iter().any(|item| item.contains(',')) {
                    return None;
                }
                Cow::Owned(items.join(","))
            }
            value => text(value)?,
        };
        // Whoever reads a header drops white space around its value, and what is not ASCII has no one meaning (RFC 9110 section 5.5).
        let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let is_safe = is_plain && text.trim() == text && (1..=MAX_HEADER_VALUE).contains(&text.len());
        HeaderValue::from_str(&text).ok().filter(|_| is_safe)
    }

    /// Bytes that they take in memory, about.
    pub(super) fn size(&self) -> usize {
        size(&self.0)
    }
}

/// A value as policies write it: floating-point numbers have no one form, and so none.
fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(value) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
        Value::Number(number) if !number.is_f64() => Some(Cow::Owned(number.to_string())),
        Value::Number(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn size(value: &Value) -> usize {
    // Of a node of the map, for each entry.
    const ENTRY: usize = 2 * size_of::<String>();
    let inside = match value {
        Value::String(text) => text.capacity(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| ENTRY + name.capacity() + size(value))
            .sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    size_of::<Value>() + inside
}

/// When a token is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    /// `exp`.
    ends: i64,
    /// The later of `nbf` and `iat`.
    begins: Option<i64>,
}

impl Life {
    /// `None`: it has no end (RFC 9068 section 2.2 requires one, and what is never invalid again must not be a bearer's), or one of
    /// them is no date.
    pub(super) fn read(claims: &Map<String, Value>) -> Option<Self> {
        let date = |name: &str| match claims.get(name) {
            None => Some(None),
            Some(Value::Number(number)) => seconds(number).map(Some),
            Some(_) => None,
        };
        let (not_before, issued) = (date("nbf")?, date("iat")?);
        Some(Self {
            ends: date("exp")??,
            begins: not_before.max(issued),
        })
    }

    /// Whether the token is valid at this time, by a clock that may differ by `skew` seconds.
    pub(super) fn check(self, now: i64, skew: i64) -> Result<(), Failure> {
        if now.saturating_sub(skew) >= self.ends {
            Err(Failure::Expired)
        } else if self.begins.is_some_and(|begins| now.saturating_add(skew) < begins) {
            Err(Failure::Early)
        } else {
            Ok(())
        }
    }
}

/// RFC 7519 section 2, NumericDate: it may have a fraction.
fn seconds(number: &Number) -> Option<i64> {
    let seconds = number.as_f64().filter(|seconds| seconds.abs() <= MAX_DATE)?;
    Some(seconds.floor() as i64)
}
