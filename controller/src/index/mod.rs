//! The index: Kubernetes objects in, answers out, with no I/O.
//!
//! Objects are applied and deleted as plain data. Whoever watches an answer gets it now, and again after each change that
//! it depends on: an answer remembers everything it was made from (`store::Dep`), and only answers that somebody
//! watches are kept. Changes are gathered for a few milliseconds, so that a rolling update is not a thousand answers.

mod callers;
mod keys;
mod watches;

use std::collections::{BTreeSet, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

#[cfg(test)]
pub(crate) use self::callers::Count;
pub(crate) use self::callers::{Callers, Of};
use self::keys::KeyWatch;
use self::watches::{Answer, Watches};
use crate::access::{Access, PodKey};
use crate::answers::limits::Counted;
use crate::answers::{access, build, limits, own};
use crate::discovery::{Caller, Discover, Known, Limits};
use crate::metrics::{AnswerKind, Metrics};
use crate::objects::networks::Networks;
use crate::objects::policy::PolicyKind;
use crate::objects::{Kind, Object, ObjectName, Pod};
use crate::room::Room;
use crate::same::fingerprint;
use crate::session_keys::SessionSecret;
use crate::split::{EndpointViews, Routes, SetName};
use crate::store::{Dep, Deps, Store, Touched};
use crate::topic::{Followed, Reader};
use crate::topology::{Place, TargetViews};

/// How long changes are gathered.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// How often answers that nobody watches any more are dropped.
const SWEEP: Duration = Duration::from_secs(10);

/// The index of one cluster.
pub struct Index {
    inner: Mutex<Inner>,
    /// Whoever has flushed knows that all is made anew that was changed before.
    flushing: Mutex<()>,
    /// Something was applied.
    changed: Notify,
    synced: watch::Sender<bool>,
    /// Counts changes that conditions may depend on.
    statuses: watch::Sender<u64>,
    bundle_namespaces: watch::Sender<BTreeSet<Arc<str>>>,
    keys: KeyWatch,
    /// For answers.
    room: Room,
    /// Of the time since the last flush.
    counted: Counted,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Inner {
    /// Copied when it changes while somebody has a snapshot of it.
    store: Arc<Store>,
    touched: Touched,
    routes: Watches<(SocketAddr, Arc<str>), Routes>,
    endpoints: Watches<SetName, EndpointViews>,
    /// For sidecars of the version before the session.
    targets: Watches<(SocketAddr, Arc<str>), TargetViews>,
    /// One for each pod that asks.
    places: Watches<Caller, Place>,
    workloads: Watches<PodKey, Known>,
    accesses: Watches<PodKey, Access>,
    limits: Watches<PodKey, Limits>,
}

impl Index {
    /// An empty index of the trust domain. Somebody must drive it with [`Index::run`].
    pub fn new(trust_domain: &str, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::within(Room::default(), trust_domain, metrics)
    }

    /// The same, whose answers may take so much memory.
    pub fn within(room: Room, trust_domain: &str, metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.watch_room(&room);
        let mut inner = Inner::default();
        Arc::make_mut(&mut inner.store).trust_domain = trust_domain.to_owned();
        Arc::new(Self {
            inner: Mutex::new(inner),
            flushing: Mutex::default(),
            changed: Notify::new(),
            synced: watch::Sender::new(false),
            statuses: watch::Sender::new(0),
            bundle_namespaces: watch::Sender::default(),
            keys: KeyWatch::default(),
            room,
            counted: Counted::default(),
            metrics,
        })
    }

    /// Puts an object in the place of the one before.
    pub fn apply(&self, name: ObjectName, object: Object) {
        self.change(|store, touched| store.apply(name, object, touched));
    }

    /// Takes an object out.
    pub fn delete(&self, kind: Kind, name: ObjectName) {
        self.change(|store, touched| store.delete(kind, name, touched));
    }

    /// Takes out all objects of the kind but those named: after a complete list.
    pub fn retain(&self, kind: Kind, names: &HashSet<ObjectName>) {
        self.change(|store, touched| {
            for name in store.names(kind).into_iter().filter(|name| !names.contains(name)) {
                store.delete(kind, name, touched);
            }
        });
    }

    /// The networks of the cluster's Services and pods, as the operator says, beside its ServiceCIDRs.
    pub fn set_cluster_networks(&self, networks: Networks) {
        self.change(|store, touched| store.set_cluster_networks(networks, touched));
    }

    /// The pod that this controller is. A policy on its namespace holds for the whole mesh.
    pub fn set_own(&self, namespace: &str, pod: &str) {
        let own = ObjectName::new(namespace, pod);
        self.change(|store, touched| store.set_own(own, touched));
    }

    /// What keys of sessions are derived from.
    pub fn set_session_secret(&self, secret: SessionSecret) {
        self.change(|store, touched| store.set_session_secret(secret, touched));
    }

    /// Says which fields the kind's CRD has not, of those that this controller knows. None where it is of this version, or newer.
    pub(crate) fn set_old_crd(&self, kind: PolicyKind, lacking: Vec<String>) {
        self.change(|store, touched| store.set_old_crd(kind, lacking, touched));
    }

    /// Says whether a Service of the type ExternalName may be a route's backend.
    pub fn set_external_names_allowed(&self, allowed: bool) {
        self.change(|store, touched| {
            store.external_names_allowed = allowed;
            touched.statuses = true;
        });
    }

    /// Says that objects of the kind are to come, and that until [`Self::set_listed`] nobody knows which. Without a word, a kind is listed.
    pub(crate) fn set_unlisted(&self, kind: Kind) {
        self.change(|store, touched| store.set_unlisted(kind, touched));
    }

    /// Says that all objects of the kind are known.
    pub(crate) fn set_listed(&self, kind: Kind) {
        // It is said again and again of a kind that the cluster does not have.
        if !self.read(|store| store.is_listed(kind)) {
            self.change(|store, touched| store.set_listed(kind, touched));
        }
    }

    /// Says that all objects have been applied for the first time.
    pub fn set_synced(&self) {
        self.change(|store, touched| store.complete(touched));
        self.flush();
        self.synced.send_replace(true);
    }

    /// Sends answers on after changes, for ever.
    pub async fn run(&self) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                () = self.changed.notified() => {
                    tokio::time::sleep(DEBOUNCE).await;
                    self.flush();
                }
                _ = sweep.tick() => {
                    self.sweep();
                    self.retry();
                }
            }
        }
    }

    /// Drops what nobody watches.
    fn sweep(&self) {
        let mut inner = self.inner.lock();
        inner.accesses.sweep();
        inner.limits.sweep();
        inner.routes.sweep();
        inner.endpoints.sweep();
        inner.targets.sweep();
        inner.places.sweep();
        inner.workloads.sweep();
        for (kind, answers) in [
            (AnswerKind::Access, inner.accesses.len()),
            (AnswerKind::Limits, inner.limits.len()),
            (AnswerKind::Routes, inner.routes.len()),
            (AnswerKind::Endpoints, inner.endpoints.len()),
            (AnswerKind::Target, inner.targets.len()),
            (AnswerKind::Workload, inner.workloads.len()),
        ] {
            self.metrics.answers(kind, answers);
        }
        self.metrics.networks(inner.store.outside_networks());
    }

    /// Makes again what a session goes on without, where there is room for it now.
    fn retry(&self) {
        self.rebuild(
            |accesses| accesses.those(Access::has_room_now),
            |inner| (&mut inner.accesses, &inner.store),
            access::access,
        );
        self.rebuild(
            |limits| limits.those(Limits::has_room_now),
            |inner| (&mut inner.limits, &inner.store),
            |store, room, pod, deps| limits::limits(store, room, &self.counted, pod, deps),
        );
        self.rebuild(
            |workloads| workloads.those(Known::has_room_now),
            |inner| (&mut inner.workloads, &inner.store),
            own::known,
        );
    }

    /// Makes all answers anew that depend on what was changed since the last time.
    pub fn flush(&self) {
        let _alone = self.flushing.lock();
        let touched = {
            let mut inner = self.inner.lock();
            let touched = std::mem::take(&mut inner.touched);
            // Whoever was counted with what has changed is in an answer that is made anew now.
            self.counted.clear();
            if touched.deps.contains(&Dep::Networks) {
                self.metrics.networks(inner.store.outside_networks());
            }
            if touched.keys {
                self.keys.sources.send_replace(inner.store.key_sources());
            }
            if touched.namespaces {
                let namespaces = inner.store.bundle_namespaces();
                self.bundle_namespaces.send_if_modified(|old| {
                    let changed = *old != namespaces;
                    *old = namespaces;
                    changed
                });
            }
            touched
        };
        let deps = &touched.deps;
        // First: who must not be let in any more has the least time.
        self.renew(deps, |inner| (&mut inner.accesses, &inner.store), access::access);
        self.renew(
            deps,
            |inner| (&mut inner.limits, &inner.store),
            |store, room, pod, deps| limits::limits(store, room, &self.counted, pod, deps),
        );
        self.renew(deps, |inner| (&mut inner.endpoints, &inner.store), build::endpoints);
        self.renew(deps, |inner| (&mut inner.routes, &inner.store), build::routes);
        self.renew(deps, |inner| (&mut inner.targets, &inner.store), build::target);
        self.renew(
            deps,
            |inner| (&mut inner.places, &inner.store),
            |store, _, caller, deps| own::place(store, caller, deps),
        );
        self.renew(deps, |inner| (&mut inner.workloads, &inner.store), own::known);
        if touched.statuses {
            self.statuses.send_modify(|count| *count += 1);
        }
    }

    /// Makes those anew that depend on one of `touched`.
    fn renew<K: Clone + Eq + Hash, V: Answer>(
        &self,
        touched: &HashSet<Dep>,
        of: fn(&mut Inner) -> (&mut Watches<K, V>, &Store),
        build: impl Fn(&Store, &Room, &K, &mut Deps) -> V,
    ) {
        self.rebuild(|watches| watches.stale(touched), of, build);
    }

    /// One after the other, and others have their turn in between: a large answer takes milliseconds. What changes meanwhile is
    /// touched for the next time.
    fn rebuild<K: Clone + Eq + Hash, V: Answer>(
        &self,
        which: impl FnOnce(&mut Watches<K, V>) -> Vec<K>,
        of: fn(&mut Inner) -> (&mut Watches<K, V>, &Store),
        build: impl Fn(&Store, &Room, &K, &mut Deps) -> V,
    ) {
        let keys = which(of(&mut self.inner.lock()).0);
        for key in keys {
            let mut inner = self.inner.lock();
            let (watches, store) = of(&mut inner);
            watches.rebuild(&key, |freed, key, deps| {
                build(store, &self.room.instead_of(freed), key, deps)
            });
        }
    }

    /// Changes whenever conditions of routes or policies may have changed.
    pub fn status_changes(&self) -> watch::Receiver<u64> {
        self.statuses.subscribe()
    }

    /// The namespaces in which pods mount the trust bundle.
    pub fn bundle_namespaces(&self) -> watch::Receiver<BTreeSet<Arc<str>>> {
        self.bundle_namespaces.subscribe()
    }

    /// What the sidecar of a pod is told of who may call it, by the objects that there are now. `None`: it cannot be read again.
    pub fn who_may_call(&self, pod: &PodKey) -> Option<outrigger_api::access::Access> {
        self.read(|store| access::access(store, &self.room, pod, &mut Deps::new()))
            .said()
    }

    /// What is known of a pod.
    pub(crate) fn pod(&self, name: &ObjectName) -> Option<Pod> {
        self.read(|store| store.pods.get(name).cloned())
    }

    /// The pod that has the address, if exactly one has it.
    pub(crate) fn pod_at(&self, ip: IpAddr) -> Option<ObjectName> {
        self.read(|store| store.pod_at(ip).map(|(name, _)| name.clone()))
    }

    /// Reads the store.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Store) -> T) -> T {
        read(&self.inner.lock().store)
    }

    /// The store as it is now, whatever changes later. Whoever has it holds up nobody.
    pub(crate) fn snapshot(&self) -> Arc<Store> {
        Arc::clone(&self.inner.lock().store)
    }

    /// Who is told of what.
    pub(crate) fn callers(&self) -> Callers<'_> {
        Callers::new(self)
    }

    #[cfg(test)]
    pub(crate) fn is_held(&self) -> bool {
        self.inner.is_locked()
    }

    fn change(&self, change: impl FnOnce(&mut Store, &mut Touched)) {
        let mut inner = self.inner.lock();
        let Inner { store, touched, .. } = &mut *inner;
        change(Arc::make_mut(store), touched);
        self.changed.notify_one();
    }
}

