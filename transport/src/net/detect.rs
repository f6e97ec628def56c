//! What a connection speaks, from its first bytes.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Prefixed;

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.0 or HTTP/1.1: a request line.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// A ClientHello.
    Tls,
    /// Anything else.
    Opaque,
}

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 or HTTP/1.1, whichever each message says.
    Http1,
    /// HTTP/2, by prior knowledge or by ALPN.
    Http2,
}

/// What can be said of the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<T> {
    /// They may become more than one thing.
    NeedMore,
    /// Whatever comes next, they are this.
    Is(T),
}

/// How detection ended.
#[derive(Debug)]
pub struct Peeked<IO, T> {
    /// `None`: the time limit ran out, or the connection ended first.
    pub verdict: Option<T>,
    /// The time limit ran out.
    pub timed_out: bool,
    /// Everything from the first byte on.
    pub io: Prefixed<IO>,
}

/// More than a request line's method or a frame's head is never needed; a ClientHello has its own limit.
pub(super) const FIRST_READ: usize = 2048;
/// No verdict needs more than this.
const MAX_PEEK: usize = 17 * 1024;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9110 allows methods of any length; longer ones than this are not met.
const MAX_METHOD: usize = 32;

/// Reads until `inspect` knows, at most for `limit`.
///
/// # Errors
/// Those of the connection.
pub async fn peek<IO, T>(
    mut io: IO,
    limit: Duration,
    inspect: impl Fn(&[u8]) -> Verdict<T>,
) -> io::Result<Peeked<IO, T>>
where
    IO: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::with_capacity(FIRST_READ);
    let read = async {
        while buffer.len() < MAX_PEEK {
            if io.read_buf(&mut buffer).await? == 0 {
                return Ok::<_, io::Error>(None);
            }
            if let Verdict::Is(known) = inspect(&buffer) {
                return Ok(Some(known));
            }
        }
        Ok(None)
    };
    let (verdict, timed_out) = match tokio::time::timeout(limit, read).await {
        Ok(verdict) => (verdict?, false),
        Err(_) => (None, true),
    };
    Ok(Peeked {
        verdict,
        timed_out,
        io: Prefixed::new(buffer.freeze(), io),
    })
}

/// What an app's connection speaks.
pub fn protocol(bytes: &[u8]) -> Verdict<Detected> {
    if bytes.is_empty() {
        return Verdict::NeedMore;
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        return Verdict::Is(Detected::Http2);
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return Verdict::NeedMore;
    }
    // RFC 8446 section 5.1: a handshake record of TLS 1.x, whose first message (type 1) is a ClientHello.
    let hello = |at: usize, is: &[u8]| bytes.get(at).is_none_or(|b| is.contains(b));
    if hello(0, &[0x16]) && hello(1, &[3]) && hello(2, &[0, 1, 2, 3, 4]) && hello(5, &[1]) {
        return if bytes.len() > 5 {
            Verdict::Is(Detected::Tls)
        } else {
            Verdict::NeedMore
        };
    }
    http1(bytes)
}

/// Whether all that an HTTP/2 client begins with is here: the preface, and SETTINGS (RFC 9113 section 3.4). What is
/// something else is left to the HTTP library to refuse.
pub fn http2_opening(bytes: &[u8]) -> Verdict<()> {
    // RFC 9113 section 4.1: 24 bits of length and 8 of type, in a head of 9 bytes.
    const HEAD: usize = 9;
    const SETTINGS: u8 = 4;
    let head = match bytes.strip_prefix(HTTP2_PREFACE) {
        Some(head) => head,
        None if HTTP2_PREFACE.starts_with(bytes) => return Verdict::NeedMore,
        None => return Verdict::Is(()),
    };
    match *head {
        [a, b, c, SETTINGS, ..] if head.len() < HEAD + u32::from_be_bytes([0, a, b, c]) as usize => Verdict::NeedMore,
        [_, _, _, _, ..] => Verdict::Is(()),
        _ => Verdict::NeedMore,
    }
}

/// What a connection is taken for in the end. Where HTTP is declared, malformed HTTP is refused as that, and not handed
/// to the app unread; and a request line may come slowly, whether declared or seen by its beginning.
pub fn resolve(detected: Option<Detected>, so_far: &[u8], http_declared: bool) -> Detected {
    match detected {
        Some(Detected::Opaque) if http_declared => Detected::Http1,
        Some(detected) => detected,
        None if so_far.len() > 3 && HTTP2_PREFACE.starts_with(so_far) => Detected::Http2,
        None if http_declared && so_far.first().is_some_and(u8::is_ascii_alphabetic) => Detected::Http1,
        None if begins_request(so_far) => Detected::Http1,
        None => Detected::Opaque,
    }
}

/// A well-known method and the beginning of a path.
fn begins_request(bytes: &[u8]) -> bool {
    ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
        .iter()
        .any(|method| {
            bytes
                .strip_prefix(method.as_bytes())
                .is_some_and(|rest| rest.starts_with(b" /"))
        })
}

/// A method, a space, and something that can be a request target.
fn http1(bytes: &[u8]) -> Verdict<Detected> {
    let method = bytes
        .iter()
        .take(MAX_METHOD + 1)
        .take_while(|b| b.is_ascii_alphabetic() || **b == b'-' || **b == b'_')
        .count();
    if method == 0 || method > MAX_METHOD {
        return Verdict::Is(Detected::Opaque);
    }
    match (bytes.get(method), bytes.get(method + 1)) {
        (None, _) | (Some(b' '), None) => Verdict::NeedMore,
        // Origin form, absolute form, "*", or CONNECT's host.
        (Some(b' '), Some(b'/' | b'*' | b'[' | b' ')) => at_end_of_line(bytes),
        (Some(b' '), Some(b)) if b.is_ascii_alphanumeric() => at_end_of_line(bytes),
        _ => Verdict::Is(Detected::Opaque),
    }
}

