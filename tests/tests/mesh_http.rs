//! What HTTP is made of, through two sidecars in one process: heads without bodies, routes and their filters, a pod that
//! calls itself, probes, names, and what goes wrong on the way.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::{Config, LetIn, Plaintext};
use outrigger_proxy::discovery::{DiscoveryConfig, StaticTargets};
use outrigger_proxy::model::{
    Backend, Endpoint, Endpoints, Filters, HeaderModifier, Mirror, PathModifier, Protocol, Redirect, Rewrite, Route,
    Service, ServiceName, Target,
};
use outrigger_tests::mesh::{
    App, Authority, Collector, Http, SOON, Sidecar, attribute, id, metric, request, status, text,
};
use outrigger_tests::routes::{below, route};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

async fn authority() -> Authority {
    Authority::start(&["web", "orders"], Duration::from_secs(86_400)).await
}

async fn pair(authority: &Authority, app: SocketAddr, policy: &str) -> (RunningProxy, RunningProxy) {
    let orders = Sidecar::new("orders").protects(app).start(authority).await;
    let web = Sidecar::new("web")
        .calls("orders", "detect", &[(orders.inbound[0], Some(id("orders")))], policy)
        .start(authority)
        .await;
    (web, orders)
}

/// Sends text over a connection of its own, and reads until it is closed.
async fn raw(to: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut all))
        .await
        .expect("the connection is not closed")
        .unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn heads_without_bodies() {
    let authority = authority().await;
    let app = App::start(async |request| match request.uri().path() {
        "/nothing" => status(204),
        "/cached" => status(304),
        _ => Response::new(text("twelve bytes")),
    })
    .await;
    let (web, _orders) = pair(&authority, app.address, "{}").await;
    let to = web.outbound[0];
    let http = Http::one();
    for _ in 0..3 {
        let seen = http.send(request(Method::HEAD, to, "/", "")).await.unwrap();
        assert_eq!((seen.status, seen.body.len()), (200, 0));
        assert_eq!(seen.headers["content-length"], "12");
        assert_eq!(http.get(to, "/nothing").await.status, 204);
        assert_eq!(http.get(to, "/cached").await.status, 304);
        assert_eq!(http.get(to, "/").await.body, "twelve bytes");
    }
    assert_eq!(
        metric(&web, "outrigger_tls_handshakes_total", &["outbound", "\"ok\""]),
        1
    );
}

#[tokio::test]
async fn head_has_no_content_when_a_sidecar_answers_it() {
    let authority = authority().await;
    // Bound, so that nobody else is there, and not listening.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (web, orders) = pair(&authority, nobody.local_addr().unwrap(), "{retry: {attempts: 0}}").await;
    // The client of HTTP/2 takes content for a broken stream, and so would the calling sidecar.
    for http in [Http::one(), Http::two()] {
        for to in [orders.inbound[0], web.outbound[0]] {
            let seen = http.send(request(Method::HEAD, to, "/", "")).await.unwrap();
            assert_eq!((seen.status, seen.error()), (503, Some("app-unavailable")));
            assert_eq!(seen.body, "");
        }
    }
}

#[tokio::test]
async fn names_of_headers_keep_their_case() {
    let authority = authority().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let n = stream.read(&mut head).await.unwrap();
        let answer = "HTTP/1.1 200 OK\r\nX-LeGaCy: 2\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&head[..n]).into_owned()
    });
    let (web, _orders) = pair(&authority, app, "{}").await;
    let asked = "GET / HTTP/1.1\r\nHost: a\r\nX-CuStOm: 1\r\nX-Hop: 1\r\nConnection: close, X-Hop\r\n\r\n";
    let answer = raw(web.outbound[0], asked).await;
    assert!(
        answer.contains("X-LeGaCy: 2\r\n") && answer.ends_with("\r\n\r\nok"),
        "{answer}"
    );
    let head = server.await.unwrap();
    assert!(head.contains("X-CuStOm: 1\r\n"), "{head}");
    assert!(!head.contains("X-Hop") && !head.contains("Connection"), "{head}");
}

