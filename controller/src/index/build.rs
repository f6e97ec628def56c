//! Answers from the store: what is behind an address, and what is known of a pod.
//!
//! Architecture Invariant: an answer depends on the store alone, and names everything it was made from.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use outrigger_api::discovery as proto;
use outrigger_api::discovery::Protocol;
use outrigger_api::ports;
use outrigger_api::spiffe::SpiffeId;

use super::objects::{ObjectName, Pod, PortSet, Service, ServicePort, SliceEndpoint, TargetPort};
use super::routing;
use super::store::{Dep, Store};
use crate::gateway::{BackendRef, Route, RouteFilter, Rule};
use crate::policy;

/// An index that no backend has: the share of an invalid backend is answered 500.
const INVALID_BACKEND: u32 = u32::MAX;
/// Ports of the sidecar itself. It does not capture them.
const SIDECAR_PORTS: [u16; 3] = [ports::OUTBOUND, ports::INBOUND, ports::ADMIN];

pub(super) type Deps = HashSet<Dep>;

/// What is behind an address, for a client in `consumer`.
pub(super) fn target(store: &Store, address: SocketAddr, consumer: &str, deps: &mut Deps) -> proto::Target {
    deps.insert(Dep::Ip(address.ip()));
    let mut build = Build { store, deps };
    let kind = if let Some((name, service)) = store.service_at(address.ip()) {
        let port = service.ports.iter().find(|p| p.port == address.port());
        port.map(|port| {
            let service = build.service(name, service, port, address.ip().is_ipv6(), consumer);
            proto::target::Kind::Service(service)
        })
    } else {
        store
            .pod_at(address.ip())
            .map(|(name, pod)| proto::target::Kind::Pod(build.pod(name, pod, address)))
    };
    proto::Target { kind }
}

