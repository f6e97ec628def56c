//! SPIFFE IDs of Kubernetes workloads.

use std::fmt;
use std::str::FromStr;

use crate::names::is_namespace;

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service account>`: who a workload is.
///
/// The form is checked when it is made: a trust domain of `[a-z0-9._-]`, a namespace that is a label of RFC 1123, a service
/// account of `[a-z0-9.-]` that is no relative path (SPIFFE-ID.md section 2).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: String,
    /// Where the trust domain ends, and where the namespace does.
    trust_domain_end: usize,
    namespace_end: usize,
}

const SCHEME: &str = "spiffe://";
/// SPIFFE-ID.md section 2.3: a SPIFFE ID is at most 2048 bytes, its trust domain at most 255.
const MAX_LENGTH: usize = 2048;

impl SpiffeId {
    /// The ID of a service account.
    ///
    /// # Errors
    /// When one of the parts has a character that a SPIFFE ID of a workload does not have, or is empty.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, InvalidSpiffeId> {
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.trust_domain_end]
    }

    /// Whether it is of this trust domain: the same bytes (SPIFFE-ID.md section 2.1 has lower case only). Whoever verifies a
    /// peer asks this, since a root may have signed for other trust domains too.
    pub fn is_of(&self, trust_domain: &str) -> bool {
        self.trust_domain() == trust_domain
    }

    /// The namespace of the workload.
    pub fn namespace(&self) -> &str {
        &self.uri[self.trust_domain_end + "/ns/".len()..self.namespace_end]
    }

    /// The service account of the workload.
    pub fn service_account(&self) -> &str {
        &self.uri[self.namespace_end + "/sa/".len()..]
    }
}

/// What is not the SPIFFE ID of a Kubernetes workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
pub struct InvalidSpiffeId(pub String);

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(uri: &str) -> Result<Self, InvalidSpiffeId> {
        // What is quoted in an error is bounded: the text may come from a peer's certificate.
        let invalid = || InvalidSpiffeId(uri.chars().take(256).collect());
        let parse = || {
            let rest = uri.strip_prefix(SCHEME)?;
            let (trust_domain, path) = rest.split_once('/')?;
            let (namespace, service_account) = path.strip_prefix("ns/")?.split_once("/sa/")?;
            let name = |s: &str| {
                (1..=253).contains(&s.len())
                    && s.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
                    && !matches!(s, "." | "..")
            };
            let domain = (1..=255).contains(&trust_domain.len())
                && trust_domain
                    .bytes()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'));
            let trust_domain_end = SCHEME.len() + trust_domain.len();
            (uri.len() <= MAX_LENGTH && domain && is_namespace(namespace) && name(service_account)).then(|| Self {
                uri: uri.to_owned(),
                trust_domain_end,
                namespace_end: trust_domain_end + "/ns/".len() + namespace.len(),
            })
        };
        parse().ok_or_else(invalid)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::SpiffeId;

    #[test]
    fn parts() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "shop");
        assert_eq!(id.service_account(), "orders");
        assert!(id.is_of("cluster.local"));
        for other in ["cluster", "cluster.local.", "sub.cluster.local", "Cluster.local", ""] {
            assert!(!id.is_of(other), "{other}");
        }
        assert_eq!(id, SpiffeId::new("cluster.local", "shop", "orders").unwrap());
    }

    #[test]
    fn malformed_ids_are_refused() {
        for wrong in [
            "",
            "spiffe://",
            "spiffe://cluster.local",
            "spiffe://cluster.local/ns/shop",
            "spiffe://cluster.local/ns//sa/orders",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns/shop/sa/orders/x",
            "spiffe://cluster.local/ns/shop/sa/or ders",
            "spiffe://Cluster.local/ns/shop/sa/orders",
            "spiffe://user@cluster.local/ns/shop/sa/orders",
            "spiffe://cluster.local:80/ns/shop/sa/orders",
            "spiffe://cluster.local/ns/shop/sa/orders?x",
            "spiffe://cluster.local/ns/../sa/orders/",
            "spiffe://cluster.local/ns/../sa/orders",
            "spiffe://cluster.local/ns/shop/sa/..",
            "spiffe://cluster.local/ns/a.b/sa/orders",
            "http://cluster.local/ns/shop/sa/orders",
            "spiffe:///ns/shop/sa/orders",
        ] {
            assert!(wrong.parse::<SpiffeId>().is_err(), "{wrong:?} was taken");
        }
        let long = format!("spiffe://cluster.local/ns/shop/sa/{}", "a".repeat(3000));
        assert!(long.parse::<SpiffeId>().unwrap_err().to_string().len() < 600);
    }
}
