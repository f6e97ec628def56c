//! Policies: Outrigger's own kinds. What differs between them is a row of a table; what they have in common is read here.

mod access;
mod limits;
mod traffic;

use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::{ApiResource, DynamicObject};
use outrigger_api::discovery as proto;
use outrigger_api::discovery::Feature;
use outrigger_api::policy::access::Unresolved;
use outrigger_api::policy::limits::UnresolvedLimits;
use outrigger_api::policy::selector::LabelSelector;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ObjectName;
use super::from_k8s::object_name;
use super::keys::KeySource;
use super::route::{self, RouteKind};

/// Which kind of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum PolicyKind {
    Access,
    RateLimit,
    Traffic,
}

/// Makes of the spec of a policy, and of the fields in it that are not known, what sidecars are told, or says all that is wrong.
pub(crate) type Compile = fn(&ObjectName, Value, &[String]) -> Result<Compiled, Vec<String>>;

/// A row of the table: all that the controller knows of one kind.
pub struct Row {
    /// Its names in the API: it is watched, and its status written, by these.
    pub resource: fn() -> ApiResource,
    /// Its CRD; a field that is not in the spec's schema is not known to this version.
    pub crd: fn() -> CustomResourceDefinition,
    /// What it may be attached to.
    pub(crate) targets: &'static [TargetKind],
    /// Whether a target may be a Service of another namespace, for callers of the policy's own.
    pub(crate) for_callers: bool,
    /// Whether all policies hold that are attached to one target, and not the oldest alone.
    pub(crate) joined: bool,
    /// The spec of an object as sidecars are told it, or all that is wrong with it. The fields that are not known are taken out, and given
    /// beside it.
    pub(crate) compile: Compile,
}

/// What sidecars are told of a policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compiled {
    pub(crate) message: Message,
    /// What a sidecar must understand to carry it out as it is meant, and the field that says it.
    pub(crate) needs: Vec<(Feature, &'static str)>,
    /// What is wrong with it, where it holds all the same: as far as it can without being looser than it was meant.
    pub(crate) mistakes: Vec<String>,
}

/// By the kind of the policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    Access(Unresolved),
    RateLimit(UnresolvedLimits),
    Traffic(Box<proto::Policy>),
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Access, Self::RateLimit, Self::Traffic];

    /// What is known of it.
    pub fn row(self) -> &'static Row {
        match self {
            Self::Access => &access::ROW,
            Self::RateLimit => &limits::ROW,
            Self::Traffic => &traffic::ROW,
        }
    }
}

/// A kind of what a policy may be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum TargetKind {
    Namespace,
    Service,
    /// Of the policy's own namespace, by their labels.
    Pods,
    Route(RouteKind),
}

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) kind: TargetKind,
    pub(crate) name: ObjectName,
    /// A Service's port or a route's rule, by its name. None: all of it.
    pub(crate) section: Option<Arc<str>>,
    /// It holds for callers of this namespace only, which is the policy's own and not the Service's.
    pub(crate) callers: Option<Arc<str>>,
}

impl Target {
    pub(crate) fn namespace(name: &str) -> Self {
        Self::whole(TargetKind::Namespace, &ObjectName::new("", name))
    }

    pub(crate) fn service(name: &ObjectName) -> Self {
        Self::whole(TargetKind::Service, name)
    }

    /// Pods of a namespace: which ones, each [`Attachment`] says.
    pub(crate) fn pods(namespace: &str) -> Self {
        Self::whole(TargetKind::Pods, &ObjectName::new(namespace, ""))
    }

    pub(crate) fn route(kind: RouteKind, name: &ObjectName) -> Self {
        Self::whole(TargetKind::Route(kind), name)
    }

    fn whole(kind: TargetKind, name: &ObjectName) -> Self {
        Self {
            kind,
            name: name.clone(),
            section: None,
            callers: None,
        }
    }

    /// One port or rule of it.
    pub(crate) fn section(&self, name: &str) -> Self {
        Self {
            section: Some(name.into()),
            ..self.clone()
        }
    }

    /// The same for callers of a namespace.
    pub(crate) fn for_callers(&self, namespace: &str) -> Self {
        Self {
            callers: Some(namespace.into()),
            ..self.clone()
        }
    }
}

/// One of a policy's targetRefs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attachment {
    /// As the status repeats it: a ParentReference of Gateway API.
    pub(crate) reference: Value,
    /// Or why there can be no such target.
    pub(crate) target: Result<Target, String>,
    /// Of pods: which ones.
    pub(crate) selector: Option<LabelSelector>,
}

/// A policy, read.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) kind: PolicyKind,
    pub(crate) name: ObjectName,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) generation: i64,
    pub(crate) resource_version: String,
    pub(crate) attachments: Vec<Attachment>,
    /// Or everything that is wrong with it.
    pub(crate) compiled: Result<Compiled, Vec<String>>,
    /// Fields that this controller does not know: a newer CRD has them.
    pub(crate) unknown: Vec<String>,
    /// `status.ancestors` as it is now, of all controllers.
    pub(crate) ancestors: Vec<Value>,
    /// `status.conditions` as it is now.
    pub(crate) conditions: Vec<Value>,
}

