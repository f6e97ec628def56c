//! A CA for tests.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::tls::provider;
use super::{Clock, Credentials, Svid, Trust, TrustBundle};

/// A root that issues SVIDs.
pub(crate) struct TestCa {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::from_der([self.certificate.clone()]).unwrap()
    }

    /// An SVID that began an hour ago and lives for a day.
    pub(crate) fn svid(&self, id: &str) -> Svid {
        let now = SystemTime::now();
        self.svid_with(
            &[id],
            now - Duration::from_secs(3600),
            now + Duration::from_secs(86_400),
        )
        .unwrap()
    }

    /// A certificate with any URI names and times.
    pub(crate) fn svid_with(
        &self,
        uris: &[&str],
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Svid, String> {
        let (chain, key) = self.leaf_and_key(uris, not_before, not_after);
        Svid::new(chain, key)
    }

    pub(crate) fn leaf_and_key(
        &self,
        uris: &[&str],
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let key_der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![self.leaf(uris, not_before, not_after, &key)], key_der)
    }

    /// A certificate for a key that somebody else has.
    pub(crate) fn leaf(
        &self,
        uris: &[&str],
        not_before: SystemTime,
        not_after: SystemTime,
        key: &impl PublicKeyData,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    /// Credentials with this CA as the only root, by the machine's clock.
    pub(crate) fn credentials(&self, id: &str) -> Credentials {
        self.credentials_of(&self.svid(id), 1)
    }

    pub(crate) fn credentials_of(&self, svid: &Svid, generation: u64) -> Credentials {
        let trust = Trust::new(&self.bundle(), svid.leaf.id.trust_domain(), generation).unwrap();
        Credentials::new(svid, &Arc::new(trust), generation, &Clock::system()).unwrap()
    }
}

impl Credentials {
    /// The same for somebody who has no SVID yet.
    pub(crate) fn issuing_server(&self) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider().clone());
        let mut config = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(self.server.cert_resolver.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// A controller's side of a connection: ALPN is h2, and the client must show an SVID.
    pub(crate) fn control_server(&self) -> Arc<ServerConfig> {
        let mut config = (*self.server).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}
