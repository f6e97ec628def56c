//! External authorization, through real sidecars: servers of both protocols, clients of each version of HTTP, and what becomes of a request
//! where no server says yes.

mod cases;
mod hostile;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use outrigger_api::discovery as proto;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::discovery::{DiscoveryConfig, StaticTargets};
use outrigger_proxy::model::{
    AuthProtocol, Backend, Cors, Endpoint, Endpoints, ExternalAuth, Filters, HeaderModifier, Mirror, Protocol,
    Redirect, Route, Service, ServiceName, Target,
};
use outrigger_proxy::outbound::auth::wire::authorization_server::{Authorization, AuthorizationServer};
use outrigger_proxy::outbound::auth::wire::check_response::HttpResponse;
use outrigger_proxy::outbound::auth::wire::{
    self, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValueOption, HttpStatus, OkHttpResponse,
};
use outrigger_tests::mesh::{App, Authority, Body, Http, SOON, Seen, Sidecar, id, metric, request, text};
use outrigger_tests::routes::{below, route};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

const DAY: Duration = Duration::from_secs(86_400);
/// Bytes of a body that are sent along where they are.
const MAX_BODY: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Speaks {
    Http1,
    Http2,
    Grpc,
    WebSocket,
}

impl Speaks {
    const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Grpc, Self::WebSocket];

    async fn send(
        self,
        to: SocketAddr,
        path: &str,
        body: &'static str,
        lines: &[(&'static str, &'static str)],
    ) -> Seen {
        let method = if self == Self::WebSocket {
            Method::GET
        } else {
            Method::POST
        };
        let mut request = request(method, to, path, body);
        let more = match self {
            Self::Http1 | Self::Http2 => &[][..],
            Self::Grpc => &[("content-type", "application/grpc")],
            Self::WebSocket => &[("connection", "upgrade"), ("upgrade", "websocket")],
        };
        for (name, value) in lines.iter().chain(more) {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let http = match self {
            Self::Http1 | Self::WebSocket => Http::one(),
            Self::Http2 | Self::Grpc => Http::two(),
        };
        http.within(2 * SOON).send(request).await.unwrap()
    }

    /// What a client sees as the status.
    fn status(self, seen: &Seen) -> String {
        match self {
            Self::Grpc => {
                let trailers = seen.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
                let status = trailers.or_else(|| seen.headers.get("grpc-status"));
                status.map_or("no status", |status| status.to_str().unwrap()).to_owned()
            }
            _ => seen.status.to_string(),
        }
    }
}

/// What a server was asked.
#[derive(Clone, Debug, Default)]
struct Got {
    line: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Got>>>);

impl Log {
    fn add(&self, got: Got) {
        self.0.lock().unwrap().push(got);
    }

    fn take(&self) -> Vec<Got> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// What was asked, which is one request.
    fn one(&self) -> Got {
        let [got] = self.take().try_into().expect("another number of requests");
        got
    }
}

/// Reads a request, and writes it down.
async fn note(log: &Log, request: Request<Incoming>) -> Got {
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes().to_vec())
        .unwrap_or_default();
    let got = Got {
        line: format!(
            "{} {}",
            head.method,
            head.uri.path_and_query().map_or("", |path| path.as_str())
        ),
        headers: head.headers,
        body,
    };
    log.add(got.clone());
    got
}

/// Whom a server of authorization is asked about, and so how it answers.
fn who(headers: &HeaderMap) -> &str {
    headers.get("authorization").map_or("", |value| value.to_str().unwrap())
}

/// A server of HTTP, and what it was asked.
async fn http_server(log: &Log) -> App {
    let log = log.clone();
    App::start(move |request: Request<Incoming>| {
        let log = log.clone();
        async move {
            let got = note(&log, request).await;
            let mut response: Response<Body> = Response::new(text(""));
            let headers = response.headers_mut();
            // Nobody takes its word for what only sidecars say.
            headers.insert("outrigger-error", HeaderValue::from_static("no-route"));
            match who(&got.headers) {
                "alice" => {
                    headers.insert("x-user", HeaderValue::from_static("alice"));
                    headers.insert("x-other", HeaderValue::from_static("1"));
                }
                "nobody" => {
                    headers.insert("www-authenticate", HeaderValue::from_static("Basic realm=shop"));
                    *response.status_mut() = StatusCode::UNAUTHORIZED;
                    *response.body_mut() = text("who are you?");
                }
                "large" => {
                    *response.status_mut() = StatusCode::FORBIDDEN;
                    *response.body_mut() = text(vec![b'x'; 10 << 20]);
                }
                "heads" => {
                    let long = HeaderValue::from_bytes(&[b'x'; 80 * 1024]).unwrap();
                    response.headers_mut().insert("x-long", long);
                }
                "created" => *response.status_mut() = StatusCode::CREATED,
                "broken" => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
                _ => std::future::pending().await,
            }
            response
        }
    })
    .await
}