impl Answer for Routes {
    fn charged(&self) -> u64 {
        self.charged()
    }

    fn is_refused(&self) -> bool {
        self.message().is_err()
    }

    fn fingerprint(&self) -> Option<u64> {
        self.message().ok().map(fingerprint)
    }
}

impl Answer for EndpointViews {
    fn charged(&self) -> u64 {
        self.charged()
    }

    fn replaces(&mut self, before: &Self) {
        self.follow(before);
    }

    fn is_refused(&self) -> bool {
        self.is_refused()
    }
}

impl Answer for TargetViews {
    fn charged(&self) -> u64 {
        self.charged()
    }

    fn is_refused(&self) -> bool {
        self.common().is_err()
    }

    fn fingerprint(&self) -> Option<u64> {
        self.common().ok().map(|common| common.fingerprint)
    }
}

impl Answer for Known {
    fn charged(&self) -> u64 {
        self.charged()
    }

    fn fingerprint(&self) -> Option<u64> {
        let workload = self.workload.as_ref()?;
        Some(fingerprint((&workload.opaque_ports, workload.protocols.len())))
    }
}

impl Answer for Limits {
    fn charged(&self) -> u64 {
        self.charged()
    }
}

impl Answer for Place {}

impl Answer for Access {
    fn charged(&self) -> u64 {
        self.charged()
    }

