//! Routes and endpoints of a target are told apart.

use crate::discovery::Discover;
use crate::index::objects::Kind;
use crate::testing::Cluster;

const ROUTE: &str = "
kind: HTTPRoute
metadata: {namespace: shop, name: split}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - matches: [{path: {type: RegularExpression, value: '/v[0-9]+/.*'}}]
    backendRefs: [{name: web, port: 80, weight: 1}, {name: canary, port: 80, weight: 1}]
";

fn slice(endpoints: &str) -> String {
    format!(
        "kind: EndpointSlice\nmetadata: {{namespace: shop, name: web-x, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{endpoints}]\n"
    )
}

#[test]
fn a_flap_of_an_endpoint_changes_its_set_alone() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.add_service("canary", 2);
    cluster.apply(ROUTE);
    let mut routes = cluster.index.watch_routes("10.96.0.1:80".parse().unwrap(), "client");
    let names = routes.borrow_and_update().sets().to_vec();
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["shop/web:80/v4", "shop/canary:80/v4"]);
    let sets = routes.borrow().sets().to_vec();
    let mut sets: Vec<_> = sets.iter().map(|name| cluster.index.watch_endpoints(name)).collect();
    cluster.apply(&slice(""));
    cluster.apply(&slice("{addresses: [10.244.0.1]}"));
    cluster.apply(&slice("{addresses: [10.244.0.1], conditions: {ready: false}}"));
    let changed = |sets: &mut [tokio::sync::watch::Receiver<_>]| -> Vec<bool> {
        let changed = |set: &mut tokio::sync::watch::Receiver<_>| {
            let changed = set.has_changed().unwrap();
            set.mark_unchanged();
            changed
        };
        sets.iter_mut().map(changed).collect()
    };
    assert!(!routes.has_changed().unwrap());
    assert_eq!(changed(&mut sets), [true, false]);
    // And the other way round.
    cluster.delete(Kind::HttpRoute, "shop", "split");
    assert!(routes.has_changed().unwrap());
    assert_eq!(changed(&mut sets), [false, false]);
    assert_eq!(routes.borrow_and_update().sets().len(), 1);
    // A pod is no endpoint of a set: its own address is one target.
    let pod = cluster.index.watch_routes("10.244.0.1:8080".parse().unwrap(), "client");
    assert_eq!(pod.borrow().sets(), []);
}
