//! Ports of which nothing is declared: whatever way a client of HTTP begins, a limit of requests counts it; and what is no HTTP goes on
//! as it did.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Config;
use outrigger_tests::mesh::{Authority, Sidecar, id, metric};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{DAY, TWO, soon, until};

const GETS: &str = "[{name: gets, spec: {rules: [{sources: [{type: Any}], httpAttributes: [{methods: [GET]}]}]}}]";

/// An app of which the bytes that it is sent are counted.
struct Script {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heard: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Speaks {
    /// Answers whatever ends with an empty line, with a method that it has never heard of too.
    Http,
    /// Says the first word, and then echoes.
    First,
    /// Echoes.
    Echo,
}

impl Script {
    async fn start(speaks: Speaks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let script = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            heard: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, heard) = (Arc::clone(&script.connections), Arc::clone(&script.heard));
        let requests = Arc::clone(&script.requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, SeqCst);
                tokio::spawn(serve(stream, speaks, Arc::clone(&heard), Arc::clone(&requests)));
            }
        });
        script
    }

    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    async fn is_connected(&self, before: usize) {
        until("the app is connected to", async || self.connections() > before).await;
    }
}

async fn serve(mut stream: TcpStream, speaks: Speaks, heard: Arc<AtomicUsize>, requests: Arc<AtomicUsize>) {
    if speaks == Speaks::First {
        let _ = stream.write_all(b"220 hello\r\n").await;
    }
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        heard.fetch_add(length, SeqCst);
        if speaks != Speaks::Http {
            let _ = stream.write_all(&buffer[..length]).await;
            continue;
        }
        said.extend_from_slice(&buffer[..length]);
        if said.ends_with(b"\r\n\r\n") {
            said.clear();
            requests.fetch_add(1, SeqCst);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    }
}

/// The app's sidecar, and one whose word is that all it carries is bytes.
struct Scene {
    script: Script,
    orders: RunningProxy,
    web: RunningProxy,
}

impl Scene {
    async fn new(speaks: Speaks, policies: &str) -> Self {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let script = Script::start(speaks).await;
        let briefly = |config: &mut Config| config.detect_timeout = Duration::from_millis(100);
        let orders = Sidecar::new("orders").protects(script.address).with(policies);
        let orders = orders.start_with(&authority, briefly).await;
        let at = [(orders.inbound[0], Some(id("orders")))];
        let web = Sidecar::new("web").calls("orders", "opaque", &at, "{retry: {attempts: 0}}");
        let web = web.start(&authority).await;
        Self { script, orders, web }
    }

