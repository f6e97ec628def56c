//! Metrics: plain atomics that the request path reaches without a lock, and Prometheus text made from them at a scrape.
//!
//! Names are OpenTelemetry's where it has one, and `outrigger_*` else. Labels come from closed sets: the Services called,
//! the app's ports, methods, status codes and [`Reason`]s; never a path, an address, or anything else that a peer chooses.
//! Each set has a cap; what is beyond it is counted in a series named `_overflow`.
//!
//! A Service that nobody calls any more leaves its set an hour later, so a cluster that changes all the time does not fill it.

pub mod callers;
mod encode;
mod histogram;
mod labels;
mod policies;
mod process;
mod series;
mod stores;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_proxy_transport::body::OnTooLarge;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::room;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::model::ServiceName;

use super::request::{AttemptEnd, Direction, RequestEnd, Status};
use super::tunnel::TunnelEnds;
use super::{AccessDecision, AuthDecision, FaultKind, FaultNote, LimitDecision};
use callers::Callers;
pub use labels::{AtLimit, Ejected, Ended, Handshake, NotMirrored, Refused};
use policies::PolicyCounters;
use series::{SeriesKey, SeriesSet};
use stores::StoreMetrics;
pub use stores::{Asked, StoreLink};

/// Services whose series are kept apart.
const MAX_SERVICES: usize = 512;
/// The app's ports whose series are kept apart.
const MAX_PORTS: usize = 64;
/// How long the series of a Service live that nobody calls.
const IDLE: Duration = Duration::from_secs(3600);

/// How an attempt or a request ended, as a label has it.
#[derive(Clone, Copy)]
enum Outcome {
    Success,
    Failure,
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Self {
        if status.failed() { Self::Failure } else { Self::Success }
    }
}

/// All metrics of a process.
pub struct Metrics {
    services: Table<ServiceName>,
    ports: Table<u16>,
    /// What is called outside the cluster, all together.
    external: Arc<ServiceMetrics>,
    errors: [AtomicU64; Reason::ALL.len()],
    access: PolicyCounters<AccessDecision>,
    limits: PolicyCounters<LimitDecision>,
    connection_limits: PolicyCounters<LimitDecision>,
    stores: StoreMetrics,
    callers: Callers,
    handshakes: [[AtomicU64; Handshake::NAMES.len()]; 2],
    connections: [[AtomicI64; 2]; 2],
    connections_limit: AtomicU64,
    connections_shed: AtomicU64,
    connections_refused: [AtomicU64; Refused::NAMES.len()],
    connections_ended: [[AtomicU64; Ended::NAMES.len()]; 2],
    connections_expired: [AtomicI64; 2],
    detect_timeouts: AtomicU64,
    spans_exported: AtomicU64,
    spans_dropped: AtomicU64,
    access_log_dropped: AtomicU64,
    expiries: Mutex<Vec<Expiry>>,
    runtimes: Mutex<Vec<Handle>>,
    servers_first: OnceLock<ServersFirst>,
}

/// Asked at each scrape: ports of Services, and of the app, whose server speaks first although nobody declared it.
type ServersFirst = Box<dyn Fn() -> (Vec<ServiceName>, Vec<u16>) + Send + Sync>;

