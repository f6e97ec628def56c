//! What the controller counts. No label has more values than an enum has.

use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How a request for an SVID ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssueResult {
    Ok,
    Unauthenticated,
    InvalidCsr,
    Unavailable,
}

/// What a stream is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    Target,
    Workload,
}

/// Whose certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateKind {
    Leaf,
    Issuer,
    Root,
}

impl IssueResult {
    fn label(self) -> Label {
        let value = match self {
            Self::Ok => "ok",
            Self::Unauthenticated => "unauthenticated",
            Self::InvalidCsr => "invalid_csr",
            Self::Unavailable => "unavailable",
        };
        [("result", value)]
    }
}

impl StreamKind {
    fn label(self) -> Label {
        let value = match self {
            Self::Target => "target",
            Self::Workload => "workload",
        };
        [("kind", value)]
    }
}

impl CertificateKind {
    fn label(self) -> Label {
        let value = match self {
            Self::Leaf => "leaf",
            Self::Issuer => "issuer",
            Self::Root => "root",
        };
        [("kind", value)]
    }
}

/// A label's name and value.
type Label = [(&'static str, &'static str); 1];

/// All metrics of one controller.
pub struct Metrics {
    registry: Registry,
    issued: Family<Label, Counter>,
    streams: Family<Label, Gauge>,
    pushes: Family<Label, Counter>,
    targets: Family<Label, Gauge>,
    expiry: Family<Label, Gauge<f64, AtomicU64>>,
    handshakes_failed: Counter,
    ca_errors: Counter,
    status_writes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("outrigger");
        let issued = Family::default();
        registry.register(
            "controller_svids_issued",
            "Requests for an SVID, by how they ended",
            issued.clone(),
        );
        let streams = Family::default();
        registry.register(
            "controller_streams_open",
            "Discovery streams that sidecars hold open",
            streams.clone(),
        );
        let pushes = Family::default();
        registry.register(
            "controller_pushes",
            "Messages sent on discovery streams",
            pushes.clone(),
        );
        let targets = Family::default();
        registry.register(
            "controller_targets",
            "Different things that discovery streams are about",
            targets.clone(),
        );
        let handshakes_failed = Counter::default();
        registry.register(
            "controller_tls_handshakes_failed",
            "TLS handshakes that failed or timed out",
            handshakes_failed.clone(),
        );
        let ca_errors = Counter::default();
        registry.register(
            "controller_ca_errors",
            "Times that the CA's Secret could not be used",
            ca_errors.clone(),
        );
        let status_writes = Counter::default();
        registry.register(
            "controller_status_writes",
            "Statuses written to routes and policies",
            status_writes.clone(),
        );
        let expiry = Family::default();
        // The same name and labels as the sidecar's.
        registry.register(
            "cert_expiry_seconds",
            "Seconds until the certificate expires: of the server (leaf), the issuing CA and the last root",
            expiry.clone(),
        );
        Self {
            registry,
            issued,
            streams,
            pushes,
            targets,
            expiry,
            handshakes_failed,
            ca_errors,
            status_writes,
        }
    }
}

impl Metrics {
    /// The text that Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    pub(crate) fn issued(&self, result: IssueResult) {
        self.issued.get_or_create(&result.label()).inc();
    }

    pub(crate) fn pushed(&self, kind: StreamKind) {
        self.pushes.get_or_create(&kind.label()).inc();
    }

    pub(crate) fn targets(&self, kind: StreamKind, number: usize) {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.targets.get_or_create(&kind.label()).set(number);
    }

    /// Counts a stream until the guard is dropped.
    pub(crate) fn stream(&self, kind: StreamKind) -> OpenStream {
        let gauge = self.streams.get_or_create_owned(&kind.label());
        gauge.inc();
        OpenStream(gauge)
    }

    pub(crate) fn expires(&self, kind: CertificateKind, not_after: SystemTime) {
        let seconds = match not_after.duration_since(SystemTime::now()) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        };
        self.expiry.get_or_create(&kind.label()).set(seconds);
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    pub(crate) fn ca_error(&self) {
        self.ca_errors.inc();
    }

    pub(crate) fn status_written(&self) {
        self.status_writes.inc();
    }
}

/// One open stream.
pub(crate) struct OpenStream(Gauge);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::{CertificateKind, IssueResult, Metrics, StreamKind};
    use std::time::{Duration, SystemTime};

    #[test]
    fn names() {
        let metrics = Metrics::default();
        metrics.issued(IssueResult::Ok);
        let open = metrics.stream(StreamKind::Target);
        metrics.expires(CertificateKind::Root, SystemTime::now() + Duration::from_secs(100));
        let text = metrics.encode();
        for line in [
            "outrigger_controller_svids_issued_total{result=\"ok\"} 1",
            "outrigger_controller_streams_open{kind=\"target\"} 1",
            "outrigger_cert_expiry_seconds{kind=\"root\"}",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
        drop(open);
        assert!(metrics.encode().contains("streams_open{kind=\"target\"} 0"));
    }
}
