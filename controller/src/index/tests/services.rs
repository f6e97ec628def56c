use outrigger_api::discovery::{Protocol, backend, target};

use crate::discovery::Discover;
use crate::objects::{Kind, ObjectName};
use crate::testing::{Cluster, addresses, endpoints};

const DUAL_STACK: &str = "
kind: Service
metadata: {namespace: shop, name: web}
spec:
  clusterIPs: [10.96.0.9, 'fd00:96::9']
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: www}, {name: admin, port: 9090}]
---
kind: EndpointSlice
metadata: {namespace: shop, name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: admin, port: 9090}, {name: http, port: 8080, protocol: UDP}]
endpoints:
- {addresses: [10.244.0.9], zone: a, targetRef: {kind: Pod, name: web-1}}
---
kind: EndpointSlice
metadata: {namespace: shop, name: web-6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080}, {name: admin, port: 9090}]
endpoints:
- {addresses: ['fd00:244::9'], zone: a, targetRef: {kind: Pod, name: web-1}}
---
kind: Pod
metadata: {namespace: shop, name: web-1, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: outrigger-proxy}, {name: web, ports: [{name: www, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.244.0.9}, {ip: 'fd00:244::9'}]}
";

#[test]
fn cluster_ip_of_both_families() {
    let cluster = Cluster::with(DUAL_STACK);
    let service = cluster.service("10.96.0.9:80");
    let name = service.r#ref.as_ref().unwrap();
    assert_eq!(
        (name.namespace.as_str(), name.name.as_str(), name.port),
        ("shop", "web", 80)
    );
    assert_eq!(addresses(&service.backends[0]), ["10.244.0.9:8080"]);
    let endpoint = &endpoints(&service.backends[0])[0];
    assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((endpoint.zone.as_str(), endpoint.pod.as_str()), ("a", "web-1"));
    assert!(service.routes.is_empty() && service.policy.is_none());
    let service = cluster.service("[fd00:96::9]:80");
    assert_eq!(addresses(&service.backends[0]), ["[fd00:244::9]:8080"]);
    let admin = cluster.service("10.96.0.9:9090");
    assert_eq!(addresses(&admin.backends[0]), ["10.244.0.9:9090"]);
    // Not a port of the Service, and an address that nobody has.
    assert_eq!(other_ports(&cluster, "10.96.0.9:81"), Some(vec![80, 9090]));
    assert_eq!(cluster.target("192.0.2.1:80"), None);
}

#[test]
fn the_other_family_is_better_than_nobody() {
    let cluster = Cluster::with(DUAL_STACK);
    cluster.delete(Kind::EndpointSlice, "shop", "web-6");
    let service = cluster.service("[fd00:96::9]:80");
    assert_eq!(addresses(&service.backends[0]), ["10.244.0.9:8080"]);
}

#[test]
fn an_endpoint_whose_pod_is_not_known_yet_is_not_called_in_plaintext() {
    let cluster = Cluster::new();
    cluster.add_service("orders", 1);
    let watched = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    cluster.delete(Kind::Pod, "shop", "orders-1");
    assert!(watched.has_changed().unwrap());
    assert!(endpoints(&cluster.service("10.96.0.1:80").backends[0]).is_empty());
    cluster.add_service("orders", 1);
    assert_eq!(endpoints(&cluster.service("10.96.0.1:80").backends[0]).len(), 1);
    // Endpoints without a pod are somebody's own: there is nobody to wait for.
    cluster.apply(
        "
kind: EndpointSlice
metadata: {namespace: shop, name: orders-x, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [192.0.2.7]}]
",
    );
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(addresses(&service.backends[0]), ["192.0.2.7:8080"]);
    assert_eq!(endpoints(&service.backends[0])[0].identity, "");
}

/// The pod orders-1 with some of its metadata, init containers and containers.
fn orders_pod(metadata: &str, init: &str, containers: &str) -> String {
    format!(
        "
kind: Pod
metadata: {{namespace: shop, name: orders-1, {metadata}}}
spec: {{initContainers: [{init}], containers: [{{name: app}}, {containers}]}}
status: {{podIPs: [{{ip: 10.244.0.1}}]}}
"
    )
}

