//! How many connections of bytes: through real sidecars, in plaintext and in mutual TLS.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Config;
use outrigger_tests::mesh::{Authority, Http, Sidecar, echo, id, metric, talk};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{DAY, soon, until};

struct Scene {
    orders: RunningProxy,
    web: RunningProxy,
    jobs: RunningProxy,
}

impl Scene {
    async fn new(spec: &str, opaque: bool) -> Self {
        let authority = Authority::start(&["web", "jobs", "orders"], DAY).await;
        let app = echo().await;
        let briefly = |config: &mut Config| config.detect_timeout = Duration::from_millis(100);
        let orders = Sidecar::new("orders")
            .protects(app)
            .with(&format!("rateLimitPolicies: [{{name: tcp, spec: {{{spec}}}}}]"));
        let orders = match opaque {
            true => orders.with(&format!("opaquePorts: \"{}\"", app.port())),
            false => orders,
        };
        let orders = orders.start_with(&authority, briefly).await;
        let at = [(orders.inbound[0], Some(id("orders")))];
        let caller = async |name: &str| {
            let caller = Sidecar::new(name).calls("orders", "opaque", &at, "{retry: {attempts: 0}}");
            caller.start(&authority).await
        };
        let (web, jobs) = (caller("web").await, caller("jobs").await);
        Self { orders, web, jobs }
    }

    fn counted(&self, decision: &str, limit: &str) -> u64 {
        let labels = [format!("decision=\"{decision}\""), format!("limit=\"{limit}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        metric(&self.orders, "outrigger_limited_connections_total", &labels)
    }

    async fn open(&self) -> u64 {
        let config = Http::one().get(self.orders.admin, "/config").await;
        let config: serde_json::Value = serde_json::from_slice(&config.body).unwrap();
        config["targets"]["limits"][0]["connections"]["open"].as_u64().unwrap()
    }
}

/// One that carries bytes, as these are; or `None`: it was reset, perhaps before connect() has returned.
async fn connects(to: SocketAddr, word: &[u8]) -> Option<TcpStream> {
    match soon(talk(to, word, word.len())).await {
        Ok((client, _)) => Some(client),
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof),
                "{error}"
            );
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_are_open_than_a_policy_admits_of_all_and_of_each() {
    for opaque in [true, false] {
        let scene = Scene::new("connections: {max: 5, perIdentity: 2}", opaque).await;
        let (web, jobs, plain) = (scene.web.outbound[0], scene.jobs.outbound[0], scene.orders.inbound[0]);
        let mut open = Vec::new();
        // Bytes, and TLS of the app's own.
        for (to, expected) in [(web, 2), (jobs, 2), (plain, 1)] {
            for n in 0..4 {
                let word: &[u8] = if n == 1 {
                    b"\x16\x03\x01\0\x05\x01aaaa"
                } else {
                    b"\0word"
                };
                let client = connects(to, word).await;
                assert_eq!(client.is_some(), n < expected, "{n} of {expected}, opaque: {opaque}");
                open.extend(client);
            }
        }
        assert_eq!(scene.open().await, 5);
        // Two of web and of jobs, and of all that are beyond five.
        let refused = (scene.counted("limited", "perIdentity"), scene.counted("limited", "max"));
        assert_eq!(refused, (4, 3));
        assert_eq!(metric(&scene.orders, "outrigger_errors_total", &["rate-limited"]), 7);
        open.pop();
        until("its place is free", async || scene.open().await == 4).await;
        open.extend(connects(plain, b"\0word").await);
        assert_eq!(open.len(), 5);
        drop(open);
        until("all are", async || scene.open().await == 0).await;
    }
}

/// A connection that says nothing takes a place like others: it is one to the app.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_has_no_way_round() {
    let limits = "limits: [{rate: {requests: 1000, interval: 1h}, scope: Pod}], ";
    for (opaque, limits) in [(true, ""), (false, ""), (true, limits), (false, limits)] {
        let scene = Scene::new(&format!("{limits}connections: {{max: 3}}"), opaque).await;
        for to in [scene.web.outbound[0], scene.orders.inbound[0]] {
            let mut silent = Vec::new();
            for _ in 0..3 {
                silent.push(TcpStream::connect(to).await.unwrap());
            }
            until("they are counted", async || scene.open().await == 3).await;
            let one_more = async { TcpStream::connect(to).await?.read(&mut [0]).await };
            let end = soon(one_more).await;
            assert!(!matches!(end, Ok(1..)), "opaque: {opaque}, {limits}");
            assert_eq!(scene.open().await, 3);
            drop(silent);
            until("they are gone", async || scene.open().await == 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_counts_connections_and_requests_are_none() {
    let scene = Scene::new("mode: Shadow, connections: {max: 1}", false).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(connects(scene.orders.inbound[0], b"\0word").await.unwrap());
    }
    assert_eq!(
        (scene.counted("shadow", "max"), scene.counted("limited", "max")),
        (2, 0)
    );
    // Of requests there may be any number: the app is none of HTTP, so they fail there.
    let scene = Scene::new("connections: {max: 1, newPerSecond: 1}", false).await;
    for _ in 0..5 {
        let mut client = TcpStream::connect(scene.orders.inbound[0]).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        soon(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer[..9], b"HTTP/1.1 ");
    }
    assert_eq!(
        scene.counted("limited", "max") + scene.counted("limited", "newPerSecond"),
        0
    );
    assert_eq!(scene.open().await, 0);
}

/// Ten thousand connections of one that may have two: the others have their places, and nothing stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_of_one_take_two_places() {
    let scene = Scene::new("connections: {max: 4, perIdentity: 2}", true).await;
    let held = [
        connects(scene.web.outbound[0], b"\0word").await.unwrap(),
        connects(scene.web.outbound[0], b"\0word").await.unwrap(),
    ];
    let to = scene.orders.inbound[0];
    let strangers = [
        connects(to, b"\0word").await.unwrap(),
        connects(to, b"\0word").await.unwrap(),
    ];
    let tasks = (0..10).map(|_| {
        tokio::spawn(async move {
            for _ in 0..1000 {
                assert!(connects(to, b"\0word").await.is_none());
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(scene.open().await, 4);
    drop(strangers);
    until("two are free", async || scene.open().await == 2).await;
    assert!(connects(scene.jobs.outbound[0], b"\0word").await.is_some());
    drop(held);
}
