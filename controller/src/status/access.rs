//! What is said of an AccessPolicy: which pods it selects, and whether their sidecars enforce it.

use std::collections::BTreeSet;

use outrigger_api::policy::access::Unresolved;
use serde_json::Value;

use super::policy::said_by_another;
use super::reach::{Reach, reached, selected};
use super::{Absent, keys};
use crate::index::Callers;
use crate::objects::policy::{Attachment, Policy, TargetKind};
use crate::objects::{ObjectName, Pod};
use crate::store::Store;

/// That it is in force there, and what may not have been meant: that it selects nothing, now.
pub(super) fn in_force(store: &Store, access: &Unresolved, attachment: &Attachment) -> String {
    let mut message = "In force".to_owned();
    let pods: Vec<_> = selected(store, attachment).collect();
    let notes = if pods.is_empty() {
        vec![nothing(store, attachment)]
    } else {
        nowhere(store, access, attachment, &pods)
    };
    for note in notes {
        message += ". ";
        message += &note;
    }
    message
}

/// Why it selects no pod.
pub(super) fn nothing(store: &Store, attachment: &Attachment) -> String {
    let Ok(target) = &attachment.target else {
        return String::new(); // then it is not accepted
    };
    let service = store
        .services
        .get(&target.name)
        .filter(|_| target.kind == TargetKind::Service);
    match service {
        Some(service) if service.selector.is_empty() => {
            "The Service has no selector, so that no pod is known to be behind it".to_owned()
        }
        Some(_) => "The selector of the Service takes no pod".to_owned(),
        None if target.kind == TargetKind::Pods => "The selector takes no pod".to_owned(),
        None => "There is no pod".to_owned(),
    }
}

/// Ports that none of its pods has: those of the Service, and those that its rules name.
fn nowhere(store: &Store, access: &Unresolved, attachment: &Attachment, pods: &[(&ObjectName, &Pod)]) -> Vec<String> {
    let mut notes = Vec::new();
    if let Ok(target) = &attachment.target
        && let Some(service) = store
            .services
            .get(&target.name)
            .filter(|_| target.kind == TargetKind::Service)
    {
        let meant = service.ports.iter();
        let meant = meant.filter(|port| target.section.is_none() || target.section.as_ref() == Some(&port.name));
        let lost = meant.filter(|port| pods.iter().all(|(_, pod)| pod.port_behind(port).is_none()));
        let lost: Vec<_> = lost.map(|port| port.port.to_string()).collect();
        if !lost.is_empty() {
            let lost = lost.join(", ");
            notes.push(format!(
                "The targetPort of the Service's port {lost} is a name that none of its pods has"
            ));
        }
    }
    let has = |name: &str, pod: &Pod| pod.ports.iter().any(|(known, _)| **known == *name);
    let names: BTreeSet<&str> = access.port_names().collect();
    let lost = names
        .into_iter()
        .filter(|name| !pods.iter().any(|(_, pod)| has(name, pod)));
    let lost: Vec<_> = lost.collect();
    if !lost.is_empty() {
        notes.push(format!("None of its pods has a port of the name {}", lost.join(", ")));
    }
    notes
}

/// Which of its pods do not enforce it, or not as it is written. Each controller knows its own sidecars: the first that says it goes on,
/// as with other policies.
pub(super) fn short(
    store: &Store,
    callers: &Callers<'_>,
    absent: &Absent,
    policy: &Policy,
    reference: &Value,
) -> Option<String> {
    if let Some(message) = said_by_another(store, policy, reference) {
        return Some(message.to_owned());
    }
    let attachment = policy.attachments.iter().find(|a| a.reference == *reference)?;
    let access = policy.access()?;
    let reach = Reach::new(store, absent, Some(access), attachment);
    let told = callers.enforcers(reached(store, attachment));
    let mut ours = Vec::new();
    if told.lacking > 0 {
        ours.push(format!(
            "{} of {} sidecars that it tells of the policy are older, and let everybody in: kubectl rollout restart brings the new one \
             into their pods",
            told.lacking, told.all
        ));
    }
    ours.extend(
        reach
            .away("they go on with the policies that they were told last, and let nobody in where they were told none"),
    );
    if told.without_tokens > 0 && access.providers().next().is_some() {
        ours.push(format!(
            "{} of {} sidecars that it tells of the policy are older, and verify no tokens: there, a rule that asks for one lets nobody in",
            told.without_tokens, told.all
        ));
    }
    let not_told = told.closed + if access.audit { told.without_audited } else { 0 };
    if not_told > 0 {
        let instead = match access.audit {
            true => "nothing is audited there",
            false => {
                "where policies of their pods refuse anybody, they let nobody in; and at all ports of a pod where these select more than 256"
            }
        };
        ours.push(format!(
            "{not_told} sidecars are not told of it, because all policies of their pods together are more than a message holds, or more \
             than the namespace, or the pod, may take of the controller's memory: {instead}"
        ));
    }
    ours.extend(keys::problems(store, policy));
    if let Some(first) = ours.first_mut() {
        *first = format!("{}: {first}", store.own.name);
    }
    let mut parts = ours;
    parts.extend(reach.open("let everybody in"));
    (!parts.is_empty()).then(|| parts.join("; "))
}
