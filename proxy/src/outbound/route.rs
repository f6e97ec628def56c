//! Which route a request takes, and to which backend: decided from the request's head and a snapshot, without any I/O.

use std::borrow::Cow;

use http::HeaderValue;
use http::header::HOST;
use http::request::Parts;
use outrigger_proxy_transport::authority;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use rand::Rng;

use crate::model::{
    Filters, PathMatch, Route, RouteMatch, RouteRules, Service, ServiceName, ValueMatch, WeightedBackend,
};

/// What is to be done with a request.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    pub rules: &'a RouteRules,
    /// `None`: the Service has no routes.
    pub route: Option<&'a Route>,
    /// What it matched the path by.
    pub path: Option<&'a PathMatch>,
}

impl<'a> Chosen<'a> {
    /// What the route's path prefix was, for a rewrite that replaces it.
    pub fn prefix(&self) -> Option<&'a str> {
        match self.path {
            Some(PathMatch::Prefix(prefix)) => Some(prefix),
            _ => None,
        }
    }
}

/// The first route that matches wins: they come in the order of Gateway API's precedence.
///
/// # Errors
/// [`Reason::NoRoute`].
pub fn choose<'a>(service: &'a Service, request: &Parts) -> Result<Chosen<'a>, ProxyError> {
    if service.routes.is_empty() {
        return Ok(Chosen {
            rules: &service.rules,
            route: None,
            path: None,
        });
    }
    let host = lower_case(authority::split(authority::of(request)).0);
    for route in &*service.routes {
        if let Some(path) = matches(route, &host, request) {
            return Ok(Chosen {
                rules: &route.rules,
                route: Some(route),
                path,
            });
        }
    }
    Err(ProxyError::new(
        Reason::NoRoute,
        format!(
            "no route of {} matches {} {}; check the matches of its HTTPRoutes and GRPCRoutes",
            service.name,
            request.method,
            request.uri.path()
        ),
    ))
}

/// The backend by weight, as an index into the Service's, and the filters that are its own.
///
/// # Errors
/// [`Reason::InvalidBackend`], for the share of a backend that does not exist.
pub fn backend<'a>(
    service: &'a Service,
    chosen: &Chosen<'a>,
    rng: &mut impl Rng,
) -> Result<(usize, &'a Filters), ProxyError> {
    let invalid = |what: &str| ProxyError::new(Reason::InvalidBackend, what.to_owned());
    let Some(route) = chosen.route else {
        return match service.backends.is_empty() {
            false => Ok((0, Filters::NONE)),
            true => Err(invalid("the Service has no backend of its own")),
        };
    };
    draw(&route.name, &route.backends, rng).map(|(backend, weighted)| (backend, &weighted.filters))
}

/// The first backend that is meant, whatever its weight. `None`: there is none such.
pub fn backend_where<'a>(
    service: &'a Service,
    chosen: &Chosen<'a>,
    is_meant: impl Fn(&ServiceName) -> bool,
) -> Option<(usize, &'a Filters)> {
    let is_meant = |index: usize| {
        let backend = service.backends.get(index);
        backend.is_some_and(|backend| is_meant(&backend.name))
    };
    match chosen.route {
        None => is_meant(0).then_some((0, Filters::NONE)),
        Some(route) => route.backends.iter().find_map(|weighted| {
            let backend = weighted.backend.filter(|index| is_meant(*index))?;
            Some((backend, &weighted.filters))
        }),
    }
}

/// Where a connection of bytes goes that asks for the server of this name, as an index into the Service's backends: of the routes that are for it
/// the one with the most specific name, and of those the first.
///
/// # Errors
/// [`Reason::NoRoute`]; [`Reason::InvalidBackend`], for the share of a backend that does not exist.
pub fn backend_of_bytes(service: &Service, server: Option<&str>, rng: &mut impl Rng) -> Result<usize, ProxyError> {
    if service.byte_routes.is_empty() {
        return Ok(0);
    }
    let fitting = service
        .byte_routes
        .iter()
        .filter_map(|route| Some((route.fits(server)?, route)));
    // The last of several greatest would be taken.
    let Some((_, route)) = fitting.rev().max_by_key(|(fits, _)| *fits) else {
        let asked = server.map_or("no server by its name".to_owned(), |server| {
            format!("the server {server:?}")
        });
        return Err(ProxyError::new(
            Reason::NoRoute,
            format!(
                "a connection to {} asks for {asked}, and no TLSRoute is for that",
                service.name
            ),
        ));
    };
    draw(&route.name, &route.backends, rng).map(|(backend, _)| backend)
}

