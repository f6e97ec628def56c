use crate::discovery::Discover;
use crate::objects::Kind;
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
    cluster.delete(Kind::TrafficPolicy, "shop", "a-old");
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
