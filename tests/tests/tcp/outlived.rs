//! Connections between sidecars that live longer than what their peer has proven: its certificate ends, or its root is removed.
//!
//! The clock that says when certificates end is the test's. Peers are made by hand, because a sidecar renews in time; one test
//! has two sidecars that cannot.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_issuer::ca::Ca;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::identity::Clock;
use outrigger_tests::mesh::{Authority, Body, Http, Sidecar, TRUST_DOMAIN, id, metric, text};
use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificates::{Identity, until as identity_until};
use super::hostile::client;
use super::{DAY, SOON, app, soon, until};

const HOUR: Duration = Duration::from_secs(3600);
/// Bytes that were not taken for so long are not taken at all.
const FULL: Duration = Duration::from_millis(500);

/// How what a peer has proven ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its certificate ends.
    Expired,
    /// The same, where connections are to be closed then.
    ExpiredAndClosed,
    /// Its root is removed.
    Untrusted,
}

impl End {
    const ALL: [End; 3] = [End::Expired, End::ExpiredAndClosed, End::Untrusted];

    fn reason(self) -> &'static str {
        match self {
            End::Untrusted => "reason=\"untrusted\"",
            _ => "reason=\"expired\"",
        }
    }
}

/// All at once: to hear of new roots takes some seconds.
async fn for_each_end(case: impl AsyncFn(End)) {
    join_all(End::ALL.map(|end| case(end))).await;
}

/// A clock that a test puts forward.
#[derive(Clone, Default)]
struct Ahead(Arc<AtomicU64>);

impl Ahead {
    fn clock(&self) -> Clock {
        let ahead = Arc::clone(&self.0);
        Clock::new(move || SystemTime::now() + Duration::from_secs(ahead.load(SeqCst)))
    }

    fn put(&self, by: Duration) {
        self.0.store(by.as_secs(), SeqCst);
    }
}

/// A mesh in which one root is to be removed.
struct World {
    end: End,
    authority: Authority,
    /// Whose root is removed.
    other: Ca,
    ahead: Ahead,
}

impl World {
    async fn new(end: End) -> Self {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let other = Ca::generate(TRUST_DOMAIN).unwrap();
        authority.trust(&[&other]);
        Self {
            end,
            authority,
            other,
            ahead: Ahead::default(),
        }
    }

    /// The peer's: it ends in an hour, or its root is the one that is removed.
    fn doomed(&self, name: &str) -> Identity {
        match self.end {
            End::Untrusted => identity_until(&self.other, name, SystemTime::now() + 3 * DAY),
            _ => identity_until(&self.authority.ca(), name, SystemTime::now() + HOUR),
        }
    }

    /// What the peer would be given later.
    fn renewed(&self, name: &str) -> Identity {
        identity_until(&self.authority.ca(), name, SystemTime::now() + 3 * DAY)
    }

    async fn start(&self, sidecar: Sidecar, limit: Duration) -> RunningProxy {
        let close_expired = self.end == End::ExpiredAndClosed;
        sidecar
            .by(self.ahead.clock())
            .start_with(&self.authority, |config| {
                config.drain_timeout = limit;
                config.close_expired = close_expired;
            })
            .await
    }

