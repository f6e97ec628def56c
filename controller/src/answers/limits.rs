//! RateLimitPolicies: how much a pod takes.
//!
//! All policies that select a pod are joined, as AccessPolicies are. A policy that is not valid is none: a limit is no lock.
//!
//! A rate that holds for all pods of a policy together is divided among those that are ready, also where a store counts it, for the time in which
//! that does not answer. Among the pods of the whole mesh, which no Service spreads its load over, none is.
//!
//! Until the policies have been listed nothing is told: a sidecar that is told of none forgets those that it knows, and what they counted.

use std::collections::HashMap;

use outrigger_api::limits as proto;
use parking_lot::Mutex;

use super::access::{OfPod, numbers, pod_of, ports_at, selecting};
use crate::access::PodKey;
use crate::discovery::Limits;
use crate::objects::policy::{Policy, PolicyKind, Target};
use crate::objects::{Kind, ObjectName};
use crate::room::Room;
use crate::store::{Dep, Deps, Store};

const KIND: Kind = Kind::Policy(PolicyKind::RateLimit);

/// How many ready pods a policy selects, by its name: each of these pods asks for it, and it is counted once for all of them. Good until
/// the next flush, which makes all answers anew that depend on what has changed.
#[derive(Default)]
pub(crate) struct Counted(Mutex<HashMap<ObjectName, u32>>);

impl Counted {
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    fn ready_pods(&self, store: &Store, policy: &Policy) -> u32 {
        let mut counted = self.0.lock();
        let count = counted.entry(policy.name.clone());
        *count.or_insert_with(|| ready_pods(store, policy))
    }
}

/// What the pod's sidecar is told.
pub(crate) fn limits(store: &Store, room: &Room, counted: &Counted, key: &PodKey, deps: &mut Deps) -> Limits {
    let name = &key.name;
    deps.insert(Dep::Listed(KIND));
    if !store.is_listed(KIND) {
        return Limits::unknown();
    }
    deps.insert(Dep::Pod(name.clone()));
    deps.insert(Dep::Services(name.namespace.clone()));
    for namespace in [&name.namespace, &store.own.namespace] {
        deps.insert(Dep::Policies(PolicyKind::RateLimit, namespace.clone()));
    }
    let pod = pod_of(store, key);
    let mut told = proto::Limits::default();
    for (policy, ports) in selecting(store, PolicyKind::RateLimit, name, pod) {
        let Some(limits) = policy.limits() else { continue };
        if limits.selects_namespaces() {
            deps.insert(Dep::Namespaces);
        }
        let mut pods = None;
        if limits.counts_pods() && !is_whole_mesh(store, policy) {
            deps.insert(Dep::ReadyPods(policy.name.namespace.clone()));
            pods = Some(counted.ready_pods(store, policy));
        }
        let of_pod = OfPod {
            store,
            pod,
            policies: &policy.name.namespace,
        };
        told.policies.push(limits.resolve(numbers(ports), pods, &of_pod));
    }
    Limits::new(told, &room.payer(&name.namespace))
}

/// How many pods a policy selects that are ready, all of which are of its own namespace. At least one: whoever asks is called.
pub(crate) fn ready_pods(store: &Store, policy: &Policy) -> u32 {
    let selects = |pod| policy.attachments.iter().any(|one| ports_at(store, one, pod).is_some());
    let pods = store.pods_of_namespace(&policy.name.namespace);
    let ready = pods.filter(|(_, pod)| pod.ready && selects(pod)).count();
    u32::try_from(ready).unwrap_or(u32::MAX).max(1)
}

/// Whether it holds for all pods of the mesh.
pub(crate) fn is_whole_mesh(store: &Store, policy: &Policy) -> bool {
    let mesh = Target::namespace(&store.own.namespace);
    policy.targets().any(|target| *target == mesh)
}
