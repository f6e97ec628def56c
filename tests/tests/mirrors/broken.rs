//! What is not mirrored, or not whole: its server sees that, and it is counted.

use std::io;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use outrigger_proxy::model::Protocol;
use outrigger_tests::mesh::{App, SOON, status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Caller, EACH, End, Scene, Server, nobody, until};

#[tokio::test]
async fn the_mirror_of_a_client_that_breaks_off_sees_it_break() {
    for protocol in EACH {
        for length in [None, Some(8)] {
            let (app, mirror) = (Server::start().await, Server::start().await);
            let scene = Scene::start(protocol, 2, app.address(), &[mirror.address()]).await;
            let upload = Caller::new(protocol).put(scene.to, |request| match length {
                None => request,
                Some(length) => request.header("content-length", length),
            });
            upload.send("some").await;
            mirror.has(4).await;
            upload.frame(Err(io::Error::other("as a test wants it"))).await;
            for server in [&app, &mirror] {
                let got = server.got_one().await;
                assert_eq!(
                    (got.body, got.end),
                    (b"some".to_vec(), Some(End::Broken)),
                    "{protocol:?}"
                );
            }
            scene.counts("incomplete", 1).await;
        }
    }
}

/// It has answered already, and goes on with that.
#[tokio::test]
async fn a_mirror_that_streams_sees_the_client_break_off() {
    for protocol in EACH {
        let (app, mirror) = (Server::echoing().await, Server::echoing().await);
        let scene = Scene::start(protocol, 0, app.address(), &[mirror.address()]).await;
        let upload = Caller::new(protocol).put(scene.to, |request| request);
        for n in 1..=20 {
            upload.send("x").await;
            mirror.has(n).await;
        }
        upload.frame(Err(io::Error::other("as a test wants it"))).await;
        assert_eq!(mirror.got_one().await.end, Some(End::Broken), "{protocol:?}");
        scene.counts("incomplete", 1).await;
    }
}

#[tokio::test]
async fn the_same_in_the_mesh() {
    for protocol in EACH {
        let (app, mirror) = (Server::start().await, Server::start().await);
        let (scene, _shadow) = Scene::in_the_mesh(protocol, app.address(), mirror.address()).await;
        let upload = Caller::new(protocol).put(scene.to, |request| request);
        upload.send("some").await;
        mirror.has(4).await;
        upload.frame(Err(io::Error::other("as a test wants it"))).await;
        assert_eq!(mirror.got_one().await.end, Some(End::Broken), "{protocol:?}");
        scene.counts("incomplete", 1).await;
    }
}

/// Who answers without reading all of a body does not get the rest, and so nobody has it.
#[tokio::test]
async fn a_body_that_nobody_reads_is_not_whole_at_the_mirror() {
    for protocol in EACH {
        let app = App::start(async |_| status(413)).await;
        let mirror = Server::start().await;
        let scene = Scene::start(protocol, 0, app.address, &[mirror.address()]).await;
        let upload = Caller::new(protocol).put(scene.to, |request| request);
        upload.send("some").await;
        let response = tokio::time::timeout(SOON, upload.response).await.unwrap().unwrap();
        assert_eq!(response.unwrap().status(), 413);
        // Whether it had a part of it by then is open.
        scene.counts("incomplete", 1).await;
        let whole = mirror.got().iter().any(|got| got.end == Some(End::Whole));
        assert!(!whole, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_request_that_reaches_nobody_is_not_whole_at_the_mirror() {
    let (_nobody, gone) = nobody();
    for protocol in EACH {
        let mirror = Server::start().await;
        let scene = Scene::start(protocol, 0, gone, &[mirror.address()]).await;
        let _upload = Caller::new(protocol).put(scene.to, |request| request);
        scene.counts("incomplete", 1).await;
        assert!(
            mirror.got().iter().all(|got| got.end != Some(End::Whole)),
            "{protocol:?}"
        );
    }
}

#[tokio::test]
async fn a_mirror_that_is_not_there_is_counted() {
    let (_nobody, gone) = nobody();
    for protocol in EACH {
        let app = Server::start().await;
        let scene = Scene::start(protocol, 2, app.address(), &[gone]).await;
        let upload = Caller::new(protocol).put(scene.to, |request| request);
        upload.send("body").await;
        assert_eq!(upload.end().await, (200, "thanks".into()));
        let got = app.got_one().await;
        assert_eq!((got.body, got.end), (b"body".to_vec(), Some(End::Whole)));
        scene.counts("failed", 1).await;
    }
}

#[tokio::test]
async fn what_asks_for_another_protocol_is_not_mirrored() {
    let app = App::start(async |mut request: Request<hyper::body::Incoming>| {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        });
        match request.method() {
            &http::Method::CONNECT => status(200),
            _ => {
                let mut response = status(101);
                let headers = response.headers_mut();
                headers.insert("connection", "upgrade".parse().unwrap());
                headers.insert("upgrade", "echo".parse().unwrap());
                response
            }
        }
    })
    .await;
    let mirror = Server::start().await;
    let scene = Scene::start(Protocol::Http1, 2, app.address, &[mirror.address()]).await;
    let asks = [
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    ];
    for (n, ask) in (1..).zip(asks) {
        let mut client = TcpStream::connect(scene.to).await.unwrap();
        client.write_all(ask.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        client.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        client.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"ping", "{}", String::from_utf8_lossy(&head));
        scene.counts("upgrade", n).await;
    }

    let scene = Scene::start(Protocol::Http2, 2, app.address, &[mirror.address()]).await;
    let stream = TcpStream::connect(scene.to).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(
        hyper_util::rt::TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let connect = Request::connect("a:80").body(Empty::new()).unwrap();
    let mut response: Response<_> = tokio::time::timeout(SOON, sender.send_request(connect))
        .await
        .unwrap()
        .unwrap();
    let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    tunnel.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    tunnel.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    scene.counts("upgrade", 1).await;
    until("nothing comes to the mirror", || mirror.got().is_empty()).await;
}
