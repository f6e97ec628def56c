//! What the controller counts. No label has more values than an enum has.

use std::sync::{Arc, OnceLock};

use outrigger_issuer::metrics::Metrics as IssuerMetrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::objects::networks::Holder;
use crate::room::Room;

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
    Access,
    Limits,
    Routes,
    Endpoints,
    /// Both together, to sidecars of the version before the session.
    Target,
    Workload,
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
            Self::Access => "access",
            Self::Limits => "limits",
            Self::Routes => "routes",
            Self::Endpoints => "endpoints",
            Self::Target => "target",
            Self::Workload => "workload",
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
    issuer: Arc<IssuerMetrics>,
    streams: Family<Label, Gauge>,
    wants: Gauge,
    pushes: Family<Label, Counter>,
    targets: Family<Label, Gauge>,
    room: OnceLock<Room>,
    answer_bytes: Gauge,
    answers_refused: Gauge,
    address_mismatches: Counter,
    ca_errors: Counter,
    ca_waits: Gauge,
    status_writes: Counter,
    key_fetches: Family<Label, Counter>,
    secret_missing: Gauge,
    outside_networks: Family<Label, Gauge>,
    networks_refuted: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("outrigger");
        let issuer = Arc::new(IssuerMetrics::registered(&mut registry));
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
        let answer_bytes = Gauge::default();
        registry.register(
            "controller_answer_bytes",
            "Memory that answers take, and that is charged to the namespaces that make them large",
            answer_bytes.clone(),
        );
        let answers_refused = Gauge::default();
        registry.register(
            "controller_answers_refused",
            "Answers that were not made because a namespace takes as much memory for them as it may, since the start",
            answers_refused.clone(),
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
        let key_fetches = Family::default();
        registry.register(
            "controller_key_fetches",
            "Times that keys of a token's issuer were fetched, or could not be",
            key_fetches.clone(),
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
        let secret_missing = Gauge::default();
        registry.register(
            "secret_missing",
            "1 while the CA's Secret is not there",
            secret_missing.clone(),
        );
        Self {
            secret_missing,
            registry,
            issuer,
            streams,
            wants,
            pushes,
            targets,
            room: OnceLock::new(),
            answer_bytes,
            answers_refused,
            address_mismatches,
            ca_errors,
            ca_waits,
            status_writes,
            key_fetches,
            outside_networks,
            networks_refuted,
        }
    }
}

impl Metrics {
    /// The text that Prometheus reads.
    pub fn encode(&self) -> String {
        self.issuer.refresh();
        if let Some(room) = self.room.get() {
            let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            self.answer_bytes.set(number(room.used()));
            self.answers_refused.set(number(room.refused()));
        }
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// What its issuer and server count.
    pub fn issuer(&self) -> Arc<IssuerMetrics> {
        Arc::clone(&self.issuer)
    }

    /// Says what answers take. There is one index for one of these.
    pub(crate) fn watch_room(&self, room: &Room) {
        let _ = self.room.set(room.clone());
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

    pub(crate) fn networks(&self, (outside, refuted): ([(Holder, usize); 2], bool)) {
        for (holder, addresses) in outside {
            let addresses = i64::try_from(addresses).unwrap_or(i64::MAX);
            self.outside_networks.get_or_create(&holder.label()).set(addresses);
        }
        self.networks_refuted.set(refuted.into());
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

    pub(crate) fn keys_fetched(&self, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.key_fetches.get_or_create(&[("result", result)]).inc();
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
    use super::{Metrics, StreamKind};

    #[test]
    fn names() {
        let metrics = Metrics::default();
        let open = metrics.stream(StreamKind::Target);
        let text = metrics.encode();
        for line in [
            "outrigger_controller_streams_open{kind=\"target\"} 1",
            "outrigger_controller_strangers 0",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
        drop(open);
        assert!(metrics.encode().contains("streams_open{kind=\"target\"} 0"));
    }
}
