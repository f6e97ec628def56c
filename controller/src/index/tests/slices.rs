//! EndpointSlices as Kubernetes means them: which endpoints there are, whose they are, and who gets them.

use std::net::IpAddr;

use outrigger_api::discovery as proto;
use outrigger_api::discovery::target;

use crate::discovery::{Caller, Discover};
use crate::objects::Kind;
use crate::testing::{Cluster, addresses, endpoints};
use crate::topology::Place;

/// The Service "web" at 10.96.0.9 and fd00:96::9, with a line of its spec.
fn service(more: &str) -> String {
    format!(
        "
kind: Service
metadata: {{namespace: shop, name: web}}
spec:
  clusterIPs: [10.96.0.9, 'fd00:96::9']
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: admin, port: 81, targetPort: www}}]
  {more}
"
    )
}

/// A slice of it, with the port http at 8080.
fn slice(name: &str, endpoints: &str) -> String {
    slice_with(name, "IPv4", "{name: http, port: 8080}", endpoints)
}

fn slice_with(name: &str, family: &str, ports: &str, endpoints: &str) -> String {
    format!(
        "
kind: EndpointSlice
metadata: {{namespace: shop, name: {name}, labels: {{kubernetes.io/service-name: web}}}}
addressType: {family}
ports: [{ports}]
endpoints: [{endpoints}]
"
    )
}

/// A pod with or without a sidecar.
fn pod(namespace: &str, name: &str, ip: &str, mesh: bool) -> String {
    let containers = if mesh { "{name: outrigger-proxy}" } else { "" };
    format!(
        "
kind: Pod
metadata: {{namespace: {namespace}, name: {name}}}
spec: {{serviceAccountName: {name}, nodeName: node-of-{name}, containers: [{containers}]}}
status: {{podIPs: [{{ip: '{ip}'}}]}}
"
    )
}

fn web(cluster: &Cluster) -> proto::Backend {
    cluster.service("10.96.0.9:80").backends.remove(0)
}

/// "address=identity's last part", by address; nothing after "=" where it is called in plaintext.
fn seen(cluster: &Cluster) -> String {
    let backend = web(cluster);
    let seen = endpoints(&backend).iter().map(|e| {
        let identity = e.identity.rsplit('/').next().unwrap();
        format!("{}={identity}", e.address)
    });
    seen.collect::<Vec<_>>().join(" ")
}

#[test]
fn conditions() {
    let (ready, not, ends) = ("10.0.0.1:8080", "", "10.0.0.1:8080");
    let cases = [
        ("{}", ready),
        ("{ready: true}", ready),
        ("{ready: true, serving: true, terminating: false}", ready),
        ("{ready: true, serving: false}", ready),
        ("{ready: false}", not),
        ("{ready: false, serving: true}", not),
        ("{ready: false, serving: false, terminating: true}", not),
        ("{ready: false, terminating: true}", not),
        ("{ready: false, serving: true, terminating: true}", ends),
        ("{terminating: true}", ends),
        ("{serving: true, terminating: true}", ends),
        // `publishNotReadyAddresses` makes any endpoint ready.
        ("{ready: true, serving: false, terminating: true}", ends),
    ];
    let cluster = Cluster::with(&service(""));
    for (conditions, alone) in cases {
        let endpoint = format!("{{addresses: [10.0.0.1], conditions: {conditions}}}");
        cluster.apply(&slice("a", &endpoint));
        assert_eq!(addresses(&web(&cluster)).join(" "), alone, "{conditions}");
        // Beside one that is ready, those that terminate are called no more.
        cluster.apply(&slice("a", &format!("{endpoint}, {{addresses: [10.0.0.2]}}")));
        let terminates = conditions.contains("terminating: true");
        let beside = match (alone.is_empty(), terminates) {
            (false, false) => "10.0.0.1:8080 10.0.0.2:8080",
            _ => "10.0.0.2:8080",
        };
        assert_eq!(addresses(&web(&cluster)).join(" "), beside, "{conditions} and another");
    }
    cluster.apply(&slice("a", "{addresses: [10.0.0.1]}"));
    assert_eq!(addresses(&web(&cluster)), ["10.0.0.1:8080"], "no conditions at all");
}