/// What is known of a pod itself.
pub(super) fn workload(store: &Store, name: &ObjectName, deps: &mut Deps) -> proto::Workload {
    deps.insert(Dep::Pod(name.clone()));
    deps.insert(Dep::Services(name.namespace.clone()));
    deps.insert(Dep::Namespace(name.namespace.clone()));
    let Some(pod) = store.pods.get(name) else {
        return proto::Workload::default();
    };
    let build = Build { store, deps };
    let mut protocols = HashMap::new();
    for (service_name, service) in store.services_selecting(&name.namespace, pod) {
        for port in &service.ports {
            let protocol = build.port_protocol(service_name, service, port);
            let Some(target) = container_port(pod, port).filter(|_| protocol != Protocol::Unspecified) else {
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
    let annotated = pod.opaque_ports.as_ref().or_else(|| build.namespace_opaque(name));
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
    }
}

struct Build<'a> {
    store: &'a Store,
    deps: &'a mut Deps,
}

impl Build<'_> {
    fn service(
        &mut self,
        name: &ObjectName,
        service: &Service,
        port: &ServicePort,
        ipv6: bool,
        consumer: &str,
    ) -> proto::Service {
        self.depend_on_service(name);
        let mut backends = Backends {
            ipv6,
            list: Vec::new(),
            by_name: BTreeMap::new(),
        };
        backends.index(self, name, port.port);
        let routes = routing::routes_for(self.store, name, port, consumer);
        let ordered = routing::in_order(&routes);
        let routes = ordered
            .into_iter()
            .map(|(route, rule, matches)| self.rule(route, rule, matches, &mut backends))
            .collect();
        let mut protocol = self.port_protocol(name, service, port);
        if protocol == Protocol::Unspecified && self.any_pod_says_opaque(name, port) {
            protocol = Protocol::Opaque;
        }
        proto::Service {
            r#ref: Some(service_ref(name, port.port)),
            protocol: protocol.into(),
            routes,
            backends: backends.list,
            policy: policy::of_service(self.store, name),
        }
    }

    fn rule(
        &mut self,
        route: &Route,
        rule: &Rule,
        matches: Vec<proto::Match>,
        backends: &mut Backends,
    ) -> proto::Route {
        self.deps.insert(Dep::Policies(route.name.namespace.clone()));
        let mut answer = proto::Route {
            name: format!("{}/{}", route.name, rule.index),
            // A match without any condition is as good as none.
            matches: if matches.contains(&proto::Match::default()) {
                Vec::new()
            } else {
                matches
            },
            policy: policy::of_rule(self.store, route.kind, &route.name, &rule.policy),
            ..proto::Route::default()
        };
        if rule.broken {
            return answer; // no backends: 500
        }
        answer.filters = self.filters(route, &rule.filters, backends);
        let weighted = rule.backends.iter().filter(|b| b.weight > 0);
        answer.backends = weighted
            .map(|weighted| proto::WeightedBackend {
                backend: self.backend(route, &weighted.backend, backends),
                weight: weighted.weight,
                filters: self.filters(route, &weighted.filters, backends),
            })
            .collect();
        answer
    }

    fn filters(&mut self, route: &Route, filters: &[RouteFilter], backends: &mut Backends) -> Vec<proto::Filter> {
        let filter = |filter: &RouteFilter| {
            let kind = match filter {
                RouteFilter::Plain(kind) => kind.clone(),
                RouteFilter::Mirror {
                    backend,
                    parts_per_million,
                } => {
                    // A mirror that leads nowhere mirrors nothing; the route's status says so.
                    let backend = Some(self.backend(route, backend, backends)).filter(|b| *b != INVALID_BACKEND)?;
                    proto::filter::Kind::Mirror(proto::Mirror {
                        backend,
                        parts_per_million: *parts_per_million,
                    })
                }
            };
            Some(proto::Filter { kind: Some(kind) })
        };
        filters.iter().filter_map(filter).collect()
    }

    fn backend(&mut self, route: &Route, backend: &BackendRef, backends: &mut Backends) -> u32 {
        self.deps.insert(Dep::Service(backend.name.clone()));
        self.deps.insert(Dep::Grants(backend.name.namespace.clone()));
        match routing::resolve(self.store, route, backend) {
            Ok((name, port)) => backends.index(self, &name, port),
            Err(_) => INVALID_BACKEND,
        }
    }

    fn pod(&mut self, name: &ObjectName, pod: &Pod, address: SocketAddr) -> proto::Pod {
        self.deps.insert(Dep::Pod(name.clone()));
        self.deps.insert(Dep::Services(name.namespace.clone()));
        self.deps.insert(Dep::Namespace(name.namespace.clone()));
        self.deps.insert(Dep::Policies(name.namespace.clone()));
        let mut owners = Vec::new();
        for (service_name, service) in self.store.services_selecting(&name.namespace, pod) {
            let ports = service.ports.iter();
            let ports = ports.filter(|p| container_port(pod, p) == Some(address.port()));
            owners.extend(ports.map(|port| (service_name, service, port)));
        }
        let opaque = pod.opaque_ports.as_ref().or_else(|| self.namespace_opaque(name));
        let mut said = owners
            .iter()
            .map(|(name, service, port)| self.port_protocol(name, service, port));
        let protocol = if opaque.is_some_and(|ports| ports.contains(address.port())) {
            Protocol::Opaque
        } else if let Some(protocol) = said.find(|p| *p != Protocol::Unspecified) {
            protocol
        } else if ports::DEFAULT_OPAQUE.contains(&address.port()) {
            Protocol::Opaque
        } else {
            Protocol::Unspecified
        };
        let owner = owners.first();
        let one_service = owner.filter(|first| owners.iter().all(|other| other.0 == first.0));
        proto::Pod {
            protocol: protocol.into(),
            endpoint: Some(proto::Endpoint {
                address: address.to_string(),
                identity: self.identity(name, pod, address.port()),
                zone: String::new(),
                pod: name.name.to_string(),
            }),
            service: one_service.map(|(service, _, port)| service_ref(service, port.port)),
            policy: match one_service {
                Some((service, ..)) => policy::of_service(self.store, service),
                // The namespace's alone: no Service has the name "".
                None => policy::of_service(self.store, &ObjectName::new(&name.namespace, "")),
            },
        }
    }

    /// The ready endpoints of a Service's port, of one address family.
    fn endpoints(&mut self, name: &ObjectName, service: &Service, port: u16, ipv6: bool) -> Vec<proto::Endpoint> {
        let Some(port) = service.ports.iter().find(|p| p.port == port) else {
            return Vec::new();
        };
        let mut found: BTreeMap<SocketAddr, proto::Endpoint> = BTreeMap::new();
        let mut terminating: BTreeMap<SocketAddr, proto::Endpoint> = BTreeMap::new();
        for slice in self.store.slices_of(name) {
            for slice_port in slice.ports.iter().filter(|p| p.name == port.name) {
                let number = slice_port.port.unwrap_or(port.port);
                for endpoint in slice.endpoints.iter().filter(|e| e.ready) {
                    // With `publishNotReadyAddresses`, those that terminate are called when there is nobody else.
                    if endpoint.terminating && !service.publish_not_ready {
                        continue;
                    }
                    let into = if endpoint.terminating {
                        &mut terminating
                    } else {
                        &mut found
                    };
                    if let Some(endpoint) = self.endpoint(name, endpoint, number) {
                        into.insert(endpoint.0, endpoint.1);
                    }
                }
            }
        }
        if found.is_empty() {
            found = terminating;
        }
        // Of a dual-stack pod there are two addresses, and they are one endpoint.
        if found.keys().any(|address| address.is_ipv6() == ipv6) {
            found.retain(|address, _| address.is_ipv6() == ipv6);
        }
        found.into_values().collect()
    }

    fn endpoint(
        &mut self,
        service: &ObjectName,
        endpoint: &SliceEndpoint,
        port: u16,
    ) -> Option<(SocketAddr, proto::Endpoint)> {
        let address = SocketAddr::new(endpoint.address, port);
        let mut identity = String::new();
        if let Some(pod) = &endpoint.pod {
            let name = ObjectName {
                namespace: service.namespace.clone(),
                name: pod.clone(),
            };
            // Not known yet, or gone already. It is left out until it is known: called now, it would be called in
            // plaintext.
            let known = self.store.pods.get(&name);
            identity = known.map(|pod| self.identity(&name, pod, port)).unwrap_or_default();
            let found = known.is_some();
            self.deps.insert(Dep::Pod(name));
            found.then_some(())?;
        }
        let endpoint = proto::Endpoint {
            address: address.to_string(),
            identity,
            zone: endpoint.zone.as_deref().unwrap_or_default().to_owned(),
            pod: endpoint.pod.as_deref().unwrap_or_default().to_owned(),
        };
        Some((address, endpoint))
    }

    /// Who answers at a pod's port; "" where no sidecar does.
    fn identity(&self, name: &ObjectName, pod: &Pod, port: u16) -> String {
        if !pod.in_mesh || pod.skip_inbound.contains(port) || SIDECAR_PORTS.contains(&port) {
            return String::new();
        }
        SpiffeId::new(&self.store.trust_domain, &name.namespace, &pod.service_account)
            .map(|id| id.to_string())
            .unwrap_or_default()
    }

    /// What is spoken on a Service's port: the annotation first, then `appProtocol`, then the well-known ports.
    fn port_protocol(&self, name: &ObjectName, service: &Service, port: &ServicePort) -> Protocol {
        let opaque = service.opaque_ports.as_ref().or_else(|| self.namespace_opaque(name));
        if opaque.is_some_and(|ports| ports.contains(port.port)) {
            return Protocol::Opaque;
        }
        let target_is_opaque = matches!(port.target, TargetPort::Number(n) if ports::DEFAULT_OPAQUE.contains(&n));
        match port.protocol {
            Some(protocol) => protocol,
            None if target_is_opaque || ports::DEFAULT_OPAQUE.contains(&port.port) => Protocol::Opaque,
            None => Protocol::Unspecified,
        }
    }

    /// Whether a pod behind the port has the port that is called in its own annotation.
    fn any_pod_says_opaque(&self, name: &ObjectName, port: &ServicePort) -> bool {
        self.store.slices_of(name).any(|slice| {
            let number = slice.ports.iter().find(|p| p.name == port.name).and_then(|p| p.port);
            let mut pods = slice.endpoints.iter().filter_map(|e| e.pod.as_ref());
            number.is_some_and(|number| {
                pods.any(|pod| {
                    let name = ObjectName {
                        namespace: name.namespace.clone(),
                        name: pod.clone(),
                    };
                    let pod = self.store.pods.get(&name);
                    pod.and_then(|p| p.opaque_ports.as_ref())
                        .is_some_and(|ports| ports.contains(number))
                })
            })
        })
    }

    fn namespace_opaque(&self, name: &ObjectName) -> Option<&PortSet> {
        self.store.namespaces.get(&name.namespace)?.opaque_ports.as_ref()
    }

    fn depend_on_service(&mut self, name: &ObjectName) {
        self.deps.insert(Dep::Service(name.clone()));
        self.deps.insert(Dep::Namespace(name.namespace.clone()));
        self.deps.insert(Dep::Policies(name.namespace.clone()));
    }
}

