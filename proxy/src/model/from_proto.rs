//! Discovery's messages as the request path's model. The conversion is total: what is not understood is passed over where
//! that changes no decision, and otherwise matches nothing, so that a newer controller, or a mistake, never makes a
//! decision stricter or looser than it was meant. The rules of requests are read beside their types (`rules`, `filters`).

use std::sync::Arc;

use http::{HeaderName, Method};
use ipnet::IpNet;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::{backend, string_match, target};
use outrigger_api::pattern::{self, Pattern};

use super::{
    Backend, BackendTls, ByteRoute, Endpoint, Endpoints, Filters, HostnameMatch, PathMatch, Protocol, Route,
    RouteMatch, RouteRules, Service, ServiceName, Sessions, Target, ValueMatch, WeightedBackend, WorkloadInfo,
};

/// Equal to no path and no host name of a request: both are without NUL.
const NEVER: &str = "\0";

/// What is behind an address.
pub fn target(message: &proto::Target) -> Target {
    match &message.kind {
        None => Target::External,
        Some(target::Kind::Service(message)) => Target::Service(Arc::new(service(message))),
        Some(target::Kind::Pod(message)) => Target::Service(Arc::new(pod(message))),
    }
}

/// What the controller knows of this pod.
pub fn workload(message: &proto::Workload) -> WorkloadInfo {
    let port = |port: u32| u16::try_from(port).ok().filter(|&port| port > 0);
    WorkloadInfo {
        protocols: message
            .protocols
            .iter()
            .filter_map(|(&number, &kind)| Some((port(number)?, protocol(kind))))
            .collect(),
        opaque_ports: message.opaque_ports.iter().filter_map(|&number| port(number)).collect(),
        cluster_networks: networks(&message.cluster_networks),
    }
}

/// All of them, or none: what is in a network that cannot be read must not be taken for outside.
fn networks(networks: &[String]) -> Vec<IpNet> {
    let read: Result<_, _> = networks.iter().map(|network| network.parse()).collect();
    read.unwrap_or_default()
}

