//! Routes and endpoints of a target are told apart.

use std::sync::Arc;

use futures_util::FutureExt;

use crate::discovery::Discover;
use crate::objects::route::RouteKind;
use crate::objects::{Kind, ObjectName};
use crate::store::Dep;
use crate::testing::Cluster;
use crate::topic::{Inbox, Reader};

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
    let inbox = Arc::new(Inbox::default());
    let reader = |number| Reader {
        inbox: Arc::clone(&inbox),
        number,
    };
    let routes = cluster
        .index
        .follow_routes("10.96.0.1:80".parse().unwrap(), "client", reader(0));
    let names: Vec<_> = routes.newest().sets().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["shop/web:80/v4", "shop/canary:80/v4"]);
    let _sets: Vec<_> = (1..)
        .zip(routes.newest().sets().iter())
        .map(|(number, name)| cluster.index.follow_endpoints(name, reader(number)))
        .collect();
    let changed = || {
        let mut changed: Vec<_> = std::iter::from_fn(|| inbox.next().now_or_never()).collect();
        changed.sort_unstable();
        changed
    };
    cluster.apply(&slice(""));
    assert_eq!(changed(), [1]);
    cluster.apply(&slice("{addresses: [10.244.0.1]}"));
    cluster.apply(&slice("{addresses: [10.244.0.1], conditions: {ready: false}}"));
    assert_eq!(changed(), [1]);
    // No port of the two says what it speaks. The routes are not even made again: the pods are asked by the Service's selector.
    let slices = ["web", "canary"].map(|service| Dep::Slices(ObjectName::new("shop", service)));
    assert_eq!(cluster.index.inner.lock().routes.stale(&slices.into()), []);
    // And the other way round.
    cluster.delete(Kind::Route(RouteKind::Http), "shop", "split");
    assert_eq!(changed(), [0]);
    assert_eq!(routes.newest().sets().len(), 1);
    // A pod is no endpoint of a set: its own address is one target.
    let pod = cluster
        .index
        .follow_routes("10.244.0.1:8080".parse().unwrap(), "client", reader(3));
    assert!(pod.newest().sets().is_empty());
}
