//! That a route says which sidecars are too old for it.

use std::sync::Arc;

use outrigger_api::discovery::Feature;
use serde_json::{Value, json};

use super::Write;
use super::tests::{NOW, writes};
use crate::discovery::Discover;
use crate::objects::Kind;
use crate::split::Routes;
use crate::testing::Cluster;
use crate::topic::{Followed, Inbox, Reader};

const PROGRAMMED: &str = "outrigger.dev/Programmed";

fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.index.set_own("outrigger", "controller-a");
    cluster.add_service("web", 1);
    cluster.add_service("other", 2);
    cluster
}

fn route(kind: &str, namespace: &str, parent: Value, rule: Value) -> Value {
    let version = match kind {
        "TLSRoute" | "TCPRoute" => "gateway.networking.k8s.io/v1alpha2",
        _ => "gateway.networking.k8s.io/v1",
    };
    json!({
        "kind": kind, "apiVersion": version,
        "metadata": {"namespace": namespace, "name": "r", "generation": 2, "resourceVersion": "1"},
        "spec": {"parentRefs": [parent], "rules": [rule]},
    })
}

fn web() -> Value {
    json!({"group": "", "kind": "Service", "namespace": "shop", "name": "web"})
}

/// What the route would say of sidecars. `None`: nothing.
fn said(cluster: &Cluster) -> Option<(String, String, String)> {
    let writes = writes(cluster, NOW);
    let is_route = |write: &&Write| matches!(write.kind, Kind::Route(_));
    let write = writes.iter().find(is_route).unwrap();
    let conditions = write.status["parents"][0]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|condition| condition["type"] == PROGRAMMED)?;
    assert_eq!(condition["observedGeneration"], 2);
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

fn follow(cluster: &Cluster, address: &str, callers: &str, features: &[Feature]) -> Followed<Routes> {
    let reader = Reader {
        inbox: Arc::new(Inbox::new(features.iter().copied())),
        number: 0,
    };
    cluster.index.follow_routes(address.parse().unwrap(), callers, reader)
}

fn all_but(missing: &[Feature]) -> Vec<Feature> {
    let all = (1..1000).filter_map(|number| Feature::try_from(number).ok());
    all.filter(|feature| !missing.contains(feature)).collect()
}

#[test]
fn a_route_says_how_many_sidecars_do_not_know_all_of_it() {
    let to_web = || json!([{"name": "web", "namespace": "shop", "port": 80}]);
    let filter = |filter: Value| json!({"filters": [filter], "backendRefs": to_web()});
    let auth = |protocol: &str| json!({"type": "ExternalAuth", "externalAuth": {"protocol": protocol, "backendRef": {"name": "web", "port": 80}}});
    let sessions = || json!({"sessionPersistence": {"type": "Cookie"}, "backendRefs": to_web()});
    let bytes = || json!({"backendRefs": to_web()});
    for (kind, rule, needs, words) in [
        (
            "HTTPRoute",
            filter(json!({"type": "CORS", "cors": {"allowOrigins": ["*"]}})),
            Feature::Cors,
            "the filter CORS",
        ),
        (
            "HTTPRoute",
            filter(auth("HTTP")),
            Feature::ExternalAuth,
            "the filter ExternalAuth",
        ),
        (
            "HTTPRoute",
            filter(auth("GRPC")),
            Feature::ExternalAuth,
            "the filter ExternalAuth",
        ),
        (
            "HTTPRoute",
            sessions(),
            Feature::SessionPersistence,
            "sessionPersistence",
        ),
        (
            "GRPCRoute",
            sessions(),
            Feature::SessionPersistence,
            "sessionPersistence",
        ),
        ("TLSRoute", bytes(), Feature::ByteRoutes, "TLSRoute"),
        ("TCPRoute", bytes(), Feature::ByteRoutes, "TCPRoute"),
    ] {
        let cluster = cluster();
        cluster.apply_value(route(kind, "shop", web(), rule.clone()));
        cluster.index.flush();
        let today = follow(&cluster, "10.96.0.1:80", "client", &all_but(&[]));
        let programmed = |ok: &str, reason: &str| {
            let (status, said, message) = said(&cluster).unwrap();
            assert_eq!((&*status, &*said), (ok, reason), "{kind} {rule}: {message}");
            message
        };
        programmed("True", "Programmed");
        let before = follow(&cluster, "10.96.0.1:80", "client", &all_but(&[needs]));
        let stream = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
        let beside = follow(&cluster, "10.96.0.2:80", "client", &[]);
        let message = programmed("False", "PartiallyProgrammed");
        let count = "controller-a: 2 of 3 sidecars that it tells of the Service are older, and do not know all of ";
        assert!(message.starts_with(&format!("{count}{words}")), "{message}");
        drop((before, stream));
        programmed("True", "Programmed");
        drop((today, beside));
    }
}