/// Seconds until a certificate expires, asked for at each scrape.
struct Expiry {
    kind: &'static str,
    seconds: Box<dyn Fn() -> Option<f64> + Send + Sync>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            services: Table::new(MAX_SERVICES),
            ports: Table::new(MAX_PORTS),
            external: Arc::new(ServiceMetrics::new("_external".into())),
            errors: Default::default(),
            access: PolicyCounters::default(),
            limits: PolicyCounters::default(),
            connection_limits: PolicyCounters::default(),
            stores: StoreMetrics::default(),
            callers: Callers::new(),
            handshakes: Default::default(),
            connections: Default::default(),
            connections_limit: AtomicU64::new(0),
            connections_shed: AtomicU64::new(0),
            connections_refused: Default::default(),
            connections_ended: Default::default(),
            connections_expired: Default::default(),
            detect_timeouts: AtomicU64::new(0),
            spans_exported: AtomicU64::new(0),
            spans_dropped: AtomicU64::new(0),
            access_log_dropped: AtomicU64::new(0),
            expiries: Mutex::new(Vec::new()),
            runtimes: Mutex::new(Vec::new()),
            servers_first: OnceLock::new(),
        }
    }

    /// The counters of a Service, or of everything outside the cluster. Finding them takes no lock and, from the second
    /// time on, no memory; whoever keeps the handle saves even the look-up.
    pub fn service(&self, name: Option<&ServiceName>) -> Arc<ServiceMetrics> {
        match name {
            // The same Service's ports share their series.
            Some(name) => self.services.entry(name, ServiceName::label),
            None => Arc::clone(&self.external),
        }
    }

    /// The counters of a port of the app. As cheap as those of a Service.
    pub fn port(&self, port: u16) -> Arc<ServiceMetrics> {
        self.ports.entry(&port, u16::to_string)
    }

    /// A TLS handshake with another sidecar ended.
    pub fn handshake(&self, direction: Direction, result: Handshake) {
        self.handshakes[direction as usize][result as usize].fetch_add(1, Relaxed);
    }

    /// A connection was opened; it counts until the guard is dropped. `tls`: mutual TLS between sidecars.
    pub fn connection(self: &Arc<Self>, direction: Direction, tls: bool) -> OpenConnection {
        self.connections[direction as usize][usize::from(tls)].fetch_add(1, Relaxed);
        OpenConnection {
            metrics: Arc::clone(self),
            direction,
            tls,
        }
    }

    /// So many connections may be open at the same time.
    pub fn connections_limit(&self, limit: usize) {
        self.connections_limit.store(limit as u64, Relaxed);
    }

    /// A connection was closed before anything of it was read.
    pub fn connection_refused(&self, why: Refused) {
        self.connections_refused[why as usize].fetch_add(1, Relaxed);
    }

    /// A connection between sidecars was told to end.
    pub fn connection_ended(&self, direction: Direction, why: Ended) {
        self.connections_ended[direction as usize][why as usize].fetch_add(1, Relaxed);
    }

    /// So many more connections have outlived the certificate of their peer, or less.
    pub fn connections_expired(&self, direction: Direction, change: i64) {
        self.connections_expired[direction as usize].fetch_add(change, Relaxed);
    }

    /// The first bytes of a connection did not come within the time limit of detection.
    pub fn detect_timeout(&self) {
        self.detect_timeouts.fetch_add(1, Relaxed);
    }

    /// Something failed that is not a request: a connection that carries no HTTP, for instance. Requests are counted by
    /// [`super::Telemetry::request_ended`].
    pub fn error(&self, reason: Reason) {
        // `Reason::ALL` lists every reason in the order of the enum; a test holds it to that.
        self.errors[reason as usize].fetch_add(1, Relaxed);
    }

    /// Policies decided on a request or a connection. `policy`: "" where none of them matched. `rule`: "" where none of its
    /// rules did.
    pub fn access(&self, decision: AccessDecision, policy: &str, rule: &str, reason: &'static str) {
        self.access.count(decision, policy, rule, reason);
    }

    /// Policies that are not there any more are counted no more.
    pub fn retain_access(&self, is_there: impl Fn(&str) -> bool) {
        self.access.retain(is_there);
    }

    /// A limit decided on a request.
    pub fn limit(&self, decision: LimitDecision, policy: &str, limit: &str) {
        self.limits.count(decision, policy, limit, "");
    }

    /// A policy decided on a connection of bytes. `limit` is the number of it that refuses; "": none does.
    pub fn limit_connection(&self, decision: LimitDecision, policy: &str, limit: &str) {
        self.connection_limits.count(decision, policy, limit, "");
    }

    /// The same of limits.
    pub fn retain_limits(&self, is_there: impl Fn(&str) -> bool) {
        self.connection_limits.retain(&is_there);
        self.limits.retain(is_there);
    }

    /// Who has been let in.
    pub fn callers(&self) -> &Callers {
        &self.callers
    }

    /// Adds `outrigger_cert_expiry_seconds{kind}`: `seconds` is asked at each scrape, and negative after the expiry.
    pub fn expiry(&self, kind: &'static str, seconds: impl Fn() -> Option<f64> + Send + Sync + 'static) {
        self.expiries.lock().push(Expiry {
            kind,
            seconds: Box::new(seconds),
        });
    }

    /// Counts the tasks of a runtime in `outrigger_tasks_alive`.
    pub fn runtime(&self, runtime: Handle) {
        self.runtimes.lock().push(runtime);
    }

    /// Adds `outrigger_server_first_ports`: `ports` is asked at each scrape. Only the first call counts.
    pub fn servers_first(&self, ports: impl Fn() -> (Vec<ServiceName>, Vec<u16>) + Send + Sync + 'static) {
        let _ = self.servers_first.set(Box::new(ports));
    }

    /// All of it as OpenMetrics text.
    pub fn text(self: &Arc<Self>) -> String {
        self.services.expire();
        self.ports.expire();
        encode::text(self)
    }

    pub(super) fn tunnel(&self, ends: &TunnelEnds) -> Arc<ServiceMetrics> {
        match ends.direction {
            Direction::Outbound => self.service(ends.service.as_ref()),
            Direction::Inbound => self.port(ends.port),
        }
    }

    /// An attempt to call an endpoint ended: success rates before retries come from these.
    #[expect(clippy::unused_self, reason = "an observer of calls, as the others are")]
    pub(super) fn attempt_ended(&self, attempt: &AttemptEnd<'_>) {
        if attempt.request.direction == Direction::Outbound && attempt.request.fault.is_none() {
            attempt.metrics.attempt_ended(attempt);
        }
    }

    pub(super) fn request_ended(&self, end: &RequestEnd<'_>) {
        // What a fault has done says nothing of the Service.
        let has_fault = end.request.fault.is_some();
        if !has_fault {
            end.metrics.request_ended(end);
        }
        let reason = end
            .status
            .reason
            .filter(|reason| !has_fault || *reason == Reason::FaultInjected);
        if let Some(reason) = reason {
            self.error(reason);
        }
    }

    pub(super) fn spans_exported(&self, count: usize) {
        self.spans_exported.fetch_add(count as u64, Relaxed);
    }

    pub(super) fn spans_dropped(&self, count: usize) {
        self.spans_dropped.fetch_add(count as u64, Relaxed);
    }

    pub(super) fn access_log_dropped(&self) {
        self.access_log_dropped.fetch_add(1, Relaxed);
    }
}

