//! What a sidecar is told at its start: from the environment that the injector writes, or from a standalone file. It is
//! parsed once, completely, before anything binds; all mistakes are reported together.

mod env;
mod limits;
#[cfg(test)]
mod tests;
mod yaml;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::probes::AppProbe;
use outrigger_proxy_transport::room::Budget;

use crate::discovery::DiscoveryConfig;
use crate::identity::IdentityConfig;
use crate::model::Workload;
use crate::telemetry::{self, TracingConfig};

/// Everything that the process needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub workload: Workload,
    pub outbound: Vec<OutboundListener>,
    pub inbound: Vec<InboundListener>,
    /// Where `/livez`, `/readyz`, `/metrics` and their like are served.
    pub admin: SocketAddr,
    pub identity: IdentityConfig,
    pub discovery: DiscoveryConfig,
    /// `None`: nothing is exported; trace contexts are still passed on.
    pub tracing: Option<TracingConfig>,
    pub access_log: bool,
    /// A filter as `tracing-subscriber` reads it.
    pub log: String,
    pub mtls: Mtls,
    pub forwarded_for: ForwardedFor,
    /// What this sidecar asks the app in kubelet's place.
    pub app_probes: Vec<AppProbe>,
    /// What kubelet asks the app itself, and is therefore let in as plaintext even where mutual TLS is required.
    pub let_in: Vec<LetIn>,
    /// Ports whose bytes are not looked into, inbound and outbound.
    pub opaque_ports: Vec<RangeInclusive<u16>>,
    /// Threads that carry requests, 1 to 64.
    pub workers: usize,
    /// How long requests in flight may take after SIGTERM.
    pub drain_timeout: Duration,
    /// How long detection waits for a connection's first bytes, 100 ms to 60 s; then the connection is opaque.
    pub detect_timeout: Duration,
    /// Whether it is a native sidecar: its SIGTERM says that the app has ended.
    pub native: bool,
    /// Whether connections do not outlive the certificate of their peer.
    pub close_expired: bool,
    /// What is held for clients at most.
    pub budget: Budget,
    /// Asked instead of the system's name servers.
    pub dns_servers: Option<Vec<SocketAddr>>,
}

/// Takes the app's outgoing connections. An IPv6 wildcard means IPv6 alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundListener {
    pub listen: SocketAddr,
    pub to: Destination,
}

/// Where an outgoing connection wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The connection was captured: `SO_ORIGINAL_DST` says it.
    Original,
    /// Always there, as if every connection had been captured on its way to this address.
    Fixed(SocketAddr),
    /// A service of the standalone file.
    Named(Arc<str>),
}

/// Takes connections to the app. An IPv6 wildcard means IPv6 alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundListener {
    pub listen: SocketAddr,
    pub to: InboundDestination,
}

/// Where the app is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundDestination {
    /// The connection was captured: `SO_ORIGINAL_DST` says it.
    Original,
    Fixed(SocketAddr),
}

/// Whether plaintext is let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtls {
    #[default]
    Permissive,
    /// Refused, what kubelet asks the app itself excepted ([`LetIn`]).
    Strict,
}

/// What becomes of `X-Forwarded-For` on the way to the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedFor {
    /// It passes as it came.
    #[default]
    Leave,
    /// The address of who is connected to the sidecar comes behind what came.
    Append,
}

/// Something that kubelet asks the app itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetIn {
    pub port: u16,
    pub what: Plaintext,
}

/// What is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plaintext {
    /// A connection: not a byte of it is passed on.
    Connection,
    /// GET of exactly this path and query, without a body.
    Get(String),
    /// GET of this path with any query, without a body: an injector of the version before does not say the query.
    GetPath(String),
    /// A gRPC health check.
    GrpcHealth,
}

impl Config {
    /// The configuration of a sidecar that the injector put into a pod.
    ///
    /// # Errors
    /// All mistakes, each with the variable's name.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Config, Vec<String>> {
        env::parse(&get)
    }

    /// What telemetry needs to know of it.
    pub fn telemetry(&self) -> telemetry::Settings {
        let workload = &self.workload;
        telemetry::Settings {
            resource: telemetry::Resource {
                name: Arc::clone(&workload.name),
                namespace: Arc::clone(&workload.namespace),
                pod: Arc::clone(&workload.pod),
                node: Arc::clone(&workload.node),
            },
            tracing: self.tracing.clone(),
            access_log: self.access_log,
            seed: None,
        }
    }

    /// Whether the pod's connections are captured: then the addresses of endpoints come from the controller, and from objects that
    /// others write.
    pub fn captures(&self) -> bool {
        self.outbound
            .iter()
            .any(|listener| listener.to == Destination::Original)
    }

    /// The configuration of a standalone sidecar. Relative paths in it are relative to the folder of `name`.
    ///
    /// # Errors
    /// All mistakes, each with the file, the line and the field.
    pub fn from_yaml(name: &str, text: &str) -> Result<Config, Vec<String>> {
        yaml::parse(name, text)
    }
}
