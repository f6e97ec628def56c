//! Endpoints that go, come, flap and become somebody else.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use outrigger_api::discovery::Protocol;
use outrigger_controller::discovery::FixedTargets;
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Http, Sidecar, metric, text};
use tokio::time::sleep;

use super::{Load, orders, orders_address, until};

const DAY: Duration = Duration::from_secs(86_400);

async fn mesh(endpoints: &[(&str, std::net::SocketAddr)], protocol: Protocol) -> (Arc<FixedTargets>, Authority) {
    let targets = FixedTargets::new([(orders_address(), orders(protocol, endpoints))]);
    let targets = Arc::new(targets);
    let names = ["web", "orders", "payments"];
    let authority = Authority::with_discovery(&names, DAY, Some(Arc::clone(&targets) as _)).await;
    (targets, authority)
}

async fn app() -> App {
    App::start(async |_| {
        sleep(Duration::from_millis(2)).await;
        Response::new(text("done"))
    })
    .await
}

fn versions() -> [(Protocol, Http); 2] {
    [(Protocol::Http1, Http::one()), (Protocol::Http2, Http::two())]
}

fn inbound_connections(proxy: &RunningProxy) -> u64 {
    metric(proxy, "outrigger_connections_open", &["inbound"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_flap_ten_times_a_second_lose_nothing_and_nothing_grows() {
    const CLIENTS: usize = 8;
    for (protocol, http) in versions() {
        let (targets, authority) = mesh(&[], protocol).await;
        let app = app().await;
        let mut sidecars = Vec::new();
        for _ in 0..3 {
            sidecars.push(Sidecar::new("orders").protects(app.address).start(&authority).await);
        }
        let at: Vec<_> = sidecars.iter().map(|p| ("orders", p.inbound[0])).collect();
        targets.replace(orders_address(), orders(protocol, &at));
        let web = Sidecar::new("web")
            .calls_address(orders_address())
            .start(&authority)
            .await;
        let load = Load::start(&http, web.outbound[0], CLIENTS);
        let [a, b, c] = [at[0], at[1], at[2]];
        let states: [&[_]; 6] = [&[a, b, c], &[b], &[b, c], &[c, a], &[a], &[c, b, a]];
        let mut most = 0;
        for state in states.iter().cycle().take(40) {
            targets.replace(orders_address(), orders(protocol, state));
            sleep(Duration::from_millis(100)).await;
            most = most.max(sidecars.iter().map(inbound_connections).sum());
        }
        load.none_lost().await;
        // For each endpoint as many as there are requests at the same time, and those that were left and are about to end.
        assert!(most <= 2 * 3 * CLIENTS as u64, "{most} connections");
        // Nothing is asked for any more; connections to endpoints that have gone are closed all the same.
        targets.replace(orders_address(), orders(protocol, &[a]));
        until("connections to former endpoints are closed", async || {
            sidecars[1..].iter().all(|p| inbound_connections(p) == 0)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_becomes_another_workloads() {
    for (protocol, http) in versions() {
        let (targets, authority) = mesh(&[], protocol).await;
        let app = app().await;
        let stays = Sidecar::new("orders").protects(app.address).start(&authority).await;
        let goes = Sidecar::new("orders").protects(app.address).start(&authority).await;
        let [stays_at, changes_at] = [stays.inbound[0], goes.inbound[0]];
        targets.replace(
            orders_address(),
            orders(protocol, &[("orders", stays_at), ("orders", changes_at)]),
        );
        let web = Sidecar::new("web")
            .calls_address(orders_address())
            .start(&authority)
            .await;
        let load = Load::start(&http, web.outbound[0], 4);
        until("both are called", async || {
            inbound_connections(&goes) > 0 && inbound_connections(&stays) > 0
        })
        .await;
        let endpoints = |changed| orders(protocol, &[("orders", stays_at), (changed, changes_at)]);
        targets.replace(orders_address(), orders(protocol, &[("orders", stays_at)]));
        goes.shutdown().await.unwrap();
        // The address has a new owner, and discovery is behind: to whoever is not expected there nothing is said.
        let new = Sidecar::new("payments").protects(app.address);
        let new = new
            .start_with(&authority, |config| config.inbound[0].listen = changes_at)
            .await;
        targets.replace(orders_address(), endpoints("orders"));
        until("the new owner is taken for the old one", async || {
            metric(&web, "outrigger_tls_handshakes_total", &["identity-mismatch"]) > 0
        })
        .await;
        assert_eq!(metric(&new, "outrigger_requests_total", &["inbound"]), 0);
        targets.replace(
            orders_address(),
            orders(protocol, &[("orders", stays_at), ("payments", changes_at)]),
        );
        until("the new owner is called", async || {
            metric(&new, "outrigger_requests_total", &["inbound", "success"]) > 0
        })
        .await;
        load.none_lost().await;
    }
}

#[tokio::test]
async fn a_service_without_endpoints_says_so_and_recovers_with_the_first() {
    for (protocol, http) in versions() {
        let (targets, authority) = mesh(&[], protocol).await;
        let app = app().await;
        let sidecar = Sidecar::new("orders").protects(app.address).start(&authority).await;
        let web = Sidecar::new("web")
            .calls_address(orders_address())
            .start(&authority)
            .await;
        let to = web.outbound[0];
        for _ in 0..2 {
            let seen = http.get(to, "/").await;
            assert_eq!((seen.status, seen.error()), (503, Some("no-endpoints")));
            let words = String::from_utf8_lossy(&seen.body);
            assert!(words.contains("orders.shop:8080") && words.contains("ready"), "{words}");
            // The first endpoint is used by the same connection of the app.
            targets.replace(orders_address(), orders(protocol, &[("orders", sidecar.inbound[0])]));
            until("it is called", async || http.get(to, "/").await.status == 200).await;
            targets.replace(orders_address(), orders(protocol, &[]));
            until("it is gone", async || http.get(to, "/").await.status == 503).await;
        }
        assert!(metric(&web, "outrigger_errors_total", &["no-endpoints"]) >= 2);
    }
}
