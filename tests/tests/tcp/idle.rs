//! What a connection costs that does nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit};
use outrigger_tests::mesh::{Authority, Sidecar, id};
use outrigger_tests::program::Program;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::certificates::right;
use super::hostile::client;
use super::{authority, raise_file_limit, until};

/// KiB that one idle connection may cost: half as much again as was measured.
const OPAQUE_OUTBOUND: f64 = 17.0;
const OPAQUE_INBOUND: f64 = 23.0;
const HTTP1_PLAIN: f64 = 27.0;
const HTTP1_TLS: f64 = 60.0;

/// 10,000, or what the limit of open files lets a process hold that has `files` for each.
fn many(files: u64) -> usize {
    if cfg!(debug_assertions) {
        return 2_000; // the handshakes of 10,000 take minutes
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    usize::try_from(hard.saturating_sub(200) / files).unwrap().min(10_000)
}

/// An app on a thread that has its own table of files, so that its ends count for no one. Answers every read with
/// `answer`.
fn app_apart(answer: &'static [u8]) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FILES).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut said = [0; 512];
                    while let Ok(1..) = stream.read(&mut said).await {
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
    told.recv().unwrap()
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: orders\r\nuser-agent: idle\r\naccept: */*\r\n\r\n";

/// Connections that have each said and heard something, and are silent now. So many at once are made.
async fn idle<C: AsyncRead + AsyncWrite + Unpin>(
    count: usize,
    connect: impl AsyncFn() -> C,
    say: &[u8],
    hear: &[u8],
) -> Vec<C> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let some = join_all((0..50.min(count - all.len())).map(async |_| {
            let mut stream = connect().await;
            stream.write_all(say).await.unwrap();
            // TLS keeps what the system did not take at once.
            stream.flush().await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(hear) {
                assert_ne!(
                    stream.read_buf(&mut heard).await.unwrap(),
                    0,
                    "{}",
                    String::from_utf8_lossy(&heard)
                );
            }
            stream
        }))
        .await;
        all.extend(some);
    }
    all
}

/// What each of `connections` costs a process that had `before`.
fn report(what: &str, program: &Program, before: u64, connections: usize) -> f64 {
    let now = program.memory();
    let each = now.saturating_sub(before) as f64 / connections as f64;
    println!("{what}: {connections} idle connections, {before} KiB before, {now} KiB now: {each:.1} KiB each");
    each
}

async fn sidecars(authority: &Authority, app: SocketAddr, protocol: &str) -> (Program, Program) {
    let orders = Sidecar::new("orders").protects(app);
    let orders = Program::start("orders", orders, authority, None).await;
    let web = Sidecar::new("web").calls("orders", protocol, &[(orders.inbound[0], Some(id("orders")))], "{}");
    let web = Program::start("web", web, authority, None).await;
    (web, orders)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs 20,000 open files"]
async fn ten_thousand_opaque_connections() {
    let server = app_apart(b"pong");
    raise_file_limit();
    let authority = authority().await;
    let (web, orders) = sidecars(&authority, server, "opaque").await;
    let connect = async || TcpStream::connect(web.outbound[0]).await.unwrap();
    drop(idle(100, connect, b"\0ping", b"pong").await);
    until("the first are gone", async || orders.connections("inbound").await == 0).await;
    let before = (web.memory(), orders.memory());
    let count = many(2);
    let connections = idle(count, connect, b"\0ping", b"pong").await;
    assert_eq!(web.connections("outbound").await, count as u64);
    assert_eq!(orders.connections("inbound").await, count as u64);
    let outbound = report("opaque, outbound", &web, before.0, count);
    let inbound = report("opaque, inbound", &orders, before.1, count);
    assert!(outbound < OPAQUE_OUTBOUND && inbound < OPAQUE_INBOUND);
    drop(connections);
    until("all are gone", async || orders.connections("inbound").await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs 20,000 open files"]
async fn ten_thousand_http1_connections() {
    let server = app_apart(OK);
    raise_file_limit();
    let authority = authority().await;
    let (web, orders) = sidecars(&authority, server, "http1").await;
    // The app's own, in plaintext.
    let connect = async || TcpStream::connect(web.outbound[0]).await.unwrap();
    drop(idle(100, connect, GET, b"\r\n\r\nok").await);
    until("the first are gone", async || web.connections("outbound").await == 0).await;
    let (before, count) = (web.memory(), many(1));
    let connections = idle(count, connect, GET, b"\r\n\r\nok").await;
    assert_eq!(web.connections("outbound").await, count as u64);
    assert!(report("HTTP/1, plaintext", &web, before, count) < HTTP1_PLAIN);
    drop(connections);
    // Other sidecars', in mutual TLS.
    let config = client(Some(right(&authority, "web")), &["outrigger/h1"]);
    let name = ServerName::try_from("orders.peer").unwrap();
    let connect = async || {
        let stream = TcpStream::connect(orders.inbound[0]).await.unwrap();
        TlsConnector::from(Arc::clone(&config))
            .connect(name.clone(), stream)
            .await
            .unwrap()
    };
    drop(idle(100, connect, GET, b"\r\n\r\nok").await);
    let before = orders.memory();
    let connections = idle(count, connect, GET, b"\r\n\r\nok").await;
    assert!(orders.connections("inbound").await >= count as u64);
    assert!(report("HTTP/1, mutual TLS", &orders, before, count) < HTTP1_TLS);
    drop(connections);
}