    /// It ends, and `connections` of the sidecar hear of it, or more.
    async fn end(&self, sidecar: &RunningProxy, direction: &str, connections: u64) {
        let direction = format!("direction=\"{direction}\"");
        let labels = [direction.as_str(), self.end.reason()];
        assert_eq!(metric(sidecar, "outrigger_connections_ended_total", &labels), 0);
        if self.end == End::Untrusted {
            self.authority.trust(&[]);
            // The sidecar renews its own SVID, and hears of the roots with it.
            self.ahead.put(7 * HOUR);
        } else {
            self.ahead.put(2 * HOUR);
        }
        // A sidecar looks every ten seconds whether its own SVID is to be renewed.
        let ended = async {
            while metric(sidecar, "outrigger_connections_ended_total", &labels) < connections {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(6 * SOON, ended).await;
        assert!(in_time.is_ok(), "never: connections end");
    }
}

/// An app that answers at once, or (`/slow`) when it is let, or is a WebSocket (`/chat`) that echoes.
#[derive(Clone)]
struct Shop {
    gate: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Shop {
    fn new() -> Self {
        Self {
            gate: Arc::new(Semaphore::new(0)),
            waiting: Arc::default(),
        }
    }

    /// As many slow requests wait.
    async fn has(&self, waiting: usize) {
        until("slow requests wait", async || self.waiting.load(SeqCst) == waiting).await;
    }

    fn let_all(&self) {
        self.gate.add_permits(1000);
    }

    async fn answer(self, mut request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/slow" => {
                self.waiting.fetch_add(1, SeqCst);
                let _permit = self.gate.acquire().await.unwrap();
                Response::new(text("slow"))
            }
            _ if request.method() == Method::CONNECT => {
                chat(&mut request);
                Response::new(text(""))
            }
            "/chat" => {
                chat(&mut request);
                switching()
            }
            "/flood" => {
                self.flood(&mut request);
                switching()
            }
            _ => Response::new(text("fast")),
        }
    }

    /// What the request becomes says more than anybody takes, and then counts as waiting.
    fn flood(&self, request: &mut Request<Incoming>) {
        let (upgrade, waiting) = (hyper::upgrade::on(request), Arc::clone(&self.waiting));
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            fill(&mut stream).await;
            waiting.fetch_add(1, SeqCst);
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
    }

    async fn serve(&self) -> SocketAddr {
        let shop = self.clone();
        app(move |stream| {
            let shop = shop.clone();
            async move {
                let answer = service_fn(move |request| {
                    let shop = shop.clone();
                    async move { Ok::<_, Infallible>(shop.answer(request).await) }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder
                    .serve_connection_with_upgrades(TokioIo::new(stream), answer)
                    .await;
            }
        })
        .await
    }
}

fn switching() -> Response<Body> {
    let switching = Response::builder()
        .status(101)
        .header("upgrade", "websocket")
        .header("connection", "upgrade");
    switching.body(text("")).unwrap()
}

/// Writes until no more is taken.
async fn fill(stream: &mut (impl AsyncWrite + Unpin)) {
    while let Ok(written) = tokio::time::timeout(FULL, stream.write_all(&[b'x'; 65_536])).await {
        written.unwrap();
    }
}

/// What the request becomes says all again.
fn chat(request: &mut Request<Incoming>) {
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut said = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut said).await {
            if stream.write_all(&said[..n]).await.is_err() {
                return;
            }
        }
    });
}

/// A connection of a peer to a sidecar.
async fn dial(to: SocketAddr, config: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let name = ServerName::try_from("orders.peer").unwrap();
    let stream = TcpStream::connect(to).await.unwrap();
    soon(TlsConnector::from(Arc::clone(config)).connect(name, stream))
        .await
        .unwrap()
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://orders{path}"))
        .header("host", "orders")
        .body(Empty::new())
        .unwrap()
}

/// A response, once more than its head is there; `None`: it broke.
async fn whole(response: impl Future<Output = hyper::Result<Response<Incoming>>>) -> Option<(http::HeaderMap, Bytes)> {
    let (head, body) = soon(response).await.ok()?.into_parts();
    assert_eq!(head.status, 200);
    let body = soon(body.collect()).await.ok()?;
    Some((head.headers, body.to_bytes()))
}

/// A client of HTTP/1, and what becomes of its connection.
async fn one<IO>(io: IO) -> (http1::SendRequest<Empty<Bytes>>, JoinHandle<hyper::Result<()>>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    (sender, tokio::spawn(connection.with_upgrades()))
}

/// The same with HTTP/2.
async fn two<IO>(io: IO) -> (http2::SendRequest<Empty<Bytes>>, JoinHandle<hyper::Result<()>>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// Whether a tunnel still carries a word there and back.
async fn echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
    let mut heard = [0; 4];
    let talk = async {
        stream.write_all(b"word").await?;
        stream.flush().await?;
        stream.read_exact(&mut heard).await
    };
    soon(talk).await.is_ok_and(|_| &heard == b"word")
}