/// The backends of one answer, each once.
struct Backends {
    ipv6: bool,
    list: Vec<proto::Backend>,
    by_name: BTreeMap<(ObjectName, u16), u32>,
}

impl Backends {
    fn index(&mut self, build: &mut Build<'_>, name: &ObjectName, port: u16) -> u32 {
        if let Some(index) = self.by_name.get(&(name.clone(), port)) {
            return *index;
        }
        build.depend_on_service(name);
        let endpoints = match build.store.services.get(name) {
            Some(service) => match &service.external_name {
                Some(host) => proto::backend::Kind::Dns(proto::DnsName {
                    host: host.to_string(),
                    port: port.into(),
                }),
                None => proto::backend::Kind::Endpoints(proto::Endpoints {
                    endpoints: build.endpoints(name, service, port, self.ipv6),
                }),
            },
            None => proto::backend::Kind::Endpoints(proto::Endpoints::default()),
        };
        // A sidecar has no use for 2^32 backends.
        let index = u32::try_from(self.list.len()).unwrap_or(INVALID_BACKEND);
        self.list.push(proto::Backend {
            r#ref: Some(service_ref(name, port)),
            kind: Some(endpoints),
            policy: policy::of_service(build.store, name),
        });
        self.by_name.insert((name.clone(), port), index);
        index
    }
}

fn service_ref(name: &ObjectName, port: u16) -> proto::ServiceRef {
    proto::ServiceRef {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        port: port.into(),
    }
}

/// The pod's port behind a Service's.
fn container_port(pod: &Pod, port: &ServicePort) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.ports.iter().find(|(n, _)| n == name).map(|(_, port)| *port),
    }
}
