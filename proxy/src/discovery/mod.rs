//! What is behind an address: asked of the controller while it is used, or known from a standalone file.

pub mod convert;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::{DiscoveryConfig, Workload};
use crate::error::{ProxyError, Reason};
use crate::identity::Identity;
use crate::model::{Protocol, Target};

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum TargetKey {
    /// The original destination of a captured connection.
    Address(SocketAddr),
    /// A service of the standalone file.
    Named(Arc<str>),
}

/// What the controller says about this very pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadInfo {
    /// The app's protocol by port, where a Service says so.
    pub protocols: HashMap<u16, Protocol>,
    /// Ports whose bytes are not looked into.
    pub opaque_ports: Vec<u16>,
}

/// Handle to what is known of targets; cheap to clone, and used from every thread.
#[derive(Clone)]
pub struct Discovery(Arc<Inner>);

struct Inner {
    workload: watch::Receiver<Arc<WorkloadInfo>>,
}

impl Discovery {
    /// Starts discovery on the runtime that calls this.
    pub fn start(
        _config: &DiscoveryConfig,
        _workload: &Workload,
        _identity: Identity,
        _resolver: crate::dns::Resolver,
    ) -> Self {
        Self(Arc::new(Inner {
            workload: watch::channel(Arc::default()).1,
        }))
    }

    /// What is behind `key`, kept up to date while any receiver of it lives, and for 60 s after. Waits for the first
    /// answer at most `timeout`. Where the controller is lost later, the last state stays.
    ///
    /// # Errors
    /// [`Reason::DiscoveryUnavailable`] when there is no answer in time.
    pub async fn watch(&self, key: TargetKey, _timeout: Duration) -> Result<watch::Receiver<Arc<Target>>, ProxyError> {
        Err(ProxyError::new(Reason::DiscoveryUnavailable, format!("{key:?}")))
    }

    /// What the controller says about this very pod; the default until it is known.
    pub fn workload(&self) -> watch::Receiver<Arc<WorkloadInfo>> {
        self.0.workload.clone()
    }

    /// All that is believed now, for `/config`.
    pub fn snapshot(&self) -> serde_json::Value {
        serde_json::json!({})
    }
}
