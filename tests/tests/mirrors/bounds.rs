//! Mirrors that are slower than their requests, and many of them.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::{Ping, Reason, RecvStream};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use outrigger_proxy::model::{CallLimits, Protocol};
use outrigger_tests::mesh::{App, Authority, Http, SOON, text};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::{Caller, DAY, EACH, End, Scene, Server, service, until};

const MIB: usize = 1024 * 1024;
/// More than what the kernel takes for a socket that nobody reads.
const LARGE: usize = 32 * MIB;
/// What the sidecar has for all mirrors.
const ROOM: usize = 4 * MIB;
/// Requests that are mirrored at the same time.
const MOST: usize = 64;

/// Sends a large body, all of which the app has to have had; most of it when `begun` says so.
async fn send(scene: &Scene, protocol: Protocol, begun: impl Future<Output = ()>) {
    let upload = Caller::new(protocol).put(scene.to, |request| request);
    upload.send("x").await;
    let begins = tokio::time::timeout(SOON, begun).await;
    begins.expect("nothing comes to the mirror");
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    for _ in 0..LARGE / piece.len() {
        upload.send(piece.clone()).await;
    }
    assert_eq!(upload.end().await, (200, (LARGE + 1).to_string().into()));
}

/// Counts, and keeps nothing.
async fn app() -> App {
    App::start(async |request: Request<Incoming>| {
        let mut body = request.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        Response::new(text(bytes.to_string()))
    })
    .await
}

#[tokio::test]
async fn a_mirror_that_reads_nothing_stops_nobody_and_sees_the_request_break() {
    let mirror = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = app().await;
    let scene = Scene::start(Protocol::Http1, 0, app.address, &[mirror.local_addr().unwrap()]).await;
    let mut stream = None;
    send(&scene, Protocol::Http1, async { stream = mirror.accept().await.ok() }).await;
    scene.counts("too-slow", 1).await;
    let (mut stream, _) = stream.unwrap();
    let (mut taken, mut bytes, mut last) = (0, vec![0; 64 * 1024], Vec::new());
    // A reset is an end, too.
    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
        taken += n;
        last.extend_from_slice(&bytes[..n]);
        last.drain(..last.len().saturating_sub(5));
    }
    assert!(
        taken < LARGE && last != b"0\r\n\r\n",
        "{taken} bytes, and then {last:?}"
    );
}

/// A server on the bare library, which does not read before it is asked to.
struct Silent {
    address: SocketAddr,
    read: Arc<Notify>,
    begun: mpsc::UnboundedReceiver<()>,
    /// What its streams were reset with.
    ends: mpsc::UnboundedReceiver<Option<Reason>>,
}

impl Silent {
    /// `answers`: it sends a head before it reads. A stream has begun when its client has that head.
    async fn start(answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begins, begun) = mpsc::unbounded_channel();
        let (ended, ends) = mpsc::unbounded_channel();
        let read = Arc::<Notify>::default();
        let may_read = Arc::clone(&read);
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                let mut ping = connection.ping_pong();
                let (begins, ended, may_read) = (begins.clone(), ended.clone(), Arc::clone(&may_read));
                connections.spawn(async move {
                    let mut streams = JoinSet::new();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let (begins, ended, may_read) = (begins.clone(), ended.clone(), Arc::clone(&may_read));
                        let mut ping = ping.take().filter(|_| answers);
                        streams.spawn(async move {
                            let _answer = answers.then(|| respond.send_response(Response::new(()), false).unwrap());
                            if let Some(ping) = &mut ping {
                                ping.ping(Ping::opaque()).await.unwrap();
                            }
                            let _ = begins.send(());
                            may_read.notified().await;
                            let _ = ended.send(read_all(request.into_body()).await);
                        });
                    }
                });
            }
        });
        Self {
            address,
            read,
            begun,
            ends,
        }
    }
}

/// What a body was reset with, if it was.
async fn read_all(mut body: RecvStream) -> Option<Reason> {
    loop {
        match body.data().await? {
            Ok(data) => _ = body.flow_control().release_capacity(data.len()),
            Err(error) => return error.reason(),
        }
    }
}

