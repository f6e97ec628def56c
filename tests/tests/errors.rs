//! Every code of `outrigger-error`, made by real sidecars: what an HTTP caller and a gRPC caller are told, and what the
//! metric, the span and the access log say. Each code's test has its name; a test of the proxy holds docs/errors.md to that.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method, Request, Response};
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Config;
use outrigger_proxy::discovery::{DiscoveryConfig, StaticTargets};
use outrigger_proxy::model::{
    AuthProtocol, Backend, Endpoint, Endpoints, ExternalAuth, Filters, PathModifier, Protocol, Rewrite, Route, Service,
    ServiceName, Target,
};
use outrigger_proxy_transport::error::Reason;
use outrigger_tests::mesh::{
    App, Authority, Body, Collector, Http, SOON, Seen, Sidecar, attribute, id, metric, request, text,
};
use outrigger_tests::routes::{below, route};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DAY: Duration = Duration::from_secs(86_400);
/// Set in the run whose output is read by `the_access_log_has_each_code`.
const LOGGED: &str = "OUTRIGGER_TEST_ACCESS_LOG";
/// The body, or `grpc-message`: for a person, so no longer than they would read.
const MAX_TEXT: usize = 600;
const ONCE: &str = "{retry: {attempts: 0}}";

/// What every test begins with.
struct Lab {
    authority: Authority,
    collector: Collector,
}

impl Lab {
    async fn new() -> Self {
        Self {
            authority: Authority::start(&["web", "orders"], DAY).await,
            collector: Collector::start().await,
        }
    }

    fn sidecar(&self, name: &str) -> Sidecar {
        let log = if std::env::var_os(LOGGED).is_some() {
            "accessLog: true"
        } else {
            ""
        };
        Sidecar::new(name).with(&self.collector.line()).with(log)
    }

    /// The caller's sidecar, which calls one endpoint.
    fn web(&self, endpoint: SocketAddr, policy: &str) -> Sidecar {
        self.sidecar("web")
            .calls("orders", "detect", &[(endpoint, Some(id("orders")))], policy)
    }

    /// The caller's sidecar, and one that protects `app`.
    async fn pair(&self, app: SocketAddr, policy: &str) -> (RunningProxy, RunningProxy) {
        let orders = self.sidecar("orders").protects(app).start(&self.authority).await;
        let web = self.web(orders.inbound[0], policy).start(&self.authority).await;
        (web, orders)
    }

    /// The caller's sidecar, with a Service in place of the file's.
    async fn routed(&self, service: Service) -> RunningProxy {
        let web = self.web(nobody(), ONCE);
        web.start_with(&self.authority, |config| {
            let target = Arc::new(Target::Service(Arc::new(service)));
            config.discovery = DiscoveryConfig::Standalone(StaticTargets {
                services: HashMap::from([("orders".into(), target)]),
                ..StaticTargets::default()
            });
        })
        .await
    }

    /// Calls `to` in HTTP and in gRPC, and holds all that is said to the code.
    async fn told(&mut self, by: &RunningProxy, to: SocketAddr, reason: Reason, words: &str) {
        self.told_of(Case::new(by, to, reason, words)).await;
    }

    async fn told_of(&mut self, case: Case<'_>) {
        let (by, code) = (case.by, case.reason.code());
        let label = format!("reason=\"{code}\"");
        let errors = || metric(by, "outrigger_errors_total", &[&label]);
        let before = errors();

        let trace = trace_id();
        let http = case.http.clone().within(case.limit);
        let seen = http.send(case.request(Method::GET, &trace)).await.unwrap();
        assert_eq!((seen.status, seen.error()), (case.reason.status().as_u16(), Some(code)));
        assert_eq!(seen.headers["content-type"], "text/plain; charset=utf-8");
        let body = std::str::from_utf8(&seen.body).unwrap();
        case.check_text(body, &format!("See docs/errors.md#{code}\n"));
        self.check_span(&case, &trace).await;

        let trace = trace_id();
        let mut call = case.request(Method::POST, &trace);
        call.headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        let seen = Http::two().within(case.limit).send(call).await.unwrap();
        assert_eq!((seen.status, seen.error()), (200, Some(code)));
        let grpc = case.reason.grpc_status().to_string();
        assert_eq!(grpc_header(&seen, "grpc-status"), grpc);
        assert_eq!(seen.headers["content-type"], "application/grpc");
        case.check_text(grpc_header(&seen, "grpc-message"), &format!(" ({code})"));
        assert!(seen.body.is_empty());
        self.check_span(&case, &trace).await;

        assert_eq!(errors() - before, 2, "{label}");
        // The log is read when this process has ended.
        by.telemetry().flush(SOON).await;
    }

