//! Two sidecars and what goes through them, in one process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Collector, Http, Sidecar, attribute, id, metric, request, status, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DAY: Duration = Duration::from_secs(86_400);

/// A caller's sidecar and an app behind its own.
struct Pair {
    web: RunningProxy,
    orders: RunningProxy,
    to: SocketAddr,
}

async fn pair(authority: &Authority, app: SocketAddr, protocol: &str, policy: &str, line: &str) -> Pair {
    let orders = Sidecar::new("orders").protects(app).with(line).start(authority).await;
    let web = Sidecar::new("web")
        .calls("orders", protocol, &[(orders.inbound[0], Some(id("orders")))], policy)
        .with(line)
        .start(authority)
        .await;
    Pair {
        to: web.outbound[0],
        web,
        orders,
    }
}

async fn authority() -> Authority {
    Authority::start(&["web", "orders"], DAY).await
}

#[tokio::test]
async fn http1_goes_through_one_mtls_connection() {
    let authority = authority().await;
    let app = App::start(async |request| {
        let seen = format!(
            "{} {} {:?}",
            request.method(),
            request.uri(),
            request.headers().get("host")
        );
        assert!(request.headers().contains_key("x-request-id"));
        Response::new(text(seen))
    })
    .await;
    let mesh = pair(&authority, app.address, "http1", "{}", "").await;
    let http = Http::one();
    for _ in 0..20 {
        let seen = http.get(mesh.to, "/a?b=c").await;
        assert_eq!(seen.status, 200);
        assert_eq!(seen.body, format!("GET /a?b=c Some(\"{}\")", mesh.to));
    }
    let one = |proxy, direction: &str| metric(proxy, "outrigger_tls_handshakes_total", &[direction, "result=\"ok\""]);
    assert_eq!(one(&mesh.web, "outbound"), 1);
    assert_eq!(one(&mesh.orders, "inbound"), 1);
    let requests = |proxy, direction: &str| {
        metric(
            proxy,
            "outrigger_requests_total",
            &[direction, "tls=\"true\"", "success"],
        )
    };
    assert_eq!(requests(&mesh.web, "outbound"), 20);
    assert_eq!(requests(&mesh.orders, "inbound"), 20);
}

#[tokio::test]
async fn grpc_keeps_its_trailers_on_one_http2_connection() {
    let authority = authority().await;
    let app = App::start(async |request| {
        assert_eq!(request.version(), http::Version::HTTP_2);
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("5"));
        let frames = [Ok(Frame::data(body)), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(StreamBody::new(tokio_stream::iter(frames)).boxed());
        response
            .headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    })
    .await;
    let mesh = pair(&authority, app.address, "http2", "{}", "").await;
    let http = Http::two();
    let calls = (0..20).map(|_| async {
        let mut call = request(Method::POST, mesh.to, "/shop.Orders/Get", "message");
        call.headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        call.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        let seen = http.send(call).await.unwrap();
        assert_eq!((seen.status, &seen.body[..]), (200, &b"message"[..]));
        assert_eq!(seen.trailers.unwrap()["grpc-status"], "5");
    });
    futures_util::future::join_all(calls).await;
    let handshakes = metric(&mesh.web, "outrigger_tls_handshakes_total", &["outbound"]);
    assert_eq!(handshakes, 1);
}