#[test]
fn identities_are_of_pods_with_a_sidecar_that_answers_there() {
    const OWN: &str = "spiffe://cluster.local/ns/shop/sa/default";
    let skips = |ports: &str| {
        format!(
            "{{name: outrigger-init, env: [{{name: OUTRIGGER_SKIP_INBOUND_PORTS, value: '{ports}'}}]}}, {{name: outrigger-proxy}}"
        )
    };
    let twice = "{name: outrigger-init, env: [{name: OUTRIGGER_SKIP_INBOUND_PORTS, value: '9000'},
      {name: OUTRIGGER_SKIP_INBOUND_PORTS, value: '8080'}]}, {name: outrigger-proxy}";
    let cluster = Cluster::new();
    cluster.add_service("orders", 1);
    for (what, init, containers, identity) in [
        (
            "an ordinary sidecar",
            "{name: outrigger-init}",
            "{name: outrigger-proxy}",
            OWN,
        ),
        (
            "a native sidecar",
            "{name: outrigger-init}, {name: outrigger-proxy}",
            "",
            OWN,
        ),
        ("none", "", "", ""),
        ("capture alone", "{name: outrigger-init}", "", ""),
        ("the port is skipped", &skips("9000,8000-8100"), "", ""),
        ("another port is skipped", &skips("9000"), "", OWN),
        ("what cannot be read", &skips("nonsense"), "", OWN),
        ("the last word counts", twice, "", ""),
    ] {
        cluster.apply(&orders_pod("labels: {app: orders}", init, containers));
        let service = cluster.service("10.96.0.1:80");
        assert_eq!(endpoints(&service.backends[0])[0].identity, identity, "{what}");
        let endpoint = cluster.pod("10.244.0.1:8080").endpoint.unwrap();
        assert_eq!(endpoint.identity, identity, "{what}");
    }
    // The sidecar's own ports are not captured.
    cluster.apply(&orders_pod("labels: {app: orders}", "", "{name: outrigger-proxy}"));
    assert_eq!(cluster.pod("10.244.0.1:14190").endpoint.unwrap().identity, "");
}

#[test]
fn labels_and_annotations_of_a_running_pod_decide_nothing() {
    let cluster = Cluster::new();
    cluster.add_service("orders", 1);
    // Whoever may patch pods can change these. (`opaque-ports` says what a port speaks, and nothing about trust.)
    let patches = [
        "labels: {app: orders}, annotations: {}",
        "labels: {app: orders, outrigger.dev/proxy-version: 0.1.0, outrigger.dev/inject: enabled}",
        "labels: {app: orders, outrigger.dev/inject: disabled}, annotations: {outrigger.dev/inject: disabled}",
        "labels: {app: orders}, annotations: {outrigger.dev/skip-inbound-ports: '1-65535'}",
        "labels: {app: orders}, annotations: {outrigger.dev/mtls: permissive}",
    ];
    for (containers, in_mesh) in [("{name: outrigger-proxy}", true), ("", false)] {
        cluster.apply(&orders_pod(patches[0], "", containers));
        let service = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
        let pod = cluster.index.watch_target("10.244.0.1:8080".parse().unwrap(), "client");
        let workload = cluster.known("shop", "orders-1");
        let identity = endpoints(&cluster.service("10.96.0.1:80").backends[0])[0]
            .identity
            .clone();
        assert_eq!(identity.is_empty(), !in_mesh);
        for patch in patches {
            cluster.apply(&orders_pod(patch, "", containers));
            assert!(!service.has_changed().unwrap(), "{patch} {in_mesh}");
            assert!(!pod.has_changed().unwrap(), "{patch} {in_mesh}");
            assert!(!workload.has_changed().unwrap(), "{patch} {in_mesh}");
        }
    }
}

