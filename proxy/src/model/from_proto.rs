//! Discovery's messages as the request path's model. The conversion is total: what is not understood is passed over where
//! that changes no decision, and otherwise matches nothing, so that a newer controller, or a mistake, never makes a
//! decision stricter or looser than it was meant.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::{backend, filter, path_modifier, string_match, target};
use outrigger_api::duration;
use outrigger_api::pattern::{self, Pattern};

use super::{
    Backend, Endpoint, Endpoints, Filter, HeaderModifier, HostnameMatch, PathMatch, PathModifier, Policy, Protocol,
    Redirect, Route, RouteMatch, Service, ServiceName, Target, ValueMatch, WeightedBackend, WorkloadInfo,
};

/// Equal to no path and no host name of a request: both are without NUL.
const NEVER: &str = "\0";
/// Stands for "no limit" where a limit must be given.
const NO_CONNECT_LIMIT: Duration = Duration::from_secs(3600);
const MAX_ATTEMPTS: u32 = 10;
const MAX_BODY: u64 = 1 << 20;
const MAX_BUDGET_PER_SECOND: u32 = 10_000;

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
    let outer = policy(&Policy::default(), message.policy.as_ref());
    let mut backends: Vec<_> = message.backends.iter().map(|b| Arc::new(backend(b))).collect();
    if backends.is_empty() {
        backends.push(Arc::new(Backend {
            name: name.clone(),
            endpoints: Endpoints::Known(Vec::new()),
            client_affinity: false,
        }));
    }
    let mut patterns = pattern::Budget::default();
    // Indices are those of the message: the one put in above is none of them.
    let indexed = message.backends.len();
    Service {
        routes: message
            .routes
            .iter()
            .map(|r| route(r, indexed, &outer, &mut patterns))
            .collect(),
        protocol: protocol(message.protocol),
        policy: Arc::new(outer),
        name,
        backends,
    }
}

/// The outer policy with what the inner one says.
pub fn policy(outer: &Policy, inner: Option<&proto::Policy>) -> Policy {
    let mut policy = outer.clone();
    let Some(inner) = inner else {
        return policy;
    };
    let limit = |ms: u64| (ms > 0).then(|| duration::from_millis(ms));
    if let Some(ms) = inner.request_timeout_ms {
        policy.request_timeout = limit(ms);
    }
    if let Some(ms) = inner.backend_request_timeout_ms {
        policy.backend_request_timeout = limit(ms);
    }
    if let Some(ms) = inner.connect_timeout_ms {
        policy.connect_timeout = limit(ms).unwrap_or(NO_CONNECT_LIMIT);
    }
    if let Some(inner) = &inner.retry {
        retry(&mut policy.retry, inner);
    }
    policy
}

fn retry(policy: &mut super::RetryPolicy, inner: &proto::Retry) {
    let statuses = inner.statuses.iter().filter_map(|&status| {
        let status = u16::try_from(status).ok()?;
        StatusCode::from_u16(status).ok()
    });
    if inner.statuses_set {
        policy.statuses = statuses.collect();
    } else {
        for status in statuses {
            if !policy.statuses.contains(&status) {
                policy.statuses.push(status);
            }
        }
    }
    if !inner.grpc_statuses.is_empty() {
        let numbers = inner.grpc_statuses.iter();
        policy.grpc_statuses = numbers.filter_map(|&status| u16::try_from(status).ok()).collect();
    }
    if let Some(attempts) = inner.attempts {
        policy.attempts = attempts.min(MAX_ATTEMPTS);
    }
    if let Some(ms) = inner.backoff_base_ms {
        policy.backoff_base = duration::from_millis(ms);
    }
    if let Some(ms) = inner.backoff_max_ms {
        policy.backoff_max = duration::from_millis(ms);
    }
    policy.backoff_max = policy.backoff_max.max(policy.backoff_base);
    if let Some(percent) = inner.budget_percent {
        policy.budget_ratio = f64::from(percent.min(100)) / 100.0;
    }
    if let Some(number) = inner.budget_min_per_second {
        policy.budget_min_per_second = number.min(MAX_BUDGET_PER_SECOND);
    }
    if let Some(also) = inner.non_idempotent {
        policy.non_idempotent = also;
    }
    if let Some(bytes) = inner.max_body_bytes {
        // At most 1 MiB: fits every usize.
        policy.max_body_bytes = bytes.min(MAX_BODY) as usize;
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
        backends: vec![Arc::new(Backend {
            name: name.clone(),
            endpoints: Endpoints::Known(endpoint.into_iter().collect()),
            client_affinity: false,
        })],
        policy: Arc::new(policy(&Policy::default(), message.policy.as_ref())),
        name,
    }
}

