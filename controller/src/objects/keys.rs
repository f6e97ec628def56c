//! Where the keys of a token's issuer are had from, or CA certificates, and what is known of them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_api::names::{is_config_map_key, is_subdomain};
use outrigger_api::policy::access::{JwksSpec, RemoteJwksSpec};

use super::{ObjectName, Service};

/// How often a ConfigMap is looked at: nothing says that it has changed.
const CONFIG_MAP: Duration = Duration::from_secs(30);
/// Of a ConfigMap with CA certificates (Gateway API, BackendTLSPolicyValidation.caCertificateRefs).
const CA_KEY: &str = "ca.crt";
/// For an answer of the API server.
pub(crate) const API_SERVER: Duration = Duration::from_secs(10);

/// Keys or certificates that have to be fetched, for the policies of one namespace: what one namespace fetches is never another one's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeySource {
    /// Of the policies.
    pub namespace: Arc<str>,
    /// Where they are.
    pub place: KeyPlace,
    /// How long they are good before they are fetched again.
    pub cache: Duration,
    /// From the first question of a name to the last byte.
    pub timeout: Duration,
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum KeyPlace {
    ConfigMap(ConfigMapKey),
    /// CA certificates, and no keys of tokens.
    Certificates(ConfigMapKey),
    /// Over HTTPS.
    Url {
        host: Arc<str>,
        port: u16,
        /// With the query.
        path: Arc<str>,
        /// Whom to trust in the place of the public roots.
        ca: Option<ConfigMapKey>,
    },
    /// A Service, over plain HTTP.
    Service {
        name: Arc<str>,
        port: u16,
        path: Arc<str>,
    },
}

/// One value of a ConfigMap, of the policies' own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct ConfigMapKey {
    pub name: Arc<str>,
    pub key: Arc<str>,
}

impl KeySource {
    /// `None`: they stand in the policy itself, or it is not valid.
    pub fn new(namespace: &Arc<str>, spec: &JwksSpec) -> Option<Self> {
        let of = |place, cache, timeout| Self {
            namespace: Arc::clone(namespace),
            place,
            cache,
            timeout,
        };
        match spec {
            JwksSpec {
                inline: None,
                config_map_ref: Some(map),
                remote: None,
            } => {
                let place = KeyPlace::ConfigMap(config_map(&map.name, map.key())?);
                Some(of(place, CONFIG_MAP, API_SERVER))
            }
            JwksSpec {
                inline: None,
                config_map_ref: None,
                remote: Some(remote),
            } => Some(of(place(remote)?, remote.cache_duration(), remote.timeout())),
            _ => None,
        }
    }

    /// CA certificates. `None`: there can be no ConfigMap of that name.
    pub fn certificates(namespace: &Arc<str>, config_map: &str) -> Option<Self> {
        Some(Self {
            namespace: Arc::clone(namespace),
            place: KeyPlace::Certificates(self::config_map(config_map, CA_KEY)?),
            cache: CONFIG_MAP,
            timeout: API_SERVER,
        })
    }

    /// A word for whose keys these are: the same as long as the place is the same, for all controllers, and never for another place.
    /// It tells nothing of the place, which a sidecar of another namespace need not know.
    pub(crate) fn word(&self) -> String {
        let numbers;
        let mut fields = vec![&*self.namespace];
        match &self.place {
            KeyPlace::ConfigMap(ConfigMapKey { name, key }) => fields.extend(["configMap", name, key]),
            KeyPlace::Certificates(ConfigMapKey { name, key }) => fields.extend(["certificates", name, key]),
            KeyPlace::Url { host, port, path, ca } => {
                numbers = port.to_string();
                fields.extend(["url", host, &numbers, path]);
                fields.extend(ca.iter().flat_map(|ca| [&*ca.name, &*ca.key]));
            }
            KeyPlace::Service { name, port, path } => {
                numbers = port.to_string();
                fields.extend(["service", name, &numbers, path]);
            }
        }
        let mut digest = Context::new(&SHA256);
        for field in fields {
            // With its length before it, no two lists of fields are the same bytes.
            digest.update(&(field.len() as u64).to_be_bytes());
            digest.update(field.as_bytes());
        }
        URL_SAFE_NO_PAD.encode(digest.finish())
    }