    /// An attempt has a span; a request that was never sent on has none.
    async fn check_span(&mut self, case: &Case<'_>, trace: &str) {
        let Some(service) = case.span_of else { return };
        // Not to wait for the next batch.
        case.by.telemetry().flush(SOON).await;
        loop {
            let (name, span) = self.collector.any().await;
            let hex: String = span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
            if name == service && hex == trace {
                assert_eq!(attribute(&span, "error.type").as_deref(), Some(case.reason.code()));
                return;
            }
        }
    }
}

/// A request that a sidecar answers itself.
struct Case<'a> {
    by: &'a RunningProxy,
    to: SocketAddr,
    reason: Reason,
    /// What the text must say.
    words: &'a str,
    /// Whose span names the code.
    span_of: Option<&'a str>,
    http: Http,
    /// Until there is an answer.
    limit: Duration,
    path: String,
    cookie: usize,
    authorization: Option<&'static str>,
}

impl<'a> Case<'a> {
    fn new(by: &'a RunningProxy, to: SocketAddr, reason: Reason, words: &'a str) -> Self {
        Self {
            by,
            to,
            reason,
            words,
            span_of: Some("web"),
            http: Http::one(),
            limit: SOON,
            path: "/shop.Orders/Get".to_owned(),
            cookie: 0,
            authorization: None,
        }
    }

    /// No attempt is made, so there is no span.
    fn unsent(mut self) -> Self {
        self.span_of = None;
        self
    }

    fn request(&self, method: Method, trace: &str) -> Request<Body> {
        let mut request = request(method, self.to, &self.path, "");
        let headers = request.headers_mut();
        let parent = format!("00-{trace}-b7ad6b7169203331-01");
        headers.insert("traceparent", parent.parse().unwrap());
        if self.cookie > 0 {
            let cookie = vec![b'c'; self.cookie];
            headers.insert("cookie", HeaderValue::from_bytes(&cookie).unwrap());
        }
        if let Some(authorization) = self.authorization {
            headers.insert("authorization", HeaderValue::from_static(authorization));
        }
        request
    }

    fn check_text(&self, text: &str, end: &str) {
        assert!(text.contains(self.words), "{:?} is not in {text:?}", self.words);
        assert!(text.ends_with(end), "{text:?}");
        assert!(text.len() <= MAX_TEXT, "{} bytes: {text:?}", text.len());
    }
}

/// A gRPC client may find the status in the only head, or in the trailers.
fn grpc_header<'a>(seen: &'a Seen, name: &str) -> &'a str {
    let value = seen.trailers.as_ref().and_then(|t| t.get(name));
    value.unwrap_or_else(|| &seen.headers[name]).to_str().unwrap()
}

fn trace_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("0af7651916cd43dd8448eb21{:08x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Where nobody listens.
fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// An app that answers a request, of HTTP/1 or HTTP/2, with what is neither.
async fn not_http() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = Vec::new();
                stream.read_buf(&mut read).await.unwrap();
                if read.starts_with(b"PRI") {
                    // An empty SETTINGS: the sidecar waits for one before it sends a request.
                    stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
                }
                while !has_request(&read) {
                    stream.read_buf(&mut read).await.unwrap();
                }
                stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await.unwrap();
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            });
        }
    });
    address
}

