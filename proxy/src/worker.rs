//! One thread that carries connections, with everything that they need and no other thread has: no lock, no sharing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::address::why_no_backend;
use outrigger_proxy_transport::client::Pool;
use outrigger_proxy_transport::drain::{Activity, Phase, Signal};
use outrigger_proxy_transport::error::ProxyError;
use outrigger_proxy_transport::net::listen::{self, Listener};
use outrigger_proxy_transport::net::{Io, ServerFirst, sockets};
use outrigger_proxy_transport::room::{Arrivals, Room, Seat};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::{Config, Destination, InboundDestination};
use crate::discovery::{Discovery, TargetKey};
use crate::dns::Resolver;
use crate::identity::Identity;
use crate::model::{ServiceName, Target};
use crate::outbound::affinity::Caller;
use crate::outbound::target::WorkerTarget;
use crate::outbound::targets::Targets;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::Refused;
use crate::{inbound, outbound};

/// How often idle connections and targets are looked for. The only timer of a worker that nothing waits for.
const SWEEP: Duration = Duration::from_secs(1);
/// How long a connection waits for discovery's first answer.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The addresses that are listened on: a connection to one of them is never forwarded.
    pub listening: Vec<SocketAddr>,
}

/// A worker's own sockets, bound before it starts.
pub struct Listeners {
    pub outbound: Vec<(std::net::TcpListener, Destination)>,
    pub inbound: Vec<(std::net::TcpListener, InboundDestination)>,
}

/// See the module.
pub struct Worker {
    pub process: Arc<Process>,
    pub activity: Rc<Activity>,
    /// The connections that it holds for clients.
    pub room: Rc<Room>,
    pub rng: RefCell<SmallRng>,
    /// This pod, for choices that stay the same.
    pub caller: Caller,
    /// Mirrored requests that are under way.
    pub mirrors: Cell<usize>,
    targets: Targets,
    /// Connections to the app, by its address.
    apps: RefCell<HashMap<SocketAddr, Rc<Pool>>>,
    /// Those that one connection of a peer has to itself.
    apps_for_one: RefCell<Vec<Weak<Pool>>>,
}

/// Runs a worker on this thread until it was drained.
///
/// # Errors
/// When the system gives no event queue.
pub fn run(process: Arc<Process>, listeners: Listeners, mut signal: Signal) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    let caller = Caller::new(&process.config.workload);
    runtime.block_on(async move {
        let targets = Targets::new(process.config.workers);
        let budget = process.config.budget.share(process.config.workers);
        let room = Room::new(budget, process.telemetry.metrics().clone());
        let worker = Rc::new(Worker {
            process,
            room,
            activity: Rc::default(),
            rng: RefCell::new(SmallRng::from_os_rng()),
            caller,
            mirrors: Cell::new(0),
            targets,
            apps: RefCell::default(),
            apps_for_one: RefCell::default(),
        });
        worker.process.telemetry.metrics().runtime(Handle::current());
        worker.listen(listeners)?;
        tokio::task::spawn_local(sweep(Rc::clone(&worker)));
        signal.reached(Phase::Draining).await;
        let config = &worker.process.config;
        let deadline = config.drain_timeout;
        // Only where connections are captured is the network namespace the app's and the sidecar's alone.
        let captured = config.captures();
        let app_lives = || captured && sockets::others_have_one();
        tokio::select! {
            drained = tokio::time::timeout(deadline, worker.activity.drain(app_lives)) => {
                if drained.is_err() {
                    tracing::warn!(?deadline, "requests were still in flight when the time to drain was up");
                }
            }
            () = signal.reached(Phase::Forced) => {}
        }
        Ok(())
    })
}

impl Worker {
    /// What is behind `key`, asked of discovery if this worker does not know it yet. `None`: it is not in the cluster.
    ///
    /// # Errors
    /// [`outrigger_proxy_transport::error::Reason::DiscoveryUnavailable`].
    pub async fn target(&self, key: &TargetKey) -> Result<Option<Rc<WorkerTarget>>, ProxyError> {
        let known = self.targets.get(key);
        let process = &self.process;
        if known.is_some() || process.discovery.is_outside(key) {
            return Ok(known);
        }
        let updates = process.discovery.watch(key.clone(), DISCOVERY_TIMEOUT).await?;
        if matches!(**updates.borrow(), Target::External) {
            return Ok(None);
        }
        // Another connection may have asked for the same meanwhile.
        if let Some(target) = self.targets.get(key) {
            return Ok(Some(target));
        }
        let now = Instant::now();
        let target = Rc::new(WorkerTarget::new(
            updates,
            self.caller,
            process.resolver.clone(),
            process.telemetry.clone(),
            now,
        ));
        self.targets.insert(key.clone(), Rc::clone(&target), now);
        Ok(Some(target))
    }

    /// The connections to the app at an address.
    pub fn app(&self, address: SocketAddr) -> Rc<Pool> {
        let mut apps = self.apps.borrow_mut();
        Rc::clone(apps.entry(address).or_insert_with(|| Rc::new(Pool::new(false))))
    }

