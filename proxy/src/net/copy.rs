//! Moves bytes both ways between two connections until both have ended.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a direction begins with: enough for request-and-answer protocols.
const SMALL: usize = 8 * 1024;
/// What it grows to while reads fill it: bulk transfers are limited by it.
const LARGE: usize = 128 * 1024;

/// How a tunnel ended.
#[derive(Debug)]
pub struct Copied {
    /// Bytes from the first connection to the second.
    pub sent: u64,
    pub received: u64,
    /// `Err`: one of the connections broke; both should be reset.
    pub result: io::Result<()>,
}

/// Copies between `a` and `b`. The end of one direction is passed on, and the other direction goes on (half-close).
pub async fn both_ways<A, B>(a: &mut A, b: &mut B) -> Copied
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut there = OneWay::new();
    let mut back = OneWay::new();
    let result = poll_fn(|cx| {
        let sent = there.poll(cx, a, b)?;
        let received = back.poll(cx, b, a)?;
        if sent.is_ready() && received.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    })
    .await;
    Copied {
        sent: there.total,
        received: back.total,
        result,
    }
}

struct OneWay {
    /// Empty while there is nothing to move: an idle connection holds no buffer.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    size: usize,
    total: u64,
    needs_flush: bool,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Moving,
    /// The reader has ended; the writer is being told.
    Ending,
    Done,
}

impl OneWay {
    fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            size: SMALL,
            total: 0,
            needs_flush: false,
            state: State::Moving,
        }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while self.state == State::Moving {
            if self.start == self.end && !self.fill(cx, reader, writer)? {
                return Poll::Pending;
            }
            while self.start < self.end {
                let n = ready!(Pin::new(&mut *writer).poll_write(cx, &self.buffer[self.start..self.end]))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += n;
                self.total += n as u64;
                self.needs_flush = true;
            }
        }
        if self.state == State::Ending {
            match ready!(Pin::new(writer).poll_shutdown(cx)) {
                // The other end has gone already: then it needs not be told.
                Err(e) if e.kind() != io::ErrorKind::NotConnected => return Poll::Ready(Err(e)),
                _ => self.state = State::Done,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once. `false`: there is nothing yet, and the task will be woken.
    fn fill<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> io::Result<bool>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.buffer.is_empty() {
            self.buffer = vec![0; self.size];
        }
        let mut buf = ReadBuf::new(&mut self.buffer);
        match Pin::new(reader).poll_read(cx, &mut buf) {
            Poll::Ready(result) => {
                result?;
                let n = buf.filled().len();
                (self.start, self.end) = (0, n);
                if n == 0 {
                    self.state = State::Ending;
                    self.buffer = Vec::new();
                } else if n == self.size && self.size < LARGE {
                    self.size = (self.size * 4).min(LARGE);
                    self.buffer.resize(self.size, 0);
                }
                Ok(true)
            }
            Poll::Pending => {
                self.buffer = Vec::new();
                self.size = SMALL;
                if self.needs_flush && Pin::new(writer).poll_flush(cx)?.is_ready() {
                    self.needs_flush = false;
                }
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::both_ways;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn half_close_lets_the_other_direction_finish() {
        let (mut client, mut near) = duplex(1024);
        let (mut far, mut server) = duplex(1024);
        let tunnel = tokio::spawn(async move { both_ways(&mut near, &mut far).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
        let copied = tunnel.await.unwrap();
        assert!(copied.result.is_ok());
        assert_eq!((copied.sent, copied.received), (8, 6));
    }

    #[tokio::test]
    async fn large_streams_arrive_whole() {
        let (mut client, mut near) = duplex(1 << 20);
        let (mut far, mut server) = duplex(1 << 16);
        let tunnel = tokio::spawn(async move { both_ways(&mut near, &mut far).await });
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
        drop(server);
        drop(writer.await.unwrap());
        assert_eq!(tunnel.await.unwrap().sent, 3_000_000);
    }
}
