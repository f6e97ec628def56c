//! How much a sidecar asks of a backend at a time, in every version of HTTP, in gRPC and of connections of bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Http, Seen, Sidecar, echo, id, metric, status, talk, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Speaks;

const DAY: Duration = Duration::from_secs(86_400);

/// Apps that answer when they are let, and a caller of them.
struct Scene {
    web: RunningProxy,
    /// Requests that each app has in hand.
    in_hand: Vec<Arc<AtomicUsize>>,
    go: Arc<Notify>,
    speaks: Speaks,
    _orders: Vec<RunningProxy>,
    _apps: Vec<App>,
    _authority: Authority,
}

impl Scene {
    async fn new(speaks: Speaks, apps: usize, policy: &str) -> Self {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let go = Arc::<Notify>::default();
        let (mut in_hand, mut orders, mut endpoints, mut all) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..apps {
            let count = Arc::<AtomicUsize>::default();
            let app = App::start({
                let (count, go) = (Arc::clone(&count), Arc::clone(&go));
                move |_| {
                    let (count, go) = (Arc::clone(&count), Arc::clone(&go));
                    async move {
                        count.fetch_add(1, SeqCst);
                        go.notified().await;
                        count.fetch_sub(1, SeqCst);
                        let mut response = status(200);
                        if speaks == Speaks::Grpc {
                            let headers = response.headers_mut();
                            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                            headers.insert("grpc-status", HeaderValue::from_static("0"));
                        }
                        response
                    }
                }
            });
            let app = app.await;
            let sidecar = Sidecar::new("orders").protects(app.address).start(&authority).await;
            endpoints.push((sidecar.inbound[0], Some(id("orders"))));
            in_hand.push(count);
            orders.push(sidecar);
            all.push(app);
        }
        let protocol = if speaks == Speaks::Http1 { "http1" } else { "http2" };
        let web = Sidecar::new("web").calls("orders", protocol, &endpoints, policy);
        // A limit is one of all workers together.
        let web = web.with("workers: 2").start(&authority).await;
        Self {
            web,
            in_hand,
            go,
            speaks,
            _orders: orders,
            _apps: all,
            _authority: authority,
        }
    }

    /// On a connection of its own.
    fn ask(&self) -> JoinHandle<Seen> {
        let (speaks, to) = (self.speaks, self.web.outbound[0]);
        tokio::spawn(async move { speaks.send(to, &[]).await })
    }

    fn in_hand(&self) -> Vec<usize> {
        self.in_hand.iter().map(|count| count.load(SeqCst)).collect()
    }

    async fn hold(&self, requests: usize) -> Vec<JoinHandle<Seen>> {
        let held = (0..requests).map(|_| self.ask()).collect();
        until("they are with the apps", async || {
            self.in_hand().iter().sum::<usize>() == requests
        })
        .await;
        held
    }

    /// All that are held are answered.
    async fn answer(&self, held: Vec<JoinHandle<Seen>>) {
        for request in held {
            until("it is answered", async || {
                self.go.notify_waiters();
                request.is_finished()
            })
            .await;
            assert_eq!(request.await.unwrap().status, 200);
        }
        assert_eq!(self.in_hand().iter().sum::<usize>(), 0);
    }

    fn refusals(&self, limit: &str) -> u64 {
        metric(
            &self.web,
            "outrigger_call_limit_refusals_total",
            &[&format!("limit=\"{limit}\"")],
        )
    }
}

