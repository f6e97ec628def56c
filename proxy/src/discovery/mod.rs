//! What is behind an address: asked of the controller while it is used, or known from a standalone file.
//!
//! One session with the controller, in which a sidecar says which addresses are in use, so that it never holds the whole
//! cluster. What was learnt stays while the controller is away.

mod controller;
mod fallback;
mod limits;
#[cfg(test)]
mod recorded_tests;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;
mod told;
mod unknown_keys;
mod wants;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_access::Access;
use outrigger_api::access as proto;
use outrigger_api::limits as proto_limits;
use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use tokio::sync::watch;

use self::controller::Controller;
pub use self::limits::Limits;
use crate::dns::{HostPort, Resolver};
use crate::identity::Identity;
use crate::identity::channel::Dialer;
use crate::model::{Target, Workload, WorkloadInfo};

/// Where the sidecar learns what is behind an address.
#[derive(Clone, Debug)]
pub enum DiscoveryConfig {
    Controller {
        address: HostPort,
        /// Who must answer there.
        id: SpiffeId,
    },
    Standalone(StaticTargets),
}

/// The services of a standalone file, by name, and who may call its own app, and how much.
#[derive(Clone, Debug, Default)]
pub struct StaticTargets {
    pub services: HashMap<Arc<str>, Arc<Target>>,
    pub access: proto::Access,
    pub limits: proto_limits::Limits,
}

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum TargetKey {
    /// The original destination of a captured connection.
    Address(SocketAddr),
    /// A service of the standalone file.
    Named(Arc<str>),
}

/// Handle to what is known of targets; cheap to clone, and used from every thread.
#[derive(Clone)]
pub struct Discovery(Arc<Source>);

enum Source {
    Controller(Controller),
    Standalone(Standalone),
}

struct Standalone {
    targets: HashMap<Arc<str>, watch::Sender<Arc<Target>>>,
    external: watch::Sender<Arc<Target>>,
    workload: watch::Sender<Arc<WorkloadInfo>>,
    access: watch::Sender<Option<Arc<Access>>>,
    limits: Arc<Limits>,
}

impl Discovery {
    /// Starts discovery on the runtime that calls this.
    pub fn start(config: &DiscoveryConfig, workload: &Workload, identity: Identity, resolver: Resolver) -> Self {
        let source = match config {
            DiscoveryConfig::Controller { address, id } => {
                let dialer = Dialer {
                    address: address.clone(),
                    id: id.clone(),
                    resolver,
                    clock: identity.clock().clone(),
                };
                Source::Controller(Controller::start(dialer, workload, identity))
            }
            DiscoveryConfig::Standalone(targets) => Source::Standalone(Standalone::new(targets)),
        };
        Self(Arc::new(source))
    }

    /// What is behind `key`, kept up to date while any receiver of it lives, and for 60 s after. Waits for the first
    /// answer at most `timeout`. Where the controller is lost later, the last state stays.
    ///
    /// # Errors
    /// [`Reason::DiscoveryUnavailable`] when there is no answer in time.
    pub async fn watch(&self, key: TargetKey, timeout: Duration) -> Result<watch::Receiver<Arc<Target>>, ProxyError> {
        match (&*self.0, key) {
            (Source::Controller(controller), TargetKey::Address(address)) => controller.watch(address, timeout).await,
            (Source::Controller(_), TargetKey::Named(name)) => Err(unknown(&name)),
            (Source::Standalone(standalone), TargetKey::Address(_)) => Ok(standalone.external.subscribe()),
            (Source::Standalone(standalone), TargetKey::Named(name)) => match standalone.targets.get(&name) {
                Some(target) => Ok(target.subscribe()),
                None => Err(unknown(&name)),
            },
        }
    }

    /// Whether an address is known not to be in the cluster: then nobody needs to be asked. Only the controller's word counts,
    /// its last one also while it is away; before its first word nothing is known.
    pub fn is_outside(&self, key: &TargetKey) -> bool {
        match (&*self.0, key) {
            (Source::Controller(controller), TargetKey::Address(address)) => controller.is_outside(address.ip()),
            (Source::Controller(_) | Source::Standalone(_), _) => false,
        }
    }

    /// What the controller says about this very pod; the default until it is known.
    pub fn workload(&self) -> watch::Receiver<Arc<WorkloadInfo>> {
        match &*self.0 {
            Source::Controller(controller) => controller.workload(),
            Source::Standalone(standalone) => standalone.workload.subscribe(),
        }
    }

    /// Who may call this very pod; `None` until it is known. Where the controller is lost later, the last word stays.
    pub fn access(&self) -> watch::Receiver<Option<Arc<Access>>> {
        match &*self.0 {
            Source::Controller(controller) => controller.access(),
            Source::Standalone(standalone) => standalone.access.subscribe(),
        }
    }

    /// How much this very pod takes: nothing is limited until it is known. Where the controller is lost later, the last word stays.
    pub fn limits(&self) -> Arc<Limits> {
        match &*self.0 {
            Source::Controller(controller) => controller.limits(),
            Source::Standalone(standalone) => Arc::clone(&standalone.limits),
        }
    }

    /// A token of a policy's provider names a key that its keys do not have. The controller hears of it, and not of each.
    pub fn unknown_key(&self, policy: &str, provider: &str) {
        if let Source::Controller(controller) = &*self.0 {
            controller.unknown_key(policy, provider);
        }
    }

    /// Why what is not known yet is not.
    pub fn problem(&self) -> String {
        match &*self.0 {
            Source::Controller(controller) => controller.problem(),
            Source::Standalone(_) => "all of it stands in the file".to_owned(),
        }
    }

    /// All that is believed now, for `/config`.
    pub fn snapshot(&self) -> serde_json::Value {
        match &*self.0 {
            Source::Controller(controller) => controller.snapshot(),
            Source::Standalone(standalone) => standalone.snapshot(),
        }
    }
}

impl Standalone {
    fn new(targets: &StaticTargets) -> Self {
        let services = targets.services.iter();
        Self {
            targets: services
                .map(|(name, target)| (name.clone(), watch::channel(target.clone()).0))
                .collect(),
            external: watch::channel(Arc::new(Target::External)).0,
            workload: watch::channel(Arc::default()).0,
            access: watch::channel(Some(Arc::new(Access::new(&targets.access)))).0,
            limits: Arc::new(Limits::new(&targets.limits)),
        }
    }

    fn snapshot(&self) -> serde_json::Value {
        let targets = self.targets.iter();
        let targets = targets.map(|(name, target)| (name.to_string(), snapshot::target(&target.borrow())));
        serde_json::json!({
            "source": "file",
            "access": self.access.borrow().as_deref().map(snapshot::access),
            "limits": self.limits.view(),
            "targets": targets.collect::<serde_json::Map<_, _>>(),
        })
    }
}

fn unknown(name: &str) -> ProxyError {
    ProxyError::new(
        Reason::DiscoveryUnavailable,
        format!("there is no service named {name:?} in this sidecar's file"),
    )
}