/// For as long as a peer's requests may take, it is only told.
#[tokio::test]
async fn a_peer_that_calls_hears_that_its_time_is_up_and_loses_no_request() {
    for_each_end(async |end| {
        let world = World::new(end).await;
        let shop = Shop::new();
        let orders = Sidecar::new("orders").protects(shop.serve().await);
        let orders = world.start(orders, HOUR).await;
        let to = orders.inbound[0];
        let config = |alpn| client(Some(world.doomed("web")), &[alpn]);

        let plain = config("outrigger/h1");
        let (mut idle, idle_ended) = one(dial(to, &plain).await).await;
        assert!(whole(idle.send_request(get("/"))).await.is_some());
        // Its certificate was shown on another connection.
        let resumed = dial(to, &plain).await;
        assert_eq!(
            resumed.get_ref().1.handshake_kind(),
            Some(HandshakeKind::Resumed),
            "{end:?}"
        );
        let (mut busy, busy_ended) = one(resumed).await;
        let on_one = tokio::spawn(busy.send_request(get("/slow")));
        let (mut shared, shared_ended) = two(dial(to, &config("outrigger/h2")).await).await;
        assert!(whole(shared.send_request(get("/"))).await.is_some());
        let on_two = tokio::spawn(shared.send_request(get("/slow")));
        shop.has(2).await;

        world.end(&orders, "inbound", 3).await;
        // HTTP/1: the next answer says so, and then the connection is closed.
        let (headers, _) = whole(idle.send_request(get("/"))).await.expect("a request is lost");
        assert_eq!(
            headers.get("connection").map(http::HeaderValue::as_bytes),
            Some(&b"close"[..]),
            "{end:?}"
        );
        soon(idle_ended).await.unwrap().unwrap();
        // HTTP/2: GOAWAY, and no other stream.
        until("GOAWAY", async || whole(shared.send_request(get("/"))).await.is_none()).await;
        shop.let_all();
        let (headers, body) = whole(async { on_one.await.unwrap() }).await.expect("a request is lost");
        assert_eq!(
            (headers.get("connection").map(http::HeaderValue::as_bytes), &body[..]),
            (Some(&b"close"[..]), &b"slow"[..])
        );
        let (_, body) = whole(async { on_two.await.unwrap() }).await.expect("a request is lost");
        assert_eq!(body, "slow");
        soon(busy_ended).await.unwrap().unwrap();
        soon(shared_ended).await.unwrap().unwrap();
    })
    .await;
}

