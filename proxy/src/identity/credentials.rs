use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::{ReadAhead, linger};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, DnsName, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::MeshProtocol;
use super::clock::{Clock, written};
use super::tls::{client_config, explain, provider, server_config};
use super::trust::Trust;
use super::verify::Leaf;
use crate::telemetry::metrics::Handshake;

/// What a client may send in its handshake: a ClientHello has about 1.7 KB, and a chain of four certificates 8 KB. Without this
/// bound, rustls would keep a message of 64 KB that never ends.
const HANDSHAKE_BYTES: usize = 24 * 1024;

/// An SVID: a chain, the leaf first, and the leaf's key.
#[derive(Clone)]
pub struct Svid {
    pub(super) leaf: Leaf,
    key: Arc<CertifiedKey>,
}

/// An SVID with its key, and whom it trusts: one state of both.
pub struct Credentials {
    /// Who this sidecar is.
    pub id: SpiffeId,
    /// Changes with every new SVID and with every new trust bundle. A pooled connection of another generation is not
    /// used again.
    pub generation: u64,
    /// When the SVID ends.
    pub not_after: SystemTime,
    /// By what peers are checked.
    pub trust: Arc<Trust>,
    clock: Clock,
    /// By protocol, in the order of [`MeshProtocol::ALL`]. They share their tickets.
    clients: [Arc<ClientConfig>; 3],
    /// To the controller.
    control: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

/// A handshake that failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct HandshakeError {
    /// What is counted.
    pub cause: Handshake,
    /// [`Reason::TlsFailed`] or [`Reason::IdentityMismatch`], and the sentence.
    pub error: ProxyError,
}

impl HandshakeError {
    fn new(cause: Handshake, detail: String) -> Self {
        let reason = match cause {
            Handshake::IdentityMismatch => Reason::IdentityMismatch,
            _ => Reason::TlsFailed,
        };
        Self {
            cause,
            error: ProxyError::new(reason, detail),
        }
    }
}

impl From<HandshakeError> for ProxyError {
    fn from(failed: HandshakeError) -> Self {
        failed.error
    }
}

impl Svid {
    /// Takes a chain and its key, PKCS#8.
    ///
    /// # Errors
    /// When the leaf is no SVID, or the key is not its key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, String> {
        let leaf = chain.first().ok_or("the chain is empty")?;
        let leaf = Leaf::parse(leaf).map_err(|error| error.to_string())?;
        let key =
            CertifiedKey::from_der(chain, key, provider()).map_err(|error| format!("the key is wrong: {error}"))?;
        Ok(Self {
            leaf,
            key: Arc::new(key),
        })
    }
}

impl Credentials {
    /// Makes everything that handshakes need.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn new(svid: &Svid, trust: &Arc<Trust>, generation: u64, clock: &Clock) -> Result<Self, String> {
        let verifier = trust.verifier();
        let base = client_config(verifier, Some(&svid.key), b"", clock)?;
        let clients = MeshProtocol::ALL.map(|protocol| {
            let mut config = base.clone();
            config.alpn_protocols = vec![protocol.alpn().to_vec()];
            Arc::new(config)
        });
        Ok(Self {
            id: svid.leaf.id.clone(),
            generation,
            not_after: svid.leaf.not_after,
            trust: Arc::clone(trust),
            clock: clock.clone(),
            clients,
            control: Arc::new(client_config(verifier, Some(&svid.key), b"h2", clock)?),
            server: Arc::new(server_config(verifier, &svid.key, clock)?),
        })
    }

    /// Client side: TLS 1.3 with our SVID. After the handshake, a resumed one too, the peer's SPIFFE ID equals `peer`.
    /// Has no timeout of its own.
    ///
    /// # Errors
    /// [`Reason::TlsFailed`] and [`Reason::IdentityMismatch`].
    pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: IO,
        address: IpAddr,
        peer: &SpiffeId,
        protocol: MeshProtocol,
    ) -> Result<client::TlsStream<IO>, HandshakeError> {
        let config = &self.clients[protocol as usize];
        connect_as(config, io, address, peer, &self.clock).await
    }

    /// Server side: the client must present an SVID of our trust domain. Gives the client's ID and the protocol that it
    /// asked for. Has no timeout of its own. A client that fails is told why, in an alert, and may take 1 s to hear it.
    ///
    /// # Errors
    /// [`Reason::TlsFailed`] and [`Reason::IdentityMismatch`].
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: IO,
    ) -> Result<(server::TlsStream<ReadAhead<IO>>, SpiffeId, MeshProtocol), HandshakeError> {
        let failed = |cause, words: String| HandshakeError::new(cause, format!("TLS from a client failed: {words}"));
        let io = ReadAhead::limited(io, HANDSHAKE_BYTES);
        let mut stream = match TlsAcceptor::from(self.server.clone()).accept(io).into_fallible().await {
            Ok(stream) => stream,
            Err((error, mut io)) => {
                io.unlimit();
                linger(&mut io).await;
                let failure = explain(&error);
                return Err(failed(failure.cause, failure.words));
            }
        };
        stream.get_mut().0.unlimit();
        let connection = stream.get_ref().1;
        let id = peer_id(connection.peer_certificates(), &self.clock).map_err(|(cause, words)| failed(cause, words))?;
        let alpn = connection.alpn_protocol();
        let protocol = MeshProtocol::ALL.into_iter().find(|p| Some(p.alpn()) == alpn);
        let none = || {
            let words = format!("{id} asked for no protocol of the mesh");
            failed(Handshake::NoProtocol, words)
        };
        let protocol = protocol.ok_or_else(none)?;
        Ok((stream, id, protocol))
    }

    /// The clock by which it judges.
    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// For connections to the controller: ALPN is h2.
    pub(crate) fn control(&self) -> &Arc<ClientConfig> {
        &self.control
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, generation {})", self.id, self.generation)
    }
}

