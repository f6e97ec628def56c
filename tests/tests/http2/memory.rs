//! What clients without an identity can make a sidecar keep. Each sidecar is a process of its own, so that nothing else is measured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::Request;
use outrigger_tests::mesh::{Authority, Sidecar, id};
use outrigger_tests::program::Program;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::floods::{self, ENHANCE_YOUR_CALM, Others, get};
use super::raw::{self, CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, Raw, SETTINGS, frame};
use super::{H2App, answer, at_length, call, client, send, soon};

/// An outbound and an inbound sidecar before an app, as programs; and where a client calls each.
async fn sidecars(authority: &Authority, protocol: &str, app: SocketAddr) -> [(Program, SocketAddr); 2] {
    let web = Sidecar::new("web").calls("orders", protocol, &[(app, None)], "{}");
    let web = Program::start("web", web, authority, None).await;
    let orders = Sidecar::new("orders").protects(app);
    let orders = Program::start("orders", orders, authority, None).await;
    let (outbound, inbound) = (web.outbound[0], orders.inbound[0]);
    [(web, outbound), (orders, inbound)]
}

/// 1,000 streams on each of two connections, whose heads are few bytes of HPACK and 200 KiB of memory each: 400 MiB.
#[tokio::test]
async fn heads_that_wait_have_a_limit() {
    const STREAMS: u32 = 1000;
    // Beside what it keeps, what its allocator has of heads that were refused; on a busy machine more of them come at once.
    const MOST_KIB: u64 = 128 * 1024;
    let app = H2App::start(|request, mut respond| async move {
        if request.uri().path() == "/" {
            std::future::pending::<()>().await;
        }
        let _ = respond.send_response(http::Response::new(()), true);
    })
    .await;
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
    // "accept: ", out of the static table.
    let mut block = raw::request(false);
    block.resize(1700, 0x93);
    for (program, to) in sidecars(&authority, "http2", app.address).await {
        let before = program.memory();
        let mut attackers = Vec::new();
        for _ in 0..2 {
            let mut raw = Raw::connect(to, &[]).await;
            for n in 0..STREAMS {
                raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &block))
                    .await;
            }
            let refused = async { while raw.until(HEADERS).await.unwrap().stream != 2 * STREAMS - 1 {} };
            at_length(refused).await;
            attackers.push(raw);
        }
        let grown = program.memory().saturating_sub(before);
        assert!(grown < MOST_KIB, "{grown} KiB");
        // Others do not notice.
        let request = Request::get("http://orders/others").body(()).unwrap();
        let (response, _) = client(to).await.send_request(request, true).unwrap();
        assert_eq!(soon(response).await.unwrap().status(), 200);
    }
}

