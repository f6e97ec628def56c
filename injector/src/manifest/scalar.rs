//! What a YAML scalar says, as kubectl reads it: YAML 1.1 in the form of go-yaml v2, below `sigs.k8s.io/yaml`. `no` is a boolean
//! there, and `0644` a number.

use std::num::IntErrorKind;

use serde_json::{Number, Value};

/// The type that a tag gives to a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// No tag: the text decides.
    None,
    Null,
    Bool,
    Int,
    Float,
    Timestamp,
    /// `!!str`, and every tag that nobody knows.
    Text,
    Binary,
    Merge,
}

/// A scalar, before it becomes JSON.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    /// Beyond `i64`.
    Large(u64),
    Float(f64),
    Text(String),
}

impl Tag {
    /// `suffix` is that of `tag:yaml.org,2002:`, `None` for a tag of another namespace.
    pub(super) fn new(suffix: Option<&str>) -> Self {
        match suffix {
            Some("null") => Self::Null,
            Some("bool") => Self::Bool,
            Some("int") => Self::Int,
            Some("float") => Self::Float,
            Some("timestamp") => Self::Timestamp,
            Some("binary") => Self::Binary,
            Some("merge") => Self::Merge,
            _ => Self::Text,
        }
    }
}

impl Scalar {
    /// What `text` is where it may be anything: it is plain, or has a tag.
    ///
    /// # Errors
    /// When it is not of the tag's type.
    pub(super) fn resolve(text: &str, tag: Tag) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("{text:?} is not {what}"));
        let resolved = match tag {
            Tag::Text | Tag::Merge => return Ok(Self::Text(text.to_owned())),
            Tag::Binary => return binary(text).map_or_else(|| wrong("base64"), |text| Ok(Self::Text(text))),
            Tag::Timestamp if is_timestamp(text) => return Ok(Self::Text(text.to_owned())),
            Tag::Timestamp => return wrong("a time"),
            _ => Self::plain(text),
        };
        match (tag, resolved) {
            (Tag::Float, Self::Int(number)) => Ok(Self::Float(number as f64)),
            (Tag::None, resolved)
            | (Tag::Null, resolved @ Self::Null)
            | (Tag::Bool, resolved @ Self::Bool(_))
            | (Tag::Int, resolved @ (Self::Int(_) | Self::Large(_)))
            | (Tag::Float, resolved @ Self::Float(_)) => Ok(resolved),
            (Tag::Null, _) => wrong("null"),
            (Tag::Bool, _) => wrong("a boolean"),
            _ => wrong("a number of this type"),
        }
    }

    fn plain(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Self::Null,
            "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Self::Bool(true),
            "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Self::Bool(false),
            ".nan" | ".NaN" | ".NAN" => Self::Float(f64::NAN),
            ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Self::Float(f64::INFINITY),
            "-.inf" | "-.Inf" | "-.INF" => Self::Float(f64::NEG_INFINITY),
            _ => number(text).unwrap_or_else(|| Self::Text(text.to_owned())),
        }
    }

    /// As JSON. A float without a fraction becomes an integer, as on its way through kubectl.
    ///
    /// # Errors
    /// When JSON has no such number.
    pub(super) fn value(self) -> Result<Value, String> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(number) => Value::from(number),
            Self::Large(number) => Value::from(number),
            Self::Text(text) => Value::String(text),
            Self::Float(number) => {
                // The digits that Go writes, and not those of the number: they differ beyond 2^53.
                let whole = (number.fract() == 0.0).then(|| format!("{number}").parse::<i64>());
                match (whole, Number::from_f64(number)) {
                    (Some(Ok(whole)), _) => Value::from(whole),
                    (_, Some(number)) => Value::Number(number),
                    (_, None) => return Err(format!("JSON has no number {number}")),
                }
            }
        })
    }

    /// As a key of a JSON object.
    ///
    /// # Errors
    /// When it cannot be one.
    pub(super) fn key(self) -> Result<String, String> {
        match self {
            Self::Bool(value) => Ok(value.to_string()),
            Self::Int(number) => Ok(number.to_string()),
            Self::Text(text) => Ok(text),
            Self::Float(number) => Ok(float_key(number)),
            Self::Large(number) => Err(format!("{number} cannot be a key")),
            Self::Null => Err("null cannot be a key".to_owned()),
        }
    }
}

/// Go's `strconv.ParseInt` with base 0, and else a decimal float. Underscores may stand anywhere behind the first character.
fn number(text: &str) -> Option<Scalar> {
    if text.starts_with('.') {
        return float(&between_digits(text)?);
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-') {
        return None;
    }
    let text = text.replace('_', "");
    integer(&text).or_else(|| float(&text))
}

fn integer(text: &str) -> Option<Scalar> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = digits.get(..2).unwrap_or_default().to_ascii_lowercase();
    let (radix, digits) = match prefix.as_str() {
        "0x" => (16, &digits[2..]),
        "0o" => (8, &digits[2..]),
        "0b" => (2, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    // Rust takes a second sign.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    match i64::from_str_radix(&format!("{sign}{digits}"), radix) {
        Ok(number) => Some(Scalar::Int(number)),
        // Go's ParseUint takes no sign at all.
        Err(error) if *error.kind() == IntErrorKind::PosOverflow && !text.starts_with('+') => {
            u64::from_str_radix(digits, radix).ok().map(Scalar::Large)
        }
        Err(_) => None,
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`, where it is finite: Go calls what is not an error, and it stays a text.
fn float(text: &str) -> Option<Scalar> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let valid = [whole, fraction, exponent].into_iter().all(digits)
        && !exponent.is_empty()
        && !(whole.is_empty() && fraction.is_empty());
    let number = valid.then(|| text.parse::<f64>().ok()).flatten();
    number.filter(|number| number.is_finite()).map(Scalar::Float)
}

/// Without the underscores, where each stands between two digits.
fn between_digits(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let mut underscores = bytes.iter().enumerate().filter(|(_, b)| **b == b'_');
    let apart = underscores.all(|(at, _)| digit(at.checked_sub(1)) && digit(Some(at + 1)));
    apart.then(|| text.replace('_', ""))
}

/// Go's `FormatFloat(number, 'g', -1, 32)`, with YAML's names for what is no number.
fn float_key(number: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "go-yaml writes them so")]
    let number = number as f32;
    if number.is_nan() {
        return ".nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

fn binary(text: &str) -> Option<String> {
    use base64::Engine as _;
    // Go's decoder skips line breaks.
    let text = text.replace(['\r', '\n'], "");
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A date, with or without a time of the day.
fn is_timestamp(text: &str) -> bool {
    let (date, rest) = text.split_at(text.find(['T', 't', ' ']).unwrap_or(text.len()));
    let numbers: Vec<_> = date.split('-').map(str::parse::<u16>).collect();
    let day = matches!(numbers[..], [Ok(_), Ok(1..=12), Ok(1..=31)]) && date.find('-') == Some(4);
    let time = rest.get(1..).unwrap_or_default();
    day && (rest.is_empty() || time.split(':').take(2).all(|part| part.parse::<u8>().is_ok()))
}
