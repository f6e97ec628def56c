//! What is behind an address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::discovery as proto;
use outrigger_api::discovery::Protocol;
use outrigger_api::{MAX_DISCOVERY_MESSAGE, ports};
use prost::Message;

use super::{backend_tls, endpoints, protocol, routing, traffic};
use crate::objects::policy::PolicyKind;
use crate::objects::route::{BackendRef, Route, RouteFilter, Rule};
use crate::objects::{ObjectName, Pod, Service, ServicePort};
use crate::room::{Payer, Refusal, Room, Taken, depending};
use crate::split::{EndpointViews, Routes, SetName};
use crate::store::{Dep, Deps, Store};
use crate::topology::{Place, TargetViews, listed};

/// An index that no backend has: the share of an invalid backend is answered 500.
const INVALID_BACKEND: u32 = u32::MAX;
/// Ports that are told instead of one that a Service does not have. A Service may have some ten thousand, and there is an answer for
/// each of the others that somebody asks for.
const MAX_PORTS_TOLD: usize = 64;

/// What is behind an address, for clients in `consumer`.
pub(crate) fn routes(
    store: &Store,
    room: &Room,
    (address, consumer): &(SocketAddr, Arc<str>),
    deps: &mut Deps,
) -> Routes {
    match parts(store, room, *address, consumer, deps) {
        Ok(parts) => {
            let sets = parts.sets.into_iter().map(|(_, name)| name).collect();
            let routes = Routes::new(*address, parts.target, sets);
            drop(parts.expected);
            routes.paid(&parts.payer, deps.len())
        }
        Err(refusal) => Routes::refused(refusal),
    }
}

/// The endpoints of one backend.
pub(crate) fn endpoints(store: &Store, room: &Room, name: &SetName, deps: &mut Deps) -> EndpointViews {
    let payer = room.payer(&name.namespace);
    match endpoints::expected(store, name, &payer) {
        Ok(expected) => {
            let candidates = endpoints::candidates(store, deps, name);
            drop(expected);
            EndpointViews::new(name.clone(), candidates, payer, deps.len())
        }
        Err(refusal) => EndpointViews::refused(name.clone(), refusal),
    }
}

/// Both together, for streams of sidecars of the version before the session.
pub(crate) fn target(
    store: &Store,
    room: &Room,
    (address, consumer): &(SocketAddr, Arc<str>),
    deps: &mut Deps,
) -> TargetViews {
    let whole = parts(store, room, *address, consumer, deps).and_then(|parts| with_endpoints(store, parts, deps));
    whole.unwrap_or_else(TargetViews::refused)
}

fn with_endpoints(store: &Store, mut parts: Parts, deps: &mut Deps) -> Result<TargetViews, Refusal> {
    let mut expected = vec![parts.expected];
    let mut by_place = Vec::new();
    if let Some(proto::target::Kind::Service(service)) = &mut parts.target.kind {
        for (index, name) in parts.sets {
            expected.push(endpoints::expected(store, &name, &parts.payer)?);
            let candidates = endpoints::candidates(store, deps, &name).for_older();
            let mut endpoints = proto::Endpoints::default();
            if candidates.is_same_everywhere() {
                endpoints = listed(candidates.of(&Place::default()));
            } else {
                by_place.push((index, candidates));
            }
            service.backends[index].kind = Some(proto::backend::Kind::Endpoints(endpoints));
        }
    }
    drop(expected);
    Ok(TargetViews::new(&parts.target, by_place, parts.payer, deps.len()))
}

/// What is behind an address without its endpoints.
struct Parts {
    target: proto::Target,
    /// The sets that it names, by the index of the backend.
    sets: Vec<(usize, SetName)>,
    /// The namespace that makes it large: where clients of another one have routes or policies of their own for it, theirs.
    payer: Payer,
    /// Until it is known what it takes.
    expected: Taken,
}

