//! `sessionPersistence`: a client that sends back what it was told stays at one endpoint, in each protocol.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use outrigger_api::discovery::backend::Kind;
use outrigger_api::discovery::target::Kind as TargetKind;
use outrigger_api::discovery::{
    LoadBalancer, LoadBalancerType, Match, Policy, Protocol, Retry, Route, ServiceRef, SessionPersistence, SessionType,
    StringMatch, Target, WeightedBackend, string_match,
};
use outrigger_controller::discovery::FixedTargets;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::identity::Clock;
use outrigger_tests::mesh::{App, Authority, Http, Seen, Sidecar, request, text};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{orders, orders_address, until};

const DAY: Duration = Duration::from_secs(86_400);
const HEADER: HeaderName = HeaderName::from_static("x-session");

/// An app that says which one it is, and its sidecar.
struct Endpoint {
    sidecar: RunningProxy,
    fails: Arc<AtomicBool>,
    app: App,
}

struct Mesh {
    targets: Arc<FixedTargets>,
    authority: Authority,
    endpoints: Vec<Endpoint>,
    /// What apps have read of cookies, the last line.
    cookies: Arc<Mutex<Option<HeaderValue>>>,
}

impl Mesh {
    async fn new(count: usize) -> Self {
        let targets = Arc::new(FixedTargets::new([(orders_address(), Target::default())]));
        let authority = Authority::with_discovery(&["web", "orders"], DAY, Some(Arc::clone(&targets) as _)).await;
        let cookies: Arc<Mutex<Option<HeaderValue>>> = Arc::default();
        let mut endpoints = Vec::new();
        for number in 0..count {
            let fails = Arc::new(AtomicBool::new(false));
            let (failing, read) = (Arc::clone(&fails), Arc::clone(&cookies));
            let app = App::start(move |request| {
                *read.lock().unwrap() = request.headers().get(COOKIE).cloned();
                let mut response = Response::new(text(number.to_string()));
                if failing.load(Ordering::SeqCst) {
                    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                }
                if request
                    .headers()
                    .get("content-type")
                    .is_some_and(|is| is == "application/grpc")
                {
                    let headers = response.headers_mut();
                    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                    headers.insert("grpc-status", HeaderValue::from_static("0"));
                }
                async move { response }
            })
            .await;
            let sidecar = Sidecar::new("orders").protects(app.address).start(&authority).await;
            endpoints.push(Endpoint { sidecar, fails, app });
        }
        Self {
            targets,
            authority,
            endpoints,
            cookies,
        }
    }

    /// The Service has these endpoints, and sessions.
    fn tell(&self, protocol: Protocol, numbers: &[usize], sessions: SessionPersistence) {
        self.targets
            .replace(orders_address(), self.target(protocol, numbers, sessions));
    }

    fn target(&self, protocol: Protocol, numbers: &[usize], sessions: SessionPersistence) -> Target {
        let at = numbers
            .iter()
            .map(|n| ("orders", self.endpoints[*n].sidecar.inbound[0]));
        let mut target = orders(protocol, &at.collect::<Vec<_>>());
        let policy = service(&mut target).policy.as_mut().unwrap();
        policy.session_persistence = Some(sessions);
        // So that new sessions are at all of them, however busy the machine is.
        policy.load_balancer = Some(LoadBalancer {
            r#type: LoadBalancerType::RoundRobin.into(),
            ..LoadBalancer::default()
        });
        target
    }

    async fn caller(&self) -> RunningProxy {
        Sidecar::new("web")
            .calls_address(orders_address())
            .start(&self.authority)
            .await
    }
}