#[test]
fn headless_pods_by_their_own_address() {
    let cluster = Cluster::with(
        "
kind: Service
metadata: {namespace: shop, name: db}
spec: {clusterIP: None, clusterIPs: [None], selector: {app: db}, ports: [{name: sql, port: 3306, targetPort: sql}]}
---
kind: Pod
metadata: {namespace: shop, name: db-0, labels: {app: db}}
spec: {serviceAccountName: db, containers: [{name: outrigger-proxy}, {name: db, ports: [{name: sql, containerPort: 13306}]}]}
status: {podIPs: [{ip: 10.244.0.5}]}
",
    );
    let pod = cluster.pod("10.244.0.5:13306");
    let endpoint = pod.endpoint.unwrap();
    assert_eq!(endpoint.address, "10.244.0.5:13306");
    assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/db");
    assert_eq!(endpoint.pod, "db-0");
    let service = pod.service.unwrap();
    assert_eq!((service.name.as_str(), service.port), ("db", 3306));
    assert_eq!(pod.protocol, Protocol::Opaque as i32);
    // Another port of the same pod belongs to no Service.
    assert_eq!(cluster.pod("10.244.0.5:9999").service, None);

    // Of two Services neither is the one.
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: db-too}
spec: {clusterIPs: [10.96.0.6], selector: {app: db}, ports: [{port: 3306, targetPort: 13306}]}
",
    );
    assert_eq!(cluster.pod("10.244.0.5:13306").service, None);
}

#[test]
fn addresses_that_are_not_one_pods() {
    let pod = |name: &str, spec: &str, status: &str| {
        format!(
            "kind: Pod\nmetadata: {{namespace: shop, name: {name}}}\nspec: {{{spec}containers: []}}\nstatus: {{{status}}}\n"
        )
    };
    let cluster = Cluster::new();
    cluster.apply(&pod("host", "hostNetwork: true, ", "podIP: 172.18.0.2"));
    assert_eq!(cluster.target("172.18.0.2:80"), None);
    cluster.apply(&pod("job", "", "podIP: 10.244.0.8"));
    assert!(matches!(cluster.target("10.244.0.8:80"), Some(target::Kind::Pod(_))));
    // The address goes from one pod to the next, whichever of them is heard of first.
    cluster.apply(&pod("next", "", "podIP: 10.244.0.8"));
    assert_eq!(cluster.target("10.244.0.8:80"), None);
    cluster.apply(&pod("job", "", "podIP: 10.244.0.8, phase: Succeeded"));
    assert_eq!(cluster.pod("10.244.0.8:80").endpoint.unwrap().pod, "next");
    // One that is being deleted has it until another one says that it has it.
    let deleted = |name: &str| {
        pod(name, "", "podIP: 10.244.0.8").replace("name: ", "deletionTimestamp: '2026-01-01T00:00:00Z', name: ")
    };
    cluster.apply(&deleted("next"));
    assert_eq!(cluster.pod("10.244.0.8:80").endpoint.unwrap().pod, "next");
    cluster.apply(&pod("a-third", "", "podIP: 10.244.0.8"));
    assert_eq!(cluster.pod("10.244.0.8:80").endpoint.unwrap().pod, "a-third");
    cluster.apply(&deleted("a-third"));
    assert_eq!(cluster.target("10.244.0.8:80"), None);
}

