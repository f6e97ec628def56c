//! Services whose pods are not called evenly, by what policies and the Services themselves say: a rate that is divided among pods is then not
//! what it says.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use outrigger_api::discovery as proto;
use outrigger_api::discovery::LoadBalancerType;

use super::{routing, traffic};
use crate::objects::ObjectName;
use crate::objects::policy::{Policy, TargetKind};
use crate::store::Store;

/// See the module. It is found out when somebody asks.
pub(crate) struct Uneven<'a> {
    store: &'a Store,
    services: OnceCell<BTreeMap<&'a ObjectName, &'static str>>,
}

impl<'a> Uneven<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self {
            store,
            services: OnceCell::new(),
        }
    }

    /// All of them, and by what.
    pub(crate) fn services(&self) -> &BTreeMap<&'a ObjectName, &'static str> {
        self.services.get_or_init(|| self.find())
    }

    fn find(&self) -> BTreeMap<&'a ObjectName, &'static str> {
        let store = self.store;
        let mut found: BTreeMap<&ObjectName, &'static str> = BTreeMap::new();
        let by_address = { store.services.iter() }.filter(|(_, service)| service.client_affinity);
        found.extend(by_address.map(|(name, _)| (name, "sessionAffinity: ClientIP")));
        let policies =
            { store.policies.iter() }.filter(|policy| policy.traffic().is_some_and(|said| why(said).is_some()));
        let policies: Vec<_> = policies.collect();
        if !policies.is_empty() {
            // As callers of its own namespace call it.
            for (name, service) in store.services.iter() {
                let of_port = |port: &str| traffic::of_service(store, name, port, &name.namespace);
                let by = service
                    .ports
                    .iter()
                    .filter_map(|port| why(&of_port(&port.name)?))
                    .next();
                found.extend(by.map(|by| (name, by)));
            }
        }
        // As those call it that have policies of their own for it.
        for (policy, by) in policies
            .iter()
            .filter_map(|policy| Some((policy, why(policy.traffic()?)?)))
        {
            found.extend(called_by_consumers(store, policy).map(|name| (name, by)));
        }
        let on_routes: Vec<_> = { store.routes.iter() }
            .flat_map(|((kind, name), route)| {
                let of_parents = { route.parents.iter() }.find_map(|parent| found.get(&parent.service).copied());
                let of_parents = of_parents.filter(|by| *by != "sessionAffinity: ClientIP");
                route.rules.iter().filter_map(move |rule| {
                    let own = traffic::of_rule(store, *kind, name, rule).and_then(|policy| why(&policy));
                    Some((rule, own.or(of_parents)?))
                })
            })
            .collect();
        for (rule, by) in on_routes {
            let backends =
                { rule.backends.iter() }.filter_map(|weighted| routing::resolve(store, &weighted.backend).ok());
            let backends = backends.filter_map(|(name, _)| store.services.get_key_value(&name));
            found.extend(backends.map(|(name, _)| (name, by)));
        }
        found
    }
}

/// The Services that a policy is attached to for callers of one namespace.
fn called_by_consumers<'a>(store: &'a Store, policy: &Policy) -> impl Iterator<Item = &'a ObjectName> {
    let targets = { policy.targets() }.filter(|target| target.kind == TargetKind::Service && target.callers.is_some());
    targets.filter_map(|target| Some(store.services.get_key_value(&target.name)?.0))
}

fn why(policy: &proto::Policy) -> Option<&'static str> {
    let hashed = { policy.load_balancer.as_ref() }.filter(|said| said.r#type() == LoadBalancerType::ConsistentHash);
    match (&policy.session_persistence, hashed) {
        (Some(_), _) => Some("sessionPersistence"),
        (None, Some(_)) => Some("loadBalancer.type: ConsistentHash"),
        (None, None) => None,
    }
}