#[tokio::test]
async fn the_same_in_http2() {
    for answers in [false, true] {
        let mut mirror = Silent::start(answers).await;
        let app = app().await;
        let scene = Scene::start(Protocol::Http2, 0, app.address, &[mirror.address]).await;
        let begun = async { mirror.begun.recv().await.unwrap() };
        send(&scene, Protocol::Http2, begun).await;
        scene.counts("too-slow", 1).await;
        mirror.read.notify_one();
        let end = tokio::time::timeout(SOON, mirror.ends.recv()).await;
        assert_eq!(end.unwrap().unwrap(), Some(Reason::CANCEL), "{answers}");
    }
}

/// Each leaves less unread than one request may, and all together more than the sidecar keeps.
#[tokio::test]
async fn all_mirrors_together_have_so_much_memory() {
    const UNREAD: usize = 256 * 1024;
    const WINDOW: usize = 64 * 1024 - 1;
    let mirror = Silent::start(false).await;
    let app = Server::start().await;
    let scene = Scene::start(Protocol::Http2, 0, app.address(), &[mirror.address]).await;
    let caller = Caller::new(Protocol::Http2);
    let uploads: Vec<_> = (0..MOST).map(|_| caller.put(scene.to, |request| request)).collect();
    for upload in &uploads {
        for _ in 0..4 {
            upload.send(vec![b'x'; UNREAD / 4]).await;
        }
    }
    app.has(MOST * UNREAD).await;
    // One of them has the window of its connection.
    let unread = MOST * UNREAD - WINDOW;
    let least = (unread - ROOM).div_ceil(UNREAD) as u64;
    until("some are given up", || scene.not_mirrored("too-slow") >= least).await;
    assert!(scene.not_mirrored("too-slow") < MOST as u64, "all are given up");
    assert_eq!(scene.not_mirrored("too-slow"), scene.not_mirrored(""));
    for upload in uploads {
        assert_eq!(upload.end().await.0, 200);
    }
}

#[tokio::test]
async fn so_many_are_mirrored_at_once_and_others_when_those_have_ended() {
    for protocol in EACH {
        let (app, mirror) = (Server::start().await, Server::start().await);
        let scene = Scene::start(protocol, 0, app.address(), &[mirror.address()]).await;
        let caller = Caller::new(protocol);
        let mut uploads = Vec::new();
        for n in 1..=MOST {
            let upload = caller.put(scene.to, |request| request);
            upload.send("x").await;
            mirror.has(n).await;
            uploads.push(upload);
        }
        let more = caller.put(scene.to, |request| request);
        more.send("x").await;
        scene.counts("too-many", 1).await;
        assert_eq!(more.end().await.0, 200);
        for upload in uploads {
            assert_eq!(upload.end().await.0, 200);
        }
        until("all have ended", || {
            mirror.got().iter().all(|got| got.end == Some(End::Whole))
        })
        .await;
        // Their places are free a moment later.
        let mirrored = async {
            while mirror.got().len() == MOST {
                let upload = caller.put(scene.to, |request| request);
                assert_eq!(upload.end().await.0, 200);
            }
        };
        tokio::time::timeout(SOON, mirrored)
            .await
            .expect("no place is given back");
    }
}

/// A mirror has no more than what the Service itself is asked for.
#[tokio::test]
async fn what_a_limit_refuses_is_not_mirrored() {
    let go = Arc::<Notify>::default();
    let app = App::start({
        let go = Arc::clone(&go);
        move |_| {
            let go = Arc::clone(&go);
            async move {
                go.notified().await;
                Response::new(text(""))
            }
        }
    })
    .await;
    let mirror = Server::start().await;
    let authority = Authority::start(&["web"], DAY).await;
    let mut service = service(Protocol::Http1, 0, app.address, &[(mirror.address(), None)]);
    let limits = CallLimits {
        requests: Some(1),
        ..CallLimits::default()
    };
    Arc::get_mut(&mut service.routes).unwrap()[0].rules.attempt.limits = Some(Arc::new(limits));
    let scene = Scene::of(authority, service).await;
    let to = scene.to;
    let held = tokio::spawn(async move { Http::one().get(to, "/").await.status });
    until("it is mirrored", || mirror.got().len() == 1).await;
    for _ in 0..10 {
        assert_eq!(Http::one().get(to, "/").await.error(), Some("overloaded"));
    }
    go.notify_one();
    assert_eq!(held.await.unwrap(), 200);
    go.notify_one();
    assert_eq!(Http::one().get(to, "/last").await.status, 200);
    until("the last one is mirrored", || mirror.got().len() >= 2).await;
    assert_eq!(mirror.got().len(), 2);
    assert_eq!(scene.not_mirrored(""), 0);
}
