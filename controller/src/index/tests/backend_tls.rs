//! BackendTLSPolicies, on their way to sidecars.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::discovery as proto;
use outrigger_api::discovery::{Protocol, backend, backend_tls, to_sidecar};
use prost::Message;

use crate::discovery::Discover;
use crate::objects::Kind;
use crate::objects::keys::{KeyPlace, KeySource};
use crate::split::Understands;
use crate::testing::{Cluster, endpoints};
use crate::topic::Reader;
use crate::topology::Place;

const SYSTEM: &str = "{hostname: pay.example.com, wellKnownCACertificates: System}";
const CA: &str = "{hostname: pay.example.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}";

/// Of the namespace shop.
fn policy(name: &str, created: &str, targets: &str, validation: &str) -> String {
    format!(
        "
kind: BackendTLSPolicy
metadata: {{namespace: shop, name: {name}, creationTimestamp: '{created}-01-01T00:00:00Z'}}
spec: {{targetRefs: [{targets}], validation: {validation}}}
"
    )
}

const WEB: &str = "{group: '', kind: Service, name: web}";

/// The Service web, with an endpoint in the mesh and one that is no pod; and other, which has its own alone.
fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.add_service("other", 2);
    cluster.apply(
        "
kind: EndpointSlice
metadata: {namespace: shop, name: outside, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 443}]
endpoints: [{addresses: ['192.0.2.1']}]
",
    );
    cluster
}

/// What a sidecar that understands TLS is told of the endpoints of a backend.
fn told(cluster: &Cluster, address: &str, index: usize, tls: bool) -> Vec<String> {
    let address: SocketAddr = address.parse().unwrap();
    let reader = || Reader {
        inbox: Arc::default(),
        number: 0,
    };
    let routes = cluster.index.follow_routes(address, "client", reader()).newest();
    let set = cluster.index.follow_endpoints(&routes.sets()[index], reader()).newest();
    let understands = Understands { spills: false, tls };
    let message = set.view(&Place::default(), understands).unwrap().message(None);
    match proto::ToSidecar::decode(message).unwrap().kind {
        Some(to_sidecar::Kind::EndpointSet(set)) => set.endpoints.into_iter().map(|e| e.address).collect(),
        other => panic!("{other:?}"),
    }
}

fn tls(cluster: &Cluster) -> Option<proto::BackendTls> {
    cluster.service("10.96.0.1:80").backends[0].tls.clone()
}

fn source(cluster: &Cluster) -> KeySource {
    let sources = cluster.index.key_sources().borrow().clone();
    sources
        .into_iter()
        .find(|source| matches!(source.place, KeyPlace::Certificates(_)))
        .unwrap()
}

#[test]
fn who_does_not_understand_it_is_told_of_no_endpoint_that_it_would_call_in_plaintext() {
    let cluster = cluster();
    let (inside, outside) = ("10.244.0.1:8080", "192.0.2.1:443");
    for understands in [false, true] {
        assert_eq!(told(&cluster, "10.96.0.1:80", 0, understands), [inside, outside]);
    }
    assert_eq!(tls(&cluster), None);
    cluster.apply(&policy("p", "2026", WEB, SYSTEM));
    assert_eq!(told(&cluster, "10.96.0.1:80", 0, true), [inside, outside]);
    assert_eq!(told(&cluster, "10.96.0.1:80", 0, false), [inside]);
    // Streams of the version before the session, too.
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(endpoints(&service.backends[0]).len(), 1);
    assert_eq!(service.backends[0].tls.as_ref().unwrap().hostname, "pay.example.com");
    // It holds there and nowhere else.
    assert_eq!(cluster.service("10.96.0.2:80").backends[0].tls, None);
    cluster.delete(Kind::BackendTls, "shop", "p");
    assert_eq!(told(&cluster, "10.96.0.1:80", 0, false), [inside, outside]);
    assert_eq!(tls(&cluster), None);
}

