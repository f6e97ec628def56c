//! The targets, each for what one kind of stranger sends.

pub mod admission;
pub mod certificate;
pub mod config;
pub mod detect;
pub mod discovery;
pub mod framing;
pub mod grpc_timeout;
pub mod headers;
pub mod hello;
pub mod notation;
pub mod retry;
pub mod route;
pub mod spiffe;
pub mod trace;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Lines of "name: value" as headers; what is not valid is passed over.
fn header_lines(text: &[u8]) -> HeaderMap {
    let lines = text.split(|byte| *byte == b'\n').take(64);
    lines
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
            Some((name, value))
        })
        .fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        })
}