/// Counts an open connection for as long as it lives.
pub struct OpenConnection {
    metrics: Arc<Metrics>,
    direction: Direction,
    tls: bool,
}

impl OpenConnection {
    /// The connection turned out to be mutual TLS.
    pub fn set_tls(&mut self) {
        if !self.tls {
            self.tls = true;
            let of = &self.metrics.connections[self.direction as usize];
            of[0].fetch_sub(1, Relaxed);
            of[1].fetch_add(1, Relaxed);
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.metrics.connections[self.direction as usize][usize::from(self.tls)].fetch_sub(1, Relaxed);
    }
}

/// What is counted for one Service that is called, or for one port of the app.
pub struct ServiceMetrics {
    /// "namespace/name", or the port.
    label: String,
    durations: SeriesSet,
    /// By outcome, and by whether it was mutual TLS.
    requests: [[AtomicU64; 2]; 2],
    attempts: [AtomicU64; 2],
    retries: [AtomicU64; 2],
    budget_exhausted: AtomicU64,
    bodies_not_kept: AtomicU64,
    not_mirrored: [AtomicU64; NotMirrored::NAMES.len()],
    ejected: [AtomicU64; Ejected::NAMES.len()],
    faults: [AtomicU64; FaultKind::NAMES.len()],
    fallbacks: AtomicU64,
    external_auth: [AtomicU64; AuthDecision::NAMES.len()],
    at_limit: [AtomicU64; AtLimit::NAMES.len()],
    /// Connections that are carried as bytes, and what they have sent and received.
    tunnels: AtomicU64,
    tunnel_bytes: [AtomicU64; 2],
}

impl room::Observer for Metrics {
    fn connection_shed(&self) {
        self.connections_shed.fetch_add(1, Relaxed);
    }

