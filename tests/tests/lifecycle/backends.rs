//! Backends that lead each caller's sidecar to its own host: whoever may write a route or a Service in one namespace would have
//! the sidecars of others call their own loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use http::Response;
use outrigger_api::discovery::backend::Kind;
use outrigger_api::discovery::{DnsName, Endpoint, Endpoints, Protocol, Target};
use outrigger_controller::discovery::FixedTargets;
use outrigger_proxy::config::{Config, Destination, OutboundListener};
use outrigger_tests::mesh::{App, Authority, Http, Sidecar, text};
use tokio::net::TcpListener;

use super::names::Names;
use super::{orders_address, service};

const ADMIN_PORT: &str = "the admin port";
const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

fn at(address: &str, port: u16) -> Target {
    let address = match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    };
    let endpoints = vec![Endpoint {
        address,
        ..Endpoint::default()
    }];
    service(Protocol::Http1, Kind::Endpoints(Endpoints { endpoints }))
}

/// As in a pod: connections are captured, and the controller says where they go.
fn in_pod(config: &mut Config) {
    config.workload.pod_ips = vec!["127.0.0.99".parse().unwrap()];
    config.outbound.push(OutboundListener {
        listen: "127.0.0.1:0".parse().unwrap(),
        to: Destination::Original,
    });
}

#[tokio::test]
async fn no_backend_leads_to_its_callers_own_host() {
    let called = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&called);
    let app = App::start(move |_| {
        count.fetch_add(1, SeqCst);
        async { Response::new(text("a debugger on loopback")) }
    })
    .await;
    // The admin port, at the pod's own address.
    let free = TcpListener::bind("127.0.0.99:0").await.unwrap();
    let admin = free.local_addr().unwrap();
    drop(free);
    let names = Names::start().await;
    names.set(&["127.0.0.1".parse().unwrap()]);
    let port = app.address.port();
    let dns = Kind::Dns(DnsName {
        host: super::names::NAME.to_owned(),
        port: port.into(),
    });
    let mut attacks: Vec<(String, Target)> = [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:0.0.0.0",
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "255.255.255.255",
    ]
    .map(|address| (address.to_owned(), at(address, port)))
    .into();
    attacks.push(("a name".to_owned(), service(Protocol::Http1, dns)));
    attacks.push((ADMIN_PORT.to_owned(), at("127.0.0.99", admin.port())));
    for (name, target) in attacks {
        let targets = Arc::new(FixedTargets::new([(orders_address(), target.clone())]));
        let authority = Authority::with_discovery(&["web"], DAY, Some(targets)).await;
        let web = Sidecar::new("web")
            .calls_address(orders_address())
            .start_with(&authority, |config| {
                in_pod(config);
                if name == ADMIN_PORT {
                    config.admin = admin;
                }
                config.dns_servers = Some(vec![names.address]);
            })
            .await;
        let seen = Http::one().post(web.outbound[0], "/shutdown", "").await;
        assert_eq!(
            (seen.status, seen.error()),
            (503, Some("connect-failed")),
            "{name}: {seen:?}"
        );
        let why = String::from_utf8_lossy(&seen.body).into_owned();
        assert!(why.contains("which no backend may have"), "{name}: {why}");
        assert_eq!(called.load(SeqCst), 0, "{name}");
    }
    // The control: where nothing is captured, loopback is as good as any.
    let targets = Arc::new(FixedTargets::new([(orders_address(), at("127.0.0.1", port))]));
    let authority = Authority::with_discovery(&["web"], DAY, Some(targets)).await;
    let web = Sidecar::new("web")
        .calls_address(orders_address())
        .start(&authority)
        .await;
    assert_eq!(Http::one().post(web.outbound[0], "/", "").await.status, 200);
    assert_eq!(called.load(SeqCst), 1);
}
