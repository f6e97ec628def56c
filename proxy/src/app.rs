//! The process: what runs where, from its start to its end.
//!
//! The caller's runtime is the control runtime: identity, discovery, names, telemetry's export and the admin port. Each
//! worker is a thread with a runtime of its own ([`crate::worker`]). The two meet in channels and snapshots only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use outrigger_proxy_transport::drain::{self, Phase, Trigger};
use outrigger_proxy_transport::net::listen;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::config::Config;
use crate::context::Process;
use crate::discovery::Discovery;
use crate::dns::Resolver;
use crate::identity::{Clock, Identity};
use crate::probe::AppProbes;
use crate::telemetry::Telemetry;
use crate::telemetry::logging::LogFilter;
use crate::worker::{self, Listeners};

/// How long the last spans may take to leave, at the end. When an app has used up the pod's grace period, kubelet gives a
/// native sidecar 2 s from SIGTERM to SIGKILL, which the drain of an idle sidecar and this must not exceed.
const FLUSH: Duration = Duration::from_millis(750);

/// A sidecar that runs. Dropped, it ends at once.
pub struct RunningProxy {
    /// Where the admin port is.
    pub admin: SocketAddr,
    /// In the order of the configuration, with the ports that were learnt.
    pub outbound: Vec<SocketAddr>,
    pub inbound: Vec<SocketAddr>,
    process: Arc<Process>,
    trigger: Trigger,
    /// Cancelled by the admin port's `/shutdown`.
    shutdown: CancellationToken,
    /// One message from each worker that has ended.
    ended: mpsc::UnboundedReceiver<std::io::Result<()>>,
    workers: usize,
    admin_task: AbortHandle,
}

/// Tells how a worker ended, also when it panicked.
struct Report {
    result: std::io::Result<()>,
    tell: mpsc::UnboundedSender<std::io::Result<()>>,
}

impl Drop for Report {
    fn drop(&mut self) {
        // The control runtime may have gone first: then nobody asks.
        let _ = self.tell.send(std::mem::replace(&mut self.result, Ok(())));
    }
}

/// Runs a sidecar on this thread until it is told to end by a signal or by `/shutdown`.
///
/// # Errors
/// When it cannot start, or a worker died.
pub fn run(config: Config, log: LogFilter) -> anyhow::Result<ExitCode> {
    listen::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut proxy = start(config, Some(log)).await?;
        tracing::info!(
            workload = %proxy.process.config.workload.name,
            admin = %proxy.admin,
            outbound = ?proxy.outbound,
            inbound = ?proxy.inbound,
            "the sidecar runs"
        );
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = proxy.shutdown.clone().cancelled_owned() => {}
            died = proxy.ended.recv() => return Err(worker_died(died)),
        }
        tracing::info!(limit = ?proxy.process.config.drain_timeout, "draining; a second signal ends at once");
        proxy.trigger.enter(Phase::Draining);
        tokio::select! {
            result = proxy.all_ended() => result?,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        proxy.process.telemetry.flush(FLUSH).await;
        tracing::info!("ended");
        Ok(ExitCode::SUCCESS)
    })
}

/// Starts a sidecar; the calling runtime is its control runtime. Everything is bound when this returns; whether it is
/// ready is another question ([`RunningProxy::ready`]).
///
/// # Errors
/// When an address cannot be bound, or the telemetry's collector is no URL.
pub async fn start(config: Config, log: Option<LogFilter>) -> anyhow::Result<RunningProxy> {
    start_by(Clock::system(), config, log).await
}

/// The same, by a clock that says when certificates are valid.
///
/// # Errors
/// As [`start`].
pub async fn start_by(clock: Clock, config: Config, log: Option<LogFilter>) -> anyhow::Result<RunningProxy> {
    let workers = config.workers.max(1);
    let admin_listener = tokio::net::TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("cannot listen on {} for the admin port", config.admin))?;
    let admin = admin_listener.local_addr()?;
    let (listeners, outbound, inbound) = bind(&config, workers)?;
    let failed = |e: String| anyhow!(e);
    let resolver = Resolver::start(config.dns_servers.as_deref()).map_err(failed)?;
    let telemetry = Telemetry::start(&config.telemetry(), &resolver).map_err(failed)?;
    telemetry.metrics().runtime(Handle::current());
    telemetry.metrics().connections_limit(config.budget.connections);
    let identity = Identity::start(config.identity.clone(), clock, resolver.clone());
    let discovery = Discovery::start(&config.discovery, &config.workload, identity.clone(), resolver.clone());
    let process = Arc::new(Process {
        listening: outbound.iter().chain(&inbound).chain([&admin]).copied().collect(),
        config,
        identity,
        discovery,
        resolver,
        telemetry,
        servers_first: Arc::default(),
        app_first: Arc::default(),
        counts: Arc::default(),
    });
    watch_expiry(&process);
    show_servers_first(&process);
    let (trigger, signal) = drain::channel();
    let shutdown = CancellationToken::new();
    let admin_task = tokio::spawn(admin::serve(
        admin_listener,
        admin_state(&process, &trigger, shutdown.clone(), log),
    ));
    let (tell, ended) = mpsc::unbounded_channel();
    for (number, listeners) in listeners.into_iter().enumerate() {
        let (process, signal, tell) = (Arc::clone(&process), signal.clone(), tell.clone());
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let mut report = Report {
                    result: Err(std::io::Error::other("it panicked; see the log")),
                    tell,
                };
                report.result = worker::run(process, listeners, signal);
            })?;
    }
    Ok(RunningProxy {
        admin,
        outbound,
        inbound,
        process,
        trigger,
        shutdown,
        ended,
        workers,
        admin_task: admin_task.abort_handle(),
    })
}

