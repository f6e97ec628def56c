use outrigger_api::discovery as proto;

use crate::discovery::Discover;
use crate::objects::Kind;
use crate::objects::policy::PolicyKind;
use crate::testing::Cluster;

fn policy(name: &str, created: &str, targets: &str, spec: &str) -> String {
    format!(
        "
kind: TrafficPolicy
metadata: {{namespace: shop, name: {name}, creationTimestamp: '{created}T00:00:00Z'}}
spec: {{targetRefs: [{targets}]{spec}}}
"
    )
}

const SERVICE: &str = "{kind: Service, name: web}";
const NAMESPACE: &str = "{kind: Namespace, name: shop}";
const ROUTE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";

fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.add_service("other", 2);
    cluster
}

#[test]
fn field_by_field_the_service_goes_before_its_namespace() {
    let cluster = cluster();
    cluster.apply(&policy(
        "wide",
        "2026-01-01",
        NAMESPACE,
        ", timeouts: {request: 9s, connect: 2s}, retry: {attempts: 5, statuses: [500], backoff: {base: 1ms, max: 1s}}",
    ));
    cluster.apply(&policy(
        "own",
        "2026-02-01",
        SERVICE,
        ", timeouts: {request: 1s}, retry: {attempts: 0, backoff: {base: 7ms}, nonIdempotent: true}",
    ));
    let policy = cluster.service("10.96.0.1:80").policy.unwrap();
    assert_eq!(
        (policy.request_timeout_ms, policy.connect_timeout_ms),
        (Some(1000), Some(2000))
    );
    let retry = policy.retry.unwrap();
    assert_eq!(retry.attempts, Some(0));
    assert_eq!((retry.backoff_base_ms, retry.backoff_max_ms), (Some(7), Some(1000)));
    assert!(retry.statuses_set && retry.statuses == [500] && retry.non_idempotent == Some(true));
    // Another Service of the namespace, and one of its pods.
    let other = cluster.service("10.96.0.2:80").policy.unwrap();
    assert_eq!(other.request_timeout_ms, Some(9000));
    assert_eq!(
        cluster.pod("10.244.0.1:8080").policy.unwrap().request_timeout_ms,
        Some(1000)
    );
    assert_eq!(
        cluster.pod("10.244.0.1:9999").policy.unwrap().request_timeout_ms,
        Some(9000)
    );
}

#[test]
fn no_statuses_at_all_are_said_too() {
    let cluster = cluster();
    cluster.apply(&policy("wide", "2026-01-01", NAMESPACE, ", retry: {statuses: [500]}"));
    cluster.apply(&policy("own", "2026-01-01", SERVICE, ", retry: {statuses: []}"));
    let retry = cluster.service("10.96.0.1:80").policy.unwrap().retry.unwrap();
    assert!(retry.statuses_set && retry.statuses.is_empty());
}

#[test]
fn a_rules_own_words_go_before_the_policy_on_its_route() {
    let cluster = cluster();
    cluster.apply(
        "
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - {timeouts: {request: 1s}, backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /longer}}], backendRefs: [{name: web, port: 80}]}
",
    );
    assert_eq!(cluster.service("10.96.0.1:80").routes[0].policy, None);
    cluster.apply(&policy(
        "p",
        "2026-01-01",
        ROUTE,
        ", timeouts: {request: 5s}, retry: {attempts: 1}",
    ));
    let service = cluster.service("10.96.0.1:80");
    let policies: Vec<_> = service.routes.iter().map(|r| r.policy.clone().unwrap()).collect();
    assert_eq!(policies[0].request_timeout_ms, Some(5000));
    assert_eq!(policies[1].request_timeout_ms, Some(1000));
    assert_eq!(policies[1].retry.as_ref().unwrap().attempts, Some(1));
    assert_eq!(service.policy, None, "the policy is the route's alone");
}

#[test]
fn of_two_for_the_same_object_the_oldest_holds_as_a_whole() {
    let cluster = cluster();
    cluster.apply(&policy(
        "b-new",
        "2026-02-01",
        SERVICE,
        ", timeouts: {connect: 9s}, retry: {attempts: 9}",
    ));
    cluster.apply(&policy("a-old", "2026-01-01", SERVICE, ", timeouts: {connect: 1s}"));
    let policy_now = || cluster.service("10.96.0.1:80").policy.unwrap();
    assert_eq!(
        (policy_now().connect_timeout_ms, policy_now().retry),
        (Some(1000), None)
    );
    cluster.delete(Kind::Policy(PolicyKind::Traffic), "shop", "a-old");
    assert_eq!(policy_now().connect_timeout_ms, Some(9000));
    // Of the same age: by name.
    cluster.apply(&policy("a-twin", "2026-02-01", SERVICE, ", timeouts: {connect: 4s}"));
    assert_eq!(policy_now().connect_timeout_ms, Some(4000));
}

