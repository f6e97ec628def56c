//! Follows what a client sends on an HTTP/1 connection, line by line, and finds what must not be passed on.
//!
//! hyper frames the messages, and writes them anew for the next hop; nothing of that is done here. But it forgives shapes
//! that two servers read differently (request smuggling), and does not tell that it did: `Transfer-Encoding` with
//! `Content-Length`, line feeds alone, two hosts. RFC 9112 lets a server refuse these, and a proxy that does is no link
//! in such a chain. Where a request begins is known to who follows the bodies too, so this is a second reader of the
//! framing; it is stricter than hyper everywhere, and all it can do is to refuse.

use super::fault::{Fault, MAX_FIELDS, TWO_LENGTHS};
use super::lines::{NO_CHUNK_SIZE, check_host, chunk_size, is_control, name_and_value, request_line};
use crate::headers::stays_http;
use crate::limits::MAX_HEADER_BYTES;

/// The line of a chunk's size, its extensions included.
const MAX_CHUNK_LINE: usize = 4096;

/// What was found in some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes that were looked at: whole lines, and what is between them.
    pub seen: usize,
    /// Bytes that may be passed on: up to the end of a head, never a part of one.
    pub free: usize,
    /// What comes after `free` is refused.
    pub fault: Option<Fault>,
}

/// Reads one direction of one connection. It keeps no bytes: what it has not seen is given to it again.
#[derive(Debug, Default)]
pub struct Scanner {
    expects: Expects,
    /// Bytes of the head or of the trailers so far.
    section: usize,
    /// Header lines of the head.
    fields: usize,
    head: Head,
    /// Bytes came after the request for another protocol.
    beyond: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expects {
    #[default]
    RequestLine,
    Field,
    /// The rest of a body, or of a chunk.
    Data {
        left: u64,
        chunked: bool,
    },
    ChunkSize,
    /// The end of the line after a chunk's data.
    ChunkEnd,
    Trailer,
    /// The client asked for another protocol: what follows may be that.
    Anything,
}

/// What the head says about what comes after it.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    http10: bool,
    host: bool,
    length: Option<u64>,
    chunked: bool,
    connect: bool,
    upgrade: bool,
    /// See [`stays_http`].
    stays_http: bool,
}

impl Scanner {
    /// Looks at the bytes that come next.
    pub fn scan(&mut self, bytes: &[u8]) -> Scanned {
        let mut scanned = Scanned::default();
        while scanned.seen < bytes.len() {
            let rest = &bytes[scanned.seen..];
            let step = match self.expects {
                Expects::Anything => {
                    self.beyond = true;
                    Ok(rest.len())
                }
                Expects::Data { left, chunked } => Ok(self.data(rest.len(), left, chunked)),
                _ => match memchr::memchr(b'\n', rest) {
                    Some(end) => self.line(&rest[..end]).map(|()| end + 1),
                    None if self.section + rest.len() > self.limit() => Err(self.over_limit()),
                    None => return scanned,
                },
            };
            match step {
                Ok(n) => scanned.seen += n,
                Err(fault) => {
                    scanned.fault = Some(fault);
                    return scanned;
                }
            }
            if self.expects != Expects::Field {
                scanned.free = scanned.seen;
            }
        }
        scanned
    }

    /// Whether the bytes that were not seen yet belong to a head.
    pub fn in_head(&self) -> bool {
        matches!(self.expects, Expects::RequestLine | Expects::Field)
    }

    /// Whether everything that was begun has its end. Bytes that were not seen yet are not counted.
    pub fn between_requests(&self) -> bool {
        self.expects == Expects::RequestLine
    }

    /// Whether the client asked for another protocol, and with `true` inside, has sent something after that.
    pub fn tunnel(&self) -> Option<bool> {
        (self.expects == Expects::Anything).then_some(self.beyond)
    }

    /// The other protocol was refused, and HTTP goes on.
    pub fn resume(&mut self) {
        *self = Self::default();
    }

    fn data(&mut self, here: usize, left: u64, chunked: bool) -> usize {
        let n = left.min(here as u64);
        self.expects = match (left - n, chunked) {
            (0, true) => Expects::ChunkEnd,
            (0, false) => Expects::RequestLine,
            (left, chunked) => Expects::Data { left, chunked },
        };
        // Not more than `here`.
        n as usize
    }

