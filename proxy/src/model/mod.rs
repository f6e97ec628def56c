//! What a connection's target is, as the request path reads it: discovery's messages and a standalone file's services,
//! checked, with every default filled in and every pattern compiled.
//!
//! Architecture Invariant: plain data. Nothing here does I/O, and nothing here changes after it was made: an update is a
//! new [`Target`].

pub mod from_proto;
#[cfg(test)]
mod from_proto_tests;
mod workload;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use outrigger_api::pattern::Pattern;
use outrigger_api::spiffe::SpiffeId;

pub use workload::{Workload, WorkloadInfo};

/// What is behind an address.
#[derive(Clone, Debug)]
pub enum Target {
    /// Not in the cluster: the connection goes where it wanted to go, untouched.
    External,
    /// A Service, or one pod of it (then it has one backend with one endpoint).
    Service(Arc<Service>),
}

/// A Service as clients call it.
#[derive(Debug)]
pub struct Service {
    pub name: ServiceName,
    pub protocol: Protocol,
    /// In the order in which they are tried. States of the Service that differ in endpoints alone share them.
    pub routes: Arc<[Route]>,
    /// The first is the Service itself.
    pub backends: Vec<Arc<Backend>>,
    /// For requests when there are no routes.
    pub policy: Arc<Policy>,
}

/// Names a Service's port: in metrics, spans and errors.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub port: u16,
}

impl ServiceName {
    /// "namespace/name", or the name alone where there is no namespace: a label of metrics.
    pub fn label(&self) -> String {
        match &*self.namespace {
            "" => self.name.to_string(),
            namespace => format!("{namespace}/{}", self.name),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{}:{}", self.name, self.port),
            namespace => write!(f, "{}.{namespace}:{}", self.name, self.port),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Detect,
    Http1,
    Http2,
    Tls,
    Opaque,
}

/// One rule of an HTTPRoute or GRPCRoute.
#[derive(Debug)]
pub struct Route {
    /// "namespace/name/rule-index".
    pub name: Arc<str>,
    pub hostnames: Vec<HostnameMatch>,
    /// Any of them; none matches everything.
    pub matches: Vec<RouteMatch>,
    pub filters: Vec<Filter>,
    pub backends: Vec<WeightedBackend>,
    pub policy: Arc<Policy>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum HostnameMatch {
    /// Lower case, without a port.
    Exact(String),
    /// ".example.com": one or more labels before it.
    Suffix(String),
}

#[derive(Debug, Default)]
pub struct RouteMatch {
    pub path: Option<PathMatch>,
    pub method: Option<Method>,
    pub headers: Vec<(HeaderName, ValueMatch)>,
    pub query: Vec<(String, ValueMatch)>,
}

#[derive(Debug)]
pub enum PathMatch {
    Exact(String),
    /// By path elements, without a trailing slash; "" matches every path.
    Prefix(String),
    Regex(Pattern),
}

#[derive(Debug)]
pub enum ValueMatch {
    Exact(String),
    Regex(Pattern),
}

#[derive(Debug)]
pub enum Filter {
    RequestHeaders(HeaderModifier),
    ResponseHeaders(HeaderModifier),
    Rewrite {
        hostname: Option<HeaderValue>,
        path: Option<PathModifier>,
    },
    Redirect(Redirect),
    Mirror {
        /// Index into [`Service::backends`].
        backend: usize,
        parts_per_million: u32,
    },
}

#[derive(Debug, Default)]
pub struct HeaderModifier {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Debug)]
pub enum PathModifier {
    ReplaceFull(String),
    ReplacePrefix(String),
}

#[derive(Debug)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub port: Option<u16>,
    pub path: Option<PathModifier>,
    pub status: StatusCode,
}

#[derive(Debug)]
pub struct WeightedBackend {
    /// Index into [`Service::backends`]. `None`: an invalid backend, whose share of the requests is answered 500 (Gateway API,
    /// HTTPRouteRule.backendRefs).
    pub backend: Option<usize>,
    pub weight: u32,
    pub filters: Vec<Filter>,
}

/// Something that requests are sent to: the endpoints of a Service's port.
#[derive(Debug)]
pub struct Backend {
    pub name: ServiceName,
    pub endpoints: Endpoints,
    /// Requests of one pod go to one endpoint (`sessionAffinity: ClientIP`).
    pub client_affinity: bool,
}

#[derive(Debug)]
pub enum Endpoints {
    /// Ready endpoints.
    Known(Vec<Arc<Endpoint>>),
    /// Resolved by the sidecar.
    Dns { host: Arc<str>, port: u16 },
}

/// One address of a backend. Two endpoints are the same for a pooled connection only if all of it is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Who must answer there. `None`: not in the mesh, called in plaintext.
    pub identity: Option<SpiffeId>,
    pub zone: Option<Arc<str>>,
    /// For logs and `/config`.
    pub pod: Option<Arc<str>>,
}

/// How a request is sent: every field decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub retry: RetryPolicy,
    /// All attempts together, to the response's last byte.
    pub request_timeout: Option<Duration>,
    /// One attempt.
    pub backend_request_timeout: Option<Duration>,
    /// TCP connect, TLS handshake and, in HTTP/2, the peer's SETTINGS.
    pub connect_timeout: Duration,
}

/// Safe by default: see `outbound::retry`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub attempts: u32,
    pub statuses: Vec<StatusCode>,
    pub grpc_statuses: Vec<u16>,
    pub backoff_base: Duration,
    pub backoff_max: Duration,
    /// Share of the requests of the last ten seconds, 0.0 to 1.0.
    pub budget_ratio: f64,
    pub budget_min_per_second: u32,
    pub non_idempotent: bool,
    pub max_body_bytes: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retry: RetryPolicy {
                attempts: 2,
                statuses: vec![
                    StatusCode::BAD_GATEWAY,
                    StatusCode::SERVICE_UNAVAILABLE,
                    StatusCode::GATEWAY_TIMEOUT,
                ],
                grpc_statuses: vec![14],
                backoff_base: Duration::from_millis(25),
                backoff_max: Duration::from_millis(250),
                budget_ratio: 0.2,
                budget_min_per_second: 10,
                non_idempotent: false,
                max_body_bytes: 64 * 1024,
            },
            request_timeout: None,
            backend_request_timeout: None,
            connect_timeout: Duration::from_secs(1),
        }
    }
}
