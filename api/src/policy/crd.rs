//! The CRDs of all kinds, and what one of an older version lacks.
//!
//! The API server keeps of an object what its CRD has, and drops the rest without a word. So who writes a field, reads one or waits for
//! one has to know whether the CRD has it: its schema says so, and not the version that somebody has written beside it.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::Value;

use super::TrafficPolicy;
use super::access::AccessPolicy;
use super::limits::RateLimitPolicy;

/// Annotation of a CRD: the version of Outrigger that has printed it, for people. Nothing is decided by it.
pub const VERSION: &str = "outrigger.dev/crd-version";

/// How older CRDs become those of the `outrigger` that prints them.
pub const APPLY: &str = "outrigger crds | kubectl apply --server-side --force-conflicts -f -";

/// All of them, as `outrigger crds` prints them and the chart has them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![AccessPolicy::crd(), RateLimitPolicy::crd(), TrafficPolicy::crd()];
    for crd in &mut crds {
        let annotations = crd.metadata.annotations.get_or_insert_default();
        annotations.insert(VERSION.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let schemas = crd
            .spec
            .versions
            .iter_mut()
            .filter_map(|version| version.schema.as_mut());
        schemas
            .filter_map(|schema| schema.open_api_v3_schema.as_mut())
            .for_each(refuse_null);
    }
    crds
}

/// A field that is null is as if it were not there: the API server drops it, and its rules see none.
fn refuse_null(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema
        .properties
        .iter_mut()
        .flat_map(BTreeMap::values_mut)
        .for_each(refuse_null);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        refuse_null(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        refuse_null(values);
    }
}

/// The version of Outrigger that has printed the CRD. None: one that wrote none into it.
pub fn version(crd: &CustomResourceDefinition) -> Option<&str> {
    crd.metadata.annotations.as_ref()?.get(VERSION).map(String::as_str)
}

/// Fields that `wanted` has and `crd` has not, as "spec.rules[].name", each without those below it. What is in them, the API server
/// drops.
pub fn lacking(crd: &CustomResourceDefinition, wanted: &CustomResourceDefinition) -> Vec<String> {
    let mut fields = Vec::new();
    for version in &wanted.spec.versions {
        let name = &version.name;
        match (schema(crd, name), schema(wanted, name)) {
            (Some(has), Some(wanted)) => compare(&has, &wanted, "", &mut fields),
            _ => fields.push(format!("version {name}")),
        }
    }
    fields
}

fn schema(crd: &CustomResourceDefinition, version: &str) -> Option<Value> {
    let version = crd.spec.versions.iter().find(|v| v.name == version && v.served)?;
    serde_json::to_value(version.schema.as_ref()?.open_api_v3_schema.as_ref()?).ok()
}

fn compare(has: &Value, wanted: &Value, path: &str, fields: &mut Vec<String>) {
    if has.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        return;
    }
    for (name, wanted) in wanted
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        match has.get("properties").and_then(|known| known.get(name)) {
            Some(has) => compare(has, wanted, &path, fields),
            None => fields.push(path),
        }
    }
    for (below, sign) in [("items", "[]"), ("additionalProperties", ".*")] {
        if let (Some(has), Some(wanted)) = (has.get(below), wanted.get(below)) {
            compare(has, wanted, &format!("{path}{sign}"), fields);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn crd(version: &str, schema: Value) -> CustomResourceDefinition {
        let versions =
            json!([{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]);
        serde_json::from_value(json!({
            "metadata": {"name": "things.example.com"},
            "spec": {
                "group": "example.com", "names": {"kind": "Thing", "plural": "things"}, "scope": "Namespaced",
                "versions": versions,
            },
        }))
        .unwrap()
    }

    #[test]
    fn each_says_which_version_has_printed_it() {
        for crd in crds() {
            assert_eq!(version(&crd), Some(env!("CARGO_PKG_VERSION")));
            assert_eq!(lacking(&crd, &crd), [""; 0]);
        }
        assert_eq!(version(&crd("v1", json!({}))), None);
    }

    #[test]
    fn fields_that_are_lacking() {
        let text = json!({"type": "string"});
        let wanted = crd(
            "v1",
            json!({"properties": {
                "spec": {"properties": {
                    "kept": text, "new": {"properties": {"below": text}},
                    "list": {"type": "array", "items": {"properties": {"kept": text, "new": text}}},
                    "map": {"additionalProperties": {"properties": {"new": text}}},
                    "open": {"properties": {"new": text}},
                }},
                "status": {"properties": {"new": text}},
            }}),
        );
        let older = crd(
            "v1",
            json!({"properties": {
                "spec": {"properties": {
                    "kept": {"type": "string", "maxLength": 3}, "gone": text,
                    "list": {"type": "array", "items": {"properties": {"kept": text}}},
                    "map": {"additionalProperties": {"properties": {}}},
                    "open": {"x-kubernetes-preserve-unknown-fields": true},
                }},
                "status": {},
            }}),
        );
        let fields = ["spec.list[].new", "spec.map.*.new", "spec.new", "status.new"];
        assert_eq!(lacking(&older, &wanted), fields);
        assert_eq!(lacking(&wanted, &older), ["spec.gone"]);
        assert_eq!(lacking(&crd("v0", json!({})), &wanted), ["version v1"]);
        let mut unserved = older.clone();
        unserved.spec.versions[0].served = false;
        assert_eq!(lacking(&unserved, &wanted), ["version v1"]);
    }
}
