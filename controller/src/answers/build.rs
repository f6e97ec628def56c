//! What is behind an address, and what is known of a pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::discovery as proto;
use outrigger_api::discovery::Protocol;
use outrigger_api::ports;

use super::{endpoints, routing, traffic};
use crate::discovery::Caller;
use crate::objects::policy::PolicyKind;
use crate::objects::route::{BackendRef, Route, RouteFilter, Rule};
use crate::objects::{ObjectName, Pod, PortSet, Service, ServicePort, TargetPort};
use crate::split::{EndpointViews, Routes, SetName};
use crate::store::{Dep, Deps, Store};
use crate::topology::{Place, TargetViews};

/// An index that no backend has: the share of an invalid backend is answered 500.
const INVALID_BACKEND: u32 = u32::MAX;
/// Ports that are told instead of one that a Service does not have. A Service may have some ten thousand, and there is an answer for
/// each of the others that somebody asks for.
const MAX_PORTS_TOLD: usize = 64;

/// What is behind an address, for clients in `consumer`.
pub(crate) fn routes(store: &Store, (address, consumer): &(SocketAddr, Arc<str>), deps: &mut Deps) -> Routes {
    let (target, sets) = parts(store, *address, consumer, deps);
    Routes::new(*address, target, sets.into_iter().map(|(_, name)| name).collect())
}

/// The endpoints of one backend.
pub(crate) fn endpoints(store: &Store, name: &SetName, deps: &mut Deps) -> EndpointViews {
    EndpointViews::new(name.clone(), endpoints::candidates(store, deps, name))
}

/// Both together, for streams of sidecars of the version before the session.
pub(crate) fn target(store: &Store, (address, consumer): &(SocketAddr, Arc<str>), deps: &mut Deps) -> TargetViews {
    let (mut target, sets) = parts(store, *address, consumer, deps);
    let mut by_place = Vec::new();
    if let Some(proto::target::Kind::Service(service)) = &mut target.kind {
        for (index, name) in sets {
            let candidates = endpoints::candidates(store, deps, &name);
            let mut endpoints = Vec::new();
            if candidates.is_same_everywhere() {
                endpoints = candidates.of(&Place::default());
            } else {
                by_place.push((index, candidates));
            }
            service.backends[index].kind = Some(proto::backend::Kind::Endpoints(proto::Endpoints { endpoints }));
        }
    }
    TargetViews::new(target, by_place)
}

/// What is behind an address without its endpoints, and the sets that it names, by the index of the backend.
fn parts(
    store: &Store,
    address: SocketAddr,
    consumer: &str,
    deps: &mut Deps,
) -> (proto::Target, Vec<(usize, SetName)>) {
    deps.insert(Dep::Ip(address.ip()));
    let mut build = Build {
        store,
        callers: consumer,
        deps,
    };
    let mut sets = Vec::new();
    let kind = if let Some((name, service)) = store.service_at(address.ip()) {
        let mut backends = Backends::new(address.ip().is_ipv6());
        let service = match service.ports.iter().find(|p| p.port == address.port()) {
            Some(port) => build.service(name, service, port, &mut backends),
            None => build.no_such_port(name, address.port(), &mut backends),
        };
        sets = backends.sets;
        Some(proto::target::Kind::Service(proto::Service {
            backends: backends.list,
            ..service
        }))
    } else {
        store
            .pod_at(address.ip())
            .map(|(name, pod)| proto::target::Kind::Pod(build.pod(name, pod, address)))
    };
    (proto::Target { kind }, sets)
}

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
pub(crate) fn workload(store: &Store, name: &ObjectName, deps: &mut Deps) -> proto::Workload {
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
    let build = Build {
        store,
        callers: "",
        deps,
    };
    let mut protocols = HashMap::new();
    for (service_name, service) in store.services_selecting(&name.namespace, pod) {
        for port in &service.ports {
            let protocol = build.port_protocol(service_name, service, port);
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
        cluster_networks,
    }
}

struct Build<'a> {
    store: &'a Store,
    /// The namespace of the clients.
    callers: &'a str,
    deps: &'a mut Deps,
}

