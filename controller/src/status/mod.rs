//! What the conditions of routes, policies and XMeshes should say. `cluster::status` writes them.

mod absent;
mod access;
mod backend_tls;
mod entries;
mod faults;
mod keys;
mod limits;
mod mesh;
mod older;
mod policy;
mod reach;
mod route;
mod uncaptured;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) use self::absent::Absent;
use self::entries::{To, conditions, merged};
use crate::answers::{OverBudget, Uneven};
use crate::index::Callers;
use crate::objects::policy::Policy;
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

/// A time.
pub(crate) struct Now {
    /// In RFC 3339, as conditions have it.
    text: String,
    /// Since 1970; 0 before.
    unix_seconds: u64,
}

impl Now {
    /// To the second.
    pub(crate) fn new(now: OffsetDateTime) -> Self {
        let now = now.replace_nanosecond(0).unwrap_or(now);
        Self {
            text: now.format(&Rfc3339).unwrap_or_default(),
            unix_seconds: u64::try_from(now.unix_timestamp()).unwrap_or_default(),
        }
    }
}

/// All statuses that are not as they should be now. They change with the time alone, too: what ends by itself is said to have ended.
pub(crate) fn wanted(store: &Store, callers: &Callers<'_>, absent: &Absent, time: &Now) -> Vec<Write> {
    let now = &*time.text;
    let mut over = OverBudget::default();
    let uneven = Uneven::new(store);
    let routes = store.routes.iter().filter_map(|((kind, name), route)| {
        Some(Write {
            kind: Kind::Route(*kind),
            name: name.clone(),
            resource_version: route.resource_version.clone(),
            status: json!({"parents": route::parents(store, callers, &mut over, route, now)?}),
        })
    });
    let policies = store.policies.iter().filter_map(|policy| {
        Some(Write {
            kind: Kind::Policy(policy.kind),
            name: policy.name.clone(),
            resource_version: policy.resource_version.clone(),
            status: of_policy((store, &uneven), callers, absent, policy, time)?,
        })
    });
    let meshes = store.meshes.iter().filter_map(|(name, mesh)| {
        Some(Write {
            kind: Kind::Mesh,
            name: name.clone(),
            resource_version: mesh.resource_version.clone(),
            status: mesh::status(mesh, now)?,
        })
    });
    let backend_tls = store.backend_tls.iter().filter_map(|policy| {
        Some(Write {
            kind: Kind::BackendTls,
            name: policy.name.clone(),
            resource_version: policy.resource_version.clone(),
            status: json!({"ancestors": backend_tls::ancestors(store, callers, policy, now)?}),
        })
    });
    routes.chain(policies).chain(backend_tls).chain(meshes).collect()
}

/// None: it is so already, as far as its CRD has room for it.
fn of_policy(
    (store, uneven): (&Store, &Uneven<'_>),
    callers: &Callers<'_>,
    absent: &Absent,
    policy: &Policy,
    now: &Now,
) -> Option<Value> {
    let dropped = store.old_crds.get(&policy.kind).map(Vec::as_slice).unwrap_or_default();
    let entries = policy::entries((store, uneven), callers, absent, policy, now.unix_seconds);
    let summary = policy::summary(policy, &entries, dropped);
    let in_all: Vec<_> = [summary]
        .into_iter()
        .chain(policy::programmed_in_all(&entries))
        .collect();
    let conditions = conditions(&in_all, &policy.conditions, policy.generation, &now.text);
    let ancestors = merged(To::Ancestor, &entries, &policy.ancestors, policy.generation, &now.text);
    let same = conditions == policy.conditions
        && (ancestors.is_none() || dropped.iter().any(|field| field == "status.ancestors"));
    let ancestors = ancestors.unwrap_or_else(|| policy.ancestors.clone());
    (!same).then(|| json!({"ancestors": ancestors, "conditions": conditions}))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod access_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod backend_tls_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod enforced_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod limits_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod older_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
