//! More connections than a sidecar has memory for: it holds as many as its budget allows, and serves others meanwhile.

use std::collections::VecDeque;
use std::net::SocketAddr;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Mtls;
use outrigger_proxy_transport::room::Budget;
use outrigger_tests::mesh::{App, Authority, Http, Sidecar, id, metric, text};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsConnector;

use super::certificates::right;
use super::hostile::{client, hello};
use super::{authority, handshakes, raise_file_limit, soon, until};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n";
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Without optimisation, ten thousand of each take minutes.
const ATTACKS: usize = if cfg!(debug_assertions) { 1_000 } else { 10_000 };
/// Ends that an attacker keeps open: more than the whole budget.
const KEPT: usize = 300;
const BUDGET: Budget = Budget {
    connections: 64,
    head_bytes: 1 << 20,
    request_bytes: 1 << 20,
};

/// The addresses of loopback are as many clients.
async fn connect(from: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
    soon(socket.connect(to)).await.unwrap()
}

async fn orders(authority: &Authority, app: SocketAddr, mtls: Mtls, budget: Budget) -> RunningProxy {
    Sidecar::new("orders")
        .protects(app)
        .start_with(authority, |config| {
            config.mtls = mtls;
            config.budget = budget;
        })
        .await
}

fn open(proxy: &RunningProxy) -> u64 {
    metric(proxy, "outrigger_connections_open", &[])
}

/// Ten thousand connections that say `payload` and then nothing more. `others`: whether somebody else is served.
async fn attack(to: SocketAddr, payload: &[u8], proxy: &RunningProxy, mut others: impl AsyncFnMut()) {
    let mut kept = VecDeque::new();
    for i in 0..ATTACKS {
        let mut stream = connect(66, to).await;
        // One that has no place may be reset by now.
        let _ = soon(stream.write_all(payload)).await;
        kept.push_back(stream);
        if kept.len() > KEPT {
            kept.pop_front();
        }
        if i % (ATTACKS / 10) == ATTACKS / 10 - 1 {
            let open = open(proxy);
            assert!(open <= BUDGET.connections as u64, "{open} connections are open");
            others().await;
        }
    }
}

async fn ok() -> App {
    App::start(|_| async { Response::new(text("ok")) }).await
}

