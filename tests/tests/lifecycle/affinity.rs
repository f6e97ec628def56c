//! `sessionAffinity: ClientIP`: the requests of one pod, whichever of its connections and workers carries them, go to one endpoint.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use outrigger_api::discovery::target::Kind as TargetKind;
use outrigger_api::discovery::{Protocol, Route, ServiceRef, Target, WeightedBackend};
use outrigger_controller::discovery::FixedTargets;
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Http, Sidecar, text};

use super::{orders, orders_address, until};

const DAY: Duration = Duration::from_secs(86_400);

/// An endpoint: an app that says which one it is, and its sidecar.
struct Endpoint {
    app: App,
    sidecar: RunningProxy,
}

async fn endpoint(authority: &Authority, number: usize) -> Endpoint {
    let app = App::start(move |_| async move { Response::new(text(number.to_string())) }).await;
    let sidecar = Sidecar::new("orders").protects(app.address).start(authority).await;
    Endpoint { app, sidecar }
}

async fn mesh() -> (Arc<FixedTargets>, Authority, Vec<Endpoint>) {
    let targets = FixedTargets::new([(orders_address(), Target::default())]);
    let targets = Arc::new(targets);
    let authority = Authority::with_discovery(&["web", "orders"], DAY, Some(Arc::clone(&targets) as _)).await;
    let mut endpoints = Vec::new();
    for number in 0..3 {
        endpoints.push(endpoint(&authority, number).await);
    }
    (targets, authority, endpoints)
}

fn service(protocol: Protocol, endpoints: &[&Endpoint], affinity: bool) -> Target {
    let at: Vec<(&str, SocketAddr)> = endpoints.iter().map(|e| ("orders", e.sidecar.inbound[0])).collect();
    let mut target = orders(protocol, &at);
    if let Some(TargetKind::Service(service)) = &mut target.kind {
        service.backends[0].client_affinity = affinity;
    }
    target
}

/// A caller with two workers.
async fn caller(authority: &Authority) -> RunningProxy {
    let sidecar = Sidecar::new("web").calls_address(orders_address());
    let two_workers = |config: &mut outrigger_proxy::config::Config| {
        config.workload.pod_ips = vec!["10.244.0.7".parse().unwrap()];
        config.workers = 2;
    };
    sidecar.start_with(authority, two_workers).await
}

/// Who answers `count` requests, each on a connection of its own.
async fn who_answers(to: SocketAddr, client: fn() -> Http, count: usize) -> BTreeSet<String> {
    let mut who = BTreeSet::new();
    for _ in 0..count {
        let seen = client().get(to, "/").await;
        assert_eq!(seen.status, 200, "{seen:?}");
        who.insert(String::from_utf8_lossy(&seen.body).into_owned());
    }
    who
}

const VERSIONS: [(Protocol, fn() -> Http); 2] = [(Protocol::Http1, Http::one), (Protocol::Http2, Http::two)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_requests_go_to_one_endpoint_and_to_the_next_when_it_fails() {
    for (protocol, client) in VERSIONS {
        let (targets, authority, endpoints) = mesh().await;
        let all: Vec<_> = endpoints.iter().collect();
        targets.replace(orders_address(), service(protocol, &all, true));
        let web = caller(&authority).await;
        let to = web.outbound[0];
        let first = who_answers(to, client, 30).await;
        assert_eq!(first.len(), 1, "{first:?}");
        // A sidecar that starts again chooses the same.
        let again = caller(&authority).await;
        assert_eq!(who_answers(again.outbound[0], client, 10).await, first);

        let number: usize = first.first().unwrap().parse().unwrap();
        endpoints[number].app.kill();
        let second = who_answers(to, client, 30).await;
        assert_eq!(second.len(), 1, "{second:?}");
        assert_ne!(first, second);

        // The Service's owner does not want it any more: both that work are called.
        let working = endpoints.iter().enumerate().filter(|(n, _)| *n != number);
        let working: Vec<_> = working.map(|(_, e)| e).collect();
        targets.replace(orders_address(), service(protocol, &working, false));
        until("requests are balanced", async || {
            who_answers(to, client, 30).await.len() == 2
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_stays_with_one_side_of_a_weighted_route() {
    let (targets, authority, endpoints) = mesh().await;
    let split = |affinity| {
        let mut target = service(Protocol::Http1, &[&endpoints[0]], affinity);
        let Some(TargetKind::Service(service)) = &mut target.kind else {
            panic!("no Service");
        };
        let mut other = service.backends[0].clone();
        let name = ServiceRef {
            name: "orders-v2".to_owned(),
            ..other.r#ref.clone().unwrap()
        };
        other.r#ref = Some(name);
        other.kind = match self::service(Protocol::Http1, &[&endpoints[1]], affinity).kind {
            Some(TargetKind::Service(mut service)) => service.backends.remove(0).kind,
            other => panic!("{other:?}"),
        };
        service.backends.push(other);
        let weighted = |backend| WeightedBackend {
            backend,
            weight: 50,
            filters: Vec::new(),
        };
        service.routes = vec![Route {
            name: "shop/split/0".to_owned(),
            backends: vec![weighted(0), weighted(1)],
            ..Route::default()
        }];
        target
    };
    targets.replace(orders_address(), split(true));
    let web = caller(&authority).await;
    let to = web.outbound[0];
    assert_eq!(who_answers(to, Http::one, 40).await.len(), 1);
    targets.replace(orders_address(), split(false));
    until("weights are shares of requests", async || {
        who_answers(to, Http::one, 40).await.len() == 2
    })
    .await;
}
