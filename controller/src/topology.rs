//! Which endpoints of a Service's port a caller gets, by where the caller runs.
//!
//! The rules are kube-proxy's (`pkg/proxy/topology.go`), so that a pod reaches the same endpoints with a sidecar as without:
//!
//! - Ready endpoints are called. Where there is none, those that terminate and still serve (KEP-1669).
//! - `internalTrafficPolicy: Local` (KEP-2086): only endpoints on the caller's node, and none at all where there is none.
//!   Hints mean nothing then.
//! - `hints.forNodes` (KEP-3015), then `hints.forZones` (KEP-2433, KEP-4444): where every ready endpoint has such hints and
//!   one of them is for the caller, only endpoints that are hinted for it. One endpoint without a hint means that the hints
//!   are incomplete, and all endpoints are called. `trafficDistribution` itself is not read: whoever writes the slices turns
//!   it into hints.
//!
//! A sidecar that understands it (`FEATURE_ZONE_SPILL`) gets the endpoints that hints keep away from the caller as well, marked as `remote`,
//! and decides by load and failures when they help. By hints for zones these are all others; by hints for nodes at most
//! [`OTHERS_OF_A_NODE`], those for the caller's zone first: there is a view for each node.
//!
//! Everything here is a pure function of the endpoints and the caller's place.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_api::discovery as proto;
use parking_lot::Mutex;
use prost::Message;

use crate::objects::ObjectName;
use crate::room::{Payer, Refusal, Taken, depending};
use crate::same::fingerprint;

/// Where a caller runs. What is not known is `None`: no endpoint is on that node or hinted for that zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The name of the node.
    pub node: Option<Arc<str>>,
    /// The node's label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}

/// An endpoint, and what decides who gets it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) endpoint: Arc<proto::Endpoint>,
    /// False: it terminates, and still serves.
    pub(crate) ready: bool,
    pub(crate) node: Option<Arc<str>>,
    pub(crate) for_nodes: Vec<Arc<str>>,
    pub(crate) for_zones: Vec<Arc<str>>,
}

/// All endpoints of a Service's port.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Candidates {
    /// `internalTrafficPolicy: Local`.
    pub(crate) local: bool,
    /// Those that are not in the mesh are called by TLS, and by who understands it only (`FEATURE_BACKEND_TLS`).
    pub(crate) secured: bool,
    pub(crate) list: Vec<Candidate>,
}

/// How many endpoints of other nodes a caller is told of that has some on its own. Which ones they are differs from node to node.
pub(crate) const OTHERS_OF_A_NODE: usize = 64;

/// The endpoints of a caller.
#[derive(Debug, Default)]
pub(crate) struct Chosen<'a> {
    /// Those that it calls.
    pub(crate) near: Vec<&'a Candidate>,
    /// Those that hints keep away from it.
    pub(crate) others: Vec<&'a Candidate>,
}

impl Chosen<'_> {
    /// Leaves out the others.
    pub(crate) fn retain(&mut self, stays: impl Fn(&Candidate) -> bool) {
        self.near.retain(|candidate| stays(candidate));
        self.others.retain(|candidate| stays(candidate));
    }
}

impl From<proto::Endpoint> for Candidate {
    /// Ready, and for every caller.
    fn from(endpoint: proto::Endpoint) -> Self {
        Self {
            endpoint: endpoint.into(),
            ready: true,
            node: None,
            for_nodes: Vec::new(),
            for_zones: Vec::new(),
        }
    }
}

/// Which parts of a caller's place a choice depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    node: bool,
    zone: bool,
}

impl Candidates {
    /// What one takes, in bytes, beside its names.
    pub(crate) const EACH: usize = 512;

    /// What they take, in bytes, with one view of them all, and with what is kept of the state before.
    pub(crate) fn size(&self) -> usize {
        let size = |c: &Candidate| {
            let hints = c.for_nodes.len() + c.for_zones.len();
            Self::EACH + 2 * c.endpoint.encoded_len() + hints * size_of::<Arc<str>>()
        };
        self.list.iter().map(size).sum()
    }

    /// Without those that a sidecar of the version before would call in plaintext.
    pub(crate) fn for_older(mut self) -> Self {
        if self.secured {
            self.list.retain(|candidate| !candidate.endpoint.identity.is_empty());
        }
        self
    }

    /// The endpoints of a caller.
    pub(crate) fn of(&self, caller: &Place) -> Vec<Arc<proto::Endpoint>> {
        let near = self.chosen(caller).near.into_iter();
        near.map(|c| Arc::clone(&c.endpoint)).collect()
    }

