//! What is said of routes and policies of a cluster.

use std::cell::RefCell;
use std::sync::Arc;

use outrigger_api::discovery::Feature;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Absent, Kind, Now, Write, wanted};
use crate::answers::OverBudget;
use crate::discovery::Discover;
use crate::index::Of;
use crate::objects::ObjectName;
use crate::objects::policy::PolicyKind;
use crate::objects::route::RouteKind;
use crate::testing::Cluster;
use crate::topic::{Inbox, Reader};

pub(super) const NOW: &str = "2026-05-01T00:00:00Z";
const LATER: &str = "2026-06-01T00:00:00Z";

pub(super) fn writes(cluster: &Cluster, now: &str) -> Vec<Write> {
    wanted(
        &cluster.index.snapshot(),
        &cluster.index.callers(),
        &Absent::default(),
        &at(now),
    )
}

/// A time of RFC 3339.
pub(super) fn at(time: &str) -> Now {
    Now::new(OffsetDateTime::parse(time, &Rfc3339).unwrap())
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
    assert_eq!(
        (write.kind, &*write.resource_version),
        (Kind::Route(RouteKind::Http), "1")
    );
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

/// What is in force of a route says what comes of a backend that is not there.
#[test]
fn a_backend_that_is_not_there_has_its_consequence_in_words() {
    let backend = json!({"name": "gone", "port": 80});
    let asked = json!({"type": "ExternalAuth", "externalAuth": {"protocol": "GRPC", "backendRef": backend}});
    let share = json!({"backendRefs": [backend]});
    let gone = "there is no Service shop/gone";
    for (kind, rule, words) in [
        (
            "HTTPRoute",
            share.clone(),
            "its share of the requests is answered 500 (invalid-backend)",
        ),
        (
            "GRPCRoute",
            share.clone(),
            "its share of the requests is answered 500 (invalid-backend)",
        ),
        ("TLSRoute", share.clone(), "its share of the connections is reset"),
        ("TCPRoute", share, "its share of the connections is reset"),
        (
            "HTTPRoute",
            json!({"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": backend}}]}),
            "no requests are copied to it",
        ),
        (
            "HTTPRoute",
            json!({"filters": [asked]}),
            "requests that it should be asked about are answered 500 (invalid-backend)",
        ),
    ] {
        let cluster = Cluster::new();
        let mut object = route(on_web(), json!([rule]));
        object["kind"] = kind.into();
        cluster.apply_value(object.clone());
        // It holds nowhere, and so nothing comes of it.
        let message = |n: usize| {
            let write = writes(&cluster, NOW).remove(0);
            write.status["parents"][0]["conditions"][n]["message"].clone()
        };
        assert_eq!(message(1), gone);
        cluster.add_service("web", 1);
        assert_eq!(message(0), "In force, except for what ResolvedRefs names");
        assert_eq!(message(1), format!("{gone}: {words}"), "{kind}");
    }
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
    // In whichever order: the other may put its own last.
    let mut turned = object.clone();
    turned["status"] = write.status.clone();
    turned["status"]["parents"].as_array_mut().unwrap().reverse();
    cluster.apply_value(turned);
    assert_eq!(writes(&cluster, NOW), []);
    write_back(&cluster, &object, &write);
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
            json!([{"filters": [{"type": "CORS", "cors": {"allowOrigins": ["*"]}}]}]),
            "Accepted",
            "ResolvedRefs",
        ),
        // A preflight goes to no backend.
        (
            on_web(),
            json!([{"backendRefs": [{"name": "web", "port": 80, "filters": [{"type": "CORS", "cors": {}}]}]}]),
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
        (
            on_web(),
            json!([{"filters": [{"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP", "backendRef": {"name": "web", "port": 80}, "http": {}}}]}]),
            "Accepted",
            "ResolvedRefs",
        ),
        (
            on_web(),
            json!([{"filters": [{"type": "ExternalAuth", "externalAuth": {"protocol": "GRPC", "backendRef": {"name": "gone", "port": 80}}}]}]),
            "Accepted",
            "BackendNotFound",
        ),
        (
            on_web(),
            json!([{"filters": [{"type": "ExternalAuth", "externalAuth": {"protocol": "GRPC"}}]}]),
            "UnsupportedValue",
            "ResolvedRefs",
        ),
        (
            on_web(),
            json!([{"filters": [
                {"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP", "backendRef": {"name": "web", "port": 80}}},
                {"type": "ExternalAuth", "externalAuth": {"protocol": "GRPC", "backendRef": {"name": "web", "port": 80}}},
            ]}]),
            "UnsupportedValue",
            "ResolvedRefs",
        ),
        // It is asked before a request has a backend.
        (
            on_web(),
            json!([{"backendRefs": [{"name": "web", "port": 80, "filters": [
                {"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP", "backendRef": {"name": "web", "port": 80}}},
            ]}]}]),
            "UnsupportedValue",
            "ResolvedRefs",
        ),
    ] {
        cluster.apply_value(route(parent.clone(), rules.clone()));
        let write = writes(&cluster, NOW).remove(0);
        // What there is to say of sidecars is a third.
        let reasons: Vec<_> = conditions(&write.status).into_iter().map(|c| c.2).take(2).collect();
        assert_eq!(reasons, [accepted, resolved], "{parent} {rules}");
    }
}

