//! The kinds of connections that there are, as concrete types: no boxed trait object is called on the path.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use super::count::Held;
use super::{Prefixed, ReadAhead, Term, Termed};

/// A connection as it comes from the system.
#[derive(Debug)]
pub enum Io {
    /// From or to another process.
    Tcp(TcpStream),
    /// To this very pod: a sidecar's own connections are not captured, so it hands them to itself.
    Pipe(DuplexStream),
}

/// A connection whose bytes mean something: after TLS, if there is any.
#[derive(Debug)]
pub enum Stream {
    /// From or to anyone, in plaintext (or in the app's own TLS).
    Plain(Prefixed<Io>),
    /// From another sidecar.
    Accepted(Box<Termed<tokio_rustls::server::TlsStream<ReadAhead<Prefixed<Io>>>>>),
    /// To another sidecar.
    Connected(Box<Termed<tokio_rustls::client::TlsStream<ReadAhead<Io>>>>),
    /// To a server outside of the mesh, in TLS that this sidecar has begun.
    Secured(Box<tokio_rustls::client::TlsStream<ReadAhead<Io>>>),
    /// One of the others, of which some bytes were read ahead inside of TLS.
    Peeked(Box<Prefixed<Stream>>),
    /// One of the others, which is counted.
    Counted(Box<Counted>),
}

/// A connection with the places that it takes as long as it is open, whatever it becomes.
#[derive(Debug)]
pub struct Counted {
    io: Stream,
    _held: Held,
}

impl Io {
    /// The address at the other end, where there is one.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Io::Tcp(tcp) => tcp.peer_addr().ok(),
            Io::Pipe(_) => None,
        }
    }

    /// Waits until there is something to read, or an end.
    pub async fn readable(&self) {
        if let Io::Tcp(tcp) = self {
            // Not `TcpStream::readable`, which may be wrong, and is for a new connection. An error is found by who reads.
            let _ = tcp.peek(&mut [0]).await;
        }
    }

    /// Waits until there is something to read, and copies the beginning of it into `word`; it stays to be read. Returns how
    /// many bytes: 0 at an end.
    pub async fn first_word(&self, word: &mut [u8]) -> usize {
        match self {
            // An error is found by who reads.
            Io::Tcp(tcp) => tcp.peek(word).await.unwrap_or(0),
            Io::Pipe(_) => 0,
        }
    }
}

impl From<Io> for Stream {
    fn from(io: Io) -> Self {
        Self::Plain(Prefixed::new(bytes::Bytes::new(), io))
    }
}

impl Stream {
    /// The same, which takes these places.
    pub fn counted(self, held: Held) -> Self {
        if held.is_empty() {
            return self;
        }
        Self::Counted(Box::new(Counted { io: self, _held: held }))
    }

    /// When it is dropped, the other end sees a reset instead of an end: so that it is not taken for a complete stream.
    pub fn reset_on_close(&self) {
        let io = match self {
            Stream::Plain(io) => io.get_ref(),
            Stream::Accepted(tls) => tls.get_ref().get_ref().0.get_ref().get_ref(),
            Stream::Connected(tls) => tls.get_ref().get_ref().0.get_ref(),
            Stream::Secured(tls) => tls.get_ref().0.get_ref(),
            Stream::Peeked(io) => return io.get_ref().reset_on_close(),
            Stream::Counted(io) => return io.io.reset_on_close(),
        };
        if let Io::Tcp(tcp) = io {
            // Best effort: a socket that is closed already cannot be reset.
            let _ = tcp.set_zero_linger();
        }
    }

    /// Whether mutual TLS protects it.
    pub fn is_mesh(&self) -> bool {
        match self {
            Stream::Plain(_) | Stream::Secured(_) => false,
            Stream::Accepted(_) | Stream::Connected(_) => true,
            Stream::Peeked(io) => io.get_ref().is_mesh(),
            Stream::Counted(io) => io.io.is_mesh(),
        }
    }

    /// When it ends.
    pub fn term(&self) -> Term {
        match self {
            Stream::Plain(_) | Stream::Secured(_) => Term::default(),
            Stream::Accepted(tls) => tls.term().clone(),
            Stream::Connected(tls) => tls.term().clone(),
            Stream::Peeked(io) => io.get_ref().term(),
            Stream::Counted(io) => io.io.term(),
        }
    }
}

macro_rules! each {
    ($self:ident, $variants:ident($($variant:ident),+), $inner:ident => $call:expr) => {
        match $self.get_mut() {
            $($variants::$variant($inner) => $call,)+
        }
    };
}

macro_rules! delegate {
    ($variants:ident($($variant:ident),+)) => {
        impl AsyncRead for $variants {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                each!(self, $variants($($variant),+), io => Pin::new(io).poll_read(cx, buf))
            }
        }

        impl AsyncWrite for $variants {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                each!(self, $variants($($variant),+), io => Pin::new(io).poll_write(cx, buf))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                each!(self, $variants($($variant),+), io => Pin::new(io).poll_write_vectored(cx, bufs))
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $($variants::$variant(io) => io.is_write_vectored(),)+
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!(self, $variants($($variant),+), io => Pin::new(io).poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!(self, $variants($($variant),+), io => Pin::new(io).poll_shutdown(cx))
            }
        }
    };
}

delegate!(Io(Tcp, Pipe));
delegate!(Stream(Plain, Accepted, Connected, Secured, Peeked, Counted));

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    writes_to_inner!();

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