#[test]
fn pods_of_another_namespace() {
    // Knative: while a revision is at zero, its Service's endpoints are the activator, in Knative's own namespace.
    let cluster = Cluster::with(&service(""));
    cluster.apply(&pod("knative-serving", "activator", "10.244.0.7", true));
    let endpoint = "{addresses: [10.244.0.7], targetRef: {kind: Pod, namespace: knative-serving, name: activator}}";
    cluster.apply(&slice("a", endpoint));
    assert_eq!(seen(&cluster), "10.244.0.7:8080=activator");
    let identity = endpoints(&web(&cluster))[0].identity.clone();
    assert_eq!(identity, "spiffe://cluster.local/ns/knative-serving/sa/activator");
    // What its own annotation says holds for it here as well.
    cluster.apply(
        "
kind: Pod
metadata: {namespace: knative-serving, name: activator, annotations: {outrigger.dev/opaque-ports: '8080'}}
spec: {containers: []}
status: {podIPs: [{ip: 10.244.0.7}]}
",
    );
    let protocol = cluster.service("10.96.0.9:80").protocol;
    assert_eq!(protocol, proto::Protocol::Opaque as i32);
    // A pod of the same name in the slice's namespace is another one.
    cluster.delete(Kind::Pod, "knative-serving", "activator");
    cluster.apply(&pod("shop", "activator", "10.244.0.8", true));
    assert_eq!(seen(&cluster), "");
}

#[test]
fn whose_an_endpoint_is() {
    let named = "{addresses: [10.244.0.1], targetRef: {kind: Pod, name: a}}";
    let by_hand = "{addresses: [10.244.0.1]}";
    let other_kind = "{addresses: [10.244.0.1], targetRef: {kind: VirtualMachine, name: a}}";
    let in_mesh = |name, ip| pod("shop", name, ip, true);
    let outside = |name, ip| pod("shop", name, ip, false);
    let elsewhere = pod("else", "a", "10.244.0.1", true);
    let ended = "kind: Pod\nmetadata: {namespace: shop, name: a}\nspec: {containers: []}\nstatus: {phase: Failed}\n";
    let deleted = outside("a", "10.244.0.1").replace("name: a}", "name: a, deletionTimestamp: '2026-01-01T00:00:00Z'}");
    let own = "10.244.0.1:8080=a";
    let plaintext = "10.244.0.1:8080=";
    let cases: &[(&str, &str, &[String], &str)] = &[
        ("a pod of the mesh", named, &[in_mesh("a", "10.244.0.1")], own),
        ("a pod outside of it", named, &[outside("a", "10.244.0.1")], plaintext),
        ("not known yet", named, &[], ""),
        (
            "its address is not known yet",
            named,
            &[in_mesh("a", "10.244.9.9")],
            own,
        ),
        (
            "nor is that of one outside",
            named,
            &[outside("a", "10.244.9.9")],
            plaintext,
        ),
        (
            "another one has the address still: the certificate decides",
            named,
            &[in_mesh("a", "10.244.9.9"), in_mesh("b", "10.244.0.1")],
            own,
        ),
        (
            "another one has the address now",
            named,
            &[ended.to_owned(), in_mesh("b", "10.244.0.1")],
            "",
        ),
        (
            "it has ended, and the slice does not say so yet",
            named,
            &[in_mesh("a", "10.244.0.1"), ended.to_owned()],
            "",
        ),
        (
            "another one outside has the address",
            named,
            &[outside("a", "10.244.9.9"), outside("b", "10.244.0.1")],
            "",
        ),
        (
            "by hand, a pod of the mesh",
            by_hand,
            &[in_mesh("a", "10.244.0.1")],
            own,
        ),
        ("by hand, of another namespace", by_hand, &[elsewhere], own),
        (
            "by hand, a pod outside",
            by_hand,
            &[outside("a", "10.244.0.1")],
            plaintext,
        ),
        ("by hand, no pod", by_hand, &[], plaintext),
        (
            "by hand, the address goes from one to another",
            by_hand,
            &[outside("a", "10.244.0.1"), in_mesh("b", "10.244.0.1")],
            "",
        ),
        (
            "by hand, and the one is being deleted",
            by_hand,
            &[deleted, in_mesh("b", "10.244.0.1")],
            "10.244.0.1:8080=b",
        ),
        ("of another kind", other_kind, &[in_mesh("a", "10.244.0.1")], own),
    ];
    for (what, endpoint, pods, expected) in cases {
        let cluster = Cluster::with(&service(""));
        // Watched before the pods are known: each is a dependency.
        let _watched = cluster.index.watch_target("10.96.0.9:80".parse().unwrap(), "client");
        cluster.apply(&slice("a", endpoint));
        pods.iter().for_each(|pod| cluster.apply(pod));
        assert_eq!(seen(&cluster), *expected, "{what}");
    }
}

