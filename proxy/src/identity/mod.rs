//! Who this sidecar is, and who it talks to: SVIDs, the trust bundle, and mutual TLS between sidecars.

use std::net::IpAddr;
use std::sync::Arc;

use outrigger_api::spiffe::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::ProxyError;

/// What travels inside a mesh connection. It is the ALPN protocol, so the server needs no detection and can tell a mesh
/// connection from the app's own TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeshProtocol {
    Http1,
    Http2,
    Opaque,
}

impl MeshProtocol {
    /// The ALPN protocol name (RFC 7301).
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            MeshProtocol::Http1 => b"outrigger/h1",
            MeshProtocol::Http2 => b"outrigger/h2",
            MeshProtocol::Opaque => b"outrigger/tcp",
        }
    }
}

// CONTRACT (helper "identity" fills this in; the request path uses exactly this):
//
// #[derive(Clone)] pub struct Identity(Arc<..>);      // cheap handle, one per process
// impl Identity {
//     /// The credentials now, or None while there are none.
//     pub fn current(&self) -> Option<Arc<Credentials>>;
//     /// Waits until there are credentials.
//     pub async fn ready(&self) -> Arc<Credentials>;
//     pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Credentials>>>;
// }
// pub struct Credentials { pub id: SpiffeId, pub generation: u64, pub not_after: SystemTime-like, .. rustls configs .. }
//     // `generation` changes with every new SVID *and* every new trust bundle.
// impl Credentials {
//     /// Client side: TLS 1.3 with our SVID; after the handshake (also a resumed one) the peer's SPIFFE ID must equal
//     /// `peer`, else Reason::IdentityMismatch. Errors: TlsFailed, IdentityMismatch. No timeout of its own.
//     pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(&self, io: IO, address: IpAddr, peer: &SpiffeId,
//         protocol: MeshProtocol) -> Result<tokio_rustls::client::TlsStream<IO>, ProxyError>;
//     /// Server side; the client must present an SVID of our trust domain's bundle. Gives the peer's ID and the protocol.
//     pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(&self, io: IO)
//         -> Result<(tokio_rustls::server::TlsStream<IO>, SpiffeId, MeshProtocol), ProxyError>;
// }
// /// Whether the first bytes of a connection are a ClientHello that offers one of our ALPN protocols.
// /// NeedMore until it can be said. Bounded: a hello past 16 KiB is `Other`.
// pub enum Hello { NeedMore, Mesh, OtherTls, NotTls }
// pub fn inspect_hello(bytes: &[u8]) -> Hello;
#[allow(unused)]
fn _uses(_: Option<(IpAddr, Arc<SpiffeId>, ProxyError)>) {}
#[allow(unused)]
trait Io: AsyncRead + AsyncWrite {}
