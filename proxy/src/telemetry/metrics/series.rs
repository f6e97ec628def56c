//! The duration series of one Service or port, by method, status and error.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Method;
use outrigger_proxy_transport::error::Reason;
use parking_lot::Mutex;

use super::super::request::RequestEnd;
use super::histogram::Histogram;

/// Series of one Service that are kept apart.
const MAX_SERIES: usize = 64;
/// OpenTelemetry's known methods; every other is "_OTHER".
const METHODS: [Method; 9] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::PATCH,
    Method::HEAD,
    Method::OPTIONS,
    Method::CONNECT,
    Method::TRACE,
];

/// As labels have them; the last one stands for all others.
pub(super) const METHOD_NAMES: [&str; METHODS.len() + 1] = [
    "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "_OTHER",
];

/// Where the method stands in [`METHOD_NAMES`].
pub(super) fn method_index(method: &Method) -> usize {
    METHODS
        .iter()
        .position(|known| known == method)
        .unwrap_or(METHODS.len())
}

/// What tells two series of a Service apart. Plain numbers: looking one up compares, and hashes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SeriesKey {
    method: u8,
    pub(super) status: Option<u16>,
    pub(super) grpc_status: Option<u16>,
    reason: Option<u8>,
    overflow: bool,
}

impl SeriesKey {
    pub(super) fn of(end: &RequestEnd<'_>) -> Self {
        Self {
            method: index(method_index(&end.request.method)),
            // A status that HTTP does not have cannot make series without end.
            status: end.status.http.filter(|status| (100..600).contains(status)),
            // 17 codes are defined; an app may send any number.
            grpc_status: end.status.grpc.map(|status| if status <= 16 { status } else { 2 }),
            reason: end.status.reason.map(|reason| index(reason as usize)),
            overflow: false,
        }
    }

    const OVERFLOW: Self = Self {
        method: index(METHODS.len()),
        status: None,
        grpc_status: None,
        reason: None,
        overflow: true,
    };

    pub(super) fn method(&self) -> &'static str {
        METHOD_NAMES[usize::from(self.method)]
    }

    /// `error.type`: this sidecar's reason. A failing status is its own error type, and is a label already.
    pub(super) fn error_type(&self) -> Option<&'static str> {
        if self.overflow {
            return Some("_overflow");
        }
        self.reason.map(|reason| Reason::ALL[usize::from(reason)].code())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "indexes of arrays of a few elements")]
const fn index(i: usize) -> u8 {
    i as u8
}

/// A few series that are found by looking at each: most Services have fewer than ten.
#[derive(Default)]
pub(super) struct SeriesSet {
    series: ArcSwap<Vec<(SeriesKey, Arc<Histogram>)>>,
    adding: Mutex<()>,
}

impl SeriesSet {
    pub(super) fn observe(&self, key: SeriesKey, duration: Duration) {
        let series = self.series.load();
        match series.iter().find(|(known, _)| *known == key) {
            Some((_, histogram)) => histogram.observe(duration),
            None => self.add(key).observe(duration),
        }
    }

    /// In the order of their keys.
    pub(super) fn snapshot(&self) -> Vec<(SeriesKey, Arc<Histogram>)> {
        let mut all = Vec::clone(&self.series.load());
        all.sort_by_key(|(key, _)| *key);
        all
    }

    fn add(&self, key: SeriesKey) -> Arc<Histogram> {
        let _adding = self.adding.lock();
        let now = self.series.load_full();
        let key = if now.len() < MAX_SERIES {
            key
        } else {
            SeriesKey::OVERFLOW
        };
        if let Some((_, known)) = now.iter().find(|(known, _)| *known == key) {
            return Arc::clone(known);
        }
        let added = Arc::new(Histogram::default());
        let mut more = Vec::clone(&now);
        more.push((key, Arc::clone(&added)));
        self.series.store(Arc::new(more));
        added
    }
}
