//! What policies come to, for people. It is read from what decides.

use serde::{Deserialize, Serialize};

use crate::key::Part;
pub use crate::open::ConnectionsView;
use crate::plan::{Limit, Policy};

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// "namespace/name".
    pub name: String,
    /// It refuses nothing.
    pub shadow: bool,
    /// `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u16>>,
    /// Those that this version understands.
    pub limits: Vec<LimitView>,
    /// Of connections that carry bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionsView>,
}

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitView {
    /// As the policy names it, or its position.
    pub name: String,
    /// What has a bucket of its own.
    pub per: Vec<String>,
    /// Requests of this pod in an interval, and its seconds; of all pods, where `store` is there.
    pub requests: u64,
    /// The interval.
    pub seconds: u64,
    /// Buckets that are not full, or were not when they were last looked at.
    pub keys: usize,
    /// The most that there are.
    pub max_keys: usize,
    /// Where it is counted: the buckets are those that are used while nothing answers there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

impl LimitView {
    pub(crate) fn new(policy: &Policy, limit: &Limit, keys: usize) -> Self {
        let global = limit.global.as_ref();
        let rate = global.unwrap_or(&limit.rates)[0];
        Self {
            name: limit.name.to_string(),
            per: limit.per.iter().map(Part::text).collect(),
            requests: rate.requests,
            seconds: rate.seconds,
            keys,
            max_keys: limit.max,
            store: { policy.store.as_ref() }
                .filter(|_| global.is_some())
                .map(|store| store.address.to_string()),
        }
    }
}
