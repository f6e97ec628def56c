//! A mesh in one process: an issuer, sidecars with standalone files, apps, and a collector of spans. Real sockets on
//! loopback, real TLS; no root and no cluster.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use outrigger_api::spiffe::SpiffeId;
use outrigger_controller::discovery::{self, Discover};
use outrigger_controller::metrics::Metrics;
use outrigger_issuer::ca::Ca;
use outrigger_issuer::server::{ServerTls, serve};
use outrigger_issuer::service::{Issuer, StaticTokens};
use outrigger_proxy::app::{self, RunningProxy};
use outrigger_proxy::config::{Config, Destination, OutboundListener};
use outrigger_proxy::discovery::DiscoveryConfig;
use outrigger_proxy::identity::Clock;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub const TRUST_DOMAIN: &str = "mesh.test";
const ISSUER_ID: &str = "spiffe://mesh.test/ns/outrigger/sa/outrigger-controller";
/// Everything on loopback is there within this, or never.
pub const SOON: Duration = Duration::from_secs(10);

/// Waits for a condition that must come true.
pub async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    until_within(SOON, what, condition).await;
}

/// The same, with another limit.
pub async fn until_within(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(limit, waiting).await;
    assert!(in_time.is_ok(), "never: {what}");
}

/// An app that echoes what each connection says.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Says something on a connection of its own, and hears so many bytes.
///
/// # Errors
/// Those of [`talk`].
pub async fn heard(to: SocketAddr, word: &[u8], bytes: usize) -> std::io::Result<Vec<u8>> {
    talk(to, word, bytes).await.map(|(_, heard)| heard)
}

/// The same, and the connection. A machine that has much to do may see a reset before connect() has returned, or before all was said: each
/// is one and the same error.
///
/// # Errors
/// The connection ends before that.
pub async fn talk(to: SocketAddr, word: &[u8], bytes: usize) -> std::io::Result<(TcpStream, Vec<u8>)> {
    let mut stream = TcpStream::connect(to).await?;
    // Where that fails, what was heard is still to be read, or the reset.
    let _ = stream.write_all(word).await;
    let mut heard = vec![0; bytes];
    stream.read_exact(&mut heard).await?;
    Ok((stream, heard))
}

/// A response's body in these tests.
pub type Body = BoxBody<Bytes, Infallible>;
type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// What is served beside identities.
type Beside = Arc<dyn Fn(watch::Receiver<Arc<Ca>>, CancellationToken) -> Routes + Send + Sync>;

