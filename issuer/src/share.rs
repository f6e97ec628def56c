//! What one peer may have of the server's memory.
//!
//! A sidecar with an SVID may hold connections and streams for as long as it likes, so what they cost is charged to it: to its
//! pod (its identity at its address) and to its namespace. All of them share one budget below the container's limit, and
//! what is left of it decides how much each may have (see [`outrigger_gate::Budget`]). docs/limits.md has the numbers.

use std::net::IpAddr;
use std::sync::Arc;

use outrigger_api::spiffe::SpiffeId;
use outrigger_gate::{Budget, Charge, Holder, memory_limit};
use tonic::Status;

/// A connection after its handshake: TLS, HTTP/2 and their buffers.
pub(crate) const CONNECTION: u64 = 64 * 1024;
/// A request for an SVID while it is worked on: a token, a CSR, and their buffers.
pub(crate) const ISSUE: u64 = 64 * 1024;
/// Where the container has no limit.
const BUDGET: u64 = 1024 * 1024 * 1024;

/// Who answers for a charge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tenant {
    /// All workloads of a namespace.
    Namespace(Arc<str>),
    /// One identity at one address: a pod, or those of a node that share its address.
    Pod(SpiffeId, IpAddr),
}

impl Tenant {
    pub(crate) fn pod(id: &SpiffeId, address: IpAddr) -> Self {
        Self::Pod(id.clone(), address.to_canonical())
    }
}

/// Memory that is charged until it is dropped.
pub type Held = Charge<Tenant>;

/// A peer's way to the budget.
#[derive(Clone, Debug)]
pub struct Share {
    budget: Arc<Budget<Tenant>>,
    holders: Arc<[Holder<Tenant>]>,
}

/// Half of the container's limit: the other half is for the index, and for peers that have no SVID yet.
pub(crate) fn budget() -> u64 {
    memory_limit().map_or(BUDGET, |limit| limit / 2)
}

impl Share {
    /// That of the identity `id` at `address`, its pod's.
    pub fn new(budget: &Arc<Budget<Tenant>>, id: &SpiffeId, address: IpAddr) -> Self {
        let namespace = Holder {
            key: Tenant::Namespace(id.namespace().into()),
            divisor: 1,
        };
        // A fifth of all for one pod, so that it cannot take away what its namespace has.
        let pod = Holder {
            key: Tenant::pod(id, address),
            divisor: 4,
        };
        Self {
            budget: Arc::clone(budget),
            holders: Arc::new([namespace, pod]),
        }
    }

    /// Charges `bytes` until the result is dropped.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, where the pod or its namespace would hold more than it may.
    pub fn charge(&self, bytes: u64) -> Result<Held, Status> {
        let charge = self.budget.charge(&self.holders, bytes);
        charge.map_err(|_| {
            Status::resource_exhausted(
                "this pod, or its namespace, holds as much of the controller as it may: fewer targets or connections, or more \
                 memory for the controller (controller.resources)",
            )
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STREAM: u64 = 6 * 1024;

    fn share(budget: &Arc<Budget<Tenant>>, account: &str, last: u8) -> Share {
        let id = SpiffeId::new("cluster.local", "shop", account).unwrap();
        Share::new(budget, &id, [10, 0, 0, last].into())
    }

    #[test]
    fn a_pod_leaves_room_for_its_siblings_and_a_namespace_for_others() {
        let budget = Budget::new(1000 * STREAM);
        let fill = |share: &Share| -> Vec<Held> { std::iter::from_fn(|| share.charge(STREAM).ok()).collect() };
        let greedy = fill(&share(&budget, "orders", 1));
        assert_eq!(greedy.len(), 200);
        // The same identity at another address is another pod.
        let sibling = fill(&share(&budget, "orders", 2));
        assert!(sibling.len() >= 100, "{}", sibling.len());
        let rest: Vec<_> = (3..30).flat_map(|last| fill(&share(&budget, "orders", last))).collect();
        let all = greedy.len() + sibling.len() + rest.len();
        assert!(all <= 500, "{all}");
        assert_eq!(budget.used(), all as u64 * STREAM);
    }

    #[test]
    fn a_refusal_says_whom_it_concerns() {
        let status = share(&Budget::new(1), "orders", 1).charge(STREAM).unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }
}
