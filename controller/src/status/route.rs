//! What a route's status should say, for each parent that is a Service.

use outrigger_api::pattern::{MAX_PATTERNS, MAX_TOTAL};
use serde_json::Value;

use super::entries::{Entry, To, Verdict, merged};
use crate::answers::{OverBudget, displaced_by, resolve};
use crate::objects::route::{Parent, Route};
use crate::store::Store;

/// `status.parents` as it should be. None: it is so already. `now` is RFC 3339.
pub(super) fn parents<'a>(store: &'a Store, over: &mut OverBudget<'a>, route: &Route, now: &str) -> Option<Vec<Value>> {
    let entries = route.parents.iter().map(|parent| Entry {
        reference: parent.reference.clone(),
        verdicts: vec![accepted(store, over, route, parent), resolved(store, route)],
    });
    merged(
        To::Parent,
        &entries.collect::<Vec<_>>(),
        &route.status_parents,
        route.generation,
        now,
    )
}

fn accepted<'a>(store: &'a Store, over: &mut OverBudget<'a>, route: &Route, parent: &Parent) -> Verdict {
    let verdict = |reason, message| Verdict::new("Accepted", reason, message);
    let Some(service) = store.services.get(&parent.service) else {
        return verdict("NoMatchingParent", format!("there is no Service {}", parent.service));
    };
    if service.cluster_ips.is_empty() {
        let message = format!(
            "the Service {} has no ClusterIP: requests go to its pods' own addresses, for which no route holds",
            parent.service
        );
        return verdict("NoMatchingParent", message);
    }
    if !service.ports.iter().any(|p| parent.covers(p.port, &p.name)) {
        let message = format!("the Service {} has no TCP port like the parentRef's", parent.service);
        return verdict("NoMatchingParent", message);
    }
    if let Some(other) = displaced_by(store, route, parent) {
        let (kind, own) = (other.kind.name(), route.kind.name());
        let message = match other.kind == route.kind {
            true => format!(
                "the older {kind} {} takes all connections to the Service {}",
                other.name, parent.service
            ),
            false => format!(
                "{kind}s hold for the Service {}, and go before {own}s: {}",
                parent.service, other.name
            ),
        };
        return verdict("Conflicted", message);
    }
    if !route.unsupported.is_empty() {
        return verdict("UnsupportedValue", route.unsupported.join("; "));
    }
    if over.has(store, &parent.service, route) {
        let message = format!(
            "with those of older routes, the Service {} has more than {MAX_PATTERNS} patterns, or they take more than {} KiB: \
             those of this route match nothing",
            parent.service,
            MAX_TOTAL / 1024
        );
        return verdict("UnsupportedValue", message);
    }
    verdict("Accepted", "In force".to_owned())
}

fn resolved(store: &Store, route: &Route) -> Verdict {
    let mut problems: Vec<_> = route.references().filter_map(|b| resolve(store, b).err()).collect();
    problems.dedup();
    let verdict = |reason, message| Verdict::new("ResolvedRefs", reason, message);
    match problems.first() {
        None => verdict("ResolvedRefs", "All references lead to Services".to_owned()),
        Some(first) => {
            let messages: Vec<_> = problems.iter().map(|p| p.message.as_str()).collect();
            verdict(first.reason, messages.join("; "))
        }
    }
}