/// Who issues identities, and may tell what is where. Two of them do not trust each other.
pub struct Authority {
    directory: TempDir,
    address: SocketAddr,
    ca: watch::Sender<Arc<Ca>>,
    tokens: Vec<String>,
    lifetime: Duration,
    beside: Option<Beside>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Authority {
    /// Issues SVIDs that live for `lifetime`, to the workloads `names`.
    pub async fn start(names: &[&str], lifetime: Duration) -> Self {
        Self::serving(names, lifetime, None).await
    }

    /// The same, with discovery.
    pub async fn with_discovery(names: &[&str], lifetime: Duration, discovery: Option<Arc<dyn Discover>>) -> Self {
        let beside = discovery.map(|index| -> Beside {
            Arc::new(move |ca, stop| discovery::routes(Arc::clone(&index), Arc::default(), ca, stop))
        });
        Self::serving(names, lifetime, beside).await
    }

    /// The same, with whatever discovery it is when it begins: it may be another one when it has come back.
    pub async fn with_changing_discovery(
        names: &[&str],
        lifetime: Duration,
        discovery: impl Fn() -> Arc<dyn Discover> + Send + Sync + 'static,
    ) -> Self {
        let beside: Beside = Arc::new(move |ca, stop| discovery::routes(discovery(), Arc::default(), ca, stop));
        Self::serving(names, lifetime, Some(beside)).await
    }

    /// The same, with a service that a test has written.
    pub async fn with_service(names: &[&str], lifetime: Duration, service: Routes) -> Self {
        let beside: Beside = Arc::new(move |_, _| service.clone());
        Self::serving(names, lifetime, Some(beside)).await
    }

    async fn serving(names: &[&str], lifetime: Duration, beside: Option<Beside>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = Ca::generate(TRUST_DOMAIN).unwrap();
        std::fs::write(directory.path().join("ca.pem"), ca.bundle_pem()).unwrap();
        for name in names {
            let file = directory.path().join(format!("{name}.token"));
            std::fs::write(file, format!("token-of-{name}")).unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut authority = Self {
            directory,
            address: listener.local_addr().unwrap(),
            ca: watch::Sender::new(Arc::new(ca)),
            tokens: names.iter().map(|&name| name.to_owned()).collect(),
            lifetime,
            beside,
            stop: CancellationToken::new(),
            task: None,
        };
        authority.serve(listener);
        authority
    }

    fn serve(&mut self, listener: TcpListener) {
        let metrics = Arc::new(Metrics::default());
        let tokens = self.tokens.iter().fold(StaticTokens::new(), |tokens, name| {
            tokens.with(format!("token-of-{name}"), "shop", name)
        });
        let ca = self.ca.subscribe();
        let issuer = Issuer::new(ca.clone(), tokens, TRUST_DOMAIN, self.lifetime, metrics.issuer());
        let tls = ServerTls {
            ca: ca.clone(),
            id: ISSUER_ID.parse().unwrap(),
            ttl: Duration::from_secs(24 * 3600),
            metrics: metrics.issuer(),
        };
        self.stop = CancellationToken::new();
        let beside = self.beside.as_ref().map(|beside| beside(ca, self.stop.clone()));
        let serving = serve(listener, tls, issuer, beside.unwrap_or_default(), self.stop.clone());
        self.task = Some(tokio::spawn(async move { serving.await.unwrap() }));
    }

    /// Ends, and its connections with it.
    pub async fn go_away(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
    }

    /// Is there again, at the same address.
    pub async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    /// Where the tokens and the trust bundle are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CA now.
    pub fn ca(&self) -> Arc<Ca> {
        Arc::clone(&self.ca.borrow())
    }

    /// Trusts its own root and those of `others`, and nobody else: in the file, and for who is issued an SVID.
    pub fn trust(&self, others: &[&Ca]) {
        let mut pem = self.ca().pem().clone();
        let roots = std::iter::once(pem.certificates.clone()).chain(others.iter().map(|ca| ca.bundle_pem()));
        pem.roots = Some(roots.collect());
        let ca = Ca::from_pem(pem, TRUST_DOMAIN, SystemTime::now()).unwrap();
        std::fs::write(self.directory().join("ca.pem"), ca.bundle_pem()).unwrap();
        self.ca.send_replace(Arc::new(ca));
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The SPIFFE ID of a workload.
pub fn id(name: &str) -> SpiffeId {
    SpiffeId::new(TRUST_DOMAIN, "shop", name).unwrap()
}

/// The standalone file of a sidecar, put together.
pub struct Sidecar {
    name: String,
    listeners: String,
    services: String,
    more: String,
    addresses: Vec<SocketAddr>,
    clock: Clock,
}

impl Sidecar {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            listeners: String::new(),
            services: String::new(),
            more: String::new(),
            addresses: Vec::new(),
            clock: Clock::system(),
        }
    }

    /// Judges certificates by another clock.
    #[must_use]
    pub fn by(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Protects an app.
    #[must_use]
    pub fn protects(mut self, app: SocketAddr) -> Self {
        writeln!(
            self.listeners,
            "inbound:\n- {{listen: \"127.0.0.1:0\", app: \"{app}\"}}"
        )
        .unwrap();
        self
    }

    /// Calls a service, "name", at endpoints of the mesh (`Some`) and outside it. `policy` is YAML in one line.
    #[must_use]
    pub fn calls(
        mut self,
        name: &str,
        protocol: &str,
        endpoints: &[(SocketAddr, Option<SpiffeId>)],
        policy: &str,
    ) -> Self {
        if self.services.is_empty() {
            self.services.push_str("services:\n");
            self.listeners.push_str("outbound:\n");
        }
        writeln!(self.listeners, "- {{listen: \"127.0.0.1:0\", service: {name}}}").unwrap();
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|(address, identity)| match identity {
                Some(identity) => format!("{{address: \"{address}\", identity: \"{identity}\"}}"),
                None => format!("{{address: \"{address}\"}}"),
            })
            .collect();
        let endpoints = endpoints.join(", ");
        writeln!(
            self.services,
            "- name: {name}\n  protocol: {protocol}\n  endpoints: [{endpoints}]\n  policy: {policy}"
        )
        .unwrap();
        self
    }

    /// Another line of the file.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        self.more.push_str(line);
        self.more.push('\n');
        self
    }

    /// Calls what discovery says is at an address, as if its connections were captured.
    #[must_use]
    pub fn calls_address(mut self, to: SocketAddr) -> Self {
        self.addresses.push(to);
        self
    }

    /// Starts it, and waits for its identity.
    pub async fn start(self, authority: &Authority) -> RunningProxy {
        self.start_with(authority, |_| {}).await
    }

    /// The same, with what a file cannot say.
    pub async fn start_with(self, authority: &Authority, change: impl FnOnce(&mut Config)) -> RunningProxy {
        let proxy = self.launch(authority, change).await;
        tokio::time::timeout(SOON, proxy.ready())
            .await
            .expect("the sidecar gets no identity");
        proxy
    }

    /// Its file, for the program itself.
    pub fn file(&self, authority: &Authority) -> String {
        let Self {
            name,
            listeners,
            services,
            more,
            ..
        } = self;
        let issuer = authority.address;
        format!(
            "workload: {{name: {name}, namespace: shop, serviceAccount: {name}, pod: {name}-1, trustDomain: {TRUST_DOMAIN}}}\n\
             admin: 127.0.0.1:0\n\
             identity: {{issuer: \"{issuer}\", issuerId: \"{ISSUER_ID}\", tokenFile: {name}.token, trustBundleFile: ca.pem}}\n\
             {listeners}{services}{more}"
        )
    }

    /// As [`Sidecar::start_with`], without waiting for its identity.
    pub async fn launch(self, authority: &Authority, change: impl FnOnce(&mut Config)) -> RunningProxy {
        let file = self.file(authority);
        let Self {
            name, addresses, clock, ..
        } = self;
        let path = authority.directory().join(format!("{name}.yaml"));
        let mut config = Config::from_yaml(&path.to_string_lossy(), &file).unwrap_or_else(|e| panic!("{e:#?}\n{file}"));
        if !addresses.is_empty() {
            ask_the_controller(&mut config);
            config.outbound.extend(addresses.into_iter().map(|to| OutboundListener {
                listen: "127.0.0.1:0".parse().unwrap(),
                to: Destination::Fixed(to),
            }));
        }
        change(&mut config);
        app::start_by(clock, config, None).await.unwrap()
    }
}

/// Discovery is from who issues identities, in the place of the file's.
pub fn ask_the_controller(config: &mut Config) {
    config.discovery = DiscoveryConfig::Controller {
        address: config.identity.issuer.clone(),
        id: config.identity.issuer_id.clone(),
    };
}

/// An app that answers with a closure, in HTTP/1 and HTTP/2.
pub struct App {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl App {
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer: Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync> = Arc::new(move |r| Box::pin(answer(r)));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = Arc::clone(&answer);
                connections.spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let mut builder = auto::Builder::new(TokioExecutor::new());
                    builder.http2().max_header_list_size(1 << 20);
                    // A client that goes away is what some tests are about.
                    let _ = builder
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, task }
    }

