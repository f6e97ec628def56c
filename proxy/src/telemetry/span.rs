//! A finished span, and its form in OTLP.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::model::ServiceName;

use super::request::Protocol;

/// Which side of a call a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// An attempt to call an endpoint.
    Client,
    /// The app's work.
    Server,
}

/// A span that has ended. It is built only when [`super::Telemetry::records`] says so.
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
    /// A [`outrigger_proxy_transport::error::Reason`]'s code.
    pub error: Option<&'static str>,
    /// 0 for the first attempt.
    pub resend_count: u32,
    /// The other side's SPIFFE ID.
    pub peer: Option<String>,
    pub endpoint: Option<SocketAddr>,
    pub service: Option<ServiceName>,
    pub request_id: Option<String>,
    pub mtls: bool,
}
