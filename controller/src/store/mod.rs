//! All objects, and by what they are found. Applying one says what has changed by it.

mod backend_tls;
mod keys;
mod networks;
mod objects;
mod policies;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use self::backend_tls::BackendTlsPolicies;
use self::keys::Wanted;
pub(crate) use self::keys::{KeyProblem, Keys};
use self::networks::ClusterNetworks;
use self::objects::Objects;
use self::policies::Policies;
use crate::objects::backend_tls::BackendTls;
use crate::objects::keys::KeySource;
use crate::objects::mesh::Mesh;
use crate::objects::networks::{Holder, Networks};
use crate::objects::policy::{Policy, PolicyKind};
use crate::objects::route::{Route, RouteKind};
use crate::objects::{EndpointSlice, Kind, Namespace, Node, Object, ObjectName, Pod, Service};
use crate::session_keys::SessionSecret;

/// Something that an answer was made from. An answer is made again when one of them was touched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dep {
    /// Who has the address.
    Ip(IpAddr),
    Service(ObjectName),
    /// The routes on the Service, and the Services to which they lead.
    Routes(ObjectName),
    /// The slices of the Service.
    Slices(ObjectName),
    /// Any Service of the namespace: their selectors.
    Services(Arc<str>),
    Pod(ObjectName),
    /// Pods of the namespace that say of ports that they are opaque.
    OpaquePods(Arc<str>),
    /// Which pods of the namespace are ready, and by what they are selected.
    ReadyPods(Arc<str>),
    Node(Arc<str>),
    Namespace(Arc<str>),
    /// The labels of any namespace: who is selected by them.
    Namespaces,
    /// That the objects of this kind have been listed.
    Listed(Kind),
    /// The policies of this kind of the namespace.
    Policies(PolicyKind, Arc<str>),
    /// The BackendTLSPolicies that hold for the Service.
    BackendTls(ObjectName),
    /// The keys of tokens, or the certificates, that are there.
    Keys(KeySource),
    /// The networks of the cluster, and what is outside of them.
    Networks,
    /// What keys of sessions are derived from.
    SessionSecret,
}

/// Everything that one answer was made from.
pub(crate) type Deps = HashSet<Dep>;

pub(crate) type RouteName = (RouteKind, ObjectName);

/// A copy shares the objects themselves.
#[derive(Clone, Default)]
pub(crate) struct Store {
    pub(crate) trust_domain: String,
    /// The controller's own pod.
    pub(crate) own: ObjectName,
    pub(crate) services: Objects<ObjectName, Service>,
    service_ips: HashMap<IpAddr, ObjectName>,
    slices: Objects<ObjectName, EndpointSlice>,
    slices_of: HashMap<ObjectName, BTreeSet<ObjectName>>,
    pub(crate) pods: Objects<ObjectName, Pod>,
    pod_ips: HashMap<IpAddr, BTreeSet<ObjectName>>,
    /// How many pods that have not ended each ServiceAccount has.
    pods_of: HashMap<ObjectName, usize>,
    /// Those that say of ports that they are opaque.
    opaque_pods: BTreeSet<ObjectName>,
    /// How many pods of each namespace have a sidecar.
    mesh_pods: HashMap<Arc<str>, usize>,
    pub(crate) nodes: Objects<Arc<str>, Node>,
    pub(crate) namespaces: Objects<Arc<str>, Namespace>,
    pub(crate) routes: Objects<RouteName, Route>,
    /// By the Services that they are on.
    routes_of: HashMap<ObjectName, BTreeSet<RouteName>>,
    /// By the Services to which they lead. An answer with many backends need not depend on each of them.
    routes_to: HashMap<ObjectName, BTreeSet<RouteName>>,
    pub(crate) policies: Policies,
    pub(crate) backend_tls: BackendTlsPolicies,
    /// Those that are Outrigger's.
    pub(crate) meshes: BTreeMap<ObjectName, Mesh>,
    keys: Wanted,
    /// Kinds of which nobody can say yet whether there are any.
    unlisted: BTreeSet<Kind>,
    /// Fields that the CRD of a kind has not, of those that this controller knows: the API server drops them.
    pub(crate) old_crds: BTreeMap<PolicyKind, Vec<String>>,
    networks: ClusterNetworks,
    /// Whether a Service of the type ExternalName may be a route's backend.
    pub(crate) external_names_allowed: bool,
    /// `None`: there is none yet, and no session is kept.
    pub(crate) session_secret: Option<SessionSecret>,
}

