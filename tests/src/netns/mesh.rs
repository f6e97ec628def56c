//! A mesh of captured pods: real sidecars as processes of their own user, and a controller beside them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use outrigger_api::discovery::backend::Kind as BackendKind;
use outrigger_api::discovery::target::Kind as TargetKind;
use outrigger_api::discovery::{Backend, Endpoint, Endpoints, Pod as PodTarget, Service, ServiceRef, Target, Workload};
use outrigger_api::ports::{ADMIN, CONTROLLER, PROXY_UID};
use outrigger_api::spiffe::SpiffeId;
use outrigger_controller::discovery::{self, Discover, FixedTargets};
use outrigger_controller::metrics::Metrics;
use outrigger_issuer::ca::Ca;
use outrigger_issuer::server::{ServerTls, serve};
use outrigger_issuer::service::{Issuer, StaticTokens};
use outrigger_proxy::capture::{CaptureConfig, apply};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Lab, Namespace, Pod, Running, program};

const TRUST_DOMAIN: &str = "cluster.local";
const NAMESPACE: &str = "shop";
const CONTROLLER_ID: &str = "spiffe://cluster.local/ns/outrigger/sa/outrigger-controller";
const READY: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(3600);

/// A controller on the bridge, and what its sidecars need.
pub struct Mesh {
    files: TempDir,
    /// Its sockets are on the bridge. Dropping it ends the controller.
    controller: Option<tokio::runtime::Runtime>,
}

/// A captured pod with its sidecar. The sidecar ends with it.
pub struct Meshed<'a> {
    pub pod: &'a Pod,
    pub sidecar: Running,
}

impl Mesh {
    /// Every one of `accounts` has a token of its own name; `targets` is all that there is in the cluster.
    ///
    /// # Panics
    /// When the controller does not start.
    pub fn new(lab: &Lab, accounts: &[&str], targets: Vec<(SocketAddr, Target)>) -> Self {
        Self::with_networks(lab, accounts, targets, &[])
    }

    /// The same, and sidecars are told these networks of the cluster.
    ///
    /// # Panics
    /// When the controller does not start.
    pub fn with_networks(lab: &Lab, accounts: &[&str], targets: Vec<(SocketAddr, Target)>, networks: &[&str]) -> Self {
        let targets = FixedTargets::new(targets);
        targets.set_workload(Workload {
            cluster_networks: networks.iter().map(|&network| network.to_owned()).collect(),
            ..Workload::default()
        });
        let ca = Ca::generate(TRUST_DOMAIN).unwrap_or_else(|error| panic!("no CA: {error}"));
        let files = TempDir::new().unwrap_or_else(|error| panic!("no folder for files: {error}"));
        let write = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(path, text).unwrap_or_else(|error| panic!("{name}: {error}"));
        };
        // The sidecar is another user.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(files.path(), open).unwrap_or_else(|error| panic!("{error}"));
        write("ca.crt", &ca.bundle_pem());
        let mut tokens = StaticTokens::new();
        for account in accounts {
            write(&format!("token-{account}"), account);
            tokens = tokens.with(*account, NAMESPACE, *account);
        }
        let controller = lab.outside().runtime();
        let (bound, listening) = std::sync::mpsc::channel();
        controller.spawn(async move {
            let metrics = Arc::new(Metrics::default());
            let ca = watch::Sender::new(Arc::new(ca)).subscribe();
            let tls = ServerTls {
                ca: ca.clone(),
                id: CONTROLLER_ID.parse().unwrap_or_else(|error| panic!("{error}")),
                ttl: TTL,
                metrics: metrics.issuer(),
            };
            let issuer = Issuer::new(ca.clone(), tokens, TRUST_DOMAIN, TTL, metrics.issuer());
            let discovery: Arc<dyn Discover> = Arc::new(targets);
            let listener = tokio::net::TcpListener::bind(("0.0.0.0", CONTROLLER)).await;
            let listener = listener.unwrap_or_else(|error| panic!("the controller's port: {error}"));
            _ = bound.send(());
            let stop = CancellationToken::new();
            let discovery = discovery::routes(discovery, metrics, ca, stop.clone());
            serve(listener, tls, issuer, discovery, stop).await
        });
        assert!(listening.recv_timeout(READY).is_ok(), "the controller does not listen");
        Self {
            files,
            controller: Some(controller),
        }
    }

    /// Ends the controller, and its connections with it.
    pub fn controller_goes_away(&mut self) {
        self.controller = None;
    }

    /// Captures a pod and starts its sidecar, with more variables as the injector would set them, and waits until it is
    /// ready.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn join<'a>(
        &self,
        lab: &Lab,
        pod: &'a Pod,
        account: &str,
        capture: &CaptureConfig,
        environment: &[(&str, &str)],
    ) -> Meshed<'a> {
        pod.enter(|| apply(capture)).unwrap_or_else(|error| panic!("{error}"));
        let user = PROXY_UID.to_string();
        let file = |name: &str| self.files.path().join(name).display().to_string();
        let mut command = pod.command("setpriv");
        command
            .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"])
            .args(["--bounding-set", "-all", "--inh-caps", "-all"])
            .arg(program("outrigger-proxy"))
            .arg("run")
            .env("OUTRIGGER_NAMESPACE", NAMESPACE)
            .env("OUTRIGGER_POD", account)
            .env("OUTRIGGER_WORKLOAD", account)
            .env("OUTRIGGER_SERVICE_ACCOUNT", account)
            .env("OUTRIGGER_POD_IPS", format!("{},{}", pod.v4, pod.v6))
            .env("OUTRIGGER_CONTROLLER", format!("10.77.0.1:{CONTROLLER}"))
            .env("OUTRIGGER_CONTROLLER_ID", CONTROLLER_ID)
            .env("OUTRIGGER_TOKEN_FILE", file(&format!("token-{account}")))
            .env("OUTRIGGER_TRUST_BUNDLE_FILE", file("ca.crt"))
            // A server that speaks first must not wait for this; a test that does would be seen.
            .env("OUTRIGGER_DETECT_TIMEOUT", "30s")
            .env(
                "OUTRIGGER_LOG",
                std::env::var("OUTRIGGER_LOG").unwrap_or_else(|_| "warn".into()),
            )
            .envs(environment.iter().copied());
        let sidecar = pod.start(&mut command);
        let admin = SocketAddr::new(pod.v4, ADMIN);
        let began = Instant::now();
        loop {
            let ready = lab.outside().enter(|| get(admin, "/readyz", "admin"));
            match ready {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => break,
                other => assert!(
                    began.elapsed() < READY,
                    "the sidecar of {account} does not get ready: {other:?}"
                ),
            }
            thread::sleep(Duration::from_millis(50));
        }
        Meshed { pod, sidecar }
    }
}