/// A handshake that ends with exactly `peer` and the protocol that `config` offers, or not at all.
pub(crate) async fn connect_as<IO: AsyncRead + AsyncWrite + Unpin>(
    config: &Arc<ClientConfig>,
    io: IO,
    address: IpAddr,
    peer: &SpiffeId,
    clock: &Clock,
) -> Result<client::TlsStream<IO>, HandshakeError> {
    let failed = |cause, words: String| {
        let what = match cause {
            Handshake::IdentityMismatch => format!("expected {peer} at {address}: {words}"),
            _ => format!("TLS to {peer} at {address} failed: {words}"),
        };
        HandshakeError::new(cause, what)
    };
    let connector = TlsConnector::from(config.clone());
    let name = session_name(address, peer).map_err(|words| failed(Handshake::Other, words))?;
    let stream = connector.connect(name, io).await.map_err(|error| {
        let failure = explain(&error);
        failed(failure.cause, failure.words)
    })?;
    let connection = stream.get_ref().1;
    let found = peer_id(connection.peer_certificates(), clock).map_err(|(cause, words)| failed(cause, words))?;
    if found != *peer {
        let words = format!(
            "expected {peer} at {address}, found {found}: check that no pod of another service account has taken the \
             address, and that the controller knows the pod"
        );
        return Err(HandshakeError::new(Handshake::IdentityMismatch, words));
    }
    if connection.alpn_protocol() != config.alpn_protocols.first().map(Vec::as_slice) {
        let words = "the peer did not agree to the mesh's protocol".to_owned();
        return Err(failed(Handshake::NoProtocol, words));
    }
    Ok(stream)
}

/// Who the peer is, also after a resumed handshake, in which no certificate is sent: rustls gives the chain of the
/// handshake that made the ticket. A ticket does not outlive the SVID it was made with.
fn peer_id(chain: Option<&[CertificateDer<'_>]>, clock: &Clock) -> Result<SpiffeId, (Handshake, String)> {
    let none = || (Handshake::NoCertificate, "the peer shows no SVID".to_owned());
    let leaf = chain.and_then(<[_]>::first).ok_or_else(none)?;
    let leaf = Leaf::parse(leaf).map_err(|error| (error.cause(), error.to_string()))?;
    let now = clock.now();
    if leaf.not_after < now {
        let words = format!(
            "the SVID of {} ended at {}, and the clock here says {}",
            leaf.id,
            written(leaf.not_after),
            written(now)
        );
        return Err((Handshake::Expired, words));
    }
    Ok(leaf.id)
}

/// Names a peer for the store of tickets, which takes nothing but names and addresses: two sidecars on one address (a
/// standalone mesh) must not take each other's. A collision costs a full handshake; the identity is checked in any case.
fn session_name(address: IpAddr, peer: &SpiffeId) -> Result<ServerName<'static>, String> {
    let mut hasher = DefaultHasher::new();
    (address, peer).hash(&mut hasher);
    let name = format!("{:016x}.peer", hasher.finish());
    DnsName::try_from(name)
        .map(ServerName::DnsName)
        .map_err(|error| format!("a session has no name: {error}"))
}