fn parts(
    store: &Store,
    room: &Room,
    address: SocketAddr,
    consumer: &Arc<str>,
    deps: &mut Deps,
) -> Result<Parts, Refusal> {
    deps.insert(Dep::Ip(address.ip()));
    let mut build = Build {
        store,
        callers: consumer,
        payer: Arc::clone(consumer),
        deps,
    };
    let mut sets = Vec::new();
    let mut expected = Taken::default();
    let kind = if let Some((name, service)) = store.service_at(address.ip()) {
        build.payer = Arc::clone(&name.namespace);
        let mut backends = Backends::new(address.ip().is_ipv6());
        let service = match service.ports.iter().find(|p| p.port == address.port()) {
            Some(port) => {
                let (told, charged) = build.service(room, name, service, port, &mut backends)?;
                expected = charged;
                if backends.certificates > MAX_DISCOVERY_MESSAGE {
                    return Err(Refusal::TooLarge);
                }
                told
            }
            None => build.no_such_port(name, address.port(), &mut backends),
        };
        sets = backends.sets;
        Some(proto::target::Kind::Service(proto::Service {
            backends: backends.list,
            ..service
        }))
    } else {
        store.pod_at(address.ip()).map(|(name, pod)| {
            build.payer = Arc::clone(&name.namespace);
            build.pod(name, pod, address)
        })
    };
    Ok(Parts {
        target: proto::Target { kind },
        sets,
        payer: room.payer(&build.payer),
        expected,
    })
}

struct Build<'a> {
    store: &'a Store,
    /// The namespace of the clients.
    callers: &'a Arc<str>,
    /// See [`Parts::payer`].
    payer: Arc<str>,
    deps: &'a mut Deps,
}

