//! A client's HTTP/1 connection, as hyper is to see it: whole heads that are in order, and no other bytes before them.
//!
//! What [`Scanner`] refuses is replaced by a request of our own, the [`STAND_IN`], which hyper hands to the service like any
//! other, in its turn; so earlier requests on the connection are answered first, and the refusal goes the way of every
//! answer, with its log line and its metric. Nothing that comes after it is read.
//!
//! A head has [`HEAD_TIME`] from its first byte to its last. The timer exists only while a part of a head is here and the
//! rest is not: a head that comes in one piece never has one, nor has a connection between two requests.
//!
//! hyper takes the end of a client's half for a client that has gone. Where it has not (see [`Progress`](crate::body::Progress)), hyper does
//! not hear of the end until the response is there.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::fault::Fault;
use super::framing::{Scanned, Scanner};
use super::watch::{STAND_IN, Watch};
use crate::net::{LINGER_BYTES, LINGER_TIME, writes_to_inner};
use crate::room::{Heads, Held};

/// From the first byte of a head to its last.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(10);

/// A connection that is looked at while it is read.
pub(super) struct Guard<IO> {
    io: IO,
    scanner: Scanner,
    /// Bytes that hyper has not got: those that wait for the rest of their head, and before them those that are `free`.
    /// Empty, and without memory, as long as heads come in one piece.
    held: BytesMut,
    seen: usize,
    free: usize,
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes that were read and thrown away at the end, and how long that may go on.
    lingered: usize,
    linger: Option<Pin<Box<Sleep>>>,
    /// Whether a client may end its half and wait. A sidecar never does: it closes a connection whose client has gone.
    half_closes: bool,
    /// When the last byte of the newest request was read.
    complete: Option<Instant>,
    /// The client has ended its half, and may wait for so long.
    patience: Option<Pin<Box<Sleep>>>,
    /// What `held` is counted in, and how many bytes it may have where that is less than for others.
    counted: Held,
    most_held: Option<usize>,
    watch: Arc<Watch>,
}

impl<IO> Guard<IO> {
    /// Guards a connection from its first byte. `half_closes`: its client may end its half and wait for the answer. What is held
    /// is counted in `heads`; `most_held`: of a client whose requests will be refused as plaintext, no more is held than this.
    pub(super) fn new(io: IO, half_closes: bool, heads: Heads, most_held: Option<usize>) -> (Self, Arc<Watch>) {
        let watch = Arc::new(Watch::default());
        let guard = Self {
            io,
            scanner: Scanner::default(),
            held: BytesMut::new(),
            seen: 0,
            free: 0,
            timer: None,
            lingered: 0,
            linger: None,
            half_closes,
            complete: None,
            patience: None,
            counted: Held::new(heads),
            most_held,
            watch: Arc::clone(&watch),
        };
        (guard, watch)
    }

    fn scan(&mut self, bytes: &[u8]) -> Scanned {
        if self.watch.resumes() {
            self.scanner.resume();
        }
        let scanned = self.scanner.scan(bytes);
        if self.is_complete() {
            self.complete = Some(Instant::now());
        }
        if let Some(beyond) = self.scanner.tunnel() {
            self.watch.ask_for_tunnel(beyond);
        }
        scanned
    }

    /// Nothing more is read. In a head, the stand-in takes its place; in a body there is no place for one.
    fn refuse(&mut self, fault: Fault) {
        self.held.truncate(self.free);
        if self.scanner.in_head() {
            self.held.extend_from_slice(STAND_IN);
            self.free = self.held.len();
        } else {
            self.watch.end_in_body();
        }
        self.watch.refuse(fault);
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let n = self.free.min(buf.remaining());
        buf.put_slice(&self.held[..n]);
        self.held.advance(n);
        self.free -= n;
        self.seen = self.seen.saturating_sub(n);
        if self.held.is_empty() {
            self.held = BytesMut::new();
            self.timer = None;
        }
        // Less than before: there is room for it.
        let _ = self.counted.set(self.held.capacity());
    }

    /// Counts what is held. Why it may not be, if it is too much.
    fn count(&mut self) -> Option<Fault> {
        if self.held.len() == self.free {
            return None;
        }
        if self.scanner.in_head() && self.most_held.is_some_and(|most| self.held.len() > most) {
            return Some(Fault::Plaintext);
        }
        (!self.counted.set(self.held.capacity())).then_some(Fault::NoRoom)
    }

    /// Whether the requests that were begun have their end.
    fn is_complete(&self) -> bool {
        self.scanner.between_requests() || self.scanner.tunnel().is_some()
    }

    /// The client has ended its half. Whether that ends the connection.
    fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        let progress = &self.watch.progress;
        if !self.half_closes || !self.is_complete() || !progress.in_hand() {
            return true;
        }
        if self.patience.is_none() {
            let since = self.complete.map_or(Duration::MAX, |complete| complete.elapsed());
            let Some(patience) = progress.patience(since) else {
                return true;
            };
            progress.half_closed();
            self.patience = Some(Box::pin(tokio::time::sleep(patience)));
        }
        let patience = self.patience.as_mut().is_some_and(|p| p.as_mut().poll(cx).is_pending());
        // A client that goes while it gets a response is noticed by who writes to it.
        !patience && !progress.is_answered()
    }

    fn out_of_time(&mut self, cx: &mut Context<'_>) -> bool {
        if self.held.is_empty() || !self.scanner.in_head() {
            self.timer = None;
            return false;
        }
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(HEAD_TIME)));
        timer.as_mut().poll(cx).is_ready()
    }
}

