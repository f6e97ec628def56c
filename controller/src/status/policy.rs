//! What has become of a policy at each of its targets, and in all (Gateway API, GEP-713).

use std::borrow::Cow;

use outrigger_api::policy::crd::APPLY;
use serde_json::Value;

use super::entries::{Entry, To, Verdict};
use super::older::{Asked, PARTIALLY, Written, word_of_another};
use super::{Absent, access, faults, limits};
use crate::answers::{Uneven, is_overridden, unresolved};
use crate::index::{Callers, Of};
use crate::objects::ObjectName;
use crate::objects::policy::{Attachment, Policy, Target, TargetKind};
use crate::store::Store;

const ACCEPTED: &str = "Accepted";
const PROGRAMMED: &str = "Programmed";
const OVERRIDDEN: &str = "Overridden";

/// Mistakes that a status names, and bytes of each: a condition has room for them (`entries::clipped`).
const MOST_MISTAKES: usize = 16;
const LONGEST_MISTAKE: usize = 224;

/// One for each target. `now` is seconds since 1970.
pub(super) fn entries(
    (store, uneven): (&Store, &Uneven<'_>),
    callers: &Callers<'_>,
    absent: &Absent,
    policy: &Policy,
    now: u64,
) -> Vec<Entry> {
    let entry = |attachment: &Attachment| {
        let accepted = accepted(store, policy, attachment);
        // Where it is not accepted, nobody carries it out.
        let target = attachment.target.as_ref().ok().filter(|_| accepted.ok);
        let programmed = target.map(|target| {
            programmed(
                (store, uneven),
                callers,
                absent,
                policy,
                (target, &attachment.reference),
                now,
            )
        });
        Entry {
            reference: attachment.reference.clone(),
            verdicts: [accepted].into_iter().chain(programmed).collect(),
        }
    };
    policy.attachments.iter().map(entry).collect()
}

/// All of them in one condition. A policy that cannot be read has it alone. `dropped` are the fields that its CRD has not.
pub(super) fn summary(policy: &Policy, entries: &[Entry], dropped: &[String]) -> Verdict {
    let accepted = entries
        .iter()
        .flat_map(|entry| &entry.verdicts)
        .filter(|v| v.type_ == ACCEPTED);
    let accepted: Vec<_> = accepted.collect();
    let refused: Vec<_> = accepted.iter().filter(|verdict| !verdict.ok).collect();
    let messages = |verdicts: &[&Verdict]| {
        let mut messages: Vec<_> = verdicts.iter().map(|verdict| verdict.message.as_str()).collect();
        messages.dedup();
        messages.join("; ")
    };
    let (reason, mut message) = match refused.first() {
        _ if !policy.mistakes().is_empty() => ("Invalid", invalid(policy)),
        None => (ACCEPTED, messages(&accepted)),
        Some(first) => (
            first.reason,
            messages(&refused.iter().map(|verdict| **verdict).collect::<Vec<_>>()),
        ),
    };
    if !dropped.is_empty() {
        message += ". ";
        message += &old_crd(dropped.iter());
    }
    Verdict::new(ACCEPTED, reason, message)
}

/// Whether it is carried out at all targets where it is accepted. `None`: there is none. What is needless at one target is not so at all.
pub(super) fn programmed_in_all(entries: &[Entry]) -> Option<Verdict> {
    let verdicts = entries.iter().flat_map(|entry| &entry.verdicts);
    let programmed: Vec<_> = verdicts.filter(|verdict| verdict.type_ == PROGRAMMED).collect();
    let short: Vec<_> = programmed.iter().filter(|v| !v.ok && v.reason != OVERRIDDEN).collect();
    let first = short.first().copied();
    let first = first
        .or_else(|| programmed.iter().find(|verdict| verdict.ok))
        .or(programmed.first())?;
    let mut messages: Vec<_> = short.iter().map(|verdict| verdict.message.as_str()).collect();
    messages.dedup();
    let message = match messages.is_empty() {
        true => first.message.clone(),
        false => messages.join("; "),
    };
    Some(Verdict::new(PROGRAMMED, first.reason, message))
}

fn accepted(store: &Store, policy: &Policy, attachment: &Attachment) -> Verdict {
    if !policy.mistakes().is_empty() {
        return Verdict::new(ACCEPTED, "Invalid", invalid(policy));
    }
    let shown = shown(&attachment.reference);
    let target = match attachment.target.as_ref() {
        Ok(target) => target,
        Err(why) => return Verdict::new(ACCEPTED, "TargetNotFound", format!("{shown}: {why}")),
    };
    if let Some(why) = missing(store, target) {
        return Verdict::new(ACCEPTED, "TargetNotFound", format!("{shown}: {why}"));
    }
    let row = policy.kind.row();
    let mut holders = store.policies.at(policy.kind, target.clone());
    let holder = holders.next().filter(|holder| holder.name != policy.name);
    if let Some(holder) = holder.filter(|_| !row.joined) {
        let message = format!(
            "for {shown} the older {} {} is in force: put both into one, delete one, or name a part of the target in sectionName",
            (row.resource)().kind,
            holder.name.name
        );
        return Verdict::new(ACCEPTED, "Conflicted", message);
    }
    let message = match (policy.access(), policy.limits()) {
        (Some(access), _) => access::in_force(store, access, attachment),
        (None, Some(_)) => limits::in_force(store, attachment),
        (None, None) => "In force".to_owned(),
    };
    Verdict::new(ACCEPTED, ACCEPTED, message)
}

fn programmed(
    (store, uneven): (&Store, &Uneven<'_>),
    callers: &Callers<'_>,
    absent: &Absent,
    policy: &Policy,
    (target, reference): (&Target, &Value),
    now: u64,
) -> Verdict {
    if !policy.unknown.is_empty() {
        let mut message = format!(
            "without fields that this version of the controller does not know: {}",
            policy.unknown.join(", ")
        );
        if policy.access().is_some() {
            message += ". A rule that allows, and has one of them, lets nobody in";
        }
        if policy.limits().is_some() {
            message += ". A limit that has one of them is left out, and no store is asked whose `global` has one; where it stands elsewhere than in \
                         limits, global or response, all are";
        }
        return Verdict::new(PROGRAMMED, PARTIALLY, message);
    }
    let dropped = store.old_crds.get(&policy.kind).into_iter().flatten();
    let mut dropped = dropped.filter(|field| !field.starts_with("status")).peekable();
    if dropped.peek().is_some() {
        return Verdict::new(PROGRAMMED, "OldCRD", old_crd(dropped));
    }
    let short = match (policy.access(), policy.limits()) {
        (Some(_), _) => access::short(store, callers, absent, policy, reference),
        (None, Some(_)) => limits::short((store, uneven), callers, absent, policy, reference),
        (None, None) => lacking(store, callers, policy, (target, reference)),
    };
    if let Some(message) = short {
        return Verdict::new(PROGRAMMED, PARTIALLY, message);
    }
    if let Some(message) = policy.traffic().and_then(|traffic| unresolved(store, traffic)) {
        return Verdict::new(PROGRAMMED, PARTIALLY, message);
    }
    if policy
        .traffic()
        .is_some_and(|traffic| is_overridden(store, traffic, target))
    {
        let message = "what is nearer to each request says all that this policy says".to_owned();
        return Verdict::new(PROGRAMMED, OVERRIDDEN, message);
    }
    let ended = policy.traffic().and_then(|traffic| faults::ended(traffic, now));
    let ended = ended.map_or_else(String::new, |ended| format!("; {ended}"));
    Verdict::new(PROGRAMMED, PROGRAMMED, format!("All that it says is in force{ended}"))
}

fn old_crd<'a>(dropped: impl Iterator<Item = &'a String>) -> String {
    let dropped: Vec<_> = dropped.map(String::as_str).collect();
    format!(
        "The CRD is older than the controller, and the API server drops what it has not, whoever writes it: {}. Upgrade it ({APPLY}), \
         then apply what was written meanwhile once more",
        dropped.join(", ")
    )
}

/// Which sidecars do not understand all of it.
fn lacking(
    store: &Store,
    callers: &Callers<'_>,
    policy: &Policy,
    (target, reference): (&Target, &Value),
) -> Option<String> {
    let needs = policy
        .compiled
        .as_ref()
        .map(|compiled| &*compiled.needs)
        .unwrap_or_default();
    let (needs, fields): (Vec<_>, Vec<_>) = needs.iter().copied().unzip();
    let asked = Asked {
        needs: &needs,
        of: services(store, target),
        meant: |service: &ObjectName, port, callers: &str| concerns(store, target, service, port, callers),
        called: "target",
        effect: format!("do not know all of {}", fields.join(", ")),
    };
    asked.lacking(store, callers, written(policy), reference)
}

/// The word of another controller's pod that is still there, on this generation.
pub(super) fn said_by_another<'a>(store: &Store, policy: &'a Policy, reference: &Value) -> Option<&'a str> {
    word_of_another(store, written(policy), reference)
}