#[test]
fn an_invalid_policy_holds_nowhere_and_displaces_nobody() {
    let cluster = cluster();
    cluster.apply(&policy("good", "2026-02-01", SERVICE, ", timeouts: {connect: 3s}"));
    for spec in [
        ", retry: {attempts: 11}",
        ", timeouts: {connect: soon}",
        ", retry: {attempts: many}",
    ] {
        cluster.apply(&policy("bad", "2026-01-01", SERVICE, spec));
        assert_eq!(
            cluster.service("10.96.0.1:80").policy.unwrap().connect_timeout_ms,
            Some(3000),
            "{spec}"
        );
    }
}

#[test]
fn fields_of_a_newer_version_are_passed_over() {
    let cluster = cluster();
    cluster.apply(&policy(
        "newer",
        "2026-01-01",
        "{kind: Service, name: web, sectionName: http}",
        ", timeouts: {connect: 3s, idle: 1m}, hedging: {percentile: 99}, retry: {attempts: 1, statuses: [500]}",
    ));
    let policy = cluster.service("10.96.0.1:80").policy.unwrap();
    assert_eq!(policy.connect_timeout_ms, Some(3000));
    assert_eq!(policy.retry.unwrap().attempts, Some(1));
}

#[test]
fn policies_of_other_namespaces_do_not_hold() {
    let cluster = cluster();
    cluster.apply(
        &policy("p", "2026-01-01", SERVICE, ", timeouts: {connect: 3s}").replace("namespace: shop", "namespace: evil"),
    );
    cluster.apply(
        &policy("wide", "2026-01-01", NAMESPACE, ", timeouts: {connect: 3s}")
            .replace("namespace: shop", "namespace: evil"),
    );
    assert_eq!(cluster.service("10.96.0.1:80").policy, None);
}

#[test]
fn a_change_reaches_whoever_watches() {
    let cluster = cluster();
    let mut watched = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    let mut other = cluster.index.watch_target("10.96.0.2:80".parse().unwrap(), "client");
    watched.mark_unchanged();
    other.mark_unchanged();
    cluster.apply(&policy("p", "2026-01-01", SERVICE, ", timeouts: {connect: 3s}"));
    assert!(watched.has_changed().unwrap());
    assert!(!other.has_changed().unwrap());
}

/// Two ports, and one Service beside it.
fn two_ports() -> Cluster {
    let cluster = cluster();
    cluster.index.set_own("outrigger", "outrigger-controller-1");
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: web}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81, targetPort: 8081}]
",
    );
    cluster
}

/// Each says another limit for connecting, in seconds, the farthest first: what is said to whom after each.
#[test]
fn what_is_nearer_wins() {
    let cluster = two_ports();
    let said = || {
        let connect = |policy: Option<proto::Policy>| policy.and_then(|p| p.connect_timeout_ms).unwrap_or(0) / 1000;
        [
            connect(cluster.service("10.96.0.1:80").policy),
            connect(cluster.service("10.96.0.1:81").policy),
            connect(cluster.service("10.96.0.2:80").policy),
            connect(cluster.service_for("10.96.0.1:80", "buyer").policy),
            connect(cluster.service_for("10.96.0.1:81", "buyer").policy),
            connect(cluster.pod("10.244.0.1:8080").policy),
            connect(cluster.pod("10.244.0.1:9999").policy),
        ]
    };
    let at = |namespace: &str, target: &str, seconds: u32| {
        let name = format!("p{seconds}");
        let policy = policy(
            &name,
            "2026-01-01",
            target,
            &format!(", timeouts: {{connect: {seconds}s}}"),
        );
        cluster.apply(&policy.replace("namespace: shop, name: p", &format!("namespace: {namespace}, name: p")));
    };
    assert_eq!(said(), [0; 7]);
    at("outrigger", "{kind: Namespace, name: outrigger}", 1);
    assert_eq!(said(), [1; 7], "the whole mesh");
    at("shop", NAMESPACE, 2);
    assert_eq!(said(), [2; 7], "the namespace");
    at("shop", SERVICE, 3);
    assert_eq!(said(), [3, 3, 2, 3, 3, 3, 2], "the Service");
    at("shop", "{kind: Service, name: web, sectionName: admin}", 4);
    assert_eq!(said(), [3, 4, 2, 3, 4, 3, 2], "its port");
    at("buyer", "{kind: Service, namespace: shop, name: web}", 5);
    assert_eq!(said(), [3, 4, 2, 5, 5, 3, 2], "callers of a namespace");
    at(
        "buyer",
        "{kind: Service, namespace: shop, name: web, sectionName: http}",
        6,
    );
    assert_eq!(said(), [3, 4, 2, 6, 5, 3, 2], "callers of a namespace, at one port");
    // None of these is a target.
    at("buyer", "{kind: Namespace, name: shop}", 7);
    at("buyer", "{kind: Namespace, namespace: shop, name: shop}", 8);
    at("shop", "{kind: Namespace, name: shop, sectionName: http}", 9);
    at("shop", "{kind: Service, name: web, sectionName: nope}", 10);
    at("shop", "{group: apps, kind: Service, name: web, sectionName: http}", 11);
    assert_eq!(said(), [3, 4, 2, 6, 5, 3, 2]);
}

