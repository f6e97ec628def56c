//! Several requests on a connection, and what the two ends say to one another about it.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use outrigger_tests::mesh::{App, Authority, Body, Http, Sidecar, id, metric, text};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

use super::wire::{Scene, WAYS, Way, Wire, without_ours};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn connections_are_kept() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send(GET).await;
        let mut app = scene.app().await;
        for _ in 0..3 {
            assert_eq!(without_ours(&app.head().await), GET, "{way:?}");
            app.send(OK).await;
            assert_eq!(client.exactly(OK.len()).await, OK, "{way:?}");
            // An empty line before a request is of old clients, which sent one after a body (RFC 9112 section 2.2).
            client.send(format!("\r\n{GET}")).await;
        }
        // The app's "close" is of its own connection; the client's stays.
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            .await;
        drop(app);
        assert_eq!(client.exactly(OK.len()).await, OK, "{way:?}");
        client.send(GET).await;
        let mut app = scene.app().await;
        app.head().await;
        app.send(OK).await;
        assert_eq!(client.exactly(OK.len()).await, OK, "{way:?}");
        // And the client's "close" is of its.
        client
            .send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await;
        assert_eq!(without_ours(&app.head().await), GET, "{way:?}");
        app.send(OK).await;
        let last = client.end().await;
        assert!(
            last.contains("connection: close\r\n") && last.ends_with("ok"),
            "{way:?}: {last}"
        );
        let mut client = scene.client().await;
        client.send(GET).await;
        assert_eq!(without_ours(&app.head().await), GET, "{way:?}");
    }
}

/// The rest of a body that nobody reads is no next request, so the connection ends; a client that is not told loses its next
/// request.
#[tokio::test]
async fn an_error_before_the_body_was_read_ends_the_connection_and_says_so() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nhello")
            .await;
        let mut app = scene.app().await;
        app.head().await;
        drop(app);
        let answer = client.end().await;
        assert!(answer.contains("outrigger-error: "), "{way:?}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{way:?}: {answer}");
    }
}

/// So it is with an app that does not look at the body; and the client has its answer, although it goes on sending.
#[tokio::test]
async fn an_answer_before_the_end_of_the_body_ends_the_connection_and_says_so() {
    const NO: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno";
    let rest = "x".repeat(300_000);
    for way in WAYS {
        for (framing, begin, end) in [
            ("Content-Length: 300005", "hello", ""),
            ("Transfer-Encoding: chunked", "493e5\r\nhello", "\r\n0\r\n\r\n"),
        ] {
            let scene = Scene::new(way).await;
            let mut client = scene.client().await;
            client
                .send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{begin}"))
                .await;
            let mut app = scene.app().await;
            app.until(b"hello").await;
            app.send(NO).await;
            client.stream.readable().await.unwrap();
            drop(app);
            for part in rest.as_bytes().chunks(10_000) {
                client.send(part).await;
            }
            client.send(end).await;
            let answer = client.end().await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{way:?}, {framing}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{way:?}, {framing}: {answer}");
            assert!(answer.ends_with("no"), "{way:?}, {framing}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_body_that_was_read_keeps_the_connection() {
    for way in WAYS {
        for body in [
            "Content-Length: 5\r\n\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        ] {
            let scene = Scene::new(way).await;
            let mut client = scene.client().await;
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}")).await;
            let mut app = scene.app().await;
            for _ in 0..2 {
                let head = app.head().await;
                app.body(&head).await;
                app.send(OK).await;
                assert_eq!(client.exactly(OK.len()).await, OK, "{way:?}");
                client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}")).await;
            }
        }
    }
}

#[tokio::test]
async fn clients_of_http_1_0() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
        let mut app = scene.app().await;
        assert_eq!(without_ours(&app.head().await), GET, "{way:?}");
        // What it does not understand is translated: the end of the connection is the end of the body.
        app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .await;
        assert_eq!(client.end().await, "HTTP/1.0 200 OK\r\n\r\nok", "{way:?}");

        // One that keeps its connection.
        let keep = "GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n";
        let mut client = scene.client().await;
        for _ in 0..2 {
            client.send(keep).await;
            assert_eq!(without_ours(&app.head().await), GET, "{way:?}");
            app.send(OK).await;
            let head = client.head().await;
            assert_eq!(
                head, "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nconnection: keep-alive\r\n\r\n",
                "{way:?}"
            );
            assert_eq!(client.exactly(2).await, "ok");
        }

        // Without a host, which HTTP/1.1 has to have.
        let mut client = scene.client().await;
        client.send("POST /x HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi").await;
        let seen = without_ours(&app.head().await);
        let host = seen
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .unwrap_or_else(|| panic!("{way:?}: {seen}"));
        assert!(host.parse::<std::net::SocketAddr>().is_ok(), "{way:?}: {seen}");
        assert_eq!(app.exactly(2).await, "hi");
        app.send(OK).await;
        assert_eq!(
            client.end().await,
            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn apps_of_http_1_0() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        for _ in 0..2 {
            client.send(GET).await;
            let mut app = scene.app().await;
            app.head().await;
            app.send("HTTP/1.0 200 OK\r\nServer: old\r\n\r\nok").await;
            drop(app);
            let head = client.head().await;
            assert_eq!(
                head, "HTTP/1.1 200 OK\r\nServer: old\r\ntransfer-encoding: chunked\r\n\r\n",
                "{way:?}"
            );
            assert_eq!(client.until(b"0\r\n\r\n").await, "2\r\nok\r\n0\r\n\r\n");
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        let requests: String = (0..5)
            .map(|n| match n % 2 {
                0 => format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
                _ => {
                    format!("POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{n}\r\n0\r\n\r\n")
                }
            })
            .collect();
        client.send(&requests).await;
        let mut app = scene.app().await;
        let mut seen = String::new();
        for n in 0..5 {
            let head = without_ours(&app.head().await);
            let body = app.body(&head).await;
            app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}"))
                .await;
            seen = seen + &head + &body;
        }
        assert_eq!(seen, requests, "{way:?}");
        for n in 0..5 {
            client.head().await;
            assert_eq!(client.exactly(1).await, n.to_string(), "{way:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_breaks_off_ends_the_request_at_the_app() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhello")
            .await;
        let mut app = scene.app().await;
        app.head().await;
        assert_eq!(app.exactly(5).await, "hello");
        drop(client);
        assert_eq!(app.end().await, "", "{way:?}");
        // And while it waits for the answer.
        let mut client = scene.client().await;
        client.send(GET).await;
        let mut app = scene.app().await;
        app.head().await;
        drop(client);
        assert_eq!(app.end().await, "", "{way:?}");
    }
}

#[tokio::test]
async fn an_app_that_breaks_off_is_seen_as_that() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        for head in [
            "Content-Length: 100\r\n\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            let mut client = scene.client().await;
            client.send(GET).await;
            let mut app = scene.app().await;
            app.head().await;
            let cut = format!("HTTP/1.1 200 OK\r\n{head}");
            app.send(&cut).await;
            assert_eq!(client.exactly(cut.len()).await, cut, "{way:?}");
            drop(app);
            // Without the end that the head has promised.
            assert_eq!(client.end().await, "", "{way:?}: {head:?}");
        }
    }
}

