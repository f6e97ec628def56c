//! Spans as they arrive, put together to traces. Bounded: the newest traces are kept, and the longest of all.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as OtlpValue;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as OtlpKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde::Serialize;

const MAX_TRACES: usize = 200;
const MAX_SPANS: usize = 256;
const MAX_ATTRIBUTES: usize = 40;
const MAX_TEXT: usize = 256;
const MAX_PEERS: usize = 64;

/// Which side of a call a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Client,
    Server,
    Other,
}

/// One span of a trace.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) id: String,
    pub(super) parent: Option<String>,
    pub(super) name: String,
    pub(super) service: String,
    pub(super) kind: Kind,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) error: bool,
    pub(super) attributes: BTreeMap<String, serde_json::Value>,
}

impl Span {
    pub(super) fn duration_ms(&self) -> f64 {
        self.end_ns.saturating_sub(self.start_ns) as f64 / 1e6
    }

    /// Which attempt after the first this is; 0 for the first.
    pub(super) fn resend_count(&self) -> u64 {
        self.number("http.request.resend_count").unwrap_or(0)
    }

    /// "POST /buy": the method alone, which is what a span is called without a route, tells a person little.
    pub(super) fn title(&self) -> String {
        match self.attributes.get("url.path").and_then(serde_json::Value::as_str) {
            Some(path) if !self.name.contains('/') => format!("{} {path}", self.name),
            _ => self.name.clone(),
        }
    }

    pub(super) fn status(&self) -> &'static str {
        if self.error { "error" } else { "ok" }
    }

    fn number(&self, attribute: &str) -> Option<u64> {
        self.attributes.get(attribute)?.as_u64()
    }
}

/// Spans with the same trace ID.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    pub(super) id: String,
    pub(super) spans: Vec<Span>,
}

impl Trace {
    pub(super) fn start_ns(&self) -> u64 {
        self.spans.iter().map(|span| span.start_ns).min().unwrap_or(0)
    }

    pub(super) fn duration_ms(&self) -> f64 {
        let end = self.spans.iter().map(|span| span.end_ns).max().unwrap_or(0);
        end.saturating_sub(self.start_ns()) as f64 / 1e6
    }

    pub(super) fn retries(&self) -> usize {
        self.spans.iter().filter(|span| span.resend_count() > 0).count()
    }

    /// The services in the order in which the request came to them.
    pub(super) fn services(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        let in_order = self.in_order();
        let services = in_order.iter().map(|(_, span)| span.service.as_str());
        services.filter(|service| seen.insert(*service)).collect()
    }

    /// Every span with its depth: parents before children, siblings by their start.
    pub(super) fn in_order(&self) -> Vec<(usize, &Span)> {
        let ids: HashSet<&str> = self.spans.iter().map(|span| span.id.as_str()).collect();
        let mut children: HashMap<Option<&str>, Vec<&Span>> = HashMap::new();
        for span in &self.spans {
            // A span whose parent has not arrived stands at the top.
            let parent = span
                .parent
                .as_deref()
                .filter(|parent| ids.contains(parent) && *parent != span.id);
            children.entry(parent).or_default().push(span);
        }
        for siblings in children.values_mut() {
            siblings.sort_by_key(|span| std::cmp::Reverse((span.start_ns, span.resend_count()))); // a stack: the last is first
        }
        let mut stack: Vec<(usize, &Span)> = children
            .remove(&None)
            .unwrap_or_default()
            .into_iter()
            .map(|s| (0, s))
            .collect();
        let mut ordered = Vec::with_capacity(self.spans.len());
        while let Some((depth, span)) = stack.pop() {
            ordered.push((depth, span));
            let below = children.remove(&Some(span.id.as_str())).unwrap_or_default();
            stack.extend(below.into_iter().map(|child| (depth + 1, child)));
        }
        ordered
    }

    /// Whether the trace is whole: one root, every parent there, client and server spans in turn, and a client span with
    /// a server span below it for each of these calls.
    pub(super) fn check(&self, calls: &[(&str, &str)]) -> Result<(), String> {
        let by_id: HashMap<&str, &Span> = self.spans.iter().map(|span| (span.id.as_str(), span)).collect();
        let mut roots = 0;
        let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
        for span in &self.spans {
            let Some(parent) = &span.parent else {
                roots += 1;
                if span.kind != Kind::Client {
                    return Err(format!(
                        "the root, {} of {}, is not a client span",
                        span.name, span.service
                    ));
                }
                continue;
            };
            let Some(parent) = by_id.get(parent.as_str()) else {
                return Err(format!("the parent of {} of {} is not there", span.name, span.service));
            };
            let same_service = parent.service == span.service;
            match (parent.kind, span.kind) {
                (Kind::Client, Kind::Server) if !same_service => {
                    seen.insert((&parent.service, &span.service));
                }
                (Kind::Server, Kind::Client) if same_service => {}
                _ => {
                    return Err(format!(
                        "a {:?} span of {} is the parent of a {:?} span of {}",
                        parent.kind, parent.service, span.kind, span.service
                    ));
                }
            }
        }
        // The first attempts of a request that begins a trace are roots too: they have no parent to share.
        if roots == 0 {
            return Err("it has no root".to_owned());
        }
        match calls.iter().find(|call| !seen.contains(*call)) {
            Some((from, to)) => Err(format!("it has no call from {from} to {to}")),
            None => Ok(()),
        }
    }
}