    /// An object of the policies' namespace.
    pub(crate) fn object(&self, name: &str) -> ObjectName {
        ObjectName {
            namespace: Arc::clone(&self.namespace),
            name: name.into(),
        }
    }
}

fn place(remote: &RemoteJwksSpec) -> Option<KeyPlace> {
    if let Some(backend) = &remote.backend_ref {
        return Some(KeyPlace::Service {
            name: backend.name.as_str().into(),
            port: backend.port.try_into().ok()?,
            path: backend.path.as_str().into(),
        });
    }
    let (host, port, path) = remote.https()?;
    Some(KeyPlace::Url {
        host: host.into(),
        port,
        path: path.into(),
        ca: match &remote.ca_config_map_ref {
            Some(ca) => Some(config_map(&ca.name, ca.key())?),
            None => None,
        },
    })
}

/// `None`: there can be none of that name. It is a segment of a path at the API server, where another one could name anything.
fn config_map(name: &str, key: &str) -> Option<ConfigMapKey> {
    (is_subdomain(name) && is_config_map_key(key)).then(|| ConfigMapKey {
        name: name.into(),
        key: key.into(),
    })
}

impl fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigMap(map) | Self::Certificates(map) => write!(f, "{} of the ConfigMap {}", map.key, map.name),
            Self::Url {
                host, port: 443, path, ..
            } => write!(f, "https://{host}{path}"),
            Self::Url { host, port, path, .. } => write!(f, "https://{host}:{port}{path}"),
            Self::Service { name, port, path } => write!(f, "{path} of the Service {name}, port {port}"),
        }
    }
}

/// Where a Service is asked for keys.
///
/// # Errors
/// Why it cannot be, in words for a status.
pub(crate) fn address_of(service: Option<&Service>, name: &str, port: u16) -> Result<SocketAddr, String> {
    let service = service.ok_or_else(|| format!("there is no Service {name}"))?;
    let ip = service.cluster_ips.first();
    let ip = ip.ok_or_else(|| format!("the Service {name} has no ClusterIP"))?;
    match service.ports.iter().any(|known| known.port == port) {
        true => Ok(SocketAddr::new(*ip, port)),
        false => Err(format!("the Service {name} has no TCP port {port}")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_place_has_its_word_and_how_it_is_fetched_does_not_count() {
        let map = |name: &str, key: &str| ConfigMapKey {
            name: name.into(),
            key: key.into(),
        };
        let url = |host: &str, port, path: &str, ca| KeyPlace::Url {
            host: host.into(),
            port,
            path: path.into(),
            ca,
        };
        let service = |name: &str, port, path: &str| KeyPlace::Service {
            name: name.into(),
            port,
            path: path.into(),
        };
        let places = [
            KeyPlace::ConfigMap(map("a", "b")),
            KeyPlace::ConfigMap(map("ab", "")),
            url("a", 443, "/", None),
            url("a", 444, "/", None),
            url("a", 443, "/b", None),
            url("b", 443, "/", None),
            url("a", 443, "/", Some(map("a", "b"))),
            url("a", 443, "/", Some(map("a", "c"))),
            service("a", 80, "/"),
            service("a", 81, "/"),
            service("a", 8, "0/"),
            service("b", 80, "/"),
        ];
        let word = |namespace: &str, place: &KeyPlace, seconds| {
            let source = KeySource {
                namespace: namespace.into(),
                place: place.clone(),
                cache: Duration::from_secs(seconds),
                timeout: Duration::from_secs(seconds),
            };
            source.word()
        };
        let words: HashSet<String> = places
            .iter()
            .flat_map(|place| ["shop", "bank"].map(|namespace| word(namespace, place, 1)))
            .collect();
        assert_eq!(words.len(), 2 * places.len());
        for place in &places {
            assert!(words.contains(&word("shop", place, 2)), "{place}");
        }
        // What another version of the controller says must be the same.
        assert_eq!(
            word("shop", &places[0], 1),
            "6bLTO-RgUzTbXyTQJsf7CwomkdAUIr1Q6TtIVxaZ0vY"
        );
    }
}
