//! A policy, read, whose conditions on the cluster are open.

use std::collections::BTreeSet;

use super::JwksSpec;
use crate::access as proto;
use crate::access::{condition, identity, source};
use crate::policy::selector::LabelSelector;
use crate::spiffe::SpiffeId;

/// A policy whose conditions on the cluster are open.
#[derive(Clone, Debug, PartialEq)]
pub struct Unresolved {
    /// Its decision is only counted and logged.
    pub audit: bool,
    pub(super) name: String,
    pub(super) deny: bool,
    pub(super) exclusive: bool,
    pub(super) rules: Vec<Rule>,
    pub(super) providers: Vec<(proto::Provider, JwksSpec)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
pub(in crate::policy) enum Condition {
    /// None: it is faulty.
    Known(Option<condition::Kind>),
    Sources(Vec<Source>),
    Ports {
        numbers: Vec<u32>,
        names: Vec<String>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(in crate::policy) enum Source {
    /// None: it is faulty.
    Known(Option<source::Kind>),
    /// None: any of the namespace.
    Account {
        namespace: String,
        name: Option<String>,
    },
    Namespace(String),
    Namespaces(LabelSelector),
}

/// What a policy does not say itself.
pub trait Cluster {
    /// Of the workloads that a policy names by ServiceAccount or namespace.
    fn trust_domain(&self) -> &str;
    /// The names of the namespaces with these labels, in a fixed order.
    fn namespaces(&self, selector: &LabelSelector) -> Vec<String>;
    /// The number of a container's port.
    fn port(&self, name: &str) -> Option<u16>;
    /// A JSON Web Key Set. "": there is none yet.
    fn jwks(&self, keys: &JwksSpec) -> String;
    /// A word for where it is fetched from. "": nobody fetches it.
    fn jwks_place(&self, _: &JwksSpec) -> String {
        String::new()
    }
}

impl Unresolved {
    /// A policy of which nothing can be read: it refuses all that comes to the pods that it holds for.
    pub fn unreadable(name: &str) -> Self {
        let nobody_knows = Rule {
            name: "0".to_owned(),
            conditions: vec![Condition::Known(None)],
        };
        Self {
            audit: false,
            name: name.to_owned(),
            deny: true,
            exclusive: false,
            rules: vec![nobody_knows],
            providers: Vec::new(),
        }
    }

    /// There is a condition on this rule, or on all, that cannot be read.
    pub fn doubt(&mut self, rule: Option<usize>) {
        let rules = self.rules.iter_mut().enumerate();
        for (_, doubted) in rules.filter(|(n, _)| rule.is_none_or(|rule| rule == *n)) {
            doubted.conditions.push(Condition::Known(None));
        }
    }

    /// Whether it may refuse somebody, if its decision counts.
    pub fn refuses(&self) -> bool {
        self.deny || self.exclusive
    }

    /// Whether namespaces are selected by their labels.
    pub fn selects_namespaces(&self) -> bool {
        let mut sources = self.conditions().filter_map(|condition| match condition {
            Condition::Sources(any) => Some(any),
            _ => None,
        });
        sources.any(|any| any.iter().any(|source| matches!(source, Source::Namespaces(_))))
    }

    /// Names of ports.
    pub fn port_names(&self) -> impl Iterator<Item = &str> {
        let names = self.conditions().filter_map(|condition| match condition {
            Condition::Ports { names, .. } => Some(names),
            _ => None,
        });
        names.flatten().map(String::as_str)
    }

    /// The ports, of those that it selects, at which it may let somebody in or refuse him; `None`: all. `number` is that of a container's
    /// port.
    pub fn ports(&self, number: impl Fn(&str) -> Option<u16>) -> Option<BTreeSet<u16>> {
        if self.exclusive {
            return None;
        }
        let mut ports = BTreeSet::new();
        for rule in &self.rules {
            let mut named = rule.conditions.iter().filter_map(|condition| match condition {
                Condition::Ports { numbers, names } => Some((numbers, names)),
                _ => None,
            });
            let (numbers, names) = named.next()?;
            ports.extend(numbers.iter().filter_map(|&number| u16::try_from(number).ok()));
            ports.extend(names.iter().filter_map(|name| number(name)));
        }
        Some(ports)
    }

    /// Its providers, by name, and where the keys of each are.
    pub fn providers(&self) -> impl Iterator<Item = (&str, &JwksSpec)> {
        self.providers.iter().map(|(provider, keys)| (&*provider.name, keys))
    }

    /// The policy at these ports of a pod; `None`: at all.
    pub fn resolve(&self, ports: Option<proto::Ports>, cluster: &impl Cluster) -> proto::Policy {
        let rules = self.rules.iter().map(|rule| proto::Rule {
            name: rule.name.clone(),
            conditions: rule
                .conditions
                .iter()
                .map(|condition| condition.resolve(cluster))
                .collect(),
        });
        let providers = self.providers.iter().map(|(provider, keys)| proto::Provider {
            jwks: cluster.jwks(keys),
            jwks_place: cluster.jwks_place(keys),
            ..provider.clone()
        });
        proto::Policy {
            name: self.name.clone(),
            deny: self.deny,
            exclusive: self.exclusive,
            ports,
            rules: rules.collect(),
            providers: providers.collect(),
        }
    }

    fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.rules.iter().flat_map(|rule| &rule.conditions)
    }
}

impl proto::Ports {
    /// What is no port of TCP is nobody's.
    pub fn tcp(&self) -> impl Iterator<Item = u16> {
        self.numbers.iter().filter_map(|&number| number.try_into().ok())
    }
}

impl Condition {
    pub(in crate::policy) fn resolve(&self, cluster: &impl Cluster) -> proto::Condition {
        let kind = match self {
            Self::Known(kind) => kind.clone(),
            Self::Sources(any) => {
                let any = any.iter().map(|source| source.resolve(cluster));
                Some(condition::Kind::Sources(proto::Sources { any: any.collect() }))
            }
            Self::Ports { numbers, names } => {
                let named = names.iter().filter_map(|name| cluster.port(name)).map(u32::from);
                let mut numbers: Vec<u32> = numbers.iter().copied().chain(named).collect();
                numbers.sort_unstable();
                numbers.dedup();
                Some(condition::Kind::Ports(proto::Ports { numbers }))
            }
        };
        proto::Condition { kind }
    }
}

impl Source {
    pub(in crate::policy) fn resolve(&self, cluster: &impl Cluster) -> proto::Source {
        let trust_domain = cluster.trust_domain();
        let namespaces = |names| {
            source::Kind::Namespaces(proto::Namespaces {
                trust_domain: trust_domain.to_owned(),
                names,
            })
        };
        let kind = match self {
            Self::Known(kind) => kind.clone(),
            Self::Account { namespace, name: None } => Some(namespaces(vec![namespace.clone()])),
            Self::Account {
                namespace,
                name: Some(name),
            } => SpiffeId::new(trust_domain, namespace, name)
                .ok()
                .map(|id| identity(identity::Kind::Exact(id.to_string()))),
            Self::Namespace(name) => Some(namespaces(vec![name.clone()])),
            Self::Namespaces(selector) => Some(namespaces(cluster.namespaces(selector))),
        };
        proto::Source { kind }
    }
}

pub(super) fn identity(kind: identity::Kind) -> source::Kind {
    source::Kind::Identity(proto::Identity { kind: Some(kind) })
}