/// A Service with its routes, backends and policies.
pub fn service(message: &proto::Service) -> Service {
    let name = service_name(message.r#ref.as_ref());
    let mut patterns = pattern::Budget::default();
    let mut outer = RouteRules::from_proto(
        &RouteRules::default(),
        message.policy.as_ref(),
        Filters::default(),
        &mut patterns,
    );
    // Each rule has sessions of its own, by whichever policy (GEP-1619).
    let sessions = |policy: Option<&proto::Policy>, rule: &str| {
        let said = [policy, message.policy.as_ref()].into_iter().flatten();
        let said = said.filter_map(|policy| policy.session_persistence.as_ref()).next();
        Sessions::from_proto(said, &name, rule)
    };
    outer.request.sessions = sessions(None, "");
    let mut backends: Vec<_> = message.backends.iter().map(|b| Arc::new(backend(b))).collect();
    if backends.is_empty() {
        backends.push(Arc::new(Backend {
            name: name.clone(),
            endpoints: Endpoints::Known(Vec::new()),
            client_affinity: false,
            tls: None,
        }));
    }
    // Indices are those of the message: the one put in above is none of them.
    let indexed = message.backends.len();
    Service {
        routes: message
            .routes
            .iter()
            .map(|r| {
                let mut route = route(r, indexed, &outer, &mut patterns);
                route.rules.request.sessions = sessions(r.policy.as_ref(), &route.name);
                route
            })
            .collect(),
        byte_routes: message
            .byte_routes
            .iter()
            .map(|r| ByteRoute::from_proto(r, |index| self::indexed(indexed, index)))
            .collect(),
        protocol: protocol(message.protocol),
        rules: Arc::new(outer),
        name,
        backends,
    }
}

fn protocol(number: i32) -> Protocol {
    match proto::Protocol::try_from(number) {
        Ok(proto::Protocol::Http1) => Protocol::Http1,
        Ok(proto::Protocol::Http2) => Protocol::Http2,
        Ok(proto::Protocol::Tls) => Protocol::Tls,
        Ok(proto::Protocol::Opaque) => Protocol::Opaque,
        Ok(proto::Protocol::Unspecified) | Err(_) => Protocol::Detect,
    }
}

fn service_name(message: Option<&proto::ServiceRef>) -> ServiceName {
    match message {
        Some(message) => ServiceName {
            namespace: message.namespace.as_str().into(),
            name: message.name.as_str().into(),
            port: u16::try_from(message.port).unwrap_or(0),
        },
        // One name for all: it is a label of metrics.
        None => ServiceName {
            namespace: "".into(),
            name: "unknown".into(),
            port: 0,
        },
    }
}

fn pod(message: &proto::Pod) -> Service {
    let mut name = service_name(message.service.as_ref());
    let endpoint = message.endpoint.as_ref().and_then(endpoint);
    if let (None, Some(endpoint)) = (&message.service, &endpoint) {
        name.port = endpoint.address.port();
    }
    Service {
        protocol: protocol(message.protocol),
        routes: Arc::default(),
        byte_routes: Arc::default(),
        backends: vec![Arc::new(Backend {
            name: name.clone(),
            endpoints: Endpoints::Known(endpoint.into_iter().collect()),
            client_affinity: false,
            tls: None,
        })],
        rules: Arc::new(RouteRules::from_proto(
            &RouteRules::default(),
            message.policy.as_ref(),
            Filters::default(),
            &mut pattern::Budget::default(),
        )),
        name,
    }
}

fn backend(message: &proto::Backend) -> Backend {
    let endpoints = match &message.kind {
        Some(backend::Kind::Endpoints(list)) => Endpoints::Known(endpoints(&list.endpoints)),
        Some(backend::Kind::Dns(name)) => dns(name),
        // What is to be called by TLS is not called at all where nothing says how.
        Some(backend::Kind::SecuredEndpoints(list)) if message.tls.is_some() => {
            Endpoints::Known(endpoints(&list.endpoints))
        }
        Some(backend::Kind::SecuredDns(name)) if message.tls.is_some() => dns(name),
        Some(backend::Kind::SecuredEndpoints(_) | backend::Kind::SecuredDns(_)) => Endpoints::Known(Vec::new()),
        Some(backend::Kind::NoSuchPort(other)) => Endpoints::NoSuchPort(
            other
                .ports
                .iter()
                .filter_map(|port| u16::try_from(*port).ok())
                .collect(),
        ),
        // They come by themselves.
        Some(backend::Kind::EndpointSet(_)) => Endpoints::Known(Vec::new()),
        None => Endpoints::Known(Vec::new()),
    };
    Backend {
        name: service_name(message.r#ref.as_ref()),
        endpoints,
        client_affinity: message.client_affinity,
        tls: message.tls.as_ref().map(BackendTls::from_proto),
    }
}

fn dns(name: &proto::DnsName) -> Endpoints {
    match u16::try_from(name.port) {
        Ok(port) if port > 0 && !name.host.is_empty() => Endpoints::Dns {
            host: name.host.as_str().into(),
            port,
        },
        _ => Endpoints::Known(Vec::new()),
    }
}

/// Those that can be read.
pub(crate) fn endpoints(messages: &[proto::Endpoint]) -> Vec<Arc<Endpoint>> {
    messages.iter().filter_map(endpoint).collect()
}

/// An endpoint whose identity cannot be read is none: without an identity it would be called in plaintext.
fn endpoint(message: &proto::Endpoint) -> Option<Arc<Endpoint>> {
    let address = message.address.parse();
    let identity = match message.identity.as_str() {
        "" => Ok(None),
        id => id.parse().map(Some),
    };
    let text = |text: &str| (!text.is_empty()).then(|| text.into());
    match (address, identity) {
        (Ok(address), Ok(identity)) => Some(Arc::new(Endpoint {
            address,
            identity,
            zone: text(&message.zone),
            pod: text(&message.pod),
            remote: message.remote,
        })),
        _ => {
            tracing::warn!(
                address = message.address,
                identity = message.identity,
                pod = message.pod,
                "leaving out an endpoint that cannot be read"
            );
            None
        }
    }
}

fn route(message: &proto::Route, backends: usize, outer: &RouteRules, patterns: &mut pattern::Budget) -> Route {
    let matches = message.matches.iter().filter_map(|m| route_match(m, patterns));
    let mut matches: Vec<_> = matches.collect();
    let left_out = message.matches.len() - matches.len();
    if left_out > 0 {
        tracing::warn!(
            route = message.name,
            "{left_out} matches cannot be understood, or their patterns are too large or too many: they match nothing"
        );
    }
    if matches.is_empty() && !message.matches.is_empty() {
        // No match at all would match everything.
        matches.push(RouteMatch {
            path: Some(PathMatch::Exact(NEVER.to_owned())),
            ..RouteMatch::default()
        });
    }
    let filters = |messages: &[proto::Filter]| {
        let filters = Filters::from_proto(messages, |index| indexed(backends, index));
        if filters.is_none() {
            tracing::warn!(
                route = message.name,
                "a filter cannot be understood, and the requests that it is for are answered 500; is this sidecar older \
                 than the controller? {messages:?}"
            );
        }
        filters
    };
    // Gateway API, HTTPRouteFilter: a filter must not be skipped; the requests that it is for are answered with an error.
    // So the rule has no backends then, or the share of one backend goes to none.
    let of_rule = filters(&message.filters);
    let weighted = |b: &proto::WeightedBackend| {
        // A request is asked about once, before it is known where it goes: such a filter of a backend is none that could be carried out.
        let of_backend = filters(&b.filters).filter(|filters| filters.external_auth.is_none());
        WeightedBackend {
            backend: of_backend.as_ref().and_then(|_| indexed(backends, b.backend)),
            weight: b.weight,
            filters: of_backend.unwrap_or_default(),
        }
    };
    let name: Arc<str> = message.name.as_str().into();
    let backends = match &of_rule {
        Some(_) => message.backends.iter().map(weighted).collect(),
        None => Vec::new(),
    };
    let mut rules = RouteRules::from_proto(outer, message.policy.as_ref(), of_rule.unwrap_or_default(), patterns);
    if message.policy.as_ref().is_some_and(|policy| policy.ejection.is_some()) {
        rules.attempt.balancing.count_apart(&name);
    }
    let limits = message.policy.as_ref().and_then(|policy| policy.limits.as_ref());
    if limits.is_some_and(|limits| limits.max_requests.is_some())
        && let Some(limits) = &mut rules.attempt.limits
    {
        Arc::make_mut(limits).counters = Some(Arc::clone(&name));
    }
    Route {
        name,
        hostnames: message
            .hostnames
            .iter()
            .map(|name| HostnameMatch::parse(name))
            .collect(),
        matches,
        backends,
        rules,
    }
}

/// One of so many.
fn indexed(backends: usize, index: u32) -> Option<usize> {
    usize::try_from(index).ok().filter(|&index| index < backends)
}

/// `None`: there is something in it that is not understood, and it matches nothing.
pub(super) fn route_match(message: &proto::Match, patterns: &mut pattern::Budget) -> Option<RouteMatch> {
    let path = match &message.path {
        None => None,
        Some(path) => Some(match path.kind.as_ref()? {
            string_match::Kind::Exact(path) => PathMatch::Exact(path.clone()),
            string_match::Kind::PathPrefix(path) => PathMatch::Prefix(path.trim_end_matches('/').to_owned()),
            string_match::Kind::Regex(pattern) => PathMatch::Regex(compiled(pattern, patterns)?),
        }),
    };
    let method = match message.method.as_str() {
        "" => None,
        method => Some(Method::from_bytes(method.as_bytes()).ok()?),
    };
    let headers = message.headers.iter().map(|header| {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        Some((name, value_match(header, patterns)?))
    });
    let headers = headers.collect::<Option<_>>()?;
    let query = message.query.iter();
    let query = query.map(|q| Some((q.name.clone(), value_match(q, patterns)?)));
    Some(RouteMatch {
        path,
        method,
        headers,
        query: query.collect::<Option<_>>()?,
    })
}

fn value_match(message: &proto::NamedMatch, patterns: &mut pattern::Budget) -> Option<ValueMatch> {
    match message.value.as_ref()?.kind.as_ref()? {
        string_match::Kind::Exact(value) => Some(ValueMatch::Exact(value.clone())),
        string_match::Kind::Regex(pattern) => Some(ValueMatch::Regex(compiled(pattern, patterns)?)),
        string_match::Kind::PathPrefix(_) => None,
    }
}

/// `None`: it cannot be used, or there is no budget for it, and it matches nothing.
fn compiled(pattern: &str, patterns: &mut pattern::Budget) -> Option<Pattern> {
    let compiled = patterns.compile(pattern);
    compiled
        .map_err(|why| tracing::debug!(pattern, %why, "a pattern matches nothing"))
        .ok()
}
