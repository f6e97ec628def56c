//! What is said of routes and policies of a cluster.

use serde_json::{Value, json};

use super::{Kind, Write, wanted};
use crate::answers::OverBudget;
use crate::objects::ObjectName;
use crate::objects::route::RouteKind;
use crate::testing::Cluster;

const NOW: &str = "2026-05-01T00:00:00Z";
const LATER: &str = "2026-06-01T00:00:00Z";

fn writes(cluster: &Cluster, now: &str) -> Vec<Write> {
    cluster.index.read(|store| wanted(store, now))
}

/// Applies the object with the status that would be written, as the API server would hand it back.
fn write_back(cluster: &Cluster, object: &Value, write: &Write) {
    let mut object = object.clone();
    object["status"] = write.status.clone();
    object["metadata"]["resourceVersion"] = "2".into();
    cluster.apply_value(object);
    cluster.index.flush();
}

fn route(parent: Value, rules: Value) -> Value {
    json!({
        "kind": "HTTPRoute", "apiVersion": "gateway.networking.k8s.io/v1",
        "metadata": {"namespace": "shop", "name": "r", "generation": 3, "resourceVersion": "1"},
        "spec": {"parentRefs": [parent], "rules": rules},
    })
}

fn on_web() -> Value {
    json!({"group": "", "kind": "Service", "name": "web"})
}

/// (type, status, reason) of the conditions of the first parent.
fn conditions(status: &Value) -> Vec<(String, String, String)> {
    let text = |c: &Value, field: &str| c[field].as_str().unwrap().to_owned();
    let conditions = status["parents"][0]["conditions"].as_array().unwrap();
    conditions
        .iter()
        .map(|c| (text(c, "type"), text(c, "status"), text(c, "reason")))
        .collect()
}

#[test]
fn a_route_is_written_once_and_keeps_its_time() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let object = route(on_web(), json!([{"backendRefs": [{"name": "web", "port": 80}]}]));
    cluster.apply_value(object.clone());
    let first = writes(&cluster, NOW);
    let [write] = &*first else { panic!("{first:?}") };
    assert_eq!((write.kind, &*write.resource_version), (Kind::HttpRoute, "1"));
    let parent = &write.status["parents"][0];
    assert_eq!(parent["controllerName"], "outrigger.dev/controller");
    assert_eq!(parent["parentRef"], on_web());
    assert_eq!(parent["conditions"][0]["observedGeneration"], 3);
    assert_eq!(parent["conditions"][0]["lastTransitionTime"], NOW);
    let ok = |t: &str| (t.to_owned(), "True".to_owned(), t.to_owned());
    assert_eq!(conditions(&write.status), [ok("Accepted"), ok("ResolvedRefs")]);

    write_back(&cluster, &object, write);
    assert_eq!(writes(&cluster, LATER), []);

    // Its backend goes: only that condition has a new time.
    cluster.apply_value({
        let mut object = route(on_web(), json!([{"backendRefs": [{"name": "gone", "port": 80}]}]));
        object["status"] = write.status.clone();
        object["metadata"]["generation"] = 4.into();
        object
    });
    let second = writes(&cluster, LATER);
    let conditions = &second[0].status["parents"][0]["conditions"];
    assert_eq!(conditions[0]["lastTransitionTime"], NOW);
    assert_eq!(conditions[1]["reason"], "BackendNotFound");
    assert_eq!(conditions[1]["lastTransitionTime"], LATER);
}

#[test]
fn what_other_controllers_wrote_stays() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let mut object = route(on_web(), json!([]));
    let other = json!({"controllerName": "example.com/gateway", "parentRef": {"name": "gw"}, "conditions": []});
    object["status"] = json!({"parents": [other.clone()]});
    cluster.apply_value(object.clone());
    let write = writes(&cluster, NOW).remove(0);
    assert_eq!(write.status["parents"].as_array().unwrap().len(), 2);
    assert_eq!(write.status["parents"][0], other);
    write_back(&cluster, &object, &write);
    assert_eq!(writes(&cluster, NOW), []);
    // The parent is a Gateway now: our word is taken back, the other's is not.
    object["spec"]["parentRefs"] = json!([{"name": "gw"}]);
    object["status"] = write.status;
    cluster.apply_value(object);
    assert_eq!(writes(&cluster, NOW)[0].status, json!({"parents": [other]}));
}

#[test]
fn routes_of_gateways_alone_are_none_of_our_business() {
    let cluster = Cluster::new();
    cluster.apply_value(route(json!({"name": "gw"}), json!([])));
    assert_eq!(writes(&cluster, NOW), []);
}