#[test]
fn a_rule_has_its_own_policy_by_its_name() {
    let cluster = cluster();
    cluster.apply(
        "
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - {name: slow, matches: [{path: {value: /longest}}], backendRefs: [{name: web, port: 80}]}
  - {name: own, timeouts: {request: 1s}, matches: [{path: {value: /longer}}], backendRefs: [{name: web, port: 80}]}
  - {matches: [{path: {value: /}}], backendRefs: [{name: web, port: 80}]}
",
    );
    let wide = ROUTE;
    let slow = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: slow}";
    let own = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: own}";
    cluster.apply(&policy(
        "wide",
        "2026-01-01",
        wide,
        ", timeouts: {request: 5s, connect: 5s}",
    ));
    cluster.apply(&policy("slow", "2026-01-01", slow, ", timeouts: {request: 30s}"));
    cluster.apply(&policy(
        "own",
        "2026-01-01",
        own,
        ", timeouts: {request: 30s, connect: 7s}",
    ));
    let routes = cluster.service("10.96.0.1:80").routes;
    let said: Vec<_> = routes
        .iter()
        .map(|r| r.policy.clone().unwrap())
        .map(|policy| (policy.request_timeout_ms.unwrap(), policy.connect_timeout_ms.unwrap()))
        .collect();
    assert_eq!(said, [(30_000, 5000), (1000, 7000), (5000, 5000)]);
    // Routes of another namespace are nobody else's.
    cluster.apply(
        &policy(
            "p",
            "2026-01-01",
            &wide.replace("name: r", "namespace: shop, name: r"),
            ", timeouts: {connect: 9s}",
        )
        .replace("metadata: {namespace: shop", "metadata: {namespace: buyer"),
    );
    assert_eq!(cluster.service("10.96.0.1:80").routes, routes);
}

/// A field of a target that this version does not know may make it narrower: without it the policy would hold for more.
#[test]
fn a_target_with_a_field_of_a_newer_version_is_none() {
    let cluster = cluster();
    cluster.apply(&policy(
        "newer",
        "2026-01-01",
        "{kind: Service, name: web, selector: {version: canary}}",
        ", timeouts: {connect: 3s}",
    ));
    assert_eq!(cluster.service("10.96.0.1:80").policy, None);
}

#[test]
fn a_rate_is_one_thing_in_either_word() {
    let cluster = cluster();
    let rate = |spec: &str| {
        cluster.apply(&policy("own", "2026-01-01", SERVICE, spec));
        let retry = cluster.service("10.96.0.1:80").policy.unwrap().retry.unwrap();
        let rate = retry.budget_min_rate.map(|rate| (rate.count, rate.interval_ms));
        (
            retry.budget_percent,
            retry.budget_interval_ms,
            retry.budget_min_per_second,
            rate,
        )
    };
    let wide = ", retryConstraint: {budget: {percent: 50, interval: 1m}, minRetryRate: {count: 30, interval: 1m}}";
    cluster.apply(&policy("wide", "2026-01-01", NAMESPACE, wide));
    assert_eq!(
        rate(", timeouts: {connect: 1s}"),
        (Some(50), Some(60_000), Some(0), Some((30, 60_000)))
    );
    assert_eq!(
        rate(", retry: {budget: {minPerSecond: 5}}"),
        (Some(50), Some(60_000), Some(5), None)
    );
    assert_eq!(
        rate(", retryConstraint: {budget: {percent: 1}, minRetryRate: {count: 7}}"),
        (Some(1), Some(60_000), Some(7), Some((7, 1000)))
    );
}

#[test]
fn a_change_reaches_whoever_it_is_for() {
    let cluster = two_ports();
    let mut buyer = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "buyer");
    let mut client = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    let mut changed = || {
        let changed = [&mut buyer, &mut client].map(|watched| watched.has_changed().unwrap());
        buyer.mark_unchanged();
        client.mark_unchanged();
        changed
    };
    changed();
    let theirs = policy(
        "p",
        "2026-01-01",
        "{kind: Service, namespace: shop, name: web}",
        ", timeouts: {connect: 3s}",
    );
    cluster.apply(&theirs.replace("metadata: {namespace: shop", "metadata: {namespace: buyer"));
    assert_eq!(changed(), [true, false]);
    let mesh = policy(
        "p",
        "2026-01-01",
        "{kind: Namespace, name: outrigger}",
        ", timeouts: {request: 3s}",
    );
    cluster.apply(&mesh.replace("metadata: {namespace: shop", "metadata: {namespace: outrigger"));
    assert_eq!(changed(), [true, true]);
    cluster.delete(Kind::Policy(PolicyKind::Traffic), "buyer", "p");
    assert_eq!(changed(), [true, false]);
}