    /// The endpoints of a caller, and those that hints keep away from it.
    pub(crate) fn chosen(&self, caller: &Place) -> Chosen<'_> {
        if self.local {
            let here = self.list.iter().filter(|c| c.node.is_some() && c.node == caller.node);
            return Chosen {
                near: first_choice(here.collect()),
                others: Vec::new(),
            };
        }
        let usable = first_choice(self.list.iter().collect());
        if let Some(near) = hinted(&usable, caller.node.as_ref(), |c| &c.for_nodes) {
            let others = of_other_nodes(without(&usable, &near), caller);
            return Chosen { near, others };
        }
        match hinted(&usable, caller.zone.as_ref(), |c| &c.for_zones) {
            Some(near) => Chosen {
                others: without(&usable, &near),
                near,
            },
            None => Chosen {
                near: usable,
                others: Vec::new(),
            },
        }
    }

    /// Whether every caller has the same endpoints.
    pub(crate) fn is_same_everywhere(&self) -> bool {
        self.needs() == Needs::default()
    }

    pub(crate) fn needs(&self) -> Needs {
        let usable = first_choice(self.list.iter().collect());
        let all_hinted = |hints: fn(&Candidate) -> &[Arc<str>]| !self.local && are_complete(&usable, hints);
        Needs {
            node: self.local && !self.list.is_empty() || all_hinted(|c| &c.for_nodes),
            zone: all_hinted(|c| &c.for_zones),
        }
    }
}

/// Those that are ready; where there is none, those that terminate.
fn first_choice(list: Vec<&Candidate>) -> Vec<&Candidate> {
    let ready: Vec<_> = list.iter().copied().filter(|c| c.ready).collect();
    if ready.is_empty() { list } else { ready }
}

/// The endpoints that are hinted for the caller's node or zone; `None` where hints mean nothing.
fn hinted<'a>(
    usable: &[&'a Candidate],
    at: Option<&Arc<str>>,
    hints: fn(&Candidate) -> &[Arc<str>],
) -> Option<Vec<&'a Candidate>> {
    let at = at.filter(|_| are_complete(usable, hints))?;
    let chosen: Vec<_> = usable.iter().copied().filter(|c| hints(c).contains(at)).collect();
    (!chosen.is_empty()).then_some(chosen)
}

/// Those of a list in order that are not in a part of it, which has the same order.
fn without<'a>(all: &[&'a Candidate], part: &[&'a Candidate]) -> Vec<&'a Candidate> {
    let mut part = part.iter().peekable();
    let others = all.iter().copied().filter(|c| {
        let is_next = part.peek().is_some_and(|next| std::ptr::eq(**next, *c));
        if is_next {
            part.next();
        }
        !is_next
    });
    others.collect()
}

/// A few of them, which differ from node to node, so that those which help are not the same for all.
fn of_other_nodes<'a>(mut others: Vec<&'a Candidate>, caller: &Place) -> Vec<&'a Candidate> {
    if others.len() > OTHERS_OF_A_NODE {
        let in_zone = |c: &Candidate| caller.zone.as_ref().is_some_and(|zone| c.for_zones.contains(zone));
        others.sort_by_cached_key(|c| (!in_zone(c), fingerprint((&caller.node, &c.endpoint.address))));
        others.truncate(OTHERS_OF_A_NODE);
    }
    others
}

/// Hints of endpoints that terminate mean nothing.
fn are_complete(usable: &[&Candidate], hints: fn(&Candidate) -> &[Arc<str>]) -> bool {
    !usable.is_empty() && usable.iter().all(|c| c.ready && !hints(c).is_empty())
}

impl Needs {
    /// As much of the place as the choice depends on.
    pub(crate) fn of(self, place: &Place) -> Place {
        Place {
            node: place.node.clone().filter(|_| self.node),
            zone: place.zone.clone().filter(|_| self.zone),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            node: self.node || other.node,
            zone: self.zone || other.zone,
        }
    }
}

/// The Service that a target is called as, and its port.
pub(crate) fn service_of(target: &proto::Target) -> Option<(ObjectName, u16)> {
    let service = match target.kind.as_ref()? {
        proto::target::Kind::Service(service) => service.r#ref.as_ref()?,
        proto::target::Kind::Pod(pod) => pod.service.as_ref()?,
    };
    let port = u16::try_from(service.port).ok()?;
    Some((ObjectName::new(&service.namespace, &service.name), port))
}

/// An encoded message, which another one is equal to that has the same fingerprint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// The message.
    pub bytes: Bytes,
    pub(crate) fingerprint: u64,
}

