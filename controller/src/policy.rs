//! TrafficPolicies: what holds for which object, and why not.
//!
//! A policy is attached to Services, routes or its namespace. For one field the route's policy is asked first, then the
//! Service's, then the namespace's. Of several for the same object the oldest holds as a whole; the others are
//! `Conflicted` and add nothing. A policy that is not valid holds nowhere.

use std::sync::{Arc, LazyLock};

use kube::CustomResourceExt;
use kube::core::DynamicObject;
use outrigger_api::discovery as proto;
use outrigger_api::policy::{Condition, TargetRef, TrafficPolicySpec};
use serde::Deserialize;
use serde_json::Value;

use crate::gateway::{self, RouteKind};
use crate::index::objects::ObjectName;
use crate::index::store::Store;

/// The API group of Outrigger's own kinds.
pub const GROUP: &str = "outrigger.dev";
/// The condition's type.
const ACCEPTED: &str = "Accepted";

/// A TrafficPolicy, read.
#[derive(Clone, Debug)]
pub struct TrafficPolicy {
    pub(crate) name: ObjectName,
    /// Seconds since 1970.
    created: i64,
    pub(crate) generation: i64,
    pub(crate) resource_version: String,
    targets: Vec<TargetRef>,
    /// Or everything that is wrong with it.
    policy: Result<proto::Policy, Vec<String>>,
    /// Fields that this controller does not know: a newer CRD has them.
    unknown: Vec<String>,
    /// The condition as it is now.
    pub(crate) condition: Option<Condition>,
}

/// What a policy is attached to, in its own namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attached<'a> {
    Service(&'a ObjectName),
    Route(RouteKind, &'a ObjectName),
    Namespace(&'a Arc<str>),
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
            name: crate::index::from_k8s::object_name(&object.metadata),
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

    /// Whether it is attached to the object, which is in its own namespace.
    fn names(&self, attached: Attached<'_>) -> bool {
        self.targets.iter().any(|target| {
            let key = (target.group.as_str(), target.kind.as_str(), target.name.as_str());
            match attached {
                Attached::Service(service) => key == ("", "Service", &*service.name),
                Attached::Route(kind, route) => key == (gateway::GROUP, kind.name(), &*route.name),
                Attached::Namespace(namespace) => key == ("", "Namespace", &**namespace),
            }
        })
    }
}

/// The policy in force for the object alone: the oldest valid one.
pub(crate) fn attached_to<'a>(store: &'a Store, attached: Attached<'_>) -> Option<&'a TrafficPolicy> {
    let namespace = match attached {
        Attached::Service(name) | Attached::Route(_, name) => &name.namespace,
        Attached::Namespace(namespace) => namespace,
    };
    store
        .policies_of(namespace)
        .filter(|policy| policy.policy.is_ok() && policy.names(attached))
        .min_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)))
}

/// How a Service is called where no route says otherwise: its own policy over its namespace's.
pub(crate) fn of_service(store: &Store, service: &ObjectName) -> Option<proto::Policy> {
    let policy = |attached| attached_to(store, attached).and_then(|p| p.policy.as_ref().ok());
    let own = policy(Attached::Service(service));
    let outer = policy(Attached::Namespace(&service.namespace));
    match (own, outer) {
        (None, None) => None,
        (Some(one), None) | (None, Some(one)) => Some(one.clone()),
        (Some(own), Some(outer)) => Some(merge(own, outer)),
    }
}

/// What a route's rule says: the rule itself, over the policy that is attached to the route.
pub(crate) fn of_rule(
    store: &Store,
    kind: RouteKind,
    route: &ObjectName,
    rule: &proto::Policy,
) -> Option<proto::Policy> {
    let attached = attached_to(store, Attached::Route(kind, route)).and_then(|p| p.policy.as_ref().ok());
    let policy = match attached {
        Some(attached) => merge(rule, attached),
        None => rule.clone(),
    };
    (policy != proto::Policy::default()).then_some(policy)
}