impl Policy {
    /// Reads a policy.
    pub fn read(kind: PolicyKind, object: &DynamicObject) -> Self {
        let row = kind.row();
        let name = object_name(&object.metadata);
        let mut spec = object.data.get("spec").cloned().unwrap_or_else(|| json!({}));
        let mut unknown = Vec::new();
        let schema = SCHEMAS.iter().find(|(of, _)| *of == kind).map(|(_, schema)| schema);
        prune(&mut spec, schema.unwrap_or(&Value::Null), "spec", &mut unknown);
        let references = spec.get("targetRefs").cloned().unwrap_or_default();
        let references = references.as_array().into_iter().flatten();
        let references = references.map(|reference| TargetRef::deserialize(reference).unwrap_or_default());
        let mut attachments: Vec<_> = references.map(|r| attachment(row, &name, r)).collect();
        attachments.dedup();
        let mut compiled = (row.compile)(&name, spec, &unknown);
        if compiled.is_ok() && attachments.is_empty() {
            let none = "targetRefs: name at least one object that the policy holds for".to_owned();
            compiled = Err(vec![none]);
        }
        let status = |field| object.data.pointer(field).and_then(Value::as_array).cloned();
        Self {
            kind,
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
            generation: object.metadata.generation.unwrap_or(0),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            attachments,
            compiled,
            unknown,
            ancestors: status("/status/ancestors").unwrap_or_default(),
            conditions: status("/status/conditions").unwrap_or_default(),
            name,
        }
    }

    /// What it is attached to, where it can hold at all.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &Target> {
        let attachments = self.compiled.iter().flat_map(|_| &self.attachments);
        attachments.filter_map(|attachment| attachment.target.as_ref().ok())
    }

    /// What an AccessPolicy says.
    pub(crate) fn access(&self) -> Option<&Unresolved> {
        match &self.compiled.as_ref().ok()?.message {
            Message::Access(policy) => Some(policy),
            Message::RateLimit(_) | Message::Traffic(_) => None,
        }
    }

    /// What a RateLimitPolicy says.
    pub(crate) fn limits(&self) -> Option<&UnresolvedLimits> {
        match &self.compiled.as_ref().ok()?.message {
            Message::RateLimit(policy) => Some(policy),
            Message::Access(_) | Message::Traffic(_) => None,
        }
    }

    /// Where the keys of its providers are, of those that do not stand in itself.
    pub(crate) fn key_sources(&self) -> impl Iterator<Item = KeySource> {
        let providers = self.access().into_iter().flat_map(Unresolved::providers);
        providers.filter_map(|(_, keys)| KeySource::new(&self.name.namespace, keys))
    }

    /// What a TrafficPolicy says.
    pub(crate) fn traffic(&self) -> Option<&proto::Policy> {
        match &self.compiled.as_ref().ok()?.message {
            Message::Traffic(policy) => Some(policy.as_ref()),
            Message::Access(_) | Message::RateLimit(_) => None,
        }
    }

    /// Everything that is wrong with it.
    pub(crate) fn mistakes(&self) -> &[String] {
        match &self.compiled {
            Ok(compiled) => &compiled.mistakes,
            Err(mistakes) => mistakes,
        }
    }

    /// The same, and which of its targets there cannot be, for who writes it.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.mistakes().to_vec();
        let targets = self
            .attachments
            .iter()
            .filter_map(|attachment| attachment.target.as_ref().err());
        faults.extend(targets.map(|why| format!("spec.targetRefs: {why}")));
        faults
    }

    pub(crate) fn same_spec(&self, other: &Self) -> bool {
        (self.created, &self.attachments, &self.compiled) == (other.created, &other.attachments, &other.compiled)
    }
}

/// A reference as any kind may have it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TargetRef {
    group: String,
    kind: String,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    selector: Option<LabelSelector>,
}

fn attachment(row: &Row, policy: &ObjectName, reference: TargetRef) -> Attachment {
    // Pods have no name here, and every reference in a status has one.
    let selector = reference.selector.as_ref().map(LabelSelector::to_string);
    let name = selector.as_ref().unwrap_or(&reference.name);
    let mut shown = json!({"group": reference.group, "kind": reference.kind, "name": name});
    let namespace = reference.namespace.as_deref().unwrap_or(&policy.namespace);
    if reference.kind != "Namespace" {
        shown["namespace"] = namespace.into();
    }
    if let Some(section) = &reference.section_name {
        shown["sectionName"] = section.as_str().into();
    }
    Attachment {
        reference: shown,
        target: target(row, &policy.namespace, namespace, &reference),
        selector: reference.selector,
    }
}