impl Build<'_> {
    fn service(
        &mut self,
        name: &ObjectName,
        service: &Service,
        port: &ServicePort,
        backends: &mut Backends,
    ) -> proto::Service {
        self.depend_on_service(name);
        backends.index(self, name, port.port);
        let routes = routing::routes_for(self.store, name, port, self.callers);
        let over = routes
            .first()
            .map(|first| routing::over_budget(self.store, name, first));
        let ordered = routing::in_order(&routes, &over.unwrap_or_default());
        let routes = ordered
            .into_iter()
            .map(|(route, rule, matches)| self.rule(route, rule, matches, backends))
            .collect();
        let mut protocol = self.port_protocol(name, service, port);
        if protocol == Protocol::Unspecified && endpoints::any_pod_says_opaque(self.store, self.deps, name, port) {
            protocol = Protocol::Opaque;
        }
        proto::Service {
            r#ref: Some(service_ref(name, port.port)),
            protocol: protocol.into(),
            routes,
            backends: Vec::new(), // they are in `backends`
            policy: traffic::of_service(self.store, name, &port.name, self.callers),
        }
    }

    /// A port that the Service does not have. The sidecar says so to whoever calls it, where else the kernel would reset the connection.
    fn no_such_port(&mut self, name: &ObjectName, port: u16, backends: &mut Backends) -> proto::Service {
        backends.index(self, name, port);
        proto::Service {
            r#ref: Some(service_ref(name, port)),
            policy: traffic::of_service(self.store, name, "", self.callers),
            ..proto::Service::default()
        }
    }

    fn rule(
        &mut self,
        route: &Route,
        rule: &Rule,
        matches: Vec<proto::Match>,
        backends: &mut Backends,
    ) -> proto::Route {
        let policies = Dep::Policies(PolicyKind::Traffic, route.name.namespace.clone());
        self.deps.insert(policies);
        let mut answer = proto::Route {
            name: format!("{}/{}", route.name, rule.index),
            // A match without any condition is as good as none.
            matches: if matches.contains(&proto::Match::default()) {
                Vec::new()
            } else {
                matches
            },
            policy: traffic::of_rule(self.store, route.kind, &route.name, rule),
            ..proto::Route::default()
        };
        if rule.broken {
            return answer; // no backends: 500
        }
        answer.filters = self.filters(&rule.filters, backends);
        let weighted = rule.backends.iter().filter(|b| b.weight > 0);
        answer.backends = weighted
            .map(|weighted| proto::WeightedBackend {
                backend: self.backend(&weighted.backend, backends),
                weight: weighted.weight,
                filters: self.filters(&weighted.filters, backends),
            })
            .collect();
        answer
    }

    fn filters(&mut self, filters: &[RouteFilter], backends: &mut Backends) -> Vec<proto::Filter> {
        let filter = |filter: &RouteFilter| {
            let kind = match filter {
                RouteFilter::Plain(kind) => kind.clone(),
                RouteFilter::Mirror {
                    backend,
                    parts_per_million,
                } => {
                    // A mirror that leads nowhere mirrors nothing; the route's status says so.
                    let backend = Some(self.backend(backend, backends)).filter(|b| *b != INVALID_BACKEND)?;
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

    fn backend(&mut self, backend: &BackendRef, backends: &mut Backends) -> u32 {
        self.deps.insert(Dep::Service(backend.name.clone()));
        match routing::resolve(self.store, backend) {
            Ok((name, port)) => backends.index(self, &name, port),
            Err(_) => INVALID_BACKEND,
        }
    }

    fn pod(&mut self, name: &ObjectName, pod: &Pod, address: SocketAddr) -> proto::Pod {
        self.deps.insert(Dep::Pod(name.clone()));
        self.deps.insert(Dep::Services(name.namespace.clone()));
        self.deps.insert(Dep::Namespace(name.namespace.clone()));
        self.depend_on_policies(name);
        let mut owners = Vec::new();
        for (service_name, service) in self.store.services_selecting(&name.namespace, pod) {
            let ports = service.ports.iter();
            let ports = ports.filter(|p| pod.port_behind(p) == Some(address.port()));
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
                identity: endpoints::identity(self.store, name, pod, address.port()),
                zone: String::new(),
                pod: name.name.to_string(),
            }),
            service: one_service.map(|(service, _, port)| service_ref(service, port.port)),
            policy: match one_service {
                Some((service, _, port)) => traffic::of_service(self.store, service, &port.name, self.callers),
                None => traffic::of_namespace(self.store, &name.namespace),
            },
        }
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

    fn namespace_opaque(&self, name: &ObjectName) -> Option<&PortSet> {
        self.store.namespaces.get(&name.namespace)?.opaque_ports.as_ref()
    }

    fn depend_on_service(&mut self, name: &ObjectName) {
        self.deps.insert(Dep::Service(name.clone()));
        self.deps.insert(Dep::Namespace(name.namespace.clone()));
        self.depend_on_policies(name);
    }

    /// Those of its namespace, of the clients', and of the whole mesh.
    fn depend_on_policies(&mut self, name: &ObjectName) {
        let namespaces = [
            name.namespace.clone(),
            self.callers.into(),
            self.store.own.namespace.clone(),
        ];
        let policies = namespaces.map(|namespace| Dep::Policies(PolicyKind::Traffic, namespace));
        self.deps.extend(policies);
    }
}

/// The backends of one answer, each once.
struct Backends {
    ipv6: bool,
    list: Vec<proto::Backend>,
    by_name: BTreeMap<(ObjectName, u16), u32>,
    /// The endpoints of those that have them in the cluster, by their index.
    sets: Vec<(usize, SetName)>,
}

impl Backends {
    fn new(ipv6: bool) -> Self {
        Self {
            ipv6,
            list: Vec::new(),
            by_name: BTreeMap::new(),
            sets: Vec::new(),
        }
    }

    fn index(&mut self, build: &mut Build<'_>, name: &ObjectName, port: u16) -> u32 {
        if let Some(index) = self.by_name.get(&(name.clone(), port)) {
            return *index;
        }
        build.depend_on_service(name);
        let service = build.store.services.get(name);
        let named = service.and_then(|service| service.ports.iter().find(|p| p.port == port));
        let port_name = named.map_or("", |port| &port.name);
        let kind = match service.and_then(|service| service.external_name.as_ref()) {
            // The target of a CNAME: a whole name, to which the search domains of whoever asks add nothing.
            Some(host) => proto::backend::Kind::Dns(proto::DnsName {
                host: format!("{}.", host.trim_end_matches('.')),
                port: port.into(),
            }),
            None if service.is_some_and(|service| service.ports.iter().all(|known| known.port != port)) => {
                let ports = service.iter().flat_map(|service| &service.ports);
                let ports = ports.map(|known| known.port.into()).take(MAX_PORTS_TOLD).collect();
                proto::backend::Kind::NoSuchPort(proto::NoSuchPort { ports })
            }
            None => {
                let set = SetName {
                    namespace: name.namespace.clone(),
                    service: name.name.clone(),
                    port,
                    ipv6: self.ipv6,
                };
                let kind = proto::backend::Kind::EndpointSet(set.to_string());
                self.sets.push((self.list.len(), set));
                kind
            }
        };
        // A sidecar has no use for 2^32 backends.
        let index = u32::try_from(self.list.len()).unwrap_or(INVALID_BACKEND);
        self.list.push(proto::Backend {
            r#ref: Some(service_ref(name, port)),
            kind: Some(kind),
            policy: traffic::of_service(build.store, name, port_name, build.callers),
            client_affinity: service.is_some_and(|service| service.client_affinity),
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