#[test]
fn an_address_by_hand_follows_the_pod_that_has_it() {
    let cluster = Cluster::with(&service(""));
    let _watched = cluster.index.watch_target("10.96.0.9:80".parse().unwrap(), "client");
    cluster.apply(&slice("a", "{addresses: [10.244.0.1]}"));
    assert_eq!(seen(&cluster), "10.244.0.1:8080=");
    cluster.apply(&pod("shop", "a", "10.244.0.1", true));
    assert_eq!(seen(&cluster), "10.244.0.1:8080=a");
    cluster.delete(Kind::Pod, "shop", "a");
    cluster.apply(&pod("shop", "b", "10.244.0.1", true));
    assert_eq!(seen(&cluster), "10.244.0.1:8080=b");
}

#[test]
fn ports_by_their_names_slice_by_slice() {
    let cluster = Cluster::with(&service(""));
    cluster.apply(&slice_with(
        "a",
        "IPv4",
        "{name: http, port: 8080}, {name: admin, port: 9001}",
        "{addresses: [10.0.0.1]}",
    ));
    cluster.apply(&slice_with(
        "b",
        "IPv4",
        "{name: http, port: 8888}, {name: other, port: 1}",
        "{addresses: [10.0.0.2]}",
    ));
    assert_eq!(addresses(&web(&cluster)), ["10.0.0.1:8080", "10.0.0.2:8888"]);
    assert_eq!(
        addresses(&cluster.service("10.96.0.9:81").backends[0]),
        ["10.0.0.1:9001"]
    );
    // All ports of the endpoint: the Service says which one is meant.
    cluster.apply(&slice_with(
        "b",
        "IPv4",
        "{name: http}, {name: admin}",
        "{addresses: [10.0.0.2]}",
    ));
    assert_eq!(addresses(&web(&cluster)), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    // Without a name, as of a Service whose only port has none.
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIPs: [10.96.0.9], ports: [{port: 80, targetPort: 9000}]}
",
    );
    cluster.apply(&slice_with("b", "IPv4", "{port: 7000}", "{addresses: [10.0.0.2]}"));
    cluster.apply(&slice_with(
        "c",
        "IPv4",
        "{name: '', port: 7001}, {name: '', port: 7001, protocol: UDP}",
        "{addresses: [10.0.0.3]}",
    ));
    assert_eq!(addresses(&web(&cluster)), ["10.0.0.2:7000", "10.0.0.3:7001"]);
}

#[test]
fn an_endpoint_in_several_slices_is_one() {
    let cluster = Cluster::with(&service(""));
    let state = |ready: bool| {
        format!(
            "{{addresses: [10.0.0.1], conditions: {{ready: {ready}, serving: true, terminating: {}}}}}",
            !ready
        )
    };
    cluster.apply(&slice("b", "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}"));
    // Whichever slice comes first, the state that can be called holds.
    for name in ["a", "c"] {
        cluster.apply(&slice(name, &state(false)));
        assert_eq!(addresses(&web(&cluster)), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    }
    cluster.apply(&slice("b", &state(false)));
    assert_eq!(addresses(&web(&cluster)), ["10.0.0.1:8080"]);
    // The first of an endpoint's addresses counts.
    cluster.apply(&slice("b", "{addresses: [10.0.0.2, 10.0.0.3]}"));
    assert_eq!(addresses(&web(&cluster)), ["10.0.0.2:8080"]);
}

#[test]
fn host_names_are_no_endpoints() {
    let cluster = Cluster::new();
    let fqdn = slice_with("a", "FQDN", "{name: http, port: 80}", "{addresses: [db.example.com]}");
    let object = serde_saphyr::from_str(&fqdn).unwrap();
    assert!(crate::objects::from_k8s::endpoint_slice(&object).is_none());
    cluster.apply(&service(""));
    cluster.apply(&slice("b", "{addresses: [10.0.0.1]}"));
    assert_eq!(addresses(&web(&cluster)), ["10.0.0.1:8080"]);
}

#[test]
fn each_family_has_its_own_endpoints() {
    let cluster = Cluster::with(&service(""));
    let six = |endpoints| slice_with("six", "IPv6", "{name: http, port: 8080}", endpoints);
    let at_six = || {
        let service = cluster.service("[fd00:96::9]:80");
        addresses(&service.backends[0]).join(" ")
    };
    cluster.apply(&slice("four", "{addresses: [10.0.0.1]}"));
    cluster.apply(&six("{addresses: ['fd00::1']}, {addresses: ['fd00::2']}"));
    assert_eq!(addresses(&web(&cluster)), ["10.0.0.1:8080"]);
    assert_eq!(at_six(), "[fd00::1]:8080 [fd00::2]:8080");
    // Those of the family that was dialled, terminating ones too, before those of the other.
    cluster.apply(&six(
        "{addresses: ['fd00::1'], conditions: {ready: false, serving: true, terminating: true}}",
    ));
    assert_eq!(at_six(), "[fd00::1]:8080");
    cluster.apply(&six("{addresses: ['fd00::1'], conditions: {ready: false}}"));
    assert_eq!(at_six(), "10.0.0.1:8080");
}

#[test]
fn a_pods_own_address_is_that_pod_whatever_its_state() {
    let cluster = Cluster::with(
        "
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIPs: [None], publishNotReadyAddresses: true, ports: [{name: http, port: 80, targetPort: 8080}]}
",
    );
    for n in 1..=2 {
        cluster.apply(&pod("shop", &format!("web-{n}"), &format!("10.244.0.{n}"), true));
    }
    cluster.apply(&slice(
        "a",
        "{addresses: [10.244.0.1], conditions: {ready: false}, targetRef: {kind: Pod, name: web-1}},
         {addresses: [10.244.0.2], targetRef: {kind: Pod, name: web-2}}",
    ));
    for n in 1..=2 {
        let endpoint = cluster.pod(&format!("10.244.0.{n}:8080")).endpoint.unwrap();
        assert_eq!(endpoint.address, format!("10.244.0.{n}:8080"));
        assert_eq!(endpoint.identity, format!("spiffe://cluster.local/ns/shop/sa/web-{n}"));
    }
}