/// The time is over at once.
#[tokio::test]
async fn what_a_peer_that_calls_has_under_way_goes_on_or_is_closed() {
    for_each_end(async |end| {
        let world = World::new(end).await;
        let shop = Shop::new();
        let server = shop.serve().await;
        let echo = app(async |mut stream| {
            let mut said = [0; 64];
            while let Ok(n @ 1..) = stream.read(&mut said).await {
                let _ = stream.write_all(&said[..n]).await;
            }
        })
        .await;
        let orders = Sidecar::new("orders").protects(server);
        let orders = world.start(orders, Duration::ZERO).await;
        let bytes = world.start(Sidecar::new("orders").protects(echo), Duration::ZERO).await;
        let mute = app(async |stream| {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let full = world.start(Sidecar::new("orders").protects(mute), Duration::ZERO).await;
        let to = orders.inbound[0];
        let config = |alpn| client(Some(world.doomed("web")), &[alpn]);
        let (plain, shared, opaque) = (config("outrigger/h1"), config("outrigger/h2"), config("outrigger/tcp"));

        let mut unused = dial(to, &plain).await;
        let (mut idle, idle_ended) = one(dial(to, &plain).await).await;
        assert!(whole(idle.send_request(get("/"))).await.is_some());
        let (mut idle_two, idle_two_ended) = two(dial(to, &shared).await).await;
        assert!(whole(idle_two.send_request(get("/"))).await.is_some());
        let (mut busy, _busy_ended) = one(dial(to, &plain).await).await;
        let on_one = tokio::spawn(busy.send_request(get("/slow")));
        let (mut busy_two, _busy_two_ended) = two(dial(to, &shared).await).await;
        let on_two = tokio::spawn(busy_two.send_request(get("/slow")));
        let (mut chat, _chat_ended) = one(dial(to, &plain).await).await;
        let mut upgrade = get("/chat");
        upgrade.headers_mut().insert("upgrade", "websocket".parse().unwrap());
        upgrade.headers_mut().insert("connection", "upgrade".parse().unwrap());
        let response = soon(chat.send_request(upgrade)).await.unwrap();
        let mut chat = TokioIo::new(soon(hyper::upgrade::on(response)).await.unwrap());
        assert!(echoes(&mut chat).await);
        let (mut chat_two, _chat_two_ended) = two(dial(to, &shared).await).await;
        let connect = Request::connect("orders:80").body(Empty::new()).unwrap();
        let response = soon(chat_two.send_request(connect)).await.unwrap();
        let mut chat_two = TokioIo::new(soon(hyper::upgrade::on(response)).await.unwrap());
        assert!(echoes(&mut chat_two).await);
        let mut deaf = Deaf::dial(to, &shared).await;
        assert!(deaf.answers(1, "/").await);
        deaf.ask(3, "/slow").await;
        let mut idle_deaf = Deaf::dial(to, &shared).await;
        assert!(idle_deaf.answers(1, "/").await);
        let mut tunnel = dial(bytes.inbound[0], &opaque).await;
        assert!(echoes(&mut tunnel).await);
        // Peers whose bytes the app does not take: nothing of them is read any more.
        let full = [&plain, &opaque].map(async |config| {
            let mut stream = dial(full.inbound[0], config).await;
            let head = b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 1000000000\r\n\r\n";
            stream.write_all(head).await.unwrap();
            fill(&mut stream).await;
            stream
        });
        let full = join_all(full).await;
        shop.has(3).await;

        world.end(&orders, "inbound", 9).await;
        let goes_on = end == End::Expired;
        let (ended, expired) = if goes_on { (0, 1) } else { (1, 0) };
        until("the tunnel's sidecar has seen it", async || {
            metric(&bytes, "outrigger_connections_ended_total", &[end.reason()]) == ended
                && metric(&bytes, "outrigger_connections_expired", &[]) == expired
        })
        .await;
        // What is idle is closed in any case.
        let _ = soon(unused.read_u8()).await.unwrap_err();
        let _ = soon(idle_ended).await.unwrap();
        let _ = soon(idle_two_ended).await.unwrap();
        idle_deaf.ended().await;
        assert_eq!(echoes(&mut tunnel).await, goes_on, "{end:?}");
        assert_eq!(echoes(&mut chat).await, goes_on, "{end:?}");
        assert_eq!(echoes(&mut chat_two).await, goes_on, "{end:?}");
        if !goes_on {
            for mut stream in full {
                assert!(soon(stream.read_u8()).await.is_err(), "{end:?}");
            }
        }
        // A peer that goes on after GOAWAY is not served.
        assert!(!deaf.answers(5, "/").await, "{end:?}");
        shop.let_all();
        assert_eq!(
            whole(async { on_one.await.unwrap() }).await.is_some(),
            goes_on,
            "{end:?}"
        );
        assert_eq!(
            whole(async { on_two.await.unwrap() }).await.is_some(),
            goes_on,
            "{end:?}"
        );
        // All that is left is what goes on.
        drop((chat, chat_two, tunnel));
        for sidecar in [&orders, &bytes] {
            until("no connection is left", async || {
                metric(sidecar, "outrigger_connections_open", &["inbound"]) == 0
                    && metric(sidecar, "outrigger_connections_expired", &[]) == 0
            })
            .await;
        }
    })
    .await;
}

/// A connection that is not read hears of its end as well, also when it has heard before that the end comes.
#[tokio::test]
async fn peers_that_are_not_read_are_cut_in_their_time() {
    for_each_end(async |end| {
        if end == End::Expired {
            return;
        }
        let world = World::new(end).await;
        let shop = Shop::new();
        let orders = Sidecar::new("orders").protects(shop.serve().await);
        let orders = world.start(orders, Duration::from_secs(3)).await;
        let to = orders.inbound[0];
        let config = |alpn| client(Some(world.doomed("web")), &[alpn]);
        // While an answer is awaited and another request is there, nothing is read.
        let mut pipelined = dial(to, &config("outrigger/h1")).await;
        let requests = "GET /slow HTTP/1.1\r\nhost: orders\r\n\r\n".repeat(2);
        pipelined.write_all(requests.as_bytes()).await.unwrap();
        // Nor while the answers to PINGs are not taken.
        let mut pings = Deaf::dial(to, &config("outrigger/h2")).await;
        pings.ask(1, "/slow").await;
        shop.has(2).await;
        pings.ping_until_nothing_is_read().await;
        world.end(&orders, "inbound", 2).await;
        assert!(soon(pipelined.read_u8()).await.is_err(), "{end:?}");
        until("no connection is left", async || {
            metric(&orders, "outrigger_connections_open", &["inbound"]) == 0
        })
        .await;
        drop(pings);
    })
    .await;
}

/// An app that takes what a tunnel brings it no more, and says nothing, hears of the end all the same.
#[tokio::test]
async fn a_tunnel_whose_app_takes_nothing_is_cut() {
    const UPGRADE: &str = "GET /flood HTTP/1.1\r\nhost: orders\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    for_each_end(async |end| {
        if end == End::Expired {
            return;
        }
        let world = World::new(end).await;
        // It is called.
        let cut = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&cut);
        let mute = app(move |mut stream| {
            let counted = Arc::clone(&counted);
            async move {
                let _ = stream.read(&mut [0; 1024]).await.unwrap();
                let switching = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                stream.write_all(switching.as_bytes()).await.unwrap();
                reset(&stream).await;
                counted.fetch_add(1, SeqCst);
            }
        })
        .await;
        let orders = world.start(Sidecar::new("orders").protects(mute), Duration::ZERO).await;
        let mut peer = dial(orders.inbound[0], &client(Some(world.doomed("web")), &["outrigger/h1"])).await;
        peer.write_all(UPGRADE.as_bytes()).await.unwrap();
        fill(&mut peer).await;
        // It calls.
        let shop = Shop::new();
        let (web, _called) = caller(&world, &shop, Duration::ZERO).await;
        let mut calling = TcpStream::connect(web.outbound[0]).await.unwrap();
        calling.write_all(UPGRADE.as_bytes()).await.unwrap();
        shop.has(1).await;

        assert_eq!(cut.load(SeqCst), 0);
        let both = [(&orders, "inbound"), (&web, "outbound")];
        join_all(both.map(|(sidecar, direction)| world.end(sidecar, direction, 1))).await;
        until("the app that is called hears of it", async || cut.load(SeqCst) == 1).await;
        soon(reset(&calling)).await;
    })
    .await;
}