fn has_request(bytes: &[u8]) -> bool {
    let Some(mut frames) = bytes.strip_prefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") else {
        return bytes.ends_with(b"\r\n\r\n");
    };
    // RFC 9113 section 4.1; type 1 is HEADERS.
    while let [a, b, c, kind, ..] = *frames {
        if kind == 1 {
            return true;
        }
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        frames = frames.get(9 + length..).unwrap_or_default();
    }
    false
}

fn backend(addresses: &[SocketAddr]) -> Arc<Backend> {
    let endpoint = |address: &SocketAddr| {
        Arc::new(Endpoint {
            address: *address,
            identity: None,
            zone: None,
            pod: None,
            remote: false,
        })
    };
    Arc::new(Backend {
        name: service_name(),
        endpoints: Endpoints::Known(addresses.iter().map(endpoint).collect()),
        client_affinity: false,
        tls: None,
    })
}

fn service_name() -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        name: "orders".into(),
        port: 80,
    }
}

fn service(routes: Vec<Route>, backend: Arc<Backend>) -> Service {
    Service {
        name: service_name(),
        protocol: Protocol::Detect,
        routes: routes.into(),
        byte_routes: Arc::default(),
        backends: vec![backend],
        rules: Arc::default(),
    }
}

#[tokio::test]
async fn no_endpoints() {
    let mut lab = Lab::new().await;
    let service = Service {
        // Elsewhere a request that comes late is reset.
        protocol: Protocol::Http1,
        ..service(Vec::new(), backend(&[]))
    };
    let web = lab.routed(service).await;
    let case = Case::new(&web, web.outbound[0], Reason::NoEndpoints, "has no ready endpoint");
    lab.told_of(case.unsent()).await;
}

/// The same, of a Service that is there, at a port that it does not have.
#[tokio::test]
async fn no_such_port() {
    let mut lab = Lab::new().await;
    let elsewhere = Backend {
        name: service_name(),
        endpoints: Endpoints::NoSuchPort(vec![80, 8080]),
        client_affinity: false,
        tls: None,
    };
    let service = Service {
        protocol: Protocol::Http1,
        ..service(Vec::new(), Arc::new(elsewhere))
    };
    let web = lab.routed(service).await;
    let words = "the Service has no such port; its ports are [80, 8080]";
    let case = Case::new(&web, web.outbound[0], Reason::NoEndpoints, words);
    lab.told_of(case.unsent()).await;
}

#[tokio::test]
async fn discovery_unavailable() {
    let mut lab = Lab::new().await;
    let forget = |config: &mut Config| config.discovery = DiscoveryConfig::Standalone(StaticTargets::default());
    let web = lab.web(nobody(), ONCE).start_with(&lab.authority, forget).await;
    let words = "there is no service named \"orders\"";
    let case = Case::new(&web, web.outbound[0], Reason::DiscoveryUnavailable, words);
    lab.told_of(case.unsent()).await;
}

#[tokio::test]
async fn identity_unavailable() {
    let mut lab = Lab::new().await;
    let no_token = |config: &mut Config| config.identity.token_file = "/nonexistent/token".into();
    let web = lab.web(nobody(), "{}").launch(&lab.authority, no_token).await;
    let words = "has no certificate yet; check that it reaches the controller";
    lab.told(&web, web.outbound[0], Reason::IdentityUnavailable, words)
        .await;
}

#[tokio::test]
async fn connect_failed() {
    let mut lab = Lab::new().await;
    let web = lab.web(nobody(), ONCE).start(&lab.authority).await;
    let words = "cannot connect to 127.0.0.1:1: Connection refused";
    lab.told(&web, web.outbound[0], Reason::ConnectFailed, words).await;
}

#[tokio::test]
async fn connect_timeout() {
    let mut lab = Lab::new().await;
    // The kernel takes the connection; nobody answers the handshake.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let policy = "{retry: {attempts: 0}, timeouts: {connect: 100ms}}";
    let web = lab.web(silent.local_addr().unwrap(), policy);
    let web = web.start(&lab.authority).await;
    lab.told(
        &web,
        web.outbound[0],
        Reason::ConnectTimeout,
        "within 100ms; check that",
    )
    .await;
}

