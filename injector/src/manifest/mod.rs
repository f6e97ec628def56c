//! `outrigger inject`: the same for a manifest, offline. It is a filter: what has no pods to change passes through byte for byte, and
//! what is changed says to every reader of YAML what the manifest said to kubectl. What kubectl cannot read, or would leave
//! out, is a mistake, and then nothing comes out.

mod dialect;
mod pod;
mod print;
mod scalar;
mod stream;
mod yaml;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use outrigger_api::labels;
use serde_json::{Map, Value};

use crate::inject::{self, Given, NamespaceMeta, Outcome};
use crate::settings::Settings;
use stream::{Document, Form};

/// A manifest with sidecars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// The whole of it, in the order in which it was given.
    pub text: String,
    /// What became of each workload, and warnings; each with the line of what it is about.
    pub notes: Vec<Note>,
}

/// A word about one line of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// From 1.
    pub line: usize,
    /// What is to be said.
    pub text: String,
}

/// The text of a manifest's bytes: UTF-8, or UTF-16 with a byte order mark, which is left out.
///
/// # Errors
/// When it is neither.
pub fn decode(bytes: Vec<u8>) -> Result<String, Note> {
    let utf_16 = |of_bytes: fn([u8; 2]) -> u16| {
        let units = bytes[2..].chunks(2).map(|unit| match *unit {
            [a, b] => of_bytes([a, b]),
            // Half a character: what nobody writes.
            _ => 0xd800,
        });
        let mut text = String::new();
        for character in char::decode_utf16(units) {
            let Ok(character) = character else {
                return Err(Note::new(stream::line_of(&text, text.len()), "this is not UTF-16"));
            };
            text.push(character);
        }
        Ok(text)
    };
    match bytes.as_slice() {
        [0xff, 0xfe, ..] => utf_16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf_16(u16::from_be_bytes),
        _ => match String::from_utf8(bytes) {
            Ok(text) => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
                Err(Note::new(line, "this is not UTF-8"))
            }
        },
    }
}

/// Puts sidecars into all workloads of a YAML (or JSON) text of one or more documents, whatever the labels of their
/// namespaces; a workload that says that it wants none stays without. The annotations of a namespace count where the
/// Namespace is in the same text. `namespace` is where objects go that name none, empty where that is not known.
///
/// # Errors
/// Every mistake.
pub fn inject(text: &str, namespace: &str, settings: &Settings, given: Given<'_>) -> Result<Injected, Vec<Note>> {
    let (mut documents, mut errors) = stream::documents(text);
    let context = Context {
        settings,
        namespaces: namespaces(documents.iter().map(|document| &document.read.value)),
        default_namespace: namespace,
        given,
    };
    let (mut injected, mut done) = (String::new(), 0);
    let mut notes = Vec::new();
    for document in &mut documents {
        let before = (notes.len(), errors.len());
        let changed = context.document(document, &mut notes, &mut errors);
        if changed {
            errors.extend(stream::ambiguous(document, text));
        }
        if changed && errors.len() == before.1 {
            notes.splice(before.0..before.0, document.read.doubled.drain(..));
            injected += &text[done..document.range.start];
            injected += &print(document);
            done = document.range.end;
        }
    }
    injected += &text[done..];
    errors.sort_by_key(|error| error.line);
    match errors.is_empty() {
        true => Ok(Injected { text: injected, notes }),
        false => Err(errors),
    }
}

/// What is known beside the object itself.
struct Context<'a> {
    settings: &'a Settings,
    namespaces: BTreeMap<String, NamespaceMeta>,
    default_namespace: &'a str,
    given: Given<'a>,
}

/// One object of a document, and what there is to say of it.
struct Said<'a> {
    /// Of the document, by JSON pointer.
    lines: &'a HashMap<String, usize>,
    document: usize,
    notes: &'a mut Vec<Note>,
    errors: &'a mut Vec<Note>,
}