#[tokio::test]
async fn one_trace_in_the_right_order_with_every_attempt() {
    let authority = authority().await;
    let mut collector = Collector::start().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let parents = Arc::new(std::sync::Mutex::new(Vec::new()));
    let app = App::start({
        let (calls, parents) = (Arc::clone(&calls), Arc::clone(&parents));
        move |request| {
            let parent = request.headers()["traceparent"].to_str().unwrap().to_owned();
            parents
                .lock()
                .unwrap()
                .push((parent, request.headers().get("baggage").cloned()));
            let failing = calls.fetch_add(1, SeqCst) < 2;
            async move { if failing { status(503) } else { status(200) } }
        }
    })
    .await;
    let mesh = pair(&authority, app.address, "http1", "{}", &collector.line()).await;
    let mut call = request(Method::GET, mesh.to, "/x", "");
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    call.headers_mut()
        .insert("traceparent", format!("00-{trace}-{parent}-01").parse().unwrap());
    call.headers_mut().insert("baggage", HeaderValue::from_static("user=1"));
    assert_eq!(Http::one().send(call).await.unwrap().status, 200);

    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let trace_id: Vec<u8> = (0..16)
        .map(|i| u8::from_str_radix(&trace[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let spans = collector.trace(&trace_id, 6).await;
    let of = |name: &str| {
        spans
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, s)| s.clone())
            .collect::<Vec<_>>()
    };
    let (clients, servers) = (of("web"), of("orders"));
    assert_eq!((clients.len(), servers.len()), (3, 3));
    for (attempt, (client, server)) in clients.iter().zip(&servers).enumerate() {
        assert_eq!((client.kind, server.kind), (3, 2), "a client and a server span");
        assert_eq!(hex(&client.parent_span_id), parent, "attempts are siblings");
        assert_eq!(server.parent_span_id, client.span_id);
        let resend = attribute(client, "http.request.resend_count");
        assert_eq!(resend, (attempt > 0).then(|| attempt.to_string()));
        let expected = if attempt < 2 { "503" } else { "200" };
        assert_eq!(attribute(client, "http.response.status_code").unwrap(), expected);
        let (app_saw, baggage) = parents.lock().unwrap()[attempt].clone();
        assert_eq!(app_saw, format!("00-{trace}-{}-01", hex(&server.span_id)));
        assert_eq!(baggage.unwrap(), "user=1");
    }
}

#[tokio::test]
async fn retries_are_safe() {
    let authority = authority().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let app = App::start({
        let calls = Arc::clone(&calls);
        move |request| {
            let failing = calls.fetch_add(1, SeqCst).is_multiple_of(2);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                if failing {
                    status(503)
                } else {
                    Response::new(text(body))
                }
            }
        }
    })
    .await;
    let mesh = pair(&authority, app.address, "http1", "{}", "").await;
    let http = Http::one();
    assert_eq!(http.get(mesh.to, "/").await.status, 200);
    // A POST is not sent twice, unless its client says that it may be; then its body comes again.
    assert_eq!(http.post(mesh.to, "/", "body").await.status, 503);
    calls.store(0, SeqCst);
    let mut call = request(Method::POST, mesh.to, "/", "body");
    call.headers_mut()
        .insert("idempotency-key", HeaderValue::from_static("1"));
    let seen = http.send(call).await.unwrap();
    assert_eq!((seen.status, &seen.body[..]), (200, &b"body"[..]));
    // A body beyond the limit is sent once.
    calls.store(0, SeqCst);
    let mut call = request(Method::PUT, mesh.to, "/", "");
    *call.body_mut() = text(vec![b'x'; 100_000]);
    assert_eq!(http.send(call).await.unwrap().status, 503);
    let retries = metric(&mesh.web, "outrigger_retries_total", &["result=\"success\""]);
    assert_eq!(retries, 2);
}

#[tokio::test]
async fn the_budget_bounds_retries() {
    let authority = authority().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let app = App::start({
        let calls = Arc::clone(&calls);
        move |_| {
            calls.fetch_add(1, SeqCst);
            async { status(503) }
        }
    })
    .await;
    let policy = "{retry: {backoff: {base: 1ms, max: 1ms}, budget: {percent: 20, minPerSecond: 0}}}";
    let mesh = pair(&authority, app.address, "http1", policy, "").await;
    let http = Http::one();
    for _ in 0..50 {
        assert_eq!(http.get(mesh.to, "/").await.status, 503);
    }
    assert_eq!(calls.load(SeqCst), 60, "50 requests and 20 % of them");
    assert!(metric(&mesh.web, "outrigger_retry_budget_exhausted_total", &[]) >= 40);
}

