//! Before the controller's first word on who may call.

use std::io::ErrorKind;
use std::time::Duration;

use http::Method;
use outrigger_api::access::Access;
use outrigger_api::discovery::Feature;
use outrigger_api::probes::{AppProbe, Ask, HttpGet, Kind};
use outrigger_tests::mesh::{Http, Sidecar, heard, id, metric, request};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::scene::{Scene, Witness};
use super::script::{Script, Version};
use super::{SOON, soon, until};
use crate::tcp::hostile::hello;

const NOBODY: &str = "[{name: nobody, spec: {}}]";
/// As long as connections wait.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// A controller that has said nothing yet.
async fn silent() -> Scene {
    Scene::by(Script::default(), |_| {}).await
}

async fn readiness(scene: &Scene) -> (u16, String) {
    let seen = Http::one().get(scene.orders.admin, "/readyz").await;
    (seen.status, String::from_utf8_lossy(&seen.body).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_wait_and_then_are_refused() {
    let scene = silent().await;
    let (status, words) = readiness(&scene).await;
    assert!(
        status == 503 && words.contains("who may call its app"),
        "{status} {words}"
    );
    let began = Instant::now();
    let to = scene.orders.inbound[0];
    let http = async |http: Http, to| {
        let seen = http.within(SOON).get(to, "/").await;
        assert_eq!((seen.status, seen.error()), (503, Some("access-unknown")));
    };
    let grpc = async |to| {
        let mut call = request(Method::POST, to, "/shop.Orders/Get", "");
        call.headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        let seen = Http::two().within(SOON).send(call).await.unwrap();
        assert_eq!((seen.status, seen.error()), (200, Some("access-unknown")));
    };
    let bytes = async |to, bytes: &[u8]| {
        let error = soon(heard(to, bytes, 1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    };
    let hello = hello("h2");
    tokio::join!(
        http(Http::one(), to),
        http(Http::two(), to),
        http(Http::one(), scene.web.outbound[0]),
        grpc(scene.web.outbound[0]),
        bytes(to, b"\0word"),
        bytes(to, b""),
        bytes(to, &hello),
        bytes(scene.jobs.outbound[1], b"\0word"),
    );
    assert!(
        began.elapsed() >= FIRST_WORD - Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(scene.app.seen(), (0, 0));
    assert_eq!(metric(&scene.orders, "outrigger_errors_total", &["access-unknown"]), 8);
    // Then all is well, also for a connection that is kept.
    let kept = Http::one();
    let waiting = kept.get(to, "/");
    scene.script.says(Access::default());
    assert_eq!(soon(waiting).await.status, 200);
    assert_eq!(readiness(&scene).await.0, 200);
    assert!(scene.script.sidecar_understands(Feature::Access));
    assert!(scene.script.sidecar_understands(Feature::Tokens));
}

/// Those that wait are served as soon as it is known, and by what was said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_hear_the_first_word() {
    for (policies, status) in [("[]", 200), (NOBODY, 403)] {
        let scene = silent().await;
        let began = Instant::now();
        let clients = [
            (Http::one(), scene.orders.inbound[0]),
            (Http::two(), scene.orders.inbound[0]),
            (Http::one(), scene.web.outbound[0]),
        ];
        let waiting: Vec<_> = clients
            .into_iter()
            .map(|(http, to)| tokio::spawn(async move { http.get(to, "/").await.status }))
            .collect();
        until("they wait", async || {
            metric(&scene.orders, "outrigger_connections_open", &["inbound"]) >= 3
        })
        .await;
        assert_eq!(scene.app.seen(), (0, 0));
        scene.enforces(policies).await;
        for client in waiting {
            assert_eq!(soon(client).await.unwrap(), status);
        }
        assert!(began.elapsed() < FIRST_WORD, "{:?}", began.elapsed());
    }
}

/// Whatever waits is idle: it is closed for others, and there are never more than the budget has places for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_have_places_and_nothing_else() {
    const PLACES: usize = 64;
    let scene = Scene::by(Script::default(), |config| config.budget.connections = PLACES).await;
    let mut kept = std::collections::VecDeque::new();
    for n in 0..1000 {
        let mut stream = TcpStream::connect(scene.orders.inbound[0]).await.unwrap();
        // One that has no place may be reset by now.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        kept.push_back(stream);
        if kept.len() > 300 {
            kept.pop_front();
        }
        if n % 100 == 99 {
            let open = metric(&scene.orders, "outrigger_connections_open", &["inbound"]);
            assert!(open <= PLACES as u64, "{open} connections are open");
        }
    }
    scene.enforces("[]").await;
    drop(kept);
    assert_eq!(Http::one().get(scene.web.outbound[0], "/").await.status, 200);
}

/// Of the version before: no policies, and as ready as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_controller_lets_everybody_in() {
    for version in [Version::WithoutAccess, Version::WithoutSessions] {
        let script = Script::default();
        script.becomes(version);
        let scene = Scene::by(script, |_| {}).await;
        soon(scene.orders.ready()).await;
        assert_eq!(readiness(&scene).await.0, 200);
        for to in [scene.orders.inbound[0], scene.jobs.outbound[0]] {
            assert_eq!(Http::one().get(to, "/").await.status, 200, "{version:?}");
        }
    }
}

/// A caller's sidecar asks another endpoint, whatever the method: nothing was processed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_refused_so_goes_elsewhere() {
    let scene = silent().await;
    let app = Witness::start().await;
    let known = Sidecar::new("orders")
        .protects(app.address)
        .start(&scene.authority)
        .await;
    let endpoints = [
        (scene.orders.inbound[0], Some(id("orders"))),
        (known.inbound[0], Some(id("orders"))),
    ];
    let policy = "{retry: {attempts: 2}, timeouts: {connect: 20s}}";
    let web = Sidecar::new("web").calls("orders", "http1", &endpoints, policy);
    let web = web.start(&scene.authority).await;
    // One of two is the one that does not know.
    let post = |n: usize| {
        let to = web.outbound[0];
        tokio::spawn(async move {
            let mut post = request(Method::POST, to, "/", "order");
            post.headers_mut().insert("x-number", n.into());
            Http::one().within(SOON).send(post).await.unwrap().status
        })
    };
    for client in (0..8).map(post).collect::<Vec<_>>() {
        assert_eq!(soon(client).await.unwrap(), 200);
    }
    assert_eq!(app.seen().1, 8, "each came once");
    // It has been found to be of no use for now.
    let began = Instant::now();
    for n in 8..20 {
        assert_eq!(soon(post(n)).await.unwrap(), 200);
    }
    assert!(began.elapsed() < FIRST_WORD / 2, "{:?}", began.elapsed());
    let refused = metric(&scene.orders, "outrigger_errors_total", &["access-unknown"]);
    assert!(refused > 0, "none was refused");
    assert!(metric(&web, "outrigger_retries_total", &["success"]) >= refused);
}

/// Kubelet asks the sidecar, which asks the app itself: who may call has no say in it, known or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_say_how_the_app_is_whoever_may_call_it() {
    let app = Witness::start().await;
    let script = Script::default();
    let scene = Scene::by(script, |config| {
        config.app_probes = vec![AppProbe {
            container: "app".to_owned(),
            kind: Kind::Readiness,
            port: app.address.port(),
            timeout: Some(10),
            key: None,
            ask: Ask::Http(HttpGet {
                target: "/ready".to_owned(),
                tls: false,
                headers: Vec::new(),
            }),
        }];
    })
    .await;
    let at = outrigger_api::probes::path("app", Kind::Readiness);
    let admin = scene.orders.admin;
    let probed = async || Http::one().get(admin, &at).await.status;
    assert_eq!(probed().await, 200, "nothing is known");
    scene.enforces(NOBODY).await;
    assert_eq!(probed().await, 200, "nobody may call");
    assert_eq!(app.seen().1, 2);
    assert_eq!(Http::one().get(scene.orders.inbound[0], "/").await.status, 403);
}
