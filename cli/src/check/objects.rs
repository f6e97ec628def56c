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
        .flat_map(|object| [refusal(object), unresolved(object), shortfall(object), loss(object)])
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
    match object.namespace() {
        Some(namespace) => format!("{} {namespace}/{}", kind(object), object.name_any()),
        None => format!("{} {}", kind(object), object.name_any()),
    }
}

fn kind(object: &DynamicObject) -> &str {
    object.types.as_ref().map(|types| &*types.kind).unwrap_or_default()
}

fn describe(object: &DynamicObject) -> String {
    let namespace = object.namespace().map(|namespace| format!("-n {namespace} "));
    let kind = kind(object).to_ascii_lowercase();
    format!(
        "kubectl describe {kind} {}{}",
        namespace.unwrap_or_default(),
        object.name_any()
    )
}

/// What is not accepted. What comes of that is the message's to say: a faulty policy may hold in part, or let nothing through.
fn refusal(object: &DynamicObject) -> Option<Finding> {
    let refused = said(object, "Accepted");
    (!refused.is_empty()).then(|| {
        let text = format!("{} is not accepted: {}", title(object), refused.join("; "));
        wrong(text, describe(object))
    })
}

/// References that lead nowhere, of what is in force besides.
fn unresolved(object: &DynamicObject) -> Option<Finding> {
    let lost = said(object, "ResolvedRefs");
    let is_refused = !said(object, "Accepted").is_empty();
    (!lost.is_empty() && !is_refused).then(|| {
        let text = format!(
            "{} is in force, but not all that it refers to is there: {}",
            title(object),
            lost.join("; ")
        );
        wrong(text, describe(object))
    })
}

/// A policy or a route that is in force, and not all of it, or not everywhere.
fn shortfall(object: &DynamicObject) -> Option<Finding> {
    let mut short = said(object, "Programmed");
    short.extend(said(object, names::ROUTE_PROGRAMMED));
    (!short.is_empty()).then(|| {
        let text = format!("{} is not all in force: {}", title(object), short.join("; "));
        warning(text, describe(object))
    })
}

/// What the controller's conditions of a type deny, each once: of each parent or target, or else of the object itself, which says the same
/// of all together. An XMesh may be another mesh's.
fn said(object: &DynamicObject, type_: &str) -> Vec<String> {
    let Some(status) = object.data.get("status") else {
        return Vec::new();
    };
    let entries = ours(status, "parents").chain(ours(status, "ancestors"));
    let said = each_denied(entries.flat_map(conditions), type_);
    let mesh = object.data.pointer("/spec/controllerName").and_then(Value::as_str);
    let is_ours = kind(object) != "XMesh" || mesh == Some(names::CONTROLLER);
    match said.is_empty() && is_ours {
        true => each_denied(conditions(status), type_),
        false => said,
    }
}

/// Those of a type that are denied, in words, each once.
fn each_denied<'a>(conditions: impl Iterator<Item = &'a Value>, type_: &str) -> Vec<String> {
    let of_type = conditions.filter(|condition| text(condition, "type") == type_);
    let mut said: Vec<String> = Vec::new();
    for words in of_type.filter_map(denied) {
        if !said.contains(&words) {
            said.push(words);
        }
    }
    said
}

/// Entries that the controller has written.
fn ours<'a>(status: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    let entries = status.get(field).and_then(Value::as_array).into_iter().flatten();
    entries.filter(|entry| entry.get("controllerName").and_then(Value::as_str) == Some(names::CONTROLLER))
}

fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
    status.get("conditions").and_then(Value::as_array).into_iter().flatten()
}

/// That something nearer says it all is no fault.
fn denied(condition: &Value) -> Option<String> {
    let text = |field| text(condition, field);
    let counts = text("status") == "False" && text("reason") != "Overridden";
    counts.then(|| format!("{}: False, {}: {}", text("type"), text("reason"), text("message")))
}

fn text<'a>(condition: &'a Value, field: &str) -> &'a str {
    condition.get(field).and_then(Value::as_str).unwrap_or_default()
}
