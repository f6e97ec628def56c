//! Whether what is said of an AccessPolicy is so: which pods it reaches, and where it is not enforced.

use std::collections::BTreeSet;
use std::time::Duration;

use outrigger_api::discovery::Feature;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access_tests::{cluster, policy, said, session, shop};
use super::{Absent, wanted};
use crate::objects::Kind;
use crate::objects::policy::PolicyKind;
use crate::testing::Cluster;

/// The message of Programmed of the policy p, if it is not all in force.
fn shortfall(cluster: &Cluster) -> Option<String> {
    cluster.index.flush();
    let (reason, message) = said(cluster, "p").remove(1);
    (reason != "Programmed").then(|| {
        assert_eq!(reason, "PartiallyProgrammed");
        message
    })
}

/// Its status counts the pods to which it is told, and no others.
#[test]
fn a_policy_reaches_the_pods_that_it_selects() {
    let cluster = Cluster::new();
    cluster.index.set_own("outrigger", "controller-a");
    cluster.apply(
        "kind: Namespace\nmetadata: {name: shop, labels: {outrigger.dev/inject: enabled}}\n---\nkind: Namespace\nmetadata: {name: bank, \
         labels: {outrigger.dev/inject: enabled}}\n---\nkind: Service\nmetadata: {namespace: shop, name: web}\nspec: {selector: {app: \
         web}, ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 81, targetPort: 9000}]}\n---\nkind: \
         Service\nmetadata: {namespace: shop, name: by-hand}\nspec: {ports: [{port: 80}]}\n",
    );
    let pods = [
        ("shop", "web-1", "web", "a"),
        ("shop", "web-2", "web", "b"),
        ("shop", "db-1", "db", "a"),
        ("bank", "web-1", "web", "a"),
    ];
    for (namespace, name, app, tier) in pods {
        // One of those behind the Service has no port of the name.
        let ports = match name {
            "web-2" => json!([]),
            _ => json!([{"name": "http", "containerPort": 8080}]),
        };
        cluster.apply_value(json!({
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": app, "tier": tier}},
            "spec": {"serviceAccountName": app, "containers": [{"name": "app", "ports": ports}]},
        }));
    }
    let service = |section: Option<&str>| {
        let mut target = json!({"kind": "Service", "name": "web"});
        if let Some(section) = section {
            target["sectionName"] = section.into();
        }
        target
    };
    let by_labels = |selector: Value| json!({"kind": "Pod", "selector": selector});
    let all: Option<&[u32]> = None;
    for (namespace, target, reached) in [
        (
            "outrigger",
            json!({"kind": "Namespace", "name": "outrigger"}),
            vec![
                ("shop/web-1", all),
                ("shop/web-2", all),
                ("shop/db-1", all),
                ("bank/web-1", all),
            ],
        ),
        (
            "shop",
            shop(),
            vec![("shop/web-1", all), ("shop/web-2", all), ("shop/db-1", all)],
        ),
        (
            "bank",
            json!({"kind": "Namespace", "name": "bank"}),
            vec![("bank/web-1", all)],
        ),
        (
            "shop",
            service(None),
            vec![("shop/web-1", Some(&[8080, 9000])), ("shop/web-2", Some(&[9000]))],
        ),
        (
            "shop",
            service(Some("admin")),
            vec![("shop/web-1", Some(&[9000])), ("shop/web-2", Some(&[9000]))],
        ),
        ("shop", service(Some("http")), vec![("shop/web-1", Some(&[8080]))]),
        ("shop", json!({"kind": "Service", "name": "by-hand"}), vec![]),
        (
            "shop",
            by_labels(json!({"matchLabels": {"tier": "a"}})),
            vec![("shop/web-1", all), ("shop/db-1", all)],
        ),
        (
            "shop",
            by_labels(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]})),
            vec![("shop/db-1", all)],
        ),
        (
            "shop",
            by_labels(json!({})),
            vec![("shop/web-1", all), ("shop/web-2", all), ("shop/db-1", all)],
        ),
        ("shop", by_labels(json!({"matchLabels": {"tier": "c"}})), vec![]),
    ] {
        let mut written = policy("p", target.clone(), json!({}));
        written["metadata"]["namespace"] = namespace.into();
        cluster.apply_value(written);
        cluster.index.flush();
        let mut found = Vec::new();
        for (of, name, app, _) in pods {
            let access = cluster.access_of(of, name, app);
            let ports = access
                .enforced
                .into_iter()
                .map(|policy| policy.ports.map(|ports| ports.numbers));
            found.extend(ports.map(|ports| (format!("{of}/{name}"), ports)));
        }
        let reached: Vec<_> = reached
            .into_iter()
            .map(|(pod, ports)| (pod.to_owned(), ports.map(<[u32]>::to_vec)))
            .collect();
        assert_eq!(found, reached, "{target}");
        let bare = format!("{0} of {0} pods have no sidecar, and let everybody in", reached.len());
        let said = shortfall(&cluster);
        let said = said
            .as_deref()
            .and_then(|said| said.rsplit_once(": "))
            .map(|(said, _)| said);
        assert_eq!(said, (!reached.is_empty()).then_some(&*bare), "{target}");
        cluster.delete(Kind::Policy(PolicyKind::Access), namespace, "p");
    }
}

