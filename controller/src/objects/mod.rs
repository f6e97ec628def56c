//! What is kept of each Kubernetes object: plain data, no more than decisions need, and how it is read.

pub mod backend_tls;
pub mod from_k8s;
pub mod keys;
pub mod mesh;
pub mod networks;
mod optional;
pub mod policy;
pub mod route;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::discovery::Protocol;

use self::backend_tls::BackendTls;
use self::mesh::Mesh;
use self::networks::Networks;
use self::policy::{Policy, PolicyKind};
use self::route::Route;
pub use self::route::RouteKind;

/// The namespace and name of an object. The namespace of a Namespace, and of a Node, is "".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// "" for an object without one.
    pub namespace: Arc<str>,
    /// Unique among its kind in the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Both parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Kinds of objects that answers are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Service,
    EndpointSlice,
    Pod,
    Node,
    Namespace,
    Route(RouteKind),
    Policy(PolicyKind),
    BackendTls,
    ServiceCidr,
    Mesh,
}

/// One object, as it is kept.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Object {
    Service(Service),
    EndpointSlice(EndpointSlice),
    Pod(Pod),
    Node(Node),
    Namespace(Namespace),
    Route(Box<Route>),
    Policy(Box<Policy>),
    BackendTls(Box<BackendTls>),
    ServiceCidr(Networks),
    Mesh(Mesh),
}

/// A Service. Only TCP ports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// None for a headless Service or an ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub selector: BTreeMap<String, String>,
    pub external_name: Option<Arc<str>>,
    /// `internalTrafficPolicy: Local`: only endpoints on the caller's node.
    pub local: bool,
    /// `sessionAffinity: ClientIP`, unless an annotation says that it is to be passed over.
    pub client_affinity: bool,
    pub opaque_ports: Option<PortSet>,
}

impl Service {
    /// Whether the pod, of the same namespace, is behind it by its labels.
    pub(crate) fn selects(&self, pod: &Pod) -> bool {
        let mut selector = self.selector.iter();
        !self.selector.is_empty() && selector.all(|(key, value)| pod.labels.get(key) == Some(value))
    }
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// "" where the Service has only one port and does not name it.
    pub name: Arc<str>,
    pub port: u16,
    pub target: TargetPort,
    /// From `appProtocol`; None where it says nothing that is known.
    pub protocol: Option<Protocol>,
}

/// The pods' port.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetPort {
    Number(u16),
    /// The name of a container's port.
    Name(Arc<str>),
}

/// An EndpointSlice of IP addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    pub service: ObjectName,
    pub endpoints: Vec<SliceEndpoint>,
    pub ports: Vec<SlicePort>,
    /// One of those that nobody may call, if there are any: kube-proxy does not leave it out.
    pub left_out: Option<IpAddr>,
}

/// An endpoint that may be called; others are not kept.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceEndpoint {
    pub address: IpAddr,
    /// False: it terminates, and still serves.
    pub ready: bool,
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    /// Nodes whose pods should call it.
    pub for_nodes: Vec<Arc<str>>,
    /// Zones whose pods should call it.
    pub for_zones: Vec<Arc<str>>,
    /// The pod that it is said to be.
    pub pod: Option<ObjectName>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SlicePort {
    pub name: Arc<str>,
    /// None: all ports.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    /// Unlike the name never another pod's.
    pub uid: Arc<str>,
    /// It has succeeded or failed.
    pub ended: bool,
    /// Its condition `Ready`, and nobody deletes it.
    pub ready: bool,
    /// It is being deleted, and this is when its grace period is over.
    pub grace_ends: Option<SystemTime>,
    /// Empty for a pod that shares its node's address, and for one that has ended.
    pub ips: Vec<IpAddr>,
    /// None until it is scheduled.
    pub node: Option<Arc<str>>,
    pub service_account: Arc<str>,
    /// Has a sidecar.
    pub in_mesh: bool,
    /// Its own label or annotation says that it is to have none.
    pub left_out: bool,
    pub labels: BTreeMap<String, String>,
    /// Named TCP ports of its containers.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Ports that the sidecar does not answer at.
    pub skip_inbound: PortSet,
    pub opaque_ports: Option<PortSet>,
}

impl Pod {
    /// Its port behind a Service's.
    pub(crate) fn port_behind(&self, port: &ServicePort) -> Option<u16> {
        match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => self.ports.iter().find(|(n, _)| n == name).map(|(_, port)| *port),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Namespace {
    /// Labelled for injection.
    pub inject: bool,
    /// Being deleted: nothing can be created in it any more.
    pub terminating: bool,
    pub labels: BTreeMap<String, String>,
    pub opaque_ports: Option<PortSet>,
}

/// Ports, from an annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(pub Vec<RangeInclusive<u16>>);

impl PortSet {
    /// Whether the port is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Every port in it; a port may come twice.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.0.iter().cloned().flatten()
    }
}
