//! TrafficPolicies: how a Service is called.
//!
//! What is nearer to a request wins, field by field (`Policy::over`): the route's rule itself, the policy on the rule, on
//! the route; then, for a Service, the policy of the caller's namespace on the port, on the Service; the owner's on the port, on
//! the Service, on its namespace; and last the one on Outrigger's own namespace, which holds for the whole mesh. Of several on the
//! same target the oldest holds as a whole; the others are `Conflicted` and add nothing. A policy that is not valid holds nowhere.

use outrigger_api::discovery as proto;

use super::routing::resolve;
use crate::objects::ObjectName;
use crate::objects::policy::{Policy, PolicyKind, Target, TargetKind};
use crate::objects::route::{BackendRef, RouteKind, Rule};
use crate::store::Store;

/// How a port of a Service is called by clients in `callers`, where no route says otherwise.
pub(super) fn of_service(store: &Store, service: &ObjectName, port: &str, callers: &str) -> Option<proto::Policy> {
    let own = Target::service(service);
    let theirs = own.for_callers(callers);
    let layers = [theirs.section(port), theirs, own.section(port), own];
    merged(store, layers.into_iter().chain(outer(store, &service.namespace)))
}

/// Whether clients in `callers` have a policy of their own for it.
pub(super) fn callers_say(store: &Store, service: &ObjectName, port: &str, callers: &str) -> bool {
    let theirs = Target::service(service).for_callers(callers);
    let layers = [theirs.section(port), theirs];
    layers
        .into_iter()
        .any(|target| store.policies.at(PolicyKind::Traffic, target).next().is_some())
}

/// Whom a fallback asks. It needs no ReferenceGrant, as a backend of a route needs none: its callers could ask it themselves.
pub(crate) fn fallback_ref(asked: &proto::FallbackBackend) -> BackendRef {
    BackendRef {
        kind: "Service".to_owned(),
        name: ObjectName::new(&asked.namespace, &asked.name),
        port: u16::try_from(asked.port).ok(),
    }
}

/// What keeps some of a policy's fallback from being asked.
pub(crate) fn unresolved(store: &Store, policy: &proto::Policy) -> Option<String> {
    let backends = || policy.fallback.iter().flat_map(|fallback| &fallback.backends);
    let resolved = |asked| resolve(store, &fallback_ref(asked));
    let problems = backends().filter_map(|asked| Some((asked, resolved(asked).err()?.message)));
    let problems: Vec<_> = problems
        .map(|(asked, why)| format!("{}/{}:{} ({why})", asked.namespace, asked.name, asked.port))
        .collect();
    if problems.is_empty() {
        return None;
    }
    let so = match backends().any(|asked| asked.weight > 0 && resolved(asked).is_ok()) {
        true => "the other backends have their share",
        false => "there is no other backend, and failures stay as they are",
    };
    Some(format!(
        "fallback.backendRefs: not asked: {}; {so}",
        problems.join(", ")
    ))
}

/// How what is of no Service is called in a namespace.
pub(super) fn of_namespace(store: &Store, namespace: &str) -> Option<proto::Policy> {
    merged(store, outer(store, namespace))
}

/// What a route's rule says: the rule itself, over the policies that are attached to the route.
pub(super) fn of_rule(store: &Store, kind: RouteKind, route: &ObjectName, rule: &Rule) -> Option<proto::Policy> {
    let attached = merged(store, of_route(kind, route, rule)).unwrap_or_default();
    let policy = rule.policy.over(&attached);
    (policy != proto::Policy::default()).then_some(policy)
}

/// Whether what is nearer to every request says all that the policy says at this target, so that it changes nothing there. Never
/// of a Namespace: there may be other Services in it tomorrow.
pub(crate) fn is_overridden(store: &Store, policy: &proto::Policy, target: &Target) -> bool {
    let nearer: Vec<proto::Policy> = match (target.kind, &target.section) {
        (TargetKind::Service, None) => {
            let ports = store.services.get(&target.name).into_iter().flat_map(|s| &s.ports);
            let at = |port: &str| merged(store, [target.section(port)]).unwrap_or_default();
            ports.map(|port| at(&port.name)).collect()
        }
        (TargetKind::Route(kind), section) => {
            let rules = store.routes.get(&(kind, target.name.clone()));
            let rules = rules.into_iter().flat_map(|route| &route.rules);
            let at = |rule: &Rule| match (section, &rule.name) {
                (None, Some(name)) => {
                    let attached = merged(store, [target.section(name)]).unwrap_or_default();
                    rule.policy.over(&attached)
                }
                _ => rule.policy.clone(),
            };
            let covered = rules.filter(|rule| section.is_none() || *section == rule.name);
            covered.map(at).collect()
        }
        (TargetKind::Namespace | TargetKind::Service | TargetKind::Pods, _) => return false,
    };
    let says_all = |nearer: &proto::Policy| nearer.over(policy) == *nearer;
    *policy != proto::Policy::default() && !nearer.is_empty() && nearer.iter().all(says_all)
}

fn outer(store: &Store, namespace: &str) -> [Target; 2] {
    [Target::namespace(namespace), Target::namespace(&store.own.namespace)]
}

fn of_route(kind: RouteKind, route: &ObjectName, rule: &Rule) -> impl Iterator<Item = Target> {
    let whole = Target::route(kind, route);
    let section = rule.name.as_ref().map(|name| whole.section(name));
    section.into_iter().chain([whole])
}

/// What holds, of these targets the nearest first. None: nothing is said.
fn merged(store: &Store, layers: impl IntoIterator<Item = Target>) -> Option<proto::Policy> {
    let policies = layers.into_iter().filter_map(|target| {
        let mut policies = store.policies.at(PolicyKind::Traffic, target);
        policies.next().and_then(Policy::traffic).cloned()
    });
    policies.reduce(|nearer, outer| nearer.over(&outer))
}