    /// A line without its LF.
    fn line(&mut self, line: &[u8]) -> Result<(), Fault> {
        self.section += line.len() + 1;
        if self.section > self.limit() {
            return Err(self.over_limit());
        }
        // RFC 9112 section 2.2: a line ends in CRLF; a CR alone ends nothing, and may not be anywhere else.
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err(Fault::Malformed("a line ends in LF without CR"));
        };
        // Without a branch, so that many bytes are compared at once.
        if line.iter().fold(false, |found, &b| found | is_control(b)) {
            return Err(Fault::Malformed("a control character (CR, NUL …) in its head"));
        }
        self.expects = match self.expects {
            // RFC 9112 section 2.2: empty lines before a request are passed over.
            Expects::RequestLine if line.is_empty() => {
                self.section = 0;
                Expects::RequestLine
            }
            Expects::RequestLine => {
                let line = request_line(line)?;
                self.head = Head {
                    http10: line.http10,
                    connect: line.connect,
                    ..Head::default()
                };
                self.fields = 0;
                Expects::Field
            }
            Expects::Field if line.is_empty() => self.end_of_head()?,
            Expects::Field => {
                self.fields += 1;
                if self.fields > MAX_FIELDS {
                    return Err(Fault::TooMany);
                }
                self.field(line)?;
                Expects::Field
            }
            Expects::ChunkSize => {
                let size = chunk_size(line)?;
                self.section = 0;
                match size {
                    0 => Expects::Trailer,
                    left => Expects::Data { left, chunked: true },
                }
            }
            Expects::ChunkEnd if line.is_empty() => {
                self.section = 0;
                Expects::ChunkSize
            }
            Expects::ChunkEnd => return Err(Fault::Malformed("a chunk is longer than its size says")),
            Expects::Trailer if line.is_empty() => {
                self.section = 0;
                Expects::RequestLine
            }
            Expects::Trailer => {
                name_and_value(line)?;
                Expects::Trailer
            }
            Expects::Data { .. } | Expects::Anything => self.expects,
        };
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Fault> {
        let (name, value) = name_and_value(line)?;
        let is = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
        match name.len() {
            // RFC 9112 section 3.2: not more than one, and a valid one.
            4 if is(b"host") => {
                if std::mem::replace(&mut self.head.host, true) {
                    return Err(Fault::Malformed("two Host headers"));
                }
                check_host(value)?;
            }
            // In HTTP/1.0 it says nothing (RFC 9110 section 7.8).
            7 if is(b"upgrade") => {
                self.head.upgrade |= !self.head.http10;
                self.head.stays_http |= stays_http(value);
            }
            // RFC 9112 section 6.3: one number. A list of equal ones is allowed to be taken for one; nobody sends it.
            14 if is(b"content-length") => {
                let length = value.iter().all(u8::is_ascii_digit).then_some(value);
                let length = length.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
                let Some(length) = length else {
                    return Err(Fault::Malformed("its Content-Length is not a number"));
                };
                if self.head.length.replace(length).is_some() {
                    return Err(Fault::Malformed(TWO_LENGTHS));
                }
            }
            // RFC 9112 section 6.1. Other codings than "chunked" are in use nowhere, except to confuse.
            17 if is(b"transfer-encoding") => {
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::Malformed("a Transfer-Encoding other than chunked"));
                }
                if std::mem::replace(&mut self.head.chunked, true) {
                    return Err(Fault::Malformed("two Transfer-Encoding headers"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<Expects, Fault> {
        let head = self.head;
        if head.chunked && head.length.is_some() {
            // RFC 9112 section 6.1: it "ought to be handled as an error".
            return Err(Fault::Malformed("both Transfer-Encoding and Content-Length"));
        }
        if head.chunked && head.http10 {
            return Err(Fault::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        if !head.host && !head.http10 {
            return Err(Fault::Malformed("no Host header"));
        }
        self.section = 0;
        Ok(match head {
            Head { connect: true, .. } => Expects::Anything,
            // As `asks_for_tunnel` sees it.
            Head {
                upgrade: true,
                stays_http: false,
                ..
            } => Expects::Anything,
            Head { chunked: true, .. } => Expects::ChunkSize,
            Head { length, .. } => match length.unwrap_or(0) {
                0 => Expects::RequestLine,
                left => Expects::Data { left, chunked: false },
            },
        })
    }

    fn limit(&self) -> usize {
        match self.expects {
            Expects::ChunkSize | Expects::ChunkEnd => MAX_CHUNK_LINE,
            _ => MAX_HEADER_BYTES,
        }
    }

    fn over_limit(&self) -> Fault {
        match self.expects {
            Expects::ChunkSize | Expects::ChunkEnd => NO_CHUNK_SIZE,
            _ => Fault::TooLarge,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Scanner};

    /// What is passed on of `bytes` before it is refused.
    fn passed(bytes: &[u8]) -> (usize, Option<Fault>) {
        let scanned = Scanner::default().scan(bytes);
        (scanned.free, scanned.fault)
    }

    #[test]
    fn proper_messages_pass_whole() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\nX-Empty:\r\nX: \tb \r\n\r\nPUT /x HTTP/1.1\r\nHost: [::1]:80\r\ncontent-length: 3\r\n\r\nabcHEAD / HTTP/1.1\r\nhost: b\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n00A ; x=\"y\"\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\nGET ftp://u:p@a_b/ HTTP/1.1\r\nHost:\r\n\r\n",
            // In HTTP/1.0 `Upgrade` says nothing.
            "POST / HTTP/1.0\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: caf\u{e9}\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nUpgrade: y, H2C\r\n\r\nGET / HTTP/1.1\r\nUpgrade: http/2\r\nUpgrade: x\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(passed(text.as_bytes()), (text.len(), None), "{text:?}");
            // However it is cut, the same comes out, and never a part of a head.
            for cut in 0..text.len() {
                let (mut scanner, bytes) = (Scanner::default(), text.as_bytes());
                let first = scanner.scan(&bytes[..cut]);
                let head = &bytes[..first.free];
                assert!(first.free <= first.seen && first.fault.is_none(), "{text:?} at {cut}");
                assert!(
                    first.free == first.seen || scanner.in_head(),
                    "{text:?} at {cut}: {head:?}"
                );
                let second = scanner.scan(&bytes[first.seen..]);
                assert_eq!(
                    (first.seen + second.free, second.fault),
                    (text.len(), None),
                    "{text:?} at {cut}"
                );
            }
        }
    }

    #[test]
    fn what_follows_a_request_for_another_protocol_is_not_looked_at() {
        for head in [
            "CONNECT db:1 HTTP/1.1\r\nHost: db:1\r\n\r\n",
            "CONNECT db:1 HTTP/1.1\r\nHost: db:1\r\nUpgrade: h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        ] {
            let mut scanner = Scanner::default();
            assert_eq!(scanner.scan(head.as_bytes()).free, head.len());
            assert_eq!(scanner.tunnel(), Some(false));
            assert_eq!(scanner.scan(b"\0\n").free, 2);
            assert_eq!(scanner.tunnel(), Some(true));
            scanner.resume();
            assert!(scanner.scan(b"\0\n").fault.is_some());
        }
        // Another version of HTTP is none: what follows is looked at.
        for upgrade in ["h2c", "x, h2c", "h2c\r\nUpgrade: x", "x\r\nUpgrade: HTTP/2.0"] {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: {upgrade}\r\n\r\n");
            let mut scanner = Scanner::default();
            assert_eq!(scanner.scan(head.as_bytes()).free, head.len());
            assert_eq!(scanner.tunnel(), None, "{upgrade:?}");
            assert!(scanner.scan(b"\0\n").fault.is_some(), "{upgrade:?}");
        }
    }

    #[test]
    fn refused_is_what_can_be_read_in_two_ways() {
        let first = "GET /first HTTP/1.1\r\nHost: a\r\n\r\n";
        let head = "POST / HTTP/1.1\r\nHost: a\r\n";
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (bad, what) in [
            (
                format!("{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
                "both",
            ),
            (
                format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"),
                "both",
            ),
            (
                format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n"),
                "other than chunked",
            ),
            (
                format!("{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
                "two Transfer",
            ),
            (format!("{head}Transfer-Encoding:\u{b}chunked\r\n\r\n"), "control"),
            (
                format!("{head}Content-Length: 5\r\nContent-Length: 5\r\n\r\n"),
                "two Content",
            ),
            (format!("{head}Content-Length: 5, 5\r\n\r\n"), "not a number"),
            (format!("{head}Content-Length: +5\r\n\r\n"), "not a number"),
            (format!("{head}Content-Length:\r\n\r\n"), "not a number"),
            (
                format!("{head}Content-Length: 99999999999999999999\r\n\r\n"),
                "not a number",
            ),
            (format!("{head}Host: b\r\n\r\n"), "two Host"),
            (format!("{head}X : b\r\n\r\n"), "proper name"),
            (format!("{head}: b\r\n\r\n"), "proper name"),
            (format!("{head}X\r\n\r\n"), "proper name"),
            (format!("{head}X: a\r\n b\r\n\r\n"), "second line"),
            (format!("{head}X: a\n\r\n"), "without CR"),
            (format!("{head}X: a\rb\r\n\r\n"), "control"),
            (format!("{head}X: a\0b\r\n\r\n"), "control"),
            ("GET / HTTP/1.1\r\nX: a\r\n\r\n".into(), "no Host"),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), "not a host"),
            ("GET  / HTTP/1.1\r\n".into(), "first line"),
            ("GET /a b HTTP/1.1\r\n".into(), "first line"),
            ("GET\t/ HTTP/1.1\r\n".into(), "first line"),
            ("GET /\ta HTTP/1.1\r\n".into(), "first line"),
            ("G(T / HTTP/1.1\r\n".into(), "first line"),
            ("GET x HTTP/1.1\r\n".into(), "target"),
            ("GET * HTTP/1.1\r\n".into(), "only OPTIONS"),
            ("GET a:80 HTTP/1.1\r\n".into(), "target"),
            ("GET http://u@a/ HTTP/1.1\r\n".into(), "userinfo"),
            ("GET http://a:b/ HTTP/1.1\r\n".into(), "authority of its target"),
            ("CONNECT / HTTP/1.1\r\n".into(), "target of a CONNECT"),
            ("CONNECT a HTTP/1.1\r\n".into(), "target of a CONNECT"),
            ("CONNECT http://a/ HTTP/1.1\r\n".into(), "target of a CONNECT"),
            // The library has no such host in a URI.
            ("CONNECT a%41:80 HTTP/1.1\r\n".into(), "percent-encoded"),
            ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n".into(), "not a host and a port"),
            ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n".into(), "not a host and a port"),
            ("GET /a#b HTTP/1.1\r\n".into(), "target"),
            ("GET /?a=<b> HTTP/1.1\r\n".into(), "target"),
            ("GET /\r\n".into(), "first line"),
            ("GET / HTTP/1.2\r\n".into(), "version"),
            ("GET / http/1.1\r\n".into(), "version"),
            (
                "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                "HTTP/1.0",
            ),
        ] {
            let (free, fault) = passed(format!("{first}{bad}").as_bytes());
            let Some(Fault::Malformed(why)) = fault else {
                panic!("{bad:?}: {fault:?}")
            };
            assert!(why.contains(what), "{bad:?}: {why}");
            assert_eq!(free, first.len(), "{bad:?} would be passed on");
        }
        for (bad, whole) in [
            ("0x5\r\nabcde\r\n", 0),
            ("-1\r\n", 0),
            ("\r\n", 0),
            ("5\n", 0),
            ("5 x\r\n", 0),
            ("10000000000000000\r\n", 0),
            ("3\r\nabcde\r\n", 6),
            ("3\r\nabc\n", 6),
            ("0\r\nX\r\n\r\n", 3),
        ] {
            let (free, fault) = passed(format!("{chunked}{bad}").as_bytes());
            assert!(fault.is_some(), "{bad:?}");
            assert_eq!(free, chunked.len() + whole, "{bad:?}");
        }
    }

    #[test]
    fn a_head_has_a_limit() {
        let line = format!("X: {}\r\n", "a".repeat(1000));
        let long = format!("GET / HTTP/1.1\r\n{}", line.repeat(70));
        assert_eq!(passed(long.as_bytes()), (0, Some(Fault::TooLarge)));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X:\r\n".repeat(101));
        assert_eq!(passed(many.as_bytes()), (0, Some(Fault::TooMany)));
        let endless = format!("GET /{}", "a".repeat(66_000));
        assert_eq!(passed(endless.as_bytes()), (0, Some(Fault::TooLarge)));
        let trailers = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}",
            line.repeat(70)
        );
        assert_eq!(passed(trailers.as_bytes()).1, Some(Fault::TooLarge));
    }
}