impl<IO> Guard<IO> {
    /// The connection itself.
    pub(super) fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO> Drop for Guard<IO> {
    fn drop(&mut self) {
        self.watch.close();
    }
}

impl<IO: AsyncRead + Unpin> Guard<IO> {
    /// Reads from the connection. `Ready(true)`: there is something to give, or the end.
    fn fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        if !self.held.is_empty() {
            if ready!(pin!(self.io.read_buf(&mut self.held)).poll(cx))? == 0 {
                return Poll::Ready(Ok(true));
            }
            let held = std::mem::take(&mut self.held);
            let scanned = self.scan(&held[self.seen..]);
            self.held = held;
            if scanned.free > 0 {
                self.free = self.seen + scanned.free;
                // What is left is of another head, which has a time of its own.
                self.timer = None;
            }
            self.seen += scanned.seen;
            let fault = scanned.fault.or_else(|| self.count());
            fault.into_iter().for_each(|fault| self.refuse(fault));
            return Poll::Ready(Ok(false));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        if new.is_empty() {
            return match self.is_gone(cx) {
                true => Poll::Ready(Ok(true)),
                false => Poll::Pending,
            };
        }
        let scanned = self.scan(new);
        if scanned.free < new.len() {
            self.held.extend_from_slice(&new[scanned.free..]);
            self.seen = scanned.seen - scanned.free;
            buf.set_filled(before + scanned.free);
        }
        let fault = scanned.fault.or_else(|| self.count());
        fault.into_iter().for_each(|fault| self.refuse(fault));
        Poll::Ready(Ok(scanned.free > 0))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.free > 0 {
                this.give(buf);
                return Poll::Ready(Ok(()));
            }
            if let Some(fault) = this.watch.refused() {
                if this.watch.ended_in_body() {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault.error())));
                }
                // The answer is on its way, and the end after it.
                return Poll::Pending;
            }
            match this.fill(cx, buf) {
                Poll::Ready(Ok(false)) => {}
                Poll::Ready(done) => return Poll::Ready(done.map(|_| ())),
                Poll::Pending if this.out_of_time(cx) => this.refuse(Fault::TooSlow),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    writes_to_inner!();

    /// A client that still sends is listened to for a while: a connection that is closed while bytes are unread is reset,
    /// and the answer may be lost with it.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        if this.watch.may_be_tunnel() {
            // Half of a tunnel: the other half goes on.
            return Poll::Ready(Ok(()));
        }
        let sends = this.watch.refused().is_some() || !this.scanner.between_requests();
        let mut waste = [0; 4096];
        while this.lingered < LINGER_BYTES {
            let mut waste = ReadBuf::new(&mut waste);
            match Pin::new(&mut this.io).poll_read(cx, &mut waste) {
                Poll::Ready(Ok(())) if !waste.filled().is_empty() => {
                    this.lingered += waste.filled().len();
                }
                Poll::Pending if sends || this.lingered > 0 => {
                    let limit = || Box::pin(tokio::time::sleep(LINGER_TIME));
                    ready!(this.linger.get_or_insert_with(limit).as_mut().poll(cx));
                    break;
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Fault, Guard, HEAD_TIME, Heads, STAND_IN, Watch};
    use crate::body::{ANSWER_TIME, LAST_CHANCE, SAME_MOMENT};
    use http::Method;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n";

    fn guarded() -> (DuplexStream, Guard<DuplexStream>, Arc<Watch>) {
        let (client, near) = tokio::io::duplex(1 << 20);
        let (guard, watch) = Guard::new(near, true, Heads::for_test(1 << 20), None);
        (client, guard, watch)
    }

    async fn read(guard: &mut Guard<DuplexStream>) -> Vec<u8> {
        let mut buffer = [0; 1024];
        let n = guard.read(&mut buffer).await.unwrap();
        buffer[..n].to_vec()
    }

    fn refused() -> Method {
        Method::from_bytes(b"REFUSED").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn heads_come_whole_and_bodies_at_once() {
        let (mut client, mut guard, _) = guarded();
        for byte in HEAD {
            assert!(futures_util::poll!(std::pin::pin!(read(&mut guard))).is_pending());
            client.write_all(&[*byte]).await.unwrap();
        }
        assert_eq!(read(&mut guard).await, HEAD);
        assert!(guard.held.capacity() == 0 && guard.timer.is_none());
        client.write_all(b"abc").await.unwrap();
        assert_eq!(read(&mut guard).await, b"abc");
        client.write_all(b"def").await.unwrap();
        client.write_all(&HEAD[..20]).await.unwrap();
        assert_eq!(read(&mut guard).await, b"def");
        client.write_all(&HEAD[20..]).await.unwrap();
        let mut small = vec![0; 10];
        guard.read_exact(&mut small).await.unwrap();
        assert_eq!([small, read(&mut guard).await].concat(), HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_part_of_a_head_has_a_time_limit() {
        let (mut client, mut guard, watch) = guarded();
        let long = HEAD_TIME * 100;
        assert!(
            tokio::time::timeout(long, read(&mut guard)).await.is_err(),
            "before a request"
        );
        client.write_all(HEAD).await.unwrap();
        assert_eq!(read(&mut guard).await, HEAD);
        assert!(tokio::time::timeout(long, read(&mut guard)).await.is_err(), "in a body");
        client.write_all(b"abcdef").await.unwrap();
        assert_eq!(read(&mut guard).await, b"abcdef");
        client.write_all(b"G").await.unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(read(&mut guard).await, STAND_IN);
        assert_eq!(began.elapsed(), HEAD_TIME);
        assert_eq!(watch.fault(&refused()), Some(Fault::TooSlow));
        assert_eq!(watch.fault(&Method::GET), None, "an earlier request");
    }

    #[tokio::test(start_paused = true)]
    async fn each_head_has_a_time_of_its_own() {
        let (mut client, mut guard, watch) = guarded();
        let get: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let (first, rest) = get.split_at(9);
        client.write_all(first).await.unwrap();
        let almost = HEAD_TIME - std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(almost, read(&mut guard)).await.is_err());
        // The rest of it, and with it a part of the next.
        client.write_all(&[rest, first].concat()).await.unwrap();
        assert_eq!(read(&mut guard).await, get);
        assert!(tokio::time::timeout(almost, read(&mut guard)).await.is_err());
        client.write_all(rest).await.unwrap();
        assert_eq!(read(&mut guard).await, get);
        assert_eq!(watch.fault(&refused()), None);
    }

    #[tokio::test]
    async fn a_refused_head_has_a_stand_in() {
        let (mut client, mut guard, watch) = guarded();
        client
            .write_all(&[HEAD, b"abcdef", b"GET / HTTP/9\r\n\r\nGET / HTTP/1.1\r\n"].concat())
            .await
            .unwrap();
        assert_eq!(read(&mut guard).await, [HEAD, b"abcdef"].concat());
        assert_eq!(read(&mut guard).await, STAND_IN);
        assert!(matches!(watch.fault(&refused()), Some(Fault::Malformed(_))));
        assert!(futures_util::poll!(std::pin::pin!(read(&mut guard))).is_pending());
    }

    /// A client that says all at once: a request, and the end of its half.
    async fn half_closed(passed_on: bool) -> (DuplexStream, Guard<DuplexStream>, Arc<Watch>) {
        let (mut client, mut guard, watch) = guarded();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        client.shutdown().await.unwrap();
        assert!(!read(&mut guard).await.is_empty());
        watch.progress.begin();
        watch.progress.sent_body();
        if passed_on {
            watch.progress.sent_head();
        }
        (client, guard, watch)
    }

    #[tokio::test(start_paused = true)]
    async fn who_ends_its_half_with_its_request_is_not_gone_yet() {
        for (passed_on, limit) in [(false, ANSWER_TIME), (true, LAST_CHANCE)] {
            let (_client, mut guard, watch) = half_closed(passed_on).await;
            let began = tokio::time::Instant::now();
            assert_eq!(read(&mut guard).await, b"");
            assert_eq!(began.elapsed(), limit);
            assert!(
                watch.progress.answered(),
                "the answer does not say that it is the last one"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_has_begun_has_all_the_time() {
        let (_client, mut guard, watch) = half_closed(true).await;
        assert!(futures_util::poll!(std::pin::pin!(read(&mut guard))).is_pending());
        watch.progress.answered();
        assert!(tokio::time::timeout(ANSWER_TIME * 100, read(&mut guard)).await.is_err());
        watch.progress.end();
        assert_eq!(read(&mut guard).await, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn who_ends_its_half_later_is_gone() {
        let (_client, mut guard, watch) = half_closed(true).await;
        tokio::time::advance(SAME_MOMENT).await;
        let gone = futures_util::poll!(std::pin::pin!(read(&mut guard)));
        assert_eq!(gone, std::task::Poll::Ready(vec![]));
        assert!(!watch.progress.answered());
    }

    #[tokio::test]
    async fn a_sidecar_and_a_client_in_the_middle_of_something_are_gone_at_once() {
        let (client, near) = tokio::io::duplex(1 << 20);
        let (mut guard, watch) = Guard::new(near, false, Heads::for_test(1 << 20), None);
        drop(client);
        watch.progress.begin();
        assert_eq!(read(&mut guard).await, b"", "a sidecar");

        let (mut client, mut guard, watch) = guarded();
        client.write_all(&[HEAD, b"abc"].concat()).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read(&mut guard).await, [HEAD, b"abc"].concat());
        watch.progress.begin();
        assert_eq!(read(&mut guard).await, b"", "a body is not complete");
    }
}
