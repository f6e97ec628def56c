use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::clock::from_timestamp;

/// The roots that peers' SVIDs must lead to: one or more, so that a root can be replaced without a moment when nobody
/// trusts anybody.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    roots: Vec<Root>,
    store: Arc<RootCertStore>,
}

#[derive(Clone, Debug)]
struct Root {
    der: CertificateDer<'static>,
    subject: String,
    not_after: SystemTime,
}

impl TrustBundle {
    /// Reads PEM. What is no usable certificate is passed over, as long as one root is left.
    ///
    /// # Errors
    /// When there is no usable root.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let mut roots = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            match certificate {
                Ok(der) => roots.push(der),
                Err(error) => {
                    // It may quote all of the file.
                    let error: String = error.to_string().chars().take(200).collect();
                    return Err(format!("is not PEM: {error}"));
                }
            }
        }
        Self::from_der(roots)
    }

    /// The same from DER.
    ///
    /// # Errors
    /// When there is no usable root.
    pub fn from_der(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, String> {
        let mut roots = Vec::new();
        let mut store = RootCertStore::empty();
        let mut seen = HashSet::new();
        for der in certificates {
            if !seen.insert(der.clone()) {
                continue;
            }
            let root = X509Certificate::from_der(&der).ok().map(|(_, parsed)| Root {
                der: der.clone(),
                subject: parsed.subject().to_string(),
                not_after: from_timestamp(parsed.validity().not_after.timestamp()),
            });
            match root {
                Some(root) if store.add(der.clone()).is_ok() => roots.push(root),
                _ => tracing::warn!("passing over a certificate of the trust bundle that cannot be read"),
            }
        }
        if roots.is_empty() {
            return Err("has no usable root certificate".to_owned());
        }
        Ok(Self {
            roots,
            store: Arc::new(store),
        })
    }

    /// The roots.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    /// When each root ends.
    pub fn not_after(&self) -> impl Iterator<Item = SystemTime> {
        self.roots.iter().map(|root| root.not_after)
    }

    /// The roots' names, for messages.
    pub(super) fn subjects(&self) -> String {
        let names: Vec<_> = self.roots.iter().map(|root| root.subject.as_str()).collect();
        names.join("; ")
    }

    pub(super) fn store(&self) -> Arc<RootCertStore> {
        self.store.clone()
    }

    /// Whether both have the same roots.
    pub(super) fn same_as(&self, other: &TrustBundle) -> bool {
        self.certificates().collect::<HashSet<_>>() == other.certificates().collect()
    }
}
