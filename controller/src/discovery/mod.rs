//! The discovery service: what the index knows, told to sidecars.
//!
//! A message is encoded once, for the first sidecar that it is sent to, and its bytes go to every other as they are; so the
//! service is written by hand over tonic, with a codec that encodes nothing ([`service`]).

mod codec;
mod fixed;
mod service;
mod session;
mod streams;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use outrigger_api::MAX_DISCOVERY_MESSAGE;
use outrigger_api::discovery::{Workload, to_sidecar};
use outrigger_api::limits as proto_limits;
use outrigger_issuer::ca::Ca;
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;

pub use self::fixed::FixedTargets;
use self::service::DiscoveryService;
use crate::access::{Access, PodKey};
use crate::metrics::Metrics;
use crate::objects::ObjectName;
use crate::room::{Payer, Refusal, Taken, Waiting};
use crate::split::{self, EndpointViews, SetName};
use crate::topic::{Followed, Reader};
use crate::topology::{Place, TargetViews};

/// What is known of a pod.
#[derive(Debug)]
pub struct Known {
    /// What its sidecar is told. None: there is no room for it, and nothing is told.
    pub workload: Option<Workload>,
    taken: Result<Taken, Waiting>,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::resource_exhausted(refusal.reason())
    }
}

impl Known {
    pub(crate) fn new(workload: Workload, payer: &Payer) -> Self {
        let networks: usize = workload.cluster_networks.iter().map(String::len).sum();
        let numbers = workload.opaque_ports.len() + 4 * workload.protocols.len();
        let taken = payer.take_or_wait(numbers * size_of::<u32>() + networks);
        Self {
            workload: taken.is_ok().then_some(workload),
            taken,
        }
    }

    /// Bytes that are charged for it.
    pub(crate) fn charged(&self) -> u64 {
        self.taken.as_ref().map_or(0, Taken::bytes)
    }

    /// Whether there was no room for it, and there is now.
    pub(crate) fn has_room_now(&self) -> bool {
        self.taken.as_ref().is_err_and(Waiting::has_room)
    }

    /// As a message of a session.
    fn in_session(&self) -> Option<Bytes> {
        let workload = self.workload.clone()?;
        Some(split::encoded(to_sidecar::Kind::Workload(workload)))
    }
}

impl From<Workload> for Known {
    /// Nobody pays for it.
    fn from(workload: Workload) -> Self {
        Self::new(workload, &Payer::default())
    }
}

impl Default for Known {
    fn default() -> Self {
        Workload::default().into()
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.workload == other.workload
    }
}

/// How much a pod takes.
#[derive(Debug)]
pub struct Limits {
    /// What its sidecar is told. None: it is more than a message holds, or there is no room for it, or it is not known; nothing is told.
    limits: Option<proto_limits::Limits>,
    taken: Result<Taken, Waiting>,
    is_known: bool,
}

impl Limits {
    pub(crate) fn new(limits: proto_limits::Limits, payer: &Payer) -> Self {
        let size = limits.encoded_len();
        let taken = payer.take_or_wait(size);
        // A message has a few bytes around it.
        let fits = taken.is_ok() && size <= MAX_DISCOVERY_MESSAGE - 16;
        Self {
            limits: fits.then_some(limits),
            taken,
            is_known: true,
        }
    }

    /// Nobody knows yet which policies there are.
    pub(crate) fn unknown() -> Self {
        Self {
            limits: None,
            taken: Ok(Taken::default()),
            is_known: false,
        }
    }

    /// Bytes that are charged for it.
    pub(crate) fn charged(&self) -> u64 {
        self.taken.as_ref().map_or(0, Taken::bytes)
    }

    /// Whether there was no room for it, and there is now.
    pub(crate) fn has_room_now(&self) -> bool {
        self.taken.as_ref().is_err_and(Waiting::has_room)
    }

    /// Whether its sidecar is not told although it is known.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_known && self.limits.is_none()
    }

    /// What is told.
    pub fn said(&self) -> Option<&proto_limits::Limits> {
        self.limits.as_ref()
    }

    /// As a message of a session.
    fn in_session(&self) -> Option<Bytes> {
        let limits = self.limits.clone()?;
        Some(split::encoded(to_sidecar::Kind::Limits(limits)))
    }
}

impl Default for Limits {
    /// Nothing is limited.
    fn default() -> Self {
        Self::new(proto_limits::Limits::default(), &Payer::default())
    }
}

impl PartialEq for Limits {
    fn eq(&self, other: &Self) -> bool {
        (&self.limits, self.is_known) == (&other.limits, other.is_known)
    }
}

/// A pod that asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Of its SVID.
    pub namespace: Arc<str>,
    /// Of its SVID.
    pub service_account: Arc<str>,
    /// Its own word, and so believed only as far as it is a pod of this ServiceAccount. "": it does not say.
    pub pod: Arc<str>,
    /// The other end of its connection.
    pub address: IpAddr,
}

impl Caller {
    /// Itself, as far as it can be believed.
    fn pod_key(&self) -> PodKey {
        PodKey {
            name: ObjectName {
                namespace: Arc::clone(&self.namespace),
                name: Arc::clone(&self.pod),
            },
            service_account: Arc::clone(&self.service_account),
        }
    }
}

/// What the service serves.
pub trait Discover: Send + Sync + 'static {
    /// What is behind an address but its endpoints, for a client in `namespace`; kept up to date while it is followed.
    fn follow_routes(&self, address: SocketAddr, namespace: &str, reader: Reader) -> Followed<split::Routes>;
    /// The endpoints of a backend that routes name; kept up to date while they are followed.
    fn follow_endpoints(&self, name: &SetName, reader: Reader) -> Followed<EndpointViews>;
    /// Both together, for sidecars of the version before the session.
    fn watch_target(&self, address: SocketAddr, namespace: &str) -> watch::Receiver<Arc<TargetViews>>;
    /// Where a caller runs; kept up to date while the receiver lives.
    fn watch_place(&self, caller: &Caller) -> watch::Receiver<Arc<Place>>;
    /// Who may call a pod; kept up to date while it is followed.
    fn follow_access(&self, pod: &PodKey, reader: Reader) -> Followed<Access>;
    /// What is known of a pod.
    fn watch_workload(&self, pod: &PodKey) -> watch::Receiver<Arc<Known>>;
    /// How much a pod takes; kept up to date while the receiver lives.
    fn watch_limits(&self, pod: &PodKey) -> watch::Receiver<Arc<Limits>>;
    /// A pod's sidecar has met a token of a key that a provider of one of the pod's policies has not, as far as is known.
    fn unknown_key(&self, pod: &PodKey, policy: &str, provider: &str);
    /// Whether the identity is still some pod's. An SVID lives on where its pod is gone, and with a copy of its key anybody could
    /// ask what the namespace may know.
    fn is_alive(&self, caller: &Caller) -> bool;
    /// Becomes true once the answers can be relied upon. Before that nothing is told to anybody, since "not in the
    /// cluster" would send traffic past the mesh.
    fn synced(&self) -> watch::Receiver<bool>;
}

/// The service that serves `index`, for [`outrigger_issuer::server::serve`]. It tells the roots of the newest `ca`, and its
/// streams end when `stop` is cancelled.
pub fn routes(
    index: Arc<dyn Discover>,
    metrics: Arc<Metrics>,
    ca: watch::Receiver<Arc<Ca>>,
    stop: CancellationToken,
) -> Routes {
    Routes::new(DiscoveryService::new(index, metrics, ca, stop))
}