#[tokio::test]
async fn tls_failed() {
    let mut lab = Lab::new().await;
    let stranger = Authority::start(&["orders"], DAY).await;
    let impostor = Sidecar::new("orders").protects(nobody()).start(&stranger).await;
    let web = lab.web(impostor.inbound[0], ONCE).start(&lab.authority).await;
    let words = "no root trusted here signed that";
    lab.told(&web, web.outbound[0], Reason::TlsFailed, words).await;

    let late = expired(&lab.authority).await;
    let web = lab.web(late, ONCE).start(&lab.authority).await;
    let words = "check the clocks of both nodes, and whether its sidecar can reach the controller to renew";
    lab.told(&web, web.outbound[0], Reason::TlsFailed, words).await;
}

/// A TLS server whose SVID, of the right name and root, ended an hour ago.
async fn expired(authority: &Authority) -> SocketAddr {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let hour = Duration::from_secs(3600);
    let chain = authority
        .ca()
        .sign_csr_at(csr.der(), &id("orders"), hour, SystemTime::now() - 2 * hour)
        .unwrap();
    let key = key.serialize_der().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    address
}

#[tokio::test]
async fn identity_mismatch() {
    let mut lab = Lab::new().await;
    let orders = lab.sidecar("orders").protects(nobody()).start(&lab.authority).await;
    let web = lab
        .sidecar("web")
        .calls("orders", "detect", &[(orders.inbound[0], Some(id("payments")))], ONCE);
    let web = web.start(&lab.authority).await;
    let words = "found spiffe://mesh.test/ns/shop/sa/orders: check that no pod of another service account";
    lab.told(&web, web.outbound[0], Reason::IdentityMismatch, words).await;
}

#[tokio::test]
async fn upstream_reset() {
    let mut lab = Lab::new().await;
    let app = App::start(async |_| -> Response<Body> { panic!("the app crashes") }).await;
    let (web, _orders) = lab.pair(app.address, ONCE).await;
    let words = "closed the connection before it answered; check whether it restarted or crashed, or expects TLS";
    lab.told(&web, web.outbound[0], Reason::UpstreamReset, words).await;
}

#[tokio::test]
async fn upstream_refused() {
    let mut lab = Lab::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut answer))) = connection.accept().await {
                    answer.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    let (web, _orders) = lab.pair(app, ONCE).await;
    let words = "refused the request unprocessed";
    let mut case = Case::new(&web, web.outbound[0], Reason::UpstreamRefused, words);
    case.http = Http::two();
    lab.told_of(case).await;
}

#[tokio::test]
async fn upstream_protocol() {
    let mut lab = Lab::new().await;
    let (web, _orders) = lab.pair(not_http().await, ONCE).await;
    let words = "; check the Service's appProtocol";
    lab.told(&web, web.outbound[0], Reason::UpstreamProtocol, words).await;
}

#[tokio::test]
async fn request_timeout() {
    let mut lab = Lab::new().await;
    let app = App::start(async |_| std::future::pending().await).await;
    let (web, _orders) = lab.pair(app.address, "{timeouts: {request: 100ms}}").await;
    lab.told(&web, web.outbound[0], Reason::RequestTimeout, "see timeouts.request")
        .await;
}

#[tokio::test]
async fn attempt_timeout() {
    let mut lab = Lab::new().await;
    let app = App::start(async |_| std::future::pending().await).await;
    let policy = "{retry: {attempts: 0}, timeouts: {backendRequest: 100ms}}";
    let (web, _orders) = lab.pair(app.address, policy).await;
    let words = "see timeouts.backendRequest";
    lab.told(&web, web.outbound[0], Reason::AttemptTimeout, words).await;
}

/// The head of a response that is late, and not its body.
#[tokio::test]
async fn attempt_timeout_of_response_headers() {
    let mut lab = Lab::new().await;
    let app = App::start(async |_| std::future::pending().await).await;
    let policy = "{retry: {attempts: 0}, timeouts: {responseHeaders: 100ms}}";
    let (web, _orders) = lab.pair(app.address, policy).await;
    let words = "see timeouts.responseHeaders";
    lab.told(&web, web.outbound[0], Reason::AttemptTimeout, words).await;
}