fn service(target: &mut Target) -> &mut outrigger_api::discovery::Service {
    match &mut target.kind {
        Some(TargetKind::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

fn sessions(kind: SessionType) -> SessionPersistence {
    SessionPersistence {
        r#type: kind.into(),
        name: HEADER.to_string(),
        key: vec![7; 32],
        ..SessionPersistence::default()
    }
}

/// Keeps what it is told.
#[derive(Clone, Default)]
struct Client {
    told: Option<String>,
}

impl Client {
    /// Who has answered, and whether the client was told something new.
    async fn ask(&mut self, http: &Http, to: SocketAddr, path: &str, grpc: bool) -> (String, bool) {
        let seen = self.send(http, to, path, grpc).await;
        assert_eq!(seen.status, 200, "{seen:?}");
        let who = String::from_utf8(seen.body.to_vec()).unwrap();
        (who, told(&seen.headers).is_some())
    }

    async fn send(&mut self, http: &Http, to: SocketAddr, path: &str, grpc: bool) -> Seen {
        let method = if grpc { Method::POST } else { Method::GET };
        let mut request = request(method, to, path, "");
        let headers = request.headers_mut();
        headers.insert(COOKIE, HeaderValue::from_static("a=b"));
        if grpc {
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("te", HeaderValue::from_static("trailers"));
        }
        if let Some(value) = &self.told {
            headers.insert(HEADER, value.parse().unwrap());
            headers.append(COOKIE, format!("{HEADER}={value}; c=d").parse().unwrap());
        }
        let seen = http.send(request).await.unwrap();
        self.told = told(&seen.headers).or(self.told.take());
        seen
    }
}

/// What a response says of the session, in whichever way.
fn told(headers: &HeaderMap) -> Option<String> {
    let cookie = headers.get(SET_COOKIE).map(|line| {
        let line = line.to_str().unwrap();
        let value = line.strip_prefix("x-session=").unwrap();
        value
            .strip_suffix("; Path=/; HttpOnly; SameSite=Lax")
            .unwrap()
            .to_owned()
    });
    let header = headers.get(HEADER).map(|value| value.to_str().unwrap().to_owned());
    assert!(cookie.is_none() || header.is_none());
    cookie.or(header)
}

/// The last one is gRPC.
const VERSIONS: [(Protocol, bool); 3] = [
    (Protocol::Http1, false),
    (Protocol::Http2, false),
    (Protocol::Http2, true),
];

fn client_of(protocol: Protocol) -> Http {
    match protocol {
        Protocol::Http2 => Http::two(),
        _ => Http::one(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_at_its_endpoint_in_each_protocol() {
    for (protocol, grpc) in VERSIONS {
        for kind in [SessionType::Cookie, SessionType::Header] {
            let mesh = Mesh::new(4).await;
            mesh.tell(protocol, &[0, 1, 2], sessions(kind));
            let (web, other) = (mesh.caller().await, mesh.caller().await);
            let http = client_of(protocol);
            let mut clients = vec![Client::default(); 12];
            let mut at = Vec::new();
            for client in &mut clients {
                let (who, is_new) = client.ask(&http, web.outbound[0], "/", grpc).await;
                assert!(is_new);
                at.push(who);
            }
            assert_eq!(at.iter().collect::<BTreeSet<_>>().len(), 3, "{at:?}");
            // Whichever sidecar carries it, and where there are more endpoints.
            for numbers in [&[0, 1, 2][..], &[3, 2, 1, 0], &[2, 0, 1]] {
                mesh.tell(protocol, numbers, sessions(kind));
                for (client, who) in clients.iter_mut().zip(&at) {
                    for to in [&web, &other] {
                        let asked = client.ask(&http, to.outbound[0], "/", grpc).await;
                        assert_eq!(asked, (who.clone(), false), "{protocol:?} {kind:?} {grpc}");
                    }
                    // The app reads its cookies, and the session's, as the client has sent them.
                    let read = mesh.cookies.lock().unwrap().clone().unwrap();
                    let sent = format!("a=b; x-session={}; c=d", client.told.as_ref().unwrap());
                    assert_eq!(read, sent);
                }
            }
            // Those of one that goes move, and stay where they are then.
            mesh.tell(protocol, &[1, 2, 3], sessions(kind));
            until("the endpoint is gone", async || {
                let mut new = Client::default();
                let mut seen = BTreeSet::new();
                for _ in 0..20 {
                    new.told = None;
                    seen.insert(new.ask(&http, web.outbound[0], "/", grpc).await.0);
                }
                seen == BTreeSet::from(["1", "2", "3"].map(String::from))
            })
            .await;
            for (client, before) in clients.iter_mut().zip(&at) {
                let (now, is_new) = client.ask(&http, web.outbound[0], "/", grpc).await;
                assert_eq!((is_new, now != *before), (before == "0", before == "0"));
                let again = client.ask(&http, web.outbound[0], "/", grpc).await;
                assert_eq!(again, (now, false));
            }
            let config = Http::one().get(web.admin, "/config").await.body;
            let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
            let shown = serde_json::to_string(&config).unwrap();
            assert!(shown.contains("\"sessionName\":\"x-session\""), "{shown}");
            assert!(!shown.contains("key") && !shown.contains("7,7,7,7"), "{shown}");
        }
    }
}

/// A retry goes elsewhere, and the session with it; a failure that is passed on moves nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_where_its_last_answer_came_from() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let mesh = Mesh::new(2).await;
        mesh.tell(protocol, &[0, 1], sessions(SessionType::Cookie));
        let web = mesh.caller().await;
        let (http, to) = (client_of(protocol), web.outbound[0]);
        let mut client = Client::default();
        let (first, _) = client.ask(&http, to, "/", false).await;
        let number: usize = first.parse().unwrap();
        mesh.endpoints[number].fails.store(true, Ordering::SeqCst);
        let before = client.clone();
        let (second, is_new) = client.ask(&http, to, "/", false).await;
        assert!(second != first && is_new);
        assert_eq!(client.ask(&http, to, "/", false).await, (second, false));
        // Without retries.
        let mut target = mesh.target(protocol, &[0, 1], sessions(SessionType::Cookie));
        service(&mut target).policy.as_mut().unwrap().retry = Some(Retry {
            attempts: Some(0),
            ..Retry::default()
        });
        mesh.targets.replace(orders_address(), target);
        until("nothing is tried again", async || {
            let mut client = before.clone();
            client.send(&http, to, "/", false).await.status == 503
        })
        .await;
        let mut client = before;
        let seen = client.send(&http, to, "/", false).await;
        assert_eq!((seen.status, told(&seen.headers)), (503, None));
        // Its app is not there: the endpoint's sidecar says so, and no session begins by that.
        let mut target = mesh.target(protocol, &[number], sessions(SessionType::Cookie));
        service(&mut target).policy.as_mut().unwrap().retry = Some(Retry {
            attempts: Some(0),
            ..Retry::default()
        });
        mesh.targets.replace(orders_address(), target);
        mesh.endpoints[number].app.kill();
        until("the app is gone", async || {
            let seen = Client::default().send(&http, to, "/", false).await;
            assert!(seen.status == 503 && (seen.error().is_none() || told(&seen.headers).is_none()));
            seen.error() == Some("app-unavailable")
        })
        .await;
    }
}

/// An app that takes one request on each connection and closes it when the next one comes, as one does whose time for idle connections has just
/// run out.
async fn closes_behind_each_request(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = vec![0; 8192];
                let _ = stream.read(&mut head).await;
                let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                let _ = stream.write_all(response.as_bytes()).await;
                let _ = stream.read(&mut head).await;
            });
        }
    });
    address
}

