//! A connection of which some bytes were read ahead.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives the bytes that were read ahead once more, then the connection's own.
#[derive(Debug)]
pub struct Prefixed<IO> {
    /// Empty after it was read: then it holds no memory.
    prefix: Bytes,
    io: IO,
}

impl<IO> Prefixed<IO> {
    /// `prefix` comes before everything that `io` still has.
    pub fn new(prefix: Bytes, io: IO) -> Self {
        // An empty `Bytes` may still hold the buffer that it was made from.
        let prefix = if prefix.is_empty() { Bytes::new() } else { prefix };
        Self { prefix, io }
    }

    /// What was read ahead and not read again.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO> Prefixed<Prefixed<IO>> {
    /// One level less.
    pub fn flatten(self) -> Prefixed<IO> {
        let Prefixed { prefix, io: inner } = self;
        let prefix = match inner.prefix.is_empty() {
            true => prefix,
            false => [prefix, inner.prefix].concat().into(),
        };
        Prefixed::new(prefix, inner.io)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..n]);
        self.prefix.advance(n);
        if self.prefix.is_empty() {
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefixed<IO> {
    writes_to_inner!();

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Prefixed;
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn prefix_then_connection() {
        let (mut near, far) = tokio::io::duplex(64);
        near.write_all(b"world").await.unwrap();
        drop(near);
        let mut all = String::new();
        Prefixed::new(Bytes::from_static(b"hello "), far)
            .read_to_string(&mut all)
            .await
            .unwrap();
        assert_eq!(all, "hello world");
    }

    #[tokio::test]
    async fn two_levels_of_what_was_read_ahead() {
        let (near, far) = tokio::io::duplex(64);
        drop(near);
        let inner = Prefixed::new(Bytes::from_static(b"lo"), far);
        let mut flat = Prefixed::new(Bytes::from_static(b"hel"), inner).flatten();
        assert_eq!(flat.prefix(), b"hello");
        let mut all = String::new();
        flat.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "hello");
    }
}
