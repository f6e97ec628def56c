// The cluster of objects.yaml in an index. Compiled with the code of the version before, too, when answers are recorded: so it
// keeps to what both have, and whoever includes it imports `Object`, `Route`, `RouteKind` and `from_k8s` from where that version has
// them, and has a function `policy` that reads a TrafficPolicy.

use std::sync::Arc;

use kube::core::DynamicObject;
use outrigger_controller::index::Index;
use outrigger_controller::metrics::Metrics;
use serde_json::Value;

/// What is asked for, by the name of its recording.
const ADDRESSES: [(&str, &str); 6] = [
    ("orders", "10.96.0.2:80"),
    ("canary", "10.96.0.3:80"),
    ("web-db", "10.96.0.1:3306"),
    ("pod", "10.244.0.2:8080"),
    ("pod-outside-the-mesh", "10.244.0.4:8080"),
    ("external", "192.0.2.1:443"),
];
const NAMESPACE: &str = "shop";
const POD: &str = "web-1";
const ACCOUNT: &str = "web";

fn index(objects: &str, trust_domain: &str) -> Arc<Index> {
    let index = Index::new(trust_domain, Arc::new(Metrics::default()));
    index.set_cluster_networks("10.0.0.0/8,fc00::/7".parse().unwrap());
    index.set_external_names_allowed(true);
    for document in objects.split("---\n") {
        let value: Value = serde_saphyr::from_str(document).unwrap();
        let kind = value["kind"].as_str().unwrap().to_owned();
        let (name, object) = match kind.as_str() {
            "Service" => from_k8s::service(&serde_json::from_value(value).unwrap()).unwrap(),
            "EndpointSlice" => from_k8s::endpoint_slice(&serde_json::from_value(value).unwrap()).unwrap(),
            "Pod" => from_k8s::pod(&serde_json::from_value(value).unwrap()).unwrap(),
            "Node" => from_k8s::node(&serde_json::from_value(value).unwrap()).unwrap(),
            "Namespace" => from_k8s::namespace(&serde_json::from_value(value).unwrap()).unwrap(),
            _ => {
                let object: DynamicObject = serde_json::from_value(value).unwrap();
                let name = from_k8s::object_name(&object.metadata);
                match kind.as_str() {
                    "HTTPRoute" => {
                        let route = Route::read(RouteKind::Http, &object).unwrap();
                        (name, Object::Route(Box::new(route)))
                    }
                    "TrafficPolicy" => (name, policy(&object)),
                    other => panic!("{other}"),
                }
            }
        };
        index.apply(name, object);
    }
    index.set_synced();
    index
}