/// Of routes on one port those of one kind hold, and the others say which displaces them.
#[test]
fn one_kind_of_route_displaces_another() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let add = |kind: &str, name: &str, created: u8| {
        let mut route = route(on_web(), json!([{"backendRefs": [{"name": "web", "port": 80}]}]));
        route["kind"] = kind.into();
        route["metadata"]["name"] = name.into();
        route["metadata"]["creationTimestamp"] = format!("2026-01-{created:02}T00:00:00Z").into();
        cluster.apply_value(route);
    };
    let said = || {
        let mut said: Vec<_> = writes(&cluster, NOW)
            .iter()
            .map(|w| (w.name.name.to_string(), conditions(&w.status)[0].2.clone()))
            .collect();
        said.sort();
        let said: Vec<_> = said
            .into_iter()
            .map(|(name, reason)| format!("{name} {reason}"))
            .collect();
        said.join(", ")
    };
    add("TCPRoute", "tcp", 2);
    assert_eq!(said(), "tcp Accepted");
    // Each of two would take all connections; the older one does.
    add("TCPRoute", "tcp-early", 1);
    add("TCPRoute", "tcp-late", 3);
    assert_eq!(said(), "tcp Conflicted, tcp-early Accepted, tcp-late Conflicted");
    add("TLSRoute", "tls", 1);
    add("TLSRoute", "tls-late", 2);
    assert_eq!(
        said(),
        "tcp Conflicted, tcp-early Conflicted, tcp-late Conflicted, tls Accepted, tls-late Accepted"
    );
    add("HTTPRoute", "http", 1);
    assert!(
        said().starts_with("http Accepted, tcp Conflicted") && said().ends_with("tls Conflicted, tls-late Conflicted")
    );
    add("GRPCRoute", "grpc", 1);
    assert!(
        said().starts_with("grpc Accepted, http Conflicted, tcp Conflicted"),
        "{}",
        said()
    );
}

/// A TLSRoute or TCPRoute has one rule in the API since it is standard; before, the API server took several.
#[test]
fn a_second_rule_of_bytes_is_not_in_force() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    for kind in ["TLSRoute", "TCPRoute"] {
        let mut route = route(on_web(), json!([{}, {}]));
        route["kind"] = kind.into();
        cluster.apply_value(route);
        let write = writes(&cluster, NOW).remove(0);
        let accepted = &write.status["parents"][0]["conditions"][0];
        let (reason, message) = (&accepted["reason"], accepted["message"].as_str().unwrap());
        assert_eq!(*reason, "UnsupportedValue", "{kind}");
        assert!(message.contains("rules[1]"), "{message}");
        cluster.delete(write.kind, "shop", &write.name.name);
    }
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

/// A tenant may have thousands of routes on its Service, and a look at all of them takes time.
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
    let [full, empty] = [full, empty].map(|cluster| cluster.index.snapshot());
    let second = &full.routes[&(RouteKind::Http, ObjectName::new("shop", "second"))];
    let mut over = OverBudget::default();
    assert!(over.has(&full, &web, second));
    assert!(over.has(&empty, &web, second), "it was looked at again");
    assert!(!OverBudget::default().has(&empty, &web, second));
}

