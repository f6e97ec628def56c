//! What a connection's target is, as the request path reads it: discovery's messages and a standalone file's services,
//! checked, with every default filled in and every pattern compiled.
//!
//! Architecture Invariant: plain data. Nothing here does I/O, and nothing here changes after it was made: an update is a
//! new [`Target`].

mod backend_tls;
mod balancing;
mod byte_route;
mod call_limits;
mod cors;
mod external_auth;
mod fallback;
mod faults;
mod filters;
pub mod from_proto;
#[cfg(test)]
mod from_proto_tests;
pub mod rules;
mod sessions;
mod workload;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderName, Method};
use outrigger_api::pattern::Pattern;
use outrigger_api::spiffe::SpiffeId;

pub use backend_tls::{BackendTls, Inside, OtherName};
pub use balancing::{Balancing, Choice, Ejection, HashKey, LoadBalancer, Penalty, SlowStart, SuccessRate, Zone};
pub use byte_route::ByteRoute;
pub use call_limits::CallLimits;
pub use cors::{Allowed, Cors};
pub use external_auth::{AuthProtocol, ExternalAuth};
pub use fallback::{Fallback, FallbackAnswer, FallbackBackend, FallbackWhen, Instead};
pub use faults::{Abort, Fault, Faults};
pub use filters::{Filters, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite};
pub use rules::{AttemptRules, RequestRules, RetryBudget, RetryPolicy, RouteRules};
pub use sessions::{Carrier, Sessions};
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
    /// For connections of bytes, in the order of their age. With these there are no others.
    pub byte_routes: Arc<[ByteRoute]>,
    /// The first is the Service itself.
    pub backends: Vec<Arc<Backend>>,
    /// For requests when there are no routes, and for connections of bytes.
    pub rules: Arc<RouteRules>,
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
    pub backends: Vec<WeightedBackend>,
    pub rules: RouteRules,
}

#[derive(Debug, PartialEq, Eq)]
pub enum HostnameMatch {
    /// Lower case, without a port.
    Exact(String),
    /// ".example.com": one or more labels before it.
    Suffix(String),
}

impl HostnameMatch {
    /// Equal to no name that is asked for: it has a NUL.
    const NEVER: &str = "\0";

    /// "*.example.com" is any number of labels in the place of `*`. Another form of a wildcard, and nothing, is no name.
    pub(crate) fn parse(name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 => Self::Suffix(suffix.to_owned()),
            Some(_) => Self::Exact(Self::NEVER.to_owned()),
            None if name.is_empty() => Self::Exact(Self::NEVER.to_owned()),
            None => Self::Exact(name),
        }
    }

    /// Whether it is this name, which is in lower case.
    pub fn is(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Suffix(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_str()),
        }
    }

    /// The greater, the fewer names it is: an exact one, then the longest suffix (Gateway API, Listener.hostname).
    pub(crate) fn rank(&self) -> usize {
        match self {
            Self::Exact(_) => usize::MAX,
            Self::Suffix(suffix) => suffix.len(),
        }
    }
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
pub struct WeightedBackend {
    /// Index into [`Service::backends`]. `None`: an invalid backend, whose share of the requests is answered 500 (Gateway API,
    /// HTTPRouteRule.backendRefs).
    pub backend: Option<usize>,
    pub weight: u32,
    pub filters: Filters,
}

/// Something that requests are sent to: the endpoints of a Service's port.
#[derive(Debug)]
pub struct Backend {
    pub name: ServiceName,
    pub endpoints: Endpoints,
    /// Requests of one pod go to one endpoint (`sessionAffinity: ClientIP`).
    pub client_affinity: bool,
    /// How those of its endpoints are called that are not in the mesh. `None`: in plaintext.
    pub tls: Option<Arc<BackendTls>>,
}

#[derive(Debug)]
pub enum Endpoints {
    /// Ready endpoints.
    Known(Vec<Arc<Endpoint>>),
    /// Resolved by the sidecar.
    Dns { host: Arc<str>, port: u16 },
    /// Nobody can be there: the Service has these ports only.
    NoSuchPort(Vec<u16>),
}

/// One address of a backend. Two endpoints are the same for a pooled connection only if all of it is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Who must answer there. `None`: not in the mesh, called in plaintext or as [`Backend::tls`] says.
    pub identity: Option<SpiffeId>,
    pub zone: Option<Arc<str>>,
    /// For logs and `/config`.
    pub pod: Option<Arc<str>>,
    /// It is not near this pod: see `outbound::zones`.
    pub remote: bool,
}

impl Endpoint {
    /// Whether what is known of the one holds for the other: it is the same, wherever the caller is.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.address, &self.identity, &self.zone, &self.pod)
            == (other.address, &other.identity, &other.zone, &other.pod)
    }
}