#[tokio::test]
async fn time_limits() {
    let authority = authority().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let app = App::start({
        let calls = Arc::clone(&calls);
        move |request| {
            let slow = request.uri().path() == "/slow" || calls.fetch_add(1, SeqCst) == 0;
            async move {
                if slow {
                    std::future::pending::<()>().await;
                }
                status(200)
            }
        }
    })
    .await;
    let policy = "{timeouts: {request: 1s, backendRequest: 200ms}}";
    let mesh = pair(&authority, app.address, "http1", policy, "").await;
    let http = Http::one();
    // The first attempt hangs, the second answers.
    assert_eq!(http.get(mesh.to, "/once").await.status, 200);
    let began = Instant::now();
    let seen = http.get(mesh.to, "/slow").await;
    assert_eq!((seen.status, seen.error()), (504, Some("attempt-timeout")));
    assert!(began.elapsed() >= Duration::from_millis(600), "three attempts");
    let seen = http.post(mesh.to, "/slow", "").await;
    assert_eq!((seen.status, seen.error()), (504, Some("attempt-timeout")));

    let whole = pair(&authority, app.address, "http1", "{timeouts: {request: 300ms}}", "").await;
    let seen = http.get(whole.to, "/slow").await;
    assert_eq!((seen.status, seen.error()), (504, Some("request-timeout")));
}

#[tokio::test]
async fn an_app_that_is_gone_is_told_apart_and_any_request_goes_elsewhere() {
    let authority = authority().await;
    let alive = App::start(async |_| status(200)).await;
    let dead = App::start(async |_| status(200)).await;
    let one = Sidecar::new("orders").protects(dead.address).start(&authority).await;
    let two = Sidecar::new("orders").protects(alive.address).start(&authority).await;
    let endpoints = [&one, &two].map(|p| (p.inbound[0], Some(id("orders"))));
    let web = Sidecar::new("web")
        .calls("orders", "http1", &endpoints, "{}")
        .calls("lone", "http1", &endpoints[..1], "{retry: {attempts: 0}}")
        .start(&authority)
        .await;
    let http = Http::one();
    for _ in 0..10 {
        assert_eq!(http.post(web.outbound[0], "/", "pay").await.status, 200);
    }
    dead.kill();
    // The kernel needs a moment to refuse; the listener is closed with the task.
    while TcpStream::connect(dead.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        assert_eq!(http.post(web.outbound[0], "/", "pay").await.status, 200);
    }
    let seen = http.get(web.outbound[1], "/").await;
    assert_eq!((seen.status, seen.error()), (503, Some("app-unavailable")));
    assert!(String::from_utf8_lossy(&seen.body).contains("docs/errors.md#app-unavailable"));
}

