//! The keys by which sidecars seal what tells their clients of a session (`sessionPersistence`).
//!
//! Each Service has one, and all sidecars of its callers have to have the same, whichever controller tells them, and after each restart. So
//! nothing is drawn: the keys are derived (HKDF, RFC 5869) from the one secret that controllers share anyway, the key of the CA that issues.
//! Nothing of that key can be computed from what is derived from it. Where another CA issues, all sessions begin anew.
//!
//! It is no protection from who calls the Service: he has the key. It protects from clients, and from callers of other Services.

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

/// Names what is derived. With another one, all keys are others.
const PURPOSE: &[u8] = b"outrigger.dev session persistence 1";
/// Bytes of a key.
const KEY: usize = 32;

/// What all keys are derived from.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionSecret([u8; KEY]);

impl SessionSecret {
    /// From the private key of the CA, in PEM. `None`: it is none.
    pub fn of_ca(key: &str) -> Option<Self> {
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).ok()?;
        let derived = Salt::new(HKDF_SHA256, PURPOSE).extract(key.secret_der());
        expanded(&derived, &[b"secret"]).map(Self)
    }

    /// The key of a Service.
    pub(crate) fn key_of(&self, namespace: &str, service: &str) -> Option<[u8; KEY]> {
        let secret = Prk::new_less_safe(HKDF_SHA256, &self.0);
        expanded(
            &secret,
            &[b"service", b"\0", namespace.as_bytes(), b"\0", service.as_bytes()],
        )
    }
}

fn expanded(secret: &Prk, info: &[&[u8]]) -> Option<[u8; KEY]> {
    let mut key = [0; KEY];
    secret.expand(info, HKDF_SHA256).ok()?.fill(&mut key).ok()?;
    Some(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use outrigger_issuer::ca::Ca;

    use super::SessionSecret;

    #[test]
    fn a_key_is_of_its_service_and_its_ca_and_always_the_same() {
        let [one, other] = [(); 2].map(|()| Ca::generate("cluster.local").unwrap().pem().key.clone());
        let secret = SessionSecret::of_ca(&one).unwrap();
        let key = secret.key_of("shop", "cart").unwrap();
        assert_eq!(SessionSecret::of_ca(&one).unwrap().key_of("shop", "cart"), Some(key));
        assert_ne!(SessionSecret::of_ca(&other).unwrap().key_of("shop", "cart"), Some(key));
        for (namespace, service) in [("shop", "orders"), ("other", "cart"), ("shopc", "art"), ("shop", "")] {
            assert_ne!(secret.key_of(namespace, service), Some(key), "{namespace}/{service}");
        }
        assert!(SessionSecret::of_ca("no key").is_none());
    }
}
