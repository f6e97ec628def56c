//! A sidecar as a process: started, watched, killed, drained, and measured.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use outrigger_proxy::app;
use outrigger_proxy::config::{Config, Destination, InboundDestination, InboundListener, OutboundListener};
use outrigger_proxy::telemetry::logging::LogFilter;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// The environment variable that tells a sidecar whose child it must be.
const PARENT: &str = "OUTRIGGER_SOAK_PARENT";
/// For a process to start and to get its identity, on a machine that is busy.
const START: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// Beyond it, lines of a log are not kept.
const LOG_BYTES: usize = 16 << 20;

/// What a sidecar listens on, in the place of captured connections.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Listeners {
    /// An address of the cluster; the outbound listeners are in this order.
    #[arg(long)]
    pub(super) outbound: Vec<SocketAddr>,
    /// An address of the app; the inbound listeners are in this order.
    #[arg(long)]
    pub(super) inbound: Vec<SocketAddr>,
}

/// Is a sidecar of the soak, until SIGTERM. It is configured as the injector does it, except for its listeners: without root
/// nothing can be captured. It must be called before any thread is made.
///
/// # Errors
/// When it was not started by the soak, or cannot start.
pub fn be_sidecar(listeners: Listeners) -> Result<ExitCode> {
    let parent = std::env::var(PARENT).ok().and_then(|pid| pid.parse::<i32>().ok());
    set_pdeathsig(Signal::SIGKILL).context("cannot ask to be ended with the soak")?;
    ensure!(
        Some(getppid().as_raw()) == parent,
        "this is a part of the soak, which starts it by itself"
    );
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config::from_env(|name| std::env::var(name).ok()).map_err(|errors| anyhow::anyhow!("{errors:#?}"))?;
    let config = Config {
        admin: anywhere,
        outbound: (listeners.outbound.into_iter())
            .map(|address| OutboundListener {
                listen: anywhere,
                to: Destination::Fixed(address),
            })
            .collect(),
        inbound: (listeners.inbound.into_iter())
            .map(|app| InboundListener {
                listen: anywhere,
                to: InboundDestination::Fixed(app),
            })
            .collect(),
        ..config
    };
    let log = LogFilter::install(&config.log).map_err(anyhow::Error::msg)?;
    app::run(config, log)
}

/// See the module. Dropped, it is killed.
pub(super) struct Sidecar {
    pub(super) name: String,
    outbound: Vec<SocketAddr>,
    pub(super) inbound: Vec<SocketAddr>,
    /// When it was ready and had no connection yet.
    pub(super) baseline: Figures,
    admin: SocketAddr,
    pid: u32,
    child: Child,
}

/// What a sidecar holds at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) rss: u64,
    pub(super) fds: u64,
    pub(super) tasks: u64,
    /// Open connections, in and out.
    pub(super) connections: u64,
    /// Of CPU.
    pub(super) seconds: f64,
}

/// What it said of itself when it started.
struct Started {
    admin: SocketAddr,
    outbound: Vec<SocketAddr>,
    inbound: Vec<SocketAddr>,
}