/// The request line names a version of HTTP, whichever: "NICK someone" of another protocol does not. A long target is taken
/// on trust.
fn at_end_of_line(bytes: &[u8]) -> Verdict<Detected> {
    // No further, or the verdict would depend on how the bytes come.
    match bytes.iter().take(FIRST_READ).position(|&b| b == b'\n') {
        Some(end) => {
            if bytes[..end].windows(6).any(|word| word == b" HTTP/") {
                Verdict::Is(Detected::Http1)
            } else {
                Verdict::Is(Detected::Opaque)
            }
        }
        None if bytes.len() >= FIRST_READ => Verdict::Is(Detected::Http1),
        None => Verdict::NeedMore,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Detected, HTTP2_PREFACE, Verdict, http2_opening, peek, protocol, resolve};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn first_bytes() {
        let is = |bytes: &[u8]| match protocol(bytes) {
            Verdict::Is(detected) => Some(detected),
            Verdict::NeedMore => None,
        };
        assert_eq!(is(HTTP2_PREFACE), Some(Detected::Http2));
        assert_eq!(is(b"GET / HTTP/1.1\r\n"), Some(Detected::Http1));
        assert_eq!(is(b"OPTIONS * HTTP/1.0\r\n"), Some(Detected::Http1));
        assert_eq!(is(b"CONNECT db:5432 HTTP/1.1\r\n"), Some(Detected::Http1));
        assert_eq!(is(b"PURGE http://x/y HTTP/1.1\r\nHost"), Some(Detected::Http1));
        assert_eq!(
            is(b"GET  /a b HTTP/1.7\n"),
            Some(Detected::Http1),
            "malformed, and HTTP"
        );
        assert_eq!(is(b"\x16\x03\x01\x02\x00\x01\x00"), Some(Detected::Tls));
        assert_eq!(is(b"EHLO example.com\r\n"), Some(Detected::Opaque));
        assert_eq!(is(b"*1\r\n$4\r\nPING\r\n"), Some(Detected::Opaque));
        assert_eq!(is(b"\x00\x00\x00\x08\x04\xd2\x16\x2f"), Some(Detected::Opaque));
        assert_eq!(is(b"\x16\x03\x01\x02\x00\x02"), Some(Detected::Opaque));
        assert_eq!(is(b"A".repeat(40).as_slice()), Some(Detected::Opaque));
        let mut long = b"GET /".to_vec();
        long.resize(5000, b'a');
        assert_eq!(is(&long), Some(Detected::Http1));
        for partial in [
            &b""[..],
            b"P",
            b"PRI * HT",
            b"GE",
            b"GET ",
            b"GET /x HTTP/1",
            b"\x16",
            b"\x16\x03\x01\x02\x00",
        ] {
            assert_eq!(is(partial), None, "{partial:?}");
        }
    }

    #[test]
    fn the_opening_of_http2_is_the_preface_and_settings() {
        let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
        let whole = [HTTP2_PREFACE, settings].concat();
        for end in 0..whole.len() {
            assert_eq!(http2_opening(&whole[..end]), Verdict::NeedMore, "{end}");
        }
        assert_eq!(http2_opening(&whole), Verdict::Is(()));
        assert_eq!(http2_opening(&[&whole, &b"more"[..]].concat()), Verdict::Is(()));
        let ping = b"\0\0\x08\x06\0";
        assert_eq!(http2_opening(&[HTTP2_PREFACE, ping].concat()), Verdict::Is(()));
        assert_eq!(http2_opening(b"PRI * HTTP/1.1\r\n"), Verdict::Is(()));
    }

    #[test]
    fn what_is_told_and_what_is_slow() {
        let http = Some(Detected::Http1);
        assert_eq!(resolve(http, b"GET / HTTP/1.1\r\n", false), Detected::Http1);
        assert_eq!(resolve(Some(Detected::Tls), b"\x16", true), Detected::Tls);
        for (so_far, told, untold) in [
            (&b"G"[..], Detected::Http1, Detected::Opaque),
            (b"GET /x HT", Detected::Http1, Detected::Http1),
            (b"NICK x", Detected::Http1, Detected::Opaque),
            (b"PRI * HT", Detected::Http2, Detected::Http2),
            (b"\x16\x03", Detected::Opaque, Detected::Opaque),
            (b"", Detected::Opaque, Detected::Opaque),
        ] {
            assert_eq!(resolve(None, so_far, true), told, "{so_far:?}");
            assert_eq!(resolve(None, so_far, false), untold, "{so_far:?}");
        }
        assert_eq!(resolve(Some(Detected::Opaque), b"GET /\r\n", true), Detected::Http1);
        assert_eq!(resolve(Some(Detected::Opaque), b"GET /\r\n", false), Detected::Opaque);
    }

    #[test]
    fn every_split_comes_to_the_same_verdict() {
        for text in [
            HTTP2_PREFACE,
            b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\x16\x03\x03\x00\x50\x01\x00",
            b"QUIT\r\n",
        ] {
            let whole = protocol(text);
            for end in 0..text.len() {
                let part = protocol(&text[..end]);
                assert!(
                    part == Verdict::NeedMore || part == whole,
                    "{text:?} at {end}: {part:?}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_limit_and_loses_nothing() {
        let (mut near, far) = tokio::io::duplex(64);
        near.write_all(b"GE").await.unwrap();
        let mut peeked = peek(far, Duration::from_secs(1), protocol).await.unwrap();
        assert!(peeked.timed_out && peeked.verdict.is_none());
        near.write_all(b"T").await.unwrap();
        drop(near);
        let mut all = Vec::new();
        peeked.io.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"GET");
    }
}
