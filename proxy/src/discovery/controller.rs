//! Discovery from the controller, over one mutual-TLS connection that follows the SVID.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use outrigger_access::Access;
use outrigger_api::access as proto_access;
use outrigger_api::discovery::{self as proto, Trust};
use outrigger_api::limits as proto_limits;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::limits::Limits;
use super::session::Session;
use super::told::Told;
use super::unknown_keys::UnknownKeys;
use super::wants::Wants;
use super::{fallback, snapshot};
use crate::backoff::Backoff;
use crate::identity::Identity;
use crate::identity::channel::{Dialer, status_words};
use crate::model::{Target, Workload, WorkloadInfo, from_proto};
use crate::shared::Shared;

/// Targets that are known at the same time. Beyond it, those go that nobody uses, first what is no Service
/// or pod of the cluster. What is in use is never refused.
const MAX_TARGETS: usize = 4096;
/// Targets that are asked for at the same time; more wait for their turn. An app that tries many addresses makes no more
/// wants than this that are not known to be anything.
const MAX_ASKING: usize = 1024;
/// How long a target is kept that nobody watches.
pub(super) const KEEP: Duration = Duration::from_secs(60);
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// After a new SVID the session moves to a new connection, not of all sidecars in the same moment.
const MOVE_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Controller {
    link: Arc<Link>,
    asking: Semaphore,
    runtime: Handle,
    tasks: [AbortHandle; 2],
}

/// The way to the controller, and what comes from there.
pub(super) struct Link {
    dialer: Dialer,
    identity: Identity,
    /// Who asks.
    pub(super) asker: Workload,
    pub(super) wants: Arc<Wants>,
    pub(super) unknown_keys: UnknownKeys,
    targets: Arc<Shared<SocketAddr, Arc<Target>>>,
    workload: watch::Sender<Arc<WorkloadInfo>>,
    /// Who may call this pod. `None` before the controller's first word.
    access: watch::Sender<Option<Arc<Access>>>,
    /// How much this pod takes.
    limits: Arc<Limits>,
    /// Of the newest credentials; `None` while there are none.
    channel: watch::Sender<Option<Channel>>,
    /// What went wrong last, until something goes well.
    problem: Mutex<Option<String>>,
}

impl Controller {
    pub(super) fn start(dialer: Dialer, workload: &Workload, identity: Identity) -> Self {
        let link = Arc::new(Link {
            dialer,
            identity,
            asker: workload.clone(),
            wants: Arc::default(),
            unknown_keys: UnknownKeys::default(),
            targets: Arc::new(Shared::with_worth(MAX_TARGETS, worth)),
            workload: watch::channel(Arc::default()).0,
            access: watch::channel(None).0,
            limits: Arc::new(Limits::new(&proto_limits::Limits::default())),
            channel: watch::channel(None).0,
            problem: Mutex::new(None),
        });
        let following = tokio::spawn(Arc::clone(&link).follow_identity()).abort_handle();
        let talking = tokio::spawn(Arc::clone(&link).follow_controller()).abort_handle();
        Self {
            asking: Semaphore::new(MAX_ASKING),
            runtime: Handle::current(),
            tasks: [following, talking],
            link,
        }
    }

    pub(super) async fn watch(
        &self,
        address: SocketAddr,
        limit: Duration,
    ) -> Result<watch::Receiver<Arc<Target>>, ProxyError> {
        // One name for an address, however the socket was opened.
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if let Some(known) = self.link.targets.known(&address) {
            return Ok(known);
        }
        let asking = async {
            // The semaphore is never closed.
            let _turn = self.asking.acquire().await;
            let mut receiver = self.ask(address);
            receiver.changed().await.map(|()| receiver)
        };
        match timeout(limit, asking).await {
            Ok(Ok(receiver)) => Ok(receiver),
            Ok(Err(_)) | Err(_) => Err(ProxyError::new(
                Reason::DiscoveryUnavailable,
                format!(
                    "the controller {} has not said within {limit:?} what {address} is: {}",
                    self.link.dialer.address,
                    self.link.problem()
                ),
            )),
        }
    }

    fn ask(&self, address: SocketAddr) -> watch::Receiver<Arc<Target>> {
        let start = |sender: watch::Sender<Arc<Target>>| {
            let want = self.link.wants.want(address);
            let targets = Arc::downgrade(&self.link.targets);
            let task = async move {
                loop {
                    sender.closed().await;
                    let since = Instant::now();
                    sleep(KEEP).await;
                    if targets.upgrade().is_none_or(|t| t.remove_if_unused(&address, since)) {
                        break;
                    }
                }
                drop(want);
            };
            self.runtime.spawn(task).abort_handle()
        };
        self.link
            .targets
            .subscribe_always(&address, Arc::new(Target::External), start)
    }

    pub(super) fn is_outside(&self, ip: IpAddr) -> bool {
        self.link.workload.borrow().is_outside(ip)
    }

    pub(super) fn workload(&self) -> watch::Receiver<Arc<WorkloadInfo>> {
        self.link.workload.subscribe()
    }

    pub(super) fn access(&self) -> watch::Receiver<Option<Arc<Access>>> {
        self.link.access.subscribe()
    }