/// Whatever changes while conditions are made waits for nothing, and the conditions are those of one moment.
#[test]
fn a_snapshot_holds_nobody_up_and_does_not_change() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.apply_value(route(on_web(), json!([{"backendRefs": [{"name": "web", "port": 80}]}])));
    cluster.apply_value(policy("p", "2026-01-01", web(), json!({"timeouts": {"request": "1s"}})));
    let before = writes(&cluster, NOW);
    let snapshot = cluster.index.snapshot();
    cluster.delete(Kind::Service, "shop", "web");
    cluster.delete(Kind::Policy(PolicyKind::Traffic), "shop", "p");
    cluster.delete(Kind::Pod, "shop", "web-1");
    assert_eq!(
        wanted(&snapshot, &cluster.index.callers(), &Absent::default(), &at(NOW)),
        before
    );
    let after = writes(&cluster, NOW);
    assert_eq!(after.len(), 1);
    assert_eq!(conditions(&after[0].status)[0].2, "NoMatchingParent");
    // Nobody has a snapshot of what came after the first change: it is not copied again.
    let now = |cluster: &Cluster| cluster.index.read(std::ptr::from_ref);
    let copy = now(&cluster);
    assert_ne!(copy, Arc::as_ptr(&snapshot));
    cluster.add_service("web", 1);
    assert_eq!(now(&cluster), copy);
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

/// (type, status, reason) of the conditions at each target.
fn at_targets(status: &Value) -> Vec<Vec<(String, String, String)>> {
    let text = |c: &Value, field: &str| c[field].as_str().unwrap().to_owned();
    let ancestors = status["ancestors"].as_array().unwrap().iter();
    ancestors
        .map(|ancestor| {
            let conditions = ancestor["conditions"].as_array().unwrap().iter();
            conditions
                .map(|c| (text(c, "type"), text(c, "status"), text(c, "reason")))
                .collect()
        })
        .collect()
}

fn condition(type_: &str, reason: &str) -> (String, String, String) {
    let status = if type_ == reason { "True" } else { "False" };
    [type_, status, reason].map(str::to_owned).into()
}

fn in_force() -> Vec<(String, String, String)> {
    vec![condition("Accepted", "Accepted"), condition("Programmed", "Programmed")]
}

fn web() -> Value {
    json!([{"kind": "Service", "name": "web"}])
}

#[test]
fn reasons_of_policies() {
    let route = |name: &str| json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": name}]);
    for (targets, more, reason, words) in [
        (web(), json!({}), "Accepted", "In force"),
        (
            web(),
            json!({"retryConstraint": {"budget": {"percent": 10}}}),
            "Accepted",
            "In force",
        ),
        (
            json!([{"kind": "Namespace", "name": "shop"}]),
            json!({}),
            "Accepted",
            "In force",
        ),
        (
            json!([{"kind": "Service", "name": "web", "sectionName": "http"}]),
            json!({}),
            "Accepted",
            "In force",
        ),
        (
            json!([{"kind": "Service", "name": "web", "sectionName": "https"}]),
            json!({}),
            "TargetNotFound",
            "no TCP port of the name \"https\"",
        ),
        (
            json!([{"kind": "Service", "namespace": "elsewhere", "name": "far"}]),
            json!({}),
            "Accepted",
            "In force",
        ),
        (
            json!([{"kind": "Service", "namespace": "elsewhere", "name": "web"}]),
            json!({}),
            "TargetNotFound",
            "Service web: it is not there",
        ),
        (
            json!([{"kind": "Namespace", "name": "other"}]),
            json!({}),
            "TargetNotFound",
            "only be the policy's own",
        ),
        (
            json!([{"kind": "Namespace", "name": "shop", "sectionName": "http"}]),
            json!({}),
            "TargetNotFound",
            "no sections",
        ),
        (
            json!([{"kind": "Service", "name": "gone"}]),
            json!({}),
            "TargetNotFound",
            "Service gone",
        ),
        (route("r"), json!({}), "Accepted", "In force"),
        (route("s"), json!({}), "TargetNotFound", "HTTPRoute s"),
        (
            json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "r", "sectionName": "x"}]),
            json!({}),
            "TargetNotFound",
            "no rule of the name \"x\"",
        ),
        (
            json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "elsewhere", "name": "r"}]),
            json!({}),
            "TargetNotFound",
            "not in the policy's own namespace",
        ),
        (
            json!([{"group": "new.io", "kind": "Thing", "name": "x"}]),
            json!({}),
            "TargetNotFound",
            "Thing x",
        ),
        (
            json!([{"kind": "Service", "name": "web", "selector": {}}]),
            json!({}),
            "Invalid",
            "spec.targetRefs[0].selector",
        ),
        (json!([]), json!({}), "Invalid", "targetRefs"),
        (
            web(),
            json!({"retry": {"attempts": 11, "statuses": [200]}}),
            "Invalid",
            "retry.attempts: 11 is more than 10; retry.statuses",
        ),
        (
            web(),
            json!({"retry": {"budget": {"percent": 1}}, "retryConstraint": {}}),
            "Invalid",
            "give one of them",
        ),
        (
            web(),
            json!({"retry": {"attempts": "two"}}),
            "Invalid",
            "spec: invalid type",
        ),
        (
            web(),
            json!({"loadBalancer": {"type": "ConsistentHash"}}),
            "Invalid",
            "loadBalancer.type: ConsistentHash needs consistentHash.keys",
        ),
        (
            web(),
            json!({"loadBalancer": {"consistentHash": {"keys": [{"type": "Header", "name": "x"}]}}}),
            "Invalid",
            "loadBalancer.consistentHash: it needs type: ConsistentHash beside it",
        ),
    ] {
        let cluster = Cluster::new();
        cluster.add_service("web", 1);
        cluster.add_service_in("elsewhere", "far", 2);
        cluster.apply_value(self::route(on_web(), json!([{"name": "one"}])));
        cluster.apply_value(policy("p", "2026-01-01", targets.clone(), more.clone()));
        let write = writes(&cluster, NOW).pop().unwrap();
        let summary = &write.status["conditions"][0];
        assert_eq!(summary["reason"], reason, "{targets} {more}");
        assert_eq!(summary["status"], if reason == "Accepted" { "True" } else { "False" });
        assert_eq!(summary["observedGeneration"], 2);
        let message = summary["message"].as_str().unwrap();
        assert!(message.contains(words), "{message:?} does not say {words:?}");
        let expected: Vec<_> = match reason {
            "Accepted" => in_force(),
            reason => vec![condition("Accepted", reason)],
        };
        let expected = vec![expected; targets.as_array().unwrap().len()];
        assert_eq!(at_targets(&write.status), expected, "{targets} {more}");
        let ancestor = &write.status["ancestors"][0];
        if *ancestor != Value::Null {
            assert_eq!(ancestor["controllerName"], "outrigger.dev/controller");
            for field in ["kind", "name", "sectionName"] {
                assert_eq!(ancestor["ancestorRef"][field], targets[0][field], "{field}");
            }
        }
    }
}