impl Sidecar {
    /// Starts this very program as a sidecar, and waits until it is ready. It must be called on the main thread: the kernel
    /// ends a child with the thread that started it. Its log goes to `NAME.log` in the folder `logs`.
    pub(super) async fn start(
        name: &str,
        listeners: &Listeners,
        environment: &[(&str, String)],
        logs: &Path,
    ) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("sidecar");
        for address in &listeners.outbound {
            command.arg("--outbound").arg(address.to_string());
        }
        for address in &listeners.inbound {
            command.arg("--inbound").arg(address.to_string());
        }
        let mut child = command
            .env(PARENT, std::process::id().to_string())
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .process_group(0) // Ctrl-C is for the soak
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a sidecar")?;
        let pid = child.id().context("it has ended")?;
        let stderr = child.stderr.take().context("it has no log")?;
        let (tell, told) = oneshot::channel();
        let log = tokio::fs::File::create(logs.join(format!("{name}.log"))).await?;
        tokio::spawn(keep_log(stderr, log, tell));
        let started = timeout(START, told).await.context("it does not start")?;
        let started = started.with_context(|| format!("{name} ended as it started; see its log"))?;
        let mut sidecar = Self {
            name: name.to_owned(),
            outbound: started.outbound,
            inbound: started.inbound,
            baseline: Figures::default(),
            admin: started.admin,
            pid,
            child,
        };
        let ready = async {
            while !sidecar
                .ask("/readyz")
                .await
                .is_ok_and(|answer| answer.starts_with("ready"))
            {
                sleep(LOOK).await;
            }
        };
        timeout(START, ready)
            .await
            .with_context(|| format!("{name} does not get ready"))?;
        sidecar.baseline = sidecar.figures().await?;
        Ok(sidecar)
    }

    /// Where it takes what is for the three Services.
    pub(super) fn listeners(&self) -> [SocketAddr; 3] {
        let outbound = self.outbound.clone();
        outbound
            .try_into()
            .expect("a sidecar of a client has a listener for each Service")
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child
            .start_kill()
            .with_context(|| format!("cannot kill {}", self.name))
    }

    /// Asks it to drain.
    pub(super) fn terminate(&self) -> Result<()> {
        // The child is not reaped yet, so the number is its own.
        Ok(kill(Pid::from_raw(i32::try_from(self.pid)?), Signal::SIGTERM)?)
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = timeout(limit, self.child.wait()).await;
        Ok(ended.with_context(|| format!("{} runs on after {limit:?}", self.name))??)
    }

    /// What its admin port says.
    pub(super) async fn ask(&self, path: &str) -> Result<String> {
        let asking = async {
            let mut stream = TcpStream::connect(self.admin).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = timeout(ANSWER, asking).await.context("it does not answer")??;
        let (_, body) = answer.split_once("\r\n\r\n").context("it answers no HTTP")?;
        Ok(body.to_owned())
    }

    /// Figures of this moment, by the kernel and by its own metrics.
    pub(super) async fn figures(&self) -> Result<Figures> {
        let metrics = self.ask("/metrics").await?;
        let value = |name: &str| -> f64 {
            let series = metrics.lines().filter(|line| !line.starts_with('#'));
            let of_name =
                series.filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
            of_name
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        };
        Ok(Figures {
            rss: value("process_resident_memory_bytes") as u64,
            fds: value("process_open_fds") as u64,
            tasks: value("outrigger_tasks_alive") as u64,
            connections: value("outrigger_connections_open") as u64,
            seconds: value("process_cpu_seconds_total"),
        })
    }
}

/// Keeps what a sidecar logs, and tells where it listens as soon as it says so.
async fn keep_log(stderr: ChildStderr, mut log: tokio::fs::File, tell: oneshot::Sender<Started>) {
    let mut lines = BufReader::new(stderr).lines();
    let (mut tell, mut kept) = (Some(tell), 0);
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(started) = tell.is_some().then(|| started(&line)).flatten() {
            let _ = tell.take().map(|tell| tell.send(started));
        }
        kept += line.len();
        // A log that cannot be written is a log less.
        if kept < LOG_BYTES {
            let _ = log.write_all(format!("{line}\n").as_bytes()).await;
        }
    }
    let _ = log.flush().await;
}

/// The line of `app::run` that names the addresses.
fn started(line: &str) -> Option<Started> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line["message"] != "the sidecar runs" {
        return None;
    }
    let list = |key: &str| -> Option<Vec<SocketAddr>> {
        let text = line[key].as_str()?.trim_matches(['[', ']']);
        let addresses = text.split(", ").filter(|address| !address.is_empty());
        addresses.map(|address| address.parse().ok()).collect()
    };
    Some(Started {
        admin: line["admin"].as_str()?.parse().ok()?,
        outbound: list("outbound")?,
        inbound: list("inbound")?,
    })
}

#[cfg(test)]
mod tests {
    use super::started;

    #[test]
    fn a_sidecar_says_where_it_listens() {
        let line = r#"{"level":"INFO","message":"the sidecar runs","workload":"a","admin":"127.0.0.1:1","outbound":"[]","inbound":"[127.0.0.1:2, 127.0.0.1:3]","target":"t"}"#;
        let started = started(line).unwrap();
        assert_eq!((started.outbound.len(), started.inbound.len()), (0, 2));
        assert_eq!(started.inbound[1].port(), 3);
        assert!(super::started(r#"{"message":"ended"}"#).is_none());
    }
}