impl Context<'_> {
    /// Whether an object was changed.
    fn document(&self, document: &mut Document, notes: &mut Vec<Note>, errors: &mut Vec<Note>) -> bool {
        let mut said = Said {
            lines: &document.read.lines,
            document: document.line,
            notes,
            errors,
        };
        self.object(&mut document.read.value, "", &mut said)
    }

    /// `at` is where the object stands in its document.
    fn object(&self, object: &mut Value, at: &str, said: &mut Said<'_>) -> bool {
        if let Some(items) = items(object) {
            let mut changed = false;
            for (index, item) in items.iter_mut().enumerate() {
                changed |= self.object(item, &format!("{at}/items/{index}"), said);
            }
            return changed;
        }
        let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
        let who = describe(object);
        let Some(path) = pod::template_of(version, kind) else {
            if let Some(template) = pod::looks_like_template(object) {
                said.note(at, format!(
                    "{who}: left alone, {kind} is none of Kubernetes' own kinds: the webhook puts the sidecar into the pods of its \
                     {}, where their namespace is labelled",
                    template.trim_start_matches('.')
                ));
            }
            return false;
        };
        match self.workload(object, path, &who, at, said) {
            Ok(changed) => changed,
            Err(why) => {
                said.error(at, format!("{who}: {why}"));
                false
            }
        }
    }

    fn workload(
        &self,
        object: &mut Value,
        path: &str,
        who: &str,
        at: &str,
        said: &mut Said<'_>,
    ) -> Result<bool, String> {
        let namespace = self.namespace(text(object, "/metadata/namespace"));
        let owner = (text(object, "/kind") != "Pod").then(|| owner(object));
        let template = object.pointer_mut(path).filter(|t| t.is_object());
        let Some(template) = template else {
            return Err(format!("{path} is missing: it is where the pod is described"));
        };
        let mut pod = match pod::typed(template) {
            Ok(pod) => pod,
            Err(wrong) => {
                let field = [&path.replace('/', ".")[..], "."].concat();
                said.error(
                    &format!("{at}{path}{}", wrong.pointer),
                    format!("{who}: {}{}", field.trim_start_matches('.'), wrong.why),
                );
                return Ok(false);
            }
        };
        // As the pods of this workload will have one: the name of the telemetry comes from it.
        pod.metadata.owner_references = owner.map(|owner| vec![owner]).or(pod.metadata.owner_references);
        match inject::patch(&pod, &namespace, self.settings, self.given).map_err(|refusal| refusal.to_string())? {
            Outcome::AlreadyInjected => said.note(at, format!("{who}: has the sidecar already")),
            Outcome::OptedOut => said.note(at, format!("{who}: left alone, {} is disabled", labels::INJECT)),
            Outcome::LeftAlone(why) => said.note(at, format!("{who}: left alone: {why}")),
            Outcome::NotSelected => {
                let name = &namespace.name;
                said.note(at, format!("{who}: left alone, pods of namespace {name} get none"));
            }
            Outcome::Patched { patch, warnings } => {
                if let Value::Object(template) = &mut *template
                    && template.get("metadata").is_none_or(Value::is_null)
                {
                    template.insert("metadata".to_owned(), Value::Object(Map::new()));
                }
                json_patch::patch(template, &patch).map_err(|why| why.to_string())?;
                let known = pod.metadata.labels.as_ref();
                said.note(
                    at,
                    match known.is_some_and(|l| l.contains_key(labels::PROXY_VERSION)) {
                        true => format!("{who}: its sidecar got to know what was added"),
                        false => format!("{who}: sidecar put in"),
                    },
                );
                for warning in warnings {
                    said.note(at, format!("{who}: warning: {warning}"));
                }
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

impl Said<'_> {
    fn note(&mut self, at: &str, text: String) {
        let line = self.line(at);
        self.notes.push(Note { line, text });
    }

    fn error(&mut self, at: &str, text: String) {
        let line = self.line(at);
        self.errors.push(Note { line, text });
    }

    /// Of the node at this JSON pointer, or of the nearest one around it: what came by an alias has no line.
    fn line(&self, at: &str) -> usize {
        let mut at = at;
        loop {
            if let Some(line) = self.lines.get(at).filter(|_| !at.is_empty()) {
                return *line;
            }
            match at.rsplit_once('/') {
                Some((around, _)) => at = around,
                None => return self.document,
            }
        }
    }
}

impl Note {
    fn new(line: usize, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { line, text }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

fn print(document: &Document) -> String {
    match (&document.read.value, document.form) {
        (Value::Object(object), Form::Yaml) => print::yaml(object),
        (value, _) => print::json(value),
    }
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

/// The objects of a list. Those of a typed one (`DeploymentList`) need not say what they are.
fn items(object: &mut Value) -> Option<&mut Vec<Value>> {
    let (version, kind) = (text(object, "/apiVersion").to_owned(), text(object, "/kind").to_owned());
    let of = kind.strip_suffix("List")?;
    let items = object.get_mut("items")?.as_array_mut()?;
    for item in items
        .iter_mut()
        .filter_map(Value::as_object_mut)
        .filter(|_| !of.is_empty())
    {
        if !item.contains_key("kind") {
            item.insert("kind".to_owned(), Value::from(of));
            item.insert("apiVersion".to_owned(), Value::from(version.as_str()));
        }
    }
    Some(items)
}

/// The workload as the owner of its pods.
fn owner(object: &Value) -> OwnerReference {
    OwnerReference {
        kind: text(object, "/kind").to_owned(),
        name: text(object, "/metadata/name").to_owned(),
        controller: Some(true),
        ..OwnerReference::default()
    }
}

fn describe(object: &Value) -> String {
    let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("{} {namespace}{slash}{name}", text(object, "/kind"))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests;