    fn fingerprint(&self) -> Option<u64> {
        Some(fingerprint(self.message(true)))
    }
}

impl Discover for Index {
    fn follow_routes(&self, address: SocketAddr, namespace: &str, reader: Reader) -> Followed<Routes> {
        let mut inner = self.inner.lock();
        let Inner { store, routes, .. } = &mut *inner;
        routes.follow((address, namespace.into()), reader, |key, deps| {
            build::routes(store, &self.room, key, deps)
        })
    }

    fn follow_endpoints(&self, name: &SetName, reader: Reader) -> Followed<EndpointViews> {
        let mut inner = self.inner.lock();
        let Inner { store, endpoints, .. } = &mut *inner;
        endpoints.follow(name.clone(), reader, |name, deps| {
            build::endpoints(store, &self.room, name, deps)
        })
    }

    fn watch_target(&self, address: SocketAddr, namespace: &str) -> watch::Receiver<Arc<TargetViews>> {
        let mut inner = self.inner.lock();
        let Inner { store, targets, .. } = &mut *inner;
        targets.watch((address, namespace.into()), |key, deps| {
            build::target(store, &self.room, key, deps)
        })
    }

    fn watch_place(&self, caller: &Caller) -> watch::Receiver<Arc<Place>> {
        let mut inner = self.inner.lock();
        let Inner { store, places, .. } = &mut *inner;
        places.watch(caller.clone(), |caller, deps| own::place(store, caller, deps))
    }