impl Encoded {
    pub(crate) fn of(message: &impl Message) -> Self {
        let bytes: Bytes = message.encode_to_vec().into();
        Self {
            fingerprint: fingerprint(&bytes),
            bytes,
        }
    }
}

/// What is behind an address with its endpoints, for streams of sidecars of the version before the session, and for callers
/// wherever they run. Each view is encoded once, when the first caller of it asks, and
/// shared by all; where no endpoint depends on the caller's place there is one view.
#[derive(Debug)]
pub struct TargetViews {
    /// Without the endpoints of the backends in `by_place`.
    common: Result<Encoded, Refusal>,
    service: Option<(ObjectName, u16)>,
    /// By the index of the backend.
    by_place: Vec<(usize, Candidates)>,
    needs: Needs,
    /// At most as many as there are nodes.
    views: Mutex<HashMap<Place, (Encoded, Taken)>>,
    payer: Payer,
    taken: Taken,
}

impl TargetViews {
    /// Bytes that are charged for it.
    pub(crate) fn charged(&self) -> u64 {
        self.taken.bytes()
    }

    /// `by_place` has what depends on the caller's place, by the index of the backend, which is without endpoints in `common`.
    pub(crate) fn new(
        common: &proto::Target,
        by_place: Vec<(usize, Candidates)>,
        payer: Payer,
        dependencies: usize,
    ) -> Self {
        let encoded = Encoded::of(common);
        let candidates: usize = by_place.iter().map(|(_, candidates)| candidates.size()).sum();
        match payer.take(encoded.bytes.len() + candidates + depending(dependencies)) {
            Ok(taken) => Self {
                common: Ok(encoded),
                service: service_of(common),
                needs: by_place
                    .iter()
                    .fold(Needs::default(), |needs, (_, candidates)| needs.and(candidates.needs())),
                by_place,
                views: Mutex::default(),
                payer: payer.afterwards(),
                taken,
            },
            Err(refusal) => Self::refused(refusal),
        }
    }

    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self {
            common: Err(refusal),
            service: None,
            by_place: Vec::new(),
            needs: Needs::default(),
            views: Mutex::default(),
            payer: Payer::default(),
            taken: Taken::default(),
        }
    }

    /// Without what depends on the caller's place.
    pub(crate) fn common(&self) -> Result<&Encoded, Refusal> {
        self.common.as_ref().map_err(|refusal| *refusal)
    }

    /// The Service that is called, and its port.
    pub(crate) fn service(&self) -> Option<&(ObjectName, u16)> {
        self.service.as_ref()
    }

    /// What a caller gets.
    ///
    /// # Errors
    /// When there is no room for it, or no message holds it.
    pub fn view(&self, caller: &Place) -> Result<Encoded, Refusal> {
        let common = self.common()?;
        if self.by_place.is_empty() {
            return Ok(common.clone());
        }
        let caller = self.needs.of(caller);
        let mut views = self.views.lock();
        if let Some((view, _)) = views.get(&caller) {
            return Ok(view.clone());
        }
        // As much as it can become, before it is made.
        let most: usize = self.by_place.iter().map(|(_, candidates)| candidates.size()).sum();
        drop(self.payer.take(common.bytes.len() + most)?);
        let view = Encoded::of(&self.target(&common.bytes, &caller));
        let taken = self.payer.take(view.bytes.len())?;
        views.insert(caller, (view.clone(), taken));
        Ok(view)
    }

    fn target(&self, common: &Bytes, caller: &Place) -> proto::Target {
        // What was encoded here can be read.
        let mut target = proto::Target::decode(common.clone()).unwrap_or_default();
        if let Some(proto::target::Kind::Service(service)) = &mut target.kind {
            for (index, candidates) in &self.by_place {
                if let Some(backend) = service.backends.get_mut(*index) {
                    backend.kind = Some(proto::backend::Kind::Endpoints(listed(candidates.of(caller))));
                }
            }
        }
        target
    }
}

/// As a message has them.
pub(crate) fn listed(endpoints: Vec<Arc<proto::Endpoint>>) -> proto::Endpoints {
    let endpoints = endpoints.into_iter().map(Arc::unwrap_or_clone);
    proto::Endpoints {
        endpoints: endpoints.collect(),
    }
}

impl From<proto::Target> for TargetViews {
    /// The same for every caller, and nobody pays for it.
    fn from(target: proto::Target) -> Self {
        Self::new(&target, Vec::new(), Payer::default(), 0)
    }
}

impl Default for TargetViews {
    fn default() -> Self {
        proto::Target::default().into()
    }
}

impl PartialEq for TargetViews {
    fn eq(&self, other: &Self) -> bool {
        self.common == other.common && self.by_place == other.by_place
    }
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