/// The newest traces, and the longest.
#[derive(Debug, Default)]
pub(super) struct Store {
    calls: Vec<(&'static str, &'static str)>,
    traces: HashMap<String, Trace>,
    oldest_first: VecDeque<String>,
    /// Of the traces that were dropped, the longest whole one.
    longest_dropped: Option<Trace>,
    roots: u64,
    spans: u64,
    peers: BTreeSet<String>,
}

impl Store {
    /// A trace is whole when it has these calls, "from" and "to".
    pub(super) fn new(calls: Vec<(&'static str, &'static str)>) -> Self {
        Self {
            calls,
            ..Self::default()
        }
    }

    /// Takes what a sidecar exports.
    pub(super) fn add(&mut self, request: &ExportTraceServiceRequest) {
        for resource_spans in &request.resource_spans {
            let attributes = resource_spans.resource.iter().flat_map(|resource| &resource.attributes);
            let service = attributes
                .filter(|attribute| attribute.key == "service.name")
                .find_map(|attribute| match json(attribute.value.as_ref()?) {
                    serde_json::Value::String(name) => Some(name),
                    _ => None,
                })
                .unwrap_or_default();
            for span in resource_spans.scope_spans.iter().flat_map(|scope| &scope.spans) {
                self.add_span(&service, span);
            }
        }
    }

    /// Traces that began: spans without a parent.
    pub(super) fn count(&self) -> u64 {
        self.roots
    }

    /// All spans that arrived.
    pub(super) fn spans(&self) -> u64 {
        self.spans
    }

    /// The SPIFFE IDs that the sidecars have seen at the other end.
    pub(super) fn peers(&self) -> &BTreeSet<String> {
        &self.peers
    }

    /// The newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = &Trace> {
        self.oldest_first.iter().rev().filter_map(|id| self.traces.get(id))
    }

    /// The trace with this ID, if it is still kept.
    pub(super) fn trace(&self, id: &str) -> Option<&Trace> {
        self.traces.get(id)
    }

    /// The trace with the most spans, a whole one before any other.
    pub(super) fn longest(&self) -> Option<&Trace> {
        self.traces
            .values()
            .chain(&self.longest_dropped)
            .max_by_key(|trace| self.rank(trace))
    }

    /// Whether the trace is whole; else what is missing.
    pub(super) fn check(&self, trace: &Trace) -> Result<(), String> {
        trace.check(&self.calls)
    }

    fn rank(&self, trace: &Trace) -> (bool, usize, u64) {
        (self.check(trace).is_ok(), trace.spans.len(), trace.duration_ms() as u64)
    }

    fn add_span(&mut self, service: &str, span: &otlp::Span) {
        let id = hex(&span.trace_id);
        let span = convert(service, span);
        self.spans += 1;
        if span.parent.is_none() && span.resend_count() == 0 {
            self.roots += 1;
        }
        if let Some(serde_json::Value::String(peer)) = span.attributes.get("outrigger.peer.identity")
            && self.peers.len() < MAX_PEERS
            && !self.peers.contains(peer)
        {
            self.peers.insert(peer.clone());
        }
        if !self.traces.contains_key(&id) {
            if self.oldest_first.len() == MAX_TRACES {
                self.drop_oldest();
            }
            self.oldest_first.push_back(id.clone());
            self.traces.insert(
                id.clone(),
                Trace {
                    id: id.clone(),
                    spans: Vec::new(),
                },
            );
        }
        if let Some(trace) = self.traces.get_mut(&id)
            && trace.spans.len() < MAX_SPANS
        {
            trace.spans.push(span);
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.oldest_first.pop_front().and_then(|id| self.traces.remove(&id));
        let Some(dropped) = oldest else { return };
        let best = self.longest_dropped.as_ref().map(|trace| self.rank(trace));
        let rank = self.rank(&dropped);
        if rank.0 && best.is_none_or(|best| best < rank) {
            self.longest_dropped = Some(dropped);
        }
    }
}

fn convert(service: &str, span: &otlp::Span) -> Span {
    let attribute = |attribute: &KeyValue| Some((bounded(&attribute.key), json(attribute.value.as_ref()?)));
    Span {
        id: hex(&span.span_id),
        parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
        name: bounded(&span.name),
        service: bounded(service),
        kind: match OtlpKind::try_from(span.kind) {
            Ok(OtlpKind::Client) => Kind::Client,
            Ok(OtlpKind::Server) => Kind::Server,
            _ => Kind::Other,
        },
        start_ns: span.start_time_unix_nano,
        end_ns: span.end_time_unix_nano,
        error: span
            .status
            .as_ref()
            .is_some_and(|status| status.code == StatusCode::Error as i32),
        attributes: span
            .attributes
            .iter()
            .take(MAX_ATTRIBUTES)
            .filter_map(attribute)
            .collect(),
    }
}

fn json(value: &AnyValue) -> serde_json::Value {
    match &value.value {
        Some(OtlpValue::StringValue(text)) => bounded(text).into(),
        Some(OtlpValue::BoolValue(value)) => (*value).into(),
        Some(OtlpValue::IntValue(value)) => (*value).into(),
        Some(OtlpValue::DoubleValue(value)) => (*value).into(),
        _ => serde_json::Value::Null, // lists and maps: no sidecar sends any
    }
}

fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().take(16).fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String does not fail
        text
    })
}

#[cfg(test)]
#[path = "traces_tests.rs"]
mod tests;
