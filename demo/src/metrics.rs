//! Reads what the sidecars say of themselves at `/metrics`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

const MAX_BYTES: usize = 4 * 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(2);

/// What the demo wants to know of a sidecar. All counts are since its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SidecarCounts {
    /// By the name of the service that is called.
    pub(super) upstreams: HashMap<String, UpstreamCounts>,
    /// Mutual TLS handshakes with other sidecars that this one began and that went well.
    pub(super) handshakes: u64,
}

/// How a service is called by one sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct UpstreamCounts {
    pub(super) attempts: u64,
    pub(super) failed_attempts: u64,
    pub(super) retries: u64,
}

/// Asks the sidecars' admin ports.
#[derive(Clone)]
pub(super) struct Admin(Client<HttpConnector, Empty<Bytes>>);

impl Admin {
    pub(super) fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }

    /// Whether the sidecar has its SVID and listens.
    pub(super) async fn ready(&self, admin: SocketAddr) -> bool {
        self.fetch(admin, "/readyz").await.is_ok()
    }

    /// The counts of the sidecar with this admin port.
    pub(super) async fn counts(&self, admin: SocketAddr) -> anyhow::Result<SidecarCounts> {
        Ok(parse(&self.fetch(admin, "/metrics").await?))
    }

    async fn fetch(&self, admin: SocketAddr, path: &str) -> anyhow::Result<String> {
        let request = Request::get(format!("http://{admin}{path}")).body(Empty::new())?;
        let fetch = async {
            let (head, body) = self.0.request(request).await?.into_parts();
            anyhow::ensure!(head.status == StatusCode::OK, "{path} answers {}", head.status);
            let body = Limited::new(body, MAX_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{path} cannot be read: {error}"))?;
            Ok(String::from_utf8(body.to_bytes().into())?)
        };
        tokio::time::timeout(TIMEOUT, fetch)
            .await
            .with_context(|| format!("{path} does not answer"))?
    }
}

fn parse(text: &str) -> SidecarCounts {
    let mut counts = SidecarCounts::default();
    for sample in text.lines().filter_map(sample) {
        let is = |label: &str, value: &str| sample.labels.get(label).is_some_and(|v| v == value);
        // "namespace/name"
        let service = sample
            .labels
            .get("service")
            .and_then(|service| service.rsplit('/').next());
        match (sample.name, service) {
            ("outrigger_upstream_attempts_total", Some(service)) => {
                let upstream = counts.upstreams.entry(service.to_owned()).or_default();
                upstream.attempts += sample.value;
                if is("outcome", "failure") {
                    upstream.failed_attempts += sample.value;
                }
            }
            ("outrigger_retries_total", Some(service)) => {
                counts.upstreams.entry(service.to_owned()).or_default().retries += sample.value;
            }
            ("outrigger_tls_handshakes_total", _) if is("direction", "outbound") && is("result", "ok") => {
                counts.handshakes += sample.value;
            }
            _ => {}
        }
    }
    counts
}

struct Sample<'a> {
    name: &'a str,
    labels: HashMap<&'a str, String>,
    value: u64,
}

/// One line of Prometheus' text format, `name{label="value",…} 12`. Comments, and values that are no counts, are `None`.
fn sample(line: &str) -> Option<Sample<'_>> {
    let name_end = line.find(['{', ' ']).filter(|_| !line.starts_with('#'))?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = HashMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            loop {
                match chars.next()? {
                    (end, '"') => {
                        rest = &after[end + 1..];
                        break;
                    }
                    (_, '\\') => value.push(match chars.next()?.1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (_, other) => value.push(other),
                }
            }
            labels.insert(label, value);
        }
    }
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    (value >= 0.0 && value.fract() == 0.0).then_some(Sample {
        name,
        labels,
        value: value as u64,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{SidecarCounts, UpstreamCounts, parse, sample};

    #[test]
    fn counts_of_a_sidecar() {
        let text = "\
# HELP outrigger_upstream_attempts Attempts.
# TYPE outrigger_upstream_attempts counter
outrigger_upstream_attempts_total{service=\"shop/inventory\",outcome=\"success\"} 85
outrigger_upstream_attempts_total{service=\"shop/inventory\",outcome=\"failure\"} 15
outrigger_retries_total{service=\"shop/inventory\",result=\"success\"} 13
outrigger_retries_total{service=\"shop/inventory\",result=\"failure\"} 2
outrigger_tls_handshakes_total{direction=\"outbound\",result=\"ok\"} 3
outrigger_tls_handshakes_total{direction=\"outbound\",result=\"closed\"} 4
outrigger_tls_handshakes_total{direction=\"inbound\",result=\"ok\"} 5
# EOF";
        let inventory = UpstreamCounts {
            attempts: 100,
            failed_attempts: 15,
            retries: 15,
        };
        let upstreams = [("inventory".to_owned(), inventory)].into();
        assert_eq!(
            parse(text),
            SidecarCounts {
                upstreams,
                handshakes: 3
            }
        );
    }

    #[test]
    fn lines_of_every_kind() {
        let escaped = sample(r#"a{b="x\"y\\z\n",c="}"} 1 1700000000"#).unwrap();
        assert_eq!(
            (
                escaped.labels["b"].as_str(),
                escaped.labels["c"].as_str(),
                escaped.value
            ),
            ("x\"y\\z\n", "}", 1)
        );
        assert_eq!(sample("up 1").unwrap().value, 1);
        assert_eq!(sample("up 1.0").unwrap().value, 1);
        for other in ["", "# HELP a b", "a{b=\"c", "a{b} 1", "a NaN", "a 0.5", "a -1", "a"] {
            assert!(sample(other).is_none(), "{other:?} was taken");
        }
    }
}
