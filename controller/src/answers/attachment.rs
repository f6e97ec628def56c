//! TrafficPolicies: what holds for which object.
//!
//! A policy is attached to Services, routes or its namespace. For one field the route's policy is asked first, then the
//! Service's, then the namespace's. Of several for the same object the oldest holds as a whole; the others are
//! `Conflicted` and add nothing. A policy that is not valid holds nowhere.

use std::sync::Arc;

use outrigger_api::discovery as proto;

use crate::objects::ObjectName;
use crate::objects::policy::TrafficPolicy;
use crate::objects::route::{self, RouteKind};
use crate::store::Store;

/// What a policy is attached to, in its own namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attached<'a> {
    Service(&'a ObjectName),
    Route(RouteKind, &'a ObjectName),
    Namespace(&'a Arc<str>),
}

/// The policy in force for the object alone: the oldest valid one.
pub(crate) fn attached_to<'a>(store: &'a Store, attached: Attached<'_>) -> Option<&'a TrafficPolicy> {
    let namespace = match attached {
        Attached::Service(name) | Attached::Route(_, name) => &name.namespace,
        Attached::Namespace(namespace) => namespace,
    };
    store
        .policies_of(namespace)
        .filter(|policy| policy.policy.is_ok() && names(policy, attached))
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

/// Whether the policy is attached to the object, which is in its own namespace.
fn names(policy: &TrafficPolicy, attached: Attached<'_>) -> bool {
    policy.targets.iter().any(|target| {
        let key = (target.group.as_str(), target.kind.as_str(), target.name.as_str());
        match attached {
            Attached::Service(service) => key == ("", "Service", &*service.name),
            Attached::Route(kind, route) => key == (route::GROUP, kind.name(), &*route.name),
            Attached::Namespace(namespace) => key == ("", "Namespace", &**namespace),
        }
    })
}
