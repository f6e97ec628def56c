//! What is said of RateLimitPolicies.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::discovery::Feature;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::tests::{NOW, at, writes};
use super::{Absent, wanted};
use crate::discovery::Discover;
use crate::index::Index;
use crate::room::Room;
use crate::testing::{Cluster, pod_key};
use crate::topic::{Inbox, Reader};

fn policy(namespace: &str, scope: &str, requests: u32, more: Value) -> Value {
    let mut limit = json!({"rate": {"requests": requests, "interval": "1s"}, "scope": scope});
    limit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({
        "kind": "RateLimitPolicy", "apiVersion": "outrigger.dev/v1alpha1",
        "metadata": {"namespace": namespace, "name": "p", "generation": 2, "resourceVersion": "1"},
        "spec": {"targetRefs": [{"kind": "Namespace", "name": namespace}], "limits": [limit]},
    })
}

fn pod(name: &str, sidecar: bool) -> Value {
    let container = if sidecar { "outrigger-proxy" } else { "app" };
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": name, "labels": {"app": "web"}},
        "spec": {"serviceAccountName": "web", "containers": [{"name": container}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.index.set_own("outrigger", "controller-a");
    cluster.apply_value(pod("web-1", true));
    cluster.apply_value(pod("web-2", true));
    cluster
}

/// (reason, message) of each condition.
fn said(cluster: &Cluster) -> Vec<(String, String)> {
    let writes = writes(cluster, NOW);
    let write = writes.iter().find(|write| &*write.name.name == "p").unwrap();
    let conditions = write.status["ancestors"][0]["conditions"].as_array().unwrap().iter();
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap().to_owned();
    conditions.map(|c| (text(c, "reason"), text(c, "message"))).collect()
}

#[test]
fn what_is_not_as_it_says_is_said() {
    for (namespace, scope, requests, more, bare, reason, words) in [
        (
            "shop",
            "Pod",
            1,
            json!({}),
            false,
            "Programmed",
            "All that it says is in force",
        ),
        (
            "shop",
            "Service",
            2,
            json!({}),
            false,
            "Programmed",
            "All that it says is in force",
        ),
        (
            "shop",
            "Service",
            1,
            json!({}),
            false,
            "PartiallyProgrammed",
            "0: less than one request an interval for each of 2 pods",
        ),
        (
            "shop",
            "Pod",
            9,
            json!({}),
            true,
            "PartiallyProgrammed",
            "1 of 3 pods have no sidecar, and limit nothing: shop/web-3",
        ),
        (
            "shop",
            "Service",
            9,
            json!({}),
            true,
            "PartiallyProgrammed",
            "have their share of a rate of the scope Service",
        ),
        (
            "outrigger",
            "Service",
            9,
            json!({}),
            false,
            "PartiallyProgrammed",
            "and not for all of the mesh: without effect",
        ),
        (
            "shop",
            "Pod",
            9,
            json!({"newer": 1}),
            false,
            "PartiallyProgrammed",
            "A limit that has one of them is left out",
        ),
        (
            "shop",
            "Global",
            9,
            json!({}),
            false,
            "Invalid",
            "Not in force. global: limits of the scope Global need it, and no others have it",
        ),
    ] {
        let cluster = cluster();
        if bare {
            cluster.apply_value(pod("web-3", false));
        }
        cluster.apply_value(policy(namespace, scope, requests, more));
        let said = said(&cluster);
        let (got, message) = said.last().unwrap();
        assert_eq!(got, reason, "{said:?}");
        assert!(message.contains(words), "{said:?}");
    }
}

/// A rate that is divided is not what it says where pods are not called evenly, whoever says how they are called.
#[test]
fn pods_that_are_not_called_evenly_are_said() {
    let service = |name: &str, n: u8, more: &str| {
        format!(
            "{{kind: Service, metadata: {{namespace: shop, name: {name}}}, spec: {{clusterIP: 10.96.0.{n}, clusterIPs: [10.96.0.{n}], \
             ports: [{{name: http, port: 80}}]{more}}}}}"
        )
    };
    let traffic = |namespace: &str, target: &str, spec: &str| {
        format!(
            "{{kind: TrafficPolicy, metadata: {{namespace: {namespace}, name: t}}, spec: {{targetRefs: [{target}], {spec}}}}}"
        )
    };
    let route = |on: &str, to: &str, more: &str| {
        format!(
            "{{kind: HTTPRoute, metadata: {{namespace: shop, name: r}}, spec: {{parentRefs: [{{group: '', kind: Service, name: {on}}}], \
             rules: [{{backendRefs: [{{name: {to}, port: 80}}]{more}}}]}}}}"
        )
    };
    let pods = ", selector: {app: web}";
    let sessions = "sessionPersistence: {}";
    let hash = "loadBalancer: {type: ConsistentHash, consistentHash: {keys: [{type: Path}]}}";
    let (web, front) = (service("web", 1, pods), service("front", 2, ""));
    let on_web = "{kind: Service, name: web}";
    for (objects, by) in [
        (vec![web.clone()], None),
        (
            vec![web.clone(), traffic("shop", on_web, "loadBalancer: {type: Random}")],
            None,
        ),
        (
            vec![service("web", 1, ", selector: {app: web}, sessionAffinity: ClientIP")],
            Some("sessionAffinity: ClientIP"),
        ),
        (
            vec![web.clone(), traffic("shop", on_web, sessions)],
            Some("sessionPersistence"),
        ),
        (
            vec![
                web.clone(),
                traffic("shop", "{kind: Service, name: web, sectionName: http}", sessions),
            ],
            Some("sessionPersistence"),
        ),
        (
            vec![web.clone(), traffic("shop", "{kind: Namespace, name: shop}", hash)],
            Some("loadBalancer.type: ConsistentHash"),
        ),
        (
            vec![
                web.clone(),
                traffic("buyer", "{kind: Service, namespace: shop, name: web}", hash),
            ],
            Some("loadBalancer.type: ConsistentHash"),
        ),
        // Of other pods.
        (
            vec![
                web.clone(),
                front.clone(),
                traffic("shop", "{kind: Service, name: front}", sessions),
            ],
            None,
        ),
        // By a route that leads there.
        (vec![web.clone(), front.clone(), route("front", "web", "")], None),
        (
            vec![
                web.clone(),
                front.clone(),
                route("front", "web", ", sessionPersistence: {}"),
            ],
            Some("sessionPersistence"),
        ),
        (
            vec![
                web.clone(),
                front.clone(),
                route("front", "web", ""),
                traffic("shop", "{kind: Service, name: front}", hash),
            ],
            Some("loadBalancer.type: ConsistentHash"),
        ),
        (
            vec![
                web.clone(),
                front.clone(),
                route("front", "web", ""),
                traffic(
                    "shop",
                    "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}",
                    sessions,
                ),
            ],
            Some("sessionPersistence"),
        ),
    ] {
        for scope in ["Service", "Pod"] {
            let cluster = cluster();
            objects.iter().for_each(|object| cluster.apply(object));
            cluster.apply_value(policy("shop", scope, 9, json!({})));
            let said = said(&cluster);
            let (got, message) = said.last().unwrap();
            match by.filter(|_| scope == "Service") {
                None => assert_eq!(got, "Programmed", "{objects:?}: {said:?}"),
                Some(by) => {
                    let words = format!("the Service shop/web is called with {by}, and so its pods unevenly");
                    assert!(
                        got == "PartiallyProgrammed" && message.contains(&words),
                        "{objects:?}: {said:?}"
                    );
                }
            }
        }
    }
}

/// A sidecar of the version before limits nothing.
#[test]
fn older_sidecars_are_counted() {
    let cluster = cluster();
    cluster.apply_value(policy("shop", "Pod", 9, json!({})));
    let follow = |pod: &str, features: &[Feature]| {
        let reader = Reader {
            inbox: Arc::new(Inbox::new(features.iter().copied())),
            number: 0,
        };
        let key = pod_key("shop", pod, "web");
        (
            cluster.index.follow_access(&key, reader),
            cluster.index.watch_workload(&key),
        )
    };
    let _new = follow("web-1", &[Feature::Access, Feature::RateLimits]);
    assert_eq!(said(&cluster)[1].0, "Programmed");
    let _old = follow("web-2", &[Feature::Access]);
    let said = said(&cluster);
    assert_eq!(said[1].0, "PartiallyProgrammed");
    assert!(
        said[1]
            .1
            .contains("controller-a: 1 of 2 sidecars that it tells of the policy are older, and limit nothing"),
        "{said:?}"
    );
}

/// A sidecar that asks no store carries its limits out with the share of its pod.
#[test]
fn sidecars_that_ask_no_store_are_counted_and_told_their_share() {
    let cluster = cluster();
    let mut policy = policy("shop", "Global", 9, json!({}));
    policy["spec"]["global"] = json!({"address": "redis.example.com:6379"});
    cluster.apply_value(policy);
    let follow = |pod: &str, features: &[Feature]| {
        let reader = Reader {
            inbox: Arc::new(Inbox::new(features.iter().copied())),
            number: 0,
        };
        let key = pod_key("shop", pod, "web");
        (
            cluster.index.follow_access(&key, reader),
            cluster.index.watch_workload(&key),
        )
    };
    let all = [Feature::Access, Feature::RateLimits, Feature::GlobalLimits];
    let _new = follow("web-1", &all);
    assert_eq!(said(&cluster)[1].0, "Programmed");
    let _old = follow("web-2", &all[..2]);
    let (reason, message) = said(&cluster).remove(1);
    assert_eq!(reason, "PartiallyProgrammed");
    assert!(
        message.contains("1 of 2 sidecars that it tells of the policy are older, and ask no store"),
        "{message}"
    );
    // Both are told the same: who does not know `global` reads the shares.
    let told = cluster.index.watch_limits(&pod_key("shop", "web-2", "web"));
    let told = told.borrow();
    let policy = &told.said().unwrap().policies[0];
    assert_eq!((policy.limits[0].shares, policy.limits[0].global), (2, true));
    assert_eq!(policy.global.as_ref().unwrap().address, "redis.example.com:6379");
}

/// What the version before the fields understands of a policy is in force, and the status says what is not.
#[test]
fn sidecars_that_know_limits_and_not_all_of_them_are_counted() {
    let claim =
        json!({"per": [{"type": "Claim", "claim": {"accessPolicy": "tokens", "provider": "login", "name": "sub"}}]});
    for (spec, more, feature, words) in [
        (
            json!({"max": 9}),
            json!({}),
            Feature::ConnectionLimits,
            "and limit no connections",
        ),
        (
            Value::Null,
            claim,
            Feature::LimitClaims,
            "and leave out limits that ask for tokens",
        ),
    ] {
        let cluster = cluster();
        cluster.apply_value(tokens("shop", "login"));
        let mut policy = policy("shop", "Pod", 9, more);
        if !spec.is_null() {
            policy["spec"]["connections"] = spec;
        }
        cluster.apply_value(policy);
        let follow = |pod: &str, features: &[Feature]| {
            let reader = Reader {
                inbox: Arc::new(Inbox::new(features.iter().copied())),
                number: 0,
            };
            let key = pod_key("shop", pod, "web");
            (
                cluster.index.follow_access(&key, reader),
                cluster.index.watch_workload(&key),
            )
        };
        let _new = follow(
            "web-1",
            &[Feature::Access, Feature::Tokens, Feature::RateLimits, feature],
        );
        assert_eq!(said(&cluster)[1].0, "Programmed", "{words}");
        let _old = follow("web-2", &[Feature::Access, Feature::Tokens, Feature::RateLimits]);
        let (reason, message) = said(&cluster).remove(1);
        assert_eq!(reason, "PartiallyProgrammed");
        assert!(
            message.contains("1 of 2 sidecars that it tells of the policy are older, ") && message.contains(words),
            "{message}"
        );
    }
}

fn tokens(namespace: &str, provider: &str) -> Value {
    json!({
        "kind": "AccessPolicy", "apiVersion": "outrigger.dev/v1alpha1",
        "metadata": {"namespace": namespace, "name": "tokens"},
        "spec": {
            "targetRefs": [{"kind": "Namespace", "name": namespace}], "exclusive": false,
            "jwt": {"providers": [{
                "name": provider, "issuer": "https://login.test", "audiences": ["orders"], "jwks": {"inline": "{\"keys\": []}"},
            }]},
            "rules": [{"sources": [{"type": "Any"}]}],
        },
    })
}

/// Tokens that nothing verifies, wherever the policy asks for them.
#[test]
fn tokens_of_no_provider_are_said() {
    let token = json!({"accessPolicy": "tokens", "provider": "login", "name": "sub"});
    let mut source = token.clone();
    source.as_object_mut().unwrap().remove("name");
    let sources = json!([{"type": "JWT", "jwt": source}]);
    let overrides = json!([{"sources": sources, "rate": {"requests": 1, "interval": "1s"}}]);
    for more in [
        json!({"per": [{"type": "Claim", "claim": token}]}),
        json!({"matches": [{"sources": sources}]}),
        json!({"overrides": overrides}),
    ] {
        let mut elsewhere = tokens("shop", "login");
        elsewhere["spec"]["targetRefs"] = json!([{"kind": "Pod", "selector": {"matchLabels": {"app": "jobs"}}}]);
        let mut at_a_port = tokens("shop", "login");
        at_a_port["spec"]["targetRefs"] = json!([{"kind": "Service", "name": "web"}]);
        for (access, is_verified) in [
            (None, false),
            (Some(tokens("shop", "other")), false),
            (Some(tokens("ops", "login")), false),
            (Some(elsewhere), false),
            (Some(at_a_port), false),
            (Some(tokens("shop", "login")), true),
        ] {
            let cluster = cluster();
            cluster.apply_value(json!({
                "kind": "Service", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": "web"},
                "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
            }));
            if let Some(access) = &access {
                cluster.apply_value(access.clone());
            }
            cluster.apply_value(policy("shop", "Pod", 9, more.clone()));
            let (reason, message) = said(&cluster).remove(1);
            assert_eq!(reason == "Programmed", is_verified, "{access:?}: {message}");
            let words = "on 2 of its pods, no AccessPolicy shop/tokens with the provider login selects all ports of this policy. ";
            assert_eq!(message.contains(words), !is_verified, "{message}");
        }
    }
}

#[test]
fn ports_that_pods_take_out_of_capture_are_named() {
    let cluster = cluster();
    let mut web_2 = pod("web-2", true);
    web_2["spec"]["initContainers"] =
        json!([{"name": "outrigger-init", "env": [{"name": "OUTRIGGER_SKIP_INBOUND_PORTS", "value": "9090,20-25"}]}]);
    cluster.apply_value(web_2);
    cluster.apply_value(policy("shop", "Pod", 9, json!({})));
    assert_eq!(
        said(&cluster)[1].1,
        "1 of 2 pods limit nothing at ports that they take from their sidecars (outrigger.dev/skip-inbound-ports): 20-25, 9090"
    );
}

#[test]
fn pods_whose_sidecar_no_controller_tells_anything_are_counted_after_a_while() {
    let cluster = cluster();
    cluster.apply_value(json!({
        "kind": "Pod", "metadata": {"namespace": "outrigger", "name": "controller-a"},
        "spec": {"serviceAccountName": "outrigger-controller", "containers": [{"name": "controller"}]},
    }));
    let mut web_2 = pod("web-2", true);
    web_2["status"]["podIPs"] = json!([{"ip": "10.244.0.2"}]);
    cluster.apply_value(web_2);
    cluster.apply_value(policy("shop", "Pod", 9, json!({})));
    let mut absent = Absent::default();
    let start = Instant::now();
    for (seconds, reason) in [(0, "Programmed"), (59, "Programmed"), (60, "PartiallyProgrammed")] {
        let (store, callers) = (cluster.index.snapshot(), cluster.index.callers());
        absent.look(&store, &callers, start + Duration::from_secs(seconds));
        let writes = wanted(&store, &callers, &absent, &at(NOW));
        let write = writes.iter().find(|write| &*write.name.name == "p").unwrap();
        let condition = &write.status["ancestors"][0]["conditions"][1];
        assert_eq!(condition["reason"], reason, "{seconds}");
        let message = condition["message"].as_str().unwrap();
        let away = "controller-a: no controller has told the sidecars of 1 of 2 pods anything for a minute or more: ";
        assert_eq!(message.starts_with(away), reason != "Programmed", "{message}");
    }
}

#[test]
fn sidecars_that_are_not_told_for_want_of_room_are_counted() {
    let cluster = Cluster {
        index: Index::within(Room::new(1), "cluster.local", Arc::default()),
    };
    cluster.index.set_own("outrigger", "controller-a");
    cluster.apply_value(pod("web-1", true));
    let key = pod_key("shop", "web-1", "web");
    let reader = Reader {
        inbox: Arc::new(Inbox::new([Feature::Access, Feature::RateLimits].into_iter())),
        number: 0,
    };
    let _session = cluster.index.follow_access(&key, reader);
    let _limits = cluster.index.watch_limits(&key);
    cluster.apply_value(policy("shop", "Pod", 9, json!({})));
    cluster.index.flush();
    assert_eq!(said(&cluster)[1].0, "Programmed");
    // More than what every answer may take.
    for n in 0..20 {
        let mut more = policy("shop", "Pod", 9, json!({}));
        more["metadata"]["name"] = format!("{}{n}", "x".repeat(200)).into();
        cluster.apply_value(more);
    }
    cluster.index.flush();
    let (reason, message) = said(&cluster).remove(1);
    assert_eq!(reason, "PartiallyProgrammed");
    assert!(
        message.starts_with("controller-a: 1 sidecars are not told of it, "),
        "{message}"
    );
    assert!(
        message.ends_with("and those that have just begun limit nothing"),
        "{message}"
    );
}

/// What is outside of the cluster is not judged; and the word goes when the Service comes.
#[test]
fn a_store_that_is_no_service_of_the_cluster_is_named() {
    let none = "there is no Service shop/redis";
    let local = "each pod counts its share by itself, as of the scope Service (onFailure: Local)";
    let address = |of: &str, on_failure: Option<&str>| {
        let mut object = policy("shop", "Global", 9, json!({}));
        object["spec"]["global"] = json!({"address": of});
        if let Some(on_failure) = on_failure {
            object["spec"]["global"]["onFailure"] = on_failure.into();
        }
        object
    };
    let cluster = cluster();
    cluster.apply("kind: Namespace\nmetadata: {name: shop}\n");
    let message = || said(&cluster).remove(1).1;
    for (of, on_failure, so) in [
        ("redis.shop:80", None, local),
        ("redis.shop.svc:80", Some("Local"), local),
        ("Redis.shop.svc.cluster.local:80", None, local),
        ("redis-0.redis.shop.svc:6379", None, local),
        (
            "redis.shop.svc:80",
            Some("Allow"),
            "limits of the scope Global admit all (onFailure: Allow)",
        ),
        (
            "redis.shop.svc:80",
            Some("Deny"),
            "requests that limits of the scope Global are about are answered 503, limit-unavailable (onFailure: Deny)",
        ),
    ] {
        cluster.apply_value(address(of, on_failure));
        assert_eq!(message(), format!("global.address: {none}; until then {so}"), "{of}");
    }
    for outside in [
        "10.0.0.7:6379",
        "[fd00::7]:6379",
        "redis.example.com:6379",
        "example.com:6379",
    ] {
        cluster.apply_value(address(outside, None));
        assert_eq!(message(), "All that it says is in force", "{outside}");
    }
    // Until there is such a namespace.
    cluster.index.flush();
    let mut changes = cluster.index.status_changes();
    changes.mark_unchanged();
    cluster.apply("kind: Namespace\nmetadata: {name: com}\n");
    assert!(changes.has_changed().unwrap(), "nobody looks again");
    assert!(message().contains("there is no Service com/example"), "{}", message());
    cluster.apply_value(address("redis.shop:80", None));
    assert!(message().contains(none));
    cluster.add_service("redis", 7);
    assert_eq!(message(), "All that it says is in force");
    cluster.apply_value(address("redis.shop.svc:6379", None));
    let no_port = "global.address: the Service shop/redis has no TCP port 6379; until then";
    assert!(message().starts_with(no_port), "{}", message());
}