/// What a change was about.
#[derive(Default)]
pub(crate) struct Touched {
    pub(crate) deps: Deps,
    /// Conditions of routes or policies may be others now.
    pub(crate) statuses: bool,
    /// The namespaces that need a trust bundle may be others now.
    pub(crate) namespaces: bool,
    /// Keys of tokens are wanted, or not any more.
    pub(crate) keys: bool,
}

impl Store {
    /// Puts the object in the place of the one before.
    pub(crate) fn apply(&mut self, name: ObjectName, object: Object, touched: &mut Touched) {
        match object {
            Object::Service(service) => self.set_service(name, Some(service), touched),
            Object::EndpointSlice(slice) => self.set_slice(name, Some(slice), touched),
            Object::Pod(pod) => self.set_pod(name, Some(pod), touched),
            Object::Node(node) => self.set_node(name.name, Some(node), touched),
            Object::Namespace(namespace) => self.set_namespace(name.name, Some(namespace), touched),
            Object::Route(route) => self.set_route((route.kind, name), Some(*route), touched),
            Object::Policy(policy) => self.set_policy(policy.kind, name, Some(*policy), touched),
            Object::BackendTls(policy) => self.set_backend_tls(name, Some(*policy), touched),
            Object::Mesh(mesh) => self.set_mesh(name, Some(mesh), touched),
            Object::ServiceCidr(networks) => self.set_service_cidr(name, Some(networks), touched),
        }
    }

    pub(crate) fn delete(&mut self, kind: Kind, name: ObjectName, touched: &mut Touched) {
        match kind {
            Kind::Service => self.set_service(name, None, touched),
            Kind::EndpointSlice => self.set_slice(name, None, touched),
            Kind::Pod => self.set_pod(name, None, touched),
            Kind::Node => self.set_node(name.name, None, touched),
            Kind::Namespace => self.set_namespace(name.name, None, touched),
            Kind::Route(kind) => self.set_route((kind, name), None, touched),
            Kind::Policy(kind) => self.set_policy(kind, name, None, touched),
            Kind::BackendTls => self.set_backend_tls(name, None, touched),
            Kind::Mesh => self.set_mesh(name, None, touched),
            Kind::ServiceCidr => self.set_service_cidr(name, None, touched),
        }
    }

