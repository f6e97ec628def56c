//! Which routes hold for a Service's port and a client's namespace, in which order, and to what they refer.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_api::address::why_no_backend;
use outrigger_api::discovery as proto;
use outrigger_api::pattern::Budget;

use crate::objects::route::{BackendRef, Parent, Rank, Route, RouteKind, Rule, without_patterns};
use crate::objects::{ObjectName, ServicePort};
use crate::store::Store;

/// Why a reference leads nowhere: a reason of the condition `ResolvedRefs`, and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefProblem {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The routes that hold for a port of a Service when a client in `consumer` calls it: of one kind. Routes of the client's own
/// namespace replace those of the Service's, and one kind replaces another ([`RouteKind`]; GEP-1426).
pub(super) fn routes_for<'a>(
    store: &'a Store,
    service: &ObjectName,
    port: &ServicePort,
    consumer: &str,
) -> Vec<&'a Route> {
    let on_port = |wanted: &dyn Fn(&Route) -> bool| -> Vec<&'a Route> {
        let routes = store.routes_of(service).map(|(_, route)| route);
        let routes = routes.filter(|route| wanted(route) && covers(route, service, port));
        let mut routes: Vec<_> = routes.collect();
        let holds = routes.iter().map(|route| route.kind).max();
        routes.retain(|route| Some(route.kind) == holds);
        routes
    };
    let own = on_port(&|route| route.is_consumer_route_of(service) && &*route.name.namespace == consumer);
    if own.is_empty() {
        on_port(&|route| !route.is_consumer_route_of(service))
    } else {
        own
    }
}

fn covers(route: &Route, service: &ObjectName, port: &ServicePort) -> bool {
    parents(route, service).any(|parent| parent.covers(port.port, &port.name))
}

fn parents<'a>(route: &'a Route, service: &'a ObjectName) -> impl Iterator<Item = &'a Parent> {
    route.parents.iter().filter(move |parent| parent.service == *service)
}

/// A route that this one gives way to, where there is one on every port that the parent names: of a kind that goes before its own, or an
/// older TCPRoute, since each takes all connections. With several ports, the one on the first.
pub(crate) fn displaced_by<'a>(store: &'a Store, route: &Route, parent: &Parent) -> Option<&'a Route> {
    let service = store.services.get(&parent.service)?;
    let consumer = route.is_consumer_route_of(&parent.service);
    let goes_before = |other: &Route| {
        let older = (other.created, &other.name) < (route.created, &route.name);
        (other.kind > route.kind || older)
            && other.is_consumer_route_of(&parent.service) == consumer
            && (!consumer || other.name.namespace == route.name.namespace)
    };
    let displacing = |port: &ServicePort| {
        let kinds = RouteKind::ALL.into_iter().rev();
        let kinds = kinds.filter(|kind| *kind > route.kind || *kind == RouteKind::Tcp && route.kind == *kind);
        let mut others = kinds.flat_map(|kind| store.routes_of_kind(&parent.service, kind));
        others.find(|other| goes_before(other) && covers(other, &parent.service, port))
    };
    let ports = service.ports.iter().filter(|p| parent.covers(p.port, &p.name));
    // `None` of one port: there the route is in force.
    ports.map(displacing).collect::<Option<Vec<_>>>()?.into_iter().next()
}

/// Routes on the Service whose patterns are beyond its budget, of those that hold for the same clients as this one. The oldest
/// have it first, so that a new route takes nothing from those that are in force.
pub(super) fn over_budget<'a>(store: &'a Store, service: &ObjectName, like: &Route) -> HashSet<&'a ObjectName> {
    let consumer = like.is_consumer_route_of(service);
    let beside = store.routes_of_kind(service, like.kind).filter(|route| {
        route.patterns.patterns > 0
            && route.is_consumer_route_of(service) == consumer
            && (!consumer || route.name.namespace == like.name.namespace)
    });
    let mut beside: Vec<&Route> = beside.collect();
    beside.sort_by_key(|route| (route.created, &route.name));
    let mut budget = Budget::default();
    let over = beside.into_iter().filter(|route| !budget.take(route.patterns));
    over.map(|route| &route.name).collect()
}

/// The same for many routes, with one look at each Service: thousands of routes on one would be looked at thousands of times.
#[derive(Default)]
pub(crate) struct OverBudget<'a>(BTreeMap<Beside, HashSet<&'a ObjectName>>);

