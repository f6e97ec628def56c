//! What is known of a request: from its head on, and when an attempt of it or the whole of it has ended.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::authority;
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::grpc::{grpc_status, is_grpc};
use outrigger_proxy_transport::headers::REQUEST_ID;
use outrigger_proxy_transport::server::{Ended, reason_of};
use tokio::time::Instant;

use super::{AccessNote, FallbackNote, FaultNote, LimitNote, ServiceMetrics, TraceContext};
use crate::model::ServiceName;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the app of this pod.
    Outbound,
    /// To the app of this pod.
    Inbound,
}

impl Direction {
    /// As it is written in labels and the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }
}

/// What a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
    /// gRPC, over HTTP/2.
    Grpc,
}

impl Protocol {
    fn of(head: &Parts) -> Self {
        match head.version {
            Version::HTTP_2 if is_grpc(&head.headers) => Protocol::Grpc,
            Version::HTTP_2 => Protocol::Http2,
            Version::HTTP_10 => Protocol::Http10,
            _ => Protocol::Http11,
        }
    }

    /// `network.protocol.version`.
    pub fn version(self) -> &'static str {
        match self {
            Protocol::Http10 => "1.0",
            Protocol::Http11 => "1.1",
            Protocol::Http2 | Protocol::Grpc => "2",
        }
    }

    /// As the access log writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http10 => "HTTP/1.0",
            Protocol::Http11 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
            Protocol::Grpc => "gRPC",
        }
    }
}

/// A request, from its head on. As the client sent it: what rules change later is not seen here.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    pub direction: Direction,
    /// Outbound: what is called. `None`: nobody knows.
    pub service: Option<ServiceName>,
    /// Inbound: the app's port. Outbound: the port that is called.
    pub port: u16,
    pub protocol: Protocol,
    pub method: Method,
    pub uri: Uri,
    /// `Host`, where the URI names no authority.
    pub host: Option<HeaderValue>,
    pub request_id: HeaderValue,
    pub context: TraceContext,
    /// Inbound: what policies say of it, where they refuse it or would.
    pub access: Option<Box<AccessNote>>,
    /// Inbound: the limit that refuses it, or would.
    pub limit: Option<Box<LimitNote>>,
    /// Outbound: what is done to it on purpose.
    pub fault: Option<Box<FaultNote>>,
    /// Outbound: it was answered in place of a failure.
    pub fallback: Option<Box<FallbackNote>>,
}

impl RequestInfo {
    /// Of a request's head.
    pub fn new(
        direction: Direction,
        service: Option<ServiceName>,
        port: u16,
        request_id: HeaderValue,
        context: TraceContext,
        head: &Parts,
    ) -> Self {
        let host = match head.uri.authority() {
            Some(_) => None,
            None => head.headers.get(http::header::HOST).cloned(),
        };
        Self {
            direction,
            service,
            port,
            protocol: Protocol::of(head),
            method: head.method.clone(),
            uri: head.uri.clone(),
            host,
            request_id,
            context,
            access: None,
            limit: None,
            fault: None,
            fallback: None,
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

    /// Without a query: it may hold secrets.
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// Host and port that were asked for.
    pub fn authority(&self) -> &str {
        authority::said(&self.uri, self.host.as_ref())
    }

    /// `None`: the client sent one that is no text.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.to_str().ok()
    }
}

/// The request's ID as its client sent it. A head without one gets one.
pub fn request_id(head: &mut Parts) -> HeaderValue {
    match head.headers.get(REQUEST_ID) {
        Some(id) => id.clone(),
        None => {
            let id = new_request_id();
            head.headers.insert(REQUEST_ID, id.clone());
            id
        }
    }
}

/// The other side of an attempt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer<'a> {
    /// Proven by mutual TLS.
    pub identity: Option<&'a SpiffeId>,
    pub address: Option<SocketAddr>,
}

/// How an attempt or a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `None`: there was no response; the client may be gone.
    pub http: Option<u16>,
    pub grpc: Option<u16>,
    /// Why a sidecar answered itself, or what broke the response.
    pub reason: Option<Reason>,
}

impl Status {
    /// What the head of a response says.
    pub fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        Self {
            http: Some(status.as_u16()),
            grpc: grpc_status(headers),
            reason: reason_of(headers),
        }
    }

    /// Without a response.
    pub fn failure(reason: Reason) -> Self {
        Self {
            reason: Some(reason),
            ..Self::default()
        }
    }

    /// Whether the client sees a failure: no response, a sidecar's own error, a status of 500 and above, or a gRPC status that
    /// OpenTelemetry counts as an error of a server.
    pub fn failed(&self) -> bool {
        self.reason.is_some()
            || self.http.is_none_or(|status| status >= 500)
            || self.grpc.is_some_and(grpc_server_error)
    }

    /// Adds how the response ended to what its head said.
    pub fn end(&mut self, ended: Ended) {
        match ended {
            Ended::Complete(Some(grpc)) => self.grpc = Some(grpc),
            Ended::Complete(None) => {}
            Ended::Failed(reason) => self.reason = Some(reason),
            Ended::Cancelled => self.reason = Some(Reason::ClientClosed),
        }
    }
}

/// What a span begins with.
#[derive(Clone, Copy, Debug)]
pub struct SpanStart {
    pub id: [u8; 8],
    pub at: SystemTime,
    pub instant: Instant,
}

/// An attempt that ended. Outbound, each is a CLIENT span. Inbound there is one, from the request's begin to its end: the
/// SERVER span.
#[derive(Clone, Copy)]
pub struct AttemptEnd<'a> {
    pub request: &'a RequestInfo,
    pub metrics: &'a ServiceMetrics,
    pub span: SpanStart,
    /// 0 for the first attempt.
    pub resend: u32,
    pub peer: Peer<'a>,
    pub status: Status,
}

/// A request that ended, all attempts together.
#[derive(Clone, Copy)]
pub struct RequestEnd<'a> {
    pub request: &'a RequestInfo,
    pub metrics: &'a ServiceMetrics,
    /// Where the request was sent to last (outbound), or where it came from (inbound).
    pub peer: Peer<'a>,
    pub status: Status,
    /// From the request's head to the response's end.
    pub duration: Duration,
    /// Attempts after the first.
    pub retries: u32,
    pub request_bytes: u64,
    pub response_bytes: u64,
}

/// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: the statuses that are an error of a gRPC
/// server's span (OpenTelemetry, gRPC conventions).
pub(super) fn grpc_server_error(status: u16) -> bool {
    matches!(status, 2 | 4 | 12 | 13 | 14 | 15)
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
