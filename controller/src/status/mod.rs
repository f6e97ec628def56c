//! What the conditions of routes and policies should say. `cluster::status` writes them.

mod policy;
mod route;

use outrigger_api::policy::Condition;
use serde_json::{Value, json};

use crate::answers::OverBudget;
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

/// All statuses that are not as they should be.
pub(crate) fn wanted(store: &Store, now: &str) -> Vec<Write> {
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
    let policies = store.policies.iter().filter_map(|(name, policy)| {
        let condition = timed(policy::condition(store, policy), policy.condition.as_ref(), now)?;
        Some(Write {
            kind: Kind::TrafficPolicy,
            name: name.clone(),
            resource_version: policy.resource_version.clone(),
            status: json!({"conditions": [condition]}),
        })
    });
    routes.chain(policies).collect()
}

/// The condition with its time: that of the last change from one status to another. None: it is so already.
fn timed(mut new: Condition, old: Option<&Condition>, now: &str) -> Option<Condition> {
    new.last_transition_time = match old {
        Some(old) if old.status == new.status => old.last_transition_time.clone(),
        _ => now.to_owned(),
    };
    (old != Some(&new)).then_some(new)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
