//! Larger reads for bulk transfers under TLS.
//!
//! rustls reads 4 KiB at a time, so a record of 16 KiB costs five system calls. Here one read takes several records, but only
//! once a connection has more to say than what rustls asked for: requests and answers are not copied, and an idle connection
//! holds no buffer.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::{Buffer, SIZE};

/// What rustls asks for at a time.
const ASKED: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct ReadAhead<IO> {
    io: IO,
    /// Read, and not asked for yet, with its place in the buffer.
    ahead: Option<(Buffer, Range<usize>)>,
    /// The last read took all that was asked for: there is more.
    bulk: bool,
    /// Bytes that may still be given, until there is no such limit any more.
    left: Option<usize>,
}

impl<IO> ReadAhead<IO> {
    /// Reads `io` as rustls asks, until there is more.
    pub fn new(io: IO) -> Self {
        Self {
            io,
            ahead: None,
            bulk: false,
            left: None,
        }
    }

    /// The same, and an error after so many bytes: until [`ReadAhead::unlimit`].
    pub fn limited(io: IO, bytes: usize) -> Self {
        Self {
            left: Some(bytes),
            ..Self::new(io)
        }
    }

    /// All that comes may be read.
    pub fn unlimit(&mut self) {
        self.left = None;
    }

    /// Counts what was given.
    fn give(&mut self, bytes: usize) -> io::Result<()> {
        let Some(left) = &mut self.left else { return Ok(()) };
        match left.checked_sub(bytes) {
            Some(less) => *left = less,
            None => return Err(io::Error::new(io::ErrorKind::InvalidData, "the handshake is too long")),
        }
        Ok(())
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let (buffer, mut rest) = match this.ahead.take() {
            Some(ahead) => ahead,
            None if this.bulk => {
                let mut buffer = Buffer::take();
                let mut space = ReadBuf::new(&mut buffer);
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut space))?;
                let n = space.filled().len();
                this.bulk = n >= SIZE / 4;
                (buffer, 0..n)
            }
            None => {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                // Short reads are the rule: the first bytes of a record, a small request.
                let given = buf.filled().len() - before;
                this.bulk = buf.remaining() == 0 && given >= ASKED;
                return Poll::Ready(this.give(given));
            }
        };
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&buffer[rest.start..rest.start + n]);
        rest.start += n;
        if !rest.is_empty() {
            this.ahead = Some((buffer, rest));
        }
        Poll::Ready(this.give(n))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
    writes_to_inner!();

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{ReadAhead, SIZE};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bulk_is_read_in_large_pieces_and_then_nothing_is_held() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut far = ReadAhead::new(far);
        let sent: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        near.write_all(&sent).await.unwrap();
        let mut received = Vec::new();
        let mut piece = [0; 4096];
        let mut most_ahead = 0;
        while received.len() < sent.len() {
            let n = far.read(&mut piece).await.unwrap();
            received.extend_from_slice(&piece[..n]);
            most_ahead = most_ahead.max(far.ahead.as_ref().map_or(0, |(_, rest)| rest.len()));
        }
        assert!(received == sent);
        assert!(most_ahead > SIZE / 2, "{most_ahead}");

        near.write_all(b"small").await.unwrap();
        assert_eq!(far.read(&mut piece).await.unwrap(), 5);
        let waiting = tokio::time::timeout(std::time::Duration::ZERO, far.read(&mut piece)).await;
        assert!(waiting.is_err());
        assert!(far.ahead.is_none());
        drop(near);
        assert_eq!(far.read(&mut piece).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_limit_ends_it_until_it_is_taken_away() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut far = ReadAhead::limited(far, 10_000);
        near.write_all(&[b'x'; 40_000]).await.unwrap();
        let mut piece = [0; 4096];
        assert_eq!(far.read(&mut piece).await.unwrap(), 4096);
        assert_eq!(far.read(&mut piece).await.unwrap(), 4096);
        assert!(far.read(&mut piece).await.is_err());
        far.unlimit();
        let mut rest = vec![0; 40_000 - 3 * 4096];
        far.read_exact(&mut rest).await.unwrap();
    }
}
