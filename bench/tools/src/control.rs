//! Outrigger's controller without Kubernetes: the issuer is the real one, and discovery knows one Service with one endpoint
//! for each port.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use outrigger_api::discovery::backend::Kind as BackendKind;
use outrigger_api::discovery::target::Kind as TargetKind;
use outrigger_api::discovery::{Backend, Endpoint, Endpoints, Protocol, Service, ServiceRef, Target};
use outrigger_api::spiffe::SpiffeId;
use outrigger_controller::discovery::{self, Discover, FixedTargets};
use outrigger_controller::metrics::Metrics;
use outrigger_issuer::ca::Ca;
use outrigger_issuer::server::{ServerTls, serve};
use outrigger_issuer::service::{Issuer, StaticTokens};
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
    let targets: Vec<_> = detected
        .chain(opaque)
        .map(|(port, protocol)| (SocketAddr::new(options.server, *port), protocol))
        .map(|(address, protocol)| (address, service(address, protocol, &identity)))
        .collect();
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
    let discovery: Arc<dyn Discover> = Arc::new(FixedTargets::new(targets));
    let listener = TcpListener::bind(options.addr)
        .await
        .with_context(|| options.addr.to_string())?;
    let stop = CancellationToken::new();
    let discovery = discovery::routes(discovery, metrics, ca, stop.clone());
    serve(listener, tls, issuer, discovery, stop).await?;
    Ok(())
}

fn service(endpoint: SocketAddr, protocol: Protocol, identity: &str) -> Target {
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
    Target {
        kind: Some(TargetKind::Service(Service {
            r#ref: Some(reference.clone()),
            protocol: protocol.into(),
            backends: vec![Backend {
                r#ref: Some(reference),
                kind: Some(BackendKind::Endpoints(Endpoints {
                    endpoints: vec![endpoint],
                })),
                policy: None,
                client_affinity: false,
            }],
            ..Service::default()
        })),
    }
}
