//! Against a name server in this process.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::timeout;

use super::Known;
use super::testing::{Server, fill};

const LONG: Duration = Duration::from_secs(10);

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn sockets(lasts: &[u8]) -> Known {
    Known::Addresses(lasts.iter().map(|&last| SocketAddr::from((ip(last), 80))).collect())
}

#[tokio::test]
async fn follows_a_name_by_its_ttl() {
    let server = Server::new().await;
    server.set("example.test", &[ip(2), ip(1), ip(2)], 1);
    let resolver = server.resolver();
    let mut addresses = resolver.watch("example.test", 80).unwrap();
    timeout(LONG, addresses.changed()).await.unwrap().unwrap();
    assert_eq!(*addresses.borrow_and_update(), sockets(&[1, 2]));
    // A second watcher sees at once what is known, and asks nobody.
    let mut second = resolver.watch("example.test", 80).unwrap();
    timeout(Duration::from_millis(100), second.changed())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(server.asked(), 1);
    server.set("example.test", &[ip(3)], 300);
    timeout(LONG, addresses.wait_for(|known| *known == sockets(&[3])))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_asked_again_after_its_negative_ttl() {
    let server = Server::new().await;
    let mut addresses = server.resolver().watch("later.test", 80).unwrap();
    let resolver = server.resolver();
    let mut addresses_kept = resolver.watch("later.test", 80).unwrap();
    // A resolver that is gone asks nobody any more, and its receivers see that.
    assert!(timeout(LONG, addresses.changed()).await.unwrap().is_err());
    timeout(LONG, addresses_kept.changed()).await.unwrap().unwrap();
    assert_eq!(*addresses_kept.borrow_and_update(), Known::Nothing);
    server.set("later.test", &[ip(1)], 300);
    timeout(LONG, addresses_kept.wait_for(|known| *known == sockets(&[1])))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_name_that_nobody_watches_is_not_asked_for() {
    let server = Server::new().await;
    server.set("example.test", &[ip(1)], 1);
    server.set("clock.test", &[ip(9)], 1);
    let resolver = server.resolver();
    let mut addresses = resolver.watch("example.test", 80).unwrap();
    timeout(LONG, addresses.changed()).await.unwrap().unwrap();
    drop(addresses);
    // Another name with the same TTL is the clock: after four of its answers, the first one was asked at most twice.
    let clock = resolver.watch("clock.test", 80).unwrap();
    let count = |name: &str| server.asked.lock().iter().filter(|asked| *asked == name).count();
    timeout(LONG, async {
        while count("clock.test") < 4 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    assert!(count("example.test") <= 2, "{}", count("example.test"));
    drop(clock);
}

#[tokio::test]
async fn resolves_once() {
    let server = Server::new().await;
    server.set("controller.test", &[ip(1), ip(2)], 30);
    let resolver = server.resolver();
    let mut found = resolver.resolve("controller.test").await.unwrap();
    found.sort();
    assert_eq!(found, [IpAddr::from(ip(1)), IpAddr::from(ip(2))]);
    assert_eq!(
        resolver.resolve("fd00::1").await.unwrap(),
        ["fd00::1".parse::<IpAddr>().unwrap()]
    );
    assert!(
        resolver
            .resolve("nowhere.test")
            .await
            .unwrap_err()
            .contains("nowhere.test has no address")
    );
}

#[tokio::test]
async fn a_full_table_says_so_and_has_room_again() {
    let server = Server::new().await;
    server.set("example.test", &[ip(1)], 300);
    let resolver = server.resolver();
    let mut watched = fill(&resolver).await;
    let error = resolver.watch("example.test", 80).unwrap_err();
    assert!(error.contains("1024") && error.contains("example.test"), "{error}");
    watched.pop();
    let mut addresses = resolver.watch("example.test", 80).unwrap();
    timeout(6 * LONG, addresses.changed()).await.unwrap().unwrap();
    assert_eq!(*addresses.borrow_and_update(), sockets(&[1]));
}

#[tokio::test]
async fn where_nobody_can_be_asked_the_reason_is_known() {
    let server = Server::new().await;
    let resolver = server.resolver();
    drop(server);
    let mut addresses = resolver.watch("example.test", 80).unwrap();
    let failed = addresses.wait_for(|known| matches!(known, Known::Failed(_)));
    timeout(6 * LONG, failed).await.unwrap().unwrap();
}

/// The domains of a node come last in a pod's search list, and whoever has the name there would get what is meant for a Service.
#[tokio::test]
async fn a_service_is_looked_for_in_its_cluster_alone() {
    let usual = [
        "shop.svc.cluster.local",
        "svc.cluster.local",
        "cluster.local",
        "node.test",
    ];
    let other = ["shop.svc.k8s.test", "svc.k8s.test", "k8s.test", "node.test"];
    let in_svc = ["svc.svc.k8s.test", "svc.k8s.test", "k8s.test", "svc.node.test"];
    let cases: [(&[&str], &str, &str); 10] = [
        (&usual, "jaeger.shop.svc", "jaeger.shop.svc.cluster.local"),
        (&usual, "jaeger.shop.SVC", "jaeger.shop.svc.cluster.local"),
        (&usual, "jaeger.shop.svc.", "jaeger.shop.svc"),
        (&other, "jaeger.shop.svc", "jaeger.shop.svc.k8s.test"),
        (&other, "controller.outrigger.svc", "controller.outrigger.svc.k8s.test"),
        (&in_svc, "jaeger.shop.svc", "jaeger.shop.svc.k8s.test"),
        (&["svc.node.test", "node.test"], "a.b.svc", "a.b.svc.cluster.local"),
        (&["node.test"], "jaeger.shop.svc", "jaeger.shop.svc.cluster.local"),
        (
            &["svc", "node.test"],
            "jaeger.shop.svc",
            "jaeger.shop.svc.cluster.local",
        ),
        (&[], "jaeger.shop.svc", "jaeger.shop.svc.cluster.local"),
    ];
    for (search, host, expected) in cases {
        let server = Server::new().await;
        let resolver = server.resolver_of_pod(search);
        assert!(resolver.resolve(host).await.is_err(), "{host}");
        assert_eq!(*server.asked.lock(), [expected], "{host} in {search:?}");
        server.set(expected, &[ip(7)], 300);
        assert_eq!(resolver.resolve(host).await.unwrap(), [IpAddr::V4(ip(7))], "{host}");
        let mut watched = resolver.watch(host, 80).unwrap();
        timeout(LONG, watched.wait_for(|known| *known == sockets(&[7])))
            .await
            .unwrap()
            .unwrap();
    }
    // The test's server does see who walks.
    let server = Server::new().await;
    assert!(server.resolver_of_pod(&usual).resolve("jaeger").await.is_err());
    let asked = server.asked.lock().clone();
    assert!(asked.iter().any(|name| name == "jaeger.node.test"), "{asked:?}");
}