    /// Its connections are reset, and new ones refused.
    pub fn kill(&self) {
        self.task.abort();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A body of text.
pub fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

/// A response of a status and nothing else.
pub fn status(code: u16) -> Response<Body> {
    let mut response = Response::new(text(""));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

/// What a client saw.
#[derive(Debug)]
pub struct Seen {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
    pub trailers: Option<http::HeaderMap>,
}

impl Seen {
    /// The code of an error that a sidecar answered.
    pub fn error(&self) -> Option<&str> {
        self.headers.get("outrigger-error").and_then(|code| code.to_str().ok())
    }
}

/// A client of an app, with connections that are kept.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpConnector, Body>,
    limit: Duration,
}

impl Http {
    pub fn one() -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            limit: SOON,
        }
    }

    pub fn two() -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).http2_only(true).build_http(),
            limit: SOON,
        }
    }

    /// Waits for longer than others, or not as long.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends a request, and reads all of the response.
    ///
    /// # Errors
    /// When there is no response, or it breaks off.
    pub async fn send(&self, request: Request<Body>) -> Result<Seen, Box<dyn std::error::Error + Send + Sync>> {
        let response = tokio::time::timeout(self.limit, self.client.request(request)).await??;
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(self.limit, body.collect()).await??;
        Ok(Seen {
            status: head.status.as_u16(),
            headers: head.headers,
            trailers: body.trailers().cloned(),
            body: body.to_bytes(),
        })
    }

    pub async fn get(&self, to: SocketAddr, path: &str) -> Seen {
        self.send(request(Method::GET, to, path, "")).await.unwrap()
    }

    pub async fn post(&self, to: SocketAddr, path: &str, body: &'static str) -> Seen {
        self.send(request(Method::POST, to, path, body)).await.unwrap()
    }
}