fn written(policy: &Policy) -> Written<'_> {
    Written {
        to: To::Ancestor,
        entries: &policy.ancestors,
        generation: policy.generation,
    }
}

/// The Services that a call may be of which has the target on its way.
fn services<'a>(store: &'a Store, target: &'a Target) -> Of<'a> {
    match target.kind {
        TargetKind::Namespace if target.name.name == store.own.namespace => Of::All,
        TargetKind::Namespace => Of::Namespace(&target.name.name),
        TargetKind::Service => Of::These([&target.name].into()),
        TargetKind::Pods => Of::These([].into()),
        TargetKind::Route(kind) => {
            let route = store.routes.get(&(kind, target.name.clone()));
            let parents = route.into_iter().flat_map(|route| &route.parents);
            Of::These(parents.map(|parent| &parent.service).collect())
        }
    }
}

/// Whether the target is on the way of a call of a port of one of [`services`].
fn concerns(store: &Store, target: &Target, service: &ObjectName, port: u16, callers: &str) -> bool {
    if target.callers.as_deref().is_some_and(|only| only != callers) {
        return false;
    }
    match target.kind {
        TargetKind::Namespace => true,
        TargetKind::Pods => false,
        TargetKind::Service => {
            let ports = store.services.get(service).into_iter().flat_map(|s| &s.ports);
            let mut named = ports.filter(|p| p.port == port);
            target.section.is_none() || named.any(|p| target.section.as_ref() == Some(&p.name))
        }
        TargetKind::Route(kind) => {
            let route = store.routes.get(&(kind, target.name.clone()));
            route.is_some_and(|route| !route.is_consumer_route_of(service) || *route.name.namespace == *callers)
        }
    }
}

