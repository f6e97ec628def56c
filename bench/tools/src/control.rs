//! Outrigger's controller without Kubernetes: the issuer is the real one, and discovery knows one Service with one endpoint
//! for each port.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use outrigger_api::access::{Access, Ports};
use outrigger_api::discovery::backend::Kind as BackendKind;
use outrigger_api::discovery::string_match::Kind as PathKind;
use outrigger_api::discovery::target::Kind as TargetKind;
use outrigger_api::discovery::{
    Backend, Endpoint, Endpoints, Match, Protocol, Route, Service, ServiceRef, StringMatch, Target, WeightedBackend,
};
use outrigger_api::limits::Limits;
use outrigger_api::policy::TrafficPolicySpec;
use outrigger_api::policy::access::{AccessPolicySpec, Cluster, JwksSpec};
use outrigger_api::policy::limits::RateLimitPolicySpec;
use outrigger_api::policy::selector::LabelSelector;
use outrigger_api::spiffe::SpiffeId;
use outrigger_controller::discovery::{self, Discover, FixedTargets};
use outrigger_controller::metrics::Metrics;
use outrigger_issuer::ca::Ca;
use outrigger_issuer::server::{ServerTls, serve};
use outrigger_issuer::service::{Issuer, StaticTokens};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const TRUST_DOMAIN: &str = "cluster.local";
const NAMESPACE: &str = "bench";
const TTL: Duration = Duration::from_secs(24 * 3600);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Listens here.
    #[arg(long)]
    addr: SocketAddr,
    /// Where it writes the trust bundle `ca.crt` and each pod's token.
    #[arg(long)]
    out: PathBuf,
    /// The pod "server".
    #[arg(long)]
    server: IpAddr,
    /// Its ports; nothing is said of their protocol.
    #[arg(long, value_delimiter = ',')]
    ports: Vec<u16>,
    /// Further ports, whose bytes are not looked at.
    #[arg(long, value_delimiter = ',')]
    opaque: Vec<u16>,
    /// The specs of AccessPolicies, as a JSON array: who may call `ports`.
    #[arg(long)]
    access: Option<PathBuf>,
    /// What limits `ports`, and how they are called, as JSON.
    #[arg(long)]
    traffic: Option<PathBuf>,
}

/// What a file of `--traffic` has.
#[derive(Deserialize)]
struct Traffic {
    limits: RateLimitPolicySpec,
    traffic: TrafficPolicySpec,
    /// The path prefixes of routes, in their order.
    routes: Vec<String>,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let ca = Ca::generate(TRUST_DOMAIN)?;
    std::fs::create_dir_all(&options.out)?;
    std::fs::write(options.out.join("ca.crt"), ca.bundle_pem())?;
    let mut tokens = StaticTokens::new();
    for pod in ["client", "server"] {
        std::fs::write(options.out.join(format!("token-{pod}")), pod)?;
        tokens = tokens.with(pod, NAMESPACE, pod);
    }
    let identity = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, "server")?.to_string();
    let detected = options.ports.iter().map(|port| (port, Protocol::Unspecified));
    let opaque = options.opaque.iter().map(|port| (port, Protocol::Opaque));
    let traffic = options.traffic.as_ref();
    let traffic = traffic.map(|file| read::<Traffic>(file)).transpose()?;
    let targets = detected
        .chain(opaque)
        .map(|(port, protocol)| (SocketAddr::new(options.server, *port), protocol))
        .map(|(address, protocol)| Ok((address, service(address, protocol, &identity, traffic.as_ref())?)))
        .collect::<Result<Vec<_>>>()?;
    let (_ca, ca) = watch::channel(Arc::new(ca));
    let metrics = Arc::new(Metrics::default());
    let issuer = Issuer::new(ca.clone(), tokens, TRUST_DOMAIN, TTL, metrics.issuer());
    let id = "spiffe://cluster.local/ns/outrigger/sa/outrigger-controller".parse()?;
    let tls = ServerTls {
        ca: ca.clone(),
        id,
        ttl: TTL,
        metrics: metrics.issuer(),
    };
    let fixed = FixedTargets::new(targets);
    if let Some(file) = &options.access {
        fixed.set_access(access(file, &options.ports)?);
    }
    if let Some(traffic) = &traffic {
        fixed.set_limits(limits(&traffic.limits, &options.ports)?);
    }
    let discovery: Arc<dyn Discover> = Arc::new(fixed);
    let listener = TcpListener::bind(options.addr)
        .await
        .with_context(|| options.addr.to_string())?;
    let stop = CancellationToken::new();
    let discovery = discovery::routes(discovery, metrics, ca, stop.clone());
    serve(listener, tls, issuer, discovery, stop).await?;
    Ok(())
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let read = || anyhow::Ok(serde_json::from_slice(&std::fs::read(file)?)?);
    read().with_context(|| file.display().to_string())
}