#[test]
fn fields_that_the_controller_does_not_know_are_named() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.apply_value(policy(
        "p",
        "2026-01-01",
        web(),
        json!({"new": 1, "retry": {"newer": 2}}),
    ));
    let status = writes(&cluster, NOW).remove(0).status;
    let partly = vec![
        condition("Accepted", "Accepted"),
        condition("Programmed", "PartiallyProgrammed"),
    ];
    assert_eq!(at_targets(&status), [partly]);
    let message = status["ancestors"][0]["conditions"][1]["message"].as_str().unwrap();
    assert!(message.contains("spec.new, spec.retry.newer"), "{message}");
}

/// As soon as all are there it says so.
#[test]
fn a_fallback_that_cannot_be_asked_is_named() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let backends = json!([{"name": "web", "port": 80}, {"name": "late", "port": 80}]);
    let fallback = json!({"fallback": {"when": {"statuses": [503]}, "backendRefs": backends}});
    let object = policy("p", "2026-01-01", web(), fallback);
    cluster.apply_value(object.clone());
    let written = writes(&cluster, NOW).remove(0);
    let partly = vec![
        condition("Accepted", "Accepted"),
        condition("Programmed", "PartiallyProgrammed"),
    ];
    assert_eq!(at_targets(&written.status), [partly]);
    let message = written.status["ancestors"][0]["conditions"][1]["message"]
        .as_str()
        .unwrap();
    let not_asked = "fallback.backendRefs: not asked: shop/late:80 (there is no Service shop/late)";
    assert_eq!(message, format!("{not_asked}; the other backends have their share"));
    let alone = json!({"fallback": {"when": {"statuses": [503]}, "backendRefs": [{"name": "late", "port": 80}]}});
    cluster.apply_value(policy("p", "2026-01-01", web(), alone));
    let without = writes(&cluster, NOW).remove(0).status;
    let message = &without["ancestors"][0]["conditions"][1]["message"];
    let none = "there is no other backend, and failures stay as they are";
    assert_eq!(*message, format!("{not_asked}; {none}"));
    write_back(&cluster, &object, &written);
    cluster.add_service("late", 2);
    let status = writes(&cluster, NOW).remove(0).status;
    assert_eq!(at_targets(&status), [in_force()]);
}