#[tokio::test]
async fn idle_timeout() {
    let mut lab = Lab::new().await;
    let app = App::start(async |_| std::future::pending().await).await;
    let (web, _orders) = lab.pair(app.address, "{timeouts: {idle: 100ms}}").await;
    lab.told(&web, web.outbound[0], Reason::IdleTimeout, "see timeouts.idle")
        .await;
}

#[tokio::test]
async fn no_route() {
    let mut lab = Lab::new().await;
    let backend = backend(&[nobody()]);
    let routes = vec![route(vec![below("/elsewhere")], Some(0), Filters::default())];
    let web = lab.routed(service(routes, backend)).await;
    let case = Case::new(
        &web,
        web.outbound[0],
        Reason::NoRoute,
        "check the matches of its HTTPRoutes",
    );
    lab.told_of(case.unsent()).await;
}

#[tokio::test]
async fn invalid_backend() {
    let mut lab = Lab::new().await;
    let web = lab
        .routed(service(
            vec![route(vec![below("")], None, Filters::default())],
            backend(&[nobody()]),
        ))
        .await;
    let words = "a backend of route shop/orders/0 does not exist; check its backendRefs";
    let case = Case::new(&web, web.outbound[0], Reason::InvalidBackend, words);
    lab.told_of(case.unsent()).await;
}

#[tokio::test]
async fn app_unavailable() {
    let mut lab = Lab::new().await;
    let (web, orders) = lab.pair(nobody(), ONCE).await;
    let words = "check that it listens on the pod's address";
    lab.told(&web, web.outbound[0], Reason::AppUnavailable, words).await;
    // The sidecar of the called pod, which knows it, says it too.
    let mut case = Case::new(&orders, web.outbound[0], Reason::AppUnavailable, words);
    case.span_of = Some("orders");
    lab.told_of(case).await;
}

#[tokio::test]
async fn bad_request() {
    let mut lab = Lab::new().await;
    let long = "x".repeat(30_000);
    let rewrite = Rewrite {
        hostname: None,
        path: Some(PathModifier::ReplacePrefix(format!("/{long}"))),
    };
    let filters = Filters {
        rewrites: vec![rewrite],
        ..Filters::default()
    };
    let backend = backend(&[nobody()]);
    let routes = vec![route(vec![below("/a")], Some(0), filters)];
    let web = lab.routed(service(routes, backend)).await;
    let words = "the request's URI cannot be rewritten as its route says";
    let mut case = Case::new(&web, web.outbound[0], Reason::BadRequest, words).unsent();
    // Each is short enough, and both together are not.
    case.path = format!("/a/{}", "y".repeat(40_000));
    lab.told_of(case).await;
}

#[tokio::test]
async fn headers_too_large() {
    let mut lab = Lab::new().await;
    let (web, orders) = lab.pair(nobody(), ONCE).await;
    let words = "is larger than 64 KiB";
    // Each side has the limit. A head that is refused before it is read has no trace to belong to.
    for (by, to) in [(&web, web.outbound[0]), (&orders, orders.inbound[0])] {
        let mut case = Case::new(by, to, Reason::HeadersTooLarge, words).unsent();
        case.cookie = 70_000;
        lab.told_of(case).await;
    }
}

#[tokio::test]
async fn head_timeout() {
    let lab = Lab::new().await;
    let web = lab.web(nobody(), ONCE).start(&lab.authority).await;
    let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    let mut answer = String::new();
    let all = client.read_to_string(&mut answer);
    tokio::time::timeout(2 * SOON, all)
        .await
        .expect("no answer to a head without an end")
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\r\noutrigger-error: head-timeout\r\n"), "{answer}");
    assert!(answer.ends_with("See docs/errors.md#head-timeout\n"), "{answer}");
    assert_eq!(metric(&web, "outrigger_errors_total", &["head-timeout"]), 1);
    web.telemetry().flush(SOON).await;
}

