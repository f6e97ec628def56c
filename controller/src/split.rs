//! A target in two parts, as sessions tell of it: its routes, and the sets of endpoints that they name.
//!
//! Endpoints change often and routes seldom, so each part is an answer of its own, made, encoded and sent by itself. Of a set
//! that changed, a session that has the state before gets the difference where that is smaller: a Service of 1,000 pods that
//! is rolled out changes 2,000 times, and each time all of it would be 98 KB for every sidecar that calls it.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use outrigger_api::MAX_DISCOVERY_MESSAGE;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::to_sidecar;
use parking_lot::Mutex;
use prost::Message;

use crate::objects::ObjectName;
use crate::room::{Payer, Refusal, Taken, depending};
use crate::same::fingerprint;
use crate::topology::{Candidates, Needs, Place, listed, service_of};

/// Names the endpoints behind a Service's port, for callers that dialled an address of one family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SetName {
    /// Of the Service.
    pub namespace: Arc<str>,
    /// Of the Service.
    pub service: Arc<str>,
    /// The Service's port.
    pub port: u16,
    /// The family.
    pub ipv6: bool,
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ipv6 { "v6" } else { "v4" };
        write!(f, "{}/{}:{}/{family}", self.namespace, self.service, self.port)
    }
}

/// What is behind an address, without endpoints: encoded.
#[derive(Debug)]
pub struct Routes {
    message: Result<Bytes, Refusal>,
    service: Option<(ObjectName, u16)>,
    sets: Arc<[SetName]>,
    taken: Taken,
}

impl Routes {
    /// `target` names `sets`, and no others. Nobody pays for it.
    pub fn new(address: SocketAddr, target: proto::Target, sets: Vec<SetName>) -> Self {
        let service = service_of(&target);
        let message = proto::ToSidecar {
            kind: Some(to_sidecar::Kind::Routes(proto::Routes {
                address: address.to_string(),
                target: Some(target),
            })),
        };
        if message.encoded_len() > MAX_DISCOVERY_MESSAGE {
            return Self::refused(Refusal::TooLarge);
        }
        Self {
            message: Ok(message.encode_to_vec().into()),
            service,
            sets: sets.into(),
            taken: Taken::default(),
        }
    }

    /// Nothing can be told.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self {
            message: Err(refusal),
            service: None,
            sets: Arc::default(),
            taken: Taken::default(),
        }
    }

    /// Bytes that are charged for it.
    pub(crate) fn charged(&self) -> u64 {
        self.taken.bytes()
    }

    /// Paid for, or refused.
    pub(crate) fn paid(mut self, payer: &Payer, dependencies: usize) -> Self {
        let message = self.message.as_ref().map_or(0, Bytes::len);
        let sets = self.sets.len() * size_of::<SetName>();
        match payer.take(message + sets + depending(dependencies)) {
            Ok(taken) => self.taken = taken,
            Err(refusal) => self = Self::refused(refusal),
        }
        self
    }

    /// The message.
    ///
    /// # Errors
    /// Where there is none.
    pub fn message(&self) -> Result<Bytes, Refusal> {
        self.message.clone()
    }

    /// The Service behind the address, and its port.
    pub(crate) fn service(&self) -> Option<&(ObjectName, u16)> {
        self.service.as_ref()
    }

    /// What the message names.
    pub fn sets(&self) -> &Arc<[SetName]> {
        &self.sets
    }
}

impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        self.message == other.message && self.sets == other.sets
    }
}

/// A set of endpoints, for callers wherever they run. Each view is made once, when the first caller of it asks, and shared by all.
#[derive(Debug)]
pub struct EndpointViews {
    name: SetName,
    /// The last version of any view: another place is another state too.
    last: Arc<AtomicU64>,
    candidates: Result<Candidates, Refusal>,
    needs: Needs,
    views: Mutex<Views>,
    /// Of the version before: what views are compared with.
    before: Option<Before>,
    payer: Payer,
    taken: Taken,
}

/// Which endpoints a sidecar takes beyond those that every one does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Understands {
    /// Those that hints keep away from it.
    pub spills: bool,
    /// Those that are called by TLS, and are not in the mesh.
    pub tls: bool,
}

/// The views of a state that is no more.
#[derive(Debug)]
struct Before {
    needs: Needs,
    at: HashMap<(Place, Understands), Arc<View>>,
}