impl RunningProxy {
    /// Waits until the sidecar has an SVID, and knows who may call its app.
    pub async fn ready(&self) {
        self.process.identity.ready().await;
        // It fails only where discovery has ended, with the process.
        let _ = self.process.discovery.access().wait_for(Option::is_some).await;
    }

    /// What it counts, and where its spans go.
    pub fn telemetry(&self) -> &Telemetry {
        &self.process.telemetry
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.process.identity
    }

    /// Ends gracefully: what is in flight may finish, within the configured time.
    ///
    /// # Errors
    /// When a worker died.
    pub async fn shutdown(mut self) -> anyhow::Result<()> {
        self.trigger.enter(Phase::Draining);
        self.all_ended().await?;
        self.process.telemetry.flush(FLUSH).await;
        Ok(())
    }

    async fn all_ended(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.workers {
            match self.ended.recv().await {
                Some(Ok(())) => {}
                died => return Err(worker_died(died)),
            }
        }
        Ok(())
    }
}

impl Drop for RunningProxy {
    fn drop(&mut self) {
        self.trigger.enter(Phase::Forced);
        self.admin_task.abort();
    }
}

/// A socket of each listener for each worker, and the addresses.
fn bind(config: &Config, workers: usize) -> std::io::Result<(Vec<Listeners>, Vec<SocketAddr>, Vec<SocketAddr>)> {
    let mut listeners: Vec<Listeners> = (0..workers)
        .map(|_| Listeners {
            outbound: Vec::new(),
            inbound: Vec::new(),
        })
        .collect();
    let (mut outbound, mut inbound) = (Vec::new(), Vec::new());
    for listener in &config.outbound {
        let (address, sockets) = listen::bind(listener.listen, workers)?;
        outbound.push(address);
        for (worker, socket) in listeners.iter_mut().zip(sockets) {
            worker.outbound.push((socket, listener.to.clone()));
        }
    }
    for listener in &config.inbound {
        let (address, sockets) = listen::bind(listener.listen, workers)?;
        inbound.push(address);
        for (worker, socket) in listeners.iter_mut().zip(sockets) {
            worker.inbound.push((socket, listener.to.clone()));
        }
    }
    Ok((listeners, outbound, inbound))
}

fn admin_state(
    process: &Arc<Process>,
    trigger: &Trigger,
    shutdown: CancellationToken,
    log: Option<LogFilter>,
) -> AdminState {
    let (ready_process, config_process, phase) = (Arc::clone(process), Arc::clone(process), trigger.clone());
    let config = &process.config;
    // kubelet asks at the pod's first address.
    let pod = config.workload.pod_ips.first().copied();
    AdminState {
        telemetry: process.telemetry.clone(),
        probes: Arc::new(AppProbes::new(
            pod.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            config.app_probes.clone(),
        )),
        ready: Arc::new(move || {
            let (identity, discovery) = (&ready_process.identity, &ready_process.discovery);
            if phase.phase() > Phase::Serving {
                Err("it is draining".to_owned())
            } else if identity.current().is_none() {
                let problem = identity.problem();
                Err(problem.unwrap_or_else(|| "it waits for its certificate".to_owned()))
            } else if discovery.access().borrow().is_none() {
                let problem = discovery.problem();
                Err(format!(
                    "it waits for the controller to say who may call its app: {problem}"
                ))
            } else {
                Ok(())
            }
        }),
        config: Arc::new(move || beliefs(&config_process)),
        log,
        shutdown,
    }
}

/// What the sidecar believes, for `/config`.
fn beliefs(process: &Process) -> serde_json::Value {
    let config = &process.config;
    let workload = &config.workload;
    let credentials = process.identity.current();
    json!({
        "workload": {
            "name": &*workload.name,
            "namespace": &*workload.namespace,
            "pod": &*workload.pod,
            "serviceAccount": &*workload.service_account,
            "node": &*workload.node,
            "podIPs": workload.pod_ips,
        },
        "listening": process.listening,
        "mtls": format!("{:?}", config.mtls).to_lowercase(),
        "workers": config.workers,
        "identity": credentials.map(|credentials| json!({
            "id": credentials.id.as_str(),
            "generation": credentials.generation,
            "notAfter": httpdate::fmt_http_date(credentials.not_after),
        })),
        "identityProblem": process.identity.problem(),
        "targets": process.discovery.snapshot(),
    })
}

fn watch_expiry(process: &Arc<Process>) {
    let seconds_until = |time: SystemTime, identity: &Identity| match time.duration_since(identity.clock().now()) {
        Ok(left) => left.as_secs_f64(),
        Err(gone) => -gone.duration().as_secs_f64(),
    };
    let metrics = process.telemetry.metrics();
    let identity = process.identity.clone();
    metrics.expiry("leaf", move || {
        identity.current().map(|c| seconds_until(c.not_after, &identity))
    });
    let identity = process.identity.clone();
    metrics.expiry("root", move || {
        let credentials = identity.current()?;
        credentials
            .trust
            .not_after
            .iter()
            .min()
            .map(|first| seconds_until(*first, &identity))
    });
}

fn show_servers_first(process: &Process) {
    let (services, app) = (Arc::clone(&process.servers_first), Arc::clone(&process.app_first));
    process.telemetry.metrics().servers_first(move || {
        let now = Instant::now();
        (services.ports(now), app.ports(now))
    });
}

fn worker_died(died: Option<std::io::Result<()>>) -> anyhow::Error {
    match died {
        Some(Err(error)) => anyhow!("a worker could not go on: {error}"),
        _ => anyhow!("a worker ended before it was told to"),
    }
}