impl Build<'_> {
    /// Together with what is charged for it until it is known how large it is.
    fn service(
        &mut self,
        room: &Room,
        name: &ObjectName,
        service: &Service,
        port: &ServicePort,
        backends: &mut Backends,
    ) -> Result<(proto::Service, Taken), Refusal> {
        self.depend_on_service(name);
        self.deps.insert(Dep::Routes(name.clone()));
        backends.index(self, name, port.port);
        let mut protocol = protocol::of_port(self.store, name, service, port);
        let ask_pods = protocol == Protocol::Unspecified;
        let routes = routing::routes_for(self.store, name, port, self.callers);
        if routes.first().is_some_and(|route| route.is_consumer_route_of(name)) {
            self.payer = Arc::clone(self.callers);
        }
        let mut expected: usize = routes.iter().map(|route| route.size()).sum();
        if expected > MAX_DISCOVERY_MESSAGE {
            return Err(Refusal::TooLarge);
        }
        if ask_pods && service.selector.is_empty() {
            expected += depending(endpoints::count(self.store, name, port));
        }
        let expected = room.payer(&self.payer).take(expected)?;
        let over = routes
            .first()
            .map(|first| routing::over_budget(self.store, name, first));
        let of_bytes = routes.first().and_then(|route| route.kind.protocol());
        let mut left = MAX_DISCOVERY_MESSAGE;
        let (mut told, mut byte_routes) = (Vec::new(), Vec::new());
        if let Some(declared) = of_bytes {
            protocol = declared;
            byte_routes = routing::of_bytes(&routes)
                .map(|(route, rule)| self.byte_route(route, rule, backends))
                .collect();
        }
        let rules = match of_bytes {
            Some(_) => Vec::new(),
            None => routing::in_order(&routes, &over.unwrap_or_default()),
        };
        // What the server speaks; what the app speaks is seen.
        if protocol == Protocol::Tls && of_bytes.is_none() && self.tls(name, &port.name).is_some() {
            protocol = Protocol::Unspecified;
        }
        let mut policy = self.policy(name, &port.name);
        self.name_backends(policy.as_mut(), backends);
        let keeps_sessions = policy
            .as_ref()
            .is_some_and(|policy| policy.session_persistence.is_some());
        for (route, rule, matches) in rules {
            let mut rule = self.rule(route, rule, matches, backends, keeps_sessions);
            rule.policy = self.with_key(rule.policy, name);
            self.name_backends(rule.policy.as_mut(), backends);
            // A rule may be there in many parts, and each has all its filters.
            left = left.checked_sub(rule.encoded_len()).ok_or(Refusal::TooLarge)?;
            told.push(rule);
        }
        if ask_pods && of_bytes.is_none() && endpoints::any_pod_says_opaque(self.store, self.deps, name, service, port)
        {
            protocol = Protocol::Opaque;
        }
        let service = proto::Service {
            r#ref: Some(service_ref(name, port.port)),
            protocol: protocol.into(),
            routes: told,
            byte_routes,
            backends: Vec::new(), // they are in `backends`
            policy: self.with_key(policy, name),
        };
        Ok((service, expected))
    }

    /// A port that the Service does not have. The sidecar says so to whoever calls it, where else the kernel would reset the connection.
    fn no_such_port(&mut self, name: &ObjectName, port: u16, backends: &mut Backends) -> proto::Service {
        self.depend_on_service(name);
        backends.index(self, name, port);
        proto::Service {
            r#ref: Some(service_ref(name, port)),
            policy: self.policy(name, ""),
            ..proto::Service::default()
        }
    }

    fn rule(
        &mut self,
        route: &Route,
        rule: &Rule,
        matches: Vec<proto::Match>,
        backends: &mut Backends,
        keeps_sessions: bool,
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
        // A session stays at a backend that gets no others any more (GEP-1619, "Traffic Splitting").
        let own = { answer.policy.as_ref() }.is_some_and(|policy| policy.session_persistence.is_some());
        let keeps_sessions = keeps_sessions || own;
        let weighted = rule.backends.iter().filter(|b| b.weight > 0 || keeps_sessions);
        answer.backends = weighted
            .map(|weighted| proto::WeightedBackend {
                backend: self.backend(&weighted.backend, backends),
                weight: weighted.weight,
                filters: self.filters(&weighted.filters, backends),
            })
            .collect();
        answer
    }

    fn byte_route(&mut self, route: &Route, rule: &Rule, backends: &mut Backends) -> proto::ByteRoute {
        let weighted = rule.backends.iter().filter(|b| b.weight > 0);
        proto::ByteRoute {
            name: format!("{}/{}", route.name, rule.index),
            hostnames: route.hostnames.clone(),
            backends: weighted
                .map(|weighted| proto::WeightedBackend {
                    backend: self.backend(&weighted.backend, backends),
                    weight: weighted.weight,
                    filters: Vec::new(),
                })
                .collect(),
        }
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
                // One that leads nowhere stays: without it the requests would be let through.
                RouteFilter::ExternalAuth { backend, auth } => proto::filter::Kind::ExternalAuth(proto::ExternalAuth {
                    backend: self.backend(backend, backends),
                    ..auth.clone()
                }),
            };
            Some(proto::Filter { kind: Some(kind) })
        };
        filters.iter().filter_map(filter).collect()
    }

    fn backend(&mut self, backend: &BackendRef, backends: &mut Backends) -> u32 {
        match routing::resolve(self.store, backend) {
            Ok((name, port)) => backends.index(self, &name, port),
            Err(_) => INVALID_BACKEND,
        }
    }

    fn pod(&mut self, name: &ObjectName, pod: &Pod, address: SocketAddr) -> proto::target::Kind {
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
        let opaque = protocol::opaque_ports(self.store, name, pod);
        let mut said = owners
            .iter()
            .map(|(name, service, port)| protocol::of_port(self.store, name, service, port));
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
        let told = proto::Pod {
            protocol: protocol.into(),
            endpoint: Some(proto::Endpoint {
                address: address.to_string(),
                identity: endpoints::identity(self.store, name, pod, address.port()),
                zone: String::new(),
                remote: false,
                pod: name.name.to_string(),
            }),
            service: one_service.map(|(service, _, port)| service_ref(service, port.port)),
            policy: match one_service {
                Some((service, _, port)) => self.policy(service, &port.name),
                None => traffic::of_namespace(self.store, &name.namespace),
            },
        };
        // What one of its Services says of the port is so: in plaintext it would be called without that.
        let mut tls = owners
            .iter()
            .filter_map(|(service, _, port)| self.tls(service, &port.name));
        match tls.next() {
            Some(tls) if told.endpoint.as_ref().is_some_and(|e| e.identity.is_empty()) => {
                proto::target::Kind::Service(secured(told, tls))
            }
            _ => proto::target::Kind::Pod(told),
        }
    }

    /// How endpoints outside of the mesh are called at a port of a Service.
    fn tls(&mut self, service: &ObjectName, port: &str) -> Option<proto::BackendTls> {
        backend_tls::of_port(self.store, self.deps, service, port)
    }

    /// How a port of a Service is called by these clients.
    fn policy(&mut self, service: &ObjectName, port: &str) -> Option<proto::Policy> {
        if traffic::callers_say(self.store, service, port, self.callers) {
            self.payer = Arc::clone(self.callers);
        }
        traffic::of_service(self.store, service, port, self.callers)
    }

    /// The policy with the Service's key, where sessions are kept.
    fn with_key(&mut self, mut policy: Option<proto::Policy>, service: &ObjectName) -> Option<proto::Policy> {
        if let Some(sessions) = policy.as_mut().and_then(|policy| policy.session_persistence.as_mut()) {
            self.deps.insert(Dep::SessionSecret);
            let secret = self.store.session_secret.as_ref();
            let key = secret.and_then(|secret| secret.key_of(&service.namespace, &service.name));
            sessions.key = key.map(Into::into).unwrap_or_default();
        }
        policy
    }

    /// Who is asked where the Service cannot answer: each is a backend of it.
    fn name_backends(&mut self, policy: Option<&mut proto::Policy>, backends: &mut Backends) {
        let fallback = policy.and_then(|policy| policy.fallback.as_mut());
        for asked in fallback.into_iter().flat_map(|fallback| &mut fallback.backends) {
            let backend = traffic::fallback_ref(asked);
            // It may come later.
            self.deps.insert(Dep::Service(backend.name.clone()));
            asked.backend = Some(self.backend(&backend, backends)).filter(|index| *index != INVALID_BACKEND);
        }
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
            self.callers.clone(),
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
    /// Bytes of what they say of TLS.
    certificates: usize,
}

