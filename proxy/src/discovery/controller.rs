//! Discovery from the controller, over one mutual-TLS connection that follows the SVID.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::discovery as proto;
use outrigger_api::discovery::discovery_client::DiscoveryClient;
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
use tonic::{Response, Status, Streaming};

use super::{WorkloadInfo, convert, snapshot};
use crate::backoff::Backoff;
use crate::config::Workload;
use crate::identity::Identity;
use crate::identity::channel::{Dialer, status_words};
use crate::model::Target;
use crate::shared::Shared;

/// Targets that are known at the same time; each is one stream. Beyond it, those go that nobody uses, first what is no Service
/// or pod of the cluster. What is in use is never refused.
const MAX_TARGETS: usize = 4096;
/// Targets that are asked for at the same time; more wait for their turn. An app that tries many addresses makes no more
/// streams than this that are not known to be anything.
const MAX_ASKING: usize = 1024;
/// How long a target is kept that nobody watches.
pub(super) const KEEP: Duration = Duration::from_secs(60);
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// After a new SVID the streams move to a new connection, not all in the same moment.
const MOVE_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Controller {
    link: Arc<Link>,
    targets: Arc<Shared<SocketAddr, Arc<Target>>>,
    asking: Semaphore,
    /// Who asks.
    asker: Workload,
    workload: watch::Sender<Arc<WorkloadInfo>>,
    runtime: Handle,
    tasks: [AbortHandle; 2],
}

/// The connection, which all streams share.
struct Link {
    dialer: Dialer,
    identity: Identity,
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
            channel: watch::channel(None).0,
            problem: Mutex::new(None),
        });
        let sender = watch::channel(Arc::<WorkloadInfo>::default()).0;
        let following = tokio::spawn(Arc::clone(&link).follow_identity()).abort_handle();
        let watching = watch_workload(Arc::clone(&link), workload.clone(), sender.clone());
        Self {
            targets: Arc::new(Shared::with_worth(MAX_TARGETS, worth)),
            asking: Semaphore::new(MAX_ASKING),
            asker: workload.clone(),
            workload: sender,
            runtime: Handle::current(),
            tasks: [following, tokio::spawn(watching).abort_handle()],
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
        if let Some(known) = self.targets.known(&address) {
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
            let link = Arc::clone(&self.link);
            let targets = Arc::downgrade(&self.targets);
            let publish = move |target| {
                if let Some(targets) = targets.upgrade() {
                    targets.publish(&address, target);
                }
            };
            let stream = watch_target(link, address, self.asker.clone(), publish);
            let targets = Arc::downgrade(&self.targets);
            let task = async move {
                let unused = async move {
                    loop {
                        sender.closed().await;
                        let since = Instant::now();
                        sleep(KEEP).await;
                        if targets.upgrade().is_none_or(|t| t.remove_if_unused(&address, since)) {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = stream => {}
                    () = unused => {}
                }
            };
            self.runtime.spawn(task).abort_handle()
        };
        self.targets
            .subscribe_always(&address, Arc::new(Target::External), start)
    }

    pub(super) fn is_outside(&self, ip: IpAddr) -> bool {
        self.workload.borrow().is_outside(ip)
    }

    pub(super) fn workload(&self) -> watch::Receiver<Arc<WorkloadInfo>> {
        self.workload.subscribe()
    }

    pub(super) fn snapshot(&self) -> Value {
        let targets = self.targets.seen().into_iter().map(|seen| {
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
            "workload": snapshot::workload(&self.workload.borrow()),
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

    /// Keeps one stream open for ever: `open` opens it, `publish` takes its messages.
    async fn stream<M, F>(&self, open: impl Fn(DiscoveryClient<Channel>) -> F, publish: impl Fn(M))
    where
        M: Send + 'static,
        F: Future<Output = Result<Response<Streaming<M>>, Status>>,
    {
        let mut random = SmallRng::from_os_rng();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1, SmallRng::from_rng(&mut random));
        let mut channel = self.channel.subscribe();
        loop {
            let Ok(current) = channel.wait_for(Option::is_some).await.map(|current| current.clone()) else {
                return;
            };
            let Some(current) = current else { continue };
            let reading = async {
                let mut messages = open(DiscoveryClient::new(current)).await?.into_inner();
                while let Some(message) = messages.message().await? {
                    publish(message);
                    backoff.succeeded();
                    self.report(None);
                }
                Err(Status::unavailable("the controller ended the stream"))
            };
            let result: Result<(), Status> = tokio::select! {
                result = reading => result,
                _ = channel.changed() => Ok(()),
            };
            let wait = match result {
                Ok(()) => MOVE_WITHIN.mul_f64(random.random()),
                Err(status) => {
                    self.report(Some(status_words(&status)));
                    backoff.failed()
                }
            };
            sleep(wait).await;
        }
    }

    /// Logs a problem once, and its end.
    fn report(&self, error: Option<String>) {
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

async fn watch_target(link: Arc<Link>, address: SocketAddr, asker: Workload, publish: impl Fn(Arc<Target>)) {
    let request = proto::WatchTargetRequest {
        address: address.to_string(),
        namespace: asker.namespace.to_string(),
        pod: asker.pod.to_string(),
    };
    let open = move |mut client: DiscoveryClient<Channel>| {
        let request = request.clone();
        async move { client.watch_target(request).await }
    };
    link.stream(open, |message| publish(Arc::new(convert::target(&message))))
        .await;
}

async fn watch_workload(link: Arc<Link>, workload: Workload, sender: watch::Sender<Arc<WorkloadInfo>>) {
    let request = proto::WatchWorkloadRequest {
        namespace: workload.namespace.to_string(),
        pod: workload.pod.to_string(),
    };
    let open = move |mut client: DiscoveryClient<Channel>| {
        let request = request.clone();
        async move { client.watch_workload(request).await }
    };
    let publish = |message| {
        sender.send_replace(Arc::new(convert::workload(&message)));
    };
    link.stream(open, publish).await;
}
