//! An app that notes what comes to it, its sidecar, whose policies change, and who calls: two workloads of the mesh, the pod itself,
//! and somebody outside of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_api::access::{Access, Policy};
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Config;
use outrigger_proxy::discovery::DiscoveryConfig;
use outrigger_tests::mesh::{Authority, Body, Http, Sidecar, ask_the_controller, id, text};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::script::Script;
use super::{DAY, until};
use crate::tcp::certificates::right;
use crate::tcp::hostile::client;

pub(super) const NAMES: [&str; 3] = ["web", "jobs", "orders"];

/// An app of HTTP and of an echo, by the first byte of a connection.
pub(super) struct Witness {
    pub(super) address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Of the last request.
    headers: Mutex<HeaderMap>,
}

impl Witness {
    pub(super) async fn start() -> Self {
        Self::noting(Arc::default()).await
    }

    /// Another one at another port; both note together.
    pub(super) async fn another(&self) -> Self {
        Self::noting(Arc::clone(&self.seen)).await
    }

    async fn noting(seen: Arc<Seen>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let noting = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                noting.connections.fetch_add(1, SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&noting)));
            }
        });
        Self { address, seen }
    }

    /// Connections and requests that came.
    pub(super) fn seen(&self) -> (usize, usize) {
        let seen = &self.seen;
        (seen.connections.load(SeqCst), seen.requests.load(SeqCst))
    }

    /// The headers of the last request.
    pub(super) fn heard(&self) -> HeaderMap {
        self.seen.headers.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Seen>) {
    let mut first = [0];
    if !matches!(stream.peek(&mut first).await, Ok(1)) {
        return;
    }
    if first[0].is_ascii_uppercase() {
        let answer = service_fn(move |request| {
            let seen = Arc::clone(&seen);
            async move { Ok::<_, std::convert::Infallible>(answer(&seen, request)) }
        });
        // A client that goes away is what some tests are about.
        let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
            .serve_connection_with_upgrades(TokioIo::new(stream), answer)
            .await;
        return;
    }
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
        if stream.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

/// Echoes on what a request becomes, if it is to become something else.
fn answer(seen: &Seen, mut request: Request<Incoming>) -> Response<Body> {
    seen.requests.fetch_add(1, SeqCst);
    seen.headers.lock().unwrap().clone_from(request.headers());
    let grpc = request
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind == "application/grpc");
    let mut response = Response::new(text(""));
    if request.headers().contains_key("upgrade") || request.method() == http::Method::CONNECT {
        if request.method() != http::Method::CONNECT {
            *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("upgrade", "websocket".parse().unwrap());
            response.headers_mut().insert("connection", "upgrade".parse().unwrap());
        }
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
    if grpc {
        response
            .headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        response.headers_mut().insert("grpc-status", "0".parse().unwrap());
    }
    response
}

/// See the module.
pub(super) struct Scene {
    pub(super) authority: Authority,
    pub(super) script: Script,
    pub(super) app: Witness,
    pub(super) orders: RunningProxy,
    pub(super) web: RunningProxy,
    pub(super) jobs: RunningProxy,
    marks: AtomicUsize,
}

impl Scene {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With another configuration of the app's sidecar.
    pub(super) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let script = Script::default();
        script.says(Access::default());
        Self::by(script, change).await
    }

    pub(super) async fn by(script: Script, change: impl FnOnce(&mut Config)) -> Self {
        let authority = Authority::with_service(&NAMES, DAY, script.routes()).await;
        let app = Witness::start().await;
        let orders = Sidecar::new("orders").protects(app.address);
        let orders = orders
            .launch(&authority, |config| {
                ask_the_controller(config);
                change(config);
            })
            .await;
        tokio::time::timeout(super::SOON, orders.identity().ready())
            .await
            .unwrap();
        // On a busy machine a handshake takes its time, and it waits for who does not know its policies.
        let policy = "{retry: {attempts: 0}, timeouts: {connect: 20s}}";
        let web = caller(&authority, &orders, "web", policy).await;
        let jobs = caller(&authority, &orders, "jobs", policy).await;
        Self {
            authority,
            script,
            app,
            orders,
            web,
            jobs,
            marks: AtomicUsize::new(0),
        }
    }

    /// The policies, as a standalone file has them (without the dash of the list), are in force when this is done.
    pub(super) async fn enforces(&self, policies: &str) {
        self.is_told(policies_of(policies)).await;
    }

    /// The same of what a controller says.
    pub(super) async fn is_told(&self, mut access: Access) {
        // It refuses nobody, and tells that the sidecar has heard.
        let mark = format!("mark-{}", self.marks.fetch_add(1, SeqCst));
        access.audited.push(Policy {
            name: mark.clone(),
            ports: Some(outrigger_api::access::Ports { numbers: vec![1] }),
            ..Policy::default()
        });
        self.script.says(access);
        let admin = self.orders.admin;
        until("the sidecar hears of its policies", async || {
            let config = Http::one().get(admin, "/config").await.body;
            String::from_utf8_lossy(&config).contains(&mark)
        })
        .await;
    }

    /// The sidecar of another pod of a workload.
    pub(super) async fn caller(&self, name: &str, policy: &str) -> RunningProxy {
        caller(&self.authority, &self.orders, name, policy).await
    }

    /// A connection to the app's sidecar that is a workload's, made by hand, with this ALPN.
    pub(super) async fn by_hand(&self, name: &str, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let config = client(Some(right(&self.authority, name)), &[alpn]);
        by_hand(config, self.orders.inbound[0]).await
    }
}

/// A connection of mutual TLS.
pub(super) async fn by_hand(config: Arc<ClientConfig>, to: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from("orders.peer").unwrap();
    TlsConnector::from(config).connect(name, stream).await
}

/// It calls the app as HTTP, or whatever is detected, and as bytes.
async fn caller(authority: &Authority, orders: &RunningProxy, name: &str, policy: &str) -> RunningProxy {
    let at = [(orders.inbound[0], Some(id("orders")))];
    let caller = Sidecar::new(name).calls("orders", "detect", &at, policy);
    caller.calls("database", "opaque", &at, policy).start(authority).await
}

/// The policies of a standalone file of "orders", in its namespace.
pub(super) fn policies_of(policies: &str) -> Access {
    let file = format!(
        "workload: {{name: orders, namespace: shop, trustDomain: mesh.test}}\n\
         identity: {{issuer: \"127.0.0.1:1\", issuerId: \"spiffe://mesh.test/ns/outrigger/sa/c\", tokenFile: t, trustBundleFile: b}}\n\
         accessPolicies: {policies}\n"
    );
    let config = Config::from_yaml("orders.yaml", &file).unwrap_or_else(|errors| panic!("{errors:#?}\n{file}"));
    match config.discovery {
        DiscoveryConfig::Standalone(targets) => targets.access,
        DiscoveryConfig::Controller { .. } => unreachable!("a file is standalone"),
    }
}
