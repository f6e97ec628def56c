//! The targets, each for what one kind of stranger sends.

#[cfg(feature = "programs")]
pub mod access;
#[cfg(feature = "programs")]
pub mod admission;
pub mod authority;
#[cfg(feature = "programs")]
pub mod certificate;
#[cfg(feature = "programs")]
pub mod config;
pub mod detect;
#[cfg(feature = "programs")]
pub mod discovery;
pub mod framing;
pub mod grpc_timeout;
pub mod headers;
#[cfg(feature = "programs")]
pub mod hello;
#[cfg(feature = "programs")]
pub mod limits;
#[cfg(feature = "programs")]
pub mod notation;
#[cfg(feature = "programs")]
pub mod request_path;
#[cfg(feature = "programs")]
pub mod retry;
#[cfg(feature = "programs")]
pub mod route;
#[cfg(feature = "programs")]
pub mod spiffe;
#[cfg(feature = "programs")]
pub mod token;
#[cfg(feature = "programs")]
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
