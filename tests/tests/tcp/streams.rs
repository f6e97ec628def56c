//! Ends, resets, and bytes both ways at once.

use std::io::ErrorKind;

use outrigger_proxy::config::Mtls;
use outrigger_tests::mesh::{Sidecar, metric};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::{SOON, app, authority, handshakes, pair, soon};

/// More than all buffers on the way hold together.
const MUCH: usize = 32 * 1024 * 1024;

/// Both kinds of ports: a told one, and one whose first bytes are looked at.
const KINDS: [&str; 2] = ["opaque", "detect"];

/// The same bytes for the same seed.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    // What is looked at is told apart as nothing known.
    bytes[0] = 0;
    bytes
}

/// Sends and receives much at once, and says its end when it has heard all: neither way may wait for the end of the other.
async fn exchange(stream: TcpStream, said: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = split(stream);
    let mut heard = vec![0; MUCH];
    tokio::try_join!(writer.write_all(said), reader.read_exact(&mut heard)).unwrap();
    writer.shutdown().await.unwrap();
    reader.read_to_end(&mut heard).await.unwrap();
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_both_ways_at_once_is_the_same_at_the_other_end() {
    let authority = authority().await;
    let (told, mut arrived) = mpsc::unbounded_channel();
    let server = app(move |stream| {
        let told = told.clone();
        async move { told.send(exchange(stream, &bytes(2, MUCH)).await).unwrap() }
    })
    .await;
    for protocol in KINDS {
        let mesh = pair(&authority, server, protocol, Mtls::Strict).await;
        let client = TcpStream::connect(mesh.to).await.unwrap();
        let all = soon(exchange(client, &bytes(1, MUCH))).await;
        assert!(all == bytes(2, MUCH), "{protocol}: what the app sent");
        assert!(
            soon(arrived.recv()).await.unwrap() == bytes(1, MUCH),
            "{protocol}: what the client sent"
        );
        assert_eq!(handshakes(&mesh.orders, "inbound", "ok"), 1);
        let port = format!("server_port=\"{}\"", server.port());
        for (sidecar, of) in [(&mesh.web, "service=\"shop/orders\""), (&mesh.orders, &port)] {
            for what in ["sent", "received"] {
                let counted = metric(sidecar, &format!("outrigger_tcp_{what}_bytes_total"), &[of]);
                assert_eq!(counted, MUCH as u64, "{protocol}: {what}, {of}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_said_all_still_hears_all() {
    let authority = authority().await;
    let server = app(async |mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"\0all of it?");
        stream.write_all(&bytes(3, MUCH)).await.unwrap();
    })
    .await;
    for protocol in KINDS {
        let mesh = pair(&authority, server, protocol, Mtls::Strict).await;
        let mut client = TcpStream::connect(mesh.to).await.unwrap();
        client.write_all(b"\0all of it?").await.unwrap();
        client.shutdown().await.unwrap();
        let mut all = Vec::new();
        soon(client.read_to_end(&mut all)).await.unwrap();
        assert!(all == bytes(3, MUCH), "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_said_all_still_hears_all() {
    let authority = authority().await;
    let (told, mut arrived) = mpsc::unbounded_channel();
    let server = app(move |mut stream| {
        let told = told.clone();
        async move {
            stream.read_u8().await.unwrap();
            stream.write_all(b"go on").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            told.send(all).unwrap();
        }
    })
    .await;
    for protocol in KINDS {
        let mesh = pair(&authority, server, protocol, Mtls::Strict).await;
        let mut client = TcpStream::connect(mesh.to).await.unwrap();
        client.write_all(b"\0").await.unwrap();
        let mut heard = String::new();
        soon(client.read_to_string(&mut heard)).await.unwrap();
        assert_eq!(heard, "go on");
        client.write_all(&bytes(4, MUCH)).await.unwrap();
        client.shutdown().await.unwrap();
        assert!(soon(arrived.recv()).await.unwrap() == bytes(4, MUCH), "{protocol}");
    }
}

/// A reset is no end: who sees an end takes the stream for complete.
#[tokio::test]
async fn a_reset_stays_a_reset() {
    let authority = authority().await;
    let (told, mut ended) = mpsc::unbounded_channel();
    let server = app(move |mut stream| {
        let told = told.clone();
        async move {
            let mut word = [0; 5];
            stream.read_exact(&mut word).await.unwrap();
            if &word == b"\0you!" {
                stream.set_zero_linger().unwrap();
                return;
            }
            stream.write_all(b"!").await.unwrap();
            told.send(stream.read_u8().await.unwrap_err().kind()).unwrap();
        }
    })
    .await;
    for protocol in KINDS {
        let mesh = pair(&authority, server, protocol, Mtls::Strict).await;
        // The client's, to the app.
        let mut client = TcpStream::connect(mesh.to).await.unwrap();
        client.write_all(b"\0me!!").await.unwrap();
        client.read_u8().await.unwrap();
        client.set_zero_linger().unwrap();
        drop(client);
        assert_eq!(soon(ended.recv()).await, Some(ErrorKind::ConnectionReset), "{protocol}");
        // The app's, to the client.
        let mut client = TcpStream::connect(mesh.to).await.unwrap();
        client.write_all(b"\0you!").await.unwrap();
        let error = soon(client.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{protocol}");
        // An end is an end.
        let mut client = TcpStream::connect(mesh.to).await.unwrap();
        client.write_all(b"\0me!!").await.unwrap();
        client.read_u8().await.unwrap();
        drop(client);
        assert_eq!(soon(ended.recv()).await, Some(ErrorKind::UnexpectedEof), "{protocol}");
    }
}

/// "421 too busy" of a server that does not read what its client goes on to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_words_before_a_reset_arrive() {
    let authority = authority().await;
    let server = app(async |mut stream| {
        stream.read_u8().await.unwrap();
        // There are bytes to read: to close is to reset.
        let _ = stream.peek(&mut [0]).await.unwrap();
        stream.write_all(b"421 too busy\r\n").await.unwrap();
    })
    .await;
    for protocol in KINDS {
        let mesh = pair(&authority, server, protocol, Mtls::Strict).await;
        for _ in 0..20 {
            let (mut reader, mut writer) = split(TcpStream::connect(mesh.to).await.unwrap());
            let sending = async { writer.write_all(&bytes(5, MUCH)).await };
            let receiving = async {
                let mut heard = [0; 14];
                reader.read_exact(&mut heard).await.unwrap();
                assert_eq!(&heard, b"421 too busy\r\n");
                reader.read_u8().await.unwrap_err().kind()
            };
            let (sent, ended) = soon(async { tokio::join!(sending, receiving) }).await;
            // Nobody read it all. One of the halves takes the reset for itself, and the other is told of an end.
            let sent = sent.unwrap_err().kind();
            assert!(
                [sent, ended].contains(&ErrorKind::ConnectionReset),
                "{protocol}: {sent}, {ended}"
            );
            assert!(
                matches!(ended, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof),
                "{protocol}: {ended}"
            );
        }
    }
}

#[tokio::test]
async fn an_app_that_is_not_there_is_a_reset() {
    let authority = authority().await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mesh = pair(&authority, gone, "opaque", Mtls::Strict).await;
    let reached = async { TcpStream::connect(mesh.to).await?.read_u8().await };
    assert_eq!(soon(reached).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let code = ["reason=\"app-unavailable\""];
    assert_eq!(metric(&mesh.orders, "outrigger_errors_total", &code), 1);
    // From outside the mesh, where no TLS tells an end from a loss.
    let permissive = pair(&authority, gone, "opaque", Mtls::Permissive).await.orders;
    let mut outsider = TcpStream::connect(permissive.inbound[0]).await.unwrap();
    outsider.write_all(b"\0").await.unwrap();
    let error = soon(outsider.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(metric(&permissive, "outrigger_errors_total", &code), 1);
    // And where there is not even a sidecar.
    drop(mesh.orders);
    let code = ["reason=\"connect-failed\""];
    super::until("the endpoint refuses", async || {
        // The reset may come before the connection is even looked at.
        let reached = async { TcpStream::connect(mesh.to).await?.read_u8().await };
        assert_eq!(soon(reached).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        metric(&mesh.web, "outrigger_errors_total", &code) > 0
    })
    .await;
}

/// A sidecar that dies says no end: the stream is not complete.
#[tokio::test]
async fn a_sidecar_that_dies_is_a_reset() {
    let authority = authority().await;
    let (told, mut ended) = mpsc::unbounded_channel();
    let server = app(move |mut stream| {
        let told = told.clone();
        async move {
            stream.write_all(b"220").await.unwrap();
            told.send(stream.read_u8().await.unwrap_err().kind()).unwrap();
        }
    })
    .await;
    for dies in ["web", "orders"] {
        let mesh = pair(&authority, server, "opaque", Mtls::Strict).await;
        let mut client = TcpStream::connect(mesh.to).await.unwrap();
        client.read_exact(&mut [0; 3]).await.unwrap();
        if dies == "web" {
            drop(mesh.web);
            assert_eq!(soon(ended.recv()).await, Some(ErrorKind::ConnectionReset));
        } else {
            drop(mesh.orders);
            let error = soon(client.read_u8()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            soon(ended.recv()).await.unwrap();
        }
    }
}

/// Two endpoints and one worker: whoever has fewer connections gets the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connection_goes_to_the_endpoint_that_holds_fewer() {
    let authority = authority().await;
    let (one, other) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let endpoints = [&one, &other].map(|endpoint| (endpoint.local_addr().unwrap(), None));
    let web = Sidecar::new("web").calls("orders", "opaque", &endpoints, "{}");
    let web = web.start_with(&authority, |config| config.workers = 1).await;
    let (mut of_one, mut of_other) = (Vec::new(), Vec::new());
    let mut connect = async || {
        let client = TcpStream::connect(web.outbound[0]).await.unwrap();
        tokio::select! {
            accepted = one.accept() => of_one.push((client, accepted.unwrap())),
            accepted = other.accept() => of_other.push((client, accepted.unwrap())),
            () = tokio::time::sleep(SOON) => panic!("no endpoint is called"),
        }
        (of_one.len(), of_other.len())
    };
    for n in 1..=10 {
        let (one, other) = connect().await;
        assert!(one.abs_diff(other) <= 1, "after {n}: {one} and {other}");
    }
}
