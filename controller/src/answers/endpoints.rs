//! The endpoints of a Service's port out of its EndpointSlices, and which pod each of them is.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;

use outrigger_api::discovery as proto;
use outrigger_api::ports;
use outrigger_api::spiffe::SpiffeId;

use super::backend_tls;
use crate::objects::{ObjectName, Pod, Service, ServicePort, SliceEndpoint, TargetPort};
use crate::room::{Payer, Refusal, Taken, depending};
use crate::split::SetName;
use crate::store::{Dep, Deps, Store};
use crate::topology::{Candidate, Candidates};

/// Ports of the sidecar itself. It does not capture them.
const SIDECAR_PORTS: [u16; 3] = [ports::OUTBOUND, ports::INBOUND, ports::ADMIN];

/// Which pod an endpoint is.
enum Owner<'a> {
    Pod(&'a ObjectName, &'a Pod),
    /// No pod of this cluster has the address.
    Nobody,
    /// The pod is not known yet, or has ended, or the address goes from one pod to another just now.
    Unknown,
}

/// All endpoints of a set.
pub(super) fn candidates(store: &Store, deps: &mut Deps, set: &SetName) -> Candidates {
    let name = ObjectName {
        namespace: set.namespace.clone(),
        name: set.service.clone(),
    };
    deps.insert(Dep::Service(name.clone()));
    deps.insert(Dep::Slices(name.clone()));
    let Some(service) = store.services.get(&name) else {
        return Candidates::default();
    };
    let mut found: BTreeMap<SocketAddr, Candidate> = BTreeMap::new();
    let port = service.ports.iter().find(|p| p.port == set.port);
    for (endpoint, number) in port.into_iter().flat_map(|port| of_port(store, &name, port)) {
        let Some(candidate) = candidate(store, deps, endpoint, number) else {
            continue;
        };
        // While an endpoint moves from one slice to another it may be in both: the one that is ready is right.
        match found.entry(SocketAddr::new(endpoint.address, number)) {
            Entry::Vacant(free) => drop(free.insert(candidate)),
            Entry::Occupied(mut known) if candidate.ready && !known.get().ready => drop(known.insert(candidate)),
            Entry::Occupied(_) => {}
        }
    }
    // Of a dual-stack pod there are two addresses, and they are one endpoint.
    if found.keys().any(|address| address.is_ipv6() == set.ipv6) {
        found.retain(|address, _| address.is_ipv6() == set.ipv6);
    }
    Candidates {
        local: service.local,
        secured: backend_tls::holds(store, deps, &name, port),
        list: found.into_values().collect(),
    }
}

/// Charges what a set will take, before it is made.
pub(super) fn expected(store: &Store, set: &SetName, payer: &Payer) -> Result<Taken, Refusal> {
    let name = ObjectName {
        namespace: set.namespace.clone(),
        name: set.service.clone(),
    };
    let ports = store.services.get(&name).into_iter().flat_map(|service| &service.ports);
    let endpoints: usize = ports
        .filter(|port| port.port == set.port)
        .map(|port| count(store, &name, port))
        .sum();
    payer.take(endpoints * Candidates::EACH + depending(endpoints))
}

/// How many endpoints all slices together have that have the port.
pub(super) fn count(store: &Store, service: &ObjectName, port: &ServicePort) -> usize {
    let slices = store.slices_of(service);
    let in_slice = slices.map(|slice| {
        let ports = slice.ports.iter().filter(|p| p.name == port.name);
        ports.count() * slice.endpoints.len()
    });
    in_slice.sum()
}

