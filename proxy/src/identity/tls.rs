//! The rustls configurations, and rustls' errors in words.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, ServerConfig};

use super::MeshProtocol;
use super::clock::{Clock, from_unix, written};
use super::verify::{PeerError, Verifier};
use crate::telemetry::metrics::Handshake;

/// Tickets that a client keeps: for 64 peers, as rustls counts eight a peer. A ticket holds the peer's chain, about 1 KiB.
const SESSIONS: usize = 512;

/// The one cryptographic provider, aws-lc-rs; its first key exchange is X25519MLKEM768, and its first cipher AES-128: the same
/// margin as the P-256 of the certificates, and fewer rounds for each byte than rustls' own first, AES-256.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        let mut provider = default_provider();
        let first = TLS13_AES_128_GCM_SHA256.suite();
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
        Arc::new(provider)
    })
}

/// A client that offers one ALPN protocol, and an SVID where there is one. Its tickets die with it.
pub(super) fn client_config(
    verifier: &Arc<Verifier>,
    svid: Option<&Arc<CertifiedKey>>,
    alpn: &[u8],
    clock: &Clock,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_details(provider().clone(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .dangerous() // rustls' word for a verifier of one's own
        .with_custom_certificate_verifier(verifier.clone());
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.clone()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    // The name only says which ticket belongs to which peer; it is nobody else's business.
    config.enable_sni = false;
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

/// The server that sidecars meet.
pub(super) fn server_config(
    verifier: &Arc<Verifier>,
    svid: &Arc<CertifiedKey>,
    clock: &Clock,
) -> Result<ServerConfig, String> {
    let mut config = ServerConfig::builder_with_details(provider().clone(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.clone())));
    config.alpn_protocols = MeshProtocol::ALL.iter().map(|p| p.alpn().to_vec()).collect();
    // Tickets that hold the session themselves: nothing is kept here. Their key dies with this configuration.
    config.ticketer = Ticketer::new().map_err(|error| format!("no key for tickets: {error}"))?;
    // Each connection, also a resumed one, brings the client one for its next.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Why a handshake failed: the sentence, and what is counted.
pub(super) struct Failure {
    pub(super) words: String,
    pub(super) cause: Handshake,
}

/// rustls' error in words that say what to check.
pub(super) fn explain(error: &io::Error) -> Failure {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let (cause, words) = match tls {
        None if error.kind() == io::ErrorKind::UnexpectedEof => (
            Handshake::Closed,
            "the peer closed the connection in the handshake: check that its sidecar is ready, and its log".to_owned(),
        ),
        None => (
            Handshake::Closed,
            format!("the connection broke in the handshake: {error}"),
        ),
        Some(Error::InvalidCertificate(invalid)) => certificate_error(invalid),
        Some(Error::AlertReceived(alert)) => (Handshake::RefusedByPeer, alert_received(*alert)),
        Some(Error::NoApplicationProtocol) => (
            Handshake::NoProtocol,
            "the peer does not speak the mesh's protocols: check that it has a sidecar of this version".to_owned(),
        ),
        Some(Error::NoCertificatesPresented) => (
            Handshake::NoCertificate,
            "the peer shows no SVID: check that it is a sidecar".to_owned(),
        ),
        Some(Error::InvalidMessage(_)) => (
            Handshake::NotTls,
            "the peer does not speak TLS: check that it has a sidecar, and that its port is not left out of capture"
                .to_owned(),
        ),
        Some(other) => (Handshake::Other, other.to_string()),
    };
    Failure { words, cause }
}

fn certificate_error(error: &CertificateError) -> (Handshake, String) {
    match error {
        CertificateError::ExpiredContext { time, not_after } => (
            Handshake::Expired,
            format!(
                "its SVID ended at {}, and the clock here says {}: check the clocks of both nodes, and whether its sidecar \
                 can reach the controller to renew",
                written(from_unix(*not_after)),
                written(from_unix(*time)),
            ),
        ),
        CertificateError::NotValidYetContext { time, not_before } => (
            Handshake::NotYetValid,
            format!(
                "its SVID begins at {}, and the clock here says {}: check the clocks of both nodes",
                written(from_unix(*not_before)),
                written(from_unix(*time)),
            ),
        ),
        CertificateError::Other(other) => match other.0.downcast_ref::<PeerError>() {
            Some(peer) => (peer.cause(), peer.to_string()),
            None => (Handshake::Other, error.to_string()),
        },
        _ => (Handshake::Other, format!("its SVID is not accepted: {error}")),
    }
}

/// Words for an alert: the peer found something wrong with us, and only its own log says all of it.
pub(super) fn alert_received(alert: AlertDescription) -> String {
    let what = match alert {
        AlertDescription::CertificateExpired => "says that our SVID has expired: check the clocks of both nodes",
        AlertDescription::CertificateRequired => "requires an SVID, and we showed none",
        AlertDescription::UnknownCA
        | AlertDescription::CertificateUnknown
        | AlertDescription::BadCertificate
        | AlertDescription::DecryptError => {
            "does not accept our SVID: its log says why; compare the trust bundles and trust domains of both sides"
        }
        AlertDescription::NoApplicationProtocol => {
            "does not speak this protocol of the mesh: check that it has a sidecar of this version"
        }
        AlertDescription::ProtocolVersion => "does not speak TLS 1.3: check that it is a sidecar",
        other => return format!("the peer ended the handshake with the alert {other:?}: its log says why"),
    };
    format!("the peer {what}")
}