#[derive(Debug, Default)]
struct Views {
    /// At most as many as there are nodes, and again for sidecars that take endpoints which are not near.
    at: HashMap<(Place, Understands), Arc<View>>,
    /// By which endpoints they are: on most nodes they are the same.
    of: HashMap<u64, Arc<View>>,
}

/// What callers of one place get.
#[derive(Debug)]
pub struct View {
    name: SetName,
    version: u64,
    endpoints: Vec<Arc<proto::Endpoint>>,
    whole: OnceLock<Bytes>,
    /// From the state of an older version, if that is less than the whole.
    change: Option<(u64, Bytes)>,
    taken: Taken,
}

impl EndpointViews {
    /// Bytes that are charged for it.
    pub(crate) fn charged(&self) -> u64 {
        self.taken.bytes()
    }

    pub(crate) fn new(name: SetName, candidates: Candidates, payer: Payer, dependencies: usize) -> Self {
        let (candidates, taken) = match payer.take(candidates.size() + depending(dependencies)) {
            Ok(taken) => (Ok(candidates), taken),
            Err(refusal) => (Err(refusal), Taken::default()),
        };
        Self {
            name,
            last: Arc::default(),
            needs: candidates.as_ref().map_or_else(|_| Needs::default(), Candidates::needs),
            candidates,
            views: Mutex::default(),
            before: None,
            payer: payer.afterwards(),
            taken,
        }
    }

    pub(crate) fn refused(name: SetName, refusal: Refusal) -> Self {
        Self {
            candidates: Err(refusal),
            ..Self::new(name, Candidates::default(), Payer::default(), 0)
        }
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.candidates.is_err()
    }

    /// Takes the place of another state of the same set.
    pub(crate) fn follow(&mut self, before: &Self) {
        self.last = Arc::clone(&before.last);
        if !self.is_refused() {
            self.before = Some(Before {
                needs: before.needs,
                at: before.views.lock().at.clone(),
            });
        }
    }

    /// What a caller gets; endpoints that hints keep away from it only if there is room for them. It is the same one, with the same version, as
    /// long as nothing of it changes.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn view(&self, caller: &Place, understands: Understands) -> Result<Arc<View>, Refusal> {
        let candidates = self.candidates.as_ref().map_err(|refusal| *refusal)?;
        let spills = understands.spills && !candidates.is_same_everywhere();
        let tls = understands.tls || !candidates.secured;
        match self.view_with(candidates, caller, Understands { spills, tls }) {
            Err(_) if spills => self.view_with(candidates, caller, Understands { spills: false, tls }),
            view => view,
        }
    }

    fn view_with(
        &self,
        candidates: &Candidates,
        caller: &Place,
        understands: Understands,
    ) -> Result<Arc<View>, Refusal> {
        let Understands { spills, tls } = understands;
        let at = (self.needs.of(caller), understands);
        let mut views = self.views.lock();
        if let Some(view) = views.at.get(&at) {
            return Ok(Arc::clone(view));
        }
        // The first is paid for with the candidates. Of others, as much as they can become, before they are made.
        let first = views.at.is_empty();
        let mut chosen = candidates.chosen(&at.0);
        if !tls {
            chosen.retain(|candidate| !candidate.endpoint.identity.is_empty());
        }
        // Of those that are not near a view has its own.
        let others = if spills { chosen.others } else { Vec::new() };
        let own: usize = others.iter().map(|c| View::EACH + c.endpoint.encoded_len()).sum();
        let shared = if first { 0 } else { candidates.list.len() * View::EACH };
        // They leave room for as much again as all of this takes: what only helps takes nothing away from what is called.
        let spare = if others.is_empty() { 0 } else { candidates.size() };
        drop(self.payer.take(shared + own + spare)?);
        let near = chosen.near.iter().map(|c| Arc::clone(&c.endpoint));
        let remote = others.iter().map(|c| {
            let endpoint = proto::Endpoint::clone(&c.endpoint);
            Arc::new(proto::Endpoint {
                remote: true,
                ..endpoint
            })
        });
        let endpoints = fitting(near.chain(remote).collect());
        let which: Vec<_> = endpoints.iter().map(Arc::as_ptr).collect();
        let which = fingerprint(which);
        let view = match views.of.get(&which) {
            Some(view) if view.endpoints == endpoints => Arc::clone(view),
            _ => self.make((caller, understands), endpoints, first, own)?,
        };
        views.of.insert(which, Arc::clone(&view));
        views.at.insert(at, Arc::clone(&view));
        Ok(view)
    }

    fn make(
        &self,
        (caller, understands): (&Place, Understands),
        endpoints: Vec<Arc<proto::Endpoint>>,
        paid: bool,
        own: usize,
    ) -> Result<Arc<View>, Refusal> {
        let before = self.before.as_ref();
        let before = before.and_then(|before| before.at.get(&(before.needs.of(caller), understands)));
        if let Some(before) = before.filter(|before| before.endpoints == endpoints) {
            return Ok(Arc::clone(before));
        }
        let version = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut view = View::new(&self.name, version, endpoints, before.map(|before| &**before));
        let shared = if paid { 0 } else { view.size() };
        view.taken = self.payer.take(shared + own)?;
        Ok(Arc::new(view))
    }
}

