//! `outrigger inject`: the same for a manifest, offline. What is not about pods passes through as it was written.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use outrigger_api::labels;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::inject::{self, Given, NamespaceMeta, Outcome};
use crate::settings::Settings;

/// A manifest with sidecars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// The whole of it, in the order in which it was given.
    pub yaml: String,
    /// What became of each workload, and warnings; one line each.
    pub notes: Vec<String>,
}

/// Puts sidecars into all workloads of a YAML (or JSON) text of one or more documents, whatever the labels of their
/// namespaces; a workload that says that it wants none stays without. The annotations of a namespace count where the
/// Namespace is in the same text. `namespace` is where objects go that name none, empty where that is not known.
///
/// # Errors
/// Every mistake, each with its document and where it is.
pub fn inject(text: &str, namespace: &str, settings: &Settings, given: Given<'_>) -> Result<Injected, Vec<String>> {
    let mut errors = Vec::new();
    let mut documents = Vec::new();
    for (index, document) in split(text).into_iter().enumerate() {
        match document.value() {
            Ok(value) => documents.push((index + 1, document, value)),
            Err(why) => errors.push(format!("document {}: {why}", index + 1)),
        }
    }
    let namespaces = namespaces(documents.iter().map(|(_, _, value)| value));
    let context = Context {
        settings,
        namespaces,
        default_namespace: namespace,
        given,
    };
    let mut yaml = Vec::new();
    let mut notes = Vec::new();
    for (number, document, mut value) in documents {
        let before = notes.len();
        match context.object(&mut value, &document, &mut notes) {
            Ok(false) => yaml.push(document.text.to_owned()),
            Ok(true) => match to_yaml(&value) {
                Ok(text) => yaml.push(text),
                Err(why) => errors.push(format!("document {number}: cannot be written: {why}")),
            },
            Err(why) => errors.extend(why.into_iter().map(|why| format!("document {number}: {why}"))),
        }
        for note in &mut notes[before..] {
            *note = format!("document {number}: {note}");
        }
    }
    if errors.is_empty() {
        Ok(Injected {
            yaml: yaml.join("---\n"),
            notes,
        })
    } else {
        Err(errors)
    }
}

/// One document of the text.
struct Document<'a> {
    text: &'a str,
    /// Lines of the text before it.
    line: usize,
}

/// What is known beside the object itself.
struct Context<'a> {
    settings: &'a Settings,
    namespaces: BTreeMap<String, NamespaceMeta>,
    default_namespace: &'a str,
    given: Given<'a>,
}

