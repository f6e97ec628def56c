//! Mirrored requests: copies whose bodies go out as they come, and for which no request waits.

mod bodies;
mod bounds;
mod broken;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Builder;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::discovery::{DiscoveryConfig, StaticTargets};
use outrigger_proxy::model::{
    Backend, Endpoint, Endpoints, Filters, Mirror, Protocol, RetryPolicy, Service, ServiceName, Target,
};
use outrigger_tests::mesh::{App, Authority, Body, SOON, Sidecar, id, metric, text};
use outrigger_tests::routes::route;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

const EACH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

const DAY: Duration = Duration::from_secs(86_400);

/// A sidecar that calls an app, and mirrors all of it to others.
struct Scene {
    to: SocketAddr,
    web: RunningProxy,
    _authority: Authority,
}

impl Scene {
    /// With so many retries.
    async fn start(protocol: Protocol, attempts: u32, app: SocketAddr, mirrors: &[SocketAddr]) -> Self {
        let authority = Authority::start(&["web", "shadow"], DAY).await;
        let mirrors: Vec<_> = mirrors.iter().map(|mirror| (*mirror, None)).collect();
        Self::with(authority, protocol, attempts, app, &mirrors).await
    }

    /// With a mirror in the mesh, behind a sidecar of its own.
    async fn in_the_mesh(protocol: Protocol, app: SocketAddr, mirror: SocketAddr) -> (Self, RunningProxy) {
        let authority = Authority::start(&["web", "shadow"], DAY).await;
        let shadow = Sidecar::new("shadow").protects(mirror).start(&authority).await;
        let mirror = (shadow.inbound[0], Some(id("shadow")));
        (Self::with(authority, protocol, 0, app, &[mirror]).await, shadow)
    }

    async fn with(
        authority: Authority,
        protocol: Protocol,
        attempts: u32,
        app: SocketAddr,
        mirrors: &[(SocketAddr, Option<SpiffeId>)],
    ) -> Self {
        Self::of(authority, service(protocol, attempts, app, mirrors)).await
    }

    async fn of(authority: Authority, service: Service) -> Self {
        let target = Arc::new(Target::Service(Arc::new(service)));
        let web = Sidecar::new("web")
            .with("workers: 1")
            .calls("orders", "http1", &[], "{}")
            .start_with(&authority, |config| {
                config.discovery = DiscoveryConfig::Standalone(StaticTargets {
                    services: HashMap::from([("orders".into(), target)]),
                    ..StaticTargets::default()
                });
            })
            .await;
        Self {
            to: web.outbound[0],
            web,
            _authority: authority,
        }
    }

    /// How often a request was not mirrored, for this reason or any (`""`).
    fn not_mirrored(&self, reason: &str) -> u64 {
        let labels = match reason {
            "" => vec![],
            _ => vec![format!("reason=\"{reason}\"")],
        };
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        metric(&self.web, "outrigger_requests_not_mirrored_total", &labels)
    }

    /// Waits until so many were not mirrored, all for this reason.
    async fn counts(&self, reason: &str, times: u64) {
        until(reason, || self.not_mirrored(reason) >= times).await;
        assert_eq!(
            (self.not_mirrored(reason), self.not_mirrored("")),
            (times, times),
            "{reason}"
        );
    }
}

fn service(protocol: Protocol, attempts: u32, app: SocketAddr, mirrors: &[(SocketAddr, Option<SpiffeId>)]) -> Service {
    let name = |name: &str| ServiceName {
        namespace: "shop".into(),
        name: name.into(),
        port: 80,
    };
    let backend = |of: String, address: SocketAddr, identity: Option<SpiffeId>| {
        let endpoint = Endpoint {
            address,
            identity,
            zone: None,
            pod: None,
            remote: false,
        };
        Arc::new(Backend {
            name: name(&of),
            endpoints: Endpoints::Known(vec![Arc::new(endpoint)]),
            client_affinity: false,
            tls: None,
        })
    };
    let shadows = mirrors.iter().enumerate();
    let shadows = shadows.map(|(n, (address, identity))| backend(format!("shadow-{n}"), *address, identity.clone()));
    let filters = Filters {
        mirrors: (1..=mirrors.len())
            .map(|backend| Mirror {
                backend,
                parts_per_million: 1_000_000,
            })
            .collect(),
        ..Filters::default()
    };
    let mut route = route(Vec::new(), Some(0), filters);
    route.rules.attempt.retry = RetryPolicy {
        attempts,
        ..RetryPolicy::default()
    };
    Service {
        name: name("orders"),
        protocol,
        routes: vec![route].into(),
        byte_routes: Arc::default(),
        backends: std::iter::once(backend("orders".into(), app, None))
            .chain(shadows)
            .collect(),
        rules: Arc::default(),
    }
}

/// A server that keeps what it gets.
struct Server {
    app: App,
    got: Arc<Mutex<Vec<Got>>>,
}