impl PartialEq for EndpointViews {
    fn eq(&self, other: &Self) -> bool {
        self.candidates == other.candidates
    }
}

impl View {
    /// What an endpoint takes, in bytes.
    const EACH: usize = 128;

    fn new(name: &SetName, version: u64, endpoints: Vec<Arc<proto::Endpoint>>, before: Option<&Self>) -> Self {
        let mut view = Self {
            name: name.clone(),
            version,
            endpoints,
            whole: OnceLock::new(),
            change: None,
            taken: Taken::default(),
        };
        view.change = before.and_then(|before| {
            let change = view.since(before);
            let smaller = change.encoded_len() < view.state().encoded_len();
            smaller.then(|| (before.version, encoded(to_sidecar::Kind::EndpointSet(change))))
        });
        view
    }

    /// What it takes, in bytes, with all that will be encoded.
    fn size(&self) -> usize {
        let whole: usize = self.endpoints.iter().map(|endpoint| in_list(endpoint)).sum();
        let change = self.change.as_ref().map_or(0, |(_, change)| change.len());
        whole + change + self.endpoints.len() * size_of::<Arc<proto::Endpoint>>()
    }

    /// Another version is another state.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The message for a session: all of it, or the change since the version that the session has.
    pub fn message(&self, has: Option<u64>) -> Bytes {
        match &self.change {
            Some((since, change)) if has == Some(*since) => change.clone(),
            _ => self
                .whole
                .get_or_init(|| encoded(to_sidecar::Kind::EndpointSet(self.state())))
                .clone(),
        }
    }

    fn state(&self) -> proto::EndpointSet {
        proto::EndpointSet {
            name: self.name.to_string(),
            version: self.version,
            since: 0,
            endpoints: listed(self.endpoints.clone()).endpoints,
            removed: Vec::new(),
        }
    }

    fn since(&self, before: &Self) -> proto::EndpointSet {
        let by_address = |view: &Self| -> HashMap<_, _> {
            let endpoints = view.endpoints.iter();
            endpoints.map(|e| (e.address.clone(), Arc::clone(e))).collect()
        };
        let (old, new) = (by_address(before), by_address(self));
        let changed = self.endpoints.iter().filter(|e| old.get(&e.address) != Some(e));
        let removed = before.endpoints.iter().map(|e| &e.address);
        proto::EndpointSet {
            name: self.name.to_string(),
            version: self.version,
            since: before.version,
            endpoints: listed(changed.cloned().collect()).endpoints,
            removed: removed.filter(|address| !new.contains_key(*address)).cloned().collect(),
        }
    }
}

/// As many as a message can hold: callers of a Service that has more use a part of it, and their sessions go on.
fn fitting(mut endpoints: Vec<Arc<proto::Endpoint>>) -> Vec<Arc<proto::Endpoint>> {
    // A name, two numbers, and what tells how long all of it is.
    let mut left = MAX_DISCOVERY_MESSAGE - 1024;
    let fitting = endpoints.iter().take_while(|endpoint| {
        let length = in_list(endpoint);
        let fits = length <= left;
        left = left.saturating_sub(length);
        fits
    });
    endpoints.truncate(fitting.count());
    endpoints
}

/// An endpoint with its own length and the number of its field, in bytes.
fn in_list(endpoint: &proto::Endpoint) -> usize {
    endpoint.encoded_len() + prost::length_delimiter_len(endpoint.encoded_len()) + 1
}

