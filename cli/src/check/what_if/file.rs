//! AccessPolicies in a file. Whatever is wrong with them is said with its line and its field.

use std::fmt;

use kube::core::{DynamicObject, ObjectMeta};
use outrigger_api::policy::access::AccessPolicySpec;
use outrigger_controller::objects::policy::{Policy, PolicyKind};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};
use serde_saphyr::Spanned;

/// A policy of the file.
#[derive(Debug)]
pub(super) struct Proposed {
    pub(super) policy: DynamicObject,
    /// It is in Audit mode, and judged as if it were not: in Audit mode it refuses nobody.
    pub(super) audit: bool,
}

/// # Errors
/// All that is wrong, each as "file:line: field: what".
pub(super) fn policies(name: &str, text: &str, namespace: &str) -> Result<Vec<Proposed>, Vec<String>> {
    let (mut proposed, mut mistakes) = (Vec::new(), Vec::new());
    for document in documents(text) {
        match policy(name, &document, namespace) {
            Ok(policy) => proposed.extend(policy),
            Err(more) => mistakes.extend(more),
        }
    }
    if proposed.is_empty() && mistakes.is_empty() {
        mistakes.push(format!("{name}: there is no AccessPolicy in it"));
    }
    if mistakes.is_empty() {
        Ok(proposed)
    } else {
        Err(mistakes)
    }
}

/// The documents of a stream, each at its line: empty lines stand for those before it.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            documents.push("\n".repeat(number + 1));
            continue;
        }
        if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents
}

#[derive(Deserialize)]
struct Document {
    /// Read for what is wrong with it: the object is made of the text as it is.
    #[serde(rename = "spec")]
    _spec: AccessPolicySpec,
}

/// `None`: the document is empty.
fn policy(name: &str, text: &str, namespace: &str) -> Result<Option<Proposed>, Vec<String>> {
    let read = |error: serde_saphyr::Error| {
        let error = error.without_snippet();
        vec![match error.location() {
            Some(at) => format!("{name}:{}: {error}", at.line()),
            None => format!("{name}: {error}"),
        }]
    };
    let mut object: Value = serde_saphyr::from_str(text).map_err(read)?;
    if object.is_null() {
        return Ok(None);
    }
    let places: Spanned<Place> = serde_saphyr::from_str(text).map_err(read)?;
    let wrong = |field: &str, why: &str| {
        let line = line(&places.value, field).unwrap_or(places.referenced.line());
        format!("{name}:{line}: {field}: {why}")
    };
    if (&object["apiVersion"], &object["kind"]) != (&json!("outrigger.dev/v1alpha1"), &json!("AccessPolicy")) {
        let why = "only AccessPolicies of outrigger.dev/v1alpha1 are judged";
        return Err(vec![wrong("kind", why)]);
    }
    serde_saphyr::from_str::<Document>(text).map_err(read)?;
    let of_metadata = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
    let Some(own_name) = of_metadata("name") else {
        return Err(vec![wrong("metadata.name", "a policy has a name")]);
    };
    let metadata = ObjectMeta {
        namespace: of_metadata("namespace").or_else(|| Some(namespace.to_owned())),
        name: Some(own_name),
        ..ObjectMeta::default()
    };
    let mut spec = object["spec"].take();
    let mode = spec.as_object_mut().and_then(|spec| spec.remove("mode"));
    let policy = DynamicObject {
        types: None,
        metadata,
        data: json!({ "spec": spec }),
    };
    let faults = Policy::read(PolicyKind::Access, &policy).faults();
    if !faults.is_empty() {
        let said = faults.iter().map(|fault| {
            let (field, why) = fault.split_once(": ").unwrap_or(("spec", fault));
            match field.starts_with("spec") {
                true => wrong(field, why),
                false => wrong(&format!("spec.{field}"), why),
            }
        });
        return Err(said.collect());
    }
    Ok(Some(Proposed {
        policy,
        audit: mode.is_some_and(|mode| mode == "Audit"),
    }))
}

/// Where the parts of a document stand.
enum Place {
    Map(Vec<(Spanned<String>, Self)>),
    List(Vec<Spanned<Self>>),
    Leaf,
}

/// The line of a field, "spec.rules[0].sources", or of the nearest one around it that is there.
fn line(mut place: &Place, field: &str) -> Option<u64> {
    let mut line = None;
    for part in field.split(['.', '[']) {
        let within = match (place, part.strip_suffix(']')) {
            (Place::Map(fields), _) => fields
                .iter()
                .find(|(name, _)| name.value == part)
                .map(|(name, place)| (name.referenced.line(), place)),
            (Place::List(items), Some(number)) => {
                let item = number.parse().ok().and_then(|number: usize| items.get(number));
                item.map(|item| (item.referenced.line(), &item.value))
            }
            _ => None,
        };
        let Some((at, next)) = within else { break };
        (line, place) = (Some(at), next);
    }
    line
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Places)
    }
}

struct Places;

impl<'de> Visitor<'de> for Places {
    type Value = Place;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Place, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Place::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Place, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Place::List(items))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Place, E> {
        Ok(Place::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Place, E> {
        Ok(Place::Leaf)
    }
}