/// Why there is no such target.
fn missing(store: &Store, target: &Target) -> Option<String> {
    let section = target.section.as_ref();
    match target.kind {
        // The policy's own; and pods may come at any time.
        TargetKind::Namespace | TargetKind::Pods => None,
        TargetKind::Service => {
            let Some(service) = store.services.get(&target.name) else {
                return Some("it is not there".to_owned());
            };
            let port = section.filter(|section| !service.ports.iter().any(|port| port.name == **section));
            port.map(|section| format!("the Service has no TCP port of the name {section:?}"))
        }
        TargetKind::Route(kind) => {
            let Some(route) = store.routes.get(&(kind, target.name.clone())) else {
                return Some("it is not there".to_owned());
            };
            let rule = section.filter(|section| !route.rules.iter().any(|rule| rule.name.as_ref() == Some(section)));
            rule.map(|section| format!("the route has no rule of the name {section:?}"))
        }
    }
}

/// The target in words.
fn shown(reference: &Value) -> String {
    let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    let mut shown = format!("{} {}", text("kind"), text("name"));
    if !text("sectionName").is_empty() {
        shown += &format!(" ({})", text("sectionName"));
    }
    shown
}

fn invalid(policy: &Policy) -> String {
    let holds = match policy.access() {
        Some(_) => {
            "In force as far as it opens nothing: what is faulty lets nobody in where it allows, and is left out where it denies"
        }
        None => "Not in force",
    };
    let mistakes = policy.mistakes();
    let named: Vec<_> = mistakes
        .iter()
        .take(MOST_MISTAKES)
        .map(|mistake| shortened(mistake))
        .collect();
    let mut message = format!("{holds}. {}", named.join("; "));
    if mistakes.len() > named.len() {
        message += &format!("; and {} more mistakes", mistakes.len() - named.len());
    }
    message
}

fn shortened(mistake: &str) -> Cow<'_, str> {
    let start = &mistake[..mistake.floor_char_boundary(LONGEST_MISTAKE)];
    match start.len() < mistake.len() {
        true => format!("{start}…").into(),
        false => start.into(),
    }
}
