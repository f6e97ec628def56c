//! What a connection speaks, for who must not miss a request: where limits of requests hold, what goes by as bytes is not limited.
//!
//! [`detect`](super::detect) takes for HTTP what clients of HTTP send. Servers understand more: empty lines before a request (RFC 9112
//! section 2.2), methods that nobody has heard of, more than one space, and the one line that was a request in HTTP/0.9. All of that is HTTP
//! here, and whoever serves it refuses what is malformed.
//!
//! It does not see through TLS, and knows no protocol that precedes HTTP on a connection, such as PROXY. Both are the app's own.

use super::detect::{Detected, FIRST_READ, Verdict, protocol, resolve};

/// What a connection speaks, so far. No verdict needs more than the first 2 KiB.
pub fn wary_protocol(bytes: &[u8]) -> Verdict<Detected> {
    match protocol(bytes) {
        Verdict::Is(Detected::Opaque) => first_line(bytes),
        known => known,
    }
}

/// What it is taken for where no more comes for now: a line without its end counts as if it were whole.
pub fn wary_resolve(detected: Option<Detected>, so_far: &[u8]) -> Detected {
    match resolve(detected, so_far, false) {
        Detected::Opaque if detected.is_none() && is_request(without_empty_lines(so_far)) => Detected::Http1,
        known => known,
    }
}

/// A word of a token's characters, which is a method if this is a request, and whether its line is one.
fn first_line(bytes: &[u8]) -> Verdict<Detected> {
    // No further, or the verdict would depend on how the bytes come.
    let is_long = bytes.len() >= FIRST_READ;
    let line = without_empty_lines(&bytes[..bytes.len().min(FIRST_READ)]);
    let (line, is_whole) = match line.iter().position(|&b| b == b'\n') {
        Some(end) => (&line[..end], true),
        None => (line, false),
    };
    let line = if is_whole {
        line.strip_suffix(b"\r").unwrap_or(line)
    } else {
        line
    };
    let method = line.iter().take_while(|&&b| is_token(b)).count();
    // A form feed is no reason: there are apps that read a target with one in it.
    let is_text = line.iter().all(|&b| !b.is_ascii_control() || is_blank(b) || b == b'\r');
    let has_method = match line.get(method) {
        Some(b) => method > 0 && is_blank(*b),
        // Its end may be to come.
        None => !is_whole,
    };
    if !is_text || !has_method {
        return Verdict::Is(Detected::Opaque);
    }
    match (is_whole, is_long) {
        (true, _) if is_request(line) => Verdict::Is(Detected::Http1),
        (true, _) => Verdict::Is(Detected::Opaque),
        // A target is taken on trust, and so is whatever is that long.
        (false, true) => Verdict::Is(Detected::Http1),
        (false, false) => Verdict::NeedMore,
    }
}

/// It names a version of HTTP, or is all that HTTP/0.9 had.
fn is_request(line: &[u8]) -> bool {
    let mut words = line.windows(6);
    words.any(|word| is_blank(word[0]) && &word[1..] == b"HTTP/")
        || line.strip_prefix(b"GET").is_some_and(|rest| {
            let target = rest.iter().position(|&b| !is_blank(b));
            target.is_some_and(|at| at > 0 && rest[at] == b'/')
        })
}

fn without_empty_lines(bytes: &[u8]) -> &[u8] {
    let begin = bytes.iter().position(|&b| !is_blank(b) && !matches!(b, b'\r' | b'\n'));
    &bytes[begin.unwrap_or(bytes.len())..]
}

/// What some app takes for the space between two words: Python's `split` all of these.
fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | 0x0b | 0x0c | 0x1c..=0x1f)
}