#[tokio::test]
async fn a_server_says_when_to_come_back() {
    let authority = authority().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let app = App::start({
        let calls = Arc::clone(&calls);
        move |request| {
            let first = calls.fetch_add(1, SeqCst) == 0;
            let wait = request.uri().path().trim_start_matches('/').to_owned();
            async move {
                let mut response = status(if first { 503 } else { 200 });
                response.headers_mut().insert("retry-after", wait.parse().unwrap());
                response
            }
        }
    })
    .await;
    let (web, _orders) = pair(&authority, app.address, "{}").await;
    let began = Instant::now();
    assert_eq!(Http::one().get(web.outbound[0], "/1").await.status, 200);
    assert!(began.elapsed() >= Duration::from_secs(1));
    calls.store(0, SeqCst);
    assert_eq!(Http::one().get(web.outbound[0], "/60").await.status, 503);
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test]
async fn a_stale_connection_is_noticed() {
    let authority = authority().await;
    // Answers one request on each connection, says nothing about it, and closes when the next one comes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                let _ = stream.read(&mut head).await;
            });
        }
    });
    let (web, orders) = pair(&authority, app, "{retry: {attempts: 0}}").await;
    let http = Http::one();
    for _ in 0..4 {
        assert_eq!(http.get(web.outbound[0], "/").await.status, 200);
    }
    // It may have been processed, so a POST is not sent again.
    assert_eq!(http.get(orders.inbound[0], "/").await.status, 200);
    let seen = http.post(web.outbound[0], "/", "pay").await;
    assert_eq!((seen.status, seen.error()), (502, Some("upstream-reset")));
}