/// Waits for a reset, and takes nothing that came before it.
async fn reset(stream: &TcpStream) {
    while !stream.ready(Interest::READABLE).await.unwrap().is_read_closed() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A peer that speaks HTTP/2, and never confirms a PING: so it may say that it has not seen the GOAWAY.
struct Deaf(TlsStream<TcpStream>);

impl Deaf {
    async fn dial(to: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let mut stream = dial(to, config).await;
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        Self(stream)
    }

    /// HEADERS, with the end of the stream.
    async fn ask(&mut self, stream: u8, path: &str) {
        // GET, http, a path and an authority, as literals (RFC 7541 section 6.2.2).
        let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        block.extend_from_slice(path.as_bytes());
        block.extend_from_slice(b"\x41\x06orders");
        let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap(), 1, 5, 0, 0, 0, stream];
        frame.extend(block);
        // That it may be closed is what the test is about.
        let _ = self.0.write_all(&frame).await;
        let _ = self.0.flush().await;
    }

    /// Asks whether it is there, and takes no answer.
    async fn ping_until_nothing_is_read(&mut self) {
        let pings = [[0, 0, 8, 6, 0, 0, 0, 0, 0].as_slice(), &[7; 8]].concat().repeat(1000);
        while let Ok(written) = tokio::time::timeout(FULL, self.0.write_all(&pings)).await {
            written.unwrap();
        }
    }

    /// Waits for the end, whether it is clean or not.
    async fn ended(&mut self) {
        let _ = soon(self.0.read_to_end(&mut Vec::new())).await;
    }

    /// Whether there is an answer, and not an end.
    async fn answers(&mut self, stream: u8, path: &str) -> bool {
        self.ask(stream, path).await;
        let answered = async {
            loop {
                let mut head = [0; 9];
                self.0.read_exact(&mut head).await?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                self.0.read_exact(&mut vec![0; length as usize]).await?;
                // HEADERS of the stream.
                if head[3] == 1 && head[8] == stream {
                    return Ok::<_, std::io::Error>(());
                }
            }
        };
        soon(answered).await.is_ok()
    }
}

