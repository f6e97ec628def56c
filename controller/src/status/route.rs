//! What a route's status should say, for each parent that is a Service.

use outrigger_api::pattern::{MAX_PATTERNS, MAX_TOTAL};
use serde_json::{Value, json};

use crate::answers::{OverBudget, is_displaced, resolve};
use crate::objects::route::{Parent, Route, RouteFilter};
use crate::store::Store;

/// Who writes these conditions.
pub(crate) const CONTROLLER_NAME: &str = "outrigger.dev/controller";

/// A condition without its time.
struct Verdict {
    type_: &'static str,
    ok: bool,
    reason: &'static str,
    message: String,
}

/// `status.parents` as it should be: what others wrote as it is, and our own. None: it is so already. `now` is RFC 3339.
pub(crate) fn parents<'a>(store: &'a Store, over: &mut OverBudget<'a>, route: &Route, now: &str) -> Option<Vec<Value>> {
    let is_ours = |entry: &Value| entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER_NAME);
    let (ours, others): (Vec<_>, Vec<_>) = route.status_parents.iter().partition(|entry| is_ours(entry));
    let wanted: Vec<Value> = route
        .parents
        .iter()
        .map(|parent| {
            let before = ours
                .iter()
                .find(|entry| entry.get("parentRef") == Some(&parent.reference));
            entry((store, &mut *over), route, parent, before.copied(), now)
        })
        .collect();
    let same = ours.len() == wanted.len() && ours.iter().zip(&wanted).all(|(old, new)| *old == new);
    (!same).then(|| others.into_iter().cloned().chain(wanted).collect())
}

fn entry<'a>(
    (store, over): (&'a Store, &mut OverBudget<'a>),
    route: &Route,
    parent: &Parent,
    before: Option<&Value>,
    now: &str,
) -> Value {
    let conditions = [accepted(store, over, route, parent), resolved(store, route)].map(|verdict| {
        let status = if verdict.ok { "True" } else { "False" };
        let old = before
            .and_then(|entry| entry.get("conditions")?.as_array())
            .into_iter()
            .flatten()
            .find(|c| c.get("type").and_then(Value::as_str) == Some(verdict.type_));
        // The time is that of the last change of the status, not of the message.
        let time = old
            .filter(|c| c.get("status").and_then(Value::as_str) == Some(status))
            .and_then(|c| c.get("lastTransitionTime")?.as_str())
            .unwrap_or(now);
        json!({
            "type": verdict.type_,
            "status": status,
            "reason": verdict.reason,
            "message": clipped(&verdict.message),
            "observedGeneration": route.generation,
            "lastTransitionTime": time,
        })
    });
    json!({"parentRef": parent.reference, "controllerName": CONTROLLER_NAME, "conditions": conditions})
}

/// The API allows 32,768 bytes; a person reads fewer.
fn clipped(message: &str) -> &str {
    &message[..message.floor_char_boundary(4096)]
}

fn accepted<'a>(store: &'a Store, over: &mut OverBudget<'a>, route: &Route, parent: &Parent) -> Verdict {
    let verdict = |reason, message: String| Verdict {
        type_: "Accepted",
        ok: reason == "Accepted",
        reason,
        message,
    };
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
    if is_displaced(store, &(route.kind, route.name.clone()), parent) {
        let message = format!(
            "GRPCRoutes hold for the Service {}, and go before HTTPRoutes",
            parent.service
        );
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
    let mirrors = |filters: &[RouteFilter]| {
        let backends = filters.iter().filter_map(|filter| match filter {
            RouteFilter::Mirror { backend, .. } => Some(backend.clone()),
            RouteFilter::Plain(_) => None,
        });
        backends.collect::<Vec<_>>()
    };
    let references = route.rules.iter().flat_map(|rule| {
        let backends = rule.backends.iter().map(|b| b.backend.clone());
        let inner = rule.backends.iter().flat_map(|b| mirrors(&b.filters));
        backends.chain(inner).chain(mirrors(&rule.filters)).collect::<Vec<_>>()
    });
    let mut problems: Vec<_> = references.filter_map(|b| resolve(store, &b).err()).collect();
    problems.dedup();
    match problems.first() {
        None => Verdict {
            type_: "ResolvedRefs",
            ok: true,
            reason: "ResolvedRefs",
            message: "All references lead to Services".to_owned(),
        },
        Some(first) => Verdict {
            type_: "ResolvedRefs",
            ok: false,
            reason: first.reason,
            message: problems
                .iter()
                .map(|p| p.message.as_str())
                .collect::<Vec<_>>()
                .join("; "),
        },
    }
}
