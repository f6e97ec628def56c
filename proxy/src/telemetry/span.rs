//! A finished span.
//!
//! What a client sends is cut when the span ends, and not only when it is sent: spans wait by the thousand while the collector is away, and a
//! head has 64 KiB of whatever its client likes.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::Method;
use outrigger_proxy_transport::error::Reason;

use crate::model::ServiceName;

use super::request::{AttemptEnd, Direction, Protocol};
use super::{AccessNote, LimitNote};

/// Longest text of a span, in bytes: what a peer sends must not make one large.
pub(super) const MAX_TEXT: usize = 1024;

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
    pub method: Method,
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
                Protocol::Grpc => bounded(request.path().trim_start_matches('/')).to_owned(),
                _ => bounded(request.method.as_str()).to_owned(),
            },
            start: attempt.span.at,
            duration: attempt.span.instant.elapsed(),
            protocol: request.protocol,
            method: bounded_method(&request.method),
            scheme: "http",
            path: bounded(request.path()).to_owned(),
            // Cut, it would be another one.
            authority: Some(request.authority())
                .filter(|said| said.len() <= MAX_TEXT)
                .unwrap_or_default()
                .to_owned(),
            status: status.http,
            grpc_status: status.grpc,
            error: status.reason.map(Reason::code),
            resend_count: attempt.resend,
            peer: peer.identity.map(|identity| identity.as_str().to_owned()),
            endpoint: peer.address,
            service: request.service.clone(),
            request_id: request.request_id().map(|id| bounded(id).to_owned()),
            mtls: peer.identity.is_some(),
            access: request.access.clone(),
            limit: request.limit.clone(),
            events: events(attempt),
        }
    }
}

/// The beginning of a text, where all of it is too long.
pub(super) fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// The same: the beginning of a token is one.
fn bounded_method(method: &Method) -> Method {
    let cut = bounded(method.as_str());
    if cut.len() == method.as_str().len() {
        return method.clone();
    }
    Method::from_bytes(cut.as_bytes()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::request::{Peer, RequestInfo, SpanStart, Status};
    use super::super::{Metrics, TraceContext};
    use super::*;

    /// What waits for the collector is as long as what is sent to it, whoever calls.
    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a span says when it began by the machine's clock"
    )]
    fn what_a_client_sends_is_cut_before_it_waits() {
        let long = "x".repeat(20_000);
        for (content_type, method) in [("text/plain", &*long), ("application/grpc", "POST")] {
            let request = http::Request::builder()
                .method(method)
                .version(http::Version::HTTP_2)
                .uri(format!("http://{long}/{long}/{long}"))
                .header("content-type", content_type)
                .header("x-request-id", &long)
                .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            let context = TraceContext::extract(&head.headers).unwrap();
            let id = super::super::request_id(&mut head);
            let request = RequestInfo::new(Direction::Inbound, None, 80, id, context, &head);
            let record = SpanRecord::of(&AttemptEnd {
                request: &request,
                metrics: &Metrics::new().service(None),
                span: SpanStart {
                    id: [1; 8],
                    at: SystemTime::now(),
                    instant: tokio::time::Instant::now(),
                },
                resend: 0,
                peer: Peer::default(),
                status: Status::default(),
            });
            let texts = [
                &record.name,
                record.method.as_str(),
                &record.path,
                &record.authority,
                record.request_id.as_deref().unwrap(),
            ];
            assert!(texts.iter().all(|text| text.len() <= MAX_TEXT), "{content_type}");
            assert_eq!(record.path.len(), MAX_TEXT);
            assert_eq!(record.authority, "", "of another host");
        }
    }
}
