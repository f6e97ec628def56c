//! What is known of the pod that asks.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use outrigger_api::discovery as proto;
use outrigger_api::discovery::Protocol;
use outrigger_api::ports;

use super::protocol;
use crate::access::PodKey;
use crate::discovery::{Caller, Known};
use crate::objects::{ObjectName, Pod};
use crate::room::Room;
use crate::store::{Dep, Deps, Store};
use crate::topology::Place;

/// Where a caller runs: the pod that has the address of its connection, or, where that is nobody's (it was translated, or
/// kubelet has not written it yet), the pod that it says it is. Either must be of the ServiceAccount of its SVID.
pub(crate) fn place(store: &Store, caller: &Caller, deps: &mut Deps) -> Place {
    deps.insert(Dep::Ip(caller.address));
    let said = ObjectName {
        namespace: caller.namespace.clone(),
        name: caller.pod.clone(),
    };
    let is_callers = |(name, pod): &(&ObjectName, &Pod)| {
        name.namespace == caller.namespace && pod.service_account == caller.service_account
    };
    let by_address = store.pod_at(caller.address).filter(is_callers);
    let pod = by_address.or_else(|| store.pods.get_key_value(&said).filter(is_callers));
    let node: Option<Arc<str>> = pod.and_then(|(_, pod)| pod.node.clone());
    deps.insert(Dep::Pod(said));
    deps.extend(node.clone().map(Dep::Node));
    Place {
        zone: node.as_ref().and_then(|node| store.nodes.get(node)?.zone.clone()),
        node,
    }
}

/// What is known of a pod itself.
pub(crate) fn known(store: &Store, room: &Room, pod: &PodKey, deps: &mut Deps) -> Known {
    Known::new(workload(store, &pod.name, deps), &room.payer(&pod.name.namespace))
}

fn workload(store: &Store, name: &ObjectName, deps: &mut Deps) -> proto::Workload {
    deps.insert(Dep::Pod(name.clone()));
    deps.insert(Dep::Services(name.namespace.clone()));
    deps.insert(Dep::Namespace(name.namespace.clone()));
    deps.insert(Dep::Networks);
    let cluster_networks = store.told_networks();
    let Some(pod) = store.pods.get(name) else {
        return proto::Workload {
            cluster_networks,
            ..proto::Workload::default()
        };
    };
    let mut protocols = HashMap::new();
    for (service_name, service) in store.services_selecting(&name.namespace, pod) {
        for port in &service.ports {
            let protocol = protocol::of_port(store, service_name, service, port);
            let Some(target) = pod.port_behind(port).filter(|_| protocol != Protocol::Unspecified) else {
                continue;
            };
            let known = protocols.entry(u32::from(target)).or_insert(protocol as i32);
            // Where Services disagree: opaque bytes are never wrong.
            if protocol == Protocol::Opaque {
                *known = protocol as i32;
            }
        }
    }
    let mut opaque: BTreeSet<u32> = BTreeSet::new();
    let annotated = protocol::opaque_ports(store, name, pod);
    opaque.extend(annotated.iter().flat_map(|ports| ports.ports()).map(u32::from));
    for (port, protocol) in &mut protocols {
        if opaque.contains(port) {
            *protocol = Protocol::Opaque as i32;
        }
    }
    let defaults = ports::DEFAULT_OPAQUE.map(u32::from);
    opaque.extend(defaults.iter().filter(|port| !protocols.contains_key(*port)));
    let by_service = protocols.iter().filter(|(_, p)| **p == Protocol::Opaque as i32);
    opaque.extend(by_service.map(|(port, _)| *port));
    proto::Workload {
        opaque_ports: opaque.into_iter().collect(),
        protocols,
        cluster_networks,
    }
}