/// Routes that share a budget: a Service, their kind, and for consumers' routes their namespace.
type Beside = (ObjectName, RouteKind, Option<Arc<str>>);

impl<'a> OverBudget<'a> {
    /// Whether the route's patterns are beyond the Service's budget.
    pub(crate) fn has(&mut self, store: &'a Store, service: &ObjectName, route: &Route) -> bool {
        if route.patterns.patterns == 0 {
            return false;
        }
        let consumer = route.is_consumer_route_of(service);
        let beside = (
            service.clone(),
            route.kind,
            consumer.then(|| route.name.namespace.clone()),
        );
        let over = self.0.entry(beside);
        over.or_insert_with(|| over_budget(store, service, route))
            .contains(&route.name)
    }
}

/// All rules of the routes by their matches, the most specific first; then the oldest route, then by name, then in the
/// order of the route itself. Matches of one rule that follow each other stay together. Patterns of the routes in `over` match
/// nothing.
pub(super) fn in_order<'a>(
    routes: &[&'a Route],
    over: &HashSet<&ObjectName>,
) -> Vec<(&'a Route, &'a Rule, Vec<proto::Match>)> {
    let mut flat: Vec<(&Route, &Rule, &(Rank, proto::Match))> = Vec::new();
    for route in routes {
        for rule in &route.rules {
            flat.extend(rule.matches.iter().map(|matched| (*route, rule, matched)));
        }
    }
    // The sort is stable, so what is equal stays in the order of the route.
    flat.sort_by(|(a, _, (a_rank, _)), (b, _, (b_rank, _))| {
        let age = (a.created, &a.name).cmp(&(b.created, &b.name));
        b_rank.cmp(a_rank).then(age)
    });
    let mut ordered: Vec<(&Route, &Rule, Vec<proto::Match>)> = Vec::new();
    for (route, rule, (_, matched)) in flat {
        let matched = match over.contains(&route.name) {
            true => without_patterns(matched),
            false => matched.clone(),
        };
        match ordered.last_mut() {
            Some((_, last, matches)) if std::ptr::eq(*last, rule) => matches.push(matched),
            _ => ordered.push((route, rule, vec![matched])),
        }
    }
    ordered
}

/// The first rule of each route of bytes, the oldest route first. Which of them a connection takes, its caller's sidecar decides.
pub(super) fn of_bytes<'a>(routes: &[&'a Route]) -> impl Iterator<Item = (&'a Route, &'a Rule)> {
    let mut routes = routes.to_vec();
    routes.sort_by_key(|route| (route.created, &route.name));
    routes
        .into_iter()
        .filter_map(|route| Some((route, route.rules.first()?)))
}

/// The Service and port that a route refers to, in whichever namespace: a route of a mesh leads its clients where they could go
/// without it, so it needs no ReferenceGrant (GEP-1294, "Namespace boundaries").
pub(crate) fn resolve(store: &Store, backend: &BackendRef) -> Result<(ObjectName, u16), RefProblem> {
    let problem = |reason, message: String| Err(RefProblem { reason, message });
    if backend.kind != "Service" {
        return problem(
            "InvalidKind",
            format!("a backend of the kind {} is not supported", backend.kind),
        );
    }
    let Some(service) = store.services.get(&backend.name) else {
        return problem("BackendNotFound", format!("there is no Service {}", backend.name));
    };
    if let Some(host) = &service.external_name {
        if !store.external_names_allowed {
            let message = format!(
                "the Service {} is of the type ExternalName: as a backend it would send every caller of the route to a name that its \
                 owner chooses; `routes.allowExternalName` of the chart allows it",
                backend.name
            );
            return problem("InvalidKind", message);
        }
        if let Some(why) = host.parse::<IpAddr>().ok().and_then(why_no_backend) {
            return problem(
                "BackendNotFound",
                format!("the Service {} leads to {why}", backend.name),
            );
        }
    }
    let Some(port) = backend.port else {
        return problem(
            "BackendNotFound",
            format!("the reference to Service {} names no port", backend.name),
        );
    };
    // An ExternalName Service need not list its ports.
    if service.external_name.is_none() && !service.ports.iter().any(|p| p.port == port) {
        return problem(
            "BackendNotFound",
            format!("the Service {} has no TCP port {port}", backend.name),
        );
    }
    Ok((backend.name.clone(), port))
}
