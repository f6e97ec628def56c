//! What a mirror gets of a body, and when.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT, TRAILER};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use outrigger_proxy::model::Protocol;
use outrigger_tests::mesh::{SOON, status, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Caller, EACH, End, Scene, Server, nobody};

const PIECE: usize = 16 * 1024;
const PIECES: usize = 64;

/// Each piece differs, so that none may be lost, doubled or late.
fn piece(n: usize) -> Vec<u8> {
    vec![b'a' + u8::try_from(n % 26).unwrap(); PIECE]
}

fn whole() -> Vec<u8> {
    (0..PIECES).flat_map(piece).collect()
}

fn sum() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    trailers
}

/// Sends 1 MiB to the app, each piece when the one before is at the mirror: by its length, or in chunks and with trailers.
async fn stream(scene: &Scene, protocol: Protocol, announced: bool, app: &Server, mirror: &Server) {
    let caller = Caller::new(protocol);
    let upload = caller.put(scene.to, |request| match announced {
        true => request.header(CONTENT_LENGTH, PIECES * PIECE),
        false => request.header(TRAILER, "x-sum"),
    });
    for n in 0..PIECES {
        upload.send(piece(n)).await;
        mirror.has((n + 1) * PIECE).await;
        app.has((n + 1) * PIECE).await;
    }
    if !announced {
        upload.frame(Ok(Frame::trailers(sum()))).await;
    }
    assert_eq!(upload.end().await, (200, "thanks".into()));
    let (sent, mirrored) = (app.got_one().await, mirror.got_one().await);
    let length = announced.then(|| HeaderValue::from(PIECES * PIECE));
    for got in [sent, mirrored] {
        assert!(got.body == whole() && got.end == Some(End::Whole));
        assert_eq!(got.trailers, (!announced).then(sum));
        assert_eq!(got.headers.get(CONTENT_LENGTH), length.as_ref());
    }
    assert_eq!(scene.not_mirrored(""), 0);
}

#[tokio::test]
async fn each_piece_goes_to_the_mirror_as_it_comes_whatever_is_kept_for_retries() {
    for protocol in EACH {
        for attempts in [0, 2] {
            for announced in [true, false] {
                let (app, mirror) = (Server::start().await, Server::start().await);
                let scene = Scene::start(protocol, attempts, app.address(), &[mirror.address()]).await;
                stream(&scene, protocol, announced, &app, &mirror).await;
            }
        }
    }
}

#[tokio::test]
async fn the_same_in_the_mesh() {
    for protocol in EACH {
        for announced in [true, false] {
            let (app, mirror) = (Server::start().await, Server::start().await);
            let (scene, _shadow) = Scene::in_the_mesh(protocol, app.address(), mirror.address()).await;
            stream(&scene, protocol, announced, &app, &mirror).await;
        }
    }
}

#[tokio::test]
async fn a_request_without_a_body_is_mirrored_without_one() {
    for protocol in EACH {
        let (app, mirror) = (Server::start().await, Server::start().await);
        let scene = Scene::start(protocol, 0, app.address(), &[mirror.address()]).await;
        let upload = Caller::new(protocol).put(scene.to, |request| request.header(CONTENT_LENGTH, 0));
        assert_eq!(upload.end().await.0, 200);
        let got = mirror.got_one().await;
        assert_eq!((got.body.len(), got.end), (0, Some(End::Whole)));
        assert_eq!(scene.not_mirrored(""), 0);
    }
}

#[tokio::test]
async fn what_is_sent_again_is_mirrored_once() {
    for protocol in EACH {
        let failed = AtomicBool::new(false);
        let app = Server::answering(move |taking, body| {
            let fails = !failed.swap(true, SeqCst);
            async move {
                taking.read(body, None).await;
                status(if fails { 503 } else { 200 })
            }
        })
        .await;
        let mirror = Server::start().await;
        let scene = Scene::start(protocol, 2, app.address(), &[mirror.address()]).await;
        let upload = Caller::new(protocol).put(scene.to, |request| request);
        upload.send("body").await;
        assert_eq!(upload.end().await.0, 200);
        assert_eq!(app.got().len(), 2, "it is not sent again");
        assert!(app.got().iter().all(|got| got.body == b"body"));
        let got = mirror.got_one().await;
        assert_eq!((got.body, got.end), (b"body".to_vec(), Some(End::Whole)));
        assert_eq!(scene.not_mirrored(""), 0);
    }
}

