//! How much a pod takes.

use std::sync::Arc;

use outrigger_api::limits::Policy;
use tokio::sync::watch;

use super::cluster;
use crate::discovery::{Discover, Limits};
use crate::objects::Kind;
use crate::objects::policy::PolicyKind;
use crate::testing::{Cluster, pod_key};

fn policy(namespace: &str, name: &str, target: &str, scope: &str) -> String {
    format!(
        "kind: RateLimitPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {{targetRefs: [{target}], \
         limits: [{{rate: {{requests: 100, interval: 1s}}, scope: {scope}}}]}}\n"
    )
}

fn pod(name: &str, ready: bool, more: &str) -> String {
    let status = if ready { "True" } else { "False" };
    format!(
        "kind: Pod\nmetadata: {{namespace: shop, name: {name}, labels: {{app: web}}{more}}}\nspec: {{serviceAccountName: web, \
         containers: [{{name: outrigger-proxy}}]}}\nstatus: {{conditions: [{{type: Ready, status: \"{status}\"}}]}}\n"
    )
}

fn told(cluster: &Cluster, namespace: &str, pod: &str) -> Vec<Policy> {
    cluster.index.flush();
    let account = pod.split('-').next().unwrap();
    let limits = cluster.index.watch_limits(&pod_key(namespace, pod, account));
    limits.borrow().said().unwrap().policies.clone()
}

#[test]
fn all_that_select_a_pod_are_joined() {
    let cluster = cluster();
    assert!(told(&cluster, "shop", "web-1").is_empty());
    for (namespace, name, target) in [
        ("outrigger", "a-mesh", "{kind: Namespace, name: outrigger}"),
        ("shop", "b-namespace", "{kind: Namespace, name: shop}"),
        ("shop", "c-pods", "{kind: Pod, selector: {matchLabels: {app: web}}}"),
        ("shop", "d-service", "{kind: Service, name: web}"),
        ("elsewhere", "pods", "{kind: Pod, selector: {}}"),
        (
            "shop",
            "route",
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: web}",
        ),
    ] {
        cluster.apply(&policy(namespace, name, target, "Pod"));
    }
    let policies = told(&cluster, "shop", "web-1");
    let names: Vec<_> = policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(
        names,
        ["outrigger/a-mesh", "shop/b-namespace", "shop/c-pods", "shop/d-service"]
    );
    assert_eq!(policies[3].ports.as_ref().unwrap().numbers, [8080]);
    // One with a mistake is none.
    cluster.apply(&policy("shop", "d-service", "{kind: Service, name: web}", "Global"));
    assert_eq!(told(&cluster, "shop", "web-1").len(), 3);
}

/// A rate of a Service is divided by its ready pods, now and after each change, and what is of a pod is not.
#[test]
fn a_rate_of_a_service_is_divided_among_its_ready_pods() {
    let cluster = cluster();
    cluster.apply(&policy("shop", "s", "{kind: Service, name: web}", "Service"));
    cluster.apply(&policy("shop", "p", "{kind: Service, name: web}", "Pod"));
    let key = pod_key("shop", "web-1", "web");
    let watch = cluster.index.watch_limits(&key);
    let shares = || {
        cluster.index.flush();
        let limits = watch.borrow();
        let policies = &limits.said().unwrap().policies;
        assert_eq!(policies[0].limits[0].shares, 0);
        policies[1].limits[0].shares
    };
    // Nobody is ready: whoever asks is called all the same.
    assert_eq!(shares(), 1);
    for (change, expected) in [
        (pod("web-1", true, ""), 1),
        (pod("web-2", true, ""), 2),
        (pod("web-3", true, ""), 3),
        (pod("web-4", false, ""), 3),
        (pod("web-3", false, ""), 2),
        (pod("web-3", true, ""), 3),
        // It is being deleted.
        (pod("web-2", true, ", deletionTimestamp: \"2026-01-01T00:00:00Z\""), 2),
    ] {
        cluster.apply(&change);
        assert_eq!(shares(), expected, "{change}");
    }
}

/// Each of them asks how many they are: they are counted once until the next flush, which then tells all of them.
#[test]
fn the_pods_of_a_policy_are_counted_once_for_all_of_them() {
    let cluster = cluster();
    cluster.apply(&policy("shop", "s", "{kind: Namespace, name: shop}", "Service"));
    cluster.apply(&pod("web-1", true, ""));
    let follow = |pod: &str| cluster.index.watch_limits(&pod_key("shop", pod, "web"));
    let shares = |watch: &watch::Receiver<Arc<Limits>>| watch.borrow().said().unwrap().policies[0].limits[0].shares;
    let first = follow("web-1");
    assert_eq!(shares(&first), 1);
    cluster.apply_value(serde_saphyr::from_str(&pod("web-2", true, "")).unwrap());
    let second = follow("web-2");
    assert_eq!((shares(&first), shares(&second)), (1, 1));
    cluster.index.flush();
    assert_eq!((shares(&first), shares(&second)), (2, 2));
}

/// A sidecar that is told of none drops those that it knows.
#[test]
fn until_the_policies_have_been_listed_nothing_is_told() {
    let cluster = cluster();
    let kind = Kind::Policy(PolicyKind::RateLimit);
    cluster.index.set_unlisted(kind);
    cluster.index.set_synced();
    let watch = cluster.index.watch_limits(&pod_key("shop", "web-1", "web"));
    assert_eq!(watch.borrow().said(), None);
    assert!(!watch.borrow().is_cut());
    // A list that has begun is not all of it.
    cluster.apply(&policy("shop", "p", "{kind: Namespace, name: shop}", "Pod"));
    assert_eq!(watch.borrow().said(), None);
    cluster.index.set_listed(Kind::Policy(PolicyKind::Access));
    cluster.index.flush();
    assert_eq!(watch.borrow().said(), None);
    cluster.index.set_listed(kind);
    cluster.index.flush();
    assert_eq!(watch.borrow().said().unwrap().policies.len(), 1);
}

/// All pods of the mesh together have no rate that could be divided.
#[test]
fn the_whole_mesh_shares_no_rate() {
    let cluster = cluster();
    cluster.apply(&policy(
        "outrigger",
        "m",
        "{kind: Namespace, name: outrigger}",
        "Service",
    ));
    assert!(told(&cluster, "shop", "web-1")[0].limits.is_empty());
}
