//! The webhook's serving certificate: a CA of its own, and a leaf from it. Pure: what is there and the time go in, what
//! is to be written comes out; [`crate::rotation`] carries it out.
//!
//! A leaf is made anew after two thirds of its life. So is the CA, in two steps, because kube-apiserver must trust the
//! new CA before it sees a leaf from it: first the new CA joins the bundle while the old leaf goes on serving; when the
//! bundle has been in the webhook configuration for a while, the leaf is made anew. The old CA leaves the bundle when it
//! expires.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, ensure};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long certificates live, and for whom the leaf is.
#[derive(Clone, Debug)]
pub struct Profile {
    /// DNS names and addresses of the webhook; the first is the one that kube-apiserver calls.
    pub names: Vec<String>,
    /// How long a leaf lives.
    pub leaf_life: Duration,
    /// How long a CA lives; longer than a leaf.
    pub ca_life: Duration,
    /// How long a bundle is in the webhook configuration before a leaf of its newest CA is served: kube-apiservers read
    /// the configuration through a watch.
    pub settle: Duration,
}

impl Profile {
    /// For the Service `service` in `namespace`: leaves of 30 days from a CA of a year.
    pub fn of_service(service: &str, namespace: &str) -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self {
            names: vec![
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}"),
                format!("{service}.{namespace}.svc.cluster.local"),
            ],
            leaf_life: 30 * day,
            ca_life: 365 * day,
            settle: Duration::from_secs(60),
        }
    }
}

/// When each certificate of a PEM bundle ends.
///
/// # Errors
/// When one of them cannot be read.
pub fn ends(bundle: &str) -> anyhow::Result<Vec<SystemTime>> {
    split_pem(bundle)
        .iter()
        .map(|pem| Ok(SystemTime::from(not_after(pem)?)))
        .collect()
}

/// What the Secret holds, all of it PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Material {
    /// CAs that kube-apiserver is to trust, the current one first.
    pub(crate) bundle: Vec<String>,
    ca_key: String,
    leaf: String,
    leaf_key: String,
}

/// What is to be done.
#[derive(PartialEq)]
pub(crate) enum Plan {
    /// Nothing.
    Keep,
    /// This is to be in the Secret.
    Write(Box<Material>),
}

/// When certificates end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiry {
    pub(crate) leaf: OffsetDateTime,
    pub(crate) ca: OffsetDateTime,
}

/// Clocks differ: a certificate is valid this long before it was made.
const BACKDATE: Duration = Duration::from_secs(300);

/// Says what is to be written, if anything. `trusted`: kube-apiserver has trusted the current CA for at least
/// [`Profile::settle`].
///
/// # Errors
/// When a certificate cannot be made.
pub(crate) fn plan(
    current: Option<&Material>,
    profile: &Profile,
    now: OffsetDateTime,
    trusted: bool,
) -> anyhow::Result<Plan> {
    let Some(current) = current else {
        return Ok(Plan::Write(Box::new(Material::new(profile, now)?)));
    };
    let mut next = current.clone();
    next.bundle.retain(|ca| not_after(ca).is_ok_and(|end| end > now));
    let first_expired = next.bundle.first() != current.bundle.first();
    if first_expired || worn(&current.bundle[0], now)? {
        let (ca, key) = make_ca(profile, now)?;
        next.bundle.insert(0, ca);
        next.ca_key = key;
    }
    // With an expired leaf or CA nothing works anyway, and there is nothing to wait for.
    let urgent = first_expired || not_after(&current.leaf)? <= now;
    let due = worn(&next.leaf, now)? || !next.leaf_fits(profile)?;
    if due && (urgent || (trusted && next.bundle[0] == current.bundle[0])) {
        (next.leaf, next.leaf_key) = make_leaf(&next.bundle[0], &next.ca_key, profile, now)?;
    }
    Ok(if next == *current {
        Plan::Keep
    } else {
        Plan::Write(Box::new(next))
    })
}

impl Material {
    fn new(profile: &Profile, now: OffsetDateTime) -> anyhow::Result<Self> {
        let (ca, ca_key) = make_ca(profile, now)?;
        let (leaf, leaf_key) = make_leaf(&ca, &ca_key, profile, now)?;
        Ok(Self {
            bundle: vec![ca],
            ca_key,
            leaf,
            leaf_key,
        })
    }

