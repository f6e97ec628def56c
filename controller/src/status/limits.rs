//! What is said of a RateLimitPolicy: which pods it selects, and whether their sidecars carry it out as it is meant.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_api::limits::OnFailure;
use outrigger_api::policy::limits::UnresolvedLimits;
use serde_json::Value;

use super::Absent;
use super::access::nothing;
use super::policy::said_by_another;
use super::reach::{Reach, reached, selected};
use crate::answers::{Uneven, is_whole_mesh, ports_at, ready_pods, selecting};
use crate::index::Callers;
use crate::objects::policy::{Attachment, Policy, PolicyKind};
use crate::objects::{ObjectName, Pod};
use crate::store::Store;

/// That it is in force there, and what may not have been meant: that it selects nothing, now.
pub(super) fn in_force(store: &Store, attachment: &Attachment) -> String {
    match selected(store, attachment).next() {
        Some(_) => "In force".to_owned(),
        None => format!("In force. {}", nothing(store, attachment)),
    }
}

/// Which of its pods do not carry it out, or not as it is written. Each controller knows its own sidecars: the first that says it goes
/// on, as with other policies.
pub(super) fn short(
    (store, uneven): (&Store, &Uneven<'_>),
    callers: &Callers<'_>,
    absent: &Absent,
    policy: &Policy,
    reference: &Value,
) -> Option<String> {
    if let Some(message) = said_by_another(store, policy, reference) {
        return Some(message.to_owned());
    }
    let attachment = policy.attachments.iter().find(|a| a.reference == *reference)?;
    let reach = Reach::new(store, absent, None, attachment);
    let told = callers.enforcers(reached(store, attachment));
    let mut parts = Vec::new();
    if told.without_limits > 0 {
        parts.push(format!(
            "{} of {} sidecars that it tells of the policy are older, and limit nothing: kubectl rollout restart brings the new one \
             into their pods",
            told.without_limits, told.all
        ));
    }
    if told.without_connections > 0 && policy.limits().is_some_and(UnresolvedLimits::limits_connections) {
        parts.push(format!(
            "{} of {} sidecars that it tells of the policy are older, and limit no connections: kubectl rollout restart brings the new one \
             into their pods",
            told.without_connections, told.all
        ));
    }
    if told.without_claims > 0 && policy.limits().is_some_and(|limits| limits.tokens().next().is_some()) {
        parts.push(format!(
            "{} of {} sidecars that it tells of the policy are older, and leave out limits that ask for tokens: kubectl rollout restart \
             brings the new one into their pods",
            told.without_claims, told.all
        ));
    }
    if told.without_global > 0 && policy.limits().is_some_and(UnresolvedLimits::asks_store) {
        parts.push(format!(
            "{} of {} sidecars that it tells of the policy are older, and ask no store: each counts its share of the rate, as of the scope \
             Service: kubectl rollout restart brings the new one into their pods",
            told.without_global, told.all
        ));
    }
    parts.extend(
        reach.away("they go on with the limits that they were told last, and those that have just begun limit nothing"),
    );
    if told.limits_cut > 0 {
        parts.push(format!(
            "{} sidecars are not told of it, because all policies of their pods together are more than a message holds, or more than \
             the namespace may take of the controller's memory: they go on with what they know, and those that have just begun limit \
             nothing",
            told.limits_cut
        ));
    }
    if let Some(first) = parts.first_mut() {
        *first = format!("{}: {first}", store.own.name);
    }
    parts.extend(reach.open("limit nothing"));
    if let Some(limits) = policy.limits() {
        parts.extend(no_store(store, limits));
        parts.extend(unverified(store, limits, attachment));
        parts.extend(divided((store, uneven), policy, limits, attachment, reach.bare > 0));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Where the Service in which all pods should count is not there. Whether it answers, only its callers know. Nothing is said of a name that may
/// be one outside of the cluster, nor of ports of what is no ClusterIP: there they are the pods' own.
fn no_store(store: &Store, limits: &UnresolvedLimits) -> Option<String> {
    let (asked, on_failure) = limits.store_service()?;
    let name = ObjectName::new(&asked.namespace, &asked.name);
    if !asked.surely && store.namespaces.get(&name.namespace).is_none() {
        return None;
    }
    let why = match store.services.get(&name) {
        None => format!("there is no Service {name}"),
        Some(service) if service.cluster_ips.is_empty() => return None,
        Some(service) => {
            let port = asked
                .port
                .filter(|port| !service.ports.iter().any(|known| known.port == *port))?;
            format!("the Service {name} has no TCP port {port}")
        }
    };
    let so = match on_failure {
        OnFailure::Allow => "limits of the scope Global admit all (onFailure: Allow)",
        OnFailure::Deny => {
            "requests that limits of the scope Global are about are answered 503, limit-unavailable (onFailure: Deny)"
        }
        OnFailure::Unspecified => "each pod counts its share by itself, as of the scope Service (onFailure: Local)",
    };
    Some(format!("global.address: {why}; until then {so}"))
}

/// Where nothing verifies the tokens that it asks for.
fn unverified(store: &Store, limits: &UnresolvedLimits, attachment: &Attachment) -> Vec<String> {
    let asked: BTreeSet<_> = limits.tokens().collect();
    if asked.is_empty() {
        return Vec::new();
    }
    let mut without: BTreeMap<_, usize> = BTreeMap::new();
    for (name, pod) in reached(store, attachment) {
        let verified = verified(store, attachment, name, pod);
        let is_verified = |(policy, provider): &(&str, &str)| {
            let providers = verified.get(*policy);
            providers.is_some_and(|providers| providers.contains(provider))
        };
        for pair in asked.iter().filter(|pair| !is_verified(pair)) {
            *without.entry(*pair).or_default() += 1;
        }
    }
    let said = without.into_iter().map(|((policy, provider), pods)| {
        format!(
            "on {pods} of its pods, no AccessPolicy {policy} with the provider {provider} selects all ports of this policy. On the other ports \
             no such tokens are verified, and limits that ask for them count all requests together"
        )
    });
    said.collect()
}

/// Whose tokens AccessPolicies have verified wherever the attachment selects the pod: providers by the policy.
fn verified<'a>(
    store: &'a Store,
    attachment: &Attachment,
    name: &ObjectName,
    pod: &Pod,
) -> BTreeMap<String, BTreeSet<&'a str>> {
    let wanted = ports_at(store, attachment, pod).flatten();
    let mut verified: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (policy, ports) in &selecting(store, PolicyKind::Access, name, Some(pod)) {
        let covers = match (ports, &wanted) {
            (None, _) => true,
            (Some(ports), Some(wanted)) => wanted.is_subset(ports),
            (Some(_), None) => false,
        };
        let providers = policy.access().filter(|_| covers).into_iter();
        let providers = providers.flat_map(|access| access.providers().map(|(provider, _)| provider));
        verified.entry(policy.name.to_string()).or_default().extend(providers);
    }
    verified
}

/// Where a rate that is divided among pods is not what it says.
fn divided(
    (store, uneven): (&Store, &Uneven<'_>),
    policy: &Policy,
    limits: &UnresolvedLimits,
    attachment: &Attachment,
    has_bare: bool,
) -> Vec<String> {
    let mut divided = limits.divided().peekable();
    if divided.peek().is_none() {
        return Vec::new();
    }
    if is_whole_mesh(store, policy) {
        let names: Vec<&str> = divided.map(|(name, _)| name).collect();
        return vec![format!(
            "{}: the scope Service is for the pods of one namespace, and not for all of the mesh: without effect",
            names.join(", ")
        )];
    }
    let mut parts = Vec::new();
    let pods = ready_pods(store, policy);
    let small: Vec<&str> = divided
        .filter(|(_, requests)| *requests < pods)
        .map(|(name, _)| name)
        .collect();
    if !small.is_empty() {
        parts.push(format!(
            "{}: less than one request an interval for each of {pods} pods: each takes one, and all together more than the rate",
            small.join(", ")
        ));
    }
    if has_bare {
        parts.push(
            "pods without a sidecar have their share of a rate of the scope Service, and may take more".to_owned(),
        );
    }
    let is_of_these = |name: &ObjectName| {
        let service = store.services.get(name);
        service.is_some_and(|service| {
            reached(store, attachment).any(|(pod, of)| pod.namespace == name.namespace && service.selects(of))
        })
    };
    let mut named = { uneven.services().iter() }.filter(|(name, _)| is_of_these(name));
    if let Some((name, by)) = named.next() {
        let others = match named.count() {
            0 => String::new(),
            others => format!(" (and {others} more)"),
        };
        parts.push(format!(
            "the Service {name}{others} is called with {by}, and so its pods unevenly: together they take less than the rate"
        ));
    }
    parts
}
