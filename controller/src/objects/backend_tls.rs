//! BackendTLSPolicy (Gateway API, GEP-1897): that callers of a Service speak TLS with its endpoints, and whom they believe.
//!
//! A policy is read once into [`BackendTls`], in which everything that does not depend on other objects is decided. One that cannot be carried out
//! as it is written holds all the same: then nobody is believed, and calls fail. Left out, it would have them made in plaintext.

use std::sync::Arc;

use kube::core::DynamicObject;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::subject_alt_name::Kind as San;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::ObjectName;
use super::from_k8s::object_name;
use super::keys::KeySource;

/// Its name in the API.
pub const KIND: &str = "BackendTLSPolicy";
/// By which the API names its objects.
pub const PLURAL: &str = "backendtlspolicies";

/// The CRD allows so many of each; what is beyond is passed over.
const MAX_TARGETS: usize = 16;
const MAX_REFERENCES: usize = 8;
const MAX_NAMES: usize = 5;
const MAX_URI: usize = 253;

/// A policy, read.
#[derive(Clone, Debug)]
pub struct BackendTls {
    pub(crate) name: ObjectName,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) generation: i64,
    pub(crate) resource_version: String,
    /// Only Services, of its own namespace.
    pub(crate) targets: Vec<Target>,
    /// Or everything that is wrong with it.
    pub(crate) spec: Result<Spec, Vec<String>>,
    /// `status.ancestors` as it is now, of all controllers.
    pub(crate) ancestors: Vec<Value>,
}

/// A Service that a policy holds for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    /// As the status repeats it: a ParentReference.
    pub(crate) reference: Value,
    pub(crate) service: ObjectName,
    /// One port, by its name.
    pub(crate) section: Option<Arc<str>>,
}

/// What servers have to show.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    pub(crate) hostname: String,
    pub(crate) names: Vec<proto::SubjectAltName>,
    pub(crate) trust: Trust,
}

/// Who may have signed it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Trust {
    System,
    /// Each with the name that it has in the policy.
    Certificates(Vec<(String, Result<KeySource, BadReference>)>),
}

/// A reference that leads to no certificates, whatever there is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BadReference {
    /// Of the condition `ResolvedRefs`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl BackendTls {
    /// Reads a policy.
    pub(crate) fn read(object: &DynamicObject) -> Self {
        let name = object_name(&object.metadata);
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        let references = spec.get("targetRefs").and_then(Value::as_array);
        let references = references.into_iter().flatten().take(MAX_TARGETS);
        let mut targets: Vec<_> = references
            .filter_map(|reference| target(&name.namespace, reference))
            .collect();
        targets.dedup();
        let created = object.metadata.creation_timestamp.as_ref();
        let ancestors = object.data.pointer("/status/ancestors").and_then(Value::as_array);
        Self {
            created: created.map_or(0, |t| t.0.as_second()),
            generation: object.metadata.generation.unwrap_or(0),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            targets,
            spec: read(&name.namespace, &spec),
            ancestors: ancestors.cloned().unwrap_or_default(),
            name,
        }
    }

    /// Where its certificates are.
    pub(crate) fn key_sources(&self) -> impl Iterator<Item = KeySource> {
        let trust = self.spec.iter().map(|spec| &spec.trust);
        let references = trust.flat_map(|trust| match trust {
            Trust::System => &[][..],
            Trust::Certificates(references) => references,
        });
        references.filter_map(|(_, source)| source.clone().ok())
    }

    /// Everything that is wrong with it, for who writes it.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.spec.as_ref().err().cloned().unwrap_or_default();
        if self.targets.is_empty() {
            faults.push("spec.targetRefs: no Service is named".to_owned());
        }
        faults
    }

    pub(crate) fn same_spec(&self, other: &Self) -> bool {
        (self.created, &self.targets, &self.spec) == (other.created, &other.targets, &other.spec)
    }
}