#[test]
fn the_older_one_holds_and_that_of_a_port_before_that_of_the_service() {
    let cluster = cluster();
    let who = |cluster: &Cluster| tls(cluster).map(|tls| tls.policy).unwrap_or_default();
    let port = "{group: '', kind: Service, name: web, sectionName: http}";
    let other_port = "{group: '', kind: Service, name: web, sectionName: admin}";
    cluster.apply(&policy("z", "2025", WEB, SYSTEM));
    cluster.apply(&policy("younger", "2026", WEB, SYSTEM));
    assert_eq!(who(&cluster), "shop/z");
    cluster.apply(&policy("x", "2025", WEB, SYSTEM));
    assert_eq!(who(&cluster), "shop/x");
    cluster.apply(&policy("b", "2026", other_port, SYSTEM));
    assert_eq!(who(&cluster), "shop/x");
    cluster.apply(&policy("a", "2026", port, SYSTEM));
    assert_eq!(who(&cluster), "shop/a");
    // What is no Service is not ours to say.
    cluster.apply(&policy(
        "a",
        "2026",
        "{group: example.com, kind: Service, name: web}",
        SYSTEM,
    ));
    assert_eq!(who(&cluster), "shop/x");
}

#[test]
fn it_holds_for_backends_and_mirrors_of_routes_and_for_names() {
    let cluster = cluster();
    cluster.index.set_external_names_allowed(true);
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: outside}
spec: {type: ExternalName, externalName: pay.example.com, ports: [{name: https, port: 443}]}
---
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec:
  parentRefs: [{group: '', kind: Service, name: other}]
  rules:
  - backendRefs: [{name: web, port: 80}, {name: outside, port: 443}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}}}]
",
    );
    let of = |cluster: &Cluster| -> Vec<(String, bool)> {
        let backends = cluster.service("10.96.0.2:80").backends;
        let said = |b: proto::Backend| (b.r#ref.unwrap().name, b.tls.is_some());
        backends.into_iter().map(said).collect()
    };
    let both = "{group: '', kind: Service, name: web}, {group: '', kind: Service, name: outside}";
    cluster.apply(&policy("p", "2026", both, SYSTEM));
    let expected = [("other", false), ("web", true), ("outside", true)];
    assert_eq!(of(&cluster), expected.map(|(name, tls)| (name.to_owned(), tls)));
    let backends = cluster.service("10.96.0.2:80").backends;
    // An older sidecar would resolve the name.
    assert!(matches!(&backends[2].kind, Some(backend::Kind::SecuredDns(name)) if name.port == 443));
    cluster.delete(Kind::BackendTls, "shop", "p");
    let backends = cluster.service("10.96.0.2:80").backends;
    assert!(matches!(&backends[2].kind, Some(backend::Kind::Dns(_))));
}

#[test]
fn it_holds_for_a_pod_that_is_called_at_its_own_address() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.apply(
        "
kind: Pod
metadata: {namespace: shop, name: bare, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: app}]}
status: {podIP: 10.244.0.9, podIPs: [{ip: 10.244.0.9}]}
",
    );
    cluster.pod("10.244.0.9:8080");
    cluster.apply(&policy("p", "2026", WEB, SYSTEM));
    let told = cluster.service("10.244.0.9:8080");
    assert_eq!(told.r#ref.as_ref().unwrap().name, "web");
    let [backend] = &told.backends[..] else {
        panic!("{told:?}")
    };
    let Some(backend::Kind::SecuredEndpoints(secured)) = &backend.kind else {
        panic!("{backend:?}")
    };
    assert_eq!(secured.endpoints[0].address, "10.244.0.9:8080");
    assert!(backend.tls.is_some());
    // Another port is not the Service's; and a pod of the mesh has mutual TLS.
    cluster.pod("10.244.0.9:9090");
    assert!(!cluster.pod("10.244.0.1:8080").endpoint.unwrap().identity.is_empty());
}

#[test]
fn what_cannot_be_carried_out_believes_nobody() {
    let cluster = cluster();
    let nobody = |cluster: &Cluster| match tls(cluster).unwrap().trust {
        Some(backend_tls::Trust::Nobody(why)) => why,
        other => panic!("{other:?}"),
    };
    for (validation, part) in [
        ("{hostname: pay.example.com}", "not valid"),
        ("{hostname: '', wellKnownCACertificates: System}", "not valid"),
        (
            "{hostname: a.b, caCertificateRefs: [{group: '', kind: Secret, name: ca}]}",
            "no CA certificate",
        ),
    ] {
        cluster.apply(&policy("p", "2026", WEB, validation));
        let why = nobody(&cluster);
        assert!(why.contains(part), "{why}");
        // And an older sidecar is told of nobody there.
        assert_eq!(told(&cluster, "10.96.0.1:80", 0, false), ["10.244.0.1:8080"]);
    }
    // An older one that is not valid holds all the same: another one may be meant for others.
    cluster.apply(&policy("newer", "2027", WEB, SYSTEM));
    nobody(&cluster);
}

