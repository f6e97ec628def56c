//! HTTP/1 of anybody: what the scanner lets through is framed by hyper as the RFC says, so that nobody after it sees other
//! requests (request smuggling).

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use outrigger_proxy_transport::limits::MAX_BUFFER;
use outrigger_proxy_transport::server::{Fault, Scanner};

use crate::Input;

/// Method, target and length of the body of a whole request.
type Seen = (String, String, usize);

/// The size of the pieces in which the bytes come, and the bytes of one connection.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = 1 + input.below(64);
    let bytes = input.rest();
    let (free, fault) = scan(bytes, bytes.len().max(1));
    assert_eq!((free, fault), scan(bytes, size), "in pieces of {size}");
    let passed = &bytes[..free];
    let (expected, tunnel) = requests(passed);
    let found = served(passed);
    // hyper stops where a client wants it to close, and knows of no tunnel where it is not given one.
    let both = expected.len().min(found.len());
    assert_eq!(found[..both], expected[..both]);
    assert!(
        tunnel || found.len() <= expected.len(),
        "{found:?} are more than {expected:?}"
    );
}

/// How much is passed on, and why nothing more.
fn scan(bytes: &[u8], size: usize) -> (usize, Option<Fault>) {
    let mut scanner = Scanner::default();
    let (mut here, mut seen, mut free) = (0, 0, 0);
    for piece in bytes.chunks(size) {
        here += piece.len();
        let scanned = scanner.scan(&bytes[seen..here]);
        if scanned.free > 0 {
            free = seen + scanned.free;
        }
        seen += scanned.seen;
        assert!(scanned.free <= scanned.seen && seen <= here);
        if scanned.fault.is_some() {
            return (free, scanned.fault);
        }
    }
    (free, None)
}

/// The whole requests, by the letter of RFC 9112; and whether another protocol may follow.
fn requests(mut rest: &[u8]) -> (Vec<Seen>, bool) {
    let mut all = Vec::new();
    loop {
        while let Some(tail) = rest.strip_prefix(b"\r\n") {
            rest = tail;
        }
        let mut fields = [httparse::EMPTY_HEADER; 1000];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(head)) = request.parse(rest) else {
            return (all, false);
        };
        let field = |name: &str| {
            request
                .headers
                .iter()
                .find(|field| field.name.eq_ignore_ascii_case(name))
        };
        let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        let other = |field: &httparse::Header<'_>| !field.value.eq_ignore_ascii_case(b"h2c");
        // In HTTP/1.0 `Upgrade` says nothing.
        let upgrade = request.version == Some(1) && field("upgrade").is_some_and(other);
        let tunnel = method == "CONNECT" || upgrade;
        let body = match (field("transfer-encoding"), field("content-length")) {
            (Some(_), _) => chunks(&rest[head..]),
            (None, Some(length)) => {
                let length: u64 = std::str::from_utf8(length.value)
                    .unwrap_or_default()
                    .parse()
                    .unwrap_or(0);
                usize::try_from(length).ok().map(|length| (length, length))
            }
            (None, None) => Some((0, 0)),
        };
        let Some((length, read)) = body.filter(|(_, read)| *read <= rest.len() - head) else {
            return (all, tunnel);
        };
        // "http://a" is "http://a/" to the library.
        let target = target
            .parse()
            .map_or(target.to_owned(), |uri: http::Uri| uri.to_string());
        all.push((method.to_owned(), target, length));
        if tunnel {
            return (all, true);
        }
        rest = &rest[head + read..];
    }
}

/// The length of a whole chunked body, and how many bytes it takes.
fn chunks(body: &[u8]) -> Option<(usize, usize)> {
    let (mut at, mut length) = (0, 0_usize);
    let line = |at: usize| -> Option<&[u8]> {
        let rest = body.get(at..)?;
        Some(&rest[..rest.windows(2).position(|two| two == b"\r\n")?])
    };
    loop {
        let head = line(at)?;
        let digits = head.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let size = usize::from_str_radix(std::str::from_utf8(&head[..digits]).ok()?, 16).ok()?;
        at += head.len() + 2;
        if size == 0 {
            break;
        }
        at = at.checked_add(size)?.checked_add(2)?;
        length += size;
        body.get(..at)?;
    }
    loop {
        let trailer = line(at)?;
        at += trailer.len() + 2;
        if trailer.is_empty() {
            return Some((length, at));
        }
    }
}

/// What hyper makes of it, set up as the sidecar's server is.
fn served(bytes: &[u8]) -> Vec<Seen> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = Rc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                let (method, target) = (head.method.to_string(), head.uri.to_string());
                seen.borrow_mut().push((method, target, body.to_bytes().len()));
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = http1::Builder::new()
        .preserve_header_case(true)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(Client(bytes), service);
    let mut connection = pin!(connection);
    // Polled as long as it has something to do: it waits for more in the end.
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Arc::clone(&woken).into();
    while woken.0.swap(false, Relaxed) && connection.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {}
    seen.take()
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// Sends its bytes, takes every answer, and does not close.
struct Client<'a>(&'a [u8]);

impl Read for Client<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let (now, later) = self.0.split_at(self.0.len().min(buf.remaining()));
        buf.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Client<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