/// Whether a pod behind the port has the port that is called in its own annotation.
pub(super) fn any_pod_says_opaque(
    store: &Store,
    deps: &mut Deps,
    name: &ObjectName,
    service: &Service,
    port: &ServicePort,
) -> bool {
    let says = |pod: &Pod, number| pod.opaque_ports.as_ref().is_some_and(|ports| ports.contains(number));
    // By its selector, and not by its endpoints: those come and go, and with each the routes would be made again.
    if !service.selector.is_empty() {
        deps.insert(Dep::OpaquePods(name.namespace.clone()));
        let mut pods = store.opaque_pods(&name.namespace).filter(|pod| service.selects(pod));
        return pods.any(|pod| pod.port_behind(port).is_some_and(|number| says(pod, number)));
    }
    deps.insert(Dep::Slices(name.clone()));
    of_port(store, name, port).any(|(endpoint, number)| match owner(store, deps, endpoint) {
        Owner::Pod(_, pod) => says(pod, number),
        Owner::Nobody | Owner::Unknown => false,
    })
}

/// Who answers at a pod's port; "" where no sidecar does.
pub(super) fn identity(store: &Store, name: &ObjectName, pod: &Pod, port: u16) -> String {
    if !pod.in_mesh || pod.skip_inbound.contains(port) || SIDECAR_PORTS.contains(&port) {
        return String::new();
    }
    SpiffeId::new(&store.trust_domain, &name.namespace, &pod.service_account)
        .map(|id| id.to_string())
        .unwrap_or_default()
}

/// All endpoints of all slices that have the port, by its name, with the number that it has in that slice.
fn of_port<'a>(
    store: &'a Store,
    service: &'a ObjectName,
    port: &'a ServicePort,
) -> impl Iterator<Item = (&'a SliceEndpoint, u16)> {
    store.slices_of(service).flat_map(move |slice| {
        let numbers = slice.ports.iter().filter(|p| p.name == port.name).map(move |p| {
            // A slice's port without a number is every port, and then the Service says which one is meant.
            p.port.unwrap_or(match port.target {
                TargetPort::Number(number) => number,
                TargetPort::Name(_) => port.port,
            })
        });
        numbers.flat_map(|number| slice.endpoints.iter().map(move |endpoint| (endpoint, number)))
    })
}

/// `None`: it is left out until its pod is known. Called now, it would be called in plaintext.
fn candidate(store: &Store, deps: &mut Deps, endpoint: &SliceEndpoint, port: u16) -> Option<Candidate> {
    let (identity, pod) = match owner(store, deps, endpoint) {
        Owner::Pod(name, pod) => (identity(store, name, pod, port), name.name.to_string()),
        Owner::Nobody => (String::new(), String::new()),
        Owner::Unknown => return None,
    };
    let told = proto::Endpoint {
        address: SocketAddr::new(endpoint.address, port).to_string(),
        identity,
        zone: endpoint.zone.as_deref().unwrap_or_default().to_owned(),
        pod,
        remote: false,
    };
    Some(Candidate {
        endpoint: told.into(),
        ready: endpoint.ready,
        node: endpoint.node.clone(),
        for_nodes: endpoint.for_nodes.clone(),
        for_zones: endpoint.for_zones.clone(),
    })
}

/// The pod that the slice names, or else the one that has the address: a slice that somebody wrote by hand.
fn owner<'a>(store: &'a Store, deps: &mut Deps, endpoint: &SliceEndpoint) -> Owner<'a> {
    let address = endpoint.address;
    let Some(name) = &endpoint.pod else {
        deps.insert(Dep::Ip(address));
        return match store.pod_at(address) {
            Some((name, pod)) => Owner::Pod(name, pod),
            None if store.pods_at(address).next().is_some() => Owner::Unknown,
            None => Owner::Nobody,
        };
    };
    deps.insert(Dep::Pod(name.clone()));
    let Some((name, pod)) = store.pods.get_key_value(name) else {
        return Owner::Unknown;
    };
    // Nothing of it answers any more, its sidecar neither: whoever gets the address next would be called in plaintext.
    if pod.ended {
        return Owner::Unknown;
    }
    if pod.ips.contains(&address) {
        return Owner::Pod(name, pod);
    }
    // It does not say yet that it has the address, or it shares its node's. With a sidecar, its certificate will show that it
    // is the one. Without one, whoever has the address would be called in its place.
    deps.insert(Dep::Ip(address));
    match pod.in_mesh || store.pods_at(address).next().is_none() {
        true => Owner::Pod(name, pod),
        false => Owner::Unknown,
    }
}