struct Checks(Log);

#[tonic::async_trait]
impl Authorization for Checks {
    async fn check(
        &self,
        asked: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        let attributes = asked.into_inner().attributes.unwrap();
        assert_eq!(attributes.source.unwrap().principal, id("web").to_string());
        let http = attributes.request.unwrap().http.unwrap();
        let lines = http.headers.iter();
        let got = Got {
            line: format!("{} {}", http.method, http.path),
            headers: lines
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect(),
            body: [http.body.into_bytes(), http.raw_body].concat(),
        };
        self.0.add(got.clone());
        let header = |key: &str, value: Vec<u8>| HeaderValueOption {
            header: Some(wire::HeaderValue {
                key: key.to_owned(),
                raw_value: value,
                ..wire::HeaderValue::default()
            }),
            ..HeaderValueOption::default()
        };
        let denied = |code, body: String, headers| {
            Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
                status: Some(HttpStatus { code }),
                headers,
                body,
            }))
        };
        let (code, http_response) = match who(&got.headers) {
            "alice" => {
                let ok = OkHttpResponse {
                    headers: vec![
                        header("x-user", b"alice".into()),
                        header("outrigger-error", b"x".into()),
                    ],
                    headers_to_remove: vec!["authorization".to_owned(), ":path".to_owned()],
                    ..OkHttpResponse::default()
                };
                (0, Some(HttpResponse::OkResponse(ok)))
            }
            "nobody" => {
                let challenge = vec![header("www-authenticate", b"Basic realm=shop".into())];
                (16, denied(401, "who are you?".to_owned(), challenge))
            }
            "large" => (7, denied(403, "x".repeat(3 << 20), vec![])),
            "heads" => (0, denied(0, String::new(), vec![])),
            "created" => (7, denied(201, String::new(), vec![])),
            "broken" => return Err(tonic::Status::internal("as a test wants it")),
            _ => std::future::pending().await,
        };
        Ok(tonic::Response::new(CheckResponse {
            status: Some(wire::Status { code }),
            http_response,
        }))
    }
}

/// A server of gRPC, and what it was asked.
async fn grpc_server(log: &Log) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = AuthorizationServer::new(Checks(log.clone()));
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Server {
    Http,
    Grpc,
}

/// Backends of the Service, by their places.
const ORDERS: usize = 0;
const AUTH: usize = 1;
const NOBODY: usize = 2;
const REFUSES: usize = 3;
const HOSTILE: usize = 4;

/// An app behind its sidecar, a server that is asked behind its own, and a caller's.
struct Lab {
    web: RunningProxy,
    app: Log,
    asked: Log,
    server: Server,
    _held: (App, Option<App>, [RunningProxy; 2], Authority),
}

fn auth(server: Server, backend: Option<usize>, max_body: Option<usize>) -> Option<ExternalAuth> {
    let protocol = match server {
        Server::Http => AuthProtocol::Http {
            path: "/check".to_owned(),
            headers: vec!["x-told".parse().unwrap()],
            response_headers: Some(vec!["x-user".parse().unwrap()]),
        },
        Server::Grpc => AuthProtocol::Grpc { headers: None },
    };
    Some(ExternalAuth {
        backend,
        protocol,
        max_body,
    })
}

fn routes(server: Server) -> Vec<Route> {
    let asks = |backend, max_body| Filters {
        external_auth: auth(server, backend, max_body),
        ..Filters::default()
    };
    let modifier = HeaderModifier {
        remove: vec!["authorization".parse().unwrap()],
        set: vec![("x-set".parse().unwrap(), HeaderValue::from_static("1"))],
        ..HeaderModifier::default()
    };
    let everything = Filters {
        cors: Some(Cors::from_proto(&proto::Cors {
            origins: vec!["https://shop.example".to_owned()],
            ..proto::Cors::default()
        })),
        request_headers: vec![modifier],
        ..asks(Some(AUTH), None)
    };
    let mirrored = Filters {
        mirrors: vec![Mirror {
            backend: ORDERS,
            parts_per_million: 1_000_000,
        }],
        ..asks(Some(AUTH), Some(MAX_BODY))
    };
    let moved = Filters {
        redirect: Some(Redirect {
            scheme: None,
            hostname: Some("else.example".to_owned()),
            port: None,
            path: None,
            status: StatusCode::FOUND,
        }),
        ..asks(Some(AUTH), None)
    };
    let mut in_time = route(vec![below("/in-time")], Some(ORDERS), asks(Some(AUTH), None));
    in_time.rules.request.timeout = Some(Duration::from_millis(300));
    vec![
        route(vec![below("/body")], Some(ORDERS), asks(Some(AUTH), Some(MAX_BODY))),
        route(vec![below("/mirrored")], Some(ORDERS), mirrored),
        route(vec![below("/moved")], Some(ORDERS), moved),
        route(vec![below("/unresolved")], Some(ORDERS), asks(None, None)),
        route(vec![below("/nobody")], Some(ORDERS), asks(Some(NOBODY), None)),
        route(vec![below("/refuses")], Some(ORDERS), asks(Some(REFUSES), None)),
        route(vec![below("/hostile")], Some(ORDERS), asks(Some(HOSTILE), None)),
        in_time,
        route(vec![below("/open")], Some(ORDERS), Filters::default()),
        route(Vec::new(), Some(ORDERS), everything),
    ]
}

