//! What the controller counts. No label has more values than an enum has.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use outrigger_gate::{Budget, Gate, Paces};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::clock;
use crate::objects::networks::Holder;
use crate::share::Tenant;

/// How a request for an SVID ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssueResult {
    Ok,
    Unauthenticated,
    InvalidCsr,
    Unavailable,
    /// Too many waited, and most of them of the same caller.
    Crowded,
}

/// What a stream is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    Session,
    Target,
    Workload,
}

/// What sidecars are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    Routes,
    Endpoints,
    /// Both together, to sidecars of the version before the session.
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
            Self::Crowded => "crowded",
        };
        [("result", value)]
    }
}

impl StreamKind {
    fn label(self) -> Label {
        let value = match self {
            Self::Session => "session",
            Self::Target => "target",
            Self::Workload => "workload",
        };
        [("kind", value)]
    }
}

impl AnswerKind {
    fn label(self) -> Label {
        let value = match self {
            Self::Routes => "routes",
            Self::Endpoints => "endpoints",
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

impl Holder {
    fn label(self) -> Label {
        let value = match self {
            Self::Service => "service",
            Self::Pod => "pod",
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
    wants: Gauge,
    pushes: Family<Label, Counter>,
    targets: Family<Label, Gauge>,
    expiry: Family<Label, Gauge<f64, AtomicU64>>,
    handshakes_failed: Counter,
    address_mismatches: Counter,
    ca_errors: Counter,
    ca_waits: Gauge,
    status_writes: Counter,
    gate: OnceLock<Arc<Gate>>,
    budget: OnceLock<Arc<Budget<Tenant>>>,
    paces: OnceLock<Arc<Paces<Tenant>>>,
    secret_missing: Gauge,
    strangers: Gauge,
    displaced: Gauge,
    charged: Gauge,
    over_budget: Gauge,
    pauses: Gauge,
    outside_networks: Family<Label, Gauge>,
    networks_refuted: Gauge,
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
        let wants = Gauge::default();
        registry.register(
            "controller_wants",
            "Addresses that sidecars want to be told about, over all sessions",
            wants.clone(),
        );
        let pushes = Family::default();
        registry.register("controller_pushes", "Answers sent to sidecars", pushes.clone());
        let targets = Family::default();
        registry.register(
            "controller_targets",
            "Different things that sidecars are told about",
            targets.clone(),
        );
        let handshakes_failed = Counter::default();
        registry.register(
            "controller_tls_handshakes_failed",
            "TLS handshakes that failed or timed out",
            handshakes_failed.clone(),
        );
        let address_mismatches = Counter::default();
        registry.register(
            "controller_caller_address_mismatches",
            "Requests for an SVID from the address of another pod than the token's",
            address_mismatches.clone(),
        );
        let ca_errors = Counter::default();
        registry.register(
            "controller_ca_errors",
            "Times that the CA's Secret could not be used",
            ca_errors.clone(),
        );
        let ca_waits = Gauge::default();
        registry.register(
            "controller_ca_waits",
            "1 while the CA of the Secret waits for its root to be known, and the one before it issues",
            ca_waits.clone(),
        );
        let status_writes = Counter::default();
        registry.register(
            "controller_status_writes",
            "Statuses written to routes and policies",
            status_writes.clone(),
        );
        let outside_networks = Family::default();
        registry.register(
            "controller_addresses_outside_networks",
            "Addresses of Services and pods that are outside of clusterNetworks",
            outside_networks.clone(),
        );
        let networks_refuted = Gauge::default();
        registry.register(
            "controller_networks_refuted",
            "1 while clusterNetworks is proved wrong by an address, so that sidecars ask for every address",
            networks_refuted.clone(),
        );
        let expiry = Family::default();
        // The same name and labels as the sidecar's.
        registry.register(
            "cert_expiry_seconds",
            "Seconds until the certificate expires: of the server (leaf), the issuing CA and the last root",
            expiry.clone(),
        );
        let secret_missing = Gauge::default();
        registry.register(
            "secret_missing",
            "1 while the CA's Secret is not there",
            secret_missing.clone(),
        );
        let strangers = Gauge::default();
        registry.register(
            "controller_strangers",
            "Connections of peers without an SVID",
            strangers.clone(),
        );
        let displaced = Gauge::default();
        registry.register(
            "controller_strangers_displaced",
            "Connections of peers without an SVID that were closed for others, since the start",
            displaced.clone(),
        );
        let charged = Gauge::default();
        registry.register(
            "controller_charged_bytes",
            "Memory that is charged to peers with an SVID",
            charged.clone(),
        );
        let over_budget = Gauge::default();
        registry.register(
            "controller_over_budget",
            "Connections, streams, addresses, messages and requests that were refused because their pod or namespace holds as much as it may, \
             since the start",
            over_budget.clone(),
        );
        let pauses = Gauge::default();
        registry.register(
            "controller_pauses",
            "Times that a connection was not read for a while because its pod says more than it may, since the start",
            pauses.clone(),
        );
        Self {
            gate: OnceLock::new(),
            budget: OnceLock::new(),
            paces: OnceLock::new(),
            secret_missing,
            strangers,
            displaced,
            charged,
            over_budget,
            pauses,
            registry,
            issued,
            streams,
            wants,
            pushes,
            targets,
            expiry,
            handshakes_failed,
            address_mismatches,
            ca_errors,
            ca_waits,
            status_writes,
            outside_networks,
            networks_refuted,
        }
    }
}

impl Metrics {
    /// The text that Prometheus reads.
    pub fn encode(&self) -> String {
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
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
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

    pub(crate) fn pushed(&self, kind: AnswerKind) {
        self.pushes.get_or_create(&kind.label()).inc();
    }

    pub(crate) fn answers(&self, kind: AnswerKind, number: usize) {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.targets.get_or_create(&kind.label()).set(number);
    }

    /// Counts a stream until the guard is dropped.
    pub(crate) fn stream(&self, kind: StreamKind) -> OpenStream {
        let gauge = self.streams.get_or_create_owned(&kind.label());
        gauge.inc();
        OpenStream(gauge)
    }

    /// Counts an address that is wanted until the guard is dropped.
    pub(crate) fn wanted(&self) -> Wanted {
        self.wants.inc();
        Wanted(self.wants.clone())
    }

    pub(crate) fn expires(&self, kind: CertificateKind, not_after: SystemTime) {
        let seconds = match not_after.duration_since(clock::now()) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        };
        self.expiry.get_or_create(&kind.label()).set(seconds);
    }

    pub(crate) fn networks(&self, (outside, refuted): ([(Holder, usize); 2], bool)) {
        for (holder, addresses) in outside {
            let addresses = i64::try_from(addresses).unwrap_or(i64::MAX);
            self.outside_networks.get_or_create(&holder.label()).set(addresses);
        }
        self.networks_refuted.set(refuted.into());
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    pub(crate) fn address_mismatch(&self) {
        self.address_mismatches.inc();
    }

    pub(crate) fn secret_is_there(&self, there: bool) {
        self.secret_missing.set(i64::from(!there));
    }

    pub(crate) fn ca_error(&self) {
        self.ca_errors.inc();
    }

    pub(crate) fn ca_waits(&self, waits: bool) {
        self.ca_waits.set(waits.into());
    }

    pub(crate) fn status_written(&self) {
        self.status_writes.inc();
    }
}

/// One open stream.
pub(crate) struct OpenStream(Gauge);

/// An address that is wanted.
pub(crate) struct Wanted(Gauge);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

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
