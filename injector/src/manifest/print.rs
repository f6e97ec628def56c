//! Writes an object so that every reader of YAML, 1.1 or 1.2, reads the same values: what is not obviously a word stands in quotes,
//! with JSON's escapes, which are YAML's too.

use serde_json::{Map, Value};

/// Longer keys are not found by readers of YAML, which look 1,024 characters ahead for the colon.
const LONG_KEY: usize = 1000;

/// As YAML in blocks, with a line end at the end.
pub(super) fn yaml(object: &Map<String, Value>) -> String {
    let mut text = String::new();
    map(&mut text, object, 0, true);
    text
}

/// As JSON, without a line end.
pub(super) fn json(value: &Value) -> String {
    let mut text = String::new();
    json_at(&mut text, value, 0);
    text
}

/// `pad`: whether the first line has no indentation yet.
fn map(text: &mut String, map: &Map<String, Value>, indent: usize, mut pad: bool) {
    for (name, value) in map {
        if pad {
            indented(text, indent);
        }
        pad = true;
        let name = word(name);
        if name.len() > LONG_KEY {
            *text += "? ";
            *text += &name;
            text.push('\n');
            indented(text, indent);
        } else {
            *text += &name;
        }
        text.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                text.push('\n');
                self::map(text, map, indent + 2, true);
            }
            Value::Array(items) if !items.is_empty() => {
                text.push('\n');
                list(text, items, indent, true);
            }
            value => leaf(text, value, indent),
        }
    }
}

fn list(text: &mut String, items: &[Value], indent: usize, mut pad: bool) {
    for item in items {
        if pad {
            indented(text, indent);
        }
        pad = true;
        text.push('-');
        match item {
            Value::Object(object) if !object.is_empty() => {
                text.push(' ');
                map(text, object, indent + 2, false);
            }
            Value::Array(items) if !items.is_empty() => {
                text.push(' ');
                list(text, items, indent + 2, false);
            }
            value => leaf(text, value, indent),
        }
    }
}

/// What stands on the line of its key or dash.
fn leaf(text: &mut String, value: &Value, indent: usize) {
    text.push(' ');
    match value {
        Value::Object(_) => *text += "{}",
        Value::Array(_) => *text += "[]",
        Value::String(string) if is_block(string) => return block(text, string, indent + 2),
        Value::String(string) => *text += &word(string),
        Value::Number(number) => *text += &self::number(&number.to_string()),
        value => *text += &value.to_string(),
    }
    text.push('\n');
}

fn indented(text: &mut String, indent: usize) {
    text.extend(std::iter::repeat_n(' ', indent));
}

/// YAML 1.1 has a point and a sign in each float with an exponent.
fn number(number: &str) -> String {
    let Some((mantissa, exponent)) = number.split_once(['e', 'E']) else {
        return number.to_owned();
    };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
    format!("{mantissa}{point}e{sign}{exponent}")
}

/// A text of several lines that has nothing in it that a reader could take differently in a literal block (`|`).
fn is_block(string: &str) -> bool {
    let body = string.strip_suffix('\n').unwrap_or(string);
    body.contains('\n')
        && !body.starts_with(char::is_whitespace)
        && !body.ends_with('\n')
        && body.lines().all(|line| !line.ends_with(' '))
        && body.chars().all(|c| c == '\n' || !must_be_escaped(c))
}

fn block(text: &mut String, string: &str, indent: usize) {
    *text += if string.ends_with('\n') { "|\n" } else { "|-\n" };
    for line in string.lines() {
        if !line.is_empty() {
            indented(text, indent);
            *text += line;
        }
        text.push('\n');
    }
}

/// A text as a plain scalar, where no reader takes that for anything else.
fn word(string: &str) -> String {
    if is_plain(string) {
        return string.to_owned();
    }
    let mut text = String::new();
    quoted(&mut text, string);
    text
}

fn is_plain(string: &str) -> bool {
    /// What is a boolean or null somewhere, in small letters.
    const OTHERS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let part = |b: u8| b.is_ascii_alphanumeric() || b"_./:@-".contains(&b);
    let begins = string.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let plain = begins && !string.ends_with(':') && string.bytes().all(part);
    (plain && !OTHERS.contains(&string.to_ascii_lowercase().as_str())) || is_quantity(string)
}

/// A number with a unit, as in "256Mi" or "10m".
fn is_quantity(string: &str) -> bool {
    let unit = string.trim_start_matches(|c: char| c.is_ascii_digit());
    unit.len() < string.len() && ["m", "k", "M", "G", "Ki", "Mi", "Gi", "s"].contains(&unit)
}

fn quoted(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => *text += "\\\"",
            '\\' => *text += "\\\\",
            '\n' => *text += "\\n",
            '\r' => *text += "\\r",
            '\t' => *text += "\\t",
            c if must_be_escaped(c) => *text += &format!("\\u{:04x}", u32::from(c)),
            c => text.push(c),
        }
    }
    text.push('"');
}

/// What is not printable in YAML, or ends a line in YAML 1.1. All below U+FFFF.
fn must_be_escaped(c: char) -> bool {
    matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

fn json_at(text: &mut String, value: &Value, indent: usize) {
    let line = |text: &mut String, indent| {
        text.push('\n');
        indented(text, indent);
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (index, (name, value)) in map.iter().enumerate() {
                text.push(if index == 0 { '{' } else { ',' });
                line(text, indent + 2);
                quoted(text, name);
                *text += ": ";
                json_at(text, value, indent + 2);
            }
            line(text, indent);
            text.push('}');
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                text.push(if index == 0 { '[' } else { ',' });
                line(text, indent + 2);
                json_at(text, item, indent + 2);
            }
            line(text, indent);
            text.push(']');
        }
        Value::String(string) => quoted(text, string),
        value => *text += &value.to_string(),
    }
}