#[test]
fn the_younger_of_two_policies_is_told_who_holds() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.add_service("other", 2);
    let old = policy("z-old", "2026-01-01", web(), json!({}));
    cluster.apply_value(old.clone());
    let both = json!([{"kind": "Service", "name": "other"}, {"kind": "Service", "name": "web"}]);
    cluster.apply_value(policy("a-new", "2026-02-01", both.clone(), json!({})));
    // Another target is no conflict.
    let port = json!([{"kind": "Service", "name": "web", "sectionName": "http"}]);
    cluster.apply_value(policy("b-port", "2026-02-01", port, json!({})));
    let statuses = writes(&cluster, NOW);
    // It holds at one of its targets.
    assert_eq!(
        at_targets(&statuses[0].status),
        [in_force(), vec![condition("Accepted", "Conflicted")]]
    );
    let summary = &statuses[0].status["conditions"][0];
    assert_eq!(
        (&summary["status"], &summary["reason"]),
        (&json!("False"), &json!("Conflicted"))
    );
    assert!(summary["message"].as_str().unwrap().contains("z-old"));
    for status in &statuses[1..] {
        assert_eq!(status.status["conditions"][0]["reason"], "Accepted", "{}", status.name);
    }
    write_back(&cluster, &old, &statuses[2]);
    assert_eq!(writes(&cluster, LATER).len(), 2, "only the others still differ");
    // The holder becomes invalid: the younger one holds.
    cluster.apply_value(policy("z-old", "2026-01-01", web(), json!({"retry": {"attempts": 99}})));
    let reasons: Vec<_> = writes(&cluster, NOW)
        .iter()
        .map(|w| w.status["conditions"][0]["reason"].clone())
        .collect();
    assert_eq!(reasons, ["Accepted", "Accepted", "Invalid"]);
}

#[test]
fn a_policys_status_is_written_once_and_leaves_room_and_words_of_others() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let other =
        |n: u8| json!({"controllerName": "example.com/c", "ancestorRef": {"name": format!("a{n}")}, "conditions": []});
    let mut object = policy("p", "2026-01-01", web(), json!({}));
    object["status"] = json!({"ancestors": [other(0)]});
    cluster.apply_value(object.clone());
    let write = writes(&cluster, NOW).remove(0);
    assert_eq!(write.kind, Kind::Policy(PolicyKind::Traffic));
    assert_eq!(write.status["ancestors"][0], other(0));
    assert_eq!(write.status["ancestors"].as_array().unwrap().len(), 2);
    write_back(&cluster, &object, &write);
    assert_eq!(writes(&cluster, LATER), []);
    // There is no room for ours.
    let sixteen: Vec<_> = (0..16).map(other).collect();
    object["status"] = json!({"ancestors": sixteen.clone(), "conditions": write.status["conditions"]});
    cluster.apply_value(object);
    assert_eq!(writes(&cluster, LATER), []);
}

/// The version before wrote `conditions` alone: they stay what they say, with their time.
#[test]
fn the_status_of_the_version_before_is_taken_over() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let mut object = policy("p", "2026-01-01", web(), json!({}));
    let condition = json!({
        "type": "Accepted", "status": "True", "reason": "Accepted", "message": "In force", "observedGeneration": 2,
        "lastTransitionTime": NOW,
    });
    object["status"] = json!({"conditions": [condition.clone()]});
    cluster.apply_value(object.clone());
    let write = writes(&cluster, LATER).remove(0);
    let [accepted, programmed] = [0, 1].map(|n| &write.status["conditions"][n]);
    assert_eq!(*accepted, condition);
    assert_eq!(programmed["reason"], "Programmed");
    assert_eq!(at_targets(&write.status), [in_force()]);
    // Its CRD drops the rest: that is said once.
    let dropped = ["spec.retryConstraint", "status.ancestors"];
    cluster
        .index
        .set_old_crd(PolicyKind::Traffic, dropped.map(str::to_owned).into());
    let write = writes(&cluster, LATER).remove(0);
    let message = write.status["conditions"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("In force. The CRD is older"), "{message}");
    object["status"] = json!({"conditions": write.status["conditions"]});
    cluster.apply_value(object.clone());
    assert_eq!(writes(&cluster, LATER), []);
    cluster.index.set_old_crd(PolicyKind::Traffic, Vec::new());
    let message = &writes(&cluster, LATER)[0].status["conditions"][0]["message"];
    assert_eq!(*message, "In force");
}

