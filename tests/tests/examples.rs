//! Every example is read by what it is for.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use outrigger_api::policy::TrafficPolicy;
use outrigger_api::policy::access::AccessPolicy;
use outrigger_api::policy::crd::crds;
use outrigger_api::policy::limits::RateLimitPolicy;
use outrigger_controller::objects::{Kind, Object, RouteKind};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// All objects of a folder's files.
fn objects(folder: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(folder);
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        objects.extend(documents.into_iter().map(|object| (name.clone(), object)));
    }
    assert!(!objects.is_empty());
    objects
}

/// The object, and nothing that its type does not know.
fn parsed<T: DeserializeOwned + serde::Serialize>(file: &str, object: &Value) -> T {
    let parsed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{file}: {error}"));
    let known = serde_json::to_value(&parsed).unwrap();
    unknown(file, object, &known);
    parsed
}

fn unknown(path: &str, given: &Value, known: &Value) {
    match given {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            let path = format!("{path}: {name}");
            assert!(known.get(name).is_some(), "{path} is not a field");
            unknown(&path, value, &known[name]);
        }),
        Value::Array(items) => items
            .iter()
            .zip(known.as_array().unwrap())
            .for_each(|(a, b)| unknown(path, a, b)),
        _ => {}
    }
}

#[test]
fn the_shop() {
    let mut deployments = Vec::new();
    for (file, object) in objects("shop") {
        assert!(
            object["metadata"].get("namespace").is_none(),
            "{file}: the user says the namespace"
        );
        match object["kind"].as_str().unwrap() {
            "Deployment" => {
                let deployment: Deployment = parsed(&file, &object);
                deployments.push(deployment.metadata.name.unwrap());
            }
            "Service" => drop(parsed::<Service>(&file, &object)),
            "ServiceAccount" => drop(parsed::<ServiceAccount>(&file, &object)),
            kind => panic!("{file}: a {kind} is not expected"),
        }
    }
    deployments.sort();
    assert_eq!(
        deployments,
        ["inventory", "jaeger", "load", "orders", "payments", "web"]
    );
}

/// Each is valid, and together they have every field and every word that a field may have.
#[test]
fn the_policies() {
    let mut said = BTreeSet::new();
    for (file, object) in objects("policies") {
        match object["kind"].as_str().unwrap() {
            "TrafficPolicy" => {
                let policy: TrafficPolicy = parsed(&file, &object);
                policy
                    .spec
                    .to_proto()
                    .unwrap_or_else(|errors| panic!("{file}: {errors:?}"));
                assert!(!policy.spec.target_refs.is_empty(), "{file}");
                say(&object["spec"], "spec", &mut said);
            }
            kind => panic!("{file}: a {kind} is not expected"),
        }
    }
    let known = known_of("TrafficPolicy");
    assert!(known.contains("spec.loadBalancer.type=ConsistentHash"), "{known:?}");
    // `retryConstraint` is what is to be written in its place.
    let older = "spec.retry.budget";
    let missing: Vec<_> = { known.difference(&said) }
        .filter(|path| !path.starts_with(older))
        .collect();
    assert!(missing.is_empty(), "no example has {missing:?}");
}

/// Each is in force as a whole, and together they have every kind and every filter.
#[test]
fn the_routes() {
    let mut said = BTreeSet::new();
    for (file, object) in objects("routes") {
        assert_eq!(object["apiVersion"], "gateway.networking.k8s.io/v1", "{file}");
        let name = object["kind"].as_str().unwrap();
        let kind = RouteKind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = kind.unwrap_or_else(|| panic!("{file}: a {name} is not expected"));
        let read = serde_json::from_value(object.clone()).unwrap();
        let Some((_, Object::Route(route))) = Object::read(Kind::Route(kind), &read) else {
            panic!("{file} is not read");
        };
        assert_eq!(route.unsupported(), [""; 0], "{file}");
        said.insert(name.to_owned());
        for rule in object["spec"]["rules"].as_array().unwrap() {
            said.extend(rule.as_object().unwrap().keys().cloned());
            let filters = rule["filters"].as_array().into_iter().flatten();
            said.extend(filters.map(|filter| filter["type"].as_str().unwrap().to_owned()));
        }
    }
    let mut wanted: Vec<_> = RouteKind::ALL.map(RouteKind::name).into();
    wanted.extend(["retry", "sessionPersistence", "timeouts", "matches", "name"]);
    wanted.extend([
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "URLRewrite",
        "RequestRedirect",
    ]);
    wanted.extend(["RequestMirror", "CORS", "ExternalAuth"]);
    wanted.retain(|what| !said.contains(*what));
    assert!(wanted.is_empty(), "no example has {wanted:?}");
}