    fn connection_crowded_out(&self) {
        self.connection_refused(Refused::Crowded);
    }
}

impl OnTooLarge for ServiceMetrics {
    fn body_not_kept(&self) {
        self.bodies_not_kept.fetch_add(1, Relaxed);
    }
}

impl ServiceMetrics {
    pub(super) fn tunnel_began(&self) {
        self.tunnels.fetch_add(1, Relaxed);
    }

    pub(super) fn tunnel_moved(&self, sent: u64, received: u64) {
        self.tunnel_bytes[0].fetch_add(sent, Relaxed);
        self.tunnel_bytes[1].fetch_add(received, Relaxed);
    }

    fn new(label: String) -> Self {
        Self {
            label,
            durations: SeriesSet::default(),
            requests: Default::default(),
            attempts: Default::default(),
            retries: Default::default(),
            budget_exhausted: AtomicU64::new(0),
            bodies_not_kept: AtomicU64::new(0),
            not_mirrored: Default::default(),
            ejected: Default::default(),
            faults: Default::default(),
            fallbacks: AtomicU64::new(0),
            external_auth: Default::default(),
            at_limit: Default::default(),
            tunnels: AtomicU64::new(0),
            tunnel_bytes: Default::default(),
        }
    }

    /// A retry counts as an attempt too.
    fn attempt_ended(&self, attempt: &AttemptEnd<'_>) {
        let outcome = Outcome::from(attempt.status) as usize;
        self.attempts[outcome].fetch_add(1, Relaxed);
        if attempt.resend > 0 {
            self.retries[outcome].fetch_add(1, Relaxed);
        }
    }

    /// A retry was wanted, and the budget did not allow it.
    pub fn budget_exhausted(&self) {
        self.budget_exhausted.fetch_add(1, Relaxed);
    }

    /// A request was to be mirrored, and was not, or not whole.
    pub fn not_mirrored(&self, why: NotMirrored) {
        self.not_mirrored[why as usize].fetch_add(1, Relaxed);
    }

    /// An endpoint is left out, or more of them fail than may be.
    pub fn ejected(&self, what: Ejected) {
        self.ejected[what as usize].fetch_add(1, Relaxed);
    }

    /// A request has a fault on purpose.
    pub fn fault(&self, fault: &FaultNote) {
        for kind in fault.kinds() {
            self.faults[kind as usize].fetch_add(1, Relaxed);
        }
    }

    /// A request was answered in place of a failure.
    pub fn fallback(&self) {
        self.fallbacks.fetch_add(1, Relaxed);
    }

    /// It was asked whether a request is let through.
    pub fn external_auth(&self, decision: AuthDecision) {
        self.external_auth[decision as usize].fetch_add(1, Relaxed);
    }

    /// A limit of a policy leaves no place for a request or a connection, which is refused.
    pub fn at_limit(&self, what: AtLimit) {
        self.at_limit[what as usize].fetch_add(1, Relaxed);
    }

    fn request_ended(&self, end: &RequestEnd<'_>) {
        let (outcome, mtls) = (Outcome::from(end.status), end.peer.identity.is_some());
        self.requests[outcome as usize][usize::from(mtls)].fetch_add(1, Relaxed);
        self.durations.observe(SeriesKey::of(end), end.duration);
    }

