//! Spans in OTLP's form, with the attributes of OpenTelemetry's HTTP and RPC conventions.

use std::time::{SystemTime, UNIX_EPOCH};

use http::Method;
use http::uri::Authority;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource as OtlpResource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind as OtlpKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use super::super::request::{Protocol, grpc_server_error};
use super::super::span::bounded;
use super::super::{AccessNote, Resource, SpanEvent, SpanKind, SpanRecord};

/// `trace-flags` sampled, the bit that says that the next is known, and the bit for a parent in another process
/// (opentelemetry/proto/trace/v1/trace.proto, SpanFlags).
const FLAGS_ROOT: u32 = 0x101;
const FLAGS_CHILD: u32 = 0x301;

/// What all spans of this process have in common.
pub(super) struct Batch {
    resource: OtlpResource,
    scope: InstrumentationScope,
}

impl Batch {
    pub(super) fn new(resource: &Resource) -> Self {
        let instance = format!("{}.{}", resource.namespace, resource.pod);
        let attributes = [
            ("service.name", &*resource.name),
            ("service.namespace", &resource.namespace),
            ("service.instance.id", &instance),
            ("k8s.namespace.name", &resource.namespace),
            ("k8s.pod.name", &resource.pod),
            ("k8s.node.name", &resource.node),
        ];
        let present = attributes.into_iter().filter(|(_, value)| !value.is_empty());
        Self {
            resource: OtlpResource {
                attributes: present.map(|(key, value)| text(key, value)).collect(),
                ..OtlpResource::default()
            },
            scope: InstrumentationScope {
                name: "outrigger".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..InstrumentationScope::default()
            },
        }
    }

    pub(super) fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(self.scope.clone()),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        }
    }
}

pub(super) fn span(record: SpanRecord) -> Span {
    let start = nanos(record.start);
    let failure = failure(&record);
    Span {
        trace_id: record.trace_id.to_vec(),
        span_id: record.span_id.to_vec(),
        parent_span_id: record.parent.map_or_else(Vec::new, |parent| parent.to_vec()),
        flags: if record.parent.is_some() {
            FLAGS_CHILD
        } else {
            FLAGS_ROOT
        },
        kind: match record.kind {
            SpanKind::Client => OtlpKind::Client,
            SpanKind::Server => OtlpKind::Server,
        } as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(u64::try_from(record.duration.as_nanos()).unwrap_or(u64::MAX)),
        attributes: attributes(&record, failure.as_deref()),
        status: failure.is_some().then(|| Status {
            code: StatusCode::Error as i32,
            message: String::new(),
        }),
        name: bounded(&record.name).to_owned(),
        events: record.events.iter().map(event).collect(),
        ..Span::default()
    }
}

fn event(event: &SpanEvent) -> Event {
    let attributes = event.attributes.iter();
    Event {
        time_unix_nano: nanos(event.at),
        name: event.name.to_owned(),
        attributes: attributes.map(|(key, value)| text(key, value)).collect(),
        ..Event::default()
    }
}

/// `error.type`, where the span failed: a client's from 400 on, a server's from 500 on, and gRPC by its own status.
fn failure(record: &SpanRecord) -> Option<String> {
    let client = record.kind == SpanKind::Client;
    if let Some(reason) = record.error {
        return Some(reason.to_owned());
    }
    if let Some(status) = record.grpc_status {
        let failed = if client { status != 0 } else { grpc_server_error(status) };
        return failed.then(|| grpc_name(status).to_owned());
    }
    match record.status {
        Some(status) => (status >= if client { 400 } else { 500 }).then(|| status.to_string()),
        None => Some("_OTHER".to_owned()),
    }
}

fn attributes(record: &SpanRecord, failure: Option<&str>) -> Vec<KeyValue> {
    let mut all = Vec::with_capacity(20);
    let path = record.path.split('?').next().unwrap_or_default();
    match known_method(&record.method) {
        Some(method) => all.push(text("http.request.method", method)),
        None => {
            all.push(text("http.request.method", "_OTHER"));
            all.push(text("http.request.method_original", record.method.as_str()));
        }
    }
    all.push(text("url.scheme", record.scheme));
    all.push(text("url.path", path));
    if let Ok(authority) = record.authority.parse::<Authority>() {
        let port = authority
            .port_u16()
            .unwrap_or(if record.scheme == "https" { 443 } else { 80 });
        all.push(text("server.address", authority.host().trim_matches(['[', ']'])));
        all.push(number("server.port", port.into()));
    }
    if let Some(status) = record.status {
        all.push(number("http.response.status_code", status.into()));
    }
    if let Some(failure) = failure {
        all.push(text("error.type", failure));
    }
    all.push(text("network.protocol.version", record.protocol.version()));
    if let Some(endpoint) = record.endpoint {
        all.push(text("network.peer.address", &endpoint.ip().to_string()));
        all.push(number("network.peer.port", endpoint.port().into()));
    }
    if record.resend_count > 0 {
        all.push(number("http.request.resend_count", record.resend_count.into()));
    }
    if record.protocol == Protocol::Grpc {
        rpc_attributes(record, path, &mut all);
    }
    if let Some(service) = &record.service {
        let name = format!("{}/{}", service.namespace, service.name);
        all.push(text("outrigger.service", &name));
    }
    if let Some(peer) = &record.peer {
        all.push(text("outrigger.peer.identity", peer));
    }
    if let Some(request_id) = &record.request_id {
        all.push(text("outrigger.request_id", request_id));
    }
    all.push(attribute("outrigger.mtls", Value::BoolValue(record.mtls)));
    if let Some(access) = &record.access {
        access_attributes(access, &mut all);
    }
    if let Some(limit) = &record.limit {
        all.push(text("outrigger.limit.decision", limit.decision.as_str()));
        all.push(text("outrigger.limit.policy", &limit.policy));
        all.push(text("outrigger.limit.name", &limit.limit));
    }
    all
}

fn access_attributes(access: &AccessNote, all: &mut Vec<KeyValue>) {
    all.push(text("outrigger.access.decision", access.decision.as_str()));
    all.push(text("outrigger.access.policy", &access.policy));
    if !access.rule.is_empty() {
        all.push(text("outrigger.access.rule", &access.rule));
    }
    if !access.reason.is_empty() {
        all.push(text("outrigger.access.reason", access.reason));
    }
}

/// The names of before and after the RPC conventions became stable: back ends know either.
fn rpc_attributes(record: &SpanRecord, path: &str, all: &mut Vec<KeyValue>) {
    all.push(text("rpc.system", "grpc"));
    all.push(text("rpc.system.name", "grpc"));
    if let Some((service, method)) = path.trim_start_matches('/').split_once('/') {
        all.push(text("rpc.service", service));
        all.push(text("rpc.method", method));
    }
    if let Some(status) = record.grpc_status {
        all.push(number("rpc.grpc.status_code", status.into()));
        all.push(text("rpc.response.status_code", grpc_name(status)));
    }
}

fn known_method(method: &Method) -> Option<&str> {
    let known = [
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
    known.contains(method).then(|| method.as_str())
}

/// The codes' names (grpc's statuscodes.md).
fn grpc_name(status: u16) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(usize::from(status)).copied().unwrap_or("UNKNOWN")
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(bounded(value).to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