/// It is answered at once that there is too much.
async fn is_refused(scene: &Scene, limit: &str, most: usize) {
    let before = scene.refusals(limit);
    let seen = scene.ask().await.unwrap();
    let said = format!("limits.{limit} is {most}");
    if scene.speaks == Speaks::Grpc {
        assert_eq!(
            (seen.status, &seen.headers["grpc-status"]),
            (200, &HeaderValue::from_static("14"))
        );
        assert_eq!(seen.headers["grpc-retry-pushback-ms"], "1000");
        let message = seen.headers["grpc-message"].to_str().unwrap();
        assert!(message.contains(&said) && message.contains("overloaded"), "{message}");
    } else {
        assert_eq!((seen.status, seen.error()), (503, Some("overloaded")));
        assert_eq!(seen.headers["retry-after"], "1");
        let body = String::from_utf8_lossy(&seen.body);
        assert!(body.contains(&said), "{body}");
    }
    assert_eq!(scene.refusals(limit), before + 1, "it is not tried again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_is_refused_at_once_and_the_rest_is_answered() {
    for speaks in Speaks::ALL {
        for (apps, policy, held, limit, most) in [
            (1, "{limits: {maxRequests: 3}}", 3, "maxRequests", 3),
            (2, "{limits: {maxRequests: 3}}", 3, "maxRequests", 3),
            (
                2,
                "{limits: {perEndpoint: {maxRequests: 2}}}",
                4,
                "perEndpoint.maxRequests",
                2,
            ),
            (
                1,
                "{limits: {perEndpoint: {maxRequests: 2}, maxRequests: 9}}",
                2,
                "perEndpoint.maxRequests",
                2,
            ),
        ] {
            let scene = Scene::new(speaks, apps, policy).await;
            // Twice, for what is answered has to be counted down.
            for _ in 0..2 {
                let requests = scene.hold(held).await;
                if limit.starts_with("perEndpoint") {
                    assert_eq!(scene.in_hand(), vec![most; apps], "{speaks:?} {policy}");
                }
                for _ in 0..5 {
                    is_refused(&scene, limit, most).await;
                }
                scene.answer(requests).await;
            }
            let ejected = metric(&scene.web, "outrigger_endpoint_ejections_total", &[]);
            assert_eq!(ejected, 0, "{speaks:?} {policy}: nobody is ejected for it");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_limit_nothing_is_refused() {
    for policy in [
        "{}",
        "{limits: {maxRequests: 0, maxConnections: 0, perEndpoint: {maxRequests: 0}}}",
    ] {
        let scene = Scene::new(Speaks::Http1, 1, policy).await;
        let held = scene.hold(20).await;
        scene.answer(held).await;
    }
}

/// Over HTTP/1 each request needs a connection of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_connection_waits_for_one_and_of_these_there_are_so_many() {
    for (policy, apps) in [
        ("{limits: {maxConnections: 2, maxPendingRequests: 3}}", 1),
        ("{limits: {maxConnections: 2, maxPendingRequests: 3}}", 3),
        ("{limits: {perEndpoint: {maxConnections: 2}, maxPendingRequests: 3}}", 1),
    ] {
        let scene = Scene::new(Speaks::Http1, apps, policy).await;
        let mut requests = scene.hold(1).await;
        requests.extend([scene.ask()]);
        until("both have one", async || scene.in_hand().iter().sum::<usize>() == 2).await;
        // Three of these wait. Which of them are refused is not theirs to say.
        let more: Vec<_> = (0..8).map(|_| scene.ask()).collect();
        until("five are refused", async || scene.refusals("maxPendingRequests") == 5).await;
        assert_eq!(scene.in_hand().iter().sum::<usize>(), 2, "{policy}");
        let (mut answered, mut refused) = (0, 0);
        for request in requests.into_iter().chain(more) {
            until("it is answered", async || {
                assert!(scene.in_hand().iter().sum::<usize>() <= 2, "{policy}");
                scene.go.notify_waiters();
                request.is_finished()
            })
            .await;
            let seen = request.await.unwrap();
            match seen.status {
                200 => answered += 1,
                _ => {
                    assert_eq!(seen.error(), Some("overloaded"));
                    refused += 1;
                }
            }
        }
        assert_eq!((answered, refused), (5, 5), "{policy}, {apps} apps");
    }
}

/// Over HTTP/2 requests share it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_http2_share_the_connections_that_there_may_be() {
    for speaks in [Speaks::Http2, Speaks::Grpc] {
        let scene = Scene::new(speaks, 1, "{limits: {maxConnections: 2}}").await;
        let held = scene.hold(20).await;
        let handshakes = metric(&scene.web, "outrigger_tls_handshakes_total", &["outbound"]);
        assert!(handshakes <= 2, "{handshakes}");
        scene.answer(held).await;
    }
}

/// Sidecars of apps that send back what comes, and where they are called.
async fn echoing(authority: &Authority, apps: usize) -> (Vec<RunningProxy>, Vec<(SocketAddr, Option<SpiffeId>)>) {
    let (mut orders, mut endpoints) = (Vec::new(), Vec::new());
    for _ in 0..apps {
        let sidecar = Sidecar::new("orders").protects(echo().await).start(authority).await;
        endpoints.push((sidecar.inbound[0], Some(id("orders"))));
        orders.push(sidecar);
    }
    (orders, endpoints)
}

/// One that carries bytes, or `None`: it was reset.
async fn connect(to: SocketAddr) -> Option<TcpStream> {
    talk(to, b"\0word", 5).await.ok().map(|(client, _)| client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_bytes_beyond_the_limit_are_reset() {
    for (policy, apps, most, limit) in [
        ("{limits: {maxConnections: 3}}", 1, 3, "maxConnections"),
        ("{limits: {maxConnections: 3}}", 2, 3, "maxConnections"),
        (
            "{limits: {perEndpoint: {maxConnections: 2}}}",
            2,
            4,
            "perEndpoint.maxConnections",
        ),
    ] {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let (_orders, endpoints) = echoing(&authority, apps).await;
        let web = Sidecar::new("web").calls("orders", "opaque", &endpoints, policy);
        let web = web.with("workers: 2").start(&authority).await;
        let refusals = || {
            let label = format!("limit=\"{limit}\"");
            metric(&web, "outrigger_call_limit_refusals_total", &[&label])
        };
        // Twice, for what is closed has to be counted down.
        for _ in 0..2 {
            let before = refusals();
            let mut open = Vec::new();
            for _ in 0..most {
                open.push(connect(web.outbound[0]).await.unwrap());
            }
            for _ in 0..3 {
                assert!(connect(web.outbound[0]).await.is_none(), "{policy}");
            }
            assert_eq!(refusals(), before + 3, "{policy}");
            drop(open);
            until("all are closed", async || {
                metric(&web, "outrigger_connections_open", &["outbound"]) == 0
            })
            .await;
        }
    }
}

/// A request that waits before it is sent again is in nobody's hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_has_room_while_a_request_waits_before_it_is_sent_again() {
    let authority = Authority::start(&["web", "orders"], DAY).await;
    let asked = Arc::<AtomicUsize>::default();
    let app = App::start({
        let asked = Arc::clone(&asked);
        move |_| {
            let first = asked.fetch_add(1, SeqCst) == 0;
            async move {
                let mut response = status(if first { 503 } else { 200 });
                if first {
                    response
                        .headers_mut()
                        .insert("retry-after", HeaderValue::from_static("1"));
                }
                response
            }
        }
    })
    .await;
    let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
    let endpoints = [(orders.inbound[0], Some(id("orders")))];
    let policy = "{limits: {perEndpoint: {maxRequests: 1}}}";
    let web = Sidecar::new("web")
        .calls("orders", "http1", &endpoints, policy)
        .start(&authority)
        .await;
    let to = web.outbound[0];
    let again = tokio::spawn(async move { Http::one().get(to, "/").await.status });
    // It waits for a second from now on. On a machine that stands still for so long this shows nothing.
    until("it has failed once", async || {
        metric(&web, "outrigger_upstream_attempts_total", &["outcome=\"failure\""]) == 1
    })
    .await;
    assert_eq!(Http::one().get(to, "/").await.status, 200);
    assert_eq!(again.await.unwrap(), 200);
}

/// HTTP and bytes go to one Service: what an idle connection has, a connection of bytes gets, to whichever endpoint it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_for_one_of_bytes() {
    for (limits, apps) in [
        ("{maxConnections: 1}", 1),
        ("{maxConnections: 1}", 2),
        ("{perEndpoint: {maxConnections: 1}}", 1),
        ("{perEndpoint: {maxConnections: 1}}", 2),
        ("{maxConnections: 2, perEndpoint: {maxConnections: 1}}", 2),
    ] {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let (_orders, endpoints) = echoing(&authority, apps).await;
        let most = if limits.contains("perEndpoint") { apps } else { 1 };
        let policy = format!("{{limits: {limits}, loadBalancer: {{type: RoundRobin}}}}");
        let web = Sidecar::new("web").calls("orders", "detect", &endpoints, &policy);
        let web = web.start(&authority).await;
        let to = web.outbound[0];
        let mut open = Vec::new();
        // What echoes a request is no server of HTTP, but the connection to its sidecar is kept, at each of them that may have one.
        for _ in 0..apps {
            assert_eq!(Http::one().get(to, "/").await.status, 502);
        }
        for _ in 0..most {
            open.push(
                connect(to)
                    .await
                    .unwrap_or_else(|| panic!("{limits}, {apps} apps: it is reset")),
            );
        }
        assert!(
            connect(to).await.is_none(),
            "{limits}, {apps} apps: and no more than that"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_counts_until_the_last_byte_of_its_response() {
    for policy in [
        "{limits: {maxRequests: 1}}",
        "{limits: {perEndpoint: {maxRequests: 1}}}",
    ] {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let go = Arc::<Notify>::default();
        let app = App::start({
            let go = Arc::clone(&go);
            move |_| {
                let go = Arc::clone(&go);
                let end = futures_util::stream::once(async move {
                    go.notified().await;
                    Ok(Frame::data(Bytes::from_static(b"end")))
                });
                async move { Response::new(StreamBody::new(end).boxed()) }
            }
        })
        .await;
        let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
        let endpoints = [(orders.inbound[0], Some(id("orders")))];
        let web = Sidecar::new("web").calls("orders", "http1", &endpoints, policy);
        let web = web.start(&authority).await;
        let to = web.outbound[0];
        let head = b"HTTP/1.1 200 OK\r\n";
        let (mut held, heard) = talk(to, b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n", head.len())
            .await
            .unwrap();
        assert_eq!(heard, head);
        assert_eq!(Http::one().get(to, "/").await.error(), Some("overloaded"), "{policy}");
        go.notify_one();
        let mut rest = Vec::new();
        while !rest.ends_with(b"end\r\n0\r\n\r\n") {
            assert!(held.read_buf(&mut rest).await.unwrap() > 0);
        }
        go.notify_one();
        assert_eq!(Http::one().get(to, "/").await.status, 200, "{policy}");
    }
}

/// Who waits for a connection that a limit does not let be made has not asked its endpoint: that does not count against it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_not_ejected_for_requests_that_a_limit_kept_from_it() {
    let authority = Authority::start(&["web", "orders"], DAY).await;
    // Its one connection has a response that does not end.
    let goes_on = App::start(|_| async {
        let end = futures_util::stream::pending::<Result<Frame<Bytes>, _>>();
        Response::new(StreamBody::new(end).boxed())
    })
    .await;
    let answers = App::start(|_| async { status(200) }).await;
    let (mut orders, mut endpoints) = (Vec::new(), Vec::new());
    for app in [&goes_on, &answers] {
        let sidecar = Sidecar::new("orders").protects(app.address).start(&authority).await;
        endpoints.push((sidecar.inbound[0], Some(id("orders"))));
        orders.push(sidecar);
    }
    // More than a second, after which silence counts.
    let policy = "{limits: {perEndpoint: {maxConnections: 1}}, loadBalancer: {type: RoundRobin}, ejection: {consecutiveFailures: 1}, \
                  retry: {attempts: 0}, timeouts: {responseHeaders: 1200ms}}";
    let web = Sidecar::new("web").calls("orders", "http1", &endpoints, policy);
    let web = web.start(&authority).await;
    let to = web.outbound[0];
    let ask = || tokio::spawn(async move { Http::one().get(to, "/").await.status });
    let held = [ask(), ask()];
    until("the other one has answered", async || {
        held.iter().any(JoinHandle::is_finished)
    })
    .await;
    let mut late = 0;
    for request in [(); 8].map(|()| ask()) {
        late += usize::from(request.await.unwrap() == 504);
    }
    assert!(late > 0, "none has waited");
    assert_eq!(metric(&web, "outrigger_endpoint_ejections_total", &[]), 0);
    assert!(held.iter().any(|held| !held.is_finished()));
}

/// What a request has become is asked of the backend until it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_a_request_counts_until_it_ends() {
    for limits in [
        "{maxRequests: 1}",
        "{perEndpoint: {maxRequests: 1}}",
        "{maxRequests: 1, perEndpoint: {maxRequests: 1}}",
    ] {
        for (asks, answers) in [
            (
                "GET / HTTP/1.1\r\nhost: orders\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            ),
            (
                "CONNECT orders:80 HTTP/1.1\r\nhost: orders:80\r\n\r\n",
                "HTTP/1.1 200 OK\r\n\r\n",
            ),
        ] {
            let authority = Authority::start(&["web", "orders"], DAY).await;
            let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let orders = Sidecar::new("orders").protects(app.local_addr().unwrap());
            let orders = orders.start(&authority).await;
            let policy = format!("{{limits: {limits}, retry: {{attempts: 0}}}}");
            let endpoints = [(orders.inbound[0], Some(id("orders")))];
            let web = Sidecar::new("web").calls("orders", "http1", &endpoints, &policy);
            let web = web.start(&authority).await;
            let to = web.outbound[0];
            let opens = tokio::spawn(async move { talk(to, asks.as_bytes(), 8).await });
            let mut server = head(&app).await;
            server.write_all(answers.as_bytes()).await.unwrap();
            let (client, _) = opens.await.unwrap().unwrap();
            assert_eq!(
                Http::one().get(to, "/").await.error(),
                Some("overloaded"),
                "{limits} {asks}"
            );
            drop((client, server));
            let served = tokio::spawn(async move {
                loop {
                    let mut server = head(&app).await;
                    let _ = server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
            until("it has ended", async || Http::one().get(to, "/").await.status == 200).await;
            served.abort();
        }
    }
}

/// The next connection, after the head of its first request.
async fn head(app: &TcpListener) -> TcpStream {
    let (mut server, _) = app.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(server.read_buf(&mut head).await.unwrap() > 0);
    }
    server
}