const HINTED: &str = "
 {addresses: [10.0.0.1], nodeName: n1, zone: z1, hints: {forZones: [{name: z1}], forNodes: [{name: n1}]}},
 {addresses: [10.0.0.2], nodeName: n2, zone: z1, hints: {forZones: [{name: z1}], forNodes: [{name: n2}]}},
 {addresses: [10.0.0.3], nodeName: n3, zone: z2, hints: {forZones: [{name: z2}], forNodes: [{name: n3}]}}";

fn place(node: &str, zone: &str) -> Place {
    Place {
        node: Some(node.into()),
        zone: Some(zone.into()),
    }
}

/// The last bytes of the addresses that a caller gets.
fn at(cluster: &Cluster, place: &Place) -> String {
    let Some(target::Kind::Service(service)) = cluster.target_at("10.96.0.9:80", "client", place) else {
        panic!("no Service");
    };
    let last = |address: &str| address.trim_end_matches(":8080").rsplit('.').next().unwrap().to_owned();
    addresses(&service.backends[0]).into_iter().map(last).collect()
}

#[test]
fn a_callers_place_decides_with_hints_and_local() {
    let zones_only = HINTED.replace("forNodes", "others");
    let one_without = HINTED.replacen("hints", "others", 1);
    let cases: &[(&str, &str, &str, [&str; 4])] = &[
        ("nodes and zones", "", HINTED, ["1", "2", "3", "123"]),
        ("zones", "", &zones_only, ["12", "12", "3", "123"]),
        ("one without hints", "", &one_without, ["123", "123", "123", "123"]),
        (
            "no hints",
            "",
            &HINTED.replace("hints", "others"),
            ["123", "123", "123", "123"],
        ),
        ("local", "internalTrafficPolicy: Local", HINTED, ["1", "2", "3", ""]),
        (
            "cluster",
            "internalTrafficPolicy: Cluster",
            &one_without,
            ["123", "123", "123", "123"],
        ),
    ];
    for (what, policy, endpoints, expected) in cases {
        let cluster = Cluster::with(&service(policy));
        cluster.apply(&slice("a", endpoints));
        let places = [
            place("n1", "z1"),
            place("n2", "z1"),
            place("n3", "z2"),
            place("n4", "z4"),
        ];
        assert_eq!(places.map(|place| at(&cluster, &place)), *expected, "{what}");
        // A caller of whom nothing is known.
        let unknown = if policy.contains("Local") { "" } else { "123" };
        assert_eq!(at(&cluster, &Place::default()), unknown, "{what}");
    }
}

#[test]
fn a_routes_backends_are_each_by_their_own_services_policy() {
    let cluster = Cluster::with(&service("internalTrafficPolicy: Local"));
    cluster.apply(&slice("a", HINTED));
    cluster.add_service("orders", 1);
    cluster.apply(
        "
kind: HTTPRoute
metadata: {namespace: shop, name: split}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{backendRefs: [{name: orders, port: 80}, {name: web, port: 80}]}]
",
    );
    let Some(target::Kind::Service(service)) = cluster.target_at("10.96.0.1:80", "client", &place("n2", "z1")) else {
        panic!("no Service");
    };
    assert_eq!(addresses(&service.backends[0]), ["10.244.0.1:8080"]);
    assert_eq!(addresses(&service.backends[1]), ["10.0.0.2:8080"]);
}

