//! What both directions need of the worker that they run on, and of the process.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_api::ports::DEFAULT_OPAQUE;
use outrigger_proxy_transport::drain::Activity;
use outrigger_proxy_transport::net::{ServerFirst, listen};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::config::Config;
use crate::discovery::Discovery;
use crate::dns::Resolver;
use crate::identity::{Identity, Peers, Rules};
use crate::model::ServiceName;
use crate::telemetry::{Direction, Metrics, Telemetry};
use crate::usage::Registry;

/// What all workers share, and the control runtime carries.
pub struct Process {
    pub config: Config,
    pub identity: Identity,
    pub discovery: Discovery,
    pub resolver: Resolver,
    pub telemetry: Telemetry,
    /// Ports of Services, and of the app, whose server speaks first although nobody declared it.
    pub servers_first: Arc<ServerFirst<ServiceName>>,
    pub app_first: Arc<ServerFirst<u16>>,
    /// What is limited for all workers together.
    pub counts: Arc<Registry>,
    /// The addresses that are listened on: a connection to one of them is never forwarded.
    pub listening: Vec<SocketAddr>,
}

/// What both directions of one worker share.
pub struct Context {
    pub process: Arc<Process>,
    pub activity: Rc<Activity>,
    /// For every choice that is left to chance.
    pub rng: RefCell<SmallRng>,
}

impl Process {
    /// Whether the address is this very pod's.
    pub fn is_own_pod(&self, address: SocketAddr) -> bool {
        listen::is_one_of(&self.config.workload.pod_ips, address.ip())
    }

    /// Whether to connect there would come back to this sidecar.
    pub fn is_own_listener(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let own_address = |listening: &SocketAddr| listening.ip() == ip || ip.is_loopback() || self.is_own_pod(address);
        self.listening
            .iter()
            .any(|listening| listening.port() == address.port() && own_address(listening))
    }

    /// Whether the bytes of a port are not looked into, unless discovery knows better.
    pub fn is_opaque_port(&self, port: u16) -> bool {
        DEFAULT_OPAQUE.contains(&port) || self.config.opaque_ports.iter().any(|range| range.contains(&port))
    }
}

impl Context {
    /// Of a worker that begins.
    pub fn new(process: Arc<Process>) -> Self {
        Self {
            process,
            activity: Rc::default(),
            rng: RefCell::new(SmallRng::from_os_rng()),
        }
    }

    /// The other sidecars of one direction.
    pub fn peers(&self, direction: Direction) -> Peers {
        let config = self.config();
        let rules = Rules {
            limit: config.drain_timeout,
            close_expired: config.close_expired,
        };
        Peers::new(direction, rules, Arc::clone(self.metrics()))
    }

    /// The process's.
    pub fn config(&self) -> &Config {
        &self.process.config
    }

    /// The process's.
    pub fn metrics(&self) -> &Arc<Metrics> {
        self.process.telemetry.metrics()
    }
}