/// A request, as far as it has come.
#[derive(Clone, Debug, Default)]
struct Got {
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

/// One of a server's requests. Dropped before its end, it is broken.
struct Taking {
    all: Arc<Mutex<Vec<Got>>>,
    index: usize,
}

impl Server {
    /// Answers when it has all of a request.
    async fn start() -> Self {
        Self::answering(|taking, body| async move {
            taking.read(body, None).await;
            Response::new(text("thanks"))
        })
        .await
    }

    /// Answers with the pieces of the body as they come, as a gRPC stream.
    async fn echoing() -> Self {
        Self::answering(|taking, body| async move {
            let (echo, answer) = mpsc::channel(1);
            tokio::spawn(async move {
                taking.read(body, Some(&echo)).await;
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                let _ = echo.send(Ok(Frame::trailers(trailers))).await;
            });
            let mut response = Response::new(StreamBody::new(ReceiverStream::new(answer)).boxed());
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(CONTENT_TYPE, grpc);
            response
        })
        .await
    }

    async fn answering<F, R>(answer: F) -> Self
    where
        F: Fn(Taking, Incoming) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let got: Arc<Mutex<Vec<Got>>> = Arc::default();
        let all = Arc::clone(&got);
        let app = App::start(move |request: Request<Incoming>| {
            let (head, body) = request.into_parts();
            let mut got = all.lock().unwrap();
            got.push(Got {
                headers: head.headers,
                ..Got::default()
            });
            let taking = Taking {
                all: Arc::clone(&all),
                index: got.len() - 1,
            };
            answer(taking, body)
        })
        .await;
        Self { app, got }
    }

    fn address(&self) -> SocketAddr {
        self.app.address
    }

    /// All that it got.
    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// What it got, which is one request, when that has ended.
    async fn got_one(&self) -> Got {
        until("a request ends", || self.got().iter().any(|got| got.end.is_some())).await;
        let [got] = self.got().try_into().expect("another number of requests");
        got
    }

    /// Waits until its requests have so many bytes together.
    async fn has(&self, bytes: usize) {
        let have = || self.got.lock().unwrap().iter().map(|got| got.body.len()).sum::<usize>();
        until("bytes come", || have() >= bytes).await;
        assert_eq!(have(), bytes);
    }
}

impl Taking {
    /// Reads all of a body, and gives each piece back.
    async fn read(self, mut body: Incoming, echo: Option<&mpsc::Sender<Result<Frame<Bytes>, Infallible>>>) {
        loop {
            match body.frame().await.map(|frame| frame.map(Frame::into_data)) {
                None => return self.change(|got| got.end = Some(End::Whole)),
                Some(Err(_)) => return,
                Some(Ok(Err(frame))) => self.change(|got| got.trailers = frame.into_trailers().ok()),
                Some(Ok(Ok(data))) => {
                    self.change(|got| got.body.extend_from_slice(&data));
                    if let Some(echo) = echo {
                        let _ = echo.send(Ok(Frame::data(data))).await;
                    }
                }
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Got)) {
        change(&mut self.all.lock().unwrap()[self.index]);
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.change(|got| _ = got.end.get_or_insert(End::Broken));
    }
}

type Sent = Result<Frame<Bytes>, io::Error>;

/// A client whose requests have bodies that come piece by piece. In HTTP/2, all on one connection.
struct Caller(Client<HttpConnector, StreamBody<ReceiverStream<Sent>>>);

/// A request that is under way.
struct Upload {
    frames: mpsc::Sender<Sent>,
    response: JoinHandle<Result<Response<Incoming>, hyper_util::client::legacy::Error>>,
}

impl Caller {
    fn new(protocol: Protocol) -> Self {
        let http2 = protocol == Protocol::Http2;
        Self(Client::builder(TokioExecutor::new()).http2_only(http2).build_http())
    }

    fn put(&self, to: SocketAddr, change: impl FnOnce(Builder) -> Builder) -> Upload {
        let (frames, body) = mpsc::channel(1);
        let request = change(Request::put(format!("http://{to}/")));
        let request = request.body(StreamBody::new(ReceiverStream::new(body))).unwrap();
        Upload {
            frames,
            response: tokio::spawn(self.0.request(request)),
        }
    }
}

impl Upload {
    async fn send(&self, bytes: impl Into<Bytes>) {
        self.frame(Ok(Frame::data(bytes.into()))).await;
    }

    async fn frame(&self, frame: Sent) {
        let sent = tokio::time::timeout(SOON, self.frames.send(frame)).await;
        sent.expect("it does not go on").expect("its connection has ended");
    }

    /// The body has ended: the status of the response, and all of it.
    async fn end(self) -> (u16, Bytes) {
        let Self { frames, response } = self;
        drop(frames);
        let whole = async {
            let response = response.await.unwrap().unwrap();
            (
                response.status().as_u16(),
                response.into_body().collect().await.unwrap().to_bytes(),
            )
        };
        tokio::time::timeout(SOON, whole).await.expect("no answer")
    }
}

/// Waits until a condition holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, waiting).await.is_ok(), "never: {what}");
}

/// An address where nobody listens, as long as the socket is there.
fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}
