//! The controller away, and back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use outrigger_api::discovery::{Protocol, Workload};
use outrigger_controller::discovery::FixedTargets;
use outrigger_issuer::ca::Ca;
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Http, SOON, Sidecar, TRUST_DOMAIN, metric, text};

use super::{Load, orders, orders_address, until};

const DAY: Duration = Duration::from_secs(86_400);

async fn readiness(admin: SocketAddr) -> (u16, String) {
    let seen = Http::one().get(admin, "/readyz").await;
    (seen.status, String::from_utf8_lossy(&seen.body).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_away_and_back() {
    let app = App::start(async |_| Response::new(text("done"))).await;
    let targets = Arc::new(FixedTargets::new([(orders_address(), orders(Protocol::Http1, &[]))]));
    let names = ["web", "orders", "payments"];
    let mut authority = Authority::with_discovery(&names, DAY, Some(Arc::clone(&targets) as _)).await;
    let old = Sidecar::new("orders").protects(app.address).start(&authority).await;
    let next = Sidecar::new("orders").protects(app.address).start(&authority).await;
    targets.replace(orders_address(), orders(Protocol::Http1, &[("orders", old.inbound[0])]));
    let web = Sidecar::new("web")
        .calls_address(orders_address())
        .start(&authority)
        .await;
    let http = Http::one();
    let load = Load::start(&http, web.outbound[0], 4);
    let answered = |by: &RunningProxy| metric(by, "outrigger_requests_total", &["inbound", "success"]);
    until("it is called", async || answered(&old) > 0).await;

    authority.go_away().await;
    // A new pod waits, and says for what.
    let new = Sidecar::new("payments").launch(&authority, |_| {}).await;
    let address = authority.address().to_string();
    until("it says what it waits for", async || {
        let (status, words) = readiness(new.admin).await;
        status == 503 && words.contains(&address)
    })
    .await;
    // An old one goes on with what it knows, on new connections of its app too.
    assert_eq!(Http::one().get(web.outbound[0], "/").await.status, 200);
    // Meanwhile the world changes.
    targets.replace(
        orders_address(),
        orders(Protocol::Http1, &[("orders", next.inbound[0])]),
    );
    assert_eq!(answered(&next), 0);

    authority.come_back().await;
    let ready = tokio::time::timeout(SOON, new.ready()).await;
    ready.expect("it does not become ready");
    assert_eq!(readiness(new.admin).await.0, 200);
    until("the change is caught up with", async || answered(&next) > 0).await;
    load.none_lost().await;
}

#[tokio::test]
async fn without_the_controller_an_unknown_address_is_an_error_that_names_it() {
    let targets = FixedTargets::new([(orders_address(), orders(Protocol::Http1, &[]))]);
    let mut authority = Authority::with_discovery(&["web"], DAY, Some(Arc::new(targets))).await;
    let web = Sidecar::new("web")
        .calls_address(orders_address())
        .start(&authority)
        .await;
    authority.go_away().await;
    let seen = Http::one().get(web.outbound[0], "/").await;
    assert_eq!((seen.status, seen.error()), (503, Some("discovery-unavailable")));
    let words = String::from_utf8_lossy(&seen.body);
    assert!(words.contains(&authority.address().to_string()), "{words}");
    authority.come_back().await;
    until("it answers again", async || {
        Http::one().get(web.outbound[0], "/").await.error() == Some("no-endpoints")
    })
    .await;
}

/// What is told of the cluster's networks.
fn networks(networks: &[&str]) -> Workload {
    Workload {
        cluster_networks: networks.iter().map(|&network| network.to_owned()).collect(),
        ..Workload::default()
    }
}

/// Waits until the sidecar has heard of them.
async fn heard(by: &RunningProxy, networks: &[&str]) {
    until("it has heard of the networks", async || {
        let config = Http::one().get(by.admin, "/config").await.body;
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        config["targets"]["workload"]["clusterNetworks"] == serde_json::json!(networks)
    })
    .await;
}

#[tokio::test]
async fn what_is_outside_of_the_clusters_networks_needs_no_controller() {
    let app = App::start(async |_| Response::new(text("outside"))).await;
    for (told, outside) in [
        (&["10.0.0.0/8"][..], true),
        (&["10.0.0.0/8", "fc00::/7"], true),
        // The app's address is inside, or nothing is known.
        (&["127.0.0.0/8"], false),
        (&[], false),
    ] {
        let targets = Arc::new(FixedTargets::default());
        targets.set_workload(networks(told));
        let mut authority = Authority::with_discovery(&["web"], DAY, Some(Arc::clone(&targets) as _)).await;
        let web = Sidecar::new("web").calls_address(app.address).start(&authority).await;
        heard(&web, told).await;
        authority.go_away().await;
        let seen = Http::one().get(web.outbound[0], "/").await;
        match outside {
            true => assert_eq!((seen.status, &*seen.body), (200, &b"outside"[..]), "{told:?}"),
            false => assert_eq!(seen.error(), Some("discovery-unavailable"), "{told:?}"),
        }
    }
}

/// Without waiting for the next SVID, which is a day away.
#[tokio::test]
async fn other_roots_reach_a_running_sidecar() {
    let targets = Arc::new(FixedTargets::default());
    let authority = Authority::with_discovery(&["web"], DAY, Some(Arc::clone(&targets) as _)).await;
    let web = Sidecar::new("web")
        .calls_address(orders_address())
        .start(&authority)
        .await;
    let before = web.identity().current().unwrap();
    let next = Ca::generate(TRUST_DOMAIN).unwrap();
    let mut identity = web.identity().subscribe();
    for (others, roots, generation) in [(&[&next][..], 2, 1), (&[], 1, 2)] {
        // Each generation has a session of its own, which is told of the roots when it begins. This one has begun.
        let network = format!("10.{generation}.0.0/16");
        targets.set_workload(networks(&[&network]));
        heard(&web, &[&network]).await;
        authority.trust(others);
        let told = identity.wait_for(|now| now.as_ref().is_some_and(|now| now.trust.not_after.len() == roots));
        let told = tokio::time::timeout(2 * SOON, told).await.expect("it is not told");
        let now = told.unwrap().clone().unwrap();
        let expected = (before.generation + generation, before.not_after);
        assert_eq!((now.generation, now.not_after), expected, "only with another SVID");
    }
}

/// The list was wrong: what seemed to be outside is a Service of the mesh.
#[tokio::test]
async fn a_list_of_networks_that_turns_out_wrong_means_mutual_tls_from_then_on() {
    let app = App::start(async |_| Response::new(text("done"))).await;
    let targets = Arc::new(FixedTargets::new([(app.address, orders(Protocol::Http1, &[]))]));
    targets.set_workload(networks(&["10.0.0.0/8"]));
    let authority = Authority::with_discovery(&["web", "orders"], DAY, Some(Arc::clone(&targets) as _)).await;
    let orders_proxy = Sidecar::new("orders").protects(app.address).start(&authority).await;
    targets.replace(
        app.address,
        orders(Protocol::Http1, &[("orders", orders_proxy.inbound[0])]),
    );
    let web = Sidecar::new("web").calls_address(app.address).start(&authority).await;
    let by_mesh = || {
        metric(
            &orders_proxy,
            "outrigger_requests_total",
            &["inbound", "success", "tls=\"true\""],
        )
    };
    heard(&web, &["10.0.0.0/8"]).await;
    assert_eq!(Http::one().get(web.outbound[0], "/").await.status, 200);
    assert_eq!(by_mesh(), 0);
    targets.set_workload(networks(&[]));
    heard(&web, &[]).await;
    for n in 1..=2 {
        assert_eq!(Http::one().get(web.outbound[0], "/").await.status, 200);
        assert_eq!(by_mesh(), n);
    }
}
