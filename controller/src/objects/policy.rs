//! TrafficPolicies, read.

use std::sync::LazyLock;

use kube::CustomResourceExt;
use kube::core::DynamicObject;
use outrigger_api::discovery as proto;
use outrigger_api::policy::{Condition, TargetRef, TrafficPolicySpec};
use serde::Deserialize;
use serde_json::Value;

use super::ObjectName;
use super::from_k8s::object_name;

/// The API group of Outrigger's own kinds.
pub const GROUP: &str = "outrigger.dev";
/// The condition's type.
pub(crate) const ACCEPTED: &str = "Accepted";

/// A TrafficPolicy, read.
#[derive(Clone, Debug)]
pub struct TrafficPolicy {
    pub(crate) name: ObjectName,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) generation: i64,
    pub(crate) resource_version: String,
    pub(crate) targets: Vec<TargetRef>,
    /// Or everything that is wrong with it.
    pub(crate) policy: Result<proto::Policy, Vec<String>>,
    /// Fields that this controller does not know: a newer CRD has them.
    pub(crate) unknown: Vec<String>,
    /// The condition as it is now.
    pub(crate) condition: Option<Condition>,
}

impl TrafficPolicy {
    /// Reads a TrafficPolicy.
    pub fn read(object: &DynamicObject) -> Self {
        let mut spec = object
            .data
            .get("spec")
            .cloned()
            .unwrap_or_else(|| serde_json::json!({}));
        let mut unknown = Vec::new();
        prune(&mut spec, &SPEC_SCHEMA, "spec", &mut unknown);
        let spec = TrafficPolicySpec::deserialize(spec).map_err(|e| vec![format!("spec: {e}")]);
        let targets = spec.as_ref().map(|s| s.target_refs.clone()).unwrap_or_default();
        let policy = spec.and_then(|spec| {
            if spec.target_refs.is_empty() {
                return Err(vec![
                    "targetRefs: name at least one object that the policy holds for".to_owned(),
                ]);
            }
            spec.to_proto()
        });
        let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
        let conditions = conditions.into_iter().flatten();
        Self {
            name: object_name(&object.metadata),
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
            generation: object.metadata.generation.unwrap_or(0),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            targets,
            policy,
            unknown,
            condition: conditions
                .filter_map(|c| Condition::deserialize(c).ok())
                .find(|c| c.type_ == ACCEPTED),
        }
    }

    pub(crate) fn same_spec(&self, other: &Self) -> bool {
        (self.created, &self.targets, &self.policy) == (other.created, &other.targets, &other.policy)
    }
}

/// The schema of the spec, as the CRD has it.
static SPEC_SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let crd = serde_json::to_value(outrigger_api::policy::TrafficPolicy::crd()).unwrap_or_default();
    crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
        .cloned()
        .unwrap_or_default()
});

/// Takes out the fields that the schema does not have. The API server does the same where the CRD is as old as this
/// controller; a newer CRD lets them through.
fn prune(value: &mut Value, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let Some(known) = schema.get("properties").and_then(Value::as_object) else {
                return;
            };
            let fields_before = std::mem::take(fields);
            for (name, mut field) in fields_before {
                let path = format!("{path}.{name}");
                match known.get(&name) {
                    Some(schema) => {
                        prune(&mut field, schema, &path, unknown);
                        fields.insert(name, field);
                    }
                    None => unknown.push(path),
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| prune(item, schema, path, unknown));
            }
        }
        _ => {}
    }
}
