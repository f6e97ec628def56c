//! TLS with endpoints that are not in the mesh, as a BackendTLSPolicy says (Gateway API, GEP-1897): whom to ask for, and whom to believe.
//!
//! It protects what a caller sends to such an endpoint from who is between, and from who has taken the endpoint's address. It does not prove who
//! the caller is: no certificate is shown. Revocation is not looked at.
//!
//! The same words of the controller make one [`BackendTls`] for the whole process, so that certificates are parsed once, and all workers and all
//! targets share them and the tickets of sessions. Other words make another one, by which no connection of the one before is used again.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use outrigger_api::discovery as proto;
use outrigger_api::discovery::{backend_tls, subject_alt_name};
use parking_lot::Mutex;
use prost::Message;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::HostnameMatch;

/// Sessions that can be resumed, as rustls counts them: eight of each name, and there is one.
const SESSIONS: usize = 32;
/// Names of a certificate that an error shows.
const SHOWN: usize = 4;
/// And bytes of each.
const SHOWN_BYTES: usize = 128;

/// See the module.
pub struct BackendTls {
    /// "namespace/name" of the policy.
    pub policy: Arc<str>,
    /// The server that is asked for.
    pub hostname: Arc<str>,
    /// By the protocol inside. Or why nobody is believed.
    clients: Result<Clients, String>,
    names: usize,
    roots: usize,
}

/// What is inside of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// HTTP/1.1, which a server may agree to or say nothing of (RFC 7301).
    Http1,
    /// HTTP/2, which a server must agree to (RFC 9113 section 3.3).
    Http2,
    /// Bytes: nothing is said of them.
    Bytes,
}

struct Clients {
    server: ServerName<'static>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    bytes: Arc<ClientConfig>,
}

/// What was made, by the words that it was made from.
type Made = Mutex<HashMap<Vec<u8>, Weak<BackendTls>>>;

impl BackendTls {
    /// The same for the same message.
    pub fn from_proto(message: &proto::BackendTls) -> Arc<Self> {
        static MADE: OnceLock<Made> = OnceLock::new();
        let mut made = MADE.get_or_init(Made::default).lock();
        let words = message.encode_to_vec();
        if let Some(known) = made.get(&words).and_then(Weak::upgrade) {
            return known;
        }
        made.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(Self::new(message));
        made.insert(words, Arc::downgrade(&new));
        new
    }

    /// Who is asked for, and how.
    ///
    /// # Errors
    /// Why nobody is believed, so that no connection is made.
    pub fn client(&self, inside: Inside) -> Result<(&Arc<ClientConfig>, ServerName<'static>), &str> {
        let clients = self.clients.as_ref().map_err(String::as_str)?;
        let config = match inside {
            Inside::Http1 => &clients.http1,
            Inside::Http2 => &clients.http2,
            Inside::Bytes => &clients.bytes,
        };
        Ok((config, clients.server.clone()))
    }

    /// Why no connection is made, if that is so.
    pub fn problem(&self) -> Option<&str> {
        self.clients.as_ref().err().map(String::as_str)
    }

    /// How many names a certificate may have, and how many authorities may have signed it.
    pub fn counts(&self) -> (usize, usize) {
        (self.names, self.roots)
    }

    fn new(message: &proto::BackendTls) -> Self {
        let roots = roots(message);
        Self {
            policy: message.policy.as_str().into(),
            hostname: message.hostname.as_str().into(),
            names: message.subject_alt_names.len().max(1),
            roots: roots.as_ref().map_or(0, |roots| roots.len()),
            clients: roots.and_then(|roots| Clients::new(message, roots)),
        }
    }
}

impl fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendTls({} of {})", self.hostname, self.policy)
    }
}