#[tokio::test]
async fn a_response_that_breaks_off_at_once_has_its_head() {
    let authority = authority().await;
    // An app that crashes as it begins to answer: its head and its end come in the same moment.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let head = b"HTTP/1.1 200 OK\r\nX-Begun: yes\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head).await;
        }
    });
    let (web, orders) = pair(&authority, app, "{}").await;
    for to in [orders.inbound[0], web.outbound[0]] {
        for _ in 0..5 {
            let answer = raw(to, "GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("X-Begun: yes"),
                "{answer:?}"
            );
            assert!(!answer.ends_with("0\r\n\r\n"), "it looks whole: {answer:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_not_http() {
    let authority = authority().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await;
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let (web, _orders) = pair(&authority, app, "{}").await;
    let seen = Http::one().get(web.outbound[0], "/").await;
    // A greeting that is there before the request means that it was not sent: 503. After it: 502.
    let expected = [(502, Some("upstream-protocol")), (503, Some("upstream-refused"))];
    assert!(expected.contains(&(seen.status, seen.error())), "{seen:?}");
}

#[tokio::test]
async fn a_pod_that_calls_itself_stays_in_mutual_tls() {
    let authority = authority().await;
    let app = App::start(async |_| status(200)).await;
    let myself = [(app.address, Some(id("orders")))];
    let orders = Sidecar::new("orders")
        .protects(app.address)
        .calls("myself", "http1", &myself, "{}")
        .with("mtls: strict")
        .start_with(&authority, |config: &mut Config| {
            config.workload.pod_ips = vec![app.address.ip()];
        })
        .await;
    for _ in 0..3 {
        assert_eq!(Http::one().get(orders.outbound[0], "/").await.status, 200);
    }
    assert_eq!(
        metric(&orders, "outrigger_tls_handshakes_total", &["inbound", "\"ok\""]),
        1
    );
    assert_eq!(
        metric(
            &orders,
            "outrigger_requests_total",
            &["inbound", "tls=\"true\"", "success"]
        ),
        3
    );
}

#[tokio::test]
async fn strict_knows_the_pods_probes() {
    let authority = authority().await;
    let app = App::start(async |request| {
        // A probe is no trace, and an app's own tracing is its own.
        let parent = request
            .headers()
            .get("traceparent")
            .map(|p| p.as_bytes().ends_with(b"-01"));
        Response::new(text(format!("{parent:?}")))
    })
    .await;
    let mut collector = Collector::start().await;
    let port = app.address.port();
    let let_in = |what| move |c: &mut Config| c.let_in = vec![LetIn { port, what }];
    let http_probe = Sidecar::new("orders")
        .protects(app.address)
        .with("mtls: strict")
        .with(&collector.line());
    let http_probe = http_probe
        .start_with(&authority, let_in(Plaintext::Get("/ready?full=1".to_owned())))
        .await;
    let to = http_probe.inbound[0];
    let seen = Http::one().get(to, "/ready?full=1").await;
    assert_eq!((seen.status, &seen.body[..]), (200, &b"None"[..]));
    // No more than kubelet's own request.
    assert_eq!(Http::one().get(to, "/ready/x").await.error(), Some("plaintext-refused"));
    let (_, span) = collector.any().await;
    assert_eq!(
        attribute(&span, "url.path").unwrap(),
        "/ready/x",
        "the first span is not the probe's"
    );
    for path in ["/", "/ready", "/ready?", "/ready?full=2", "/ready?full=1&cmd=1"] {
        assert_eq!(
            Http::one().get(to, path).await.error(),
            Some("plaintext-refused"),
            "{path}"
        );
    }
    for method in [Method::DELETE, Method::POST, Method::HEAD, Method::OPTIONS] {
        let seen = Http::one().send(request(method.clone(), to, "/ready?full=1", "")).await;
        assert_eq!(seen.unwrap().error(), Some("plaintext-refused"), "{method}");
    }
    let with_body = Http::one()
        .send(request(Method::GET, to, "/ready?full=1", "order"))
        .await;
    assert_eq!(with_body.unwrap().error(), Some("plaintext-refused"));
    let mut upgrade = request(Method::GET, to, "/ready?full=1", "");
    upgrade
        .headers_mut()
        .insert("connection", HeaderValue::from_static("upgrade"));
    upgrade
        .headers_mut()
        .insert("upgrade", HeaderValue::from_static("websocket"));
    assert_eq!(
        Http::one().send(upgrade).await.unwrap().error(),
        Some("plaintext-refused")
    );

    // Of the version before: the query is not known.
    let older = Sidecar::new("orders").protects(app.address).with("mtls: strict");
    let older = older
        .start_with(&authority, let_in(Plaintext::GetPath("/ready".to_owned())))
        .await;
    assert_eq!(Http::one().get(older.inbound[0], "/ready?full=1").await.status, 200);
    assert_eq!(
        Http::one().post(older.inbound[0], "/ready?full=1", "").await.status,
        403
    );

    let grpc = Sidecar::new("orders").protects(app.address).with("mtls: strict");
    let grpc = grpc.start_with(&authority, let_in(Plaintext::GrpcHealth)).await;
    let health = "/grpc.health.v1.Health/Check";
    assert_eq!(Http::two().post(grpc.inbound[0], health, "").await.status, 200);
    assert_eq!(
        Http::two().post(grpc.inbound[0], "/shop.Orders/Place", "").await.status,
        403
    );

    let tcp_probe = Sidecar::new("orders").protects(app.address).with("mtls: strict");
    let tcp_probe = tcp_probe.start_with(&authority, let_in(Plaintext::Connection)).await;
    let mut stream = TcpStream::connect(tcp_probe.inbound[0]).await.unwrap();
    stream
        .write_all(b"\0\0\0\0 not a byte of this reaches the app")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let mut nothing = Vec::new();
    stream.read_to_end(&mut nothing).await.unwrap();
    assert!(nothing.is_empty());
}

#[tokio::test]
async fn names_are_resolved_by_the_sidecar() {
    let authority = authority().await;
    let app = App::start(async |_| status(200)).await;
    let port = app.address.port();
    let web = Sidecar::new("web")
        .calls("web", "http1", &[(app.address, None)], "{}")
        .start_with(&authority, |config| {
            let backend = Backend {
                name: name("external"),
                endpoints: Endpoints::Dns {
                    host: "localhost".into(),
                    port,
                },
                client_affinity: false,
                tls: None,
            };
            replace(config, service(Vec::new(), vec![Arc::new(backend)]));
        })
        .await;
    assert_eq!(Http::one().get(web.outbound[0], "/").await.status, 200);
}

#[tokio::test]
async fn no_endpoint_is_told() {
    let authority = authority().await;
    let nobody = "127.0.0.1:1".parse().unwrap();
    let web = Sidecar::new("web").calls("web", "http1", &[(nobody, None)], "{retry: {attempts: 1}}");
    let web = web.start(&authority).await;
    let seen = Http::one().get(web.outbound[0], "/").await;
    assert_eq!((seen.status, seen.error()), (503, Some("connect-failed")));
    let mut call = request(Method::POST, web.outbound[0], "/pkg.Svc/Get", "");
    call.headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    let seen = Http::two().send(call).await.unwrap();
    assert_eq!(
        (seen.status, seen.headers["grpc-status"].to_str().unwrap()),
        (200, "14")
    );

    let empty = Sidecar::new("web").calls("web", "http1", &[(nobody, None)], "{}");
    let empty = empty
        .start_with(&authority, |config| {
            replace(config, service(Vec::new(), vec![backend("orders", &[])]));
        })
        .await;
    assert_eq!(
        Http::one().get(empty.outbound[0], "/").await.error(),
        Some("no-endpoints")
    );
}

#[tokio::test]
async fn routes_filters_and_mirrors() {
    let authority = authority().await;
    let app = App::start(async |request| {
        let seen = format!("{} {:?}", request.uri(), request.headers().get("x-canary"));
        Response::new(text(seen))
    })
    .await;
    let mirrored = Arc::new(Mutex::new(Vec::new()));
    let mirror = App::start({
        let mirrored = Arc::clone(&mirrored);
        move |request| {
            let mirrored = Arc::clone(&mirrored);
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                mirrored.lock().unwrap().push((path, body));
                status(500)
            }
        }
    })
    .await;
    let (stable, shadow) = (backend("orders", &[app.address]), backend("shadow", &[mirror.address]));
    let set = |name, value| HeaderModifier {
        set: vec![(HeaderName::from_static(name), HeaderValue::from_static(value))],
        ..HeaderModifier::default()
    };
    let rewritten = route(
        vec![below("/api")],
        Some(0),
        Filters {
            request_headers: vec![set("x-canary", "yes")],
            response_headers: vec![set("x-from", "route")],
            rewrites: vec![Rewrite {
                hostname: None,
                path: Some(PathModifier::ReplacePrefix("/v2".into())),
            }],
            mirrors: vec![Mirror {
                backend: 1,
                parts_per_million: 1_000_000,
            }],
            ..Filters::default()
        },
    );
    let moved = route(
        vec![below("/old")],
        Some(0),
        Filters {
            redirect: Some(Redirect {
                scheme: None,
                hostname: Some("new.example".into()),
                port: Some(80),
                path: None,
                status: StatusCode::MOVED_PERMANENTLY,
            }),
            ..Filters::default()
        },
    );
    let web = Sidecar::new("web")
        .calls("web", "http1", &[(app.address, None)], "{}")
        .start_with(&authority, |config| {
            replace(config, service(vec![rewritten, moved], vec![stable, shadow]));
        })
        .await;
    let to = web.outbound[0];
    let seen = Http::one().post(to, "/api/x?y", "body").await;
    assert_eq!((seen.status, &seen.body[..]), (200, &b"/v2/x?y Some(\"yes\")"[..]));
    assert_eq!(seen.headers["x-from"], "route");
    let seen = Http::one().get(to, "/old").await;
    assert_eq!(
        (seen.status, &seen.headers["location"]),
        (301, &HeaderValue::from_static("http://new.example/old"))
    );
    assert_eq!(Http::one().get(to, "/else").await.error(), Some("no-route"));
    let came = async {
        while mirrored.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, came).await.expect("nothing is mirrored");
    let copies = mirrored.lock().unwrap().clone();
    assert_eq!(copies, [("/v2/x".to_owned(), "body".into())]);
}

fn name(of: &str) -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        name: of.into(),
        port: 80,
    }
}

fn backend(of: &str, addresses: &[SocketAddr]) -> Arc<Backend> {
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
        name: name(of),
        endpoints: Endpoints::Known(addresses.iter().map(endpoint).collect()),
        client_affinity: false,
        tls: None,
    })
}

fn service(routes: Vec<Route>, backends: Vec<Arc<Backend>>) -> Service {
    Service {
        name: name("orders"),
        protocol: Protocol::Http1,
        routes: routes.into(),
        byte_routes: Arc::default(),
        backends,
        rules: Arc::default(),
    }
}

/// Puts a Service in place of the file's, the one named "web".
fn replace(config: &mut Config, service: Service) {
    let target = Arc::new(Target::Service(Arc::new(service)));
    config.discovery = DiscoveryConfig::Standalone(StaticTargets {
        services: HashMap::from([("web".into(), target)]),
        ..StaticTargets::default()
    });
}
