//! The lines of an HTTP/1 message, each by its grammar (RFC 9112).

use http::Uri;

use super::fault::Fault;
use crate::authority::{NO_DESTINATION, check, is_authority, is_destination};

/// What the first line of a request says.
pub(super) struct RequestLine {
    pub(super) http10: bool,
    /// Whether it is a CONNECT.
    pub(super) connect: bool,
}

/// RFC 9112 section 3: method SP target SP version, and no other white space.
pub(super) fn request_line(line: &[u8]) -> Result<RequestLine, Fault> {
    const PARTS: Fault = Fault::Malformed("its first line is not a method, a target and a version");
    let mut parts = line.split(|&b| b == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, parts.next()) else {
        return Err(PARTS);
    };
    if !is_token(method) || target.is_empty() || target.contains(&b'\t') {
        return Err(PARTS);
    }
    check_target(method, target).map_err(Fault::Malformed)?;
    let http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(Fault::Malformed("its version is neither HTTP/1.1 nor HTTP/1.0")),
    };
    Ok(RequestLine {
        http10,
        connect: method == b"CONNECT",
    })
}

/// RFC 9112 section 3.2: the form of the target fits the method. CONNECT has a host and a port, and OPTIONS may have an asterisk;
/// all others a path, or a whole URI for a proxy. A fragment is never sent.
fn check_target(method: &[u8], target: &[u8]) -> Result<(), &'static str> {
    const FORM: &str = "its target is of no known form, or has characters that must be percent-encoded";
    // The library that holds it has the last word; what it refuses is to be told here.
    let uri = || Uri::try_from(target).map_err(|_| FORM);
    if method == b"CONNECT" {
        return match is_destination(target) {
            true => uri().map(drop),
            false => Err(NO_DESTINATION),
        };
    }
    if target == b"*" {
        return match method {
            b"OPTIONS" => Ok(()),
            _ => Err("only OPTIONS has the target *"),
        };
    }
    let path = target[0] == b'/';
    let usual = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(b);
    if path && target.iter().all(usual) {
        return Ok(());
    }
    // The library takes "://a" for a URI too, with a scheme of no letters.
    let whole = target.windows(3).position(|w| w == b"://").is_some_and(|at| at > 0);
    if !(path || whole) || target.contains(&b'#') {
        return Err(FORM);
    }
    check(&uri()?)
}

/// RFC 9112 section 3.2: a host and a port, or nothing where the target has no authority.
pub(super) fn check_host(value: &[u8]) -> Result<(), Fault> {
    match value.is_empty() || is_authority(value) {
        true => Ok(()),
        false => Err(Fault::Malformed("its Host header is not a host and a port")),
    }
}

/// RFC 9112 section 7.1: hexadecimal digits, and perhaps extensions.
pub(super) fn chunk_size(line: &[u8]) -> Result<u64, Fault> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, extensions) = line.split_at(digits);
    let extensions = extensions.trim_ascii_start();
    if !(1..=16).contains(&digits) || !(extensions.is_empty() || extensions.starts_with(b";")) {
        return Err(NO_CHUNK_SIZE);
    }
    // Up to 16 hexadecimal digits fit.
    Ok(size.iter().fold(0, |size, &digit| {
        size << 4 | u64::from(char::from(digit).to_digit(16).unwrap_or(0))
    }))
}

/// What is wrong with a chunk's first line.
pub(super) const NO_CHUNK_SIZE: Fault = Fault::Malformed("a chunk's size is not a hexadecimal number");

/// RFC 9112 section 5: a name, a colon with no white space before it, a value; and no second line (obs-fold).
pub(super) fn name_and_value(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(Fault::Malformed("a header that goes on in a second line"));
    }
    match memchr::memchr(b':', line).map(|colon| (&line[..colon], &line[colon + 1..])) {
        Some((name, value)) if is_token(name) => Ok((name, value.trim_ascii())),
        _ => Err(Fault::Malformed("a header without a proper name")),
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

pub(super) fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}