/// `None`: it is no Service, and so for somebody else.
fn target(namespace: &Arc<str>, reference: &Value) -> Option<Target> {
    let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    if (text("group"), text("kind")) != ("", "Service") {
        return None;
    }
    let section = Some(text("sectionName")).filter(|section| !section.is_empty());
    let mut shown = json!({"group": "", "kind": "Service", "namespace": &**namespace, "name": text("name")});
    if let Some(section) = section {
        shown["sectionName"] = section.into();
    }
    Some(Target {
        reference: shown,
        service: ObjectName {
            namespace: Arc::clone(namespace),
            name: text("name").into(),
        },
        section: section.map(Into::into),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecOfCrd {
    validation: Validation,
    #[serde(default)]
    options: Map<String, Value>,
    /// What a newer version knows: to leave it out might make the policy looser.
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Validation {
    #[serde(default)]
    ca_certificate_refs: Vec<Reference>,
    #[serde(default, rename = "wellKnownCACertificates")]
    well_known_ca_certificates: String,
    hostname: String,
    #[serde(default)]
    subject_alt_names: Vec<SubjectAltName>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(default)]
    group: String,
    kind: String,
    name: String,
}

#[derive(Deserialize)]
struct SubjectAltName {
    r#type: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    uri: String,
}

fn read(namespace: &Arc<str>, spec: &Value) -> Result<Spec, Vec<String>> {
    let spec = SpecOfCrd::deserialize(spec).map_err(|error| vec![format!("spec: {error}")])?;
    let validation = spec.validation;
    let mut mistakes = Vec::new();
    let known_here = ["targetRefs"];
    let unknown = spec
        .unknown
        .keys()
        .filter(|field| !known_here.contains(&field.as_str()));
    mistakes.extend(unknown.map(|field| format!("spec.{field}: this version does not know it")));
    let unknown = validation.unknown.keys();
    mistakes.extend(unknown.map(|field| format!("spec.validation.{field}: this version does not know it")));
    mistakes.extend(
        spec.options
            .keys()
            .map(|option| format!("spec.options: there is no option {option}")),
    );
    if !is_server(&validation.hostname) {
        mistakes.push(format!(
            "spec.validation.hostname: {:?} is no name of a server",
            validation.hostname
        ));
    }
    let names = validation.subject_alt_names.iter().take(MAX_NAMES).zip(0..);
    let names = names.filter_map(|(name, index)| match san(name) {
        Ok(name) => Some(name),
        Err(why) => {
            mistakes.push(format!("spec.validation.subjectAltNames[{index}]: {why}"));
            None
        }
    });
    let names = names.collect();
    let trust = match (
        &validation.ca_certificate_refs[..],
        &*validation.well_known_ca_certificates,
    ) {
        ([], "System") => Some(Trust::System),
        ([], "") => {
            mistakes.push("spec.validation: name caCertificateRefs or wellKnownCACertificates".to_owned());
            None
        }
        ([], other) => {
            mistakes.push(format!(
                "spec.validation.wellKnownCACertificates: {other:?} is not known, and System is"
            ));
            None
        }
        (references, "") => {
            let references = references.iter().take(MAX_REFERENCES);
            let references = references.map(|reference| certificates(namespace, reference));
            Some(Trust::Certificates(references.collect()))
        }
        (_, _) => {
            mistakes
                .push("spec.validation: caCertificateRefs and wellKnownCACertificates exclude one another".to_owned());
            None
        }
    };
    match trust {
        Some(trust) if mistakes.is_empty() => Ok(Spec {
            hostname: validation.hostname,
            names,
            trust,
        }),
        _ => Err(mistakes),
    }
}

/// A name that a ClientHello can have (RFC 6066 section 3).
fn is_server(name: &str) -> bool {
    rustls::pki_types::DnsName::try_from(name).is_ok() && !name.ends_with('.')
}

fn san(name: &SubjectAltName) -> Result<proto::SubjectAltName, String> {
    let kind = match (&*name.r#type, &*name.hostname, &*name.uri) {
        ("Hostname", host, "") if is_server(host.strip_prefix("*.").unwrap_or(host)) => San::Hostname(host.to_owned()),
        ("URI", "", uri) if uri.contains(':') && uri.len() <= MAX_URI => San::Uri(uri.to_owned()),
        ("Hostname" | "URI", _, _) => return Err("it has no name of its type, or one of the other".to_owned()),
        (other, _, _) => return Err(format!("this version does not know the type {other:?}")),
    };
    Ok(proto::SubjectAltName { kind: Some(kind) })
}

fn certificates(namespace: &Arc<str>, reference: &Reference) -> (String, Result<KeySource, BadReference>) {
    let shown = format!("{} {}", reference.kind, reference.name);
    let bad = |reason, message| Err(BadReference { reason, message });
    let source = match (&*reference.group, &*reference.kind) {
        ("", "ConfigMap") => KeySource::certificates(namespace, &reference.name).map_or_else(
            || bad("InvalidCACertificateRef", "there can be none of that name".to_owned()),
            Ok,
        ),
        (group, kind) => bad(
            "InvalidKind",
            format!(
                "certificates are read from a ConfigMap of the group \"\", and not from the kind {kind} of the group {group:?}"
            ),
        ),
    };
    (shown, source)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_spec(spec: Value) -> Result<Spec, Vec<String>> {
        read(&"shop".into(), &spec)
    }

    fn with(validation: Value) -> Result<Spec, Vec<String>> {
        read_spec(json!({"targetRefs": [], "validation": validation}))
    }

    #[test]
    fn what_is_wrong_is_said_by_its_path() {
        let system = |more: Value| {
            let mut all = json!({"hostname": "a.example.com", "wellKnownCACertificates": "System"});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let good = with(system(json!({}))).unwrap();
        assert_eq!(
            (good.hostname.as_str(), good.trust, good.names.len()),
            ("a.example.com", Trust::System, 0)
        );
        for (validation, part) in [
            (json!({"hostname": "a.example.com"}), "spec.validation: name"),
            (json!({"wellKnownCACertificates": "System"}), "missing field `hostname`"),
            (system(json!({"hostname": "*.example.com"})), "spec.validation.hostname"),
            (system(json!({"hostname": "10.0.0.1"})), "spec.validation.hostname"),
            (system(json!({"hostname": ""})), "spec.validation.hostname"),
            (
                system(json!({"wellKnownCACertificates": "example.com/x"})),
                "wellKnownCACertificates",
            ),
            (
                system(json!({"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]})),
                "exclude",
            ),
            (system(json!({"pins": []})), "spec.validation.pins"),
            (
                system(json!({"subjectAltNames": [{"type": "Hostname"}]})),
                "subjectAltNames[0]",
            ),
            (
                system(json!({"subjectAltNames": [{"type": "URI", "uri": "x"}]})),
                "subjectAltNames[0]",
            ),
            (
                system(json!({"subjectAltNames": [{"type": "Hostname", "hostname": "a.b"}, {"type": "IP"}]})),
                "subjectAltNames[1]",
            ),
        ] {
            let mistakes = with(validation.clone()).unwrap_err().join("; ");
            assert!(mistakes.contains(part), "{validation}: {mistakes}");
        }
        let options = json!({"validation": system(json!({})), "options": {"example.com/min": "1.3"}});
        assert!(read_spec(options).unwrap_err()[0].contains("example.com/min"));
        let newer = json!({"validation": system(json!({})), "clientCertificateRef": {}});
        assert!(read_spec(newer).unwrap_err()[0].contains("spec.clientCertificateRef"));
    }

    #[test]
    fn names_and_certificates_are_read() {
        let spec = with(json!({
            "hostname": "a.example.com",
            "caCertificateRefs": [
                {"group": "", "kind": "ConfigMap", "name": "ca"},
                {"group": "", "kind": "Secret", "name": "ca"},
                {"group": "", "kind": "ConfigMap", "name": "../x"},
            ],
            "subjectAltNames": [
                {"type": "Hostname", "hostname": "*.example.com"},
                {"type": "URI", "uri": "spiffe://example.com/a"},
            ],
        }));
        let spec = spec.unwrap();
        let names: Vec<_> = spec.names.iter().map(|name| name.kind.clone().unwrap()).collect();
        assert_eq!(
            names,
            [
                San::Hostname("*.example.com".to_owned()),
                San::Uri("spiffe://example.com/a".to_owned())
            ]
        );
        let Trust::Certificates(references) = spec.trust else {
            panic!("certificates");
        };
        let reasons: Vec<_> = references
            .iter()
            .map(|(_, source)| source.as_ref().err().map(|bad| bad.reason))
            .collect();
        assert_eq!(reasons, [None, Some("InvalidKind"), Some("InvalidCACertificateRef")]);
    }
}