/// `inner` with what it does not say taken from `outer`.
fn merge(inner: &proto::Policy, outer: &proto::Policy) -> proto::Policy {
    proto::Policy {
        retry: match (&inner.retry, &outer.retry) {
            (Some(inner), Some(outer)) => Some(merge_retry(inner, outer)),
            (inner, outer) => inner.clone().or_else(|| outer.clone()),
        },
        request_timeout_ms: inner.request_timeout_ms.or(outer.request_timeout_ms),
        backend_request_timeout_ms: inner.backend_request_timeout_ms.or(outer.backend_request_timeout_ms),
        connect_timeout_ms: inner.connect_timeout_ms.or(outer.connect_timeout_ms),
    }
}

fn merge_retry(inner: &proto::Retry, outer: &proto::Retry) -> proto::Retry {
    let says_statuses = inner.statuses_set || !inner.statuses.is_empty();
    let (statuses, statuses_set) = if says_statuses {
        (inner.statuses.clone(), inner.statuses_set)
    } else {
        (outer.statuses.clone(), outer.statuses_set)
    };
    proto::Retry {
        attempts: inner.attempts.or(outer.attempts),
        statuses,
        statuses_set,
        grpc_statuses: if inner.grpc_statuses.is_empty() {
            outer.grpc_statuses.clone()
        } else {
            inner.grpc_statuses.clone()
        },
        backoff_base_ms: inner.backoff_base_ms.or(outer.backoff_base_ms),
        backoff_max_ms: inner.backoff_max_ms.or(outer.backoff_max_ms),
        budget_percent: inner.budget_percent.or(outer.budget_percent),
        budget_min_per_second: inner.budget_min_per_second.or(outer.budget_min_per_second),
        non_idempotent: inner.non_idempotent.or(outer.non_idempotent),
        max_body_bytes: inner.max_body_bytes.or(outer.max_body_bytes),
    }
}

/// The condition that the policy should have, but for its time.
pub(crate) fn condition(store: &Store, policy: &TrafficPolicy) -> Condition {
    let (reason, message) = match &policy.policy {
        Err(mistakes) => ("Invalid", format!("Not in force. {}", mistakes.join("; "))),
        Ok(_) => attachment(store, policy),
    };
    Condition {
        type_: ACCEPTED.to_owned(),
        status: if reason == "Accepted" { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: String::new(),
        observed_generation: policy.generation,
    }
}

fn attachment(store: &Store, policy: &TrafficPolicy) -> (&'static str, String) {
    let (mut conflicts, mut missing) = (Vec::new(), Vec::new());
    for target in &policy.targets {
        let name = ObjectName::new(&policy.name.namespace, &target.name);
        let attached = match (target.group.as_str(), target.kind.as_str()) {
            ("", "Service") => store.services.contains_key(&name).then_some(Attached::Service(&name)),
            ("", "Namespace") => (name.name == name.namespace).then_some(Attached::Namespace(&name.namespace)),
            (gateway::GROUP, "HTTPRoute") => route(store, RouteKind::Http, &name),
            (gateway::GROUP, "GRPCRoute") => route(store, RouteKind::Grpc, &name),
            _ => None,
        };
        let Some(attached) = attached else {
            missing.push(format!("{:?} {} {}", target.group, target.kind, target.name));
            continue;
        };
        if let Some(holder) = attached_to(store, attached).filter(|holder| holder.name != policy.name) {
            conflicts.push(format!(
                "for {} {} the older TrafficPolicy {} is in force",
                target.kind, target.name, holder.name.name
            ));
        }
    }
    if !conflicts.is_empty() {
        return ("Conflicted", conflicts.join("; "));
    }
    if !missing.is_empty() {
        let message = format!(
            "not found in the namespace {}: {}. A Service or a Namespace has the group \"\", a route {:?}; a Namespace \
             can only be the policy's own",
            policy.name.namespace,
            missing.join(", "),
            gateway::GROUP
        );
        return ("TargetNotFound", message);
    }
    let mut message = "In force".to_owned();
    if !policy.unknown.is_empty() {
        message += &format!(
            ", without fields that this version of the controller does not know: {}",
            policy.unknown.join(", ")
        );
    }
    ("Accepted", message)
}

fn route<'a>(store: &Store, kind: RouteKind, name: &'a ObjectName) -> Option<Attached<'a>> {
    store
        .routes
        .contains_key(&(kind, name.clone()))
        .then_some(Attached::Route(kind, name))
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