const EXPECTS: &str = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

/// A connection of a client and one of the app that have carried a request, so that the next one has no handshake to wait
/// for: a sidecar's patience is a second.
async fn warm(scene: &Scene) -> (Wire, Wire) {
    let mut client = scene.client().await;
    client.send(GET).await;
    let mut app = scene.app().await;
    app.head().await;
    app.send(OK).await;
    client.exactly(OK.len()).await;
    (client, app)
}

#[tokio::test]
async fn the_app_says_when_to_continue() {
    for way in WAYS {
        // A body that is kept for a retry waits as well.
        for policy in ["{retry: {attempts: 0}}", "{}"] {
            let scene = Scene::with(way, "http1", policy).await;
            let (mut client, mut app) = warm(&scene).await;
            client.send(EXPECTS).await;
            assert_eq!(without_ours(&app.head().await), EXPECTS, "{way:?}");
            assert!(
                client.is_silent().await,
                "{way:?}: told to continue before the app said it"
            );
            // Other informational answers are not the one that it waits for.
            app.send("HTTP/1.1 102 Processing\r\n\r\n").await;
            app.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n", "{way:?}");
            client.send("body").await;
            assert_eq!(app.exactly(4).await, "body");
            app.send(OK).await;
            assert_eq!(client.exactly(OK.len()).await, OK, "{way:?}");
            // The connection goes on.
            client.send(GET).await;
            assert_eq!(without_ours(&app.head().await), GET, "{way:?}");
        }
    }
}

#[tokio::test]
async fn the_app_refuses_before_the_body_is_sent() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let (mut client, mut app) = warm(&scene).await;
        client.send(EXPECTS).await;
        app.head().await;
        let no = "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno";
        app.send(no).await;
        // No 100 before it, and the end after it: the next bytes could be the body or a request.
        let answer = client.end().await;
        assert!(
            answer.starts_with("HTTP/1.1 417 Expectation Failed\r\n"),
            "{way:?}: {answer:?}"
        );
        assert!(answer.ends_with("no"), "{way:?}: {answer:?}");
        // Nothing of a body came, and the connection is not used again.
        assert_eq!(app.end().await, "", "{way:?}");
    }
}

