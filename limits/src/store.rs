//! What is counted in a store that all pods share: what it is asked, and what its answers come to.
//!
//! Who asks it is up to the caller. A request is asked about once of each store, whatever number of limits it matches there: [`SCRIPT`]
//! tests all of them, and takes tokens only where all admit. What a pod counts itself is taken before that, and given back where the store
//! refuses: so nothing is admitted that one of them would not have admitted, however many requests ask at once, and what is refused has
//! taken nothing. (A request whose client goes away in between has paid.) Of several stores, those that have taken are told to give back.
//!
//! A store that does not answer admits, refuses, or leaves the pod to its own buckets, as each policy says.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::limits as proto;

pub use crate::table::State;

/// What a store carries out, in one go: Lua of Redis 5 and later. The head of the file has what it is given.
pub const SCRIPT: &str = include_str!("store.lua");

const TIMEOUT_MS: u32 = 20;
const MOST_TIMEOUT_MS: u32 = 1000;

/// A store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// A host and a port.
    pub address: Arc<str>,
    /// What asking it may add to a request.
    pub timeout: Duration,
}

/// What limits do while their store does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// Each pod counts by itself.
    Local,
    Allow,
    Deny,
}

/// What one store is asked about a request.
#[derive(Debug)]
pub struct Ask {
    /// Of the policies that name it, the shortest time.
    pub store: Store,
    /// In the order in which the answer has them.
    pub entries: Vec<Entry>,
}

/// A limit in it, as [`SCRIPT`] reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Begins with the names of policy and limit, which no other ones have, and ends with a hash of what the bucket is of.
    pub key: String,
    /// 0: it is enforced.
    pub group: usize,
    /// That are taken; below 0, they are given back.
    pub units: i64,
    /// Units of a token.
    pub token: u64,
    /// Units that come back in a microsecond.
    pub gives: u64,
    /// Units of a full bucket.
    pub holds: u64,
}

/// What a store says: of each entry, in their order. `None`: it has not answered.
pub type Answer = Option<Vec<State>>;

impl Store {
    /// `None`: nobody could be asked there.
    pub(crate) fn new(message: &proto::Global) -> Option<Self> {
        let ms = match (1..=MOST_TIMEOUT_MS).contains(&message.timeout_ms) {
            true => message.timeout_ms,
            false => TIMEOUT_MS,
        };
        (!message.address.is_empty()).then(|| Self {
            address: message.address.as_str().into(),
            timeout: Duration::from_millis(ms.into()),
        })
    }
}