    fn follow_access(&self, pod: &PodKey, reader: Reader) -> Followed<Access> {
        let mut inner = self.inner.lock();
        let Inner { store, accesses, .. } = &mut *inner;
        accesses.follow(pod.clone(), reader, |pod, deps| {
            access::access(store, &self.room, pod, deps)
        })
    }

    fn watch_limits(&self, pod: &PodKey) -> watch::Receiver<Arc<Limits>> {
        let mut inner = self.inner.lock();
        let Inner { store, limits, .. } = &mut *inner;
        limits.watch(pod.clone(), |pod, deps| {
            limits::limits(store, &self.room, &self.counted, pod, deps)
        })
    }

    fn watch_workload(&self, pod: &PodKey) -> watch::Receiver<Arc<Known>> {
        let mut inner = self.inner.lock();
        let Inner { store, workloads, .. } = &mut *inner;
        workloads.watch(pod.clone(), |pod, deps| own::known(store, &self.room, pod, deps))
    }

    fn unknown_key(&self, pod: &PodKey, policy: &str, provider: &str) {
        self.ask_for_keys(pod, policy, provider);
    }

    fn is_alive(&self, caller: &Caller) -> bool {
        // Before the lists are complete nothing can be said against anybody.
        let account = ObjectName::new(&caller.namespace, &caller.service_account);
        !*self.synced.borrow() || self.read(|store| store.has_pods(&account))
    }

    fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