/// Each is a valid policy on a Service that stands beside it.
#[test]
fn the_tls_with_servers_outside() {
    let all = objects("backend-tls");
    let mut policies = 0;
    for (file, object) in &all {
        match object["kind"].as_str().unwrap() {
            "Service" => drop(parsed::<Service>(file, object)),
            "EndpointSlice" => drop(parsed::<EndpointSlice>(file, object)),
            "BackendTLSPolicy" => {
                assert_eq!(object["apiVersion"], "gateway.networking.k8s.io/v1", "{file}");
                let read = serde_json::from_value(object.clone()).unwrap();
                let Some((_, Object::BackendTls(policy))) = Object::read(Kind::BackendTls, &read) else {
                    panic!("{file}");
                };
                assert_eq!(policy.faults(), [""; 0], "{file}");
                let target = &object["spec"]["targetRefs"][0]["name"];
                let is_it = |(of, object): &(String, Value)| of == file && object["metadata"]["name"] == *target;
                assert!(all.iter().any(is_it), "{file}");
                policies += 1;
            }
            kind => panic!("{file}: a {kind} is not expected"),
        }
    }
    assert_eq!(policies, 2);
}

/// A recipe has no time of its own: who applies it writes one, and without it nothing is applied.
#[test]
fn the_chaos_has_an_end_that_is_written_when_it_is_applied() {
    let text = include_str!("../../examples/releases/chaos.yaml");
    let policy = |text: &str| -> TrafficPolicy { serde_saphyr::from_str(text).unwrap() };
    let mistakes = policy(text).spec.to_proto().unwrap_err();
    assert!(
        mistakes.len() == 2 && mistakes[0].starts_with("faults[0].until: "),
        "{mistakes:?}"
    );
    policy(&text.replace("UNTIL", "2026-12-01T18:00:00Z"))
        .spec
        .to_proto()
        .unwrap();
}

/// Each is valid, and together they have every field and every word that a field may have.
#[test]
fn the_access_policies() {
    let mut said = BTreeSet::new();
    for (file, object) in objects("access") {
        assert_eq!(object["kind"], "AccessPolicy", "{file}");
        let policy: AccessPolicy = parsed(&file, &object);
        let namespace = policy.metadata.namespace.as_deref().unwrap();
        let (_, mistakes) = policy.spec.to_wire(&file, namespace);
        assert_eq!(mistakes, [""; 0], "{file}");
        assert!(!policy.spec.target_refs.is_empty(), "{file}");
        say(&object["spec"], "spec", &mut said);
    }
    let known = known_of("AccessPolicy");
    assert!(
        known.contains("spec.rules[].sources[].type=JWT") && known.len() > 70,
        "{known:?}"
    );
    // What is of one type is shown once, wherever it stands.
    let once = |set: BTreeSet<String>| -> BTreeSet<String> {
        let paths = set.iter().map(|path| {
            let path = path.replace(".requires[]", ".sources[]");
            let selector = path
                .split_once(".selector.")
                .map(|(_, rest)| format!("selector.{rest}"));
            selector.unwrap_or(path)
        });
        paths.collect()
    };
    let (known, said) = (once(known), once(said));
    let missing: Vec<_> = known.difference(&said).collect();
    assert!(missing.is_empty(), "no example has {missing:?}");
}

/// The same of the limits; what they say of requests and of callers is shown there.
#[test]
fn the_rate_limit_policies() {
    let mut said = BTreeSet::new();
    for (file, object) in objects("rate-limits") {
        assert_eq!(object["kind"], "RateLimitPolicy", "{file}");
        let policy: RateLimitPolicy = parsed(&file, &object);
        let namespace = policy.metadata.namespace.as_deref().unwrap();
        let wire = policy.spec.to_wire(&file, namespace);
        wire.unwrap_or_else(|mistakes| panic!("{file}: {mistakes:?}"));
        assert!(!policy.spec.target_refs.is_empty(), "{file}");
        say(&object["spec"], "spec", &mut said);
    }
    let known = known_of("RateLimitPolicy");
    assert!(known.contains("spec.limits[].scope=Service"), "{known:?}");
    let elsewhere = [".sources[].", ".sources[]=", ".httpAttributes[].", ".selector."];
    let own = known
        .difference(&said)
        .filter(|path| !elsewhere.iter().any(|part| path.contains(part)));
    let missing: Vec<_> = own.collect();
    assert!(missing.is_empty(), "no example has {missing:?}");
}

fn known_of(kind: &str) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let crd = crds().into_iter().find(|crd| crd.spec.names.kind == kind);
    let schema = serde_json::to_value(crd.unwrap()).unwrap();
    let schema = &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    know(schema, "spec", &mut known);
    known
}

/// The fields that an object has, and the texts.
fn say(value: &Value, path: &str, said: &mut BTreeSet<String>) {
    said.insert(path.to_owned());
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| say(value, &format!("{path}.{name}"), said)),
        Value::Array(items) => items.iter().for_each(|item| say(item, &format!("{path}[]"), said)),
        Value::String(text) => drop(said.insert(format!("{path}={text}"))),
        _ => {}
    }
}

/// The fields that a schema has, and the texts of which a field has to be one.
fn know(schema: &Value, path: &str, known: &mut BTreeSet<String>) {
    known.insert(path.to_owned());
    for text in schema["enum"].as_array().into_iter().flatten() {
        known.insert(format!("{path}={}", text.as_str().unwrap()));
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        know(schema, &format!("{path}.{name}"), known);
    }
    if schema.get("items").is_some() {
        know(&schema["items"], &format!("{path}[]"), known);
    }
}