#[tokio::test]
async fn a_stream_goes_on_in_both_directions() {
    let (app, mirror) = (Server::echoing().await, Server::echoing().await);
    let scene = Scene::start(Protocol::Http2, 2, app.address(), &[mirror.address()]).await;
    let upload = Caller::new(Protocol::Http2).put(scene.to, |request| {
        request
            .header("content-type", "application/grpc")
            .header("te", "trailers")
    });
    let response = tokio::time::timeout(SOON, upload.response).await.unwrap().unwrap();
    let mut answers = response.unwrap().into_body();
    let mut sent = 0;
    for n in 0..100 {
        let message = Bytes::from(format!("message {n}"));
        sent += message.len();
        upload.frames.send(Ok(Frame::data(message.clone()))).await.unwrap();
        let answer = tokio::time::timeout(SOON, answers.frame()).await.unwrap();
        assert_eq!(answer.unwrap().unwrap().into_data().unwrap(), message);
        mirror.has(sent).await;
    }
    drop(upload.frames);
    let rest = answers.collect().await.unwrap();
    assert_eq!(rest.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(mirror.got_one().await.end, Some(End::Whole));
    assert_eq!(scene.not_mirrored(""), 0);
}

/// Its answer is nobody's business, and neither is when it comes.
#[tokio::test]
async fn a_mirror_that_answers_before_it_reads_has_all_of_the_body() {
    let app = Server::start().await;
    let mirror = Server::answering(|taking, body| async move {
        tokio::spawn(async move { taking.read(body, None).await });
        Response::new(text("as you say"))
    })
    .await;
    let scene = Scene::start(Protocol::Http2, 0, app.address(), &[mirror.address()]).await;
    let upload = Caller::new(Protocol::Http2).put(scene.to, |request| request);
    for n in 0..PIECES {
        upload.send(piece(n)).await;
        mirror.has((n + 1) * PIECE).await;
    }
    assert_eq!(upload.end().await.0, 200);
    let got = mirror.got_one().await;
    assert!(got.body == whole() && got.end == Some(End::Whole));
    assert_eq!(scene.not_mirrored(""), 0);
}

#[tokio::test]
async fn each_of_several_mirrors_has_all_of_it_and_a_bad_one_harms_nobody() {
    // One that hangs up at once, and one that speaks something else.
    let rude = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let babbling = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bad = [rude.local_addr().unwrap(), babbling.local_addr().unwrap()];
    let _rude = tokio::spawn(async move { while rude.accept().await.is_ok() {} });
    let _babbling = tokio::spawn(async move {
        while let Ok((mut stream, _)) = babbling.accept().await {
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let (_nobody, gone) = nobody();
    for protocol in EACH {
        let app = Server::start().await;
        let good = [Server::start().await, Server::start().await];
        let mirrors = [bad[0], good[0].address(), gone, bad[1], good[1].address()];
        let scene = Scene::start(protocol, 0, app.address(), &mirrors).await;
        let upload = Caller::new(protocol).put(scene.to, |request| request);
        for n in 0..PIECES {
            upload.send(piece(n)).await;
            for server in good.iter().chain([&app]) {
                server.has((n + 1) * PIECE).await;
            }
        }
        assert_eq!(upload.end().await, (200, "thanks".into()));
        for server in good.iter().chain([&app]) {
            let got = server.got_one().await;
            assert!(got.body == whole() && got.end == Some(End::Whole));
        }
        scene.counts("failed", 3).await;
    }
}

/// It is the server that says whether the client may send its body.
#[tokio::test]
async fn a_mirror_is_not_asked_whether_it_wants_the_body() {
    let (app, mirror) = (Server::start().await, Server::start().await);
    let scene = Scene::start(Protocol::Http1, 0, app.address(), &[mirror.address()]).await;
    let mut client = TcpStream::connect(scene.to).await.unwrap();
    let head = "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 25];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.unwrap();
    let got = mirror.got_one().await;
    assert_eq!((&got.body[..], got.headers.get(EXPECT)), (&b"body"[..], None));
    assert!(app.got_one().await.headers.contains_key(EXPECT));
}
