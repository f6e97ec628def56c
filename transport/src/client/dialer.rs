//! How a pool comes to a new connection.

use std::net::SocketAddr;
use std::time::Duration;

use crate::error::ProxyError;
use crate::net::{HttpVersion, Stream};

/// Makes connections to one peer, for a request whose pool has none that it may use.
pub trait Dialer {
    /// Where the peer is.
    fn address(&self) -> SocketAddr;

    /// Of the credentials that the peer is shown. A connection of an older generation is not used again.
    fn generation(&self) -> u64;

    /// For one connection: until [`Dialer::connect`] has it, and in HTTP/2 until the peer's SETTINGS have come.
    fn limit(&self) -> Duration;

    /// A new connection, its handshake included. It owns what it needs, for it may be made for other requests than the one
    /// that asked for it first.
    fn connect(&self, version: HttpVersion) -> impl Future<Output = Result<Stream, ProxyError>> + 'static;
}