#[tokio::test]
async fn overloaded() {
    let lab = Lab::new().await;
    let web = lab.web(nobody(), ONCE);
    let none = |config: &mut Config| config.budget.head_bytes = 0;
    let web = web.start_with(&lab.authority, none).await;
    let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    let mut answer = String::new();
    let all = client.read_to_string(&mut answer);
    tokio::time::timeout(SOON, all).await.expect("no answer").unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\noutrigger-error: overloaded\r\n"), "{answer}");
    assert!(answer.ends_with("See docs/errors.md#overloaded\n"), "{answer}");
    assert_eq!(metric(&web, "outrigger_errors_total", &["overloaded"]), 1);
    web.telemetry().flush(SOON).await;
}

#[tokio::test]
async fn plaintext_refused() {
    let mut lab = Lab::new().await;
    let orders = lab.sidecar("orders").protects(nobody()).with("mtls: strict");
    let orders = orders.start(&lab.authority).await;
    let words = "call it from a pod with a sidecar, or see outrigger.dev/mtls";
    let mut case = Case::new(&orders, orders.inbound[0], Reason::PlaintextRefused, words);
    case.span_of = Some("orders");
    lab.told_of(case).await;
}

#[tokio::test]
async fn access_denied() {
    let mut lab = Lab::new().await;
    let nobody_may = "accessPolicies: [{name: nobody, spec: {}}]";
    let orders = lab.sidecar("orders").protects(nobody()).with(nobody_may);
    let orders = orders.start(&lab.authority).await;
    let web = lab.web(orders.inbound[0], ONCE).start(&lab.authority).await;
    let words = "do not let this request in; which of them, the log of its sidecar says";
    lab.told(&web, web.outbound[0], Reason::AccessDenied, words).await;
    let mut case = Case::new(&orders, web.outbound[0], Reason::AccessDenied, words);
    case.span_of = Some("orders");
    lab.told_of(case).await;
}

#[tokio::test]
async fn rate_limited() {
    let mut lab = Lab::new().await;
    // The one request an hour is gone after the first call.
    let one = "rateLimitPolicies: [{name: one, spec: {limits: [{rate: {requests: 1, interval: 1h}, scope: Pod}]}}]";
    let app = App::start(|_| async { Response::new(text("")) }).await;
    let orders = lab.sidecar("orders").protects(app.address).with(one);
    let orders = orders.start(&lab.authority).await;
    let web = lab.web(orders.inbound[0], ONCE).start(&lab.authority).await;
    let first = Http::one().get(web.outbound[0], "/").await;
    assert_eq!(first.status, 200);
    let words = "takes no more such requests for now; try again in";
    lab.told(&web, web.outbound[0], Reason::RateLimited, words).await;
    let mut case = Case::new(&orders, web.outbound[0], Reason::RateLimited, words);
    case.span_of = Some("orders");
    lab.told_of(case).await;
}

#[tokio::test]
async fn limit_unavailable() {
    let mut lab = Lab::new().await;
    // Nothing listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let deny = format!(
        "rateLimitPolicies: [{{name: deny, spec: {{limits: [{{rate: {{requests: 1, interval: 1h}}, scope: Global}}], \
         global: {{address: '{closed}', onFailure: Deny}}}}}}]"
    );
    let orders = lab.sidecar("orders").protects(nobody()).with(&deny);
    let orders = orders.start(&lab.authority).await;
    let web = lab.web(orders.inbound[0], ONCE).start(&lab.authority).await;
    let words = "the store in which the called workload counts requests does not answer";
    lab.told(&web, web.outbound[0], Reason::LimitUnavailable, words).await;
    let mut case = Case::new(&orders, web.outbound[0], Reason::LimitUnavailable, words);
    case.span_of = Some("orders");
    lab.told_of(case).await;
}