impl Clients {
    fn new(message: &proto::BackendTls, roots: Arc<RootCertStore>) -> Result<Self, String> {
        let server = DnsName::try_from(message.hostname.clone());
        let server = server.map_err(|_| format!("{:?} is no name of a server", message.hostname))?;
        let server = ServerName::DnsName(server);
        let provider = Arc::new(default_provider());
        let verifier = Verifier {
            roots,
            names: message.subject_alt_names.iter().map(Name::from_proto).collect(),
            algorithms: provider.signature_verification_algorithms,
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .dangerous() // rustls' word for a verifier of one's own
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let with_alpn = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        Ok(Self {
            server,
            http1: with_alpn(b"http/1.1"),
            http2: with_alpn(b"h2"),
            bytes: Arc::new(config),
        })
    }
}

/// Those that can be read: the controller sends no others.
fn roots(message: &proto::BackendTls) -> Result<Arc<RootCertStore>, String> {
    match &message.trust {
        Some(backend_tls::Trust::Ca(ca)) => {
            let mut roots = RootCertStore::empty();
            let certificates = ca.certificates.iter().cloned().map(CertificateDer::from);
            let (read, _) = roots.add_parsable_certificates(certificates);
            match read {
                0 => Err("none of its CA certificates can be read".to_owned()),
                _ => Ok(Arc::new(roots)),
            }
        }
        Some(backend_tls::Trust::System(_)) => Ok(system_roots()),
        Some(backend_tls::Trust::Nobody(why)) => Err(why.clone()),
        None => Err("this sidecar is too old for what it says of CA certificates".to_owned()),
    }
}

fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let all = || Arc::new(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect());
    Arc::clone(ROOTS.get_or_init(all))
}

/// A name that a certificate may have.
#[derive(Debug)]
enum Name {
    Dns(ServerName<'static>),
    /// Any DNS name that this is.
    Wildcard(HostnameMatch),
    Uri(String),
    /// It is not understood, and no certificate has it.
    Unknown,
}

impl Name {
    fn from_proto(message: &proto::SubjectAltName) -> Self {
        match &message.kind {
            Some(subject_alt_name::Kind::Hostname(name)) if name.starts_with('*') => {
                Self::Wildcard(HostnameMatch::parse(name))
            }
            Some(subject_alt_name::Kind::Hostname(name)) => match DnsName::try_from(name.clone()) {
                Ok(name) => Self::Dns(ServerName::DnsName(name)),
                Err(_) => Self::Unknown,
            },
            Some(subject_alt_name::Kind::Uri(uri)) => Self::Uri(uri.clone()),
            None => Self::Unknown,
        }
    }

    fn is_of(&self, certificate: &ParsedCertificate<'_>, presented: &Presented) -> bool {
        match self {
            // It may match a wildcard of the certificate (RFC 9525 section 6.3).
            Self::Dns(name) => verify_server_name(certificate, name).is_ok(),
            Self::Wildcard(name) => presented.dns.iter().any(|dns| name.is(dns)),
            Self::Uri(uri) => presented.uris.iter().any(|other| other == uri),
            Self::Unknown => false,
        }
    }
}

/// Names that a certificate has.
#[derive(Debug, Default)]
struct Presented {
    /// In lower case.
    dns: Vec<String>,
    uris: Vec<String>,
}

impl Presented {
    /// None of one that cannot be read.
    fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut presented = Self::default();
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return presented;
        };
        let names = certificate.subject_alternative_name().ok().flatten();
        for name in names.into_iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => presented.dns.push(name.to_ascii_lowercase()),
                GeneralName::URI(uri) => presented.uris.push((*uri).to_owned()),
                _ => {}
            }
        }
        presented
    }
}

/// A certificate whose signature is good, and which is another server's.
#[derive(Debug, thiserror::Error)]
#[error("its certificate is for {presented}, and none of the subjectAltNames")]
pub struct OtherName {
    presented: String,
}

impl OtherName {
    fn new(presented: &Presented) -> Self {
        let all = presented.dns.iter().chain(&presented.uris);
        let shown: Vec<String> = all
            .take(SHOWN)
            .map(|name| name.chars().take(SHOWN_BYTES).collect())
            .collect();
        Self {
            presented: match shown.is_empty() {
                true => "no name".to_owned(),
                false => shown.join(", "),
            },
        }
    }
}

/// Checks servers.
#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    /// Any of them. None: the name that was asked for.
    names: Vec<Name>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, self.algorithms.all)?;
        if self.names.is_empty() {
            verify_server_name(&certificate, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let presented = Presented::of(end_entity);
        if self.names.iter().any(|name| name.is_of(&certificate, &presented)) {
            return Ok(ServerCertVerified::assertion());
        }
        let other = OtherError(Arc::new(OtherName::new(&presented)));
        Err(Error::InvalidCertificate(CertificateError::Other(other)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "backend_tls_tests.rs"]
mod tests;