#[tokio::test]
async fn an_app_that_knows_nothing_of_it_gets_the_body_a_little_later() {
    for way in WAYS {
        let scene = Scene::new(way).await;
        let mut client = scene.client().await;
        client.send(EXPECTS).await;
        let mut app = scene.app().await;
        app.head().await;
        // The sidecars wait a second each, then ask for the body themselves.
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n", "{way:?}");
        client.send("body").await;
        assert_eq!(app.exactly(4).await, "body");
        app.send(OK).await;
        assert_eq!(client.exactly(OK.len()).await, OK, "{way:?}");
    }
}

#[tokio::test]
async fn early_hints_are_lost() {
    let scene = Scene::new(Way::Both).await;
    let mut client = scene.client().await;
    client.send(GET).await;
    let mut app = scene.app().await;
    app.head().await;
    app.send(format!("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n{OK}"))
        .await;
    assert_eq!(
        client.exactly(OK.len()).await,
        OK,
        "hyper passes them on now: say so in docs/limits.md"
    );
}

/// A client may open connections for later. Until it speaks on one, nobody knows that it is of HTTP; and when the endpoint goes
/// that would have been asked first, nothing is lost.
#[tokio::test]
async fn connections_for_later() {
    for (protocol, looked_at) in [("http1", 0), ("detect", 1)] {
        for way in [Way::Both, Way::Outbound] {
            let scene = Scene::with(way, protocol, "{retry: {attempts: 0}}").await;
            let mut client = scene.client().await;
            let web = scene.sidecars.last().unwrap();
            let timeouts = || metric(web, "outrigger_detect_timeouts_total", &[]);
            let _silent = if looked_at > 0 {
                // Silence is of a server that speaks first, perhaps: so there is one. It goes, and another comes.
                drop(scene.app().await);
                Some(scene.app().await)
            } else {
                // Longer than what is not known to be HTTP is waited for.
                tokio::time::sleep(Duration::from_millis(1200)).await;
                assert!(!scene.is_called().await);
                None
            };
            client.send(GET).await;
            let mut app = scene.app().await;
            assert_eq!(without_ours(&app.head().await), GET, "{protocol}, {way:?}");
            app.send(OK).await;
            assert_eq!(client.exactly(OK.len()).await, OK, "{protocol}, {way:?}");
            assert_eq!(timeouts(), looked_at, "{protocol}, {way:?}");
        }
    }
}

/// The endpoint that may greet an app that is silent is not there yet when the app speaks after all.
#[tokio::test]
async fn connections_for_later_are_told_what_is_wrong_with_the_endpoint() {
    let authority = Authority::start(&["web"], Duration::from_secs(3600)).await;
    // The system takes the connection; nobody answers the handshake.
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = endpoint.local_addr().unwrap();
    let policy = "{retry: {attempts: 0}, timeouts: {connect: 2s}}";
    let web = Sidecar::new("web").calls("orders", "detect", &[(address, Some(id("orders")))], policy);
    let web = web.start(&authority).await;
    let mut client = Wire::new(TcpStream::connect(web.outbound[0]).await.unwrap());
    let _silent = endpoint.accept().await.unwrap();
    client.send(GET).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    assert!(head.contains("outrigger-error: connect-timeout"), "{head}");
}

/// Sends `n` requests at once, and counts the handshakes that they took.
async fn burst<R>(n: usize, answer: impl Fn(Request<Incoming>) -> R + Send + Sync + 'static) -> u64
where
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(86_400)).await;
    let app = App::start(answer).await;
    let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
    let endpoint = (orders.inbound[0], Some(id("orders")));
    let web = Sidecar::new("web")
        .calls("orders", "detect", &[endpoint], "{}")
        .start(&authority)
        .await;
    let to = web.outbound[0];
    let requests = (0..n).map(|_| tokio::spawn(async move { Http::one().get(to, "/").await.status }));
    for request in requests.collect::<Vec<_>>() {
        assert_eq!(request.await.unwrap(), 200);
    }
    metric(&web, "outrigger_tls_handshakes_total", &["outbound", "\"ok\""])
}

/// Each is answered when all have come.
#[tokio::test]
async fn a_burst_of_requests_that_take_long_has_all_the_connections_that_it_needs() {
    let all = Arc::new(Barrier::new(100));
    let answer = move |_| {
        let all = Arc::clone(&all);
        async move {
            all.wait().await;
            Response::new(text("ok"))
        }
    };
    assert_eq!(burst(100, answer).await, 100);
}