/// Whoever has a token of an issuer whose key nobody has.
const DEVS: &str = r#"accessPolicies: [{name: devs, spec: {
    jwt: {providers: [{name: login, issuer: me, audiences: [orders], jwks: {inline: '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'}}]},
    rules: [{sources: [{type: JWT, jwt: {provider: login}}]}]}}]"#;

#[tokio::test]
async fn token_required() {
    let mut lab = Lab::new().await;
    let orders = lab.sidecar("orders").protects(nobody()).with(DEVS);
    let orders = orders.start(&lab.authority).await;
    let web = lab.web(orders.inbound[0], ONCE).start(&lab.authority).await;
    let words = "do not let this request in without a token; which of them, the log of its sidecar says";
    lab.told(&web, web.outbound[0], Reason::TokenRequired, words).await;
    let mut case = Case::new(&orders, web.outbound[0], Reason::TokenRequired, words);
    case.span_of = Some("orders");
    lab.told_of(case).await;
}

#[tokio::test]
async fn token_invalid() {
    let mut lab = Lab::new().await;
    let orders = lab.sidecar("orders").protects(nobody()).with(DEVS);
    let orders = orders.start(&lab.authority).await;
    let web = lab.web(orders.inbound[0], ONCE).start(&lab.authority).await;
    // {"alg":"none"}.{"iss":"me"}
    let token = Some("Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJtZSJ9.");
    for (by, span_of) in [(&web, "web"), (&orders, "orders")] {
        let mut case = Case::new(by, web.outbound[0], Reason::TokenInvalid, "the token is not valid here");
        (case.span_of, case.authorization) = (Some(span_of), token);
        lab.told_of(case).await;
    }
}

#[tokio::test]
async fn access_unknown() {
    let mut lab = Lab::new().await;
    let no_controller = |config: &mut Config| {
        config.discovery = DiscoveryConfig::Controller {
            address: "127.0.0.1:1".parse().unwrap(),
            id: config.identity.issuer_id.clone(),
        };
    };
    let orders = lab.sidecar("orders").protects(nobody());
    let orders = orders.launch(&lab.authority, no_controller).await;
    tokio::time::timeout(SOON, orders.identity().ready()).await.unwrap();
    let patient = "{retry: {attempts: 0}, timeouts: {connect: 30s}}";
    let web = lab.web(orders.inbound[0], patient).start(&lab.authority).await;
    let words = "has not heard yet whom it lets in; check that it reaches the controller";
    let mut case = Case::new(&web, web.outbound[0], Reason::AccessUnknown, words);
    case.limit = 3 * SOON;
    lab.told_of(case).await;
}

#[tokio::test]
async fn fault_injected() {
    let mut lab = Lab::new().await;
    let policy = "{faults: [{percent: 100, until: '9999-01-01T00:00:00Z', abort: {status: 503}}]}";
    let web = lab.web(nobody(), policy).start(&lab.authority).await;
    let words = "a fault on purpose; see faults";
    lab.told(&web, web.outbound[0], Reason::FaultInjected, words).await;
}

/// A sidecar whose requests are asked about at `auth`.
async fn asks(lab: &Lab, auth: SocketAddr, max_body: Option<usize>) -> RunningProxy {
    let filters = Filters {
        external_auth: Some(ExternalAuth {
            backend: Some(1),
            protocol: AuthProtocol::Http {
                path: String::new(),
                headers: Vec::new(),
                response_headers: None,
            },
            max_body,
        }),
        ..Filters::default()
    };
    let mut service = service(vec![route(Vec::new(), Some(0), filters)], backend(&[nobody()]));
    let endpoint = Endpoint {
        address: auth,
        identity: None,
        zone: None,
        pod: None,
        remote: false,
    };
    service.backends.push(Arc::new(Backend {
        name: ServiceName {
            name: "auth".into(),
            ..service_name()
        },
        endpoints: Endpoints::Known(vec![Arc::new(endpoint)]),
        client_affinity: false,
        tls: None,
    }));
    lab.routed(service).await
}