#[test]
fn fields_that_the_crd_has_not_are_named_where_they_may_be_missed() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.apply_value(policy("p", "2026-01-01", web(), json!({})));
    let said = |dropped: &[&str]| {
        let dropped = dropped.iter().map(|field| (*field).to_owned()).collect();
        cluster.index.set_old_crd(PolicyKind::Traffic, dropped);
        let status = writes(&cluster, NOW).remove(0).status;
        let programmed = status["ancestors"][0]["conditions"][1].clone();
        let text = |field: &str| programmed[field].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    };
    let (status, reason, message) = said(&["spec.new", "spec.retry.newer", "status.more"]);
    assert_eq!((&*status, &*reason), ("False", "OldCRD"));
    assert!(
        message.contains(": spec.new, spec.retry.newer. Upgrade it (outrigger crds | kubectl apply"),
        "{message}"
    );
    // Of its status it loses nothing that was meant.
    assert_eq!(said(&["status.more"]).1, "Programmed");
    assert_eq!(said(&[]).1, "Programmed");
}

#[test]
fn what_says_nothing_new_is_overridden() {
    let says = json!({"timeouts": {"request": "1s"}});
    let more = json!({"timeouts": {"request": "1s", "connect": "1s"}});
    let service = |section: Option<&str>| match section {
        None => json!([{"kind": "Service", "name": "web"}]),
        Some(port) => json!([{"kind": "Service", "name": "web", "sectionName": port}]),
    };
    let route = |section: Option<&str>| {
        let mut target = json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "r"});
        if let Some(rule) = section {
            target["sectionName"] = rule.into();
        }
        json!([target])
    };
    let nearer = json!({"timeouts": {"request": "9s"}});
    for (target, spec, nearer_at, overridden) in [
        (service(None), &says, vec![], false),
        (service(None), &says, vec![service(Some("http"))], false),
        (
            service(None),
            &says,
            vec![service(Some("http")), service(Some("admin"))],
            true,
        ),
        (
            service(None),
            &more,
            vec![service(Some("http")), service(Some("admin"))],
            false,
        ),
        (service(Some("http")), &says, vec![service(None)], false),
        (route(None), &says, vec![], false),
        (route(None), &says, vec![route(Some("plain"))], true),
        (route(None), &more, vec![route(Some("plain"))], false),
        (route(Some("plain")), &says, vec![], false),
        // The rule itself has a limit for requests.
        (route(Some("own")), &says, vec![], true),
        (route(Some("own")), &more, vec![], false),
        (
            json!([{"kind": "Namespace", "name": "shop"}]),
            &says,
            vec![service(None)],
            false,
        ),
    ] {
        let cluster = Cluster::new();
        cluster.apply(
            "kind: Service\nmetadata: {namespace: shop, name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, \
             {name: admin, port: 81}]}\n",
        );
        cluster.apply_value(self::route(
            on_web(),
            json!([{"name": "plain"}, {"name": "own", "timeouts": {"request": "2s"}}]),
        ));
        for (n, target) in nearer_at.iter().enumerate() {
            cluster.apply_value(policy(&format!("z{n}"), "2026-01-01", target.clone(), nearer.clone()));
        }
        cluster.apply_value(policy("p", "2026-01-01", target.clone(), spec.clone()));
        let statuses = writes(&cluster, NOW);
        let status = statuses.iter().find(|w| &*w.name.name == "p").unwrap();
        let expected = if overridden { "Overridden" } else { "Programmed" };
        let expected = vec![condition("Accepted", "Accepted"), condition("Programmed", expected)];
        assert_eq!(
            at_targets(&status.status),
            [expected],
            "{target} {spec} below {nearer_at:?}"
        );
    }
}

