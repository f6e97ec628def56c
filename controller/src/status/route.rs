//! What a route's status should say, for each parent that is a Service.

use std::collections::BTreeSet;

use outrigger_api::discovery::Feature;
use outrigger_api::names::ROUTE_PROGRAMMED;
use outrigger_api::pattern::{MAX_PATTERNS, MAX_TOTAL};
use serde_json::Value;

use super::entries::{Entry, To, Verdict, merged};
use super::older::{Asked, PARTIALLY, Written};
use crate::answers::{OverBudget, displaced_by, resolve};
use crate::index::{Callers, Of};
use crate::objects::ObjectName;
use crate::objects::route::{Parent, Route, RouteKind, Use};
use crate::store::Store;

const UNSUPPORTED: &str = "UnsupportedValue";

/// `status.parents` as it should be. None: it is so already. `now` is RFC 3339.
pub(super) fn parents<'a>(
    store: &'a Store,
    callers: &Callers<'_>,
    over: &mut OverBudget<'a>,
    route: &Route,
    now: &str,
) -> Option<Vec<Value>> {
    let needs = route.needs();
    let entries = route.parents.iter().map(|parent| {
        let mut accepted = accepted(store, over, route, parent);
        // What of it is supported is in force, and so told.
        let in_force = accepted.ok || accepted.reason == UNSUPPORTED;
        let resolved = resolved(store, route, in_force);
        if accepted.ok && !resolved.ok {
            accepted.message += ", except for what ResolvedRefs names";
        }
        let programmed = in_force.then(|| programmed(store, callers, route, parent, &needs));
        Entry {
            reference: parent.reference.clone(),
            verdicts: [accepted, resolved].into_iter().chain(programmed.flatten()).collect(),
        }
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
        return verdict(UNSUPPORTED, route.unsupported.join("; "));
    }
    if over.has(store, &parent.service, route) {
        let message = format!(
            "with those of older routes, the Service {} has more than {MAX_PATTERNS} patterns, or they take more than {} KiB: \
             those of this route match nothing",
            parent.service,
            MAX_TOTAL / 1024
        );
        return verdict(UNSUPPORTED, message);
    }
    verdict("Accepted", "In force".to_owned())
}

/// `in_force`: it is, so that what leads nowhere has consequences.
fn resolved(store: &Store, route: &Route, in_force: bool) -> Verdict {
    let problems = route.uses().filter_map(|(backend, used)| {
        let mut problem = resolve(store, backend).err()?;
        if in_force {
            problem.message += consequence(used, route.kind);
        }
        Some(problem)
    });
    let mut problems: Vec<_> = problems.collect();
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

/// What comes of a backend that leads nowhere. The others have no part of its share.
fn consequence(used: Use, kind: RouteKind) -> &'static str {
    match (used, kind) {
        (Use::Share, RouteKind::Http | RouteKind::Grpc) => {
            ": its share of the requests is answered 500 (invalid-backend)"
        }
        (Use::Share, RouteKind::Tls | RouteKind::Tcp) => ": its share of the connections is reset",
        (Use::Copies, _) => ": no requests are copied to it",
        (Use::Authorization, _) => ": requests that it should be asked about are answered 500 (invalid-backend)",
    }
}

/// `None`: every sidecar that has a session knows all of it.
fn programmed(
    store: &Store,
    callers: &Callers<'_>,
    route: &Route,
    parent: &Parent,
    needs: &BTreeSet<(Feature, &'static str)>,
) -> Option<Verdict> {
    if needs.is_empty() {
        return None;
    }
    let (features, fields): (Vec<_>, Vec<_>) = needs.iter().copied().unzip();
    let only_own = route.is_consumer_route_of(&parent.service);
    let asked = Asked {
        needs: &features,
        of: Of::These([&parent.service].into()),
        meant: |service: &ObjectName, port, callers: &str| {
            let ports = store.services.get(service).into_iter().flat_map(|s| &s.ports);
            let mut covered = ports.filter(|p| p.port == port && parent.covers(p.port, &p.name));
            covered.next().is_some() && (!only_own || *route.name.namespace == *callers)
        },
        called: "Service",
        effect: format!("do not know all of {}", fields.join(", ")),
    };
    let written = Written {
        to: To::Parent,
        entries: &route.status_parents,
        generation: route.generation,
    };
    Some(match asked.lacking(store, callers, written, &parent.reference) {
        Some(message) => Verdict::new(ROUTE_PROGRAMMED, PARTIALLY, message),
        None => Verdict::new(
            ROUTE_PROGRAMMED,
            "Programmed",
            "No sidecar that is told of it is too old for what it says".to_owned(),
        ),
    })
}