impl Backends {
    fn new(ipv6: bool) -> Self {
        Self {
            ipv6,
            list: Vec::new(),
            by_name: BTreeMap::new(),
            sets: Vec::new(),
            certificates: 0,
        }
    }

    fn index(&mut self, build: &mut Build<'_>, name: &ObjectName, port: u16) -> u32 {
        if let Some(index) = self.by_name.get(&(name.clone(), port)) {
            return *index;
        }
        build.depend_on_policies(name);
        let service = build.store.services.get(name);
        let named = service.and_then(|service| service.ports.iter().find(|p| p.port == port));
        let port_name = named.map_or("", |port| &port.name);
        // Beyond what a message holds, nothing of it is told.
        let tls = match self.certificates > MAX_DISCOVERY_MESSAGE {
            true => None,
            false => build.tls(name, port_name),
        };
        self.certificates += tls.as_ref().map_or(0, Message::encoded_len);
        let kind = match service.and_then(|service| service.external_name.as_ref()) {
            // The target of a CNAME: a whole name, to which the search domains of whoever asks add nothing.
            Some(host) => {
                let name = proto::DnsName {
                    host: format!("{}.", host.trim_end_matches('.')),
                    port: port.into(),
                };
                match tls {
                    Some(_) => proto::backend::Kind::SecuredDns(name),
                    None => proto::backend::Kind::Dns(name),
                }
            }
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
            policy: build.policy(name, port_name),
            client_affinity: service.is_some_and(|service| service.client_affinity),
            tls,
        });
        self.by_name.insert((name.clone(), port), index);
        index
    }
}

/// A pod's own address, as a Service with this endpoint alone: an older sidecar, which would call it in plaintext, knows no endpoint.
fn secured(pod: proto::Pod, tls: proto::BackendTls) -> proto::Service {
    let endpoints = pod.endpoint.into_iter().collect();
    proto::Service {
        r#ref: pod.service.clone(),
        protocol: if pod.protocol == i32::from(Protocol::Tls) {
            Protocol::Unspecified.into()
        } else {
            pod.protocol
        },
        backends: vec![proto::Backend {
            r#ref: pod.service,
            kind: Some(proto::backend::Kind::SecuredEndpoints(proto::Endpoints { endpoints })),
            tls: Some(tls),
            ..proto::Backend::default()
        }],
        policy: pod.policy,
        ..proto::Service::default()
    }
}

fn service_ref(name: &ObjectName, port: u16) -> proto::ServiceRef {
    proto::ServiceRef {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        port: port.into(),
    }
}
