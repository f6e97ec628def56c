//! The condition of a TrafficPolicy: whether it is in force, and why not.

use outrigger_api::policy::Condition;

use crate::answers::{Attached, attached_to};
use crate::objects::ObjectName;
use crate::objects::policy::{ACCEPTED, TrafficPolicy};
use crate::objects::route::{self, RouteKind};
use crate::store::Store;

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
            (route::GROUP, "HTTPRoute") => route(store, RouteKind::Http, &name),
            (route::GROUP, "GRPCRoute") => route(store, RouteKind::Grpc, &name),
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
            route::GROUP
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