/// That says nothing of the endpoint: the session stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_connection_moves_no_session() {
    let mesh = Mesh::new(0).await;
    let at = [
        closes_behind_each_request("one").await,
        closes_behind_each_request("two").await,
    ];
    let mut target = orders(Protocol::Http1, &at.map(|address| ("orders", address)));
    let service = service(&mut target);
    service.policy.as_mut().unwrap().session_persistence = Some(sessions(SessionType::Header));
    if let Some(Kind::Endpoints(endpoints)) = &mut service.backends[0].kind {
        endpoints
            .endpoints
            .iter_mut()
            .for_each(|endpoint| endpoint.identity.clear());
    }
    mesh.targets.replace(orders_address(), target);
    let web = mesh.caller().await;
    let (http, mut client) = (Http::one(), Client::default());
    let (first, _) = client.ask(&http, web.outbound[0], "/", false).await;
    for _ in 0..6 {
        assert_eq!(
            client.ask(&http, web.outbound[0], "/", false).await,
            (first.clone(), false)
        );
    }
}

/// What somebody else has made, or was made for another rule or another Service, is as if there were nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_sealed_for_this_rule_is_a_new_session() {
    for (protocol, grpc) in VERSIONS {
        let mesh = Mesh::new(2).await;
        let rule = |name: &str, path: &str| Route {
            name: format!("shop/r/{name}"),
            matches: vec![Match {
                path: Some(StringMatch {
                    kind: Some(string_match::Kind::PathPrefix(path.to_owned())),
                }),
                ..Match::default()
            }],
            backends: vec![WeightedBackend {
                backend: 0,
                weight: 1,
                filters: Vec::new(),
            }],
            ..Route::default()
        };
        let mut target = mesh.target(protocol, &[0, 1], sessions(SessionType::Header));
        service(&mut target).routes = vec![rule("a", "/a"), rule("b", "/b")];
        mesh.targets.replace(orders_address(), target.clone());
        let web = mesh.caller().await;
        let (http, to) = (client_of(protocol), web.outbound[0]);
        let mut client = Client::default();
        client.ask(&http, to, "/a", grpc).await;
        let of_a = client.told.clone().unwrap();
        assert!(!client.ask(&http, to, "/a/b", grpc).await.1);
        assert!(client.ask(&http, to, "/b", grpc).await.1, "a session of another rule");

        let mut forged = of_a.clone();
        forged.replace_range(30..31, if &of_a[30..31] == "A" { "B" } else { "A" });
        for value in [
            "",
            "x",
            &forged,
            &of_a[1..],
            &format!("{of_a}A"),
            &"A".repeat(of_a.len()),
            &"A".repeat(30_000),
        ] {
            let mut client = Client {
                told: Some(value.to_owned()),
            };
            let seen = client.send(&http, to, "/a", grpc).await;
            assert!(seen.status == 200 && told(&seen.headers).is_some(), "{value}: {seen:?}");
        }
        // The same rule of another Service, and another key.
        let mut client = Client { told: Some(of_a) };
        assert!(!client.ask(&http, to, "/a", grpc).await.1);
        service(&mut target).r#ref.as_mut().unwrap().name = "other".to_owned();
        mesh.targets.replace(orders_address(), target.clone());
        let mut before = client.clone();
        until("it is another Service", async || {
            let mut client = before.clone();
            client.ask(&http, to, "/a", grpc).await.1
        })
        .await;
        assert!(before.ask(&http, to, "/a", grpc).await.1);
        let policy = service(&mut target).policy.as_mut().unwrap();
        policy.session_persistence.as_mut().unwrap().key = vec![8; 32];
        mesh.targets.replace(orders_address(), target);
        until("it is another key", async || {
            let mut client = before.clone();
            client.ask(&http, to, "/a", grpc).await.1
        })
        .await;
    }
}