fn numbers(ports: &[u16]) -> Ports {
    Ports {
        numbers: ports.iter().map(|port| u32::from(*port)).collect(),
    }
}

/// The policies of a file, for these ports of every pod.
fn access(file: &Path, ports: &[u16]) -> Result<Access> {
    let specs: Vec<AccessPolicySpec> = read(file)?;
    let mut access = Access::default();
    for (number, spec) in specs.iter().enumerate() {
        let (policy, mistakes) = spec.to_wire(&format!("{NAMESPACE}/{number}"), NAMESPACE);
        ensure!(mistakes.is_empty(), "policy {number}: {mistakes:?}");
        let mut policy = policy.resolve(None, &NoCluster);
        policy.ports = Some(numbers(ports));
        access.enforced.push(policy);
    }
    Ok(access)
}

/// The policy, for these ports of every pod.
fn limits(spec: &RateLimitPolicySpec, ports: &[u16]) -> Result<Limits> {
    let policy = spec.to_wire(&format!("{NAMESPACE}/limits"), NAMESPACE);
    let policy = policy.map_err(|mistakes| anyhow!("limits: {mistakes:?}"))?;
    Ok(Limits {
        policies: vec![policy.resolve(Some(numbers(ports)), None, &NoCluster)],
    })
}

/// What policies do not say themselves, the file has to say.
struct NoCluster;

impl Cluster for NoCluster {
    fn trust_domain(&self) -> &str {
        TRUST_DOMAIN
    }

    fn namespaces(&self, _: &LabelSelector) -> Vec<String> {
        Vec::new()
    }

    fn port(&self, _: &str) -> Option<u16> {
        None
    }

    fn jwks(&self, keys: &JwksSpec) -> String {
        keys.inline.clone().unwrap_or_default()
    }
}

fn service(endpoint: SocketAddr, protocol: Protocol, identity: &str, traffic: Option<&Traffic>) -> Result<Target> {
    let policy = traffic.map(|traffic| traffic.traffic.to_proto()).transpose();
    let policy = policy.map_err(|mistakes| anyhow!("traffic: {mistakes:?}"))?;
    let prefixes = traffic.map(|traffic| &*traffic.routes).unwrap_or_default();
    let reference = ServiceRef {
        namespace: NAMESPACE.into(),
        name: "app".into(),
        port: endpoint.port().into(),
    };
    let endpoint = Endpoint {
        address: endpoint.to_string(),
        identity: identity.to_owned(),
        ..Endpoint::default()
    };
    Ok(Target {
        kind: Some(TargetKind::Service(Service {
            r#ref: Some(reference.clone()),
            protocol: protocol.into(),
            routes: prefixes.iter().map(|prefix| route(prefix)).collect(),
            policy,
            backends: vec![Backend {
                r#ref: Some(reference),
                kind: Some(BackendKind::Endpoints(Endpoints {
                    endpoints: vec![endpoint],
                })),
                policy: None,
                client_affinity: false,
                tls: None,
            }],
            ..Service::default()
        })),
    })
}

/// To the backend of its own.
fn route(prefix: &str) -> Route {
    let path = StringMatch {
        kind: Some(PathKind::PathPrefix(prefix.to_owned())),
    };
    let whole = Match {
        path: Some(path),
        ..Match::default()
    };
    let own = WeightedBackend {
        backend: 0,
        weight: 1,
        filters: Vec::new(),
    };
    Route {
        name: format!("{NAMESPACE}{prefix}"),
        matches: vec![whole],
        backends: vec![own],
        ..Route::default()
    }
}
