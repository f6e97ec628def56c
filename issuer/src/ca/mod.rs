//! The certificate authority: makes and holds the issuer's key, and turns CSRs into SVIDs.
//!
//! An SVID (X509-SVID.md) has exactly one URI SAN, the SPIFFE ID; it signs, is used by servers and clients alike, and is
//! no CA. Its validity begins a little in the past, because clocks differ, and never outlives the issuer's.

mod csr;
mod issuing;
pub mod rotation;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod rotation_tests;

use std::fmt;
use std::time::{Duration, SystemTime};

use outrigger_api::labels::MAX_TRUST_BUNDLE;
use outrigger_api::spiffe::SpiffeId;
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock;

use self::issuing::Issuer;

pub use self::csr::CsrError;

/// How long before now an SVID's validity begins: clocks that are this far behind still accept it.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// How long a root lives that this controller makes.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Secrets are at most 1 MiB; far fewer certificates than fit are of use.
const MAX_CERTIFICATES: usize = 64;

/// A CA as it is at one moment. It never changes: another Secret makes another `Ca`.
pub struct Ca {
    issuer: Issuer,
    /// What goes behind a leaf: the issuing certificate and those above it, without roots.
    intermediates: Vec<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
    pem: CaPem,
    issuer_not_after: SystemTime,
    root_not_after: SystemTime,
}

/// The CA as a Secret of the type `kubernetes.io/tls` holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct CaPem {
    /// `tls.crt`: the issuing certificate first, then those above it.
    pub certificates: String,
    /// `tls.key`.
    pub key: String,
    /// `ca.crt`: the roots to trust. None: the last certificate of `certificates`, or those that are self-signed.
    pub roots: Option<String>,
}

/// An SVID with its key.
pub struct IssuedSvid {
    /// The leaf first, then intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
}

/// Why a CA cannot be used, or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Something in the Secret is not what it should be.
    #[error("{0}")]
    Unusable(String),
    /// The library that makes certificates refused.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The issuer has expired.
    #[error(
        "the issuer's certificate expired at {not_after}, and it is {now} here: renew it in the Secret, or check the clock"
    )]
    Expired { not_after: String, now: String },
}

