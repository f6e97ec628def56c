//! Servers that want no good: whatever comes in place of a handshake, or behind it, the request is answered, and its bytes go to nobody who is not
//! believed.

use futures_util::{StreamExt, stream};

use super::*;

/// How often each of them.
const ROUNDS: usize = 20;
/// Requests at a time.
const AT_ONCE: usize = 16;

/// What a server says to a ClientHello, before it ends the connection.
fn in_place_of_a_handshake() -> Vec<(&'static str, Vec<u8>)> {
    let record = |kind: u8, payload: &[u8]| {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3], &length[..], payload].concat()
    };
    let (change_cipher, alert, handshake, data) = (20, 21, 22, 23);
    // Of the type Certificate (11), with 16 MiB to come.
    let large = [&[11, 0xff, 0xff, 0xff][..], &[0; 16_000]].concat();
    vec![
        ("nothing", Vec::new()),
        ("no TLS", vec![0; 1000]),
        ("HTTP", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("a fatal alert", record(alert, &[2, 40])),
        ("warnings for ever", record(alert, &[1, 90]).repeat(10_000)),
        ("a goodbye", record(alert, &[1, 0])),
        ("an alert that is none", record(alert, &[9, 9])),
        ("empty records for ever", record(handshake, &[]).repeat(10_000)),
        (
            "a record that is too long",
            [&[handshake, 3, 3, 0xff, 0xff][..], &[0; 70_000]].concat(),
        ),
        (
            "a message of 16 MiB",
            [record(handshake, &large), record(handshake, &[0; 16_000]).repeat(1_100)].concat(),
        ),
        ("a ServerHello that is none", record(handshake, &[2, 0, 0, 2, 3, 3])),
        ("its own ClientHello", record(handshake, &[1, 0, 0, 2, 3, 3])),
        (
            "a change of ciphers for ever",
            record(change_cipher, &[1]).repeat(10_000),
        ),
        (
            "data before the handshake",
            record(data, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ),
        ("a kind that is none", record(99, b"x")),
        ("SSL 2", b"\x80\x03\x04\x00\x02".to_vec()),
    ]
}

/// What a server that is believed says behind the handshake, with the protocol that it has chosen.
fn behind_a_handshake() -> Vec<(&'static str, Alpn, Vec<u8>)> {
    vec![
        ("nothing", &[H1], Vec::new()),
        ("no HTTP", &[H1], vec![0; 1000]),
        ("HTTP/2 in place of HTTP/1", &[H1], b"\0\0\0\x04\0\0\0\0\0".to_vec()),
        (
            "HTTP/1 in place of HTTP/2",
            &[H2],
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(),
        ),
        ("no HTTP/2", &[H2], vec![0xff; 1000]),
    ]
}

/// Answers all with the same, and writes down what it hears.
async fn raw(answer: Vec<u8>) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, all) = (listener.local_addr().unwrap(), Arc::clone(&heard));
    let answer = Bytes::from(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (all, answer) = (Arc::clone(&all), answer.clone());
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let hears = async {
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = read.read(&mut buffer).await {
                        all.lock().unwrap().extend_from_slice(&buffer[..length]);
                    }
                };
                let says = async {
                    let _ = write.write_all(&answer).await;
                    let _ = write.shutdown().await;
                };
                tokio::join!(hears, says);
            });
        }
    });
    (address, heard)
}

/// The same behind a handshake.
async fn shaken(ca: &Ca, alpn: Alpn, answer: Vec<u8>) -> SocketAddr {
    let kind = Kind {
        alpn,
        versions: Some(&TLS13),
        ..Kind::default()
    };
    let acceptor = acceptor(ca, kind);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}

/// Asks in each protocol, many times.
async fn ask_all(calls: &Calls) -> Vec<(Speaks, Seen)> {
    let all = (0..ROUNDS * EACH.len()).map(|n| EACH[n % EACH.len()]);
    stream::iter(all)
        .map(|speaks| async move { (speaks, speaks.ask(&speaks.client(), calls.to()).await) })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_server_hears_nothing_before_it_is_believed() {
    let ca = Ca::new();
    for (name, answer) in in_place_of_a_handshake() {
        let (address, heard) = raw(answer).await;
        let tls = Some(policy(&[&ca], &[]));
        let calls = Calls::start(target(address, proto::Protocol::Unspecified, tls.clone())).await;
        for (speaks, seen) in ask_all(&calls).await {
            assert!(
                speaks.is_refused(&seen),
                "{name}, {speaks:?}: {} {}",
                seen.status,
                says(&seen)
            );
        }
        let heard = heard.lock().unwrap().clone();
        assert!(!has_of_a_request(&heard), "{name}");
        // A server that is believed comes in its place.
        let good = server(
            &ca,
            Kind {
                alpn: &[H1],
                ..Kind::default()
            },
        )
        .await;
        calls.replace(target(good.address, proto::Protocol::Unspecified, tls));
        until("the good server answers", async || {
            Speaks::Http1.ask(&Http::one(), calls.to()).await.error().is_none()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_answer_behind_the_handshake_is_an_error() {
    let ca = Ca::new();
    for (name, alpn, answer) in behind_a_handshake() {
        let address = shaken(&ca, alpn, answer).await;
        let calls = Calls::start(target(address, proto::Protocol::Unspecified, Some(policy(&[&ca], &[])))).await;
        for (speaks, seen) in ask_all(&calls).await {
            assert!(
                seen.error().is_some(),
                "{name}, {speaks:?}: {} {}",
                seen.status,
                says(&seen)
            );
        }
    }
}