#[test]
fn protocols() {
    let service = |annotations: &str, port: &str| {
        format!(
            "
kind: Service
metadata: {{namespace: shop, name: s, annotations: {{{annotations}}}}}
spec: {{clusterIPs: [10.96.0.7], ports: [{{{port}}}]}}
"
        )
    };
    let cluster = Cluster::new();
    let opaque = "outrigger.dev/opaque-ports: '70-90'";
    for (annotations, port, protocol) in [
        ("", "port: 80", Protocol::Unspecified),
        ("", "port: 80, appProtocol: http", Protocol::Http1),
        ("", "port: 80, appProtocol: HTTP", Protocol::Http1),
        ("", "port: 80, appProtocol: kubernetes.io/h2c", Protocol::Http2),
        ("", "port: 80, appProtocol: grpc", Protocol::Http2),
        ("", "port: 80, appProtocol: kubernetes.io/ws", Protocol::Http1),
        ("", "port: 80, appProtocol: kubernetes.io/wss", Protocol::Tls),
        ("", "port: 80, appProtocol: https", Protocol::Tls),
        ("", "port: 80, appProtocol: tcp", Protocol::Opaque),
        (
            "",
            "port: 80, appProtocol: example.com/unheard-of",
            Protocol::Unspecified,
        ),
        (opaque, "port: 80, appProtocol: http", Protocol::Opaque),
        (opaque, "port: 80", Protocol::Opaque),
        ("outrigger.dev/opaque-ports: '81'", "port: 80", Protocol::Unspecified),
        ("outrigger.dev/opaque-ports: eighty", "port: 80", Protocol::Unspecified),
        ("", "port: 80, targetPort: 5432", Protocol::Opaque),
        ("", "port: 80, targetPort: 5432, appProtocol: http", Protocol::Http1),
    ] {
        cluster.apply(&service(annotations, port));
        assert_eq!(
            cluster.service("10.96.0.7:80").protocol,
            protocol as i32,
            "{annotations} {port}"
        );
    }
    cluster.apply(&service("", "port: 6379"));
    assert_eq!(cluster.service("10.96.0.7:6379").protocol, Protocol::Opaque as i32);

    // The namespace's word holds where the Service has none of its own.
    cluster.apply("kind: Namespace\nmetadata: {name: shop, annotations: {outrigger.dev/opaque-ports: '80'}}\n");
    cluster.apply(&service("", "port: 80"));
    assert_eq!(cluster.service("10.96.0.7:80").protocol, Protocol::Opaque as i32);
    cluster.apply(&service("outrigger.dev/opaque-ports: ''", "port: 80"));
    assert_eq!(cluster.service("10.96.0.7:80").protocol, Protocol::Unspecified as i32);
}

#[test]
fn a_pods_own_word_about_its_ports_reaches_its_clients() {
    let cluster = Cluster::new();
    cluster.add_service("orders", 1);
    assert_eq!(cluster.service("10.96.0.1:80").protocol, Protocol::Unspecified as i32);
    cluster.apply(
        "
kind: Pod
metadata: {namespace: shop, name: orders-1, labels: {app: orders}, annotations: {outrigger.dev/opaque-ports: '8080'}}
spec: {containers: []}
status: {podIPs: [{ip: 10.244.0.1}]}
",
    );
    assert_eq!(cluster.service("10.96.0.1:80").protocol, Protocol::Opaque as i32);
    assert_eq!(cluster.pod("10.244.0.1:8080").protocol, Protocol::Opaque as i32);
    assert_eq!(cluster.pod("10.244.0.1:8081").protocol, Protocol::Unspecified as i32);
}

fn other_ports(cluster: &Cluster, address: &str) -> Option<Vec<u32>> {
    let service = cluster.service(address);
    assert_eq!(service.backends.len(), 1);
    match &service.backends[0].kind {
        Some(backend::Kind::NoSuchPort(other)) => Some(other.ports.clone()),
        _ => None,
    }
}