#[tokio::test]
async fn somebody_else_is_not_talked_to() {
    let authority = authority().await;
    let app = App::start(async |_| status(200)).await;
    let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
    let to = orders.inbound[0];
    // Another root, for a workload of the same name.
    let stranger = Authority::start(&["orders"], DAY).await;
    let impostor = Sidecar::new("orders").protects(app.address).start(&stranger).await;
    let web = Sidecar::new("web")
        .calls("wrong", "http1", &[(to, Some(id("payments")))], "{}")
        .calls("unknown", "http1", &[(impostor.inbound[0], Some(id("orders")))], "{}")
        .start(&authority)
        .await;
    let seen = Http::one().get(web.outbound[0], "/").await;
    assert_eq!((seen.status, seen.error()), (503, Some("identity-mismatch")));
    let seen = Http::one().get(web.outbound[1], "/").await;
    assert_eq!((seen.status, seen.error()), (503, Some("tls-failed")));
    assert_eq!(metric(&orders, "outrigger_requests_total", &["success"]), 0);
    // And a server does not take a client of an unknown root.
    let client = Sidecar::new("orders")
        .calls("orders", "http1", &[(to, Some(id("orders")))], "{}")
        .start(&stranger)
        .await;
    assert_eq!(
        Http::one().get(client.outbound[0], "/").await.error(),
        Some("tls-failed")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_under_load() {
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(16)).await;
    let app = App::start(async |_| status(200)).await;
    let mesh = pair(&authority, app.address, "http1", "{retry: {attempts: 0}}", "").await;
    let (http, to) = (Http::one(), mesh.to);
    let generation = |p: &RunningProxy| p.identity().current().unwrap().generation;
    let before = (generation(&mesh.web), generation(&mesh.orders));
    let began = Instant::now();
    let load = async {
        let mut sent = 0;
        while generation(&mesh.web) < before.0 + 2 || generation(&mesh.orders) < before.1 + 2 {
            let seen = http.get(to, "/").await;
            assert_eq!(seen.status, 200, "{seen:?}");
            sent += 1;
            assert!(began.elapsed() < Duration::from_secs(30), "not renewed");
        }
        sent
    };
    let sent = load.await;
    assert!(sent > 100, "{sent}");
    let handshakes = metric(
        &mesh.web,
        "outrigger_tls_handshakes_total",
        &["outbound", "result=\"ok\""],
    );
    assert!(handshakes >= 2, "new credentials make new connections: {handshakes}");
    drop(authority.ca());
}

#[tokio::test]
async fn upgrades_pass() {
    let authority = authority().await;
    let app = App::start(async |mut request| {
        assert_eq!(request.headers()["upgrade"], "echo");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let mut line = [0; 4];
            io.read_exact(&mut line).await.unwrap();
            io.write_all(&line).await.unwrap();
            io.shutdown().await.unwrap();
        });
        let mut response = status(101);
        response
            .headers_mut()
            .insert("connection", HeaderValue::from_static("Upgrade"));
        response
            .headers_mut()
            .insert("upgrade", HeaderValue::from_static("echo"));
        response
    })
    .await;
    let mesh = pair(&authority, app.address, "http1", "{}", "").await;
    let mut client = TcpStream::connect(mesh.to).await.unwrap();
    let head = "GET /ws HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(b"ping").await.unwrap();
    let mut all = String::new();
    tokio::time::timeout(Duration::from_secs(5), client.read_to_string(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert!(
        all.starts_with("HTTP/1.1 101 ") && all.ends_with("\r\n\r\nping"),
        "{all}"
    );
    assert!(all.to_ascii_lowercase().contains("upgrade: echo"), "{all}");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_carried_in_mtls() {
    let authority = authority().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 hello\r\n").await.unwrap();
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.unwrap();
                stream.write_all(&rest).await.unwrap();
            });
        }
    });
    let mesh = pair(&authority, app, "opaque", "{}", "").await;
    let mut client = TcpStream::connect(mesh.to).await.unwrap();
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    client.write_all(b"QUIT\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "QUIT\r\n");
    assert_eq!(
        metric(&mesh.orders, "outrigger_tls_handshakes_total", &["inbound", "\"ok\""]),
        1
    );
}

#[tokio::test]
async fn headers_have_one_limit() {
    let authority = authority().await;
    let app = App::start(async |_| status(200)).await;
    for (protocol, http) in [("http1", Http::one()), ("http2", Http::two())] {
        let mesh = pair(&authority, app.address, protocol, "{}", "").await;
        for (size, expected) in [(40_000, 200), (70_000, 431)] {
            let mut call = request(Method::GET, mesh.to, "/", "");
            let cookie = HeaderValue::from_bytes(&vec![b'c'; size]).unwrap();
            call.headers_mut().insert("cookie", cookie);
            let seen = http.send(call).await.unwrap();
            assert_eq!(seen.status, expected, "{protocol} {size}");
            if expected == 431 && protocol == "http1" {
                assert_eq!(seen.error(), Some("headers-too-large"));
            }
        }
    }
}

