//! RateLimitPolicies: how much a pod takes.
//!
//! All policies that select a pod are joined, as AccessPolicies are. A policy that is not valid is none: a limit is no lock.
//!
//! A rate that holds for all pods of a policy together is divided among those that are ready. Among the pods of the whole mesh, which no
//! Service spreads its load over, none is.

use outrigger_api::limits as proto;

use super::access::{OfPod, numbers, pod_of, ports_at, selecting};
use crate::access::PodKey;
use crate::discovery::Limits;
use crate::objects::policy::{Policy, PolicyKind, Target};
use crate::room::Room;
use crate::store::{Dep, Deps, Store};

/// What the pod's sidecar is told.
pub(crate) fn limits(store: &Store, room: &Room, key: &PodKey, deps: &mut Deps) -> Limits {
    let name = &key.name;
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
        if limits.divided().next().is_some() && !is_whole_mesh(store, policy) {
            deps.insert(Dep::ReadyPods(policy.name.namespace.clone()));
            pods = Some(ready_pods(store, policy));
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
