//! Who is asked where a Service cannot answer.

use outrigger_api::discovery as proto;

use crate::discovery::Discover;
use crate::testing::Cluster;

fn cluster() -> Cluster {
    let cluster = Cluster::new();
    for (service, n) in [("web", 1), ("spare", 2), ("cache", 3)] {
        cluster.add_service(service, n);
    }
    cluster
}

fn policy(target: &str, backends: &str) -> String {
    format!(
        "
kind: TrafficPolicy
metadata: {{namespace: shop, name: p}}
spec: {{targetRefs: [{target}], fallback: {{when: {{statuses: [503]}}, backendRefs: [{backends}]}}}}
"
    )
}

const SERVICE: &str = "{kind: Service, name: web}";
const ROUTE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";

/// The names of those that are asked, and their shares. `None`: it is not there.
fn asked(service: &proto::Service, policy: Option<&proto::Policy>) -> Vec<(Option<String>, u32)> {
    let fallback = policy.and_then(|policy| policy.fallback.as_ref());
    let backends = fallback.into_iter().flat_map(|fallback| &fallback.backends);
    let name = |index: u32| service.backends[index as usize].r#ref.clone().unwrap().name;
    backends.map(|one| (one.backend.map(name), one.weight)).collect()
}

#[test]
fn they_are_backends_of_the_service_as_soon_as_they_are_there() {
    let cluster = cluster();
    cluster.apply(&policy(
        SERVICE,
        "{name: spare, port: 80}, {name: late, port: 80, weight: 3}, {name: cache, port: 81}",
    ));
    let service = cluster.service("10.96.0.1:80");
    let [spare, missing] = [(Some("spare".to_owned()), 1), (None, 1)];
    assert_eq!(
        asked(&service, service.policy.as_ref()),
        [spare.clone(), (None, 3), missing.clone()]
    );
    let mut watched = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "shop");
    watched.mark_unchanged();
    cluster.add_service("late", 4);
    assert!(watched.has_changed().unwrap());
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(
        asked(&service, service.policy.as_ref()),
        [spare, (Some("late".to_owned()), 3), missing]
    );
    // Callers of another namespace ask the same.
    let theirs = cluster.service_for("10.96.0.1:80", "buyer");
    assert_eq!(asked(&theirs, theirs.policy.as_ref())[0].0.as_deref(), Some("spare"));
}

/// A route of the Service, and its parent.
#[test]
fn a_rule_has_its_own_over_the_services() {
    let cluster = cluster();
    cluster.apply(&policy(ROUTE, "{name: cache, port: 80}"));
    cluster.apply(&policy(SERVICE, "{name: spare, port: 80}").replace("name: p", "name: q"));
    cluster.apply(
        "
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
",
    );
    let service = cluster.service("10.96.0.1:80");
    let of = |policy: Option<&proto::Policy>| asked(&service, policy)[0].0.clone();
    assert_eq!(of(service.policy.as_ref()).as_deref(), Some("spare"));
    assert_eq!(of(service.routes[0].policy.as_ref()).as_deref(), Some("cache"));
}