/// What is said at one target by another policy is in force at the others: so it is not needless.
#[test]
fn a_policy_that_is_needless_at_one_of_its_targets_is_programmed() {
    let service = |name: &str, section: Option<&str>| {
        let mut target = json!({"kind": "Service", "name": name});
        if let Some(section) = section {
            target["sectionName"] = section.into();
        }
        target
    };
    let says = json!({"timeouts": {"request": "1s"}});
    for (targets, expected) in [
        (
            json!([service("web", None), service("shop", None)]),
            ("True", "Programmed"),
        ),
        (
            json!([service("shop", None), service("web", None)]),
            ("True", "Programmed"),
        ),
        (json!([service("web", None)]), ("False", "Overridden")),
    ] {
        let cluster = Cluster::new();
        cluster.add_service("web", 1);
        cluster.add_service("shop", 2);
        cluster.apply_value(policy(
            "nearer",
            "2026-01-01",
            json!([service("web", Some("http"))]),
            json!({"timeouts": {"request": "9s"}}),
        ));
        cluster.apply_value(policy("p", "2026-01-01", targets.clone(), says.clone()));
        let statuses = writes(&cluster, NOW);
        let status = &statuses.iter().find(|w| &*w.name.name == "p").unwrap().status;
        let programmed = &status["conditions"][1];
        let is = (
            programmed["status"].as_str().unwrap(),
            programmed["reason"].as_str().unwrap(),
        );
        assert_eq!((&programmed["type"], is), (&json!("Programmed"), expected), "{targets}");
    }
}

/// Thousands of policies are not thousands of looks at all that is watched.
#[test]
fn for_one_service_the_callers_of_the_others_are_not_looked_at() {
    let cluster = Cluster::new();
    let services = [("shop", "web"), ("shop", "other"), ("shoq", "far")];
    let mut followed = Vec::new();
    for (last, (namespace, name)) in (1..).zip(services) {
        cluster.add_service_in(namespace, name, last);
        let reader = Reader {
            inbox: Arc::new(Inbox::new([].into_iter())),
            number: 0,
        };
        let address = format!("10.96.0.{last}:80").parse().unwrap();
        followed.push((
            cluster.index.follow_routes(address, "client", reader),
            cluster.index.watch_target(address, "client"),
        ));
    }
    let web = ObjectName::new("shop", "web");
    for (of, expected) in [
        (Of::All, &["far", "other", "web"][..]),
        (Of::Namespace("shop"), &["other", "web"]),
        (Of::These([&web].into()), &["web"]),
    ] {
        let asked = RefCell::new(Vec::new());
        let needs = [Feature::RetryConstraint];
        let count = cluster.index.callers().count(&needs, &of, |service, _, _| {
            asked.borrow_mut().push(service.name.to_string());
            assert!(!cluster.index.is_held(), "others wait while conditions are made");
            true
        });
        let mut asked = asked.into_inner();
        asked.sort();
        let twice: Vec<_> = expected.iter().flat_map(|name| [*name; 2]).collect();
        assert_eq!(asked, twice);
        assert_eq!((count.all, count.lacking), (twice.len(), twice.len()));
    }
}