#[tokio::test]
async fn strict_lets_in_probes_and_nothing_else() {
    let authority = authority().await;
    let app = App::start(async |_| status(200)).await;
    let strict = pair(&authority, app.address, "http1", "{}", "mtls: strict").await;
    let plain = strict.orders.inbound[0];
    let seen = Http::one().get(plain, "/").await;
    assert_eq!((seen.status, seen.error()), (403, Some("plaintext-refused")));
    assert_eq!(Http::one().get(strict.to, "/").await.status, 200);
    let permissive = pair(&authority, app.address, "http1", "{}", "").await;
    assert_eq!(Http::one().get(permissive.orders.inbound[0], "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_ends_loses_no_request() {
    let authority = authority().await;
    let app = App::start(async |_| {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Response::new(text("done"))
    })
    .await;
    for (protocol, http) in [("http1", Http::one()), ("http2", Http::two())] {
        let leaving = Sidecar::new("orders").protects(app.address).start(&authority).await;
        let staying = Sidecar::new("orders").protects(app.address).start(&authority).await;
        let endpoints = [&leaving, &staying].map(|p| (p.inbound[0], Some(id("orders"))));
        let web = Sidecar::new("web")
            .calls("orders", protocol, &endpoints, "{}")
            .start(&authority)
            .await;
        let to = web.outbound[0];
        let load = (0..8).map(|_| {
            let http = http.clone();
            tokio::spawn(async move {
                let began = Instant::now();
                let mut sent = 0;
                while began.elapsed() < Duration::from_secs(2) {
                    let seen = http.post(to, "/", "order").await;
                    assert_eq!((seen.status, &seen.body[..]), (200, &b"done"[..]), "{seen:?}");
                    sent += 1;
                }
                sent
            })
        });
        let load: Vec<_> = load.collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        leaving.shutdown().await.unwrap();
        for client in load {
            assert!(client.await.unwrap() > 0);
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_app() {
    let authority = authority().await;
    let (ended, mut frees) = tokio::sync::mpsc::unbounded_channel();
    struct Told(tokio::sync::mpsc::UnboundedSender<()>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let app = App::start(move |_| {
        let told = Told(ended.clone());
        async move {
            let _told = told;
            std::future::pending().await
        }
    })
    .await;
    for (protocol, http) in [("http1", Http::one()), ("http2", Http::two())] {
        let mesh = pair(&authority, app.address, protocol, "{}", "").await;
        let call = http.send(request(Method::GET, mesh.to, "/", ""));
        assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err());
        tokio::time::timeout(Duration::from_secs(5), frees.recv())
            .await
            .unwrap_or_else(|_| panic!("{protocol}: the app still works for nobody"));
        let closed = metric(&mesh.web, "outrigger_errors_total", &["client-closed"]);
        assert_eq!(closed, 1);
    }
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let authority = authority().await;
    let app =
        App::start(async |request| Response::new(text(request.into_body().collect().await.unwrap().to_bytes()))).await;
    for (protocol, http) in [("http1", Http::one()), ("http2", Http::two())] {
        let mesh = pair(&authority, app.address, protocol, "{}", "").await;
        let big: Bytes = (0..5_000_000u32).map(|i| i as u8).collect();
        let mut call = request(Method::POST, mesh.to, "/", "");
        *call.body_mut() = text(big.clone());
        let seen = http.send(call).await.unwrap();
        assert!(seen.body == big, "{protocol}");
    }
}

#[tokio::test]
async fn endpoints_outside_the_mesh_are_called_in_plaintext() {
    let authority = authority().await;
    let app = App::start(async |_| status(204)).await;
    let web = Sidecar::new("web")
        .calls("legacy", "detect", &[(app.address, None)], "{}")
        .start(&authority)
        .await;
    assert_eq!(Http::one().get(web.outbound[0], "/").await.status, 204);
    assert_eq!(Http::two().get(web.outbound[0], "/").await.status, 204);
    assert_eq!(
        metric(&web, "outrigger_requests_total", &["tls=\"false\"", "success"]),
        2
    );
}
