//! A finished span, and its form in OTLP.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use outrigger_proxy_transport::error::Reason;

use crate::model::ServiceName;

use super::request::{AttemptEnd, Direction, Protocol};
use super::{AccessNote, LimitNote};

/// Which side of a call a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// An attempt to call an endpoint.
    Client,
    /// The app's work.
    Server,
}

/// Something that happened to a request, beside its attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanEvent {
    pub name: &'static str,
    pub at: SystemTime,
    pub attributes: Vec<(&'static str, String)>,
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct SpanRecord {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    pub kind: SpanKind,
    /// The method, or "{method} {route}"; for gRPC "package.Service/Method".
    pub name: String,
    pub start: SystemTime,
    pub duration: Duration,
    pub protocol: Protocol,
    pub method: http::Method,
    /// "http" or "https".
    pub scheme: &'static str,
    /// From a "?" on, it is left out: a query may hold secrets.
    pub path: String,
    /// Host and port that were asked for.
    pub authority: String,
    pub status: Option<u16>,
    pub grpc_status: Option<u16>,
    /// A [`Reason`]'s code.
    pub error: Option<&'static str>,
    /// 0 for the first attempt.
    pub resend_count: u32,
    /// The other side's SPIFFE ID.
    pub peer: Option<String>,
    pub endpoint: Option<SocketAddr>,
    pub service: Option<ServiceName>,
    pub request_id: Option<String>,
    pub mtls: bool,
    /// What policies say, where they refuse the request or would.
    pub access: Option<Box<AccessNote>>,
    /// The limit that refuses it, or would.
    pub limit: Option<Box<LimitNote>>,
    pub events: Vec<SpanEvent>,
}

impl SpanRecord {
    pub(super) fn of(attempt: &AttemptEnd<'_>) -> Self {
        let (request, status, peer) = (attempt.request, attempt.status, attempt.peer);
        Self {
            trace_id: request.context.trace_id,
            span_id: attempt.span.id,
            parent: request.context.parent,
            kind: match request.direction {
                Direction::Outbound => SpanKind::Client,
                Direction::Inbound => SpanKind::Server,
            },
            name: match request.protocol {
                Protocol::Grpc => request.path().trim_start_matches('/').to_owned(),
                _ => request.method.to_string(),
            },
            start: attempt.span.at,
            duration: attempt.span.instant.elapsed(),
            protocol: request.protocol,
            method: request.method.clone(),
            scheme: "http",
            path: request.path().to_owned(),
            authority: request.authority().to_owned(),
            status: status.http,
            grpc_status: status.grpc,
            error: status.reason.map(Reason::code),
            resend_count: attempt.resend,
            peer: peer.identity.map(|identity| identity.as_str().to_owned()),
            endpoint: peer.address,
            service: request.service.clone(),
            request_id: request.request_id().map(str::to_owned),
            mtls: peer.identity.is_some(),
            access: request.access.clone(),
            limit: request.limit.clone(),
            events: events(attempt),
        }
    }
}

/// What happened before the attempt began is said at its beginning.
fn events(attempt: &AttemptEnd<'_>) -> Vec<SpanEvent> {
    let fault = attempt.request.fault.as_ref().filter(|_| attempt.resend == 0);
    // It has ended the last attempt: those before have had none, and those behind are another backend's.
    let fallback = attempt.request.fallback.as_ref();
    let fallback = fallback.filter(|fallback| attempt.span.at <= fallback.at);
    let events = fault.into_iter().map(|fault| fault.event());
    let events = events.chain(fallback.map(|fallback| fallback.event()));
    let within = events.map(|event| SpanEvent {
        at: event.at.max(attempt.span.at),
        ..event
    });
    within.collect()
}