/// Why a CSR was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The CSR is at fault.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The CA is at fault.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl Ca {
    /// Makes a new self-signed P-256 root that lives for ten years.
    ///
    /// # Errors
    /// When the trust domain cannot be in a certificate, or no key could be made.
    pub fn generate(trust_domain: &str) -> Result<Self, CaError> {
        let mut name = DistinguishedName::new();
        // Roots that follow one another have different names, so that a chain is never tried with the wrong one.
        name.push(DnType::OrganizationName, "outrigger");
        name.push(
            DnType::CommonName,
            format!("{trust_domain} {:08x}", rand::rng().next_u32()),
        );
        let now = clock::now();
        let mut params = base_params(now, now + ROOT_LIFETIME, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // SPIFFE-X509-SVID section 4.1: a signing certificate carries its trust domain as its own SPIFFE ID.
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Self::from_pem(
            CaPem {
                certificates: certificate.pem(),
                key: key.serialize_pem(),
                roots: Some(certificate.pem()),
            },
            trust_domain,
            now,
        )
    }

    /// Reads a CA as it is in a Secret, and proves that SVIDs of the trust domain that it issues are trusted by its own
    /// bundle.
    ///
    /// # Errors
    /// What is wrong, in the Secret's own terms.
    pub fn from_pem(pem: CaPem, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let chain = certificates("tls.crt", &pem.certificates)?;
        let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes())
            .map_err(|e| unusable(format!("tls.key is not a private key in PEM: {e}")))?;
        let key = KeyPair::try_from(&key).map_err(|e| unusable(format!("tls.key cannot be used to sign: {e}")))?;
        let (issuer_not_after, self_signed) = check_issuer(&chain[0], &key)?;

        let bundle = match pem.roots.as_deref().filter(|roots| !roots.trim().is_empty()) {
            Some(roots) => certificates("ca.crt", roots)?,
            None => implied_roots(&chain)?,
        };
        let mut root_not_after = None::<SystemTime>;
        for root in &bundle {
            let not_after = parse("ca.crt", root)?.validity().not_after.to_datetime().into();
            // The trust ends when the last root does.
            root_not_after = root_not_after.max(Some(not_after));
        }
        let mut intermediates = Vec::new();
        for certificate in &chain {
            if !bundle.contains(certificate) && !is_self_signed(&parse("tls.crt", certificate)?) {
                intermediates.push(certificate.clone());
            }
        }
        // An intermediate that is in the bundle as well is sent all the same: others may trust only the root.
        if !self_signed && !intermediates.contains(&chain[0]) {
            intermediates.insert(0, chain[0].clone());
        }
        let ca = Self {
            issuer: Issuer::new(&parse("tls.crt", &chain[0])?, key),
            intermediates,
            bundle,
            pem,
            issuer_not_after,
            root_not_after: root_not_after.unwrap_or(issuer_not_after),
        };
        let size = ca.bundle_pem().len();
        if size > MAX_TRUST_BUNDLE {
            return Err(unusable(format!(
                "the roots of ca.crt have {size} bytes; {MAX_TRUST_BUNDLE} are allowed, because every sidecar has them in its \
                 environment: take out those below which there are no SVIDs"
            )));
        }
        ca.prove(trust_domain, now)?;
        Ok(ca)
    }

    /// The CA as a Secret holds it.
    pub fn pem(&self) -> &CaPem {
        &self.pem
    }

    /// The roots to trust.
    pub fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// The roots to trust, in PEM.
    pub fn bundle_pem(&self) -> String {
        bundle_pem(&self.bundle)
    }

    /// When the issuing certificate expires.
    pub fn issuer_not_after(&self) -> SystemTime {
        self.issuer_not_after
    }

    /// When the last of the roots expires.
    pub fn root_not_after(&self) -> SystemTime {
        self.root_not_after
    }

    /// Signs a PKCS#10 request (DER) of somebody who was proved to be `id`: the leaf, then intermediates. It is valid
    /// from five minutes ago until `ttl` from now, or until the issuer expires.
    ///
    /// # Errors
    /// When the CSR is not one of a P-256 key that signed it, asks for another SPIFFE ID, or the issuer has expired.
    pub fn sign_csr(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        ttl: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        self.sign_csr_at(csr, id, ttl, clock::now())
    }

    /// [`Ca::sign_csr`] at a given time.
    ///
    /// # Errors
    /// As [`Ca::sign_csr`].
    pub fn sign_csr_at(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let public_key = csr::verify(csr, id)?;
        Ok(self.sign(&public_key, id, ttl, now)?)
    }

    /// Makes a key and an SVID for it: for the controller's own server, the demo and tests.
    ///
    /// # Errors
    /// When the issuer has expired.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<IssuedSvid, CaError> {
        self.issue_at(id, ttl, clock::now())
    }

    /// [`Ca::issue`] at a given time.
    ///
    /// # Errors
    /// As [`Ca::issue`].
    pub fn issue_at(&self, id: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<IssuedSvid, CaError> {
        let key = KeyPair::generate()?;
        Ok(IssuedSvid {
            chain: self.sign(&key, id, ttl, now)?,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }

    fn sign(
        &self,
        public_key: &impl PublicKeyData,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        if now >= self.issuer_not_after {
            return Err(CaError::Expired {
                not_after: rfc3339(self.issuer_not_after),
                now: rfc3339(now),
            });
        }
        let mut params = base_params(
            now - BACKDATE,
            (now + ttl).min(self.issuer_not_after),
            DistinguishedName::new(),
        );
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = self.issuer.sign(&params, public_key)?;
        Ok(std::iter::once(leaf)
            .chain(self.intermediates.iter().cloned())
            .collect())
    }

    /// Issues an SVID and verifies it as a peer would: catches a `ca.crt` that is not above `tls.crt`, name constraints,
    /// and whatever else makes peers refuse every SVID.
    fn prove(&self, trust_domain: &str, now: SystemTime) -> Result<(), CaError> {
        let id = SpiffeId::new(trust_domain, "outrigger", "self-check").map_err(|e| unusable(e.to_string()))?;
        let chain = self.sign(&KeyPair::generate()?, &id, Duration::from_secs(3600), now)?;
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            self.roots()?.into(),
            rustls::crypto::aws_lc_rs::default_provider().into(),
        )
        .build()
        .map_err(|e| unusable(format!("the trust bundle cannot be used: {e}")))?;
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        verifier
            .verify_client_cert(&chain[0], &chain[1..], UnixTime::since_unix_epoch(since_epoch))
            .map_err(|e| {
                unusable(format!(
                    "what tls.crt issues is not trusted by the bundle ({e}): ca.crt must hold the root above tls.crt"
                ))
            })?;
        Ok(())
    }

    /// The bundle as rustls takes it.
    pub(crate) fn roots(&self) -> Result<rustls::RootCertStore, CaError> {
        let mut roots = rustls::RootCertStore::empty();
        for root in &self.bundle {
            roots
                .add(root.clone())
                .map_err(|e| unusable(format!("a certificate of the trust bundle cannot be a root: {e}")))?;
        }
        Ok(roots)
    }
}

impl fmt::Debug for Ca {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca")
            .field("issuer_not_after", &self.issuer_not_after)
            .field("roots", &self.bundle.len())
            .finish_non_exhaustive()
    }
}

