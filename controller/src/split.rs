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
use crate::topology::{Candidates, Needs, Place};

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
#[derive(Debug, PartialEq)]
pub struct Routes {
    message: Bytes,
    service: Option<(ObjectName, u16)>,
    sets: Vec<SetName>,
}

impl Routes {
    /// `target` names `sets`, and no others.
    pub fn new(address: SocketAddr, target: proto::Target, sets: Vec<SetName>) -> Self {
        let service = service_of(&target);
        let routes = proto::Routes {
            address: address.to_string(),
            target: Some(target),
        };
        Self {
            message: encoded(to_sidecar::Kind::Routes(routes)),
            service,
            sets,
        }
    }

    /// The message.
    pub fn message(&self) -> Bytes {
        self.message.clone()
    }

    /// The Service behind the address, and its port.
    pub(crate) fn service(&self) -> Option<&(ObjectName, u16)> {
        self.service.as_ref()
    }

    /// What the message names.
    pub fn sets(&self) -> &[SetName] {
        &self.sets
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

/// A set of endpoints, for callers wherever they run. Each view is made once, when the first caller of it asks, and shared by all.
#[derive(Debug)]
pub struct EndpointViews {
    name: SetName,
    /// The last version of any view: another place is another state too.
    last: Arc<AtomicU64>,
    candidates: Candidates,
    needs: Needs,
    /// At most as many as there are nodes.
    views: Mutex<Views>,
    /// Of the version before: what views are compared with.
    before: Option<(Needs, Views)>,
}

type Views = HashMap<Place, Arc<View>>;

/// What callers of one place get.
#[derive(Debug)]
pub struct View {
    name: SetName,
    version: u64,
    endpoints: Vec<proto::Endpoint>,
    whole: OnceLock<Bytes>,
    /// From the state of an older version, if that is less than the whole.
    change: Option<(u64, Bytes)>,
}

impl EndpointViews {
    pub(crate) fn new(name: SetName, candidates: Candidates) -> Self {
        Self {
            name,
            last: Arc::default(),
            needs: candidates.needs(),
            candidates,
            views: Mutex::default(),
            before: None,
        }
    }

    /// Takes the place of another state of the same set.
    pub(crate) fn follow(&mut self, before: &Self) {
        self.last = Arc::clone(&before.last);
        self.before = Some((before.needs, before.views.lock().clone()));
    }

    /// What a caller gets. It is the same one, with the same version, as long as nothing of it changes.
    pub fn view(&self, caller: &Place) -> Arc<View> {
        let place = self.needs.of(caller);
        let mut views = self.views.lock();
        if let Some(view) = views.get(&place) {
            return Arc::clone(view);
        }
        let endpoints = fitting(self.candidates.of(&place));
        let before = self
            .before
            .as_ref()
            .and_then(|(needs, views)| views.get(&needs.of(caller)));
        let view = match before {
            Some(before) if before.endpoints == endpoints => Arc::clone(before),
            _ => Arc::new(View::new(
                &self.name,
                self.last.fetch_add(1, Ordering::Relaxed) + 1,
                endpoints,
                before.map(|before| &**before),
            )),
        };
        views.insert(place, Arc::clone(&view));
        view
    }
}

impl PartialEq for EndpointViews {
    fn eq(&self, other: &Self) -> bool {
        self.candidates == other.candidates
    }
}

impl View {
    fn new(name: &SetName, version: u64, endpoints: Vec<proto::Endpoint>, before: Option<&Self>) -> Self {
        let mut view = Self {
            name: name.clone(),
            version,
            endpoints,
            whole: OnceLock::new(),
            change: None,
        };
        view.change = before.and_then(|before| {
            let change = view.since(before);
            let smaller = change.encoded_len() < view.state().encoded_len();
            smaller.then(|| (before.version, encoded(to_sidecar::Kind::EndpointSet(change))))
        });
        view
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
            endpoints: self.endpoints.clone(),
            removed: Vec::new(),
        }
    }

    fn since(&self, before: &Self) -> proto::EndpointSet {
        let by_address = |view: &Self| -> HashMap<_, _> {
            let endpoints = view.endpoints.iter();
            endpoints.map(|e| (e.address.clone(), e.clone())).collect()
        };
        let (old, new) = (by_address(before), by_address(self));
        let changed = self.endpoints.iter().filter(|e| old.get(&e.address) != Some(e));
        let removed = before.endpoints.iter().map(|e| &e.address);
        proto::EndpointSet {
            name: self.name.to_string(),
            version: self.version,
            since: before.version,
            endpoints: changed.cloned().collect(),
            removed: removed.filter(|address| !new.contains_key(*address)).cloned().collect(),
        }
    }
}

/// As many as a message can hold: callers of a Service that has more use a part of it, and their sessions go on.
fn fitting(mut endpoints: Vec<proto::Endpoint>) -> Vec<proto::Endpoint> {
    // A name, two numbers, and what tells how long all of it is.
    let mut left = MAX_DISCOVERY_MESSAGE - 1024;
    let fitting = endpoints.iter().take_while(|endpoint| {
        // The endpoint's own length, and the number of its field.
        let length = endpoint.encoded_len() + prost::length_delimiter_len(endpoint.encoded_len()) + 1;
        let fits = length <= left;
        left = left.saturating_sub(length);
        fits
    });
    endpoints.truncate(fitting.count());
    endpoints
}

/// The message of a session.
pub(crate) fn encoded(kind: to_sidecar::Kind) -> Bytes {
    proto::ToSidecar { kind: Some(kind) }.encode_to_vec().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::topology::Candidate;

    fn candidates(addresses: impl IntoIterator<Item = u32>) -> Candidates {
        let endpoints = addresses.into_iter().map(|n| proto::Endpoint {
            address: format!("10.244.{}.{}:8080", n / 256, n % 256),
            identity: "spiffe://cluster.local/ns/shop/sa/orders".to_owned(),
            zone: "eu-west-1a".to_owned(),
            pod: format!("orders-6d5f7c9b8-{n:05}"),
        });
        Candidates {
            local: false,
            list: endpoints.map(Candidate::from).collect(),
        }
    }

    fn set(addresses: impl IntoIterator<Item = u32>) -> EndpointViews {
        let name = SetName {
            namespace: "shop".into(),
            service: "orders".into(),
            port: 80,
            ipv6: false,
        };
        EndpointViews::new(name, candidates(addresses))
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
        let first = whole.view(&Place::default());
        let mut without = set(1..1000);
        without.follow(&whole);
        let second = without.view(&Place::default());
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
        let change = again.view(&Place::default()).message(Some(second.version()));
        assert!(change.len() < 250, "{}", change.len());
        assert_eq!(read(&change).endpoints.len(), 1);
    }

    /// One that were larger would end the session of every caller, with all its other targets.
    #[test]
    fn a_message_is_never_larger_than_a_sidecar_takes() {
        let large = set(0..60_000);
        let view = large.view(&Place::default());
        let message = view.message(None);
        assert!(message.len() <= MAX_DISCOVERY_MESSAGE && message.len() > MAX_DISCOVERY_MESSAGE - 2048);
        assert_eq!(
            read(&message).endpoints[..],
            large.candidates.of(&Place::default())[..view.endpoints.len()]
        );
        let mut less = set(1..60_000);
        less.follow(&large);
        let change = less.view(&Place::default()).message(Some(view.version()));
        assert!(change.len() < 1024, "{}", change.len());
    }

    #[test]
    fn what_is_smaller_is_sent() {
        let before = set(0..3);
        let has = before.view(&Place::default()).version();
        let mut after = set(10..13);
        after.follow(&before);
        let sent = read(&after.view(&Place::default()).message(Some(has)));
        assert_eq!((sent.since, sent.endpoints.len(), sent.removed.len()), (0, 3, 0));
    }

    #[test]
    fn a_view_that_does_not_change_keeps_its_version() {
        let on = |node: &str, n: u32| {
            let mut candidates = candidates([n]);
            candidates.list[0].node = Some(node.into());
            candidates.list.remove(0)
        };
        let local = |here: u32, there: u32| {
            let mut set = set([]);
            set.candidates = Candidates {
                local: true,
                list: vec![on("n1", here), on("n2", there)],
            };
            set.needs = set.candidates.needs();
            set
        };
        let at = |node: &str| Place {
            node: Some(node.into()),
            zone: None,
        };
        let before = local(1, 2);
        let (here, there) = (before.view(&at("n1")), before.view(&at("n2")));
        let mut after = local(1, 3);
        after.follow(&before);
        assert!(Arc::ptr_eq(&after.view(&at("n1")), &here));
        assert_ne!(after.view(&at("n2")).version(), there.version());
    }

    /// A caller whose place becomes known, or becomes another one, gets what is there.
    #[test]
    fn views_of_different_places_have_different_versions() {
        let mut set = set([]);
        let mut list = candidates([1, 2]).list;
        for (candidate, node) in list.iter_mut().zip(["n1", "n2"]) {
            candidate.node = Some(node.into());
        }
        set.candidates = Candidates { local: true, list };
        set.needs = set.candidates.needs();
        let at = |node: &str| Place {
            node: Some(node.into()),
            zone: None,
        };
        let (here, there) = (set.view(&at("n1")), set.view(&at("n2")));
        assert_ne!(here.endpoints, there.endpoints);
        assert_ne!(here.version(), there.version());
    }
}