    pub(super) fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.link.limits)
    }

    pub(super) fn unknown_key(&self, policy: &str, provider: &str) {
        self.link.unknown_keys.meet(policy, provider);
    }

    pub(super) fn problem(&self) -> String {
        self.link.problem()
    }

    pub(super) fn snapshot(&self) -> Value {
        let targets = self.link.targets.seen().into_iter().map(|seen| {
            let target = match seen.known {
                true => snapshot::target(&seen.value),
                false => Value::Null,
            };
            (
                seen.key.to_string(),
                json!({ "watchers": seen.watchers, "target": target }),
            )
        });
        json!({
            "source": self.link.dialer.address.to_string(),
            "problem": *self.link.problem.lock(),
            "workload": snapshot::workload(&self.link.workload.borrow()),
            "access": self.link.access.borrow().as_deref().map(snapshot::access),
            "limits": self.link.limits.view(),
            "targets": targets.collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// What goes last when there is no room.
fn worth(target: &Arc<Target>) -> u8 {
    match **target {
        Target::External => 0,
        Target::Service(_) => 1,
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Link {
    /// Makes a new channel for each generation of the credentials.
    async fn follow_identity(self: Arc<Self>) {
        let mut identity = self.identity.subscribe();
        loop {
            let credentials = identity.borrow_and_update().clone();
            // Credentials that have ended change nothing: what is connected stays.
            if let Some(credentials) = credentials {
                let channel = self.dialer.channel(credentials.control().clone());
                self.channel.send_replace(Some(channel));
            }
            if identity.changed().await.is_err() {
                return;
            }
        }
    }

    /// Keeps a session for ever.
    async fn follow_controller(self: Arc<Self>) {
        let mut random = SmallRng::from_os_rng();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1, SmallRng::from_rng(&mut random));
        let mut channel = self.channel.subscribe();
        let mut told = Told::default();
        loop {
            let Ok(current) = channel.wait_for(Option::is_some).await.map(|current| current.clone()) else {
                return;
            };
            let Some(current) = current else { continue };
            let since = Instant::now();
            let ended = tokio::select! {
                status = self.talk(current, &mut told, &mut random) => Some(status),
                _ = channel.changed() => None,
            };
            let wait = match ended {
                None => MOVE_WITHIN.mul_f64(random.random()),
                Some(status) => {
                    self.report(Some(status_words(&status)));
                    backoff.ended(since.elapsed())
                }
            };
            sleep(wait).await;
        }
    }

    /// Follows one controller. Returns why that ended.
    async fn talk(self: &Arc<Self>, channel: Channel, told: &mut Told, random: &mut SmallRng) -> Status {
        match Session::open(self, channel.clone()).await {
            Ok(session) => {
                let random = SmallRng::from_rng(random);
                session.follow(self, told, random).await
            }
            Err(status) if status.code() == Code::Unimplemented => fallback::follow(self, &channel, told, random).await,
            Err(status) => status,
        }
    }

    /// What is behind an address from now on.
    pub(super) fn publish(&self, address: SocketAddr, target: Arc<Target>) {
        self.targets.publish(&address, target);
    }

    /// What the controller knows of this pod.
    pub(super) fn learn(&self, workload: &proto::Workload) {
        self.workload.send_replace(from_proto::workload(workload).into());
    }

    /// Who may call this pod from now on.
    pub(super) fn publish_access(&self, message: &proto_access::Access) {
        let before = self.access.borrow().clone().unwrap_or_default();
        self.access
            .send_replace(Some(Arc::new(Access::after(message, &before))));
    }

    /// How much this pod takes from now on.
    pub(super) fn publish_limits(&self, message: &proto_limits::Limits) {
        self.limits.update(message);
    }

    /// The controller does not say who may call this pod: its version has no policies, and everybody may. What one that has them
    /// said before stays in force: during an upgrade, controllers of both versions answer.
    pub(super) fn without_access(&self) {
        let is_first = self.access.send_if_modified(|access| {
            let is_first = access.is_none();
            access.get_or_insert_default();
            is_first
        });
        if !is_first && self.access.borrow().as_ref().is_some_and(|access| !access.is_empty()) {
            tracing::warn!(
                "the controller's version has no AccessPolicies; those that were declared before stay in force"
            );
        }
    }

    /// Whom to trust from now on.
    pub(super) fn trust(&self, trust: Trust) {
        self.identity.trust(trust.roots.into_iter().map(Into::into).collect());
    }

    /// Logs a problem once, and its end.
    pub(super) fn report(&self, error: Option<String>) {
        let mut problem = self.problem.lock();
        if *problem == error {
            return;
        }
        match &error {
            Some(error) => tracing::warn!("discovery: {error}; going on with what is known"),
            None => tracing::info!("discovery: the controller answers again"),
        }
        *problem = error;
    }

    /// For an error: the likeliest reason why there is no answer.
    fn problem(&self) -> String {
        if self.channel.borrow().is_none() {
            let why = self
                .identity
                .problem()
                .unwrap_or_else(|| "it is being issued".to_owned());
            return format!("this sidecar has no SVID to ask with: {why}");
        }
        let problem = self.problem.lock().clone();
        problem.unwrap_or_else(|| "it is connected but slow: check the controller's log and load".to_owned())
    }
}
