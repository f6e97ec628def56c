//! What a sidecar is told at its start: from the environment that the injector writes, or from a standalone file. It is
//! parsed once, completely, before anything binds; all mistakes are reported together.

mod env;
mod limits;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::probes::AppProbe;
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::room::Budget;

use crate::model::Target;

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
    /// What is held for clients at most.
    pub budget: Budget,
    /// Asked instead of the system's name servers.
    pub dns_servers: Option<Vec<SocketAddr>>,
}

/// Who this sidecar stands beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `service.name` in telemetry: the name of what owns the pod.
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub pod: Arc<str>,
    pub service_account: Arc<str>,
    pub trust_domain: Arc<str>,
    /// Empty outside Kubernetes.
    pub node: Arc<str>,
    /// Empty outside Kubernetes.
    pub pod_ips: Vec<IpAddr>,
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

/// How this sidecar gets its SVID, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityConfig {
    /// Who this sidecar is to be.
    pub id: SpiffeId,
    /// Where `Identity.Issue` is called.
    pub issuer: HostPort,
    /// Who must answer there.
    pub issuer_id: SpiffeId,
    /// The token that proves who this sidecar is; read again for each request, because kubelet renews it.
    pub token_file: PathBuf,
    /// PEM roots; read again on a timer, because they may be rotated.
    pub trust_bundle_file: PathBuf,
}

/// Where the sidecar learns what is behind an address.
#[derive(Clone, Debug)]
pub enum DiscoveryConfig {
    Controller {
        address: HostPort,
        /// Who must answer there.
        id: SpiffeId,
    },
    Standalone(StaticTargets),
}

/// The services of a standalone file, by name.
#[derive(Clone, Debug, Default)]
pub struct StaticTargets(pub HashMap<Arc<str>, Arc<Target>>);

/// Where spans go.
#[derive(Clone, Debug, PartialEq)]
pub struct TracingConfig {
    /// `http://jaeger.shop.svc:4317`.
    pub endpoint: http::Uri,
    pub protocol: TracingProtocol,
    /// Share of the traces that begin here which are recorded, 0 to 1.
    pub sample_ratio: f64,
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TracingProtocol {
    #[default]
    Grpc,
    Http,
}

/// Whether plaintext is let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtls {
    #[default]
    Permissive,
    /// Refused, what kubelet asks the app itself excepted ([`LetIn`]).
    Strict,
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

/// A host name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Without brackets, also where it is an IPv6 address.
    pub host: Arc<str>,
    pub port: u16,
}

impl Config {
    /// The configuration of a sidecar that the injector put into a pod.
    ///
    /// # Errors
    /// All mistakes, each with the variable's name.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Config, Vec<String>> {
        env::parse(&get)
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

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a host and a port, like \"controller.example:14150\" or \"[::1]:14150\"");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse::<u16>().ok().filter(|&p| p > 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .filter(|h| h.parse::<std::net::Ipv6Addr>().is_ok())
                .ok_or_else(wrong)?,
            None => host,
        };
        let name = |h: &str| {
            (1..=253).contains(&h.len())
                && h.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        if !name(host) && host.parse::<IpAddr>().is_err() || host.contains(':') && !text.starts_with('[') {
            return Err(wrong());
        }
        Ok(Self {
            host: host.into(),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
