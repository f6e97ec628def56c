//! Certificates that the mesh's own CA would never issue.

use std::time::{Duration, SystemTime};

use outrigger_issuer::ca::{Ca, CaPem};
use outrigger_tests::mesh::{Authority, id};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

const DAY: Duration = Duration::from_secs(86_400);

/// A leaf and its key.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Expired,
    NotYetValid,
    UnknownIssuer,
    OtherTrustDomain,
    /// Of somebody else, and otherwise right.
    OtherWorkload,
    TwoUris,
    NotSpiffe,
    NoPath,
    OnlyDns,
}

impl Flaw {
    pub(crate) const ALL: [Flaw; 9] = [
        Flaw::Expired,
        Flaw::NotYetValid,
        Flaw::UnknownIssuer,
        Flaw::OtherTrustDomain,
        Flaw::OtherWorkload,
        Flaw::TwoUris,
        Flaw::NotSpiffe,
        Flaw::NoPath,
        Flaw::OnlyDns,
    ];

    /// As it is counted.
    pub(crate) fn result(self) -> &'static str {
        match self {
            Flaw::Expired => "expired",
            Flaw::NotYetValid => "not-yet-valid",
            Flaw::UnknownIssuer => "unknown-issuer",
            Flaw::OtherTrustDomain | Flaw::OtherWorkload => "identity-mismatch",
            Flaw::TwoUris | Flaw::NotSpiffe | Flaw::NoPath | Flaw::OnlyDns => "malformed-identity",
        }
    }

    /// A certificate of `name` with this flaw; all but one kind are signed by the mesh's CA.
    pub(crate) fn identity(self, authority: &Authority, name: &str) -> Identity {
        let now = SystemTime::now();
        let (begin, end) = match self {
            Flaw::Expired => (now - 2 * DAY, now - DAY),
            Flaw::NotYetValid => (now + DAY, now + 2 * DAY),
            _ => (now - DAY, now + DAY),
        };
        let right = id(name).to_string();
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let names = match self {
            Flaw::OtherTrustDomain => vec![uri(&right.replace("mesh.test", "other.test"))],
            Flaw::OtherWorkload => vec![uri(&format!("{right}-2"))],
            Flaw::TwoUris => vec![uri(&right), uri(&id("web").to_string())],
            Flaw::NotSpiffe => vec![uri(&right.replace("spiffe:", "https:"))],
            Flaw::NoPath => vec![uri("spiffe://mesh.test")],
            Flaw::OnlyDns => vec![SanType::DnsName(name.try_into().unwrap())],
            _ => vec![uri(&right)],
        };
        let stranger;
        let signer = match self {
            Flaw::UnknownIssuer => {
                stranger = Ca::generate("mesh.test").unwrap();
                stranger.pem().clone()
            }
            _ => authority.ca().pem().clone(),
        };
        sign(&signer, names, begin, end)
    }
}

/// What is right: the control of every other case.
pub(crate) fn right(authority: &Authority, name: &str) -> Identity {
    let now = SystemTime::now();
    let names = vec![SanType::URI(id(name).to_string().try_into().unwrap())];
    sign(authority.ca().pem(), names, now - DAY, now + DAY)
}

/// The same of any SPIFFE ID.
pub(crate) fn of(authority: &Authority, id: &str) -> Identity {
    let now = SystemTime::now();
    let names = vec![SanType::URI(id.try_into().unwrap())];
    sign(authority.ca().pem(), names, now - DAY, now + DAY)
}

/// The same from any CA of the trust domain, until a moment.
pub(crate) fn until(signer: &Ca, name: &str, end: SystemTime) -> Identity {
    let names = vec![SanType::URI(id(name).to_string().try_into().unwrap())];
    sign(signer.pem(), names, SystemTime::now() - DAY, end)
}

fn sign(signer: &CaPem, names: Vec<SanType>, begin: SystemTime, end: SystemTime) -> Identity {
    let issuer = KeyPair::from_pem(&signer.key).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&signer.certificates, issuer).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    (params.not_before, params.not_after) = (begin.into(), end.into());
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (vec![certificate.der().clone()], key)
}