/// When a certificate expires.
///
/// # Errors
/// When it is not a certificate.
pub fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, CaError> {
    Ok(parse("the certificate", certificate)?
        .validity()
        .not_after
        .to_datetime()
        .into())
}

/// The SPIFFE ID of an SVID: its one URI SAN.
pub fn spiffe_id(certificate: &CertificateDer<'_>) -> Option<SpiffeId> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().ok(),
        _ => None,
    }
}

fn base_params(not_before: SystemTime, not_after: SystemTime, name: DistinguishedName) -> CertificateParams {
    let mut serial = [0; 16];
    rand::rng().fill_bytes(&mut serial);
    serial[0] = serial[0] & 0x7f | 0x40; // positive, and always 16 bytes
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    params.distinguished_name = name;
    params
}

/// What must be true of an issuing certificate: when it expires, and whether it is a root.
fn check_issuer(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(SystemTime, bool), CaError> {
    let issuer = parse("tls.crt", certificate)?;
    if key.der_bytes() != &*issuer.public_key().subject_public_key.data {
        return Err(unusable(
            "tls.key is not the key of tls.crt's first certificate: the issuing certificate must come first".to_owned(),
        ));
    }
    if !issuer.is_ca() {
        return Err(unusable(
            "tls.crt's first certificate is not a CA (basicConstraints CA:TRUE is missing)".to_owned(),
        ));
    }
    if let Ok(Some(usage)) = issuer.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(unusable(
            "tls.crt's first certificate may not sign certificates (keyUsage)".to_owned(),
        ));
    }
    Ok((
        issuer.validity().not_after.to_datetime().into(),
        is_self_signed(&issuer),
    ))
}

/// The roots where the Secret names none: the self-signed ones of the chain, or else its last.
fn implied_roots(chain: &[CertificateDer<'static>]) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let mut roots = Vec::new();
    for certificate in chain {
        if is_self_signed(&parse("tls.crt", certificate)?) {
            roots.push(certificate.clone());
        }
    }
    if roots.is_empty() {
        roots.extend(chain.last().cloned());
    }
    Ok(roots)
}

fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject() == certificate.issuer()
}

fn parse<'a>(field: &str, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|e| unusable(format!("{field} holds something that is not an X.509 certificate: {e}")))
}

/// All certificates of a PEM text; one at least.
fn certificates(field: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| unusable(format!("{field} is not PEM: {e}")))?;
    match certificates.len() {
        0 => Err(unusable(format!("{field} holds no certificate"))),
        1..=MAX_CERTIFICATES => Ok(certificates),
        n => Err(unusable(format!(
            "{field} holds {n} certificates; {MAX_CERTIFICATES} are allowed"
        ))),
    }
}

fn unusable(message: String) -> CaError {
    CaError::Unusable(message)
}

fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| "a time out of range".to_owned())
}

fn bundle_pem(roots: &[CertificateDer<'_>]) -> String {
    roots.iter().map(|der| to_pem("CERTIFICATE", der)).collect()
}

/// RFC 7468: base64 in lines of 64.
fn to_pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group
                .iter()
                .chain(std::iter::repeat(&0))
                .take(3)
                .fold(0_usize, |bits, &byte| bits << 8 | usize::from(byte));
            for i in 0..4 {
                pem.push(if i <= group.len() {
                    char::from(ALPHABET[bits >> (18 - 6 * i) & 63])
                } else {
                    '='
                });
            }
        }
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
