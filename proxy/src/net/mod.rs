//! Connections: how they are accepted, what they carry, and how bytes are moved between two of them.

pub mod copy;
pub mod detect;
pub mod listen;
pub mod prefixed;
pub mod read_ahead;
pub mod sockets;
pub mod stream;

pub use prefixed::Prefixed;
pub use read_ahead::ReadAhead;
pub use stream::{Io, Stream};
