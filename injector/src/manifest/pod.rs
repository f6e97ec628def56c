//! Where objects describe their pods, and what they say of them.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::yaml::escaped;

/// Why a template is no pod's.
pub(super) struct Wrong {
    /// The field, as a JSON pointer below the template, and as a person writes it.
    pub(super) pointer: String,
    pub(super) why: String,
}

/// Where an object of one of Kubernetes' own kinds describes its pods.
pub(super) fn template_of(api_version: &str, kind: &str) -> Option<&'static str> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    match (group, kind) {
        ("", "Pod") => Some(""),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") => Some("/spec/template"),
        ("", "ReplicationController") | ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// Where an object of any other kind seems to describe pods: a list of containers with a name or an image.
pub(super) fn looks_like_template(value: &Value) -> Option<String> {
    match value {
        Value::Object(map) => {
            let containers = map.get("containers").and_then(Value::as_array);
            let is_container = |item: &Value| {
                ["image", "name"]
                    .iter()
                    .any(|field| item.get(field).is_some_and(Value::is_string))
            };
            if containers.is_some_and(|items| !items.is_empty() && items.iter().all(is_container)) {
                return Some(String::new());
            }
            map.iter()
                .find_map(|(name, value)| Some(format!(".{name}{}", looks_like_template(value)?)))
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| Some(format!("[{index}]{}", looks_like_template(item)?))),
        _ => None,
    }
}

/// The template as a pod.
///
/// # Errors
/// The field that is not of its type.
pub(super) fn typed(template: &Value) -> Result<Pod, Wrong> {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": template.get("metadata"),
        "spec": template.get("spec"),
    });
    as_in_go(&mut pod);
    serde_path_to_error::deserialize(pod).map_err(|error| {
        let mut pointer = String::new();
        for segment in error.path().iter() {
            pointer.push('/');
            match segment {
                serde_path_to_error::Segment::Seq { index } => pointer += &index.to_string(),
                segment => pointer += &escaped(&segment.to_string()),
            }
        }
        Wrong {
            why: format!("{}: {}", error.path(), error.inner()),
            pointer,
        }
    })
}

/// kube-apiserver takes null for what is not there, of a label or an annotation for an empty text; and a number for a quantity.
fn as_in_go(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, value) in map.iter_mut() {
                match (name.as_str(), &mut *value) {
                    ("labels" | "annotations", Value::Object(texts)) => {
                        texts
                            .values_mut()
                            .filter(|text| text.is_null())
                            .for_each(|text| *text = json!(""));
                    }
                    ("requests" | "limits" | "overhead", Value::Object(quantities)) => {
                        quantities.values_mut().for_each(quantity);
                    }
                    ("sizeLimit" | "divisor", value) => quantity(value),
                    (_, value) => as_in_go(value),
                }
            }
            map.retain(|_, value| !value.is_null());
        }
        Value::Array(items) => items.iter_mut().for_each(as_in_go),
        _ => {}
    }
}

fn quantity(value: &mut Value) {
    if let Value::Number(number) = value {
        *value = Value::String(number.to_string());
    }
}