/// One sidecar of today and one before the feature follow web, one more the Service beside it, and one asks as the version before the
/// session did.
#[test]
fn sidecars_that_do_not_know_all_of_a_policy_are_counted() {
    let cluster = Cluster::new();
    cluster.index.set_own("outrigger", "controller-a");
    cluster.add_service("web", 1);
    cluster.add_service("other", 2);
    let follow = |address: &str, callers: &str, features: &[Feature]| {
        let reader = Reader {
            inbox: Arc::new(Inbox::new(features.iter().copied())),
            number: 0,
        };
        cluster.index.follow_routes(address.parse().unwrap(), callers, reader)
    };
    let said = |cluster: &Cluster| {
        let statuses = writes(cluster, NOW);
        let status = statuses.iter().find(|w| &*w.name.name == "p").unwrap().status.clone();
        let programmed = status["ancestors"][0]["conditions"][1].clone();
        (
            programmed["reason"].as_str().unwrap().to_owned(),
            programmed["message"].clone(),
        )
    };
    let needs = json!({"retryConstraint": {"budget": {"interval": "1m"}}});
    let today = follow(
        "10.96.0.1:80",
        "client",
        &[Feature::EndpointChanges, Feature::RetryConstraint],
    );
    let apply = |targets: Value, more: &Value| cluster.apply_value(policy("p", "2026-01-01", targets, more.clone()));
    apply(web(), &needs);
    assert_eq!(said(&cluster).0, "Programmed");
    let before = follow("10.96.0.1:80", "client", &[Feature::EndpointChanges]);
    let beside = follow("10.96.0.2:80", "client", &[]);
    let stream = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    for (target, expected) in [
        (web(), Some("controller-a: 2 of 3 sidecars")),
        (
            json!([{"kind": "Service", "name": "web", "sectionName": "http"}]),
            Some("2 of 3"),
        ),
        (json!([{"kind": "Service", "name": "other"}]), Some("1 of 1")),
        (json!([{"kind": "Namespace", "name": "shop"}]), Some("3 of 4")),
    ] {
        apply(target.clone(), &needs);
        let (reason, message) = said(&cluster);
        let message = message.as_str().unwrap();
        match expected {
            Some(words) => assert!(
                reason == "PartiallyProgrammed" && message.contains(words) && message.contains("retryConstraint"),
                "{target}: {message}"
            ),
            None => assert_eq!(reason, "Programmed", "{target}"),
        }
        // What all of them know is in force.
        apply(target, &json!({"timeouts": {"request": "1s"}}));
        assert_eq!(said(&cluster).0, "Programmed");
    }
    apply(web(), &needs);
    drop((before, stream));
    assert_eq!(said(&cluster).0, "Programmed");
    drop((today, beside));

    // Another controller's sidecars do not: its word stands while it is there.
    let mut object = policy("p", "2026-01-01", web(), needs.clone());
    let mut write = writes(&cluster, NOW).remove(0);
    let programmed = &mut write.status["ancestors"][0]["conditions"][1];
    *programmed = json!({
        "type": "Programmed", "status": "False", "reason": "PartiallyProgrammed", "observedGeneration": 2,
        "message": "controller-b: 1 of 1 sidecars …", "lastTransitionTime": NOW,
    });
    write.status["conditions"][1] = programmed.clone();
    object["status"] = write.status.clone();
    cluster.apply_value(object.clone());
    let pod = "kind: Pod\nmetadata: {namespace: outrigger, name: controller-b}\nspec: {containers: []}\n";
    cluster.apply(pod);
    assert_eq!(writes(&cluster, LATER), []);
    // For what was written since, nobody has said it.
    object["metadata"]["generation"] = 3.into();
    cluster.apply_value(object.clone());
    assert_eq!(said(&cluster).0, "Programmed");
    object["metadata"]["generation"] = 2.into();
    cluster.apply_value(object);
    cluster.delete(Kind::Pod, "outrigger", "controller-b");
    assert_eq!(said(&cluster).0, "Programmed");
}

/// A fault ends by its time alone: nobody touches the policy, and its status says so from then on.
#[test]
fn a_status_says_that_a_fault_has_ended() {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    let fault = |more: Value| {
        let mut fault = json!({"percent": 1, "abort": {"status": 503}});
        fault.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fault
    };
    let until = |time: &str| fault(json!({"until": time}));
    let asked = || fault(json!({"onlyWhenHeader": {"name": "x-chaos"}}));
    let (before, then) = ("2026-05-01T11:59:59Z", "2026-05-01T12:00:00Z");
    let in_force = "All that it says is in force";
    for (faults, says) in [
        (json!([until(then)]), "; its fault has ended"),
        // One that asks for a header too ends all the same.
        (
            json!([fault(json!({"until": then, "onlyWhenHeader": {"name": "x-chaos"}}))]),
            "; its fault has ended",
        ),
        (json!([until(then), until(then)]), "; all its faults have ended"),
        (
            json!([asked(), until(then), until("2027-01-01T00:00:00Z")]),
            "; of its faults these have ended: faults[1]",
        ),
        (json!([asked()]), ""),
        (json!([until("2027-01-01T00:00:00Z")]), ""),
        (json!([]), ""),
    ] {
        let object = policy("p", "2026-01-01", web(), json!({"faults": faults}));
        cluster.apply_value(object.clone());
        let write = writes(&cluster, before).remove(0);
        let programmed = |write: &Write| write.status["ancestors"][0]["conditions"][1].clone();
        assert_eq!(programmed(&write)["message"], in_force, "{faults}");
        write_back(&cluster, &object, &write);
        assert_eq!(writes(&cluster, before), [], "{faults}");
        let later = writes(&cluster, then);
        if says.is_empty() {
            assert_eq!(later, [], "{faults}");
            continue;
        }
        let said = programmed(&later[0]);
        assert_eq!(
            (&said["status"], &said["reason"]),
            (&json!("True"), &json!("Programmed")),
            "{faults}"
        );
        assert_eq!(said["message"], format!("{in_force}{says}"), "{faults}");
        // It is said once.
        write_back(&cluster, &object, &later[0]);
        assert_eq!(writes(&cluster, LATER), [], "{faults}");
    }
}