#[test]
fn where_a_caller_runs() {
    let cluster = Cluster::with("kind: Node\nmetadata: {name: node-of-a, labels: {topology.kubernetes.io/zone: z1}}\n");
    cluster.apply("kind: Node\nmetadata: {name: node-of-b}\n");
    cluster.apply(&pod("shop", "a", "10.244.0.1", true));
    cluster.apply(&pod("shop", "b", "10.244.0.2", true));
    cluster.apply(&pod("else", "a", "10.244.0.3", true));
    let in_a = (Some("node-of-a"), Some("z1"));
    let in_b = (Some("node-of-b"), None);
    let nowhere = (None, None);
    let cases = [
        ("by its address", ("a", "", "10.244.0.1"), in_a),
        ("by address and name", ("a", "a", "10.244.0.1"), in_a),
        (
            "the address of a pod of its own tells more than its word",
            ("a", "b", "10.244.0.1"),
            in_a,
        ),
        (
            "by its name, where the address is a node's",
            ("a", "a", "172.18.0.2"),
            in_a,
        ),
        (
            "by its name, where the address is another account's",
            ("a", "a", "10.244.0.2"),
            in_a,
        ),
        ("a zone is not known", ("b", "", "10.244.0.2"), in_b),
        ("the name of another account's pod", ("a", "b", "172.18.0.2"), nowhere),
        ("the address of another account's pod", ("a", "", "10.244.0.2"), nowhere),
        (
            "the address of another namespace's pod",
            ("a", "", "10.244.0.3"),
            nowhere,
        ),
        ("nobody's", ("a", "c", "172.18.0.2"), nowhere),
        ("nothing", ("a", "", "172.18.0.2"), nowhere),
    ];
    for (what, (account, name, address), (node, zone)) in cases {
        let caller = Caller {
            namespace: "shop".into(),
            service_account: account.into(),
            pod: name.into(),
            address: address.parse::<IpAddr>().unwrap(),
        };
        let place = cluster.index.watch_place(&caller).borrow().clone();
        assert_eq!((place.node.as_deref(), place.zone.as_deref()), (node, zone), "{what}");
    }
}

#[test]
fn a_place_is_kept_up_to_date() {
    let cluster = Cluster::new();
    let caller = Caller {
        namespace: "shop".into(),
        service_account: "a".into(),
        pod: "a".into(),
        address: "172.18.0.2".parse().unwrap(),
    };
    let watched = cluster.index.watch_place(&caller);
    let now = || watched.borrow().clone();
    assert_eq!(*now(), Place::default());
    cluster.apply(&pod("shop", "a", "10.244.0.1", true));
    assert_eq!(now().node.as_deref(), Some("node-of-a"));
    for (zone, labels) in [(Some("z1"), "topology.kubernetes.io/zone: z1"), (None, "")] {
        cluster.apply(&format!(
            "kind: Node\nmetadata: {{name: node-of-a, labels: {{{labels}}}}}\n"
        ));
        assert_eq!(now().zone.as_deref(), zone);
    }
    cluster.apply("kind: Node\nmetadata: {name: node-of-a, labels: {topology.kubernetes.io/zone: z2}}\n");
    cluster.delete(Kind::Node, "", "node-of-a");
    assert_eq!(now().zone, None);
    cluster.delete(Kind::Pod, "shop", "a");
    assert_eq!(*now(), Place::default());
}

#[test]
fn session_affinity() {
    let cluster = Cluster::new();
    for (annotation, spec, expected) in [
        ("", "", false),
        ("", "sessionAffinity: None", false),
        ("", "sessionAffinity: ClientIP", true),
        (
            "",
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10}}",
            true,
        ),
        (
            "outrigger.dev/session-affinity: ignore",
            "sessionAffinity: ClientIP",
            false,
        ),
        // Not understood: as if it were not there.
        (
            "outrigger.dev/session-affinity: none",
            "sessionAffinity: ClientIP",
            true,
        ),
    ] {
        cluster.apply(&format!(
            "
kind: Service
metadata: {{namespace: shop, name: web, annotations: {{{annotation}}}}}
spec: {{clusterIPs: [10.96.0.9], ports: [{{port: 80}}], {spec}}}
"
        ));
        assert_eq!(web(&cluster).client_affinity, expected, "{annotation} {spec}");
    }
}