#[test]
fn ports_that_pods_take_out_of_capture_are_named() {
    let cluster = cluster();
    let pod = |name: &str, skip: &str| {
        cluster.apply_value(json!({
            "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": "api"}},
            "spec": {
                "serviceAccountName": "api",
                "containers": [
                    {"name": "app", "ports": [{"name": "metrics", "containerPort": 9090}]}, {"name": "outrigger-proxy"},
                ],
                "initContainers": [
                    {"name": "outrigger-init", "env": [{"name": "OUTRIGGER_SKIP_INBOUND_PORTS", "value": skip}]},
                ],
            },
        }));
    };
    pod("a", "9090,20-25");
    pod("b", "9090");
    pod("c", "");
    cluster.apply(
        "kind: Service\nmetadata: {namespace: shop, name: api}\nspec: {selector: {app: api}, ports: [{name: http, port: 80, targetPort: \
         8080}, {name: metrics, port: 90, targetPort: metrics}]}\n",
    );
    let section = |name: &str| json!({"kind": "Service", "name": "api", "sectionName": name});
    let api = json!({"kind": "Pod", "selector": {"matchLabels": {"app": "api"}}});
    let rule = |ports: Value| json!([{"sources": [{"type": "Any"}], "networkAttributes": {"ports": ports}}]);
    let deny = |ports: Value| json!({"action": "Deny", "rules": rule(ports)});
    for (target, more, expected) in [
        (api.clone(), json!({}), Some((2, 3, "20-25, 9090"))),
        // The one pod of cluster() is of the namespace too.
        (shop(), json!({}), Some((2, 4, "20-25, 9090"))),
        (section("metrics"), json!({}), Some((2, 3, "9090"))),
        (section("http"), json!({}), None),
        (json!({"kind": "Service", "name": "web"}), json!({}), None),
        // An exclusive policy closes all ports, whichever its rules open.
        (
            api.clone(),
            json!({"rules": rule(json!([8080]))}),
            Some((2, 3, "20-25, 9090")),
        ),
        // Others say nothing but of the ports of their rules.
        (api.clone(), deny(json!([8080])), None),
        (api.clone(), deny(json!([22, 8080])), Some((1, 3, "22"))),
        (api.clone(), deny(json!(["metrics"])), Some((2, 3, "9090"))),
        (section("http"), deny(json!(["metrics"])), None),
        (
            api.clone(),
            json!({"exclusive": false, "rules": rule(json!(["metrics"]))}),
            Some((2, 3, "9090")),
        ),
        (
            api.clone(),
            json!({"action": "Deny", "rules": [{"sources": [{"type": "Any"}]}]}),
            Some((2, 3, "20-25, 9090")),
        ),
    ] {
        cluster.apply_value(policy("p", target.clone(), more.clone()));
        let expected = expected.map(|(some, all, ports)| {
            format!(
                "{some} of {all} pods let everybody in at ports that they take from their sidecars (outrigger.dev/skip-inbound-ports): \
                 {ports}"
            )
        });
        assert_eq!(shortfall(&cluster), expected, "{target} {more}");
    }
    // There is no end to what a pod may skip.
    let many: Vec<_> = (0..100).map(|n| (1000 + 2 * n).to_string()).collect();
    pod("b", &many.join(","));
    cluster.apply_value(policy("p", api, json!({})));
    let message = shortfall(&cluster).unwrap();
    assert!(
        message.ends_with(": 20-25, 1000, 1002, 1004, 1006, 1008, 1010, 1012 and more"),
        "{message}"
    );
}

/// A controller's own pod.
fn controller(name: &str) -> Value {
    json!({
        "kind": "Pod", "metadata": {"namespace": "outrigger", "name": name},
        "spec": {"serviceAccountName": "outrigger-controller", "containers": [{"name": "controller"}]},
    })
}