/// A peer that is called: its certificate can be another one for later connections.
struct Called {
    address: SocketAddr,
    tls: Arc<Mutex<Arc<ServerConfig>>>,
    /// Connections that were ever made, and those that are open.
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Called {
    async fn start(identity: Identity, alpn: &'static str, shop: &Shop) -> Self {
        let tls = Arc::new(Mutex::new(Arc::new(called(identity, alpn))));
        let (accepted, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shop, config, counted, still) = (shop.clone(), Arc::clone(&tls), Arc::clone(&accepted), Arc::clone(&open));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(Arc::clone(&config.lock().unwrap()));
                let (shop, counted, still) = (shop.clone(), Arc::clone(&counted), Arc::clone(&still));
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await.expect("no handshake");
                    counted.fetch_add(1, SeqCst);
                    still.fetch_add(1, SeqCst);
                    if alpn == "outrigger/tcp" {
                        let mut said = [0; 64];
                        while let Ok(n @ 1..) = stream.read(&mut said).await {
                            let _ = stream.write_all(&said[..n]).await;
                        }
                    } else {
                        let answer = service_fn(move |request| {
                            let shop = shop.clone();
                            async move { Ok::<_, Infallible>(shop.answer(request).await) }
                        });
                        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                        let _ = builder
                            .serve_connection_with_upgrades(TokioIo::new(stream), answer)
                            .await;
                    }
                    still.fetch_sub(1, SeqCst);
                });
            }
        });
        Self {
            address,
            tls,
            accepted,
            open,
        }
    }

    fn renew(&self, identity: Identity, alpn: &'static str) {
        *self.tls.lock().unwrap() = Arc::new(called(identity, alpn));
    }
}