impl Meshed<'_> {
    /// The value of a series in the sidecar's metrics; 0 where there is none.
    ///
    /// # Panics
    /// When the metrics cannot be read.
    pub fn metric(&self, series: &str) -> f64 {
        let admin = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), ADMIN);
        let text = self.pod.enter(|| get(admin, "/metrics", "admin"));
        let text = text.unwrap_or_else(|error| panic!("no metrics: {error}"));
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| {
            value
                .parse()
                .unwrap_or_else(|error| panic!("{series} {value}: {error}"))
        })
    }
}

/// The SPIFFE ID of an account of the mesh.
///
/// # Panics
/// When the name cannot be in one.
pub fn identity(account: &str) -> String {
    SpiffeId::new(TRUST_DOMAIN, NAMESPACE, account)
        .unwrap_or_else(|error| panic!("{error}"))
        .to_string()
}

/// A Service with one endpoint, in the mesh if it has an account.
pub fn service(name: &str, port: u16, endpoint: SocketAddr, account: Option<&str>) -> Target {
    let reference = reference(name, port);
    Target {
        kind: Some(TargetKind::Service(Service {
            r#ref: Some(reference.clone()),
            backends: vec![Backend {
                r#ref: Some(reference),
                kind: Some(BackendKind::Endpoints(Endpoints {
                    endpoints: vec![endpoint_of(endpoint, account)],
                })),
                policy: None,
                client_affinity: false,
                tls: None,
            }],
            ..Service::default()
        })),
    }
}

/// A pod's own address, as a headless Service gives it.
pub fn pod(name: &str, endpoint: SocketAddr, account: &str) -> Target {
    Target {
        kind: Some(TargetKind::Pod(PodTarget {
            endpoint: Some(endpoint_of(endpoint, Some(account))),
            service: Some(reference(name, endpoint.port())),
            ..PodTarget::default()
        })),
    }
}

fn reference(name: &str, port: u16) -> ServiceRef {
    ServiceRef {
        namespace: NAMESPACE.into(),
        name: name.into(),
        port: port.into(),
    }
}

fn endpoint_of(address: SocketAddr, account: Option<&str>) -> Endpoint {
    Endpoint {
        address: address.to_string(),
        identity: account.map(identity).unwrap_or_default(),
        ..Endpoint::default()
    }
}

/// Sends one request over a connection of its own, and reads all of the answer.
///
/// # Errors
/// What the connection says.
pub fn get(address: SocketAddr, path: &str, host: &str) -> std::io::Result<String> {
    send(address, "GET", path, host)
}

/// The same, with another method, and no body.
///
/// # Errors
/// What the connection says.
pub fn send(address: SocketAddr, method: &str, path: &str, host: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// An HTTP server that answers 200 with its name and the request's head, and keeps connections alive until it is asked not
/// to.
///
/// # Panics
/// When its port is taken.
pub fn http_server(namespace: &Namespace, listen: SocketAddr, name: &'static str) {
    serve_each(namespace, listen, move |mut stream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|read| read == 1) {
            head.push(byte[0]);
            if head.ends_with(b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&std::mem::take(&mut head)).into_owned();
                let body = format!("{name}\n{head}");
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let close = head.to_ascii_lowercase().contains("connection: close");
                if stream.write_all(answer.as_bytes()).is_err() || close {
                    return;
                }
            }
        }
    });
}

/// A server that speaks first, and then says after whoever talks to it.
///
/// # Panics
/// When its port is taken.
pub fn speaks_first(namespace: &Namespace, listen: SocketAddr, greeting: &'static str) {
    serve_each(namespace, listen, move |mut stream| {
        let mut word = [0; 64];
        let mut greeted = stream.write_all(greeting.as_bytes()).is_ok();
        while greeted {
            let read = stream.read(&mut word).unwrap_or(0);
            greeted = read > 0 && stream.write_all(&word[..read]).is_ok();
        }
    });
}

fn serve_each(namespace: &Namespace, listen: SocketAddr, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    let listener = namespace.enter(|| TcpListener::bind(listen));
    let listener = listener.unwrap_or_else(|error| panic!("{listen}: {error}"));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
}
