use std::net::IpAddr;
use std::time::SystemTime;

use outrigger_api::spiffe::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};

use super::MeshProtocol;
use crate::error::{ProxyError, Reason};

/// An SVID with its key, and the trust bundle that peers are checked against: one state of both.
pub struct Credentials {
    /// Who this sidecar is.
    pub id: SpiffeId,
    /// Changes with every new SVID and with every new trust bundle. A pooled connection of another generation is not
    /// used again.
    pub generation: u64,
    /// When the SVID ends.
    pub not_after: SystemTime,
    /// When each root ends.
    pub roots_not_after: Vec<SystemTime>,
}

impl Credentials {
    /// Client side: TLS 1.3 with our SVID. After the handshake, a resumed one too, the peer's SPIFFE ID equals `peer`.
    /// Has no timeout of its own.
    ///
    /// # Errors
    /// [`Reason::TlsFailed`] and [`Reason::IdentityMismatch`].
    pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        _io: IO,
        address: IpAddr,
        peer: &SpiffeId,
        _protocol: MeshProtocol,
    ) -> Result<tokio_rustls::client::TlsStream<IO>, ProxyError> {
        Err(ProxyError::new(Reason::TlsFailed, format!("{address} {peer}")))
    }

    /// Server side: the client must present an SVID of our trust domain. Gives the client's ID and the protocol that it
    /// asked for. Has no timeout of its own.
    ///
    /// # Errors
    /// [`Reason::TlsFailed`].
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        _io: IO,
    ) -> Result<(tokio_rustls::server::TlsStream<IO>, SpiffeId, MeshProtocol), ProxyError> {
        Err(ProxyError::new(Reason::TlsFailed, ""))
    }
}