/// RFC 9110 section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What some server takes for a request.
    const REQUESTS: [&[u8]; 15] = [
        b"GET / HTTP/1.1\r\n",
        b"\r\nGET / HTTP/1.1\r\n",
        b"\n\r\n\r\n\nGET / HTTP/1.1\r\n",
        b" \t GET / HTTP/1.1\r\n",
        b"A1 / HTTP/1.1\r\n",
        b"a!#b / HTTP/1.0\n",
        b"GET\t/\tHTTP/1.1\r\n",
        b"GET  \"x  HTTP/1.1\r\n",
        b"GET ?x HTTP/9\r\n",
        b"PRI * HTTP/2.0\r\n\r\nno",
        b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\nGET /a\x0cb HTTP/1.1\r\n",
        b"GET\x0b/a\x0cHTTP/1.1\r\n",
        b"GET /login\r\n",
        b"GET  /login\n",
    ];

    /// What other protocols begin with.
    const OTHERS: [&[u8]; 15] = [
        b"EHLO example.com\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\r\n",
        b"get key\r\n",
        b"GET key\r\n",
        b"NICK someone\r\n",
        b"PING\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"INVITE sip:x SIP/2.0\r\n",
        b"OPTIONS rtsp://x RTSP/1.0\r\n",
        b"CONNECT {\"verbose\": false}\r\n",
        b"AMQP\0\0\x09\x01",
        // LDAP, whose lengths may be blanks.
        b"0\x20\x02\x01\x01",
        b"0\x09\x02\x01\x01",
        b"<?xml version='1.0'?>",
    ];

    #[test]
    fn all_that_a_server_may_take_for_a_request_is_one() {
        for request in REQUESTS {
            assert_eq!(wary_protocol(request), Verdict::Is(Detected::Http1), "{request:?}");
        }
        for other in OTHERS {
            let verdict = wary_protocol(other);
            let is_empty = without_empty_lines(other).is_empty();
            let expected = if is_empty {
                Verdict::NeedMore
            } else {
                Verdict::Is(Detected::Opaque)
            };
            assert_eq!(verdict, expected, "{other:?}");
        }
        assert_eq!(
            wary_protocol(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            Verdict::Is(Detected::Http2)
        );
        assert_eq!(wary_protocol(b"\x16\x03\x01\x02\x00\x01"), Verdict::Is(Detected::Tls));
    }

    #[test]
    fn nothing_is_too_long_to_be_a_request() {
        for begin in [&b"GET /"[..], b"GET \"", b"", b"\r\n", b"LONG "] {
            let mut long = begin.to_vec();
            long.resize(FIRST_READ - 1, b'a');
            let short = wary_protocol(&long);
            assert_eq!(short, Verdict::NeedMore, "{begin:?}");
            long.resize(FIRST_READ * 3, b'a');
            assert_eq!(wary_protocol(&long), Verdict::Is(Detected::Http1), "{begin:?}");
        }
        assert_eq!(wary_protocol(&b"\r\n".repeat(FIRST_READ)), Verdict::Is(Detected::Http1));
    }

    #[test]
    fn every_split_comes_to_the_same_verdict() {
        for text in REQUESTS.iter().chain(&OTHERS) {
            let whole = wary_protocol(text);
            for end in 0..text.len() {
                let part = wary_protocol(&text[..end]);
                assert!(
                    part == Verdict::NeedMore || part == whole,
                    "{text:?} at {end}: {part:?}"
                );
            }
        }
    }

    #[test]
    fn a_line_that_waits_for_its_end_counts_as_if_it_were_whole() {
        for (so_far, expected) in [
            (&b"A1 /x HTTP/1.1"[..], Detected::Http1),
            (b"\r\nGET /", Detected::Http1),
            (b"PRI * HT", Detected::Http2),
            (b"A1 /x", Detected::Opaque),
            (b"GE", Detected::Opaque),
            (b"", Detected::Opaque),
            (b"\r\n", Detected::Opaque),
        ] {
            assert_eq!(wary_resolve(None, so_far), expected, "{so_far:?}");
        }
        let opaque = Some(Detected::Opaque);
        assert_eq!(wary_resolve(opaque, b"A1 / x\r\nB HTTP/1.1"), Detected::Opaque);
    }
}
