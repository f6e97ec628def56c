//! Connections: how they are accepted, what they carry, and how bytes are moved between two of them.

/// The methods of `AsyncWrite` that write, for a connection with another one as its field `io`: for the types that change
/// what is read, and nothing that is written.
macro_rules! writes_to_inner {
    () => {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::pin::Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
        }

        fn poll_write_vectored(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            bufs: &[std::io::IoSlice<'_>],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::pin::Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            self.io.is_write_vectored()
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.get_mut().io).poll_flush(cx)
        }
    };
}
pub(crate) use writes_to_inner;

mod buffer;
pub mod copy;
pub mod count;
pub mod detect;
mod linger;
pub mod listen;
pub mod prefixed;
mod quiet;
pub mod read_ahead;
pub mod server_first;
pub mod sockets;
pub mod stream;
pub mod term;
mod tunnel;
pub mod wary;

pub use copy::Meter;
pub use detect::HttpVersion;
pub use linger::{LINGER_BYTES, LINGER_TIME, linger};
pub use prefixed::Prefixed;
pub(crate) use quiet::TunnelLimit;
pub use quiet::{Idle, Quiet};
pub use read_ahead::ReadAhead;
pub use server_first::ServerFirst;
pub use stream::{Io, Stream};
pub use term::{Notice, Standing, Term, Termed};
pub use tunnel::tunnel;