    /// Grows with everything that is counted.
    fn activity(&self) -> u64 {
        let counters = self.requests.iter().flatten().chain(&self.attempts);
        let counters = counters
            .chain([&self.tunnels])
            .chain(&self.tunnel_bytes)
            .chain(&self.faults);
        counters.map(|counter| counter.load(Relaxed)).sum()
    }
}

/// A bounded map that is read without a lock. Entries are added under one, which only the first request to a Service takes.
struct Table<K> {
    entries: ArcSwap<HashMap<K, Arc<ServiceMetrics>>>,
    /// When each label was last seen busy, and its activity then. Taken to change `entries`.
    idle: Mutex<HashMap<String, (u64, Instant)>>,
    overflow: Arc<ServiceMetrics>,
    capacity: usize,
}

impl<K: Clone + Eq + Hash> Table<K> {
    fn new(capacity: usize) -> Self {
        Self {
            entries: ArcSwap::default(),
            idle: Mutex::default(),
            overflow: Arc::new(ServiceMetrics::new("_overflow".into())),
            capacity,
        }
    }

    fn entry(&self, key: &K, label: impl Fn(&K) -> String) -> Arc<ServiceMetrics> {
        match self.entries.load().get(key) {
            Some(found) => Arc::clone(found),
            None => self.add(key, label(key)),
        }
    }

    fn add(&self, key: &K, label: String) -> Arc<ServiceMetrics> {
        let _adding = self.idle.lock();
        let now = self.entries.load_full();
        if let Some(found) = now.get(key) {
            return Arc::clone(found);
        }
        let added = match now.values().find(|entry| entry.label == label) {
            Some(same) if now.len() < 4 * self.capacity => Arc::clone(same),
            None if now.len() < self.capacity => Arc::new(ServiceMetrics::new(label)),
            // Not kept in the map either: keys beyond the cap take no memory.
            _ => return Arc::clone(&self.overflow),
        };
        let mut more = HashMap::clone(&now);
        more.insert(key.clone(), Arc::clone(&added));
        self.entries.store(Arc::new(more));
        added
    }

    /// Drops what has not been used for [`IDLE`] and is held by nobody. A handle is held by the map, once for each key.
    fn expire(&self) {
        let mut idle = self.idle.lock();
        let (entries, now) = (self.entries.load_full(), Instant::now());
        for entry in entries.values() {
            let activity = entry.activity();
            match idle.get_mut(&entry.label) {
                Some((seen, _)) if *seen == activity => {}
                Some(seen) => *seen = (activity, now),
                None => _ = idle.insert(entry.label.clone(), (activity, now)),
            }
        }
        let mut holders: HashMap<&str, usize> = HashMap::new();
        for entry in entries.values() {
            *holders.entry(&entry.label).or_default() += 1;
        }
        let expired = |entry: &Arc<ServiceMetrics>| {
            Arc::strong_count(entry) == holders[entry.label.as_str()]
                && idle
                    .get(&entry.label)
                    .is_some_and(|(_, since)| now.duration_since(*since) >= IDLE)
        };
        if entries.values().any(expired) {
            let kept: HashMap<_, _> = entries
                .iter()
                .filter(|(_, entry)| !expired(entry))
                .map(|(key, entry)| (key.clone(), Arc::clone(entry)))
                .collect();
            idle.retain(|label, _| kept.values().any(|entry| entry.label == *label));
            self.entries.store(Arc::new(kept));
        }
    }

    /// Each entry once, by label, and the overflow if it was used.
    fn snapshot(&self) -> Vec<Arc<ServiceMetrics>> {
        let mut all: Vec<_> = self.entries.load().values().map(Arc::clone).collect();
        if self.overflow.activity() > 0 {
            all.push(Arc::clone(&self.overflow));
        }
        all.sort_by(|a, b| a.label.cmp(&b.label));
        all.dedup_by(|a, b| Arc::ptr_eq(a, b));
        all
    }
}