#[test]
fn certificates_come_from_config_maps_and_go_with_them() {
    let cluster = cluster();
    cluster.apply(&policy("p", "2026", WEB, CA));
    let trust = |cluster: &Cluster| tls(cluster).unwrap().trust.unwrap();
    let is_nobody = |cluster: &Cluster, part: &str| match trust(cluster) {
        backend_tls::Trust::Nobody(why) => assert!(why.contains(part), "{why}"),
        other => panic!("{other:?}"),
    };
    let certificates = |cluster: &Cluster| match trust(cluster) {
        backend_tls::Trust::Ca(ca) => ca.certificates,
        other => panic!("{other:?}"),
    };
    is_nobody(&cluster, "not been read yet");
    let source = source(&cluster);
    let now = SystemTime::UNIX_EPOCH;
    let set = |result: Result<&str, &str>| {
        let result = result.map(str::to_owned).map_err(str::to_owned);
        cluster.index.set_keys(&source, result, now);
        cluster.index.flush();
    };
    set(Ok("AQID\n"));
    assert_eq!(certificates(&cluster), [vec![1, 2, 3]]);
    // Rotation.
    set(Ok("AQID\nBAUG\n"));
    assert_eq!(certificates(&cluster).len(), 2);
    // Nobody answers: what came last holds.
    set(Err("no answer"));
    assert_eq!(certificates(&cluster).len(), 2);
    cluster
        .index
        .forget_keys(&source, "there is no ConfigMap ca".to_owned(), now);
    cluster.index.flush();
    is_nobody(&cluster, "no CA certificate");
    set(Ok("AQID\n"));
    // One that is not good takes nothing from the others.
    let two = "{hostname: a.b, caCertificateRefs: [{group: '', kind: Secret, name: x}, {group: '', kind: ConfigMap, name: ca}]}";
    cluster.apply(&policy("p", "2026", WEB, two));
    assert_eq!(certificates(&cluster).len(), 1);
    // More than a policy may have.
    set(Ok(&"AQID\n".repeat(65)));
    is_nobody(&cluster, "no CA certificate");
    cluster.delete(Kind::BackendTls, "shop", "p");
    assert!(cluster.index.key_sources().borrow().is_empty());
}

#[test]
fn what_the_server_speaks_is_no_word_of_the_app() {
    let cluster = cluster();
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: web}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: https}]
",
    );
    assert_eq!(cluster.service("10.96.0.1:80").protocol(), Protocol::Tls);
    cluster.apply(&policy("p", "2026", WEB, SYSTEM));
    assert_eq!(cluster.service("10.96.0.1:80").protocol(), Protocol::Unspecified);
}

#[test]
fn all_certificates_of_an_answer_fit_into_a_message_or_nothing_is_told() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let now = SystemTime::UNIX_EPOCH;
    let mut backends = Vec::new();
    for n in 2..72_u8 {
        let name = format!("b{n}");
        cluster.add_service_in(&name, "b", n);
        cluster.apply(&format!(
            "
kind: BackendTLSPolicy
metadata: {{namespace: {name}, name: p}}
spec: {{targetRefs: [{{group: '', kind: Service, name: b}}], validation: {CA}}}
"
        ));
        backends.push(format!("{{namespace: {name}, name: b, port: 80}}"));
    }
    let sources = cluster.index.key_sources().borrow().clone();
    for source in &sources {
        // 64,000 bytes.
        cluster.index.set_keys(source, Ok("A".repeat(85_336) + "\n"), now);
    }
    let route = |backends: &[String]| {
        let rules: Vec<_> = backends
            .chunks(10)
            .map(|some| format!("{{backendRefs: [{}]}}", some.join(",")))
            .collect();
        format!(
            "
kind: HTTPRoute
metadata: {{namespace: shop, name: r}}
spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{}]}}
",
            rules.join(",")
        )
    };
    let answer = |cluster: &Cluster| {
        let address = "10.96.0.1:80".parse().unwrap();
        let reader = Reader {
            inbox: Arc::default(),
            number: 0,
        };
        cluster
            .index
            .follow_routes(address, "client", reader)
            .newest()
            .message()
    };
    cluster.apply(&route(&backends[..30]));
    assert!(answer(&cluster).unwrap().len() > 30 * 64_000);
    cluster.apply(&route(&backends));
    assert!(answer(&cluster).is_err());
    let streams = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    assert!(streams.borrow().view(&Place::default()).is_err());
}