/// A request, to be changed by the test.
pub fn request(method: Method, to: SocketAddr, path: &str, body: &'static str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(format!("http://{to}{path}"))
        .body(text(body))
        .unwrap()
}

/// Takes spans over OTLP.
pub struct Collector {
    pub address: SocketAddr,
    spans: mpsc::UnboundedReceiver<(String, Span)>,
    all: Vec<(String, Span)>,
    task: JoinHandle<()>,
}

struct Receiver(mpsc::UnboundedSender<(String, Span)>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for of in request.into_inner().resource_spans {
            let attributes = of.resource.map(|r| r.attributes).unwrap_or_default();
            let name = attributes.iter().find(|a| a.key == "service.name");
            let name = name.and_then(|a| match a.value.as_ref()?.value.as_ref()? {
                Value::StringValue(name) => Some(name.clone()),
                _ => None,
            });
            for span in of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let _ = self.0.send((name.clone().unwrap_or_default(), span));
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, spans) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let service = TraceServiceServer::new(Receiver(sender));
            let _ = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await;
        });
        Self {
            address,
            spans,
            all: Vec::new(),
            task,
        }
    }

    /// The line for a sidecar's file.
    pub fn line(&self) -> String {
        format!(
            "tracing: {{endpoint: \"http://{}\", protocol: grpc, sampleRatio: 1.0}}",
            self.address
        )
    }

    /// The next span of any trace, with the name of its service.
    pub async fn any(&mut self) -> (String, Span) {
        let next = tokio::time::timeout(SOON, self.spans.recv()).await;
        next.expect("no span comes").expect("the collector ended")
    }

    /// All that has come and was not asked for.
    pub fn drain(&mut self) -> Vec<(String, Span)> {
        while let Ok(span) = self.spans.try_recv() {
            self.all.push(span);
        }
        std::mem::take(&mut self.all)
    }

    /// Waits until there are `count` spans of a trace; gives them with the names of their services, by start.
    pub async fn trace(&mut self, trace_id: &[u8], count: usize) -> Vec<(String, Span)> {
        let of_trace = |all: &[(String, Span)]| -> Vec<(String, Span)> {
            all.iter().filter(|(_, s)| s.trace_id == trace_id).cloned().collect()
        };
        let enough = async {
            while of_trace(&self.all).len() < count {
                self.all.push(self.spans.recv().await.expect("the collector ended"));
            }
        };
        let in_time = tokio::time::timeout(SOON, enough).await;
        let mut spans = of_trace(&self.all);
        assert!(in_time.is_ok(), "only {} of {count} spans: {spans:#?}", spans.len());
        spans.sort_by_key(|(_, span)| span.start_time_unix_nano);
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An attribute of a span, as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    attribute_of(&span.attributes, key)
}

/// One of some attributes, as text.
pub fn attribute_of(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|a| a.key == key)?.value.as_ref()?;
    match value.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

/// The sum of a counter's or gauge's series whose labels hold all of `labels`.
pub fn metric(proxy: &RunningProxy, name: &str, labels: &[&str]) -> u64 {
    let text = proxy.telemetry().metrics().text();
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}