/// One of the backends by weight.
fn draw<'a>(
    route: &str,
    backends: &'a [WeightedBackend],
    rng: &mut impl Rng,
) -> Result<(usize, &'a WeightedBackend), ProxyError> {
    let invalid = |what: &str| ProxyError::new(Reason::InvalidBackend, what.to_owned());
    let total: u64 = backends.iter().map(|b| u64::from(b.weight)).sum();
    if total == 0 {
        return Err(invalid(&format!(
            "route {} has no backend with a weight; check its backendRefs",
            route
        )));
    }
    let mut at = match backends.len() {
        1 => 0,
        _ => rng.random_range(0..total),
    };
    for weighted in backends {
        let weight = u64::from(weighted.weight);
        if at < weight {
            return match weighted.backend {
                Some(backend) => Ok((backend, weighted)),
                None => Err(invalid(&format!(
                    "a backend of route {} does not exist; check its backendRefs and the route's status",
                    route
                ))),
            };
        }
        at -= weight;
    }
    // Not reached: `at` was below the sum of the weights.
    Err(invalid("no backend was drawn"))
}

/// `Some`: it matches, and by what of the path, if it says something of that.
fn matches<'a>(route: &'a Route, host: &str, request: &Parts) -> Option<Option<&'a PathMatch>> {
    let hostname = route.hostnames.is_empty() || route.hostnames.iter().any(|hostname| hostname.is(host));
    if !hostname {
        return None;
    }
    if route.matches.is_empty() {
        return Some(None);
    }
    let matched = route.matches.iter().find(|m| matches_one(m, request))?;
    Some(matched.path.as_ref())
}

/// Whether a request matches any of these; none matches everything.
pub(super) fn matches_any(matches: &[RouteMatch], request: &Parts) -> bool {
    matches.is_empty() || matches.iter().any(|m| matches_one(m, request))
}

fn matches_one(m: &RouteMatch, request: &Parts) -> bool {
    m.method.as_ref().is_none_or(|method| *method == request.method)
        && m.path
            .as_ref()
            .is_none_or(|path| path_matches(path, request.uri.path()))
        && m.headers.iter().all(|(name, value)| {
            if *name == HOST {
                // In HTTP/2 no header says it.
                let host = authority::of(request);
                return !host.is_empty() && value_matches(value, host.as_bytes());
            }
            // RFC 9110 section 5.3: several fields of one name are one list.
            let mut values = request.headers.get_all(name).iter().map(HeaderValue::as_bytes);
            let first = values.next();
            first.is_some_and(|first| match values.next() {
                None => value_matches(value, first),
                Some(second) => {
                    let all: Vec<&[u8]> = [first, second].into_iter().chain(values).collect();
                    value_matches(value, &all.join(&b","[..]))
                }
            })
        })
        && m.query.iter().all(|(name, value)| {
            query_value(request.uri.query().unwrap_or(""), name).is_some_and(|found| value_matches(value, &found))
        })
}

fn path_matches(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Exact(exact) => exact == path,
        PathMatch::Prefix(prefix) => path
            .strip_prefix(prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty()),
        PathMatch::Regex(regex) => regex.is_match(path.as_bytes()),
    }
}

fn value_matches(wanted: &ValueMatch, value: &[u8]) -> bool {
    match wanted {
        ValueMatch::Exact(exact) => exact.as_bytes() == value,
        ValueMatch::Regex(regex) => regex.is_match(value),
    }
}

/// The first value of a query parameter, decoded.
pub(super) fn query_value<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (*decode(key) == *name.as_bytes()).then(|| decode(value))
    })
}

/// application/x-www-form-urlencoded. What is not valid stays as it is.
fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                // Two hexadecimal digits are below 256.
                decoded.push((high * 16 + low) as u8);
                i += 3;
                continue;
            }
            (b'+', ..) => decoded.push(b' '),
            (other, ..) => decoded.push(other),
        }
        i += 1;
    }
    Cow::Owned(decoded)
}

fn lower_case(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
