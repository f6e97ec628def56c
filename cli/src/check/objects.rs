//! Policies and routes that are written, and not in force.

use kube::ResourceExt;
use kube::core::DynamicObject;
use outrigger_api::names;
use serde_json::Value;

use super::{Facts, Finding, wrong};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    facts.objects.iter().filter_map(finding).collect()
}

fn finding(object: &DynamicObject) -> Option<Finding> {
    let status = object.data.get("status")?;
    let own = conditions(status);
    let parents = status.get("parents").and_then(Value::as_array).into_iter().flatten();
    let ours = parents.filter(|parent| parent.get("controllerName").and_then(Value::as_str) == Some(names::CONTROLLER));
    let refused: Vec<_> = own.chain(ours.flat_map(conditions)).filter_map(refused).collect();
    if refused.is_empty() {
        return None;
    }
    let kind = object
        .types
        .as_ref()
        .map(|types| types.kind.as_str())
        .unwrap_or_default();
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    Some(wrong(
        format!("{kind} {namespace}/{name} is not in force: {}", refused.join("; ")),
        format!("kubectl describe {} -n {namespace} {name}", kind.to_ascii_lowercase()),
    ))
}

fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
    status.get("conditions").and_then(Value::as_array).into_iter().flatten()
}

fn refused(condition: &Value) -> Option<String> {
    let text = |field: &str| condition.get(field).and_then(Value::as_str).unwrap_or_default();
    let decides = ["Accepted", "ResolvedRefs"].contains(&text("type")) && text("status") == "False";
    decides.then(|| format!("{}: False, {}: {}", text("type"), text("reason"), text("message")))
}
