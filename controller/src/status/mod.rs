//! What the conditions of routes and policies should say. `cluster::status` writes them.

mod entries;
mod policy;
mod route;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use self::entries::{To, conditions, merged};
use crate::answers::OverBudget;
use crate::index::Callers;
use crate::objects::policy::Policy;
use crate::objects::route::RouteKind;
use crate::objects::{Kind, ObjectName};
use crate::store::Store;

/// A status to write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Write {
    pub(crate) kind: Kind,
    pub(crate) name: ObjectName,
    pub(crate) resource_version: String,
    pub(crate) status: Value,
}

/// All statuses that are not as they should be. `now` is RFC 3339.
pub(crate) fn wanted(store: &Store, callers: &Callers<'_>, now: &str) -> Vec<Write> {
    let mut over = OverBudget::default();
    let routes = store.routes.iter().filter_map(|((kind, name), route)| {
        Some(Write {
            kind: match kind {
                RouteKind::Http => Kind::HttpRoute,
                RouteKind::Grpc => Kind::GrpcRoute,
            },
            name: name.clone(),
            resource_version: route.resource_version.clone(),
            status: json!({"parents": route::parents(store, &mut over, route, now)?}),
        })
    });
    let mut probes = BTreeSet::new();
    let policies = store.policies.iter().filter_map(|policy| {
        // That the CRD is not old any more shows only in what the API server keeps of a write: one policy of the kind is written
        // again, which changes nothing until then.
        let probe = store.old_crds.contains(&policy.kind) && probes.insert(policy.kind);
        Some(Write {
            kind: Kind::Policy(policy.kind),
            name: policy.name.clone(),
            resource_version: policy.resource_version.clone(),
            status: of_policy(store, callers, policy, probe, now)?,
        })
    });
    routes.chain(policies).collect()
}

/// None: it is so already, and there is nothing to learn from writing it.
fn of_policy(store: &Store, callers: &Callers<'_>, policy: &Policy, probe: bool, now: &str) -> Option<Value> {
    let old_crd = store.old_crds.contains(&policy.kind);
    let entries = policy::entries(store, callers, policy);
    let summary = policy::summary(policy, &entries, old_crd);
    let conditions = conditions(&[summary], &policy.conditions, policy.generation, now);
    let ancestors = merged(To::Ancestor, &entries, &policy.ancestors, policy.generation, now);
    let same = conditions == policy.conditions && (old_crd || ancestors.is_none());
    let ancestors = ancestors.unwrap_or_else(|| policy.ancestors.clone());
    (probe || !same).then(|| json!({"ancestors": ancestors, "conditions": conditions}))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
