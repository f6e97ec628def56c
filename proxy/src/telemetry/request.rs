//! What is known of a request when its response ends.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use outrigger_proxy_transport::error::Reason;

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

/// A request that ended, all attempts together.
#[derive(Clone, Debug)]
pub struct RequestEnd<'a> {
    pub direction: Direction,
    /// Outbound: what was called. `None`: something outside the cluster.
    pub service: Option<&'a ServiceName>,
    /// Inbound: the app's port. Outbound: the port that was called.
    pub port: u16,
    pub protocol: Protocol,
    pub method: &'a Method,
    /// From a "?" on, it is left out of everything.
    pub path: &'a str,
    pub authority: &'a str,
    /// `None`: the client was gone before there was a response.
    pub status: Option<u16>,
    pub grpc_status: Option<u16>,
    /// Why this sidecar answered itself, or what broke the response.
    pub reason: Option<Reason>,
    /// From the request's head to the response's end.
    pub duration: Duration,
    /// Attempts after the first.
    pub retries: u32,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub trace_id: [u8; 16],
    pub request_id: Option<&'a str>,
    /// The other side's SPIFFE ID.
    pub peer: Option<&'a str>,
    /// Where the request was sent to last (outbound), or where it came from (inbound).
    pub endpoint: Option<SocketAddr>,
    pub mtls: bool,
}

impl RequestEnd<'_> {
    /// Whether the request failed for its client: no response, this sidecar's own error, a status of 500 and above, or a
    /// gRPC status that OpenTelemetry counts as an error of a server.
    pub fn failed(&self) -> bool {
        self.reason.is_some()
            || self.status.is_none_or(|status| status >= 500)
            || self.grpc_status.is_some_and(grpc_server_error)
    }
}

/// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: the statuses that are an error of a gRPC
/// server's span (OpenTelemetry, gRPC conventions).
pub(super) fn grpc_server_error(status: u16) -> bool {
    matches!(status, 2 | 4 | 12 | 13 | 14 | 15)
}
