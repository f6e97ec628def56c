//! Every example is read by what it is for.

use std::path::Path;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use outrigger_api::policy::TrafficPolicy;
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

#[test]
fn the_policies() {
    for (file, object) in objects("policies") {
        match object["kind"].as_str().unwrap() {
            "TrafficPolicy" => {
                let policy: TrafficPolicy = parsed(&file, &object);
                policy
                    .spec
                    .to_proto()
                    .unwrap_or_else(|errors| panic!("{file}: {errors:?}"));
                assert!(!policy.spec.target_refs.is_empty(), "{file}");
            }
            "HTTPRoute" => assert_eq!(object["apiVersion"], "gateway.networking.k8s.io/v1", "{file}"),
            kind => panic!("{file}: a {kind} is not expected"),
        }
    }
}
