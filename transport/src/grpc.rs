//! What gRPC says in headers and trailers (PROTOCOL-HTTP2.md): the kind of a message, its result, and a call's time limit.

use std::io::Write;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::ProxyError;
use crate::headers::OUTRIGGER_ERROR;

/// gRPC's result.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// gRPC's result in words, percent-encoded.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// A gRPC server's word on when to try again (gRFC A6).
pub const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// How long the caller waits for all of the response (PROTOCOL-HTTP2.md, "Timeout").
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The largest number that fits: eight digits.
const MAX: u128 = 99_999_999;

/// Each unit in nanoseconds, the finest first.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// Whether the message is gRPC (PROTOCOL-HTTP2.md: the content type begins with it).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// gRPC's result, from the trailers or from a response without any.
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.trim().parse().ok()
}

/// What ends a gRPC call that failed.
pub fn grpc_trailers(error: &ProxyError) -> HeaderMap {
    let message = format!("{} ({})", error.detail, error.reason.code());
    let mut trailers = HeaderMap::with_capacity(4);
    trailers.insert(GRPC_STATUS, HeaderValue::from(error.reason.grpc_status()));
    if let Ok(message) = HeaderValue::try_from(percent_encode(&message)) {
        trailers.insert(GRPC_MESSAGE, message);
    }
    trailers.insert(OUTRIGGER_ERROR, HeaderValue::from_static(error.reason.code()));
    trailers
}

/// How long the caller waits. `None`: for ever, or what it says is malformed; the server may make of that what it likes.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get(GRPC_TIMEOUT)?.as_bytes().split_last()?;
    if !matches!(digits.len(), 1..=8) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (_, nanos) = UNITS.into_iter().find(|(name, _)| name == unit)?;
    let number = digits.iter().fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
    // 99,999,999 hours in nanoseconds do not fit into 64 bits.
    Some(Duration::from_nanos(nanos).saturating_mul(number))
}

/// Says how long the caller still waits: rounded down, and never nothing.
pub fn set_timeout(headers: &mut HeaderMap, left: Duration) {
    let left = left.as_nanos().max(1);
    let (unit, number) = UNITS
        .into_iter()
        .map(|(unit, nanos)| (unit, left / u128::from(nanos)))
        .find(|(_, number)| *number <= MAX)
        .unwrap_or((b'H', MAX));
    let mut text = [0; 9];
    let mut rest = &mut text[..];
    // Eight digits and a letter fit into nine bytes, and are always a header value.
    let _ = write!(rest, "{number}{}", char::from(unit));
    let unused = rest.len();
    if let Ok(value) = HeaderValue::from_bytes(&text[..text.len() - unused]) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

/// gRPC's encoding of a status message: all but printable ASCII, and "%" itself.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{GRPC_TIMEOUT, is_grpc, set_timeout, timeout};
    use http::{HeaderMap, HeaderValue};
    use std::time::Duration;

    fn read(value: &'static [u8]) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_bytes(value).unwrap());
        timeout(&headers)
    }

    fn written(left: Duration) -> String {
        let mut headers = HeaderMap::new();
        set_timeout(&mut headers, left);
        headers[GRPC_TIMEOUT].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_content_type_begins_with_its_name() {
        let mut headers = HeaderMap::new();
        assert!(!is_grpc(&headers));
        headers.insert("content-type", HeaderValue::from_static("application/grpc+proto"));
        assert!(is_grpc(&headers));
    }

    #[test]
    fn each_unit() {
        assert_eq!(read(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(read(b"2M"), Some(Duration::from_secs(120)));
        assert_eq!(read(b"3S"), Some(Duration::from_secs(3)));
        assert_eq!(read(b"00000004m"), Some(Duration::from_millis(4)));
        assert_eq!(read(b"5u"), Some(Duration::from_micros(5)));
        assert_eq!(read(b"6n"), Some(Duration::from_nanos(6)));
        assert_eq!(read(b"0n"), Some(Duration::ZERO));
        let longest = Duration::from_secs(99_999_999 * 3600);
        assert_eq!(read(b"99999999H"), Some(longest));
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn malformed_is_none() {
        for value in [
            &b""[..],
            b"m",
            b"5",
            b"5s",
            b"-5m",
            b" 5m",
            b"5 m",
            b"1.5S",
            b"100000000m",
            b"\xff\xff",
        ] {
            assert_eq!(read(value), None, "{value:?}");
        }
    }

    #[test]
    fn what_is_left_fits_and_is_never_more() {
        assert_eq!(written(Duration::ZERO), "1n");
        assert_eq!(written(Duration::from_nanos(99_999_999)), "99999999n");
        assert_eq!(written(Duration::from_nanos(100_000_999)), "100000u");
        assert_eq!(written(Duration::from_secs(100)), "100000m");
        assert_eq!(written(Duration::from_secs(2 * 86_400)), "172800S");
        assert_eq!(written(Duration::from_secs(99_999_999 * 60)), "99999999M");
        assert_eq!(written(Duration::MAX), "99999999H");
        for nanos in [100, 1_000_003, 999_999_999_999, 123_456_789_012_345_678] {
            let left = Duration::from_nanos(nanos);
            let mut headers = HeaderMap::new();
            set_timeout(&mut headers, left);
            let read = timeout(&headers).unwrap();
            assert!(read <= left && read > left.mul_f64(0.98), "{left:?} {read:?}");
        }
    }
}
