//! What the controller has told in a session: routes and endpoints, which come apart, put together; and who may call this pod, and how
//! much it takes.
//!
//! A set of endpoints that changes changes nothing else: the routes of its targets, with their compiled patterns, stay. What a
//! new session tells again is compiled only where it is another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::access::Access;
use outrigger_api::discovery::{self as proto, backend, target};
use outrigger_api::limits::Limits;
use prost::Message;

use crate::model::{Backend, Endpoint, Endpoints, Service, Target, from_proto};

/// See the module.
#[derive(Default)]
pub(super) struct Told {
    targets: HashMap<SocketAddr, Known>,
    sets: HashMap<String, Set>,
    /// Of the message that said last who may call this pod.
    access: Option<u64>,
    /// Of the message that said last how much this pod takes.
    limits: Option<u64>,
    /// Whether this session has said it.
    says_access: bool,
    /// Its keys are random, so that nobody can write two routes that count as the same.
    hasher: RandomState,
}

struct Known {
    /// Of the message that it was made from.
    digest: u64,
    target: Arc<Target>,
    /// The set of each backend.
    sets: Vec<Option<String>>,
}

#[derive(Default)]
struct Set {
    /// In the session that goes on. `None`: it is not kept up to date, and goes when no target names it any more.
    version: Option<u64>,
    endpoints: Vec<Arc<Endpoint>>,
    named_by: BTreeSet<SocketAddr>,
}

/// A change came on top of a state that is not there: the session is of no use any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gap(pub(super) String);

impl Told {
    /// A new session begins. What is known stays, where it is still wanted: of an address that was dropped before this session
    /// nobody is told any more.
    pub(super) fn begin(&mut self, is_wanted: impl Fn(SocketAddr) -> bool) {
        self.says_access = false;
        let dropped: Vec<_> = self.targets.keys().copied().filter(|&a| !is_wanted(a)).collect();
        dropped.into_iter().for_each(|address| self.forget(address));
        self.sets.retain(|_, set| {
            set.version = None;
            !set.named_by.is_empty()
        });
    }

    /// What is behind an address.
    pub(super) fn routes(&mut self, address: SocketAddr, message: &proto::Target) -> Arc<Target> {
        let digest = self.hasher.hash_one(message.encode_to_vec());
        if let Some(known) = self.targets.get(&address).filter(|known| known.digest == digest) {
            return Arc::clone(&known.target);
        }
        let sets = names(message);
        let mut target = from_proto::target(message);
        for name in sets.iter().flatten() {
            let set = self.sets.entry(name.clone()).or_default();
            set.named_by.insert(address);
            if let Target::Service(service) = &target {
                target = Target::Service(Arc::new(with_endpoints(service, &sets, name, &set.endpoints)));
            }
        }
        let target = Arc::new(target);
        let known = Known {
            digest,
            target: Arc::clone(&target),
            sets,
        };
        if let Some(before) = self.targets.insert(address, known) {
            self.release(address, &before);
        }
        target
    }

    /// Who may call this pod. Whether that is another word than the last one.
    pub(super) fn access(&mut self, message: &Access) -> bool {
        self.says_access = true;
        let digest = self.hasher.hash_one(message.encode_to_vec());
        self.access.replace(digest) != Some(digest)
    }

    /// How much this pod takes. Whether that is another word than the last one.
    pub(super) fn limits(&mut self, message: &Limits) -> bool {
        let digest = self.hasher.hash_one(message.encode_to_vec());
        self.limits.replace(digest) != Some(digest)
    }

    /// Whether this session has said who may call this pod.
    pub(super) fn says_access(&self) -> bool {
        self.says_access
    }

