//! The controller of the soak: the real identity and discovery services, behind a network that fails.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use outrigger_api::discovery::backend::Kind as BackendKind;
use outrigger_api::discovery::target::Kind as TargetKind;
use outrigger_api::discovery::{Backend, Endpoint, Endpoints, Protocol, Service, ServiceRef, Target};
use outrigger_api::spiffe::SpiffeId;
use outrigger_controller::discovery::{self, Discover, FixedTargets};
use outrigger_controller::metrics::Metrics;
use outrigger_issuer::ca::Ca;
use outrigger_issuer::server::{ServerTls, serve};
use outrigger_issuer::service::{Issuer, StaticTokens};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::relay::Relay;

const TRUST_DOMAIN: &str = "soak.test";
const NAMESPACE: &str = "soak";
const CONTROLLER: &str = "spiffe://soak.test/ns/outrigger/sa/outrigger-controller";
/// The account of the replicas.
pub(super) const SERVER: &str = "server";
/// The accounts of those that call them.
pub(super) const CLIENTS: [&str; 2] = ["client-a", "client-b"];
/// Renewed at a quarter, so about every 15 s. What is left then is longer than the controller is ever lost, also when it is lost
/// and slow by turns.
const SVID_LIFETIME: Duration = Duration::from_secs(60);
/// The addresses of the Services: nothing is there, and nothing is sent there.
pub(super) const SERVICES: [SocketAddr; 3] = [service(1, 80), service(2, 80), service(3, 9000)];

const fn service(last: u8, port: u16) -> SocketAddr {
    use std::net::{IpAddr, Ipv4Addr};
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, last)), port)
}

/// See the module.
pub(super) struct Controller {
    /// Between it and the sidecars.
    pub(super) network: Relay,
    targets: Arc<FixedTargets>,
    files: TempDir,
    stop: CancellationToken,
    _ca: watch::Sender<Arc<Ca>>,
}

impl Controller {
    pub(super) async fn start() -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("outrigger-soak-")
            .disable_cleanup(true)
            .tempdir()?;
        let ca = Ca::generate(TRUST_DOMAIN)?;
        std::fs::write(files.path().join("ca.crt"), ca.bundle_pem())?;
        let mut tokens = StaticTokens::new();
        for account in CLIENTS.iter().chain([&SERVER]) {
            std::fs::write(files.path().join(account), format!("token-of-{account}"))?;
            tokens = tokens.with(format!("token-of-{account}"), NAMESPACE, *account);
        }
        let (keep, ca) = watch::channel(Arc::new(ca));
        let metrics = Arc::new(Metrics::default());
        let issuer = Issuer::new(ca.clone(), tokens, TRUST_DOMAIN, SVID_LIFETIME, metrics.issuer());
        let tls = ServerTls {
            ca: ca.clone(),
            id: CONTROLLER.parse()?,
            ttl: Duration::from_secs(24 * 3600),
            metrics: metrics.issuer(),
        };
        let targets = SERVICES.map(|address| (address, target(address, &[])));
        let targets = Arc::new(FixedTargets::new(targets));
        let discovery: Arc<dyn Discover> = targets.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let network = Relay::start(listener.local_addr()?)?;
        let stop = CancellationToken::new();
        let discovery = discovery::routes(discovery, metrics, ca, stop.clone());
        tokio::spawn(serve(listener, tls, issuer, discovery, stop.clone()));
        Ok(Self {
            network,
            targets,
            files,
            stop,
            _ca: keep,
        })
    }

    /// Tells all sidecars where the replicas are: the addresses of HTTP and of the echo of each.
    pub(super) fn publish(&self, replicas: &[[SocketAddr; 2]]) {
        for address in SERVICES {
            self.targets.replace(address, target(address, replicas));
        }
    }

    /// Removes the logs: nobody needs to read them.
    pub(super) fn discard_files(&self) {
        let _ = std::fs::remove_dir_all(self.files.path());
    }

    /// Where logs go. They stay there unless they are discarded.
    pub(super) fn files(&self) -> &Path {
        self.files.path()
    }

    /// The environment of a sidecar of `account`, as the injector writes it.
    pub(super) fn environment(&self, account: &str, pod: &str) -> Vec<(&'static str, String)> {
        let file = |name: &str| self.files.path().join(name).display().to_string();
        let log = std::env::var("OUTRIGGER_LOG").unwrap_or_else(|_| "info".to_owned());
        vec![
            ("OUTRIGGER_NAMESPACE", NAMESPACE.to_owned()),
            ("OUTRIGGER_SERVICE_ACCOUNT", account.to_owned()),
            ("OUTRIGGER_TRUST_DOMAIN", TRUST_DOMAIN.to_owned()),
            ("OUTRIGGER_POD", pod.to_owned()),
            ("OUTRIGGER_WORKLOAD", account.to_owned()),
            // Not loopback: a sidecar does not go by the network to its own pod.
            ("OUTRIGGER_POD_IPS", "192.0.2.1".to_owned()),
            ("OUTRIGGER_CONTROLLER", self.network.address().to_string()),
            ("OUTRIGGER_CONTROLLER_ID", CONTROLLER.to_owned()),
            ("OUTRIGGER_TOKEN_FILE", file(account)),
            ("OUTRIGGER_TRUST_BUNDLE_FILE", file("ca.crt")),
            ("OUTRIGGER_MTLS", "strict".to_owned()),
            ("OUTRIGGER_LOG", log),
        ]
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One of the Services.
fn target(address: SocketAddr, replicas: &[[SocketAddr; 2]]) -> Target {
    let [http, grpc, echo] = SERVICES;
    let (name, protocol) = match address {
        _ if address == http => ("http", Protocol::Unspecified),
        _ if address == grpc => ("grpc", Protocol::Http2),
        _ => ("echo", Protocol::Opaque),
    };
    let reference = ServiceRef {
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
        port: address.port().into(),
    };
    let identity = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, SERVER).expect("the names are constants");
    let endpoints = replicas.iter().map(|of| Endpoint {
        address: of[usize::from(address == echo)].to_string(),
        identity: identity.to_string(),
        ..Endpoint::default()
    });
    let backend = Backend {
        r#ref: Some(reference.clone()),
        kind: Some(BackendKind::Endpoints(Endpoints {
            endpoints: endpoints.collect(),
        })),
        policy: None,
        client_affinity: false,
        tls: None,
    };
    let service = Service {
        r#ref: Some(reference),
        protocol: protocol.into(),
        backends: vec![backend],
        ..Service::default()
    };
    Target {
        kind: Some(TargetKind::Service(service)),
    }
}