fn target(row: &Row, own: &str, namespace: &str, reference: &TargetRef) -> Result<Target, String> {
    let kind = match (reference.group.as_str(), reference.kind.as_str()) {
        ("", "Namespace") => Some(TargetKind::Namespace),
        ("", "Service") => Some(TargetKind::Service),
        ("", "Pod") => Some(TargetKind::Pods),
        (route::GROUP, "HTTPRoute") => Some(TargetKind::Route(RouteKind::Http)),
        (route::GROUP, "GRPCRoute") => Some(TargetKind::Route(RouteKind::Grpc)),
        _ => None,
    };
    let Some(kind) = kind.filter(|kind| row.targets.contains(kind)) else {
        return Err(format!(
            "a policy of this kind cannot be attached to the kind {} of the group {:?}; a Service, a Namespace or a Pod has the group \
             \"\", a route {:?}",
            reference.kind,
            reference.group,
            route::GROUP
        ));
    };
    let target = Target {
        kind,
        name: ObjectName::new(namespace, &reference.name),
        section: reference.section_name.as_deref().map(Arc::from),
        callers: (namespace != own).then(|| own.into()),
    };
    match kind {
        TargetKind::Namespace if reference.name != own || namespace != own => {
            Err(format!("a Namespace can only be the policy's own, {own}"))
        }
        TargetKind::Namespace if target.section.is_some() => Err("a Namespace has no sections".to_owned()),
        TargetKind::Namespace => Ok(Target::namespace(own)),
        TargetKind::Pods if reference.selector.is_none() => Err("pods are named by their labels (selector)".to_owned()),
        TargetKind::Pods => Ok(Target::pods(own)),
        TargetKind::Service if namespace == own || row.for_callers => Ok(target),
        TargetKind::Route(_) if namespace == own => Ok(target),
        TargetKind::Service | TargetKind::Route(_) => Err(format!("it is not in the policy's own namespace, {own}")),
    }
}

/// What is wrong where a field is not known by which the policy says what it holds for.
fn of_targets(unknown: &[String]) -> Option<String> {
    let field = unknown.iter().find(|field| field.starts_with("spec.targetRefs"))?;
    Some(format!(
        "{field}: this version of the controller does not know the field, and so not what the policy holds for"
    ))
}

/// The schema of each kind's spec, as its CRD has it.
static SCHEMAS: LazyLock<Vec<(PolicyKind, Value)>> = LazyLock::new(|| {
    let schema = |kind: PolicyKind| {
        let crd = serde_json::to_value((kind.row().crd)()).ok()?;
        let spec = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")?;
        Some((kind, spec.clone()))
    };
    PolicyKind::ALL.into_iter().filter_map(schema).collect()
});

/// Takes out the fields that the schema does not have. The API server does the same where the CRD is as old as this
/// controller; a newer CRD lets them through.
fn prune(value: &mut Value, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let Some(known) = schema.get("properties").and_then(Value::as_object) else {
                return; // a map, whose keys are anything
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
                for (n, item) in items.iter_mut().enumerate() {
                    prune(item, schema, &format!("{path}[{n}]"), unknown);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::PolicyKind;

    fn crd_names() -> Vec<String> {
        let names = PolicyKind::ALL.map(|kind| (kind.row().crd)().metadata.name.unwrap());
        names.into()
    }

    /// What cannot iterate over the table: Helm's YAML, the documentation of the controller's rights, and the CRDs of a crate that
    /// knows no controller.
    #[test]
    fn every_row_is_in_the_chart_the_crds_and_the_docs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        let (rbac, rights) = (read("../charts/outrigger/templates/rbac.yaml"), read("src/lib.rs"));
        let docs = read("../docs/configuration.md");
        let crds: Vec<_> = outrigger_api::policy::crd::crds()
            .iter()
            .map(|crd| crd.spec.names.kind.clone())
            .collect();
        for kind in PolicyKind::ALL {
            let resource = (kind.row().resource)();
            assert_eq!((kind.row().crd)().spec.names.plural, resource.plural);
            assert!(crds.contains(&resource.kind), "{} is not in crds()", resource.kind);
            let watched = format!("resources: [{}]\n  verbs: [list, watch]", resource.plural);
            let written = format!("resources: [{}/status]\n  verbs: [patch]", resource.plural);
            assert!(
                rbac.contains(&watched) && rbac.contains(&written),
                "{} is not in rbac.yaml",
                resource.plural
            );
            let crds = format!("resourceNames: [{}]", crd_names().join(", "));
            let plurals = PolicyKind::ALL.map(|kind| (kind.row().resource)().plural).join(", ");
            for line in [crds, format!("resources: [{plurals}]\n  verbs: [get, list, watch]")] {
                assert!(rbac.contains(&line), "{line} is not in rbac.yaml");
            }
            for right in [
                format!("| {} | {} | | list, watch |", resource.group, resource.plural),
                format!("| {} | {}/status | | patch |", resource.group, resource.plural),
                format!(
                    "| apiextensions.k8s.io | customresourcedefinitions | {} | list, watch |",
                    crd_names().join(", ")
                ),
            ] {
                assert!(rights.contains(&right), "{right} is not in lib.rs");
            }
            assert!(
                docs.contains(&format!("`{}`", resource.kind)),
                "{} is not in the docs",
                resource.kind
            );
        }
        assert_eq!(crds.len(), PolicyKind::ALL.len());
    }
}
