//! Moves bytes both ways between two connections until both have ended.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::{Buffer, SIZE};

/// Fewer bytes than this that a writer does not take now wait in a buffer of their own size.
const FEW: usize = SIZE / 4;

/// How a tunnel ended.
#[derive(Debug)]
pub struct Copied {
    /// Bytes from the first connection to the second.
    pub sent: u64,
    /// Bytes from the second connection to the first.
    pub received: u64,
    /// `Err`: one of the connections broke; both should be reset.
    pub result: io::Result<()>,
}

/// Who counts what a tunnel moves, while it does.
pub trait Meter {
    /// So many bytes more went from the first connection to the second, and back.
    fn moved(&self, sent: u64, received: u64);
}

/// Nobody.
impl Meter for () {
    fn moved(&self, _: u64, _: u64) {}
}

/// Copies between `a` and `b`. The end of one direction is passed on, and the other direction goes on (half-close). A
/// connection that takes no more bytes may have said something before it broke: that is passed on first, and an end is
/// not, because the stream is not complete.
pub async fn both_ways<A, B>(a: &mut A, b: &mut B, meter: &impl Meter) -> Copied
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut there = OneWay::new();
    let mut back = OneWay::new();
    let result = poll_fn(|cx| {
        let before = (there.total, back.total);
        let sent = there.poll(cx, a, b, back.broken.is_none());
        let received = match sent {
            Poll::Ready(Err(_)) => Poll::Pending,
            _ => back.poll(cx, b, a, there.broken.is_none()),
        };
        let moved = (there.total - before.0, back.total - before.1);
        if moved != (0, 0) {
            meter.moved(moved.0, moved.1);
        }
        let (sent, received) = (sent?, received?);
        if sent.is_ready() && received.is_ready() {
            let broken = there.broken.take().or(back.broken.take());
            Poll::Ready(broken.map_or(Ok(()), Err))
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
    /// `None` while there is nothing to move: an idle connection holds no buffer.
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    total: u64,
    needs_flush: bool,
    state: State,
    /// Why the writer takes no more.
    broken: Option<io::Error>,
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
            buffer: None,
            start: 0,
            end: 0,
            total: 0,
            needs_flush: false,
            state: State::Moving,
            broken: None,
        }
    }

    /// Ready: it has ended, or the writer is broken. `Err`: the reader is. `pass_end`: whether the writer is to be told of
    /// the reader's end.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        pass_end: bool,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while self.state == State::Moving {
            if self.buffer.is_none() && !self.fill(cx, reader, writer)? {
                return Poll::Pending;
            }
            if let Err(error) = ready!(self.drain(cx, writer)) {
                self.end_with(error);
            }
        }
        if self.state == State::Ending && pass_end {
            match ready!(Pin::new(writer).poll_shutdown(cx)) {
                // The other end has gone already: then it needs not be told.
                Err(e) if e.kind() != io::ErrorKind::NotConnected => self.end_with(e),
                _ => self.state = State::Done,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was read.
    fn drain<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>> {
        while let Some(buffer) = &self.buffer {
            let rest = &buffer[self.start..self.end];
            match Pin::new(&mut *writer).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(written) => {
                    let n = written?;
                    self.start += n;
                    self.total += n as u64;
                    self.needs_flush = true;
                    if self.start == self.end {
                        self.buffer = None;
                    }
                }
                Poll::Pending => {
                    if rest.len() < FEW && buffer.len() == SIZE {
                        let few = Buffer::of(rest);
                        (self.start, self.end, self.buffer) = (0, rest.len(), Some(few));
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end_with(&mut self, error: io::Error) {
        self.broken = Some(error);
        self.state = State::Done;
        self.buffer = None;
    }

    /// Reads once. `false`: there is nothing yet, and the task will be woken.
    fn fill<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> io::Result<bool>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buffer = Buffer::take();
        let mut space = ReadBuf::new(&mut buffer);
        match Pin::new(reader).poll_read(cx, &mut space) {
            Poll::Ready(result) => {
                result?;
                let n = space.filled().len();
                if n == 0 {
                    self.state = State::Ending;
                } else {
                    (self.start, self.end, self.buffer) = (0, n, Some(buffer));
                }
                Ok(true)
            }
            Poll::Pending => {
                if self.needs_flush {
                    match Pin::new(writer).poll_flush(cx) {
                        Poll::Ready(Err(error)) => self.end_with(error),
                        Poll::Ready(Ok(())) => self.needs_flush = false,
                        Poll::Pending => {}
                    }
                }
                Ok(self.state == State::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::both_ways;
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf, duplex};

    #[tokio::test]
    async fn half_close_lets_the_other_direction_finish() {
        let (mut client, mut near) = duplex(1024);
        let (mut far, mut server) = duplex(1024);
        let tunnel = tokio::spawn(async move { both_ways(&mut near, &mut far, &()).await });
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
        let tunnel = tokio::spawn(async move { both_ways(&mut near, &mut far, &()).await });
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

    #[tokio::test]
    async fn what_a_writer_keeps_for_later_is_flushed_before_a_wait() {
        let (mut client, mut near) = duplex(1024);
        let (far, mut server) = duplex(1024);
        let tunnel = tokio::spawn(async move { both_ways(&mut near, &mut BufWriter::new(far), &()).await });
        client.write_all(b"question").await.unwrap();
        let mut question = [0; 8];
        let heard = tokio::time::timeout(std::time::Duration::from_secs(20), server.read_exact(&mut question));
        heard.await.expect("it was not flushed").unwrap();
        assert_eq!(&question, b"question");
        drop((client, server));
        assert!(tunnel.await.unwrap().result.is_ok());
    }

    /// A connection whose write side is broken, with something left to be read.
    struct LastWords(&'static [u8]);

    impl AsyncRead for LastWords {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let n = self.0.len().min(4);
            buf.put_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for LastWords {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn last_words_are_passed_on_and_no_end() {
        let (mut client, mut near) = duplex(1024);
        client.write_all(b"more").await.unwrap();
        let copied = both_ways(&mut near, &mut LastWords(b"421 too busy\r\n"), &()).await;
        assert_eq!(copied.result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut heard = [0; 14];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"421 too busy\r\n");
        let end = tokio::time::timeout(std::time::Duration::from_millis(1), client.read_u8()).await;
        assert!(end.is_err(), "the end of a broken stream was passed on");
        drop(near);
    }
}
