use outrigger_api::discovery::{Protocol, Workload};
use outrigger_api::ports::DEFAULT_OPAQUE;

use crate::testing::Cluster;

fn workload(cluster: &Cluster) -> Workload {
    cluster.known("shop", "orders-1").borrow().workload.clone().unwrap()
}

const POD: &str = "
kind: Pod
metadata: {namespace: shop, name: orders-1, labels: {app: orders}}
spec:
  containers: [{name: a, ports: [{name: www, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]
  initContainers: [{name: b, ports: [{name: side, containerPort: 7000}]}]
status: {podIPs: [{ip: 10.244.0.1}]}
";

#[test]
fn a_pod_that_is_not_known() {
    assert_eq!(workload(&Cluster::new()), Workload::default());
}

#[test]
fn protocols_come_from_the_services_that_select_the_pod() {
    let cluster = Cluster::with(POD);
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: a}
spec:
  selector: {app: orders}
  ports:
  - {name: a, port: 80, targetPort: www, appProtocol: http}
  - {name: b, port: 81, targetPort: 9000, appProtocol: grpc}
  - {name: c, port: 82, targetPort: side, appProtocol: tcp}
  - {name: d, port: 83, targetPort: nowhere, appProtocol: http}
  - {name: e, port: 84, targetPort: 9001}
  - {name: f, port: 3306, targetPort: 33060}
---
kind: Service
metadata: {namespace: shop, name: of-somebody-else}
spec: {selector: {app: orders, version: other}, ports: [{port: 80, targetPort: 9001, appProtocol: http}]}
---
kind: Service
metadata: {namespace: shop, name: without-selector}
spec: {ports: [{port: 80, targetPort: 9001, appProtocol: http}]}
---
kind: Service
metadata: {namespace: elsewhere, name: a}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 9001, appProtocol: http}]}
",
    );
    let known = workload(&cluster);
    let mut protocols: Vec<_> = known.protocols.iter().map(|(port, p)| (*port, *p)).collect();
    protocols.sort_unstable();
    assert_eq!(
        protocols,
        [
            (7000, Protocol::Opaque as i32),
            (8080, Protocol::Http1 as i32),
            (9000, Protocol::Http2 as i32),
            (33060, Protocol::Opaque as i32),
        ]
    );
    let mut opaque: Vec<u32> = DEFAULT_OPAQUE
        .iter()
        .map(|p| u32::from(*p))
        .chain([7000, 33060])
        .collect();
    opaque.sort_unstable();
    assert_eq!(known.opaque_ports, opaque);
}

#[test]
fn opaque_ports_of_the_pod_or_else_its_namespace() {
    let cluster = Cluster::with(POD);
    cluster.apply("kind: Namespace\nmetadata: {name: shop, annotations: {outrigger.dev/opaque-ports: '4000-4002'}}\n");
    let has = |port: u32| workload(&cluster).opaque_ports.contains(&port);
    assert!(has(4000) && has(4002) && !has(4003));
    cluster.apply(&POD.replace("labels:", "annotations: {outrigger.dev/opaque-ports: '5000'}, labels:"));
    assert!(has(5000) && !has(4000));
    // It goes before a Service's word.
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: a}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 5000, appProtocol: http}]}
",
    );
    assert!(has(5000));
    assert_eq!(
        workload(&cluster).protocols.get(&5000),
        Some(&(Protocol::Opaque as i32))
    );
}

#[test]
fn a_service_can_say_that_a_well_known_port_is_http() {
    let cluster = Cluster::with(POD);
    let watched = cluster.known("shop", "orders-1");
    assert!(workload(&cluster).opaque_ports.contains(&6379));
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: a}
spec: {selector: {app: orders}, ports: [{port: 6379, appProtocol: http}]}
",
    );
    assert!(watched.has_changed().unwrap());
    let known = workload(&cluster);
    assert!(!known.opaque_ports.contains(&6379));
    assert_eq!(known.protocols.get(&6379), Some(&(Protocol::Http1 as i32)));
}

#[test]
fn where_services_disagree_bytes_are_not_looked_into() {
    let cluster = Cluster::with(POD);
    for (name, protocol) in [("a", "http"), ("b", "tcp"), ("c", "http")] {
        cluster.apply(&format!(
            "
kind: Service
metadata: {{namespace: shop, name: {name}}}
spec: {{selector: {{app: orders}}, ports: [{{port: 80, targetPort: www, appProtocol: {protocol}}}]}}
"
        ));
    }
    assert_eq!(
        workload(&cluster).protocols.get(&8080),
        Some(&(Protocol::Opaque as i32))
    );
}