/// Where else the kernel would reset the connection, the sidecar says what is wrong.
#[test]
fn a_port_that_a_service_does_not_have_is_answered_with_those_that_it_has() {
    let cluster = Cluster::new();
    let service = |ports: &str| {
        format!(
            "kind: Service\nmetadata: {{namespace: shop, name: web}}\nspec: {{clusterIPs: [10.96.0.7], ports: [{ports}]}}\n"
        )
    };
    cluster.apply(&service("{name: a, port: 80}, {name: b, port: 8080}"));
    let mut watched = cluster.index.watch_target("10.96.0.7:81".parse().unwrap(), "client");
    watched.borrow_and_update();
    assert_eq!(other_ports(&cluster, "10.96.0.7:81"), Some(vec![80, 8080]));
    assert_eq!(cluster.service("10.96.0.7:81").r#ref.unwrap().name, "web");
    assert_eq!(other_ports(&cluster, "10.96.0.7:80"), None);
    // Its ports change.
    cluster.apply(&service("{name: a, port: 81}"));
    assert!(watched.has_changed().unwrap());
    assert_eq!(other_ports(&cluster, "10.96.0.7:81"), None);
    assert_eq!(other_ports(&cluster, "10.96.0.7:80"), Some(vec![81]));
    // All that ask for other ports have such an answer: however many ports there are, it is small.
    let many: Vec<_> = (1000..11_000)
        .map(|port| format!("{{name: p{port}, port: {port}}}"))
        .collect();
    cluster.apply(&service(&many.join(", ")));
    let told = other_ports(&cluster, "10.96.0.7:80").unwrap();
    assert_eq!(told, (1000..1064).collect::<Vec<_>>());
    cluster.delete(Kind::Service, "shop", "web");
    assert_eq!(cluster.target("10.96.0.7:80"), None);
}

#[test]
fn udp_ports_are_not_targets() {
    let cluster = Cluster::with(
        "
kind: Service
metadata: {namespace: kube-system, name: dns}
spec: {clusterIPs: [10.96.0.10], ports: [{name: dns, port: 53, protocol: UDP}, {name: metrics, port: 9153}]}
",
    );
    assert_eq!(other_ports(&cluster, "10.96.0.10:53"), Some(vec![9153]));
    assert!(cluster.target("10.96.0.10:9153").is_some());
}

#[test]
fn a_cluster_ip_that_went_to_another_service() {
    let cluster = Cluster::new();
    cluster.add_service("old", 1);
    let mut watched = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    // The new one is heard of before the old one is gone.
    cluster.apply(
        "kind: Service\nmetadata: {namespace: shop, name: new}\nspec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}\n",
    );
    cluster.delete(Kind::Service, "shop", "old");
    assert_eq!(cluster.service("10.96.0.1:80").r#ref.unwrap().name, "new");
    let update = watched.borrow_and_update().clone();
    assert_eq!(&*update.service().unwrap().0.name, "new");
}

#[test]
fn only_what_changed_is_sent() {
    let cluster = Cluster::new();
    cluster.add_service("orders", 1);
    cluster.add_service("web", 2);
    let mut orders = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    let mut web = cluster.index.watch_target("10.96.0.2:80".parse().unwrap(), "client");
    orders.mark_unchanged();
    web.mark_unchanged();
    // The same again, and something that an answer does not show.
    cluster.add_service("orders", 1);
    cluster.apply(
        "
kind: Pod
metadata: {namespace: shop, name: orders-1, labels: {app: orders, other: label}}
spec: {serviceAccountName: orders, containers: [{name: outrigger-proxy}]}
status: {podIPs: [{ip: 10.244.0.1}]}
",
    );
    assert!(!orders.has_changed().unwrap());
    cluster.delete(Kind::EndpointSlice, "shop", "orders-x");
    assert!(orders.has_changed().unwrap());
    assert!(!web.has_changed().unwrap());
    orders.mark_unchanged();
}

#[test]
fn a_complete_list_takes_out_what_is_not_in_it() {
    let cluster = Cluster::new();
    cluster.add_service("orders", 1);
    cluster.add_service("web", 2);
    cluster
        .index
        .retain(Kind::Service, &[ObjectName::new("shop", "web")].into());
    cluster.index.flush();
    assert_eq!(cluster.target("10.96.0.1:80"), None);
    assert!(cluster.target("10.96.0.2:80").is_some());
}

#[test]
fn answers_that_nobody_watches_are_dropped() {
    let cluster = Cluster::new();
    cluster.add_service("orders", 1);
    let kept = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    drop(cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "other"));
    let mut inner = cluster.index.inner.lock();
    assert_eq!(inner.targets.len(), 2);
    inner.targets.sweep();
    assert_eq!(inner.targets.len(), 1);
    drop(kept);
    inner.targets.sweep();
    assert_eq!(inner.targets.len(), 0);
}

#[test]
fn external_names_are_backends_by_name() {
    let cluster = Cluster::new();
    cluster.index.set_external_names_allowed(true);
    cluster.add_service("orders", 1);
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: legacy}
spec: {type: ExternalName, externalName: orders.example.com}
---
kind: HTTPRoute
metadata: {namespace: shop, name: to-legacy}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules: [{backendRefs: [{name: legacy, port: 443}]}]
",
    );
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(service.routes[0].backends[0].backend, 1);
    let Some(backend::Kind::Dns(dns)) = &service.backends[1].kind else {
        panic!("{:?}", service.backends);
    };
    // A whole name: no search domain of the caller's pod or node comes into it.
    assert_eq!((dns.host.as_str(), dns.port), ("orders.example.com.", 443));
}