/// By the clock of the sidecar, and not by the client's word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_by_its_absolute_timeout() {
    let mesh = Mesh::new(2).await;
    let limited = SessionPersistence {
        absolute_timeout_ms: 60_000,
        ..sessions(SessionType::Header)
    };
    mesh.tell(Protocol::Http1, &[0, 1], limited);
    let later = Arc::new(AtomicBool::new(false));
    let is_later = Arc::clone(&later);
    // It stands still but for that.
    let began = Clock::system().now();
    let clock = Clock::new(move || began + Duration::from_secs(if is_later.load(Ordering::SeqCst) { 60 } else { 0 }));
    let web = Sidecar::new("web")
        .by(clock)
        .calls_address(orders_address())
        .start(&mesh.authority)
        .await;
    let (http, to) = (Http::one(), web.outbound[0]);
    let mut client = Client::default();
    assert!(client.ask(&http, to, "/", false).await.1);
    assert!(!client.ask(&http, to, "/", false).await.1);
    later.store(true, Ordering::SeqCst);
    assert!(client.ask(&http, to, "/", false).await.1);
}

/// By GEP-1619 a session stays at its backend, also where that gets no others any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_at_its_backend_whatever_the_weights_are() {
    let mesh = Mesh::new(2).await;
    let split = |weights: [u32; 2]| {
        let mut target = mesh.target(Protocol::Http1, &[0], sessions(SessionType::Cookie));
        let mut other = mesh.target(Protocol::Http1, &[1], sessions(SessionType::Cookie));
        let service = service(&mut target);
        let mut second = self::service(&mut other).backends.remove(0);
        second.r#ref = Some(ServiceRef {
            name: "orders-v2".to_owned(),
            ..second.r#ref.clone().unwrap()
        });
        service.backends.push(second);
        let weighted = weights.into_iter().zip(0..).map(|(weight, backend)| WeightedBackend {
            backend,
            weight,
            filters: Vec::new(),
        });
        service.routes = vec![Route {
            name: "shop/split/0".to_owned(),
            backends: weighted.collect(),
            policy: Some(Policy::default()),
            ..Route::default()
        }];
        target
    };
    mesh.targets.replace(orders_address(), split([50, 50]));
    let web = mesh.caller().await;
    let (http, to) = (Http::one(), web.outbound[0]);
    let mut clients = vec![Client::default(); 60];
    let mut at = Vec::new();
    for client in &mut clients {
        at.push(client.ask(&http, to, "/", false).await.0);
    }
    assert_eq!(at.iter().collect::<BTreeSet<_>>().len(), 2, "{at:?}");
    mesh.targets.replace(orders_address(), split([0, 100]));
    until("new sessions are at the second", async || {
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            seen.insert(Client::default().ask(&http, to, "/", false).await.0);
        }
        seen == BTreeSet::from(["1".to_owned()])
    })
    .await;
    for (client, who) in clients.iter_mut().zip(&at) {
        assert_eq!(client.ask(&http, to, "/", false).await, (who.clone(), false));
    }
}