/// Bodies that may have to be sent again, of 64 KiB, and each byte comes by itself: if each is kept by itself, 10 MiB.
#[tokio::test]
async fn bodies_in_small_pieces_take_what_they_are() {
    const CONNECTIONS: usize = 4;
    const BYTES: usize = 64 * 1024;
    const MOST_KIB: u64 = 4 * 1024;
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = app.local_addr().unwrap();
    let came = Arc::new(AtomicUsize::new(0));
    tokio::spawn({
        let came = Arc::clone(&came);
        async move {
            while let Ok((mut stream, _)) = app.accept().await {
                let came = Arc::clone(&came);
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                        came.fetch_add(bytes[..n].iter().filter(|b| **b == b'#').count(), SeqCst);
                    }
                });
            }
        }
    });
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let request = head.to_owned() + &"1\r\n#\r\n".repeat(BYTES);
    for (program, to) in sidecars(&authority, "http1", address).await {
        let before = program.memory();
        came.store(0, SeqCst);
        let mut clients = Vec::new();
        for n in 1..=CONNECTIONS {
            let mut client = TcpStream::connect(to).await.unwrap();
            at_length(client.write_all(request.as_bytes())).await.unwrap();
            at_length(async {
                while came.load(SeqCst) < n * BYTES {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
            clients.push(client);
        }
        let grown = program.memory().saturating_sub(before);
        assert!(grown < MOST_KIB, "{grown} KiB");
    }
}

/// Streams whose responses have begun are not sent again, whatever becomes of them: 60 KiB of each of 200 would be 12 MiB.
#[tokio::test]
async fn bodies_are_not_kept_after_the_response_has_begun() {
    const STREAMS: usize = 200;
    const BYTES: usize = 60 * 1024;
    const MOST_KIB: u64 = 6 * 1024;
    let came = Arc::new(AtomicUsize::new(0));
    let app = H2App::start({
        let came = Arc::clone(&came);
        move |request, mut respond| {
            let came = Arc::clone(&came);
            async move {
                let _stream = respond.send_response(answer(), false).unwrap();
                let mut body = request.into_body();
                while let Some(Ok(bytes)) = body.data().await {
                    let _ = body.flow_control().release_capacity(bytes.len());
                    came.fetch_add(bytes.len(), SeqCst);
                }
            }
        }
    })
    .await;
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
    for (program, to) in sidecars(&authority, "http2", app.address).await {
        let mut client = client(to).await;
        let before = program.memory();
        came.store(0, SeqCst);
        let mut streams = Vec::new();
        for n in 1..=STREAMS {
            let (response, mut body) = client.send_request(call("/"), false).unwrap();
            let response = soon(response).await.unwrap();
            for _ in 0..4 {
                send(&mut body, vec![b'x'; BYTES / 4].into(), false).await.unwrap();
            }
            at_length(async {
                while came.load(SeqCst) < n * BYTES {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
            streams.push((response, body));
        }
        let grown = program.memory().saturating_sub(before);
        assert!(grown < MOST_KIB, "{grown} KiB");
    }
}

/// Runs an attack on the outbound and on the inbound listener of two sidecars, with others around. They grow by less than
/// `most` KiB together, while what `run` gives is held.
async fn attack<T, R: Future<Output = T>>(most: u64, run: impl Fn(SocketAddr) -> R) {
    let app = floods::app().await;
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
    let orders = Sidecar::new("orders").protects(app.address);
    let orders = Program::start("orders", orders, &authority, None).await;
    let web = Sidecar::new("web").calls("orders", "http2", &[(orders.inbound[0], Some(id("orders")))], "{}");
    let web = Program::start("web", web, &authority, None).await;
    let listeners = [web.outbound[0], orders.inbound[0]];
    for to in listeners {
        let before = web.memory() + orders.memory();
        let others = Others::start(listeners);
        let held = run(to).await;
        let grown = (web.memory() + orders.memory()).saturating_sub(before);
        println!("{grown} KiB");
        assert!(grown < most, "{grown} KiB");
        drop(held);
        others.are_well().await;
    }
}

#[tokio::test]
async fn heads_that_grow_when_they_are_decoded() {
    const MOST: u64 = 32 * 1024; // they would decode to 9 GB
    attack(MOST, |to| async move {
        let mut connections = Vec::new();
        for _ in 0..20 {
            let mut raw = Raw::connect(to, &[]).await;
            let mut block = raw::request(false);
            // A field of 4,000 bytes goes into the table (RFC 7541 section 6.2.1), and then 16,000 times out of it.
            block.extend_from_slice(&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
            block.extend_from_slice(&[b'v'; 4000]);
            block.resize(16_384, 0xbe);
            raw.send(&frame(HEADERS, END_STREAM, 1, &block)).await;
            for _ in 0..7 {
                // It may be closed already.
                let _ = raw.write.write_all(&frame(CONTINUATION, 0, 1, &[0xbe; 16_384])).await;
            }
            connections.push(raw);
        }
        for raw in &mut connections {
            let goaway = raw.until(GOAWAY).await.unwrap();
            assert_eq!(goaway.number(4), ENHANCE_YOUR_CALM);
        }
        connections
    })
    .await;
}

#[tokio::test]
async fn control_frames_whose_answers_nobody_reads() {
    const MOST: u64 = 32 * 1024;
    attack(MOST, |to| async move {
        let mut connections = Vec::new();
        for flood in [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[1; 8])] {
            let mut raw = Raw::connect(to, &[]).await;
            let flood = flood.repeat(10_000);
            // Each has to be acknowledged, so the sidecar stops reading when it cannot write: what it has read is bounded by
            // the sockets' buffers, and the flood does not get through.
            let mut taken = 0;
            let stuck = async {
                while taken < 2_000 {
                    if raw.write.write_all(&flood).await.is_err() {
                        return;
                    }
                    taken += 1;
                }
            };
            let stuck = tokio::time::timeout(Duration::from_secs(3), stuck).await;
            assert!(stuck.is_err() || taken < 2_000, "all of it was taken");
            connections.push(raw);
        }
        connections
    })
    .await;
}

#[tokio::test]
async fn windows_that_never_open() {
    const MOST: u64 = 32 * 1024; // of 400 MB that nobody reads
    attack(MOST, |to| async move {
        // INITIAL_WINDOW_SIZE is 0: of 400 responses of a megabyte nothing can be sent.
        let mut raw = Raw::connect(to, &[0, 4, 0, 0, 0, 0]).await;
        for n in 0..400 {
            raw.send(&get(2 * n + 1)).await;
        }
        let mut heads = 0;
        while heads < 32 {
            raw.until(HEADERS).await.unwrap();
            heads += 1;
        }
        raw
    })
    .await;
}