#[tokio::test]
async fn auth_denied() {
    let mut lab = Lab::new().await;
    // To HTTP, its answer as it came.
    let auth = App::start(async |_| {
        let told = "it does not let the request through\nSee docs/errors.md#auth-denied\n";
        let mut response = Response::new(text(told));
        *response.status_mut() = http::StatusCode::FORBIDDEN;
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert("content-type", plain);
        response
    })
    .await;
    let web = asks(&lab, auth.address, None).await;
    let case = Case::new(&web, web.outbound[0], Reason::AuthDenied, "not let the request through");
    lab.told_of(case.unsent()).await;
}

#[tokio::test]
async fn auth_unavailable() {
    let mut lab = Lab::new().await;
    let web = asks(&lab, nobody(), None).await;
    let words = "auth.shop:80, which has to let the request through, does not say so";
    let case = Case::new(&web, web.outbound[0], Reason::AuthUnavailable, words);
    lab.told_of(case.unsent()).await;
}

#[tokio::test]
async fn body_too_large() {
    let lab = Lab::new().await;
    let web = asks(&lab, nobody(), Some(4)).await;
    for http in [Http::one(), Http::two()] {
        let seen = http.post(web.outbound[0], "/", "12345").await;
        assert_eq!((seen.status, seen.error()), (413, Some("body-too-large")));
        let body = std::str::from_utf8(&seen.body).unwrap();
        assert!(body.contains("more than the 4 bytes of forwardBody.maxSize"), "{body}");
        assert!(body.ends_with("See docs/errors.md#body-too-large\n"), "{body}");
    }
    assert_eq!(metric(&web, "outrigger_errors_total", &["body-too-large"]), 2);
    web.telemetry().flush(SOON).await;
}

#[tokio::test]
async fn client_closed() {
    let mut lab = Lab::new().await;
    let (came, mut comes) = tokio::sync::mpsc::unbounded_channel();
    let app = App::start(move |_| {
        came.send(()).unwrap();
        std::future::pending()
    })
    .await;
    let (web, orders) = lab.pair(app.address, ONCE).await;
    for (http, method) in [(Http::one(), Method::GET), (Http::two(), Method::POST)] {
        let trace = trace_id();
        let case = Case::new(&web, web.outbound[0], Reason::ClientClosed, "");
        {
            let call = http.send(case.request(method, &trace));
            tokio::select! {
                answered = call => panic!("{answered:?}"),
                () = async { comes.recv().await.unwrap() } => {}
            }
        }
        lab.check_span(&case, &trace).await;
    }
    for proxy in [&web, &orders] {
        let closed = || metric(proxy, "outrigger_errors_total", &["client-closed"]);
        let counted = async {
            while closed() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, counted).await.expect("it is not counted");
        assert_eq!(closed(), 2);
        proxy.telemetry().flush(SOON).await;
    }
}

/// Runs the tests above once more, with the access log on, and reads it.
#[test]
fn the_access_log_has_each_code() {
    if std::env::var_os(LOGGED).is_some() {
        return;
    }
    let run = Command::new(std::env::current_exe().unwrap())
        .arg("errors::")
        .env(LOGGED, "1")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{output}");
    let mut found = BTreeSet::new();
    // A line may stand behind what the test runner prints.
    for line in output
        .lines()
        .filter_map(|line| line.find("{\"time\"").map(|at| &line[at..]))
    {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let Some(code) = line["error"].as_str() else { continue };
        let reason = Reason::ALL.into_iter().find(|r| r.code() == code).unwrap();
        match (line["protocol"].as_str().unwrap(), reason) {
            (_, Reason::ClientClosed) => assert!(line["status"].is_null(), "{line}"),
            ("gRPC", _) => assert_eq!(
                (line["status"].as_u64(), line["grpc_status"].as_u64()),
                (Some(200), Some(reason.grpc_status().into())),
                "{line}"
            ),
            _ => assert_eq!(line["status"], reason.status().as_u16(), "{line}"),
        }
        found.insert(code.to_owned());
    }
    let all: BTreeSet<String> = Reason::ALL.iter().map(|r| r.code().to_owned()).collect();
    assert_eq!(found, all);
}