#[test]
fn pods_whose_sidecar_no_controller_tells_anything_are_counted_after_a_while() {
    let cluster = cluster();
    cluster.apply_value(controller("controller-a"));
    cluster.apply_value(policy("p", shop(), json!({})));
    cluster.add_service("api", 2);
    cluster.index.flush();
    let mut absent = Absent::default();
    let start = Instant::now();
    let mut said_at = |cluster: &Cluster, seconds: u64| {
        let (store, callers) = (cluster.index.snapshot(), cluster.index.callers());
        absent.look(&store, &callers, start + Duration::from_secs(seconds));
        let writes = wanted(&store, &callers, &absent, &super::tests::at(super::tests::NOW));
        let write = writes.into_iter().find(|write| *write.name.name == *"p").unwrap();
        let condition = write.status["ancestors"][0]["conditions"][1].clone();
        let message = condition["message"].as_str().unwrap().to_owned();
        (condition["reason"] != "Programmed").then_some(message)
    };
    let both = "controller-a: no controller has told the sidecars of 2 of 2 pods anything for a minute or more";
    // The controller has just begun, and nobody has come yet.
    for seconds in [0, 30, 59] {
        assert_eq!(said_at(&cluster, seconds), None, "{seconds}");
    }
    assert!(said_at(&cluster, 60).unwrap().starts_with(both));
    let web = session(&cluster, "web-1", "web", &[Feature::Access]);
    // Who says that it is a pod, and is another, is not that pod.
    let another = session(&cluster, "api-1", "db", &[Feature::Access]);
    let message = said_at(&cluster, 70).unwrap();
    assert!(message.starts_with(&both.replace("2 of", "1 of")), "{message}");
    drop(another);
    let api = session(&cluster, "api-1", "api", &[Feature::Access]);
    assert_eq!(said_at(&cluster, 80), None);
    // Who comes back soon has not been away.
    drop(api);
    assert_eq!(said_at(&cluster, 139), None);
    let api = session(&cluster, "api-1", "api", &[Feature::Access]);
    assert_eq!(said_at(&cluster, 150), None);
    drop(api);
    assert_eq!(said_at(&cluster, 160), None);
    assert!(said_at(&cluster, 220).unwrap().contains("1 of 2 pods"));
    // With another controller, it may be connected to that one.
    cluster.apply_value(controller("controller-b"));
    assert_eq!(said_at(&cluster, 230), None);
    assert_eq!(said_at(&cluster, 600), None);
    // When that one goes, its sidecars need their time.
    cluster.delete(Kind::Pod, "outrigger", "controller-b");
    assert_eq!(said_at(&cluster, 610), None);
    assert!(said_at(&cluster, 670).unwrap().contains("1 of 2 pods"));
    // A pod that is not there yet, one that ends, and another one of the name.
    let api = |more: Value| {
        let mut pod = json!({
            "kind": "Pod", "metadata": {"namespace": "shop", "name": "api-1", "uid": "new"},
            "spec": {"serviceAccountName": "api", "containers": [{"name": "outrigger-proxy"}]},
            "status": {"podIPs": [{"ip": "10.244.0.2"}]},
        });
        for (field, value) in more.as_object().unwrap() {
            let fields = pod[field].as_object_mut().unwrap();
            fields.extend(value.as_object().unwrap().clone());
        }
        pod
    };
    cluster.apply_value(api(json!({})));
    assert_eq!(said_at(&cluster, 680), None, "it has just come");
    assert!(said_at(&cluster, 740).is_some());
    for not_there in [
        json!({"metadata": {"deletionTimestamp": "2026-05-01T00:00:00Z"}}),
        json!({"status": {"podIPs": []}}),
        json!({"status": {"phase": "Succeeded"}}),
    ] {
        cluster.apply_value(api(not_there.clone()));
        assert_eq!(said_at(&cluster, 900), None, "{not_there}");
        cluster.apply_value(api(json!({})));
    }
    // A controller that does not know itself does not know whether it is alone.
    cluster.delete(Kind::Pod, "outrigger", "controller-a");
    assert_eq!(said_at(&cluster, 2000), None);
    drop(web);
}

#[test]
fn a_status_names_some_mistakes_and_says_how_many_more_there_are() {
    let cluster = cluster();
    let text = |rules: usize, path: &str| {
        let rule =
            json!({"sources": [{"type": "Any"}], "httpAttributes": [{"paths": [{"type": "Exact", "value": path}]}]});
        cluster.apply_value(policy("p", shop(), json!({"rules": vec![rule; rules]})));
        said(&cluster, "p").remove(0).1
    };
    let named = |text: &str| {
        let numbers = (0..64).filter(|n| text.contains(&format!("rules[{n}].httpAttributes[0].paths[0].value: ")));
        numbers.collect::<BTreeSet<_>>()
    };
    let few = text(16, "/a//b");
    assert_eq!(named(&few), (0..16).collect());
    assert!(few.ends_with("as it is"), "{few}");
    for path in ["/a//b", &format!("//{}", "\u{e9}".repeat(1000))] {
        let many = text(64, path);
        assert_eq!(named(&many), (0..16).collect());
        assert!(many.ends_with("; and 48 more mistakes"), "{many}");
    }
}
