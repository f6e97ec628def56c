//! Whether a peer is who it says: a chain to one of our roots, and a leaf with exactly one SPIFFE ID, of our trust domain
//! (X509-SVID.md sections 2 and 5).

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::spiffe::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::bundle::TrustBundle;
use super::clock::from_timestamp;
use crate::telemetry::metrics::Handshake;

/// What an SVID says.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Whose it is.
    pub id: SpiffeId,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// Why a certificate with a good signature is not a peer's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("its certificate cannot be read")]
    Unreadable,
    #[error("its certificate has {0} URI names; an SVID has exactly one")]
    UriNames(usize),
    #[error("its certificate names {0}")]
    Malformed(#[from] outrigger_api::spiffe::InvalidSpiffeId),
    #[error("it is {found}, of another trust domain than ours, {ours}")]
    TrustDomain { found: SpiffeId, ours: Arc<str> },
    #[error(
        "its SVID was issued by {issuer:?}, and no root trusted here signed that (roots: {trusted}): compare the trust \
         bundles of both sides; while a root is rotated, both roots belong into both"
    )]
    UnknownIssuer { issuer: String, trusted: String },
}

impl PeerError {
    /// What is counted.
    pub(super) fn cause(&self) -> Handshake {
        match self {
            PeerError::Unreadable | PeerError::UriNames(_) | PeerError::Malformed(_) => Handshake::MalformedIdentity,
            PeerError::TrustDomain { .. } => Handshake::IdentityMismatch,
            PeerError::UnknownIssuer { .. } => Handshake::UnknownIssuer,
        }
    }
}

impl Leaf {
    /// Reads a leaf; checks nothing but its form.
    ///
    /// # Errors
    /// When it is no certificate, or has not exactly one SPIFFE ID.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| PeerError::Unreadable)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| PeerError::Unreadable)?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris[..] else {
            return Err(PeerError::UriNames(uris.len()));
        };
        Ok(Self {
            id: uri.parse()?,
            not_before: from_timestamp(certificate.validity().not_before.timestamp()),
            not_after: from_timestamp(certificate.validity().not_after.timestamp()),
        })
    }
}

/// Checks peers, as server and as client. It does not know whom the client wants to meet: the handshake's caller compares.
#[derive(Debug)]
pub struct Verifier {
    roots: Arc<RootCertStore>,
    subjects: String,
    trust_domain: Arc<str>,
    algorithms: WebPkiSupportedAlgorithms,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Verifier {
    /// Trusts what leads to `bundle` and is of `trust_domain`.
    ///
    /// # Errors
    /// When the bundle cannot be used.
    pub fn new(provider: &Arc<CryptoProvider>, bundle: &TrustBundle, trust_domain: &str) -> Result<Self, String> {
        let clients = WebPkiClientVerifier::builder_with_provider(bundle.store(), provider.clone())
            .build()
            .map_err(|error| format!("the trust bundle cannot be used: {error}"))?;
        Ok(Self {
            roots: bundle.store(),
            subjects: bundle.subjects(),
            trust_domain: trust_domain.into(),
            algorithms: provider.signature_verification_algorithms,
            clients,
        })
    }

    /// Whether a peer that is called is of the mesh.
    pub(super) fn check_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, self.algorithms.all)
            .map_err(|error| self.explain(error, leaf, intermediates))?;
        self.check_name(leaf)
    }

    /// Whether a peer that calls is of the mesh.
    pub(super) fn check_client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.clients
            .verify_client_cert(leaf, intermediates, now)
            .map_err(|error| self.explain(error, leaf, intermediates))?;
        self.check_name(leaf)
    }

    fn check_name(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        match Leaf::parse(leaf) {
            Ok(leaf) if leaf.id.is_of(&self.trust_domain) => Ok(()),
            Ok(leaf) => Err(refused(PeerError::TrustDomain {
                found: leaf.id,
                ours: self.trust_domain.clone(),
            })),
            Err(error) => Err(refused(error)),
        }
    }

    /// Puts names into an error about the chain: without them nobody finds the wrong root.
    fn explain(&self, error: Error, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Error {
        match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                let last = intermediates.last().unwrap_or(leaf);
                let issuer = X509Certificate::from_der(last)
                    .map(|(_, certificate)| certificate.issuer().to_string())
                    .unwrap_or_default();
                refused(PeerError::UnknownIssuer {
                    issuer: issuer.chars().take(256).collect(),
                    trusted: self.subjects.clone(),
                })
            }
            other => other,
        }
    }
}

fn refused(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_server(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
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

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A sidecar has one SVID: hints would only make the handshake longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check_client(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
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