fn backend(message: &proto::Backend) -> Backend {
    let endpoints = match &message.kind {
        Some(backend::Kind::Endpoints(list)) => Endpoints::Known(endpoints(&list.endpoints)),
        Some(backend::Kind::Dns(name)) => match u16::try_from(name.port) {
            Ok(port) if port > 0 && !name.host.is_empty() => Endpoints::Dns {
                host: name.host.as_str().into(),
                port,
            },
            _ => Endpoints::Known(Vec::new()),
        },
        // They come by themselves.
        Some(backend::Kind::EndpointSet(_)) => Endpoints::Known(Vec::new()),
        None => Endpoints::Known(Vec::new()),
    };
    Backend {
        name: service_name(message.r#ref.as_ref()),
        endpoints,
        client_affinity: message.client_affinity,
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

fn route(message: &proto::Route, backends: usize, outer: &Policy, patterns: &mut pattern::Budget) -> Route {
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
        let filters = self::filters(messages, backends);
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
        let of_backend = filters(&b.filters);
        WeightedBackend {
            backend: of_backend.as_ref().and_then(|_| indexed(backends, b.backend)),
            weight: b.weight,
            filters: of_backend.unwrap_or_default(),
        }
    };
    Route {
        name: message.name.as_str().into(),
        hostnames: hostnames(&message.hostnames),
        matches,
        backends: match &of_rule {
            Some(_) => message.backends.iter().map(weighted).collect(),
            None => Vec::new(),
        },
        filters: of_rule.unwrap_or_default(),
        policy: Arc::new(policy(outer, message.policy.as_ref())),
    }
}

/// One of so many.
fn indexed(backends: usize, index: u32) -> Option<usize> {
    usize::try_from(index).ok().filter(|&index| index < backends)
}

fn hostnames(names: &[String]) -> Vec<HostnameMatch> {
    let names = names.iter().map(|name| {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 => HostnameMatch::Suffix(suffix.to_owned()),
            Some(_) => HostnameMatch::Exact(NEVER.to_owned()),
            None if name.is_empty() => HostnameMatch::Exact(NEVER.to_owned()),
            None => HostnameMatch::Exact(name),
        }
    });
    names.collect()
}

/// `None`: there is something in it that is not understood, and it matches nothing.
fn route_match(message: &proto::Match, patterns: &mut pattern::Budget) -> Option<RouteMatch> {
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

/// `None`: there is a filter that is not understood.
fn filters(messages: &[proto::Filter], backends: usize) -> Option<Vec<Filter>> {
    let mut filters = Vec::with_capacity(messages.len());
    for message in messages {
        filters.push(match message.kind.as_ref()? {
            filter::Kind::RequestHeaders(m) => Filter::RequestHeaders(header_modifier(m)),
            filter::Kind::ResponseHeaders(m) => Filter::ResponseHeaders(header_modifier(m)),
            filter::Kind::Rewrite(m) => Filter::Rewrite {
                hostname: match text(&m.hostname) {
                    Some(host) => Some(HeaderValue::try_from(host).ok()?),
                    None => None,
                },
                path: path_modifier(m.path.as_ref())?,
            },
            filter::Kind::Redirect(m) => Filter::Redirect(redirect(m)?),
            filter::Kind::Mirror(m) => match indexed(backends, m.backend) {
                Some(backend) => Filter::Mirror {
                    backend,
                    parts_per_million: m.parts_per_million.min(1_000_000),
                },
                // A copy that goes nowhere changes nothing for the request.
                None => continue,
            },
        });
    }
    Some(filters)
}

fn header_modifier(message: &proto::HeaderModifier) -> HeaderModifier {
    let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
    let pairs = |headers: &[proto::Header]| {
        let pairs = headers
            .iter()
            .filter_map(|header| Some((name(&header.name)?, HeaderValue::from_str(&header.value).ok()?)));
        pairs.collect()
    };
    HeaderModifier {
        set: pairs(&message.set),
        add: pairs(&message.add),
        remove: message.remove.iter().filter_map(|header| name(header)).collect(),
    }
}

/// The outer `None`: it is of a kind that is not understood.
fn path_modifier(message: Option<&proto::PathModifier>) -> Option<Option<PathModifier>> {
    let Some(message) = message else {
        return Some(None);
    };
    Some(Some(match message.kind.as_ref()? {
        path_modifier::Kind::ReplaceFull(path) => PathModifier::ReplaceFull(path.clone()),
        path_modifier::Kind::ReplacePrefix(path) => PathModifier::ReplacePrefix(path.clone()),
    }))
}

fn redirect(message: &proto::Redirect) -> Option<Redirect> {
    let status = u16::try_from(message.status).unwrap_or(0);
    Some(Redirect {
        scheme: text(&message.scheme),
        hostname: text(&message.hostname),
        port: u16::try_from(message.port).ok().filter(|&port| port > 0),
        path: path_modifier(message.path.as_ref())?,
        status: StatusCode::from_u16(status)
            .ok()
            .filter(StatusCode::is_redirection)
            .unwrap_or(StatusCode::FOUND),
    })
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