impl Lab {
    async fn new(server: Server) -> Self {
        Self::with(server, "").await
    }

    async fn with(server: Server, line: &str) -> Self {
        Self::build(server, line, None).await
    }

    /// `hostile`: a server that is asked about `/hostile`, without a sidecar.
    async fn build(server: Server, line: &str, hostile: Option<SocketAddr>) -> Self {
        let authority = Authority::start(&["web", "orders", "auth"], DAY).await;
        let (app, asked) = (Log::default(), Log::default());
        let orders = App::start({
            let app = app.clone();
            move |request: Request<Incoming>| {
                let app = app.clone();
                async move {
                    let grpc = request
                        .headers()
                        .get("content-type")
                        .is_some_and(|kind| kind == "application/grpc");
                    note(&app, request).await;
                    let mut response = Response::new(text("an answer"));
                    if grpc {
                        let headers = response.headers_mut();
                        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                        headers.insert("grpc-status", HeaderValue::from_static("0"));
                    }
                    response
                }
            }
        })
        .await;
        let (of_auth, held) = match server {
            Server::Http => {
                let app = http_server(&asked).await;
                (app.address, Some(app))
            }
            Server::Grpc => (grpc_server(&asked).await, None),
        };
        let sidecars = [
            Sidecar::new("orders").protects(orders.address).start(&authority).await,
            Sidecar::new("auth").protects(of_auth).start(&authority).await,
        ];
        let endpoint = |name: &str, address| Endpoint {
            address,
            identity: Some(id(name)),
            zone: None,
            pod: None,
            remote: false,
        };
        let plaintext = |address| Endpoint {
            identity: None,
            ..endpoint("hostile", address)
        };
        let name = |name: &str| ServiceName {
            namespace: "shop".into(),
            name: name.into(),
            port: 80,
        };
        let backend = |of: &str, endpoints: Vec<Endpoint>| {
            Arc::new(Backend {
                name: name(of),
                endpoints: Endpoints::Known(endpoints.into_iter().map(Arc::new).collect()),
                client_affinity: false,
                tls: None,
            })
        };
        let service = Service {
            name: name("orders"),
            protocol: Protocol::Detect,
            routes: routes(server).into(),
            byte_routes: Arc::default(),
            backends: vec![
                backend("orders", vec![endpoint("orders", sidecars[0].inbound[0])]),
                backend("auth", vec![endpoint("auth", sidecars[1].inbound[0])]),
                backend("nobody", vec![]),
                backend("refuses", vec![endpoint("auth", ([127, 0, 0, 1], 1).into())]),
                backend("hostile", hostile.map(plaintext).into_iter().collect()),
            ],
            rules: Arc::default(),
        };
        let target = Arc::new(Target::Service(Arc::new(service)));
        let web = Sidecar::new("web")
            .with(line)
            .calls("orders", "detect", &[(orders.address, None)], "{}")
            .start_with(&authority, |config| {
                config.discovery = DiscoveryConfig::Standalone(StaticTargets {
                    services: HashMap::from([("orders".into(), target)]),
                    ..StaticTargets::default()
                });
            })
            .await;
        Self {
            web,
            app,
            asked,
            server,
            _held: (orders, held, sidecars, authority),
        }
    }

    async fn send(&self, speaks: Speaks, path: &str, who: &'static str) -> Seen {
        let lines = [
            ("authorization", who),
            ("x-told", "1"),
            ("x-user", "mallory"),
            ("origin", "https://shop.example"),
        ];
        speaks.send(self.web.outbound[0], path, "", &lines).await
    }

    fn counts(&self, decision: &str) -> u64 {
        let decision = format!("decision=\"{decision}\"");
        metric(&self.web, "outrigger_external_auth_total", &["orders\"", &decision])
    }

    fn attempts(&self) -> u64 {
        metric(&self.web, "outrigger_upstream_attempts_total", &["orders\""])
    }
}

fn said<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}