fn called((chain, key): Identity, alpn: &str) -> ServerConfig {
    let builder = ServerConfig::builder().with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

/// A sidecar that calls `orders` by HTTP/1, HTTP/2 and as bytes, in this order.
async fn caller(world: &World, shop: &Shop, limit: Duration) -> (RunningProxy, [Called; 3]) {
    let start = async |alpn| Called::start(world.doomed("orders"), alpn, shop).await;
    let called = [
        start("outrigger/h1").await,
        start("outrigger/h2").await,
        start("outrigger/tcp").await,
    ];
    let mut web = Sidecar::new("web");
    for (protocol, called) in ["http1", "http2", "opaque"].into_iter().zip(&called) {
        let endpoint = [(called.address, Some(id("orders")))];
        web = web.calls(
            protocol,
            protocol,
            &endpoint,
            "{retry: {attempts: 0}, timeouts: {connect: 10s}}",
        );
    }
    (world.start(web, limit).await, called)
}

/// One by HTTP/1 and one by HTTP/2.
async fn slow_requests(web: &RunningProxy) -> [JoinHandle<hyper::Result<Response<Incoming>>>; 2] {
    let (mut plain, _) = one(TcpStream::connect(web.outbound[0]).await.unwrap()).await;
    let (mut shared, _) = two(TcpStream::connect(web.outbound[1]).await.unwrap()).await;
    [
        tokio::spawn(async move { plain.send_request(get("/slow")).await }),
        tokio::spawn(async move { shared.send_request(get("/slow")).await }),
    ]
}

#[tokio::test]
async fn a_peer_that_is_called_gets_no_request_after_its_time_and_loses_none() {
    for_each_end(async |end| {
        let world = World::new(end).await;
        let shop = Shop::new();
        let (web, called) = caller(&world, &shop, HOUR).await;
        let slow = slow_requests(&web).await;
        shop.has(2).await;
        // No request is repeated, and none is lost, while connections come and go.
        let stop = Arc::new(Semaphore::new(0));
        let steady = [Http::one(), Http::two()]
            .into_iter()
            .zip(&web.outbound)
            .map(|(client, to)| {
                let (to, stop, answered) = (*to, Arc::clone(&stop), Arc::<AtomicUsize>::default());
                let counted = Arc::clone(&answered);
                let sending = tokio::spawn(async move {
                    while stop.available_permits() == 0 {
                        let seen = client.post(to, "/", "order").await;
                        assert_eq!((seen.status, seen.error()), (200, None), "{end:?}: {seen:?}");
                        counted.fetch_add(1, SeqCst);
                    }
                });
                (sending, answered)
            });
        let steady: Vec<_> = steady.collect();
        until("both are answered", async || {
            steady.iter().all(|(_, answered)| answered.load(SeqCst) > 0)
        })
        .await;
        for (called, alpn) in called.iter().zip(["outrigger/h1", "outrigger/h2"]) {
            called.renew(world.renewed("orders"), alpn);
        }

        // With new roots, connections that are idle are replaced already.
        world
            .end(&web, "outbound", if end == End::Untrusted { 2 } else { 3 })
            .await;
        until("others are made, and those that were idle have gone", async || {
            called[0].accepted.load(SeqCst) > 2
                && called[0].open.load(SeqCst) == 2
                && called[1].accepted.load(SeqCst) > 1
                && called[1].open.load(SeqCst) == 2
        })
        .await;
        stop.add_permits(1);
        for (sending, _) in steady {
            soon(sending).await.unwrap();
        }
        shop.let_all();
        for slow in slow {
            let (_, body) = whole(async { slow.await.unwrap() }).await.expect("a request is lost");
            assert_eq!(body, "slow", "{end:?}");
        }
        until("the old ones have gone", async || {
            called[0].open.load(SeqCst) == 1 && called[1].open.load(SeqCst) == 1
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn what_a_peer_that_is_called_has_under_way_goes_on_or_is_closed() {
    for_each_end(async |end| {
        let world = World::new(end).await;
        let shop = Shop::new();
        let (web, called) = caller(&world, &shop, Duration::ZERO).await;
        let slow = slow_requests(&web).await;
        let mut tunnel = TcpStream::connect(web.outbound[2]).await.unwrap();
        assert!(echoes(&mut tunnel).await);
        shop.has(2).await;

        let goes_on = end == End::Expired;
        world.end(&web, "outbound", if goes_on { 2 } else { 3 }).await;
        assert_eq!(echoes(&mut tunnel).await, goes_on, "{end:?}");
        if goes_on {
            assert_eq!(metric(&web, "outrigger_connections_expired", &["outbound"]), 3);
            shop.let_all();
        }
        for slow in slow {
            let response = soon(slow).await.unwrap().unwrap();
            let error = response
                .headers()
                .get("outrigger-error")
                .map(http::HeaderValue::as_bytes);
            let expected = if goes_on {
                (200, None)
            } else {
                (502, Some(&b"upstream-reset"[..]))
            };
            assert_eq!((response.status().as_u16(), error), expected, "{end:?}");
        }
        drop(tunnel);
        until("no connection is left", async || {
            called.iter().all(|called| called.open.load(SeqCst) == 0)
                && metric(&web, "outrigger_connections_expired", &[]) == 0
        })
        .await;
    })
    .await;
}

/// The controller is away for longer than SVIDs live.
#[tokio::test]
async fn sidecars_that_cannot_renew_keep_their_tunnels_and_count_them() {
    let mut world = World::new(End::Expired).await;
    let shop = Shop::new();
    let echo = app(async |mut stream| {
        let mut said = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut said).await {
            let _ = stream.write_all(&said[..n]).await;
        }
    })
    .await;
    let orders = world
        .start(Sidecar::new("orders").protects(shop.serve().await), HOUR)
        .await;
    let bytes = world.start(Sidecar::new("orders").protects(echo), HOUR).await;
    let endpoint = |of: &RunningProxy| [(of.inbound[0], Some(id("orders")))];
    let web = Sidecar::new("web")
        .calls("orders", "http2", &endpoint(&orders), "{}")
        .calls("bytes", "opaque", &endpoint(&bytes), "{}");
    let web = world.start(web, HOUR).await;
    let mut tunnel = TcpStream::connect(web.outbound[1]).await.unwrap();
    assert!(echoes(&mut tunnel).await);
    let (client, to) = (Http::two(), web.outbound[0]);
    let (mut shared, _) = two(TcpStream::connect(to).await.unwrap()).await;
    let slow = tokio::spawn(shared.send_request(get("/slow")));
    shop.has(1).await;

    world.authority.go_away().await;
    world.ahead.put(25 * HOUR);
    until("both sides see it", async || {
        metric(&web, "outrigger_connections_expired", &["outbound"]) == 2
            && metric(&bytes, "outrigger_connections_expired", &["inbound"]) == 1
            && metric(
                &orders,
                "outrigger_connections_ended_total",
                &["inbound", "reason=\"expired\""],
            ) == 1
    })
    .await;
    until("nobody is called any more", async || {
        client.get(to, "/").await.error() == Some("identity-unavailable")
    })
    .await;
    assert!(echoes(&mut tunnel).await);
    shop.let_all();
    let (_, body) = whole(async { slow.await.unwrap() }).await.expect("a request is lost");
    assert_eq!(body, "slow");
}
