//! What an issuer and its server count. No label has more values than an enum has.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use outrigger_gate::{Budget, Gate, Paces};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::clock;
use crate::share::Tenant;

/// How a request for an SVID ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IssueResult {
    Ok,
    Unauthenticated,
    InvalidCsr,
    Unavailable,
    /// Too many waited, and most of them of the same caller.
    Crowded,
}

/// Whose certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CertificateKind {
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
            Self::Crowded => "crowded",
        };
        [("result", value)]
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

/// All metrics of one issuer. The default ones are in no registry.
#[derive(Default)]
pub struct Metrics {
    issued: Family<Label, Counter>,
    expiry: Family<Label, Gauge<f64, AtomicU64>>,
    handshakes_failed: Counter,
    gate: OnceLock<Arc<Gate>>,
    budget: OnceLock<Arc<Budget<Tenant>>>,
    paces: OnceLock<Arc<Paces<Tenant>>>,
    strangers: Gauge,
    displaced: Gauge,
    charged: Gauge,
    over_budget: Gauge,
    pauses: Gauge,
}

impl Metrics {
    /// Those that `registry` has from now on.
    pub fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "controller_svids_issued",
            "Requests for an SVID, by how they ended",
            metrics.issued.clone(),
        );
        registry.register(
            "controller_tls_handshakes_failed",
            "TLS handshakes that failed or timed out",
            metrics.handshakes_failed.clone(),
        );
        // The same name and labels as the sidecar's.
        registry.register(
            "cert_expiry_seconds",
            "Seconds until the certificate expires: of the server (leaf), the issuing CA and the last root",
            metrics.expiry.clone(),
        );
        registry.register(
            "controller_strangers",
            "Connections of peers without an SVID",
            metrics.strangers.clone(),
        );
        registry.register(
            "controller_strangers_displaced",
            "Connections of peers without an SVID that were closed for others, since the start",
            metrics.displaced.clone(),
        );
        registry.register(
            "controller_charged_bytes",
            "Memory that is charged to peers with an SVID",
            metrics.charged.clone(),
        );
        registry.register(
            "controller_over_budget",
            "Connections, streams, addresses, messages and requests that were refused because their pod or namespace holds as much as it may, \
             since the start",
            metrics.over_budget.clone(),
        );
        registry.register(
            "controller_pauses",
            "Times that a connection was not read for a while because its pod says more than it may, since the start",
            metrics.pauses.clone(),
        );
        metrics
    }

    /// Reads what others count; to be called before the registry is read.
    pub fn refresh(&self) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        if let Some(gate) = self.gate.get() {
            self.strangers.set(number(gate.connections() as u64));
            self.displaced.set(number(gate.displaced()));
        }
        if let Some(budget) = self.budget.get() {
            self.charged.set(number(budget.used()));
            self.over_budget.set(number(budget.refused()));
        }
        if let Some(paces) = self.paces.get() {
            self.pauses.set(number(paces.pauses()));
        }
    }

    /// Counts the connections behind the gate. There is one server for one of these.
    pub(crate) fn watch_gate(&self, gate: &Arc<Gate>) {
        let _ = self.gate.set(Arc::clone(gate));
    }

    /// Says what is charged.
    pub(crate) fn watch_budget(&self, budget: &Arc<Budget<Tenant>>) {
        let _ = self.budget.set(Arc::clone(budget));
    }

    /// Says how fast peers speak.
    pub(crate) fn watch_paces(&self, paces: &Arc<Paces<Tenant>>) {
        let _ = self.paces.set(Arc::clone(paces));
    }

    pub(crate) fn issued(&self, result: IssueResult) {
        self.issued.get_or_create(&result.label()).inc();
    }

    pub(crate) fn expires(&self, kind: CertificateKind, not_after: SystemTime) {
        let seconds = match not_after.duration_since(clock::now()) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        };
        self.expiry.get_or_create(&kind.label()).set(seconds);
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::{CertificateKind, IssueResult, Metrics};
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use std::time::{Duration, SystemTime};

    #[test]
    fn names() {
        let mut registry = Registry::with_prefix("outrigger");
        let metrics = Metrics::registered(&mut registry);
        metrics.issued(IssueResult::Ok);
        metrics.expires(CertificateKind::Root, SystemTime::now() + Duration::from_secs(100));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "outrigger_controller_svids_issued_total{result=\"ok\"} 1",
            "outrigger_cert_expiry_seconds{kind=\"root\"}",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
    }
}
