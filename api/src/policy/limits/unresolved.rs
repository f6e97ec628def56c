//! A policy, read, whose conditions on the cluster are open.

use std::net::IpAddr;

use super::global::{StoreService, literal, service};
use crate::access as access_proto;
use crate::access::source;
use crate::limits as proto;
use crate::limits::key_part;
use crate::policy::access::{Cluster, Condition, Source};

/// A policy whose conditions on the cluster are open.
#[derive(Clone, Debug, PartialEq)]
pub struct UnresolvedLimits {
    pub(super) name: String,
    pub(super) shadow: bool,
    pub(super) headers: proto::ResponseHeaders,
    pub(super) limits: Vec<UnresolvedLimit>,
    pub(super) connections: Option<proto::Connections>,
    pub(super) global: Option<proto::Global>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct UnresolvedLimit {
    /// All of it that needs no cluster.
    pub(super) limit: proto::Limit,
    /// Any of them, and of each all.
    pub(super) matches: Vec<Vec<Condition>>,
    /// Its rate is divided.
    pub(super) shared: bool,
    /// It is counted in the store, and divided while that does not answer.
    pub(super) global: bool,
    pub(super) overrides: Vec<(Vec<Source>, proto::Rate)>,
}

impl UnresolvedLimits {
    /// Leaves out one limit, by its position, or all.
    pub fn leave_out(&mut self, limit: Option<usize>) {
        match limit {
            Some(n) if n < self.limits.len() => drop(self.limits.remove(n)),
            Some(_) => {}
            None => self.limits.clear(),
        }
    }

    /// Limits no connections.
    pub fn leave_out_connections(&mut self) {
        self.connections = None;
    }

    /// Asks no store: what is counted there is carried out as while it does not answer.
    pub fn leave_out_store(&mut self) {
        self.global = None;
    }

    /// Of which tokens it asks something: the AccessPolicy of each, and its provider.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        let of_source = |source| match source {
            &Source::Known(Some(source::Kind::Jwt(ref token))) => Some((&*token.policy, &*token.provider)),
            _ => None,
        };
        let parts = self.limits.iter().flat_map(|limit| &limit.limit.per);
        let of_parts = parts.filter_map(|part| match &part.kind {
            Some(key_part::Kind::Claim(claim)) => Some((&*claim.policy, &*claim.provider)),
            _ => None,
        });
        of_parts.chain(self.sources().flatten().filter_map(of_source))
    }

    fn sources(&self) -> impl Iterator<Item = &Vec<Source>> {
        let matches = self.limits.iter().flat_map(|limit| limit.matches.iter().flatten());
        let of_matches = matches.filter_map(|condition| match condition {
            Condition::Sources(any) => Some(any),
            _ => None,
        });
        let of_overrides = self.limits.iter().flat_map(|limit| &limit.overrides);
        of_matches.chain(of_overrides.map(|(any, _)| any))
    }

    /// Whether connections of bytes are limited.
    pub fn limits_connections(&self) -> bool {
        self.connections.is_some()
    }

    /// The limits whose rate is divided among pods: the name of each, and the least that one of its rates has.
    pub fn divided(&self) -> impl Iterator<Item = (&str, u32)> {
        let divided = self.limits.iter().filter(|limit| limit.shared);
        divided.map(|limit| {
            let overrides = limit.overrides.iter().map(|(_, rate)| rate);
            let rates = limit.limit.rate.iter().chain(overrides);
            let least = rates.map(|rate| rate.requests).min();
            (&*limit.limit.name, least.unwrap_or_default())
        })
    }

    /// Whether a limit is counted in a store.
    pub fn asks_store(&self) -> bool {
        self.limits.iter().any(|limit| limit.global)
    }

    /// The address of the store, where it is an address and no name.
    pub fn store_address(&self) -> Option<IpAddr> {
        literal(&self.global.as_ref()?.address)
    }

    /// The Service that is the store, and what is done while it does not answer. `None`: no limit asks it, or it is named otherwise.
    pub fn store_service(&self) -> Option<(StoreService, proto::OnFailure)> {
        let global = self.global.as_ref().filter(|_| self.asks_store())?;
        Some((service(&global.address)?, global.on_failure()))
    }

    /// Whether a limit is divided among pods, always or while a store does not answer.
    pub fn counts_pods(&self) -> bool {
        self.limits.iter().any(|limit| limit.shared || limit.global)
    }

    /// Whether namespaces are selected by their labels.
    pub fn selects_namespaces(&self) -> bool {
        let mut all = self.sources();
        all.any(|any| any.iter().any(|source| matches!(source, Source::Namespaces(_))))
    }

    /// The policy at these ports of a pod (`None`: at all), which is one of so many. Without a number of pods nothing that is divided among
    /// them is in it; and what is counted in a store is each pod's alone while that does not answer.
    pub fn resolve(
        &self,
        ports: Option<access_proto::Ports>,
        pods: Option<u32>,
        cluster: &impl Cluster,
    ) -> proto::Policy {
        let told = self.limits.iter().filter(|limit| !limit.shared || pods.is_some());
        let limits = told.map(|of| proto::Limit {
            matches: of.matches.iter().map(|all| matching(all, cluster)).collect(),
            shares: if of.shared || of.global {
                pods.unwrap_or_default()
            } else {
                0
            },
            global: of.global,
            overrides: of
                .overrides
                .iter()
                .map(|(any, rate)| proto::Override {
                    sources: Some(sources(any, cluster)),
                    rate: Some(*rate),
                })
                .collect(),
            ..of.limit.clone()
        });
        proto::Policy {
            name: self.name.clone(),
            shadow: self.shadow,
            ports,
            limits: limits.collect(),
            headers: self.headers.into(),
            connections: self.connections,
            global: self.global.clone(),
        }
    }
}

fn matching(all: &[Condition], cluster: &impl Cluster) -> proto::Match {
    proto::Match {
        all: all.iter().map(|condition| condition.resolve(cluster)).collect(),
    }
}

fn sources(any: &[Source], cluster: &impl Cluster) -> access_proto::Sources {
    access_proto::Sources {
        any: any.iter().map(|source| source.resolve(cluster)).collect(),
    }
}
