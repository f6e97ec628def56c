use crate::index::Index;
use crate::metrics::Metrics;
use crate::objects::Kind;
use crate::objects::networks::Networks;
use crate::testing::Cluster;

/// A cluster whose operator says these networks, complete.
fn cluster(networks: &str, yaml: &str) -> (Cluster, std::sync::Arc<Metrics>) {
    let metrics = std::sync::Arc::new(Metrics::default());
    let index = Index::new("cluster.local", metrics.clone());
    index.set_cluster_networks(networks.parse().unwrap());
    let cluster = Cluster { index };
    cluster.apply(yaml);
    cluster.index.set_synced();
    (cluster, metrics)
}

/// What the sidecar of a pod is told, be it known or not.
fn told(cluster: &Cluster) -> Vec<String> {
    let told = |pod| {
        let watched = cluster.known("shop", pod);
        watched.borrow().workload.as_ref().unwrap().cluster_networks.clone()
    };
    assert_eq!(told("orders-1"), told("nobody"));
    told("orders-1")
}

fn pod(name: &str, ips: &[&str]) -> String {
    let ips: Vec<_> = ips.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
    format!(
        "kind: Pod\nmetadata: {{namespace: shop, name: {name}}}\nspec: {{containers: []}}\nstatus: {{podIPs: [{}]}}\n",
        ips.join(", ")
    )
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "kind: Service\nmetadata: {{namespace: shop, name: {name}}}\n\
         spec: {{clusterIP: \"{ip}\", clusterIPs: [\"{ip}\"], ports: [{{port: 80}}]}}\n"
    )
}

fn service_cidr(name: &str, cidrs: &str) -> String {
    format!("kind: ServiceCIDR\nmetadata: {{name: {name}}}\nspec: {{cidrs: [{cidrs}]}}\n")
}

#[test]
fn notation() {
    let read = |text: &str| text.parse::<Networks>().map(|networks| networks.0.len());
    assert_eq!(read(""), Ok(0));
    assert_eq!(read(" 10.1.2.3/8 , fc00::/7,"), Ok(2));
    for wrong in ["10.0.0.0", "10.0.0.0/33", "everything", "fc00::/200"] {
        assert!(read(&format!("10.0.0.0/8,{wrong}")).unwrap_err().contains(wrong));
    }
}

#[test]
fn sidecars_are_told_the_operators_networks_and_the_service_cidrs() {
    let yaml = [
        pod("orders-1", &["10.244.0.1", "fd00::1"]),
        service("a", "34.118.224.1"),
        service_cidr("kubernetes", "34.118.224.0/20, 2001:db8:1::/108"),
    ]
    .join("---\n");
    let (cluster, metrics) = cluster("10.0.0.0/8,fc00::/7", &yaml);
    let both = ["10.0.0.0/8", "fc00::/7", "34.118.224.0/20", "2001:db8:1::/108"];
    assert_eq!(told(&cluster), both);
    assert!(metrics.encode().contains("controller_networks_refuted 0"));
    // Another one comes, and goes.
    cluster.apply(&service_cidr("more", "198.51.100.0/24"));
    assert_eq!(told(&cluster).len(), 5);
    cluster.delete(Kind::ServiceCidr, "", "more");
    assert_eq!(told(&cluster), both);
}

#[test]
fn an_address_outside_proves_the_list_wrong_until_the_list_holds_it() {
    for (outside, kind, object) in [
        (service("new", "34.118.224.1"), Kind::Service, "new"),
        (pod("new", &["34.118.224.2"]), Kind::Pod, "new"),
        (pod("new", &["10.244.0.2", "34.118.224.2"]), Kind::Pod, "new"),
    ] {
        let (cluster, metrics) = cluster("10.0.0.0/8", &pod("orders-1", &["10.244.0.1"]));
        let mut stream = cluster.known("shop", "orders-1");
        assert_eq!(told(&cluster), ["10.0.0.0/8"]);
        stream.mark_unchanged();
        cluster.apply(&outside);
        assert!(stream.has_changed().unwrap(), "sidecars hear of it at once");
        assert_eq!(told(&cluster), [] as [&str; 0]);
        let label = format!("{kind:?}").to_lowercase();
        let text = metrics.encode();
        assert!(
            text.contains(&format!("addresses_outside_networks{{kind=\"{label}\"}} 1")),
            "{text}"
        );
        assert!(text.contains("controller_networks_refuted 1"), "{text}");
        // The next one may have an address of that network too.
        cluster.delete(kind, "shop", object);
        assert_eq!(told(&cluster), [] as [&str; 0]);
        cluster.apply(&outside);
        // A list that does not hold it mends nothing.
        cluster.apply(&service_cidr("other", "198.51.100.0/24"));
        assert_eq!(told(&cluster), [] as [&str; 0]);
        cluster.apply(&service_cidr("right", "34.118.224.0/20"));
        assert_eq!(told(&cluster).len(), 3);
        assert!(metrics.encode().contains("controller_networks_refuted 0"));
    }
}

#[test]
fn what_was_there_at_the_start_is_judged_when_all_is_known() {
    // The Service is listed before the ServiceCIDR.
    let yaml = [
        service("a", "34.118.224.1"),
        service_cidr("kubernetes", "34.118.224.0/20"),
    ]
    .join("---\n");
    assert_eq!(told(&cluster("10.0.0.0/8", &yaml).0).len(), 2);
    assert_eq!(
        told(&cluster("10.0.0.0/8", &service("a", "34.118.224.1")).0),
        [] as [&str; 0]
    );
}

#[test]
fn an_operator_who_says_nothing_has_every_address_asked_for() {
    let yaml = [
        pod("orders-1", &["203.0.113.1"]),
        service_cidr("kubernetes", "10.96.0.0/12"),
    ]
    .join("---\n");
    let (cluster, metrics) = cluster("", &yaml);
    assert_eq!(told(&cluster), [] as [&str; 0]);
    assert!(
        metrics.encode().contains("controller_networks_refuted 0"),
        "nothing was said"
    );
}

/// A headless Service, a pod on its node's network and one that has ended have no address of their own.
#[test]
fn what_has_no_address_of_its_own_proves_nothing() {
    let host = "kind: Pod\nmetadata: {namespace: shop, name: host}\nspec: {hostNetwork: true, containers: []}\n\
                status: {podIPs: [{ip: 203.0.113.1}]}\n";
    let ended = "kind: Pod\nmetadata: {namespace: shop, name: ended}\nspec: {containers: []}\n\
                 status: {phase: Succeeded, podIPs: [{ip: 203.0.113.1}]}\n";
    let headless = service("headless", "None");
    let (cluster, _) = cluster("10.0.0.0/8", &[host, ended, &headless].join("---\n"));
    assert_eq!(told(&cluster), ["10.0.0.0/8"]);
}