#[test]
fn reasons_of_routes() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.add_service_in("elsewhere", "far", 2);
    cluster.apply(
        "kind: Service\nmetadata: {namespace: shop, name: headless}\nspec: {clusterIP: None, ports: [{port: 80}]}\n",
    );
    cluster.apply("kind: Service\nmetadata: {namespace: shop, name: outside}\nspec: {type: ExternalName, externalName: example.com}\n");
    let parent = |name: &str| json!({"group": "", "kind": "Service", "name": name});
    let backend = |backend: Value| json!([{"backendRefs": [backend]}]);
    for (parent, rules, accepted, resolved) in [
        (parent("nobody"), json!([]), "NoMatchingParent", "ResolvedRefs"),
        (parent("headless"), json!([]), "NoMatchingParent", "ResolvedRefs"),
        (
            json!({"group": "", "kind": "Service", "name": "web", "port": 81}),
            json!([]),
            "NoMatchingParent",
            "ResolvedRefs",
        ),
        (
            on_web(),
            json!([{"filters": [{"type": "ExtensionRef"}]}]),
            "UnsupportedValue",
            "ResolvedRefs",
        ),
        (
            on_web(),
            json!([{"matches": [{"path": {"type": "RegularExpression", "value": "(["}}]}]),
            "UnsupportedValue",
            "ResolvedRefs",
        ),
        (
            on_web(),
            // 65 patterns, and one that is too large.
            json!(
                (0..65)
                    .map(|i| json!({"matches": [{"path": {"type": "RegularExpression", "value": format!("/{i}.*")}}]}))
                    .collect::<Vec<_>>()
            ),
            "UnsupportedValue",
            "ResolvedRefs",
        ),
        (
            on_web(),
            json!([{"matches": [{"path": {"type": "RegularExpression", "value": "(?:a{1000}){1000}"}}]}]),
            "UnsupportedValue",
            "ResolvedRefs",
        ),
        (
            on_web(),
            backend(json!({"name": "outside", "port": 80})),
            "Accepted",
            "InvalidKind",
        ),
        (
            on_web(),
            json!([{"timeouts": {"request": "soon"}}]),
            "UnsupportedValue",
            "ResolvedRefs",
        ),
        (
            on_web(),
            backend(json!({"name": "gone", "port": 80})),
            "Accepted",
            "BackendNotFound",
        ),
        (
            on_web(),
            backend(json!({"name": "web", "port": 81})),
            "Accepted",
            "BackendNotFound",
        ),
        (
            on_web(),
            backend(json!({"name": "web", "kind": "Bucket", "port": 80})),
            "Accepted",
            "InvalidKind",
        ),
        (
            on_web(),
            backend(json!({"name": "far", "namespace": "elsewhere", "port": 80})),
            "Accepted",
            "ResolvedRefs",
        ),
        (
            on_web(),
            json!([{"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "gone", "port": 80}}}]}]),
            "Accepted",
            "BackendNotFound",
        ),
    ] {
        cluster.apply_value(route(parent.clone(), rules.clone()));
        let write = writes(&cluster, NOW).remove(0);
        let reasons: Vec<_> = conditions(&write.status).into_iter().map(|c| c.2).collect();
        assert_eq!(reasons, [accepted, resolved], "{parent} {rules}");
    }
    // A GRPCRoute on the same port displaces it.
    cluster.apply_value(route(on_web(), json!([])));
    let mut grpc = route(on_web(), json!([]));
    grpc["kind"] = "GRPCRoute".into();
    cluster.apply_value(grpc);
    let reasons: Vec<_> = writes(&cluster, NOW)
        .iter()
        .map(|w| conditions(&w.status)[0].2.clone())
        .collect();
    assert_eq!(reasons, ["Conflicted", "Accepted"]);
}

#[test]
fn routes_beyond_the_budget_say_so_among_those_of_the_same_clients() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    // Two for everybody, two for the clients of another namespace: of each two the older one has the budget.
    for (namespace, name, created) in [
        ("shop", "a-late", "02"),
        ("shop", "b-early", "01"),
        ("client", "c-late", "02"),
        ("client", "d-early", "01"),
    ] {
        let parent = json!({"group": "", "kind": "Service", "namespace": "shop", "name": "web"});
        let path = |i: usize| json!({"path": {"type": "RegularExpression", "value": format!("/{i}.*")}});
        let rules: Vec<_> = (0..40).map(|i| json!({"matches": [path(i)]})).collect();
        let mut route = route(parent, rules.into());
        route["metadata"]["namespace"] = namespace.into();
        route["metadata"]["name"] = name.into();
        route["metadata"]["creationTimestamp"] = format!("2026-01-{created}T00:00:00Z").into();
        cluster.apply_value(route);
    }
    let mut said: Vec<_> = writes(&cluster, NOW)
        .iter()
        .map(|w| (w.name.name.to_string(), conditions(&w.status)[0].2.clone()))
        .collect();
    said.sort();
    let expected = [
        ("a-late", "UnsupportedValue"),
        ("b-early", "Accepted"),
        ("c-late", "UnsupportedValue"),
        ("d-early", "Accepted"),
    ];
    assert_eq!(
        said,
        expected.map(|(name, reason)| (name.to_owned(), reason.to_owned()))
    );
}

/// A tenant may have thousands of routes on its Service, and every look at all of them holds the index.
#[test]
fn a_service_is_looked_at_once_however_many_routes_it_has() {
    let [full, empty] = [(); 2].map(|()| Cluster::new());
    let path = |i: usize| json!({"path": {"type": "RegularExpression", "value": format!("/{i}.*")}});
    let rules: Vec<_> = (0..40).map(|i| json!({"matches": [path(i)]})).collect();
    for name in ["first", "second"] {
        let mut route = route(on_web(), rules.clone().into());
        route["metadata"]["name"] = name.into();
        full.apply_value(route);
    }
    let web = ObjectName::new("shop", "web");
    full.index.read(|full| {
        empty.index.read(|empty| {
            let second = &full.routes[&(RouteKind::Http, ObjectName::new("shop", "second"))];
            let mut over = OverBudget::default();
            assert!(over.has(full, &web, second));
            assert!(over.has(empty, &web, second), "it was looked at again");
            assert!(!OverBudget::default().has(empty, &web, second));
        });
    });
}

fn policy(name: &str, created: &str, targets: Value, more: Value) -> Value {
    let mut spec = json!({"targetRefs": targets});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({
        "kind": "TrafficPolicy", "apiVersion": "outrigger.dev/v1alpha1",
        "metadata": {
            "namespace": "shop", "name": name, "generation": 2, "resourceVersion": "1",
            "creationTimestamp": format!("{created}T00:00:00Z"),
        },
        "spec": spec,
    })
}

#[test]
fn reasons_of_policies() {
    let web = json!([{"kind": "Service", "name": "web"}]);
    for (targets, more, reason, words) in [
        (web.clone(), json!({}), "Accepted", "In force"),
        (
            json!([{"kind": "Namespace", "name": "shop"}]),
            json!({}),
            "Accepted",
            "In force",
        ),
        (
            web.clone(),
            json!({"new": 1, "retry": {"newer": 2}}),
            "Accepted",
            "spec.new, spec.retry.newer",
        ),
        (
            json!([{"kind": "Namespace", "name": "other"}]),
            json!({}),
            "TargetNotFound",
            "only be the policy's own",
        ),
        (
            json!([{"kind": "Service", "name": "gone"}]),
            json!({}),
            "TargetNotFound",
            "Service gone",
        ),
        (
            json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "r"}]),
            json!({}),
            "TargetNotFound",
            "HTTPRoute r",
        ),
        (
            json!([{"group": "new.io", "kind": "Thing", "name": "x"}]),
            json!({}),
            "TargetNotFound",
            "Thing x",
        ),
        (json!([]), json!({}), "Invalid", "targetRefs"),
        (
            web.clone(),
            json!({"retry": {"attempts": 11, "statuses": [200]}}),
            "Invalid",
            "retry.attempts: 11 is more than 10; retry.statuses",
        ),
        (
            web.clone(),
            json!({"retry": {"attempts": "two"}}),
            "Invalid",
            "spec: invalid type",
        ),
    ] {
        let cluster = Cluster::new();
        cluster.add_service("web", 1);
        cluster.apply_value(policy("p", "2026-01-01", targets.clone(), more.clone()));
        let write = writes(&cluster, NOW).remove(0);
        let condition = &write.status["conditions"][0];
        assert_eq!(condition["reason"], reason, "{targets} {more}");
        assert_eq!(condition["status"], if reason == "Accepted" { "True" } else { "False" });
        assert_eq!(condition["observedGeneration"], 2);
        let message = condition["message"].as_str().unwrap();
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
}

#[test]
fn the_younger_of_two_policies_is_told_who_holds() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let web = json!([{"kind": "Service", "name": "web"}]);
    let old = policy("z-old", "2026-01-01", web.clone(), json!({}));
    cluster.apply_value(old.clone());
    cluster.apply_value(policy("a-new", "2026-02-01", web.clone(), json!({})));
    let conditions = writes(&cluster, NOW);
    assert_eq!(conditions[0].status["conditions"][0]["reason"], "Conflicted");
    assert!(
        conditions[0].status["conditions"][0]["message"]
            .as_str()
            .unwrap()
            .contains("z-old")
    );
    assert_eq!(conditions[1].status["conditions"][0]["reason"], "Accepted");
    write_back(&cluster, &old, &conditions[1]);
    assert_eq!(writes(&cluster, LATER).len(), 1, "only the other still differs");
    // The holder becomes invalid: the younger one holds.
    cluster.apply_value(policy("z-old", "2026-01-01", web, json!({"retry": {"attempts": 99}})));
    let reasons: Vec<_> = writes(&cluster, NOW)
        .iter()
        .map(|w| w.status["conditions"][0]["reason"].clone())
        .collect();
    assert_eq!(reasons, ["Accepted", "Invalid"]);
}