    /// The names of all objects of a kind.
    pub(crate) fn names(&self, kind: Kind) -> Vec<ObjectName> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::Node => self.nodes.keys().map(|n| ObjectName::new("", n)).collect(),
            Kind::Namespace => self.namespaces.keys().map(|n| ObjectName::new("", n)).collect(),
            Kind::Route(kind) => {
                let names = self.routes.keys().filter(|(k, _)| *k == kind);
                names.map(|(_, name)| name.clone()).collect()
            }
            Kind::Policy(kind) => self.policies.names(kind).cloned().collect(),
            Kind::BackendTls => self.backend_tls.names().cloned().collect(),
            Kind::Mesh => self.meshes.keys().cloned().collect(),
            Kind::ServiceCidr => self.networks.service_cidrs().cloned().collect(),
        }
    }

    /// What sidecars are told of the cluster's networks.
    pub(crate) fn told_networks(&self) -> Vec<String> {
        self.networks.told()
    }

    /// For metrics.
    pub(crate) fn outside_networks(&self) -> ([(Holder, usize); 2], bool) {
        self.networks.outside()
    }

    /// The pod that this controller is. A policy on its namespace holds for the whole mesh.
    pub(crate) fn set_own(&mut self, own: ObjectName, touched: &mut Touched) {
        touched.statuses = true;
        let policies = PolicyKind::ALL.map(|kind| Dep::Policies(kind, own.namespace.clone()));
        touched.deps.extend(policies);
        self.own = own;
    }

    pub(crate) fn set_cluster_networks(&mut self, networks: Networks, touched: &mut Touched) {
        self.networks.configure(networks);
        self.judge_networks(touched);
    }

    pub(crate) fn set_session_secret(&mut self, secret: SessionSecret, touched: &mut Touched) {
        let secret = Some(secret);
        if self.session_secret != secret {
            self.session_secret = secret;
            touched.deps.insert(Dep::SessionSecret);
        }
    }

    /// The fields that the kind's CRD has not.
    pub(crate) fn set_old_crd(&mut self, kind: PolicyKind, lacking: Vec<String>, touched: &mut Touched) {
        touched.statuses = true;
        match lacking.is_empty() {
            true => drop(self.old_crds.remove(&kind)),
            false => drop(self.old_crds.insert(kind, lacking)),
        }
    }

    /// Nothing is known of the kind until it is listed.
    pub(crate) fn set_unlisted(&mut self, kind: Kind, touched: &mut Touched) {
        if self.unlisted.insert(kind) {
            touched.deps.insert(Dep::Listed(kind));
        }
    }

    pub(crate) fn set_listed(&mut self, kind: Kind, touched: &mut Touched) {
        if self.unlisted.remove(&kind) {
            touched.deps.insert(Dep::Listed(kind));
            touched.statuses = true;
        }
    }

    pub(crate) fn is_listed(&self, kind: Kind) -> bool {
        !self.unlisted.contains(&kind)
    }

    /// All objects of the start are known.
    pub(crate) fn complete(&mut self, touched: &mut Touched) {
        self.networks.complete();
        self.judge_networks(touched);
    }

    fn set_service_cidr(&mut self, name: ObjectName, networks: Option<Networks>, touched: &mut Touched) {
        if self.networks.set_service_cidr(name, networks) {
            self.judge_networks(touched);
        }
    }

    fn set_mesh(&mut self, name: ObjectName, mesh: Option<Mesh>, touched: &mut Touched) {
        touched.statuses = true;
        match mesh {
            Some(mesh) => drop(self.meshes.insert(name, mesh)),
            None => drop(self.meshes.remove(&name)),
        }
    }

    fn judge_networks(&mut self, touched: &mut Touched) {
        let services = self.services.iter();
        let services = services.map(|(name, service)| (Holder::Service, name, &*service.cluster_ips));
        let pods = self.pods.iter().map(|(name, pod)| (Holder::Pod, name, &*pod.ips));
        self.networks.judge(services.chain(pods));
        touched.deps.insert(Dep::Networks);
    }

    /// The Service that has the address as a ClusterIP.
    pub(crate) fn service_at(&self, ip: IpAddr) -> Option<(&ObjectName, &Service)> {
        let name = self.service_ips.get(&ip)?;
        Some((name, self.services.get(name)?))
    }

    /// The pod that has the address. While an address goes from one pod to the next, both may be there for a moment: then it
    /// is that of the one that stays, and where that is not clear nobody's.
    pub(crate) fn pod_at(&self, ip: IpAddr) -> Option<(&ObjectName, &Pod)> {
        let mut stay = self.pods_at(ip).filter(|(_, pod)| pod.grace_ends.is_none());
        if let Some(pod) = stay.next() {
            return Some(pod).filter(|_| stay.next().is_none());
        }
        let mut pods = self.pods_at(ip);
        pods.next().filter(|_| pods.next().is_none())
    }

    /// All pods that say that they have the address.
    pub(crate) fn pods_at(&self, ip: IpAddr) -> impl Iterator<Item = (&ObjectName, &Pod)> {
        let names = self.pod_ips.get(&ip).into_iter().flatten();
        names.filter_map(|name| self.pods.get_key_value(name))
    }

    pub(crate) fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name))
    }

    /// The routes that name the Service as a parent.
    pub(crate) fn routes_of(&self, service: &ObjectName) -> impl Iterator<Item = (&RouteName, &Route)> {
        let names = self.routes_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.routes.get_key_value(name))
    }

    /// Those of one kind, without a look at the others.
    pub(crate) fn routes_of_kind(&self, service: &ObjectName, kind: RouteKind) -> impl Iterator<Item = &Route> {
        let names = self.routes_of.get(service).into_iter();
        let names = names.flat_map(move |names| names.range((kind, ObjectName::new("", ""))..));
        let names = names.take_while(move |(other, _)| *other == kind);
        names.filter_map(|name| self.routes.get(name))
    }

    /// The Services whose selector takes the pod.
    pub(crate) fn services_selecting<'a>(
        &'a self,
        namespace: &Arc<str>,
        pod: &'a Pod,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Service)> + use<'a> {
        in_namespace(&self.services, namespace).filter(|(_, service)| service.selects(pod))
    }

    /// The pods of a namespace that have not ended.
    pub(crate) fn pods_of_namespace(&self, namespace: &Arc<str>) -> impl Iterator<Item = (&ObjectName, &Pod)> {
        in_namespace(&self.pods, namespace).filter(|(_, pod)| !pod.ended)
    }

    /// Pods of the namespace that say of ports that they are opaque.
    pub(crate) fn opaque_pods(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Pod> {
        let first = ObjectName {
            namespace: namespace.clone(),
            name: "".into(),
        };
        let names = self.opaque_pods.range(first..);
        let names = names.take_while(move |name| name.namespace == *namespace);
        names.filter_map(|name| self.pods.get(name))
    }

    /// Whether a pod of the ServiceAccount exists that has not ended.
    pub(crate) fn has_pods(&self, account: &ObjectName) -> bool {
        self.pods_of.contains_key(account)
    }

    /// Namespaces in which pods mount the trust bundle.
    pub(crate) fn bundle_namespaces(&self) -> BTreeSet<Arc<str>> {
        let namespaces = self.namespaces.iter().filter(|(_, ns)| !ns.terminating);
        namespaces
            .filter(|(name, ns)| ns.inject || self.mesh_pods.contains_key(*name))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn set_service(&mut self, name: ObjectName, service: Option<Service>, touched: &mut Touched) {
        let old = self.services.get(&name);
        if old == service.as_ref() {
            return;
        }
        let old_ips = old.map(|s| s.cluster_ips.clone()).unwrap_or_default();
        let new_ips = service.as_ref().map(|s| s.cluster_ips.clone()).unwrap_or_default();
        for ip in &old_ips {
            // By now it may be another Service's.
            if self.service_ips.get(ip) == Some(&name) {
                self.service_ips.remove(ip);
            }
        }
        for ip in &new_ips {
            self.service_ips.insert(*ip, name.clone());
        }
        if self.networks.moved(Holder::Service, &name, &old_ips, &new_ips) {
            touched.deps.insert(Dep::Networks);
        }
        touched.deps.extend(old_ips.into_iter().chain(new_ips).map(Dep::Ip));
        touched.deps.insert(Dep::Services(name.namespace.clone()));
        touched.deps.insert(Dep::Service(name.clone()));
        let leading_here = self.routes_to.get(&name).into_iter().flatten();
        let on = leading_here.filter_map(|route| self.routes.get(route));
        let on = on.flat_map(|route| &route.parents);
        touched
            .deps
            .extend(on.map(|parent| Dep::Routes(parent.service.clone())));
        touched.statuses = true;
        self.services.set(name, service);
    }

    fn set_slice(&mut self, name: ObjectName, slice: Option<EndpointSlice>, touched: &mut Touched) {
        let old = self.slices.get(&name);
        if old == slice.as_ref() {
            return;
        }
        if let Some(old) = old {
            touched.deps.insert(Dep::Slices(old.service.clone()));
            remove_from(&mut self.slices_of, &old.service, &name);
        }
        if let Some(slice) = &slice {
            touched.deps.insert(Dep::Slices(slice.service.clone()));
            let slices = self.slices_of.entry(slice.service.clone());
            slices.or_default().insert(name.clone());
        }
        self.slices.set(name, slice);
    }

    fn set_pod(&mut self, name: ObjectName, pod: Option<Pod>, touched: &mut Touched) {
        let old = self.pods.get(&name);
        if old == pod.as_ref() {
            return;
        }
        let account = |pod: &Pod| (!pod.ended).then(|| ObjectName::new(&name.namespace, &pod.service_account));
        let (old_account, new_account) = (old.and_then(account), pod.as_ref().and_then(account));
        let (was_in_mesh, is_in_mesh) = (old.is_some_and(|p| p.in_mesh), pod.as_ref().is_some_and(|p| p.in_mesh));
        for ip in old.map(|p| p.ips.clone()).unwrap_or_default() {
            remove_from(&mut self.pod_ips, &ip, &name);
            touched.deps.insert(Dep::Ip(ip));
        }
        let (old_ips, new_ips) = (old.map(|p| &*p.ips), pod.as_ref().map(|p| &*p.ips));
        let (old_ips, new_ips) = (old_ips.unwrap_or_default(), new_ips.unwrap_or_default());
        if self.networks.moved(Holder::Pod, &name, old_ips, new_ips) {
            touched.deps.insert(Dep::Networks);
        }
        for ip in pod.iter().flat_map(|p| &p.ips) {
            self.pod_ips.entry(*ip).or_default().insert(name.clone());
            touched.deps.insert(Dep::Ip(*ip));
        }
        if old_account != new_account {
            if let Some(account) = new_account {
                *self.pods_of.entry(account).or_default() += 1;
            }
            if let Some(account) = old_account {
                take_one(&mut self.pods_of, &account);
            }
        }
        if was_in_mesh != is_in_mesh {
            let pods = self.mesh_pods.entry(name.namespace.clone()).or_default();
            *pods = if is_in_mesh { *pods + 1 } else { pods.saturating_sub(1) };
            if *pods == 0 {
                self.mesh_pods.remove(&name.namespace);
            }
            touched.namespaces = true;
        }
        touched.deps.insert(Dep::Pod(name.clone()));
        let counts = |pod: &Pod| (pod.ready && !pod.ended).then(|| (pod.labels.clone(), pod.ports.clone()));
        if old.and_then(counts) != pod.as_ref().and_then(counts) {
            touched.deps.insert(Dep::ReadyPods(name.namespace.clone()));
        }
        let says_opaque = |pod: &Pod| pod.opaque_ports.is_some() && !pod.ended;
        let says = pod.as_ref().is_some_and(says_opaque);
        if says || old.is_some_and(says_opaque) {
            touched.deps.insert(Dep::OpaquePods(name.namespace.clone()));
            match says {
                true => self.opaque_pods.insert(name.clone()),
                false => self.opaque_pods.remove(&name),
            };
        }
        self.pods.set(name, pod);
    }

    fn set_node(&mut self, name: Arc<str>, node: Option<Node>, touched: &mut Touched) {
        if self.nodes.get(&name) != node.as_ref() {
            touched.deps.insert(Dep::Node(name.clone()));
            self.nodes.set(name, node);
        }
    }

    fn set_namespace(&mut self, name: Arc<str>, namespace: Option<Namespace>, touched: &mut Touched) {
        let old = self.namespaces.get(&name);
        if old != namespace.as_ref() {
            // A name like `redis.shop` is a Service's where there is such a namespace.
            touched.statuses |= old.is_some() != namespace.is_some();
            if old.map(|old| &old.labels) != namespace.as_ref().map(|new| &new.labels) {
                touched.deps.insert(Dep::Namespaces);
            }
            touched.deps.insert(Dep::Namespace(name.clone()));
            touched.namespaces = true;
            self.namespaces.set(name, namespace);
        }
    }

    fn set_route(&mut self, name: RouteName, route: Option<Route>, touched: &mut Touched) {
        touched.statuses = true;
        let old = self.routes.get(&name);
        // A status that was written is a new version of the object, and changes nothing for clients.
        if !old.zip(route.as_ref()).is_some_and(|(old, new)| old.same_rules(new)) {
            for parent in old.iter().flat_map(|route| &route.parents) {
                remove_from(&mut self.routes_of, &parent.service, &name);
                touched.deps.insert(Dep::Routes(parent.service.clone()));
            }
            for backend in old.iter().flat_map(|route| route.references()) {
                remove_from(&mut self.routes_to, &backend.name, &name);
            }
            for parent in route.iter().flat_map(|route| &route.parents) {
                let routes = self.routes_of.entry(parent.service.clone());
                routes.or_default().insert(name.clone());
                touched.deps.insert(Dep::Routes(parent.service.clone()));
            }
            for backend in route.iter().flat_map(Route::references) {
                let routes = self.routes_to.entry(backend.name.clone());
                routes.or_default().insert(name.clone());
            }
        }
        self.routes.set(name, route);
    }

    fn set_policy(&mut self, kind: PolicyKind, name: ObjectName, policy: Option<Policy>, touched: &mut Touched) {
        touched.statuses = true;
        let namespace = name.namespace.clone();
        let old = self.policies.get(kind, &name).into_iter().flat_map(Policy::key_sources);
        let new = policy.iter().flat_map(Policy::key_sources);
        touched.keys |= self.keys.replace(old, new);
        if self.policies.set(kind, name, policy) {
            touched.deps.insert(Dep::Policies(kind, namespace));
        }
    }

    fn set_backend_tls(&mut self, name: ObjectName, policy: Option<BackendTls>, touched: &mut Touched) {
        touched.statuses = true;
        let old = self
            .backend_tls
            .get(&name)
            .into_iter()
            .flat_map(BackendTls::key_sources);
        let new = policy.iter().flat_map(BackendTls::key_sources);
        touched.keys |= self.keys.replace(old, new);
        let services = self.backend_tls.set(name, policy);
        touched.deps.extend(services.into_iter().map(Dep::BackendTls));
    }
}

/// The objects of one namespace.
fn in_namespace<'a, T>(
    objects: &'a Objects<ObjectName, T>,
    namespace: &Arc<str>,
) -> impl Iterator<Item = (&'a ObjectName, &'a T)> + use<'a, T> {
    let namespace = namespace.clone();
    let first = ObjectName {
        namespace: namespace.clone(),
        name: "".into(),
    };
    objects
        .from(first)
        .take_while(move |(name, _)| name.namespace == namespace)
}

fn take_one<K: Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn remove_from<K: Eq + std::hash::Hash, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
