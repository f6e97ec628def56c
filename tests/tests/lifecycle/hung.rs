//! Endpoints that take connections, and do not answer.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, Request};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Body, Http, SOON, Sidecar, id, request, status};
use tokio::net::TcpListener;
use tokio::time::timeout;

const DAY: Duration = Duration::from_secs(86_400);
/// How long a request waits, whoever ends it.
const PATIENCE: Duration = Duration::from_millis(300);

/// Who ends a request that gets no answer.
#[derive(Clone, Copy, Debug)]
enum Ends {
    TheClient,
    TimeoutsRequest,
    GrpcTimeout,
}

/// Two endpoints of a Service, behind sidecars; one of them hangs for a while.
struct Two {
    /// What came to the one that hangs, and whether it does.
    seen: Arc<AtomicUsize>,
    hangs: Arc<AtomicBool>,
    web: RunningProxy,
    _keep: (Authority, [App; 2], [RunningProxy; 2]),
}

impl Two {
    async fn start(protocol: &str, policy: &str) -> Self {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let (seen, hangs) = (Arc::<AtomicUsize>::default(), Arc::new(AtomicBool::new(true)));
        let hung = App::start({
            let (seen, hangs) = (Arc::clone(&seen), Arc::clone(&hangs));
            move |_| {
                seen.fetch_add(1, SeqCst);
                let hangs = hangs.load(SeqCst);
                async move {
                    if hangs {
                        pending::<()>().await;
                    }
                    status(200)
                }
            }
        });
        let apps = [hung.await, App::start(async |_| status(200)).await];
        let one = Sidecar::new("orders").protects(apps[0].address).start(&authority).await;
        let two = Sidecar::new("orders").protects(apps[1].address).start(&authority).await;
        let endpoints = [&one, &two].map(|proxy| (proxy.inbound[0], Some(id("orders"))));
        let web = Sidecar::new("web").calls("orders", protocol, &endpoints, policy);
        Self {
            seen,
            hangs,
            web: web.start(&authority).await,
            _keep: (authority, apps, [one, two]),
        }
    }

    /// Requests one after the other; gives how many the one that hangs got.
    async fn call(&self, http: &Http, ends: Ends, requests: usize) -> usize {
        let before = self.seen.load(SeqCst);
        for _ in 0..requests {
            let request = call(self.web.outbound[0], ends);
            match ends {
                Ends::TheClient => drop(timeout(PATIENCE, http.send(request)).await),
                _ => drop(http.send(request).await.unwrap()),
            }
        }
        self.seen.load(SeqCst) - before
    }
}

fn call(to: SocketAddr, ends: Ends) -> Request<Body> {
    let mut request = request(Method::POST, to, "/", "");
    if let Ends::GrpcTimeout = ends {
        let headers = request.headers_mut();
        headers.insert("content-type", "application/grpc".parse().unwrap());
        let limit = format!("{}m", PATIENCE.as_millis());
        headers.insert("grpc-timeout", limit.parse().unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_endpoint_gets_few_requests_whoever_ends_them() {
    let limited = format!("{{timeouts: {{request: {}ms}}}}", PATIENCE.as_millis());
    for (protocol, http, ends) in [
        ("http1", Http::one(), Ends::TheClient),
        ("http1", Http::one(), Ends::TimeoutsRequest),
        ("http2", Http::two(), Ends::TheClient),
        ("http2", Http::two(), Ends::TimeoutsRequest),
        ("http2", Http::two(), Ends::GrpcTimeout),
    ] {
        let policy = match ends {
            Ends::TimeoutsRequest => &limited,
            _ => "{}",
        };
        let two = Two::start(protocol, policy).await;
        let hung = two.call(&http, ends, 60).await;
        assert!(hung <= 12, "{hung} of 60 requests: {protocol}, ended by {ends:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_hung_has_its_share_again_when_it_answers() {
    let two = Two::start("http1", "{}").await;
    let http = Http::one();
    // Until it has swallowed one.
    timeout(6 * SOON, async {
        while two.call(&http, Ends::TheClient, 1).await == 0 {}
    })
    .await
    .unwrap();
    two.hangs.store(false, SeqCst);
    timeout(12 * SOON, async {
        while two.call(&http, Ends::TheClient, 100).await < 20 {}
    })
    .await
    .expect("its share does not come back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_begin_to_speak_http2_has_the_connect_limit() {
    let authority = Authority::start(&["web", "orders"], DAY).await;
    // The kernel takes the connections; nobody sends SETTINGS.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().map(|address| (address, silent)).unwrap();
    let alive = App::start(async |_| status(200)).await;
    // Enough for the other endpoint, on a machine that is busy.
    let limit = "timeouts: {connect: 2s}";
    let web = Sidecar::new("web")
        .calls(
            "lone",
            "http2",
            &[(silent.0, None)],
            &format!("{{retry: {{attempts: 0}}, {limit}}}"),
        )
        .calls(
            "both",
            "http2",
            &[(silent.0, None), (alive.address, None)],
            &format!("{{{limit}}}"),
        )
        .start(&authority)
        .await;
    let orders = Sidecar::new("orders").protects(silent.0).start(&authority).await;
    let http = Http::two();
    let all = async |to: SocketAddr| {
        let calls = (0..50).map(|_| http.send(request(Method::POST, to, "/", "")));
        let seen = join_all(calls).await.into_iter();
        seen.map(|seen| seen.unwrap()).collect::<Vec<_>>()
    };
    for seen in all(web.outbound[0]).await {
        assert_eq!((seen.status, seen.error()), (504, Some("connect-timeout")));
    }
    // Nothing was sent to it, so any request goes elsewhere.
    for seen in all(web.outbound[1]).await {
        assert_eq!((seen.status, seen.error()), (200, None));
    }
    for seen in all(orders.inbound[0]).await {
        assert_eq!((seen.status, seen.error()), (503, Some("app-unavailable")));
    }
}