/// What the first version of the session has is known to all that have one.
#[test]
fn a_route_that_every_sidecar_knows_says_nothing_of_them() {
    let mirror =
        json!({"type": "RequestMirror", "requestMirror": {"percent": 5, "backendRef": {"name": "web", "port": 80}}});
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"statusCode": 308}});
    let retry = json!({"retry": {"codes": [503]}, "timeouts": {"request": "1s"}});
    for rule in [
        json!({}),
        json!({"filters": [mirror]}),
        json!({"filters": [redirect]}),
        retry,
    ] {
        let cluster = cluster();
        cluster.apply_value(route("HTTPRoute", "shop", web(), rule.clone()));
        cluster.index.flush();
        let _before = follow(&cluster, "10.96.0.1:80", "client", &[]);
        assert_eq!(said(&cluster), None, "{rule}");
    }
}

#[test]
fn only_those_count_for_whom_the_route_is() {
    let cors = || {
        let filter = json!({"type": "CORS", "cors": {"allowOrigins": ["*"]}});
        json!({"filters": [filter], "backendRefs": [{"name": "web", "namespace": "shop", "port": 80}]})
    };
    let with = |field: &str, value: Value| {
        let mut parent = web();
        parent[field] = value;
        parent
    };
    for (namespace, parent, callers, expected) in [
        ("shop", web(), "client", "PartiallyProgrammed"),
        ("shop", with("port", json!(80)), "client", "PartiallyProgrammed"),
        (
            "shop",
            with("sectionName", json!("http")),
            "client",
            "PartiallyProgrammed",
        ),
        // A consumer's route is for its own namespace.
        ("client", web(), "client", "PartiallyProgrammed"),
        ("client", web(), "shop", "Programmed"),
    ] {
        let cluster = cluster();
        cluster.apply_value(route("HTTPRoute", namespace, parent.clone(), cors()));
        cluster.index.flush();
        let _before = follow(&cluster, "10.96.0.1:80", callers, &[]);
        let (_, reason, message) = said(&cluster).unwrap();
        assert_eq!(
            reason, expected,
            "{parent} of {namespace}, called by {callers}: {message}"
        );
    }
    // Of a rule that nobody carries out, and of a route that is not there for the parent, there is nothing to know.
    for rule in [
        json!({"filters": [{"type": "CORS", "cors": {"allowOrigins": ["*"]}}, {"type": "Unknown"}]}),
        json!({}),
    ] {
        let cluster = cluster();
        cluster.apply_value(route("HTTPRoute", "shop", web(), rule));
        cluster.index.flush();
        let _before = follow(&cluster, "10.96.0.1:80", "client", &[]);
        assert_eq!(said(&cluster), None);
    }
    let cluster = cluster();
    cluster.apply_value(route("HTTPRoute", "shop", with("port", json!(81)), cors()));
    cluster.index.flush();
    assert_eq!(said(&cluster), None, "it is not accepted");
}

/// Two replicas would write over one another without end.
#[test]
fn the_word_of_another_controller_stands_while_it_is_there() {
    let cluster = cluster();
    let filter = json!({"type": "CORS", "cors": {"allowOrigins": ["*"]}});
    let mut object = route("HTTPRoute", "shop", web(), json!({"filters": [filter]}));
    cluster.apply_value(object.clone());
    cluster.index.flush();
    let mut status = writes(&cluster, NOW).remove(0).status;
    let conditions = status["parents"][0]["conditions"].as_array_mut().unwrap();
    let condition = conditions.iter_mut().find(|condition| condition["type"] == PROGRAMMED);
    let condition = condition.unwrap();
    condition["status"] = "False".into();
    condition["reason"] = "PartiallyProgrammed".into();
    condition["message"] = "controller-b: 1 of 1 sidecars …".into();
    object["status"] = status;
    cluster.apply_value(object);
    cluster.apply("kind: Pod\nmetadata: {namespace: outrigger, name: controller-b}\nspec: {containers: []}\n");
    assert_eq!(writes(&cluster, NOW), []);
    cluster.delete(Kind::Pod, "outrigger", "controller-b");
    assert_eq!(said(&cluster).unwrap().1, "Programmed");
}