impl Context<'_> {
    /// Whether the object was changed.
    fn object(
        &self,
        object: &mut Value,
        document: &Document<'_>,
        notes: &mut Vec<String>,
    ) -> Result<bool, Vec<String>> {
        if let Some(items) = items(object) {
            let mut changed = false;
            let mut errors = Vec::new();
            for (index, item) in items.iter_mut().enumerate() {
                match self.object(item, document, notes) {
                    Ok(item_changed) => changed |= item_changed,
                    Err(why) => errors.extend(why.into_iter().map(|why| format!("items[{index}]: {why}"))),
                }
            }
            return if errors.is_empty() { Ok(changed) } else { Err(errors) };
        }
        let Some(path) = path_of_template(object) else {
            return Ok(false);
        };
        let who = describe(object);
        self.workload(object, path, &who, document, notes)
            .map_err(|why| vec![format!("{who}: {why}")])
    }

    fn workload(
        &self,
        object: &mut Value,
        path: &str,
        who: &str,
        document: &Document<'_>,
        notes: &mut Vec<String>,
    ) -> Result<bool, String> {
        let kind = text(object, "/kind").to_owned();
        let name = text(object, "/metadata/name").to_owned();
        let namespace = self.namespace(text(object, "/metadata/namespace"));
        let template = object.pointer_mut(path).filter(|t| t.is_object());
        let Some(template) = template else {
            return Err(format!("{path} is missing: it is where the pod is described"));
        };
        let mut pod: Pod = serde_json::from_value(as_pod(template))
            .map_err(|why| document.located(&kind).unwrap_or(why.to_string()))?;
        if kind != "Pod" {
            // As the pods of this workload will have one: the name of the telemetry comes from it.
            let owner = OwnerReference {
                kind,
                name,
                controller: Some(true),
                ..OwnerReference::default()
            };
            pod.metadata.owner_references = Some(vec![owner]);
        }
        match inject::patch(&pod, &namespace, self.settings, self.given).map_err(|refusal| refusal.to_string())? {
            Outcome::AlreadyInjected => notes.push(format!("{who}: has the sidecar already")),
            Outcome::OptedOut => notes.push(format!("{who}: left alone, {} is disabled", labels::INJECT)),
            Outcome::NotSelected => notes.push(format!(
                "{who}: left alone, pods of namespace {} get none",
                namespace.name
            )),
            Outcome::Patched { patch, warnings } => {
                if let Value::Object(template) = &mut *template
                    && template.get("metadata").is_none_or(Value::is_null)
                {
                    template.insert("metadata".to_owned(), Value::Object(Map::new()));
                }
                json_patch::patch(template, &patch).map_err(|why| why.to_string())?;
                let known = pod.metadata.labels.as_ref();
                notes.push(match known.is_some_and(|l| l.contains_key(labels::PROXY_VERSION)) {
                    true => format!("{who}: its sidecar got to know what was added"),
                    false => format!("{who}: sidecar put in"),
                });
                notes.extend(warnings.into_iter().map(|warning| format!("{who}: warning: {warning}")));
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The namespace as it would be with the label: whoever gives a manifest to `outrigger inject` wants the sidecar.
    fn namespace(&self, name: &str) -> NamespaceMeta {
        let name = if name.is_empty() { self.default_namespace } else { name };
        let mut namespace = self.namespaces.get(name).cloned().unwrap_or_default();
        name.clone_into(&mut namespace.name);
        namespace
            .labels
            .insert(labels::INJECT.to_owned(), labels::ENABLED.to_owned());
        namespace
    }
}

impl Document<'_> {
    fn value(&self) -> Result<Value, String> {
        self.parse()
    }

    /// What is wrong with the pod, with its line: JSON values know no lines, so the text is read again as the type that it
    /// should have. `None` when that finds nothing wrong.
    fn located(&self, kind: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct Of<T> {
            #[serde(rename = "spec")]
            _spec: T,
        }
        #[derive(Deserialize)]
        struct Template {
            #[serde(rename = "template")]
            _template: WithMetadata,
        }
        #[derive(Deserialize)]
        struct WithMetadata {
            #[serde(rename = "metadata", default)]
            _metadata: Option<ObjectMeta>,
            #[serde(rename = "spec")]
            _spec: PodSpec,
        }
        #[derive(Deserialize)]
        struct JobTemplate {
            #[serde(rename = "jobTemplate")]
            _template: Of<Template>,
        }
        match kind {
            "Pod" => self.parse::<WithMetadata>().err(),
            "CronJob" => self.parse::<Of<JobTemplate>>().err(),
            _ => self.parse::<Of<Template>>().err(),
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        // kubectl reads 0644 as octal, and so must who hands a manifest on to it.
        let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
        // Empty lines before it make the lines in errors those of the whole text.
        let padded = "\n".repeat(self.line) + self.text;
        serde_saphyr::from_str_with_options(&padded, options).map_err(|e| e.to_string())
    }
}

/// The documents of a YAML stream, as text. A line that begins with `---` is never inside of one: Kubernetes' objects
/// are maps, and the text in a map is indented.
fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut line, mut offset) = (0, 0, 0);
    for (number, content) in text.split_inclusive('\n').enumerate() {
        let bare = content.trim_end();
        let marker = bare == "---" || bare.starts_with("--- #");
        if marker {
            documents.push(Document {
                text: &text[start..offset],
                line,
            });
            (start, line) = (offset + content.len(), number + 1);
        }
        offset += content.len();
    }
    documents.push(Document {
        text: &text[start..],
        line,
    });
    documents.retain(|d| d.text.lines().any(|l| !l.trim().is_empty()));
    documents
}

fn namespaces<'a>(objects: impl Iterator<Item = &'a Value>) -> BTreeMap<String, NamespaceMeta> {
    let mut namespaces = BTreeMap::new();
    for object in objects {
        let listed = object.get("items").and_then(Value::as_array).into_iter().flatten();
        for object in listed.chain([object]).filter(|o| text(o, "/kind") == "Namespace") {
            let map = |path| {
                object
                    .pointer(path)
                    .and_then(|m| serde_json::from_value(m.clone()).ok())
                    .unwrap_or_default()
            };
            let name = text(object, "/metadata/name").to_owned();
            let meta = NamespaceMeta {
                name: name.clone(),
                labels: map("/metadata/labels"),
                annotations: map("/metadata/annotations"),
            };
            namespaces.insert(name, meta);
        }
    }
    namespaces
}

fn items(object: &mut Value) -> Option<&mut Vec<Value>> {
    if !text(object, "/kind").ends_with("List") {
        return None;
    }
    object.get_mut("items")?.as_array_mut()
}

/// Where an object of this kind describes its pods.
fn path_of_template(object: &Value) -> Option<&'static str> {
    let group = text(object, "/apiVersion")
        .split_once('/')
        .map_or("", |(group, _)| group);
    match (group, text(object, "/kind")) {
        ("", "Pod") => Some(""),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") => Some("/spec/template"),
        ("", "ReplicationController") | ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn as_pod(template: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": template.get("metadata").filter(|m| !m.is_null()).cloned().unwrap_or_else(|| json!({})),
        "spec": template.get("spec"),
    })
}

fn describe(object: &Value) -> String {
    let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("{} {namespace}{slash}{name}", text(object, "/kind"))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn to_yaml(value: &Value) -> Result<String, serde_saphyr::ser_error::Error> {
    let options = serde_saphyr::ser_options! { compact_list_indent: true, empty_as_braces: true };
    let mut yaml = serde_saphyr::to_string_with_options(value, options)?;
    if !yaml.ends_with('\n') {
        yaml.push('\n');
    }
    Ok(yaml)
}

#[cfg(test)]
mod tests;