    /// In plaintext, and in mutual TLS.
    fn both(&self) -> [(&'static str, SocketAddr); 2] {
        [("plaintext", self.orders.inbound[0]), ("mesh", self.web.outbound[0])]
    }

    fn counted(&self, decision: &str) -> u64 {
        let decision = format!("decision=\"{decision}\"");
        metric(&self.orders, "outrigger_limited_requests_total", &[&decision])
    }
}

fn limits() -> String {
    format!("rateLimitPolicies: [{TWO}]")
}

/// How a client of HTTP may begin.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// With these bytes, at once.
    Says(&'static [u8]),
    /// It says nothing until there is a connection to the app.
    Silent(&'static [u8]),
    /// One byte after the other.
    Drips(&'static [u8]),
    /// This, and the rest when the app has got it.
    Pieces(&'static [u8], &'static [u8]),
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n";

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// It is counted, and limited.
    Counted,
    /// Answered 400.
    Malformed,
    /// Reset.
    Late,
}

const WAYS: [(Way, End); 13] = [
    (Way::Says(GET), End::Counted),
    (Way::Says(b"\r\nGET / HTTP/1.1\r\nHost: orders\r\n\r\n"), End::Counted),
    (
        Way::Says(b"\n\r\n\n\r\nGET / HTTP/1.1\r\nHost: orders\r\n\r\n"),
        End::Malformed,
    ),
    (Way::Says(b"A1 / HTTP/1.1\r\nHost: orders\r\n\r\n"), End::Counted),
    (Way::Says(b"GET\t/ HTTP/1.1\r\nHost: orders\r\n\r\n"), End::Malformed),
    (Way::Says(b"GET /\r\n\r\n"), End::Malformed),
    (Way::Silent(GET), End::Counted),
    (Way::Silent(b"\r\nGET / HTTP/1.1\r\nHost: orders\r\n\r\n"), End::Counted),
    (Way::Drips(GET), End::Counted),
    (Way::Drips(b"\r\nA1 / HTTP/1.1\r\nHost: orders\r\n\r\n"), End::Counted),
    (Way::Pieces(b"GE", b"T / HTTP/1.1\r\nHost: orders\r\n\r\n"), End::Late),
    (
        Way::Pieces(b"\r\n", b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n"),
        End::Late,
    ),
    (Way::Pieces(b"A1 ", b"/ HTTP/1.1\r\nHost: orders\r\n\r\n"), End::Late),
];

impl Way {
    /// What comes of it: a status, or `None`: it is reset.
    async fn goes(self, scene: &Scene, to: SocketAddr) -> Option<u16> {
        let (before, heard) = (scene.script.connections(), scene.script.heard.load(SeqCst));
        let mut client = TcpStream::connect(to).await.unwrap();
        client.set_nodelay(true).unwrap();
        match self {
            Self::Says(bytes) => client.write_all(bytes).await.unwrap(),
            Self::Silent(bytes) => {
                scene.script.is_connected(before).await;
                client.write_all(bytes).await.unwrap();
            }
            Self::Drips(bytes) => {
                for byte in bytes {
                    client.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
            Self::Pieces(begin, rest) => {
                client.write_all(begin).await.unwrap();
                let all = heard + begin.len();
                until("the app has it", async || scene.script.heard.load(SeqCst) == all).await;
                client.write_all(rest).await.unwrap();
            }
        }
        let mut answer = [0; 12];
        soon(client.read_exact(&mut answer)).await.ok()?;
        std::str::from_utf8(&answer[9..]).unwrap().parse().ok()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_way_of_beginning_goes_round_a_limit() {
    for n in 0..2 {
        for (way, end) in WAYS {
            let scene = Scene::new(Speaks::Http, &limits()).await;
            let (how, to) = scene.both()[n];
            for expected in [200, 200, 429, 429] {
                let seen = way.goes(&scene, to).await;
                let expected = match end {
                    End::Counted => Some(expected),
                    End::Malformed => Some(400),
                    End::Late => None,
                };
                assert_eq!(seen, expected, "{way:?} in {how}");
            }
            let admitted = if end == End::Counted { 2 } else { 0 };
            assert_eq!(scene.script.requests.load(SeqCst), admitted, "{way:?} in {how}");
            let (admitted, late) = (admitted as u64, if end == End::Late { 4 } else { 0 });
            assert_eq!(
                (scene.counted("admitted"), scene.counted("limited")),
                (admitted, admitted)
            );
            let errors = metric(&scene.orders, "outrigger_errors_total", &["head-timeout"]);
            assert_eq!(errors, late, "{way:?} in {how}");
        }
    }
}

/// Those that begin as bytes, and those where no limit in force selects the port, go on as bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_limit_in_force_nothing_changes() {
    let shadow = limits().replace("spec: {", "spec: {mode: Shadow, ");
    for policies in ["", &shadow] {
        let scene = Scene::new(Speaks::Http, policies).await;
        for (how, to) in scene.both() {
            for (way, end) in WAYS {
                if end != End::Late {
                    assert_eq!(way.goes(&scene, to).await, Some(200), "{way:?} in {how}, {policies}");
                }
            }
        }
        assert_eq!(scene.counted("limited"), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apps_that_speak_no_http_go_on_as_they_did() {
    for policies in ["", &limits()] {
        // Whoever waits for a greeting has it, each time: the port is known after the first.
        let scene = Scene::new(Speaks::First, policies).await;
        for (how, to) in scene.both() {
            for n in 0..3 {
                let mut client = TcpStream::connect(to).await.unwrap();
                let mut heard = [0; 11];
                soon(client.read_exact(&mut heard)).await.unwrap();
                assert_eq!(&heard, b"220 hello\r\n", "{how} {n}");
                // Even this is bytes: it speaks first, so it is no server of HTTP.
                echoes(&mut client, GET).await;
            }
        }
        let scene = Scene::new(Speaks::Echo, policies).await;
        for (how, to) in scene.both() {
            for word in [
                &b"\0word"[..],
                b"EHLO me\r\n",
                b"PING",
                b"\r\n",
                b"\x16\x03\x01\0\x05\x01aaaa",
            ] {
                let mut client = TcpStream::connect(to).await.unwrap();
                echoes(&mut client, word).await;
                echoes(&mut client, word).await;
                client.shutdown().await.unwrap();
                assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0, "{how} {word:?}");
            }
            // It has said nothing for long, and it ends without a word.
            let before = scene.script.connections();
            let mut client = TcpStream::connect(to).await.unwrap();
            scene.script.is_connected(before).await;
            echoes(&mut client, b"\0late").await;
            let mut client = TcpStream::connect(to).await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(soon(client.read(&mut [0])).await.unwrap(), 0, "{how}");
        }
        let refused = metric(&scene.orders, "outrigger_errors_total", &["head-timeout"]);
        assert_eq!((refused, scene.counted("limited")), (0, 0));
    }
}

async fn echoes(client: &mut TcpStream, word: &[u8]) {
    client.write_all(word).await.unwrap();
    let mut heard = vec![0; word.len()];
    soon(client.read_exact(&mut heard)).await.unwrap();
    assert_eq!(heard, word);
}

/// What an AccessPolicy does not let in as bytes is not listened to for the sake of a limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_send_bytes_reaches_nobody() {
    let policies = format!("accessPolicies: {GETS}\n{}", limits());
    let scene = Scene::new(Speaks::Http, &policies).await;
    for (how, to) in scene.both() {
        for word in [&b""[..], b"\0word"] {
            // The reset may come at any time, even before connect() has returned.
            let heard = async {
                let mut client = TcpStream::connect(to).await?;
                client.write_all(word).await?;
                client.read_u8().await
            };
            assert!(soon(heard).await.is_err(), "{how} {word:?}");
        }
    }
    assert_eq!(scene.script.connections(), 0);
}

/// Ten thousand of each that begin so that nobody knows what they are, and go: nothing stays of them, here or at the app.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_that_are_never_decided_leave_nothing_behind() {
    let long = [b"A".as_slice(); 2047].concat();
    for begin in [&b""[..], b"GE", b"\r\n", b"\x16\x03", &long] {
        let scene = Scene::new(Speaks::Http, &limits()).await;
        for (how, to) in scene.both() {
            let tasks = (0..10).map(|_| {
                let begin = begin.to_vec();
                tokio::spawn(async move {
                    let mut held = Vec::new();
                    for _ in 0..100 {
                        // As many at a time as a sidecar has places for.
                        for _ in 0..10 {
                            let mut client = TcpStream::connect(to).await.unwrap();
                            let _ = client.write_all(&begin).await;
                            held.push(client);
                        }
                        held.clear();
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
            until("all are gone", async || {
                metric(&scene.orders, "outrigger_connections_open", &["inbound"]) == 0
            })
            .await;
            assert_eq!(scene.script.requests.load(SeqCst), 0, "{how}");
        }
    }
}