    /// Connections to the app that nobody else has.
    pub fn app_for_one(&self) -> Rc<Pool> {
        let pool = Rc::new(Pool::new(false));
        self.apps_for_one.borrow_mut().push(Rc::downgrade(&pool));
        pool
    }

    /// Whether the address is this very pod's.
    pub fn is_own_pod(&self, address: SocketAddr) -> bool {
        listen::is_one_of(&self.process.config.workload.pod_ips, address.ip())
    }

    /// Why a backend may not have this address: what is the pod's own (its loopback, its node's metadata service, this sidecar's
    /// ports) is not for whoever writes routes and Services in other namespaces. A standalone sidecar is told by its own file.
    pub fn why_no_backend(&self, address: SocketAddr) -> Option<&'static str> {
        if !self.process.config.captures() {
            None
        } else if self.is_own_listener(address) {
            Some("one of this sidecar's own ports")
        } else {
            why_no_backend(address.ip())
        }
    }

    /// Whether to connect there would come back to this sidecar.
    pub fn is_own_listener(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let own_address = |listening: &SocketAddr| listening.ip() == ip || ip.is_loopback() || self.is_own_pod(address);
        self.process
            .listening
            .iter()
            .any(|listening| listening.port() == address.port() && own_address(listening))
    }

    /// Where a captured connection wanted to go. `None`: it was made to the listener itself.
    fn captured(&self, stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr> {
        let original = listen::original_destination(stream).filter(|original| !self.is_own_listener(*original));
        if original.is_none() {
            tracing::debug!(%client, "a connection to a listener itself is closed: it was not captured");
        }
        original
    }

    /// The same, of a connection to the app: it is never followed to another host, nor to what listens on loopback only. Anybody who
    /// can send the pod a frame, or has a route to it, chooses the destination.
    fn captured_for_app(&self, stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr> {
        let original = self.captured(stream, client)?;
        if listen::is_one_of(&self.process.config.workload.pod_ips, original.ip()) {
            return Some(original);
        }
        self.process.telemetry.metrics().connection_refused(Refused::NotThisPod);
        tracing::info!(%client, %original, "a connection is refused: it wants to go to an address that is not this pod's");
        // Best effort: the connection may be gone.
        let _ = stream.set_zero_linger();
        None
    }

    fn listen(self: &Rc<Self>, listeners: Listeners) -> std::io::Result<()> {
        for (socket, to) in listeners.outbound {
            let listener = Listener::new(socket)?;
            tokio::task::spawn_local(accept_outbound(Rc::clone(self), listener, to));
        }
        for (socket, to) in listeners.inbound {
            let listener = Listener::new(socket)?;
            tokio::task::spawn_local(accept_inbound(Rc::clone(self), listener, to));
        }
        Ok(())
    }
}

async fn accept_outbound(worker: Rc<Worker>, listener: Listener, to: Destination) {
    accept(&worker, listener, |stream, client, seat| {
        let key = match &to {
            Destination::Named(name) => TargetKey::Named(Arc::clone(name)),
            Destination::Fixed(address) => TargetKey::Address(*address),
            Destination::Original => TargetKey::Address(worker.captured(&stream, client)?),
        };
        outbound::spawn(Rc::clone(&worker), stream, key, seat);
        Some(())
    })
    .await;
}

async fn accept_inbound(worker: Rc<Worker>, listener: Listener, to: InboundDestination) {
    accept(&worker, listener, |stream, client, seat| {
        let app = match &to {
            InboundDestination::Fixed(app) => *app,
            InboundDestination::Original => worker.captured_for_app(&stream, client)?,
        };
        inbound::spawn(Rc::clone(&worker), Io::Tcp(stream), app, Some(client), seat);
        Some(())
    })
    .await;
}

/// Accepts until the end of the drain, and then what waits in the queue: those clients have a connection already.
async fn accept(worker: &Rc<Worker>, listener: Listener, spawn: impl Fn(TcpStream, SocketAddr, Seat) -> Option<()>) {
    let mut arrivals = Arrivals::new(Rc::clone(&worker.room), listener);
    let mut refusing = pin!(worker.activity.refusing());
    loop {
        tokio::select! {
            biased;
            (stream, client, seat) = arrivals.next() => {
                // A connection that was not captured is closed.
                let _ = spawn(stream, client, seat);
            }
            () = &mut refusing => return,
        }
    }
}

async fn sweep(worker: Rc<Worker>) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await;
        worker.targets.sweep(now);
        worker.apps.borrow_mut().retain(|_, pool| {
            pool.sweep(now);
            Rc::strong_count(pool) > 1 || !pool.is_empty()
        });
        worker.apps_for_one.borrow_mut().retain(|pool| {
            let pool = pool.upgrade();
            pool.inspect(|pool| pool.sweep(now)).is_some()
        });
    }
}
