//! A request and its response, from the head of the one to the last byte of the other: what is recorded about it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderValue, Method, Uri, Version};
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::authority;
use outrigger_proxy_transport::body::Received;
use outrigger_proxy_transport::drain::InFlight;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::grpc::is_grpc;
use outrigger_proxy_transport::headers::REQUEST_ID;
use outrigger_proxy_transport::server::Ended;
use tokio::time::Instant;

use crate::model::ServiceName;
use crate::telemetry::{Direction, Protocol, RequestEnd, SpanKind, SpanRecord, Telemetry, TraceContext};

/// What is known of a request when it comes in.
pub struct Exchange {
    telemetry: Telemetry,
    direction: Direction,
    /// Outbound: what is called.
    service: Option<ServiceName>,
    port: u16,
    protocol: Protocol,
    method: Method,
    uri: Uri,
    /// `Host`, where the URI names no authority.
    host: Option<HeaderValue>,
    request_id: HeaderValue,
    pub context: TraceContext,
    pub started: Instant,
    /// Of the request's body.
    received: Rc<Received>,
    _in_flight: InFlight,
}

/// One span of an exchange: the server's, or an attempt's.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub id: [u8; 8],
    started: Instant,
    started_at: SystemTime,
    /// 0 for the first attempt.
    pub resend: u32,
}

/// The other side of a span.
#[derive(Clone, Copy, Debug, Default)]
pub struct Other<'a> {
    pub identity: Option<&'a SpiffeId>,
    pub address: Option<SocketAddr>,
}

/// How a span or an exchange ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub status: Option<u16>,
    pub grpc_status: Option<u16>,
    pub reason: Option<Reason>,
}

impl Outcome {
    /// Whether the client sees a failure.
    pub fn failed(&self) -> bool {
        self.reason.is_some() || self.status.is_none_or(|s| s >= 500) || self.grpc_status.is_some_and(is_server_error)
    }

    /// Adds how the response ended to what its head said.
    pub fn end(&mut self, ended: Ended) {
        match ended {
            Ended::Complete(Some(grpc)) => self.grpc_status = Some(grpc),
            Ended::Complete(None) => {}
            Ended::Failed(reason) => self.reason = Some(reason),
            Ended::Cancelled => self.reason = Some(Reason::ClientClosed),
        }
    }
}

impl Exchange {
    /// Begins at the head of a request. Makes a request ID, if there is none, and puts it into the request.
    pub fn begin(
        telemetry: &Telemetry,
        direction: Direction,
        service: Option<&ServiceName>,
        port: u16,
        request: &mut Parts,
        received: Rc<Received>,
        in_flight: InFlight,
    ) -> Self {
        let protocol = match request.version {
            Version::HTTP_2 if is_grpc(&request.headers) => Protocol::Grpc,
            Version::HTTP_2 => Protocol::Http2,
            Version::HTTP_10 => Protocol::Http10,
            _ => Protocol::Http11,
        };
        let request_id = match request.headers.get(REQUEST_ID) {
            Some(id) => id.clone(),
            None => {
                let id = new_request_id();
                request.headers.insert(REQUEST_ID, id.clone());
                id
            }
        };
        let host = match request.uri.authority() {
            Some(_) => None,
            None => request.headers.get(http::header::HOST).cloned(),
        };
        Self {
            context: telemetry.context(&request.headers),
            telemetry: telemetry.clone(),
            direction,
            service: service.cloned(),
            port,
            protocol,
            method: request.method.clone(),
            uri: request.uri.clone(),
            host,
            request_id,
            started: Instant::now(),
            received,
            _in_flight: in_flight,
        }
    }

    /// Whether the client speaks gRPC.
    pub fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    /// Whether the client asks for a tunnel.
    pub fn is_connect(&self) -> bool {
        self.method == Method::CONNECT
    }

    /// A span that begins now.
    #[expect(
        clippy::disallowed_methods,
        reason = "a span says when it began by the machine's clock"
    )]
    pub fn span(&self, resend: u32) -> Span {
        Span {
            id: self.telemetry.span_id(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            resend,
        }
    }

    /// Hands a span to the exporter, if this trace is recorded.
    pub fn record(&self, span: &Span, other: Other<'_>, result: Outcome) {
        if !self.telemetry.records(&self.context) {
            return;
        }
        let kind = match self.direction {
            Direction::Outbound => SpanKind::Client,
            Direction::Inbound => SpanKind::Server,
        };
        self.telemetry.record(SpanRecord {
            trace_id: self.context.trace_id,
            span_id: span.id,
            parent: self.context.parent,
            kind,
            name: match self.protocol {
                Protocol::Grpc => self.path().trim_start_matches('/').to_owned(),
                _ => self.method.to_string(),
            },
            start: span.started_at,
            duration: span.started.elapsed(),
            protocol: self.protocol,
            method: self.method.clone(),
            scheme: "http",
            path: self.path().to_owned(),
            authority: self.authority().to_owned(),
            status: result.status,
            grpc_status: result.grpc_status,
            error: result.reason.map(Reason::code),
            resend_count: span.resend,
            peer: other.identity.map(|id| id.as_str().to_owned()),
            endpoint: other.address,
            service: self.service.clone(),
            request_id: self.request_id.to_str().ok().map(str::to_owned),
            mtls: other.identity.is_some(),
        });
    }

    /// Counts and logs the whole of it. Once.
    pub fn end(&self, other: Other<'_>, result: Outcome, retries: u32, response_bytes: u64) {
        self.telemetry.request_ended(&RequestEnd {
            direction: self.direction,
            service: self.service.as_ref(),
            port: self.port,
            protocol: self.protocol,
            method: &self.method,
            path: self.path(),
            authority: self.authority(),
            status: result.status,
            grpc_status: result.grpc_status,
            reason: result.reason,
            duration: self.elapsed(),
            retries,
            request_bytes: self.received.bytes(),
            response_bytes,
            trace_id: self.context.trace_id,
            request_id: self.request_id.to_str().ok(),
            peer: other.identity.map(SpiffeId::as_str),
            endpoint: other.address,
            mtls: other.identity.is_some(),
        });
    }

    /// A server that takes the request gets it now.
    pub fn sent_on(&self) {
        self.received.sent_head();
    }

    /// Since the head of the request.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn path(&self) -> &str {
        self.uri.path()
    }

    fn authority(&self) -> &str {
        authority::said(&self.uri, self.host.as_ref())
    }
}

/// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS (OpenTelemetry, gRPC conventions).
fn is_server_error(grpc_status: u16) -> bool {
    matches!(grpc_status, 2 | 4 | 12 | 13 | 14 | 15)
}

/// 128 random bits in the form of a UUID (RFC 9562, version 4).
fn new_request_id() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bits: [u8; 16] = rand::random();
    bits[6] = (bits[6] & 0x0f) | 0x40;
    bits[8] = (bits[8] & 0x3f) | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (i, byte) in bits.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    // Hexadecimal digits and hyphens are always a header value.
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::new_request_id;

    #[test]
    fn request_ids_are_uuids() {
        let id = new_request_id();
        let id = id.to_str().unwrap_or("");
        let parts: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&id[14..15], "4");
        assert_ne!(new_request_id(), new_request_id());
    }
}