/// The message of a session.
pub(crate) fn encoded(kind: to_sidecar::Kind) -> Bytes {
    proto::ToSidecar { kind: Some(kind) }.encode_to_vec().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::room::Room;
    use crate::topology::Candidate;

    const NEAR: Understands = Understands {
        spills: false,
        tls: false,
    };
    const SPILLS: Understands = Understands { spills: true, ..NEAR };

    fn candidates(addresses: impl IntoIterator<Item = u32>) -> Candidates {
        let endpoints = addresses.into_iter().map(|n| proto::Endpoint {
            address: format!("10.244.{}.{}:8080", n / 256, n % 256),
            identity: "spiffe://cluster.local/ns/shop/sa/orders".to_owned(),
            zone: "eu-west-1a".to_owned(),
            pod: format!("orders-6d5f7c9b8-{n:05}"),
            remote: false,
        });
        Candidates {
            local: false,
            secured: false,
            list: endpoints.map(Candidate::from).collect(),
        }
    }

    fn set(addresses: impl IntoIterator<Item = u32>) -> EndpointViews {
        set_of(candidates(addresses))
    }

    fn local_set(list: Vec<Candidate>) -> EndpointViews {
        set_of(Candidates {
            local: true,
            secured: false,
            list,
        })
    }

    fn set_of(candidates: Candidates) -> EndpointViews {
        let name = SetName {
            namespace: "shop".into(),
            service: "orders".into(),
            port: 80,
            ipv6: false,
        };
        EndpointViews::new(name, candidates, Payer::default(), 0)
    }

    fn read(message: &Bytes) -> proto::EndpointSet {
        match proto::ToSidecar::decode(message.clone()).unwrap().kind {
            Some(to_sidecar::Kind::EndpointSet(set)) => set,
            other => panic!("{other:?}"),
        }
    }

    /// With how many bytes a flap of one endpoint is told.
    #[test]
    fn a_flap_of_one_of_a_thousand_is_small() {
        let whole = set(0..1000);
        let first = whole.view(&Place::default(), NEAR).unwrap();
        let mut without = set(1..1000);
        without.follow(&whole);
        let second = without.view(&Place::default(), NEAR).unwrap();
        let change = second.message(Some(first.version()));
        let whole = second.message(None);
        assert_eq!(read(&change).removed, ["10.244.0.0:8080"]);
        assert!(
            change.len() < 100 && whole.len() > 90_000,
            "{} {}",
            change.len(),
            whole.len()
        );
        // Whoever has another state gets all of it.
        assert_eq!(read(&second.message(Some(77))).since, 0);
        let mut again = set(0..1000);
        again.follow(&without);
        let change = again
            .view(&Place::default(), NEAR)
            .unwrap()
            .message(Some(second.version()));
        assert!(change.len() < 250, "{}", change.len());
        assert_eq!(read(&change).endpoints.len(), 1);
    }

    /// One that were larger would end the session of every caller, with all its other targets.
    #[test]
    fn a_message_is_never_larger_than_a_sidecar_takes() {
        let large = set(0..60_000);
        let view = large.view(&Place::default(), NEAR).unwrap();
        let message = view.message(None);
        assert!(message.len() <= MAX_DISCOVERY_MESSAGE && message.len() > MAX_DISCOVERY_MESSAGE - 2048);
        let all = large.candidates.as_ref().unwrap().of(&Place::default());
        assert_eq!(
            read(&message).endpoints,
            listed(all[..view.endpoints.len()].to_vec()).endpoints
        );
        let mut less = set(1..60_000);
        less.follow(&large);
        let change = less
            .view(&Place::default(), NEAR)
            .unwrap()
            .message(Some(view.version()));
        assert!(change.len() < 1024, "{}", change.len());
    }

    #[test]
    fn what_is_smaller_is_sent() {
        let before = set(0..3);
        let has = before.view(&Place::default(), NEAR).unwrap().version();
        let mut after = set(10..13);
        after.follow(&before);
        let sent = read(&after.view(&Place::default(), NEAR).unwrap().message(Some(has)));
        assert_eq!((sent.since, sent.endpoints.len(), sent.removed.len()), (0, 3, 0));
    }

    #[test]
    fn a_view_that_does_not_change_keeps_its_version() {
        let on = |node: &str, n: u32| {
            let mut candidates = candidates([n]);
            candidates.list[0].node = Some(node.into());
            candidates.list.remove(0)
        };
        let local = |here: u32, there: u32| local_set(vec![on("n1", here), on("n2", there)]);
        let at = |node: &str| Place {
            node: Some(node.into()),
            zone: None,
        };
        let before = local(1, 2);
        let (here, there) = (
            before.view(&at("n1"), NEAR).unwrap(),
            before.view(&at("n2"), NEAR).unwrap(),
        );
        let mut after = local(1, 3);
        after.follow(&before);
        assert!(Arc::ptr_eq(&after.view(&at("n1"), NEAR).unwrap(), &here));
        assert_ne!(after.view(&at("n2"), NEAR).unwrap().version(), there.version());
    }

    /// A caller whose place becomes known, or becomes another one, gets what is there.
    #[test]
    fn views_of_different_places_have_different_versions() {
        let mut list = candidates([1, 2]).list;
        for (candidate, node) in list.iter_mut().zip(["n1", "n2"]) {
            candidate.node = Some(node.into());
        }
        let set = local_set(list);
        let at = |node: &str| Place {
            node: Some(node.into()),
            zone: None,
        };
        let (here, there) = (set.view(&at("n1"), NEAR).unwrap(), set.view(&at("n2"), NEAR).unwrap());
        assert_ne!(here.endpoints, there.endpoints);
        assert_ne!(here.version(), there.version());
        // Where nobody is on the node there is nobody, on whichever.
        let nobody = ["n3", "n4"].map(|node| set.view(&at(node), NEAR).unwrap());
        assert!(nobody[0].endpoints.is_empty() && Arc::ptr_eq(&nobody[0], &nobody[1]));
    }

    fn in_zones(zones: u32, each: u32) -> Candidates {
        let mut candidates = candidates(0..zones * each);
        for (candidate, n) in candidates.list.iter_mut().zip(0..) {
            candidate.for_zones.push(format!("z{}", n % zones).into());
        }
        candidates
    }

    fn zone(n: u32) -> Place {
        Place {
            node: None,
            zone: Some(format!("z{n}").into()),
        }
    }

    /// Near, and not near.
    fn sides(view: &View) -> (usize, usize) {
        let remote = view.endpoints.iter().filter(|endpoint| endpoint.remote).count();
        (view.endpoints.len() - remote, remote)
    }

    #[test]
    fn who_understands_it_is_told_of_endpoints_that_are_not_near() {
        let set = set_of(in_zones(3, 5));
        let spilling = set.view(&zone(1), SPILLS).unwrap();
        assert_eq!(sides(&spilling), (5, 10));
        let told = read(&spilling.message(None));
        assert!(told.endpoints[..5].iter().all(|e| !e.remote) && told.endpoints[5..].iter().all(|e| e.remote));
        // Others are told what they always were.
        let plain = set.view(&zone(1), NEAR).unwrap();
        assert_eq!(sides(&plain), (5, 0));
        assert_ne!(plain.version(), spilling.version());
        for (caller, spills, same) in [(zone(1), SPILLS, &spilling), (zone(1), NEAR, &plain)] {
            assert!(Arc::ptr_eq(&set.view(&caller, spills).unwrap(), same));
        }
        // Where hints keep nobody away it is one view.
        let all = self::set(0..5);
        assert!(Arc::ptr_eq(
            &all.view(&zone(1), SPILLS).unwrap(),
            &all.view(&zone(2), NEAR).unwrap()
        ));
        // What changes is told as a change, and what does not is the same.
        let mut after = set_of(in_zones(3, 5));
        after.follow(&set);
        assert!(Arc::ptr_eq(&after.view(&zone(1), SPILLS).unwrap(), &spilling));
        let mut fewer = in_zones(3, 5);
        fewer.list.remove(2);
        let mut fewer = set_of(fewer);
        fewer.follow(&after);
        let change = read(&fewer.view(&zone(1), SPILLS).unwrap().message(Some(spilling.version())));
        assert_eq!((change.endpoints.len(), change.removed.len()), (0, 1));
    }

    #[test]
    fn what_is_told_beside_near_endpoints_is_paid_for_and_left_out_where_there_is_no_room() {
        let candidates = in_zones(10, 100);
        let room = Room::new(4 << 20);
        let name = SetName {
            namespace: "shop".into(),
            service: "orders".into(),
            port: 80,
            ipv6: false,
        };
        let views = EndpointViews::new(name, candidates, room.payer(&"shop".into()), 0);
        let before = room.used();
        views.view(&zone(0), SPILLS).unwrap();
        assert!(room.used() - before > 900 * 128, "{}", room.used() - before);
        let sides: Vec<_> = (1..10).map(|n| sides(&views.view(&zone(n), SPILLS).unwrap())).collect();
        assert!(sides.iter().all(|(near, _)| *near == 100), "{sides:?}");
        assert_eq!(sides[0].1, 900);
        assert_eq!(sides[8].1, 0, "half of the room is the namespace's");
        assert!(room.used() <= 2 << 20);
    }
}
