//! A request of which nothing was sent is sent again whole, whatever its body is: over a connection that its other end had
//! closed, and to an endpoint that does not take connections.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{Authority, Sidecar, metric};
use outrigger_tests::program::Program;
use tokio::net::{TcpListener, TcpStream};

use super::wire::{Wire, without_ours};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Of a body that is sent again after it has been sent.
const REPLAYED: usize = 64 * 1024;

/// A request.
struct Kind {
    name: &'static str,
    head: String,
    body: String,
    /// The client sends the body when it was told to.
    waits: bool,
}

fn kinds() -> Vec<Kind> {
    let large = "x".repeat(REPLAYED + 10_000);
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let kind = |name, line: &str, headers: &str, body: String| Kind {
        name,
        head: format!("{line} / HTTP/1.1\r\nHost: a\r\n{headers}\r\n"),
        body,
        waits: headers.contains("Expect"),
    };
    let length = |body: &str| format!("Content-Length: {}\r\n", body.len());
    let (coded, expect) = ("Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n");
    vec![
        kind("none", "GET", "", String::new()),
        kind("empty", "POST", "Content-Length: 0\r\n", String::new()),
        kind("small", "POST", &length("small"), "small".into()),
        kind("small, in chunks", "POST", coded, chunked("small")),
        kind("large", "POST", &length(&large), large.clone()),
        kind("large, in chunks", "POST", coded, chunked(&large)),
        kind(
            "small, awaited",
            "POST",
            &(expect.to_owned() + &length("small")),
            "small".into(),
        ),
        kind(
            "chunks, awaited",
            "POST",
            &(expect.to_owned() + coded),
            chunked("small"),
        ),
        kind(
            "large, awaited",
            "POST",
            &(expect.to_owned() + &length(&large)),
            large.clone(),
        ),
        kind(
            "large chunks, awaited",
            "PUT",
            &(expect.to_owned() + coded),
            chunked(&large),
        ),
        kind(
            "upgrade",
            "GET",
            "Connection: upgrade\r\nUpgrade: websocket\r\n",
            String::new(),
        ),
    ]
}

impl Kind {
    /// The client's part up to where it waits.
    async fn begin(&self, client: &mut Wire) {
        client.send(&self.head).await;
        if !self.waits {
            client.send(&self.body).await;
        }
    }

    /// The rest of it, on the app's new connection: everything comes, and the client has its answer.
    async fn end(&self, client: &mut Wire, app: &mut Wire, context: &str) {
        let head = app.head().await;
        assert_eq!(lines(&without_ours(&head)), lines(&self.head), "{context}");
        if self.waits {
            app.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n", "{context}");
            client.send(&self.body).await;
        }
        let body = app.body(&head).await;
        // Chunks may be cut anew.
        let content = |body: &str| body.matches(['x', 's']).count();
        assert_eq!(content(&body), content(&self.body), "{context}");
        app.send(OK).await;
        let answer = client.head().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{context}: {answer}");
        assert_eq!(client.body(&answer).await, "ok", "{context}");
    }
}

/// The order among different names may change.
fn lines(head: &str) -> Vec<String> {
    let mut lines: Vec<String> = head.lines().map(str::to_ascii_lowercase).collect();
    lines.sort_unstable();
    lines
}

async fn accept(app: &TcpListener) -> Wire {
    let accepted = tokio::time::timeout(outrigger_tests::mesh::SOON, app.accept()).await;
    Wire::new(accepted.expect("the app gets no connection").unwrap().0)
}

/// A request comes to the sidecar together with the end of the connection that it is about to take.
async fn over_a_stale_connection(program: &Program, to: SocketAddr, app: &TcpListener, context: &str) {
    for kind in kinds() {
        let context = format!("{context}, {}", kind.name);
        let mut client = Wire::new(TcpStream::connect(to).await.unwrap());
        client.send(GET).await;
        let mut stale = accept(app).await;
        stale.head().await;
        stale.send(OK).await;
        client.exactly(OK.len()).await;
        program
            .while_stopped(async {
                kind.begin(&mut client).await;
                drop(stale);
            })
            .await;
        let mut app = accept(app).await;
        kind.end(&mut client, &mut app, &context).await;
    }
}

#[tokio::test]
async fn over_a_stale_connection_it_is_sent_again_whole() {
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = app.local_addr().unwrap();
    for policy in ["{retry: {attempts: 0}}", "{}"] {
        let web = Sidecar::new("web").calls("orders", "http1", &[(address, None)], policy);
        let web = Program::start("web", web, &authority, None).await;
        over_a_stale_connection(&web, web.outbound[0], &app, policy).await;
    }
    let orders = Sidecar::new("orders").protects(address);
    let orders = Program::start("orders", orders, &authority, None).await;
    over_a_stale_connection(&orders, orders.inbound[0], &app, "inbound").await;
}

fn retries(web: &RunningProxy) -> u64 {
    metric(web, "outrigger_retries_total", &[])
}

#[tokio::test]
async fn after_an_endpoint_that_takes_no_connection_it_goes_whole_to_another() {
    let authority = Authority::start(&["web"], Duration::from_secs(3600)).await;
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [(app.local_addr().unwrap(), None), (gone.local_addr().unwrap(), None)];
    drop(gone);
    for kind in kinds() {
        // Which endpoint is asked first is a matter of chance; one that was not there is asked again much later.
        loop {
            let web = Sidecar::new("web").calls("orders", "http1", &endpoints, "{}");
            let web = web.start(&authority).await;
            let mut client = Wire::new(TcpStream::connect(web.outbound[0]).await.unwrap());
            kind.begin(&mut client).await;
            let mut app = accept(&app).await;
            kind.end(&mut client, &mut app, kind.name).await;
            if retries(&web) > 0 {
                break;
            }
        }
    }
}
