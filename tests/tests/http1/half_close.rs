//! Clients that end their half of the connection: behind their requests (`nc -N`, old `wget`s), they wait for the answer; later,
//! they have gone. The sidecar does not run while a client speaks and ends its half, so that both come at once.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_proxy::app::RunningProxy;
use outrigger_proxy_transport::body::LAST_CHANCE;
use outrigger_tests::mesh::{Authority, SOON, Sidecar, id};
use outrigger_tests::program::Program;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::wire::{WAYS, Way, Wire, without_ours};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An app, and the sidecar that the client talks to as a program.
struct Scene {
    app: TcpListener,
    program: Program,
    to: SocketAddr,
    _orders: Option<RunningProxy>,
    _authority: Authority,
}

impl Scene {
    async fn new(way: Way) -> Self {
        let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = app.local_addr().unwrap();
        let orders = Sidecar::new("orders").protects(address);
        let (orders, endpoint) = match way {
            Way::Inbound => {
                let program = Program::start("orders", orders, &authority, None).await;
                let to = program.inbound[0];
                return Self {
                    app,
                    program,
                    to,
                    _orders: None,
                    _authority: authority,
                };
            }
            Way::Outbound => (None, (address, None)),
            Way::Both => {
                let orders = orders.start(&authority).await;
                let endpoint = (orders.inbound[0], Some(id("orders")));
                (Some(orders), endpoint)
            }
        };
        let web = Sidecar::new("web").calls("orders", "http1", &[endpoint], "{retry: {attempts: 0}}");
        let program = Program::start("web", web, &authority, None).await;
        Self {
            app,
            to: program.outbound[0],
            program,
            _orders: orders,
            _authority: authority,
        }
    }

    async fn client(&self) -> Wire {
        Wire::new(TcpStream::connect(self.to).await.unwrap())
    }

    async fn app(&self) -> Wire {
        let accepted = tokio::time::timeout(SOON, self.app.accept()).await;
        Wire::new(accepted.expect("the app gets no connection").unwrap().0)
    }

    /// Says all that there is to say.
    async fn says(&self, client: &mut Wire, all: &str) {
        self.program
            .while_stopped(async {
                client.send(all).await;
                client.stream.shutdown().await.unwrap();
            })
            .await;
    }

    /// Gives what the client gets when it says `all`, and the app answers `requests` of it. A connection to the app is made
    /// first, and is taken from the pool after that.
    async fn is_answered(&self, app: &mut Option<Wire>, all: &str, requests: usize, context: &str) -> String {
        let mut client = self.client().await;
        self.says(&mut client, all).await;
        for _ in 0..requests {
            let wire = match app {
                Some(app) => app,
                None => app.insert(self.app().await),
            };
            let head = wire.head().await;
            if head.contains("Expect: ") {
                wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            }
            let body = wire.body(&head).await;
            assert!(
                head.starts_with("GET") || body.contains("hello"),
                "{context}: {head}{body}"
            );
            wire.send(OK).await;
        }
        client.end().await
    }
}

#[tokio::test]
async fn who_ends_its_half_behind_its_request_is_answered() {
    let chunks = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let body = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let awaited = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello";
    let close = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let large = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100005\r\n\r\nhello{}",
        "x".repeat(100_000)
    );
    let pipelined = [GET, body, chunks, GET].concat();
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut app = None;
        for (all, requests) in [
            (GET, 1),
            (GET, 1),
            (close, 1),
            ("GET / HTTP/1.0\r\n\r\n", 1),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 1),
            (body, 1),
            (chunks, 1),
            (awaited, 1),
            (upgrade, 1),
            (&large, 1),
            (&pipelined, 4),
        ] {
            let context = format!("{way:?}: {}", &all[..all.len().min(200)]);
            let answers = scene.is_answered(&mut app, all, requests, &context).await;
            let count = answers.matches(" 200 OK\r\n").count();
            assert_eq!(count, requests, "{context}: {answers:?}");
            assert!(answers.ends_with("ok"), "{context}: {answers:?}");
        }
    }
}

/// Its answer may take its time.
#[tokio::test]
async fn who_ends_its_half_behind_its_request_waits_for_a_slow_answer() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut app = None;
        scene.is_answered(&mut app, GET, 1, "a connection to the app").await;
        let mut app = app.unwrap();
        let mut client = scene.client().await;
        scene.says(&mut client, GET).await;
        assert_eq!(without_ours(&app.head().await), GET, "{way:?}");
        tokio::time::sleep(LAST_CHANCE * 2).await;
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.contains("connection: close\r\n"), "{way:?}: {head}");
        tokio::time::sleep(LAST_CHANCE * 2).await;
        app.send("ok").await;
        assert_eq!(client.end().await, "ok", "{way:?}");
    }
}

#[tokio::test]
async fn who_ends_its_half_later_has_gone() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send(GET).await;
        let mut app = scene.app().await;
        app.head().await;
        client.stream.shutdown().await.unwrap();
        assert_eq!(app.end().await, "", "{way:?}");
        assert_eq!(client.end().await, "", "{way:?}");
        // In the middle of a response, too.
        let mut client = scene.client().await;
        client.send(GET).await;
        let mut app = scene.app().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
        client.until(b"hello").await;
        // Nothing can be told from what comes in the same moment.
        tokio::time::sleep(outrigger_proxy_transport::body::SAME_MOMENT).await;
        client.stream.shutdown().await.unwrap();
        assert_eq!(app.end().await, "", "{way:?}");
        // And in the middle of a request.
        let mut client = scene.client().await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
            .await;
        let mut app = scene.app().await;
        app.until(b"hello").await;
        client.stream.shutdown().await.unwrap();
        assert_eq!(app.end().await, "", "{way:?}");
    }
}

/// The client has nothing to wait for but the answer, as long as its request was not passed on: here, the endpoint is slow in
/// its handshake.
#[tokio::test]
async fn before_the_request_was_passed_on_it_is_never_too_late() {
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let orders = Sidecar::new("orders").protects(app.local_addr().unwrap());
    let orders = orders.start(&authority).await;
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = (gate.local_addr().unwrap(), Some(id("orders")));
    let policy = "{retry: {attempts: 0}, timeouts: {connect: 10s}}";
    let web = Sidecar::new("web").calls("orders", "http1", &[endpoint], policy);
    let web = Program::start("web", web, &authority, None).await;

    let mut client = Wire::new(TcpStream::connect(web.outbound[0]).await.unwrap());
    client.send(GET).await;
    let (mut handshake, _) = gate.accept().await.unwrap();
    web.while_stopped(async { client.stream.shutdown().await.unwrap() })
        .await;
    let mut endpoint = TcpStream::connect(orders.inbound[0]).await.unwrap();
    tokio::spawn(async move { copy_bidirectional(&mut handshake, &mut endpoint).await });
    let mut app = Wire::new(app.accept().await.unwrap().0);
    assert_eq!(without_ours(&app.head().await), GET);
    app.send(OK).await;
    assert!(client.end().await.ends_with("ok"));
}