/// What anybody may send without an identity.
fn payloads() -> [(&'static str, Vec<u8>); 7] {
    let mut head = b"GET / HTTP/1.1\r\nhost: orders\r\nx: ".to_vec();
    head.resize(62_000, b'x');
    let hello = hello("outrigger/h1");
    [
        ("silence", Vec::new()),
        ("an unfinished head", head),
        ("an idle HTTP/1 connection", GET.to_vec()),
        ("an idle HTTP/2 connection", HTTP2.to_vec()),
        ("half a ClientHello", hello[..hello.len() / 2].to_vec()),
        ("half a handshake", hello),
        ("bytes of no protocol", b"\0hello".to_vec()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_are_held_to_the_budget_and_others_are_served() {
    raise_file_limit();
    let authority = authority().await;
    let app = ok().await;
    for mtls in [Mtls::Permissive, Mtls::Strict] {
        let orders = orders(&authority, app.address, mtls, BUDGET).await;
        let inbound = orders.inbound[0];
        let web = Sidecar::new("web")
            .calls("orders", "http1", &[(inbound, Some(id("orders")))], "{}")
            .start(&authority)
            .await;
        for (name, payload) in payloads() {
            println!("{mtls:?}: {name}");
            attack(inbound, &payload, &orders, async || {
                // A new connection of another pod, in mutual TLS or in plaintext, gets its answer.
                let mut other = connect(2, inbound).await;
                other.write_all(GET).await.unwrap();
                let mut answer = [0; 12];
                soon(other.read_exact(&mut answer)).await.unwrap();
                let status = if mtls == Mtls::Strict { "403" } else { "200" };
                assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {status}"), "{name}");
                assert_eq!(Http::one().get(web.outbound[0], "/").await.status, 200, "{name}");
            })
            .await;
            until("all are gone", async || open(&orders) <= 2).await;
        }
        assert!(metric(&orders, "outrigger_connections_shed_total", &[]) > 0);
        assert_eq!(
            metric(&orders, "outrigger_connections_limit", &[]),
            BUDGET.connections as u64
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_apps_own_connections_are_held_to_the_budget_too() {
    raise_file_limit();
    let authority = authority().await;
    let app = ok().await;
    let web = Sidecar::new("web")
        .calls("orders", "detect", &[(app.address, None)], "{}")
        .start_with(&authority, |config| config.budget = BUDGET)
        .await;
    let to = web.outbound[0];
    for (name, payload) in payloads() {
        println!("{name}");
        attack(to, &payload, &web, async || {
            let mut other = connect(2, to).await;
            other.write_all(GET).await.unwrap();
            let mut answer = [0; 15];
            soon(other.read_exact(&mut answer)).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK", "{name}");
        })
        .await;
        until("all are gone", async || open(&web) <= 2).await;
    }
}

/// Heads of which the end does not come: beyond the budget of bytes, a client hears at once that there is no room.
#[tokio::test]
async fn unfinished_heads_are_held_to_the_budget() {
    const HEAD: usize = 40_000;
    let authority = authority().await;
    let app = ok().await;
    let budget = Budget {
        connections: 1000,
        ..BUDGET
    };
    let orders = orders(&authority, app.address, Mtls::Permissive, budget).await;
    let inbound = orders.inbound[0];
    let mut head = b"GET / HTTP/1.1\r\nhost: orders\r\nx: ".to_vec();
    head.resize(HEAD, b'x');
    let mut attackers = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(66, inbound).await;
        stream.write_all(&head).await.unwrap();
        attackers.push(stream);
    }
    let refused = || metric(&orders, "outrigger_errors_total", &["overloaded"]);
    let most = budget.head_bytes * 3 / 4 / HEAD;
    until("those beyond the budget are refused", async || {
        refused() >= (100 - most) as u64
    })
    .await;
    // Another client's head that comes in two pieces has room.
    let mut other = connect(2, inbound).await;
    other.write_all(&head).await.unwrap();
    until("its first piece is there", async || open(&orders) > 0).await;
    other.write_all(b"\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    soon(other.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // What was held is free again.
    drop(attackers);
    until("all are gone", async || open(&orders) <= 1).await;
    let before = refused();
    let mut again = connect(66, inbound).await;
    again.write_all(&head).await.unwrap();
    again.write_all(b"\r\n\r\n").await.unwrap();
    soon(again.read_exact(&mut answer)).await.unwrap();
    assert_eq!((&answer, refused()), (b"HTTP/1.1 200 OK", before));
}

/// Requests that an app does not answer, because their bodies do not come for instance: whatever each takes, by large heads or by many streams,
/// those beyond the budget are refused, and others are served.
#[tokio::test]
async fn requests_that_wait_are_held_to_the_budget() {
    const CONNECTIONS: usize = 100;
    const STREAMS: u32 = 20;
    let authority = authority().await;
    let app = App::start(|request: Request<Incoming>| async move {
        if request.uri().path() == "/hangs" {
            std::future::pending::<()>().await;
        }
        Response::new(text("ok"))
    })
    .await;
    let budget = Budget {
        connections: 1000,
        ..BUDGET
    };
    let orders = orders(&authority, app.address, Mtls::Permissive, budget).await;
    let inbound = orders.inbound[0];
    let refused = || metric(&orders, "outrigger_errors_total", &["overloaded"]);
    let large = format!(
        "POST /hangs HTTP/1.1\r\nhost: orders\r\ncontent-length: 1\r\nx: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    // POST, "/hangs", http, "a".
    let block = b"\x83\x04\x06/hangs\x86\x41\x01a";
    let mut streams = HTTP2.to_vec();
    for n in 0..STREAMS {
        streams.extend_from_slice(&[0, 0, u8::try_from(block.len()).unwrap(), 1, 5]);
        streams.extend_from_slice(&(2 * n + 1).to_be_bytes());
        streams.extend_from_slice(block);
    }
    for (payload, requests, most) in [(large.into_bytes(), 1, 10), (streams, STREAMS as usize, 80)] {
        let before = refused();
        let mut attackers = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = connect(66, inbound).await;
            stream.write_all(&payload).await.unwrap();
            attackers.push(stream);
        }
        until("those beyond the budget are refused", async || {
            refused() - before >= (CONNECTIONS * requests - most) as u64
        })
        .await;
        let mut answer = [0; 15];
        let mut other = connect(2, inbound).await;
        other.write_all(GET).await.unwrap();
        soon(other.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        // What was held is free again.
        drop((attackers, other));
        until("all are gone", async || open(&orders) == 0).await;
        let mut again = connect(66, inbound).await;
        again.write_all(GET).await.unwrap();
        soon(again.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
    // Connections that have had their answers wait for nothing.
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        let (mut one, mut answer) = (connect(66, inbound).await, [0; 15]);
        one.write_all(GET).await.unwrap();
        soon(one.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK", "the connection {} is refused", idle.len());
        idle.push(one);
    }
}

/// A strict workload refuses plaintext before it keeps a head of it, of whichever size.
#[tokio::test]
async fn strict_refuses_before_it_keeps_a_head() {
    let authority = authority().await;
    let app = ok().await;
    let orders = orders(&authority, app.address, Mtls::Strict, BUDGET).await;
    for size in [100, 5_000, 62_000] {
        let mut head = b"GET / HTTP/1.1\r\nhost: orders\r\nx: ".to_vec();
        head.resize(size, b'x');
        let mut client = connect(66, orders.inbound[0]).await;
        client.write_all(&head).await.unwrap();
        let mut answer = String::new();
        // Within less time than an unfinished head has.
        soon(client.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{size}: {answer}");
        assert!(
            answer.contains("outrigger-error: plaintext-refused\r\n"),
            "{size}: {answer}"
        );
    }
    assert_eq!(metric(&orders, "outrigger_errors_total", &["head-timeout"]), 0);
}

/// An app that answers when it is let.
async fn waiting_app() -> (App, mpsc::UnboundedReceiver<()>, &'static Semaphore) {
    let (came, comes) = mpsc::unbounded_channel();
    let permits: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
    let app = App::start(move |_| {
        came.send(()).unwrap();
        async move {
            permits.acquire().await.unwrap().forget();
            Response::new(text("ok"))
        }
    })
    .await;
    (app, comes, permits)
}

#[tokio::test]
async fn where_all_are_busy_the_next_one_waits_for_an_end() {
    let authority = authority().await;
    let (app, mut comes, permits) = waiting_app().await;
    let budget = Budget {
        connections: 4,
        ..BUDGET
    };
    let orders = orders(&authority, app.address, Mtls::Permissive, budget).await;
    let mut busy = Vec::new();
    for from in 2..6 {
        let mut client = connect(from, orders.inbound[0]).await;
        client.write_all(GET).await.unwrap();
        soon(comes.recv()).await.unwrap();
        busy.push(client);
    }
    assert_eq!(open(&orders), 4);
    // The kernel has taken them; the sidecar has not.
    let mut waiting = Vec::new();
    for from in [2, 9, 9] {
        let mut client = connect(from, orders.inbound[0]).await;
        client.write_all(GET).await.unwrap();
        waiting.push(client);
    }
    // Each one that ends, whose connection is idle then, gives its place to one that waits.
    let mut answer = [0; 15];
    for served in 0..3 {
        assert!(comes.try_recv().is_err(), "{served}");
        assert_eq!(open(&orders), 4);
        permits.add_permits(1);
        soon(comes.recv()).await.unwrap();
    }
    permits.add_permits(4);
    let mut answered = 0;
    for client in busy.iter_mut().chain(&mut waiting) {
        soon(client.read_exact(&mut answer)).await.unwrap();
        answered += usize::from(&answer == b"HTTP/1.1 200 OK");
    }
    assert_eq!(answered, 7);
}

/// A tunnel is counted as long as it is there: HTTP has ended on its connection long before.
#[tokio::test]
async fn tunnels_keep_their_places() {
    let authority = authority().await;
    let app = App::start(|mut request: Request<hyper::body::Incoming>| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            // Until the client ends it.
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(text(""))
            .unwrap()
    })
    .await;
    let budget = Budget {
        connections: 4,
        ..BUDGET
    };
    let orders = orders(&authority, app.address, Mtls::Permissive, budget).await;
    let tunnel = async || {
        let mut client = connect(2, orders.inbound[0]).await;
        let ask = b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        client.write_all(ask).await.unwrap();
        client
    };
    let switched = async |client: &mut TcpStream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(client.read_u8()).await.unwrap());
        }
        for _ in 0..3 {
            client.write_all(b"echo").await.unwrap();
            let mut echo = [0; 4];
            soon(client.read_exact(&mut echo)).await.unwrap();
            assert_eq!(&echo, b"echo");
        }
    };
    let mut tunnels = Vec::new();
    for _ in 0..3 {
        let mut client = tunnel().await;
        switched(&mut client).await;
        tunnels.push(client);
    }
    assert_eq!(open(&orders), 3);
    // There is no fourth for this address, before one of its tunnels ends.
    let mut next = tunnel().await;
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), next.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
    drop(tunnels.pop());
    switched(&mut next).await;
    assert_eq!(open(&orders), 3);
}

/// An idle HTTP/2 connection is told before it is closed (RFC 9113 section 9.1).
#[tokio::test]
async fn an_idle_http2_connection_hears_goaway() {
    const GOAWAY: u8 = 7;
    let authority = authority().await;
    let app = ok().await;
    let budget = Budget {
        connections: 4,
        ..BUDGET
    };
    let orders = orders(&authority, app.address, Mtls::Permissive, budget).await;
    let mut oldest = connect(2, orders.inbound[0]).await;
    oldest.write_all(HTTP2).await.unwrap();
    let mut frames = vec![0; 9];
    soon(oldest.read_exact(&mut frames)).await.unwrap();
    let mut newer = Vec::new();
    for _ in 0..3 {
        let mut client = connect(2, orders.inbound[0]).await;
        client.write_all(GET).await.unwrap();
        soon(client.read_u8()).await.unwrap();
        newer.push(client);
    }
    soon(oldest.read_to_end(&mut frames)).await.unwrap();
    let mut rest = &frames[..];
    let mut kinds = Vec::new();
    while let [a, b, c, kind, _, _, _, _, _, payload @ ..] = rest {
        kinds.push(*kind);
        rest = &payload[u32::from_be_bytes([0, *a, *b, *c]) as usize..];
    }
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
}

/// A certificate chain of a reasonable size is taken, and one that is made to fill the memory is not kept.
#[tokio::test]
async fn a_handshake_that_is_too_long_is_refused() {
    let authority = authority().await;
    let app = ok().await;
    let orders = orders(&authority, app.address, Mtls::Permissive, BUDGET).await;
    for (copies, works) in [(8, true), (60, false)] {
        let (mut chain, key) = right(&authority, "web");
        let leaf = chain[0].clone();
        chain.extend(std::iter::repeat_n(leaf, copies));
        let config = client(Some((chain, key)), &["outrigger/h1"]);
        let stream = connect(66, orders.inbound[0]).await;
        let name = ServerName::try_from("orders.peer").unwrap();
        let mut tls = soon(TlsConnector::from(config).connect(name, stream)).await.unwrap();
        let _ = tls.write_all(GET).await;
        let answer = soon(tls.read_u8()).await;
        assert_eq!(answer.is_ok(), works, "{copies}: {answer:?}");
    }
    assert_eq!(handshakes(&orders, "inbound", "ok"), 1);
}