#[test]
fn external_names_are_no_backends_unless_they_are_allowed_nor_what_is_loopback_ever() {
    for (allowed, name) in [
        (false, "orders.example.com"),
        (true, "127.0.0.1"),
        (true, "169.254.169.254"),
        (true, "::1"),
    ] {
        let cluster = Cluster::new();
        cluster.index.set_external_names_allowed(allowed);
        cluster.add_service("orders", 1);
        cluster.apply(&format!(
            "
kind: Service
metadata: {{namespace: shop, name: lo}}
spec: {{type: ExternalName, externalName: '{name}'}}
---
kind: HTTPRoute
metadata: {{namespace: shop, name: to-lo}}
spec:
  parentRefs: [{{group: '', kind: Service, name: orders}}]
  rules: [{{backendRefs: [{{name: lo, port: 14190}}]}}]
"
        ));
        let service = cluster.service("10.96.0.1:80");
        assert_eq!(service.backends.len(), 1, "{name}");
        assert_eq!(
            service.routes[0].backends[0].backend,
            u32::MAX,
            "{name}: not answered 500"
        );
    }
}

/// What a slice by hand may say that another API server than ours let in.
#[test]
fn endpoints_that_mean_each_callers_own_host_are_left_out() {
    for address in [
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "::ffff:127.0.0.1",
    ] {
        let cluster = Cluster::new();
        cluster.add_service("orders", 1);
        cluster.apply(&format!(
            "
kind: EndpointSlice
metadata: {{namespace: shop, name: by-hand, labels: {{kubernetes.io/service-name: orders}}}}
addressType: IPv4
ports: [{{name: http, port: 14190}}]
endpoints: [{{addresses: ['{address}']}}]
"
        ));
        assert_eq!(
            addresses(&cluster.service("10.96.0.1:80").backends[0]),
            ["10.244.0.1:8080"],
            "{address}"
        );
    }
}

#[test]
fn namespaces_that_need_the_trust_bundle() {
    let cluster = Cluster::with(
        "
kind: Namespace
metadata: {name: labelled, labels: {outrigger.dev/inject: enabled}}
---
kind: Namespace
metadata: {name: disabled, labels: {outrigger.dev/inject: disabled}}
---
kind: Namespace
metadata: {name: shop}
---
kind: Namespace
metadata: {name: ending, labels: {outrigger.dev/inject: enabled}, deletionTimestamp: '2026-01-01T00:00:00Z'}
",
    );
    let namespaces = cluster.index.bundle_namespaces();
    let now = || namespaces.borrow().iter().map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(now(), ["labelled"]);
    // Opted in by its own annotation.
    cluster.add_service("orders", 1);
    assert_eq!(now(), ["labelled", "shop"]);
    cluster.delete(Kind::Pod, "shop", "orders-1");
    assert_eq!(now(), ["labelled"]);
}

#[tokio::test(start_paused = true)]
async fn changes_reach_watchers_within_milliseconds() {
    let cluster = Cluster::new();
    cluster.add_service("orders", 1);
    let mut watched = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    watched.mark_unchanged();
    let running = cluster.index.clone();
    let run = tokio::spawn(async move { running.run().await });
    let start = tokio::time::Instant::now();
    cluster
        .index
        .delete(Kind::EndpointSlice, ObjectName::new("shop", "orders-x"));
    watched.changed().await.unwrap();
    assert!(start.elapsed() < std::time::Duration::from_millis(100));
    run.abort();
}
