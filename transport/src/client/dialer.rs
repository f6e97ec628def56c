//! How a pool comes to a new connection.

use std::net::SocketAddr;
use std::time::Duration;

use crate::error::ProxyError;
use crate::net::count::{Bound, Place};
use crate::net::{HttpVersion, Stream};

/// Makes connections to one peer, for a request whose pool has none that it may use.
pub trait Dialer {
    /// Where the peer is.
    fn address(&self) -> SocketAddr;

    /// Of the credentials that the peer is shown. A connection of an older generation is not used again.
    fn generation(&self) -> u64;

    /// For one connection: until [`Dialer::connect`] has it, and in HTTP/2 until the peer's SETTINGS have come.
    fn limit(&self) -> Duration;

    /// What its connections are counted by, and limited: each of these at once. None: nothing.
    fn connections(&self) -> &[Bound] {
        &[]
    }

    /// A request has to wait for a connection. It is counted as long as it holds what is returned.
    ///
    /// # Errors
    /// Too many wait.
    fn wait(&self) -> Result<Option<Place>, ProxyError> {
        Ok(None)
    }

    /// Closes a connection that is idle, to whichever peer is counted together with this one, if this thread has one.
    fn make_room(&self) {}

    /// A new connection, its handshake included. It owns what it needs, for it may be made for other requests than the one
    /// that asked for it first.
    fn connect(&self, version: HttpVersion) -> impl Future<Output = Result<Stream, ProxyError>> + 'static;
}