    /// A set of endpoints. Returns the targets that have changed by it.
    ///
    /// # Errors
    /// When it is a change of a state that is not the one that is known.
    pub(super) fn endpoints(&mut self, message: &proto::EndpointSet) -> Result<Vec<(SocketAddr, Arc<Target>)>, Gap> {
        let set = self.sets.entry(message.name.clone()).or_default();
        let endpoints = match message.since {
            0 => from_proto::endpoints(&message.endpoints),
            since if set.version == Some(since) => changed(&set.endpoints, message),
            since => {
                return Err(Gap(format!(
                    "the controller tells what has changed in {} since the version {since}, and {:?} is known",
                    message.name, set.version
                )));
            }
        };
        set.version = Some(message.version);
        if set.endpoints == endpoints {
            return Ok(Vec::new());
        }
        set.endpoints = endpoints;
        let mut targets = Vec::new();
        for address in &set.named_by {
            if let Some(known) = self.targets.get_mut(address)
                && let Target::Service(service) = &*known.target
            {
                let service = with_endpoints(service, &known.sets, &message.name, &set.endpoints);
                known.target = Arc::new(Target::Service(Arc::new(service)));
                targets.push((*address, Arc::clone(&known.target)));
            }
        }
        Ok(targets)
    }

    /// A set is not kept up to date any more.
    pub(super) fn gone(&mut self, name: &str) {
        if let Some(set) = self.sets.get_mut(name) {
            set.version = None;
            if set.named_by.is_empty() {
                self.sets.remove(name);
            }
        }
    }

    /// Nobody wants to know any more what is behind the address.
    pub(super) fn forget(&mut self, address: SocketAddr) {
        if let Some(known) = self.targets.remove(&address) {
            self.release(address, &known);
        }
    }

    /// The target is not the one that it was.
    fn release(&mut self, address: SocketAddr, was: &Known) {
        let names = self.targets.get(&address).map(|known| known.sets.clone());
        for name in was.sets.iter().flatten() {
            let still = names.iter().flatten().flatten().any(|named| named == name);
            if let Some(set) = self.sets.get_mut(name).filter(|_| !still) {
                set.named_by.remove(&address);
                if set.named_by.is_empty() && set.version.is_none() {
                    self.sets.remove(name);
                }
            }
        }
    }
}

/// The set that each backend names.
fn names(message: &proto::Target) -> Vec<Option<String>> {
    let Some(target::Kind::Service(service)) = &message.kind else {
        return Vec::new();
    };
    let name = |backend: &proto::Backend| match &backend.kind {
        Some(backend::Kind::EndpointSet(name)) => Some(name.clone()),
        _ => None,
    };
    service.backends.iter().map(name).collect()
}

/// The same Service with other endpoints where its backends name this set.
fn with_endpoints(service: &Service, sets: &[Option<String>], name: &str, endpoints: &[Arc<Endpoint>]) -> Service {
    let backends = service.backends.iter().enumerate().map(|(index, backend)| {
        match sets.get(index).is_some_and(|set| set.as_deref() == Some(name)) {
            true => Arc::new(Backend {
                name: backend.name.clone(),
                endpoints: Endpoints::Known(endpoints.to_vec()),
                client_affinity: backend.client_affinity,
                tls: backend.tls.clone(),
            }),
            false => Arc::clone(backend),
        }
    });
    Service {
        name: service.name.clone(),
        protocol: service.protocol,
        routes: Arc::clone(&service.routes),
        byte_routes: Arc::clone(&service.byte_routes),
        backends: backends.collect(),
        rules: Arc::clone(&service.rules),
    }
}

fn changed(before: &[Arc<Endpoint>], message: &proto::EndpointSet) -> Vec<Arc<Endpoint>> {
    let mut endpoints: BTreeMap<SocketAddr, Arc<Endpoint>> =
        before.iter().map(|e| (e.address, Arc::clone(e))).collect();
    // One that cannot be read any more is not the one that it was.
    let named = message.endpoints.iter().map(|e| &e.address).chain(&message.removed);
    for address in named.filter_map(|address| address.parse().ok()) {
        endpoints.remove(&address);
    }
    let new = from_proto::endpoints(&message.endpoints).into_iter();
    endpoints.extend(new.map(|e| (e.address, e)));
    endpoints.into_values().collect()
}

#[cfg(test)]
#[path = "told_tests.rs"]
mod tests;