    /// Reads a Secret's data.
    ///
    /// # Errors
    /// When something is missing or does not fit together.
    pub(crate) fn from_secret(data: &BTreeMap<String, ByteString>) -> anyhow::Result<Self> {
        let text = |key: &str| {
            let bytes = data.get(key).with_context(|| format!("{key} is missing"))?;
            String::from_utf8(bytes.0.clone()).with_context(|| format!("{key} is not text"))
        };
        let bundle: Vec<_> = split_pem(&text("ca.crt")?);
        ensure!(!bundle.is_empty(), "ca.crt holds no certificate");
        let material = Self {
            bundle,
            ca_key: text("ca.key")?,
            leaf: text("tls.crt")?,
            leaf_key: text("tls.key")?,
        };
        for ca in &material.bundle {
            not_after(ca).context("ca.crt")?;
        }
        let key = KeyPair::from_pem(&material.ca_key).context("ca.key")?;
        let ca = der(&material.bundle[0])?;
        let (_, ca) = X509Certificate::from_der(&ca)?;
        ensure!(
            *ca.public_key().subject_public_key.data == *key.public_key_raw(),
            "ca.key is not the key of the first certificate in ca.crt"
        );
        material.certified_key()?;
        Ok(material)
    }

    /// As a Secret's data.
    pub(crate) fn to_secret(&self) -> BTreeMap<String, ByteString> {
        let entry = |key: &str, text: &str| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
        BTreeMap::from([
            entry("ca.crt", &self.bundle.concat()),
            entry("ca.key", &self.ca_key),
            entry("tls.crt", &self.leaf),
            entry("tls.key", &self.leaf_key),
        ])
    }

    /// What rustls serves with.
    ///
    /// # Errors
    /// When the leaf and its key do not belong together.
    pub(crate) fn certified_key(&self) -> anyhow::Result<CertifiedKey> {
        let chain = CertificateDer::pem_slice_iter(self.leaf.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(self.leaf_key.as_bytes()).context("tls.key")?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        CertifiedKey::from_der(chain, key, &provider).context("tls.crt and tls.key")
    }

    pub(crate) fn expiry(&self) -> anyhow::Result<Expiry> {
        Ok(Expiry {
            leaf: not_after(&self.leaf)?,
            ca: not_after(&self.bundle[0])?,
        })
    }

    /// Whether the leaf is from the current CA and for these names.
    fn leaf_fits(&self, profile: &Profile) -> anyhow::Result<bool> {
        let (leaf, ca) = (der(&self.leaf)?, der(&self.bundle[0])?);
        let ((_, leaf), (_, ca)) = (X509Certificate::from_der(&leaf)?, X509Certificate::from_der(&ca)?);
        let names: Vec<String> = leaf
            .subject_alternative_name()?
            .iter()
            .flat_map(|san| &san.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                        .ok()
                        .map(|ip| ip.to_string())
                }
                _ => None,
            })
            .collect();
        // A CA's name has the time at which it was made: two have never the same.
        Ok(leaf.issuer() == ca.subject() && profile.names.iter().all(|name| names.contains(name)))
    }
}

fn make_ca(profile: &Profile, now: OffsetDateTime) -> anyhow::Result<(String, String)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = Default::default();
    let made = now.unix_timestamp_nanos() / 1_000_000;
    params
        .distinguished_name
        .push(DnType::CommonName, format!("outrigger-injector CA {made}"));
    (params.not_before, params.not_after) = (now - BACKDATE, now + profile.ca_life);
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn make_leaf(ca: &str, ca_key: &str, profile: &Profile, now: OffsetDateTime) -> anyhow::Result<(String, String)> {
    let issuer = Issuer::from_ca_cert_pem(ca, KeyPair::from_pem(ca_key)?)?;
    let mut params = CertificateParams::new(profile.names.clone())?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, "outrigger-injector");
    (params.not_before, params.not_after) = (now - BACKDATE, (now + profile.leaf_life).min(not_after(ca)?));
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

/// Whether two thirds of its life are over.
fn worn(pem: &str, now: OffsetDateTime) -> anyhow::Result<bool> {
    let der = der(pem)?;
    let (_, certificate) = X509Certificate::from_der(&der)?;
    let validity = certificate.validity();
    // The life without the time by which it was backdated.
    let (from, to) = (
        validity.not_before.to_datetime() + BACKDATE,
        validity.not_after.to_datetime(),
    );
    Ok(now >= from + (to - from) * 2 / 3)
}

fn not_after(pem: &str) -> anyhow::Result<OffsetDateTime> {
    let der = der(pem)?;
    let (_, certificate) = X509Certificate::from_der(&der)?;
    Ok(certificate.validity().not_after.to_datetime())
}

fn der(pem: &str) -> anyhow::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| anyhow!("not a PEM certificate: {e}"))
}

/// Each certificate of a bundle for itself.
fn split_pem(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = bundle.split_inclusive(END).filter(|part| part.contains(END));
    parts.map(|part| format!("{}\n", part.trim())).collect()
}

/// Shares the certificate between the connections and whoever renews it.
#[derive(Debug, Default)]
pub(crate) struct Serving(arc_swap::ArcSwapOption<CertifiedKey>);

impl Serving {
    pub(crate) fn swap(&self, key: CertifiedKey) {
        self.0.store(Some(Arc::new(key)));
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.0.load().is_some()
    }
}

impl rustls::server::ResolvesServerCert for Serving {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

#[cfg(test)]
mod tests;
