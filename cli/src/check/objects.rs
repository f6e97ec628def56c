//! Policies and routes that are written, and not in force, or not all of them.

use kube::ResourceExt;
use kube::core::DynamicObject;
use outrigger_api::names;
use serde_json::Value;

use super::{Facts, Finding, some, warning, wrong};

/// Where `kubectl apply`, and who does it as kubectl does, keeps what was applied.
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let objects = facts.objects.iter();
    objects
        .flat_map(|object| [refusal(object), shortfall(object), loss(object)])
        .flatten()
        .collect()
}

/// What was applied and is not in the object: its CRD was older, and nobody was told. Or somebody has taken it out since, without
/// `apply`.
fn loss(object: &DynamicObject) -> Option<Finding> {
    let applied: Value = serde_json::from_str(object.annotations().get(APPLIED)?).ok()?;
    let mut lost = Vec::new();
    absent(applied.get("spec")?, object.data.get("spec")?, "spec", &mut lost);
    if lost.is_empty() {
        return None;
    }
    Some(warning(
        format!(
            "{} is without fields that it was applied with: {}",
            title(object),
            some(&lost)
        ),
        "a CRD that had not these fields has dropped them: upgrade it (docs/upgrade.md), and apply the object again",
    ))
}

fn absent(applied: &Value, kept: &Value, path: &str, lost: &mut Vec<String>) {
    match (applied, kept) {
        (Value::Object(applied), Value::Object(kept)) => {
            // The API server keeps no null.
            for (name, applied) in applied.iter().filter(|(_, value)| !value.is_null()) {
                let path = format!("{path}.{name}");
                match kept.get(name) {
                    Some(kept) => absent(applied, kept, &path, lost),
                    None => lost.push(path),
                }
            }
        }
        // Another length is no loss of fields.
        (Value::Array(applied), Value::Array(kept)) if applied.len() == kept.len() => {
            for (n, (applied, kept)) in applied.iter().zip(kept).enumerate() {
                absent(applied, kept, &format!("{path}[{n}]"), lost);
            }
        }
        _ => {}
    }
}

fn title(object: &DynamicObject) -> String {
    let namespace = object.namespace().unwrap_or_default();
    format!("{} {namespace}/{}", kind(object), object.name_any())
}

fn kind(object: &DynamicObject) -> &str {
    object.types.as_ref().map(|types| &*types.kind).unwrap_or_default()
}

fn describe(object: &DynamicObject) -> String {
    let namespace = object.namespace().unwrap_or_default();
    let kind = kind(object).to_ascii_lowercase();
    format!("kubectl describe {kind} -n {namespace} {}", object.name_any())
}

fn refusal(object: &DynamicObject) -> Option<Finding> {
    let status = object.data.get("status")?;
    let of_parents = ours(status, "parents").flat_map(conditions);
    let refused: Vec<_> = conditions(status).chain(of_parents).filter_map(refused).collect();
    (!refused.is_empty()).then(|| {
        let text = format!("{} is not in force: {}", title(object), refused.join("; "));
        wrong(text, describe(object))
    })
}

/// A policy or a route that is in force, and not all of it, or not everywhere.
fn shortfall(object: &DynamicObject) -> Option<Finding> {
    let status = object.data.get("status")?;
    let of_both = ours(status, "ancestors").chain(ours(status, "parents"));
    let mut short: Vec<_> = of_both.flat_map(conditions).filter_map(short).collect();
    short.dedup();
    (!short.is_empty()).then(|| {
        let text = format!("{} is not all in force: {}", title(object), short.join("; "));
        warning(text, describe(object))
    })
}

/// Entries that the controller has written.
fn ours<'a>(status: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    let entries = status.get(field).and_then(Value::as_array).into_iter().flatten();
    entries.filter(|entry| entry.get("controllerName").and_then(Value::as_str) == Some(names::CONTROLLER))
}

fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
    status.get("conditions").and_then(Value::as_array).into_iter().flatten()
}

fn refused(condition: &Value) -> Option<String> {
    let decides = ["Accepted", "ResolvedRefs"].contains(&text(condition, "type"));
    decides.then(|| denied(condition)).flatten()
}

/// That something nearer says it all is no fault.
fn short(condition: &Value) -> Option<String> {
    let is_it = ["Programmed", names::ROUTE_PROGRAMMED].contains(&text(condition, "type"));
    let counts = is_it && text(condition, "reason") != "Overridden";
    counts.then(|| denied(condition)).flatten()
}

fn denied(condition: &Value) -> Option<String> {
    let text = |field| text(condition, field);
    (text("status") == "False").then(|| format!("{}: False, {}: {}", text("type"), text("reason"), text("message")))
}

fn text<'a>(condition: &'a Value, field: &str) -> &'a str {
    condition.get(field).and_then(Value::as_str).unwrap_or_default()
}
