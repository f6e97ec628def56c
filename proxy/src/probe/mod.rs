//! What kubelet would ask the app, asked by the sidecar: from inside the pod, so that under `strict` nobody outside of the mesh
//! needs to be let in, and with the app's own answer, where kubelet would only see that the sidecar accepts connections.
//!
//! The app gets the request that kubelet would send (Kubernetes, `pkg/probe`), at the pod's address, and what it answers is
//! judged as kubelet does. Every pod can reach the admin port, so what is not declared is not asked, a probe is under way
//! once at a time, however many ask for it, and a lifecycle handler is carried out for kubelet only.

mod grpc;
mod http;
mod location;
mod tls;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::header::USER_AGENT;
use ::http::{HeaderMap, StatusCode};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use outrigger_api::probes::{AppProbe, Ask, KEY_HEADER, path};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// So many may wait for the same probe from one address: kubelet is one, and a pod that asks for more gets in nobody's way.
const WAITING: usize = 4;
/// Before a lifecycle handler that takes longer is given up: kubelet has no limit of its own.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What kubelet calls itself, before its version.
const AGENTS: [&str; 2] = ["kube-probe/", "kube-lifecycle/"];
const MAX_AGENT: usize = 32;

/// The probes and lifecycle handlers of the app that the sidecar carries out.
#[derive(Default)]
pub struct AppProbes(Vec<Arc<Known>>);

/// What is said to who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A status, and why.
    Status(StatusCode, String),
    /// Nothing: the connection is closed. kubelet takes any answer to a lifecycle handler for a success.
    Broken(String),
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Everybody may ask.
    Probe(Duration),
    /// Who does not show its key gets an answer at once.
    Handler(Duration),
}

/// What the app said: a status, or that it said none.
type Verdict = Result<StatusCode, Failure>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    status: StatusCode,
    why: String,
}

struct Known {
    probe: AppProbe,
    app: SocketAddr,
    running: Mutex<Option<WeakShared<BoxFuture<'static, Verdict>>>>,
    /// Who waits for it.
    waiting: Mutex<HashMap<IpAddr, usize>>,
    /// What was said last, so that only changes are logged.
    failing: AtomicBool,
}

/// One who waits, until it is dropped.
struct Waiting<'a> {
    known: &'a Known,
    address: IpAddr,
}

impl AppProbes {
    /// What is asked of an app at the pod's address `pod`.
    pub fn new(pod: IpAddr, probes: Vec<AppProbe>) -> Self {
        let known = |probe: AppProbe| Known {
            app: SocketAddr::new(pod, probe.port),
            probe,
            running: Mutex::default(),
            waiting: Mutex::default(),
            failing: AtomicBool::new(false),
        };
        Self(probes.into_iter().map(|probe| Arc::new(known(probe))).collect())
    }

    /// How long the answer at this path of the admin port may take. `None` where nothing is declared, so nothing is asked.
    pub fn time(&self, at: &str) -> Option<Time> {
        let probe = &self.find(at)?.probe;
        let time = probe
            .timeout
            .map_or(LONGEST, |seconds| Duration::from_secs(seconds.into()));
        Some(match probe.kind.is_handler() {
            true => Time::Handler(time),
            false => Time::Probe(time),
        })
    }

    /// Carries out what is declared at this path of the admin port, for who asks from this address with these headers.
    pub async fn ask(&self, at: &str, from: IpAddr, headers: &HeaderMap) -> Answer {
        let Some(known) = self.find(at) else {
            return Answer::Status(StatusCode::NOT_FOUND, "the pod declares no such probe".to_owned());
        };
        if let Some(key) = &known.probe.key
            && headers
                .get(KEY_HEADER)
                .is_none_or(|shown| shown.as_bytes() != key.as_bytes())
        {
            return Answer::Status(
                StatusCode::FORBIDDEN,
                "only kubelet may ask for a lifecycle handler".to_owned(),
            );
        }
        let agent = agent(headers);
        if known.probe.kind.is_handler() {
            return match attempt(known.probe.clone(), known.app, agent).await {
                Ok(status) => said(status, known.app),
                Err(failure) => Answer::Broken(failure.why),
            };
        }
        let Some(_waiting) = known.wait(from) else {
            let why = format!("{WAITING} who wait for it from one address are enough");
            return Answer::Status(StatusCode::TOO_MANY_REQUESTS, why);
        };
        let verdict = known.verdict(agent).await;
        known.log_change(&verdict);
        match verdict {
            Ok(status) => said(status, known.app),
            Err(failure) => Answer::Status(failure.status, failure.why),
        }
    }

    fn find(&self, at: &str) -> Option<&Known> {
        let found = self.0.iter().find(|k| path(&k.probe.container, k.probe.kind) == at);
        found.map(Arc::as_ref)
    }
}

impl Known {
    /// `None` where enough wait from this address.
    fn wait(&self, address: IpAddr) -> Option<Waiting<'_>> {
        let mut waiting = self.waiting.lock();
        let count = waiting.entry(address).or_default();
        if *count >= WAITING {
            return None;
        }
        *count += 1;
        Some(Waiting { known: self, address })
    }

    /// Of the attempt that is under way, or of a new one.
    async fn verdict(&self, agent: String) -> Verdict {
        let running = {
            let mut slot = self.running.lock();
            let running: Option<Shared<_>> = slot.as_ref().and_then(WeakShared::upgrade);
            match running.filter(|running| running.peek().is_none()) {
                Some(running) => running,
                None => {
                    let fresh = attempt(self.probe.clone(), self.app, agent).boxed().shared();
                    *slot = fresh.downgrade();
                    fresh
                }
            }
        };
        running.await
    }

    fn log_change(&self, verdict: &Verdict) {
        let (fails, why) = match verdict {
            Ok(status) => (!is_success(*status), format!("its answer is {status}")),
            Err(failure) => (true, failure.why.clone()),
        };
        if self.failing.swap(fails, Ordering::Relaxed) != fails {
            let AppProbe { container, kind, .. } = &self.probe;
            let what = if fails {
                "a probe of the app fails"
            } else {
                "a probe of the app succeeds again"
            };
            tracing::info!(container, %kind, why, "{what}");
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.known.waiting.lock();
        if let Some(count) = waiting.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.address);
            }
        }
    }
}

/// One attempt, which takes as long as kubelet waits.
async fn attempt(probe: AppProbe, app: SocketAddr, agent: String) -> Verdict {
    let asked = async {
        match &probe.ask {
            Ask::Http(get) => http::ask(get, app, &agent, probe.kind.is_handler()).await,
            Ask::Grpc(service) => grpc::check(service, app, &agent).await,
            Ask::Tcp => connect(app).await.map(|_| StatusCode::OK),
        }
    };
    let Some(seconds) = probe.timeout else {
        return asked.await;
    };
    let limit = Duration::from_secs(seconds.into());
    timeout(limit, asked).await.unwrap_or_else(|_| {
        Err(Failure {
            status: StatusCode::GATEWAY_TIMEOUT,
            why: format!("the app at {app} did not answer within {seconds} s (timeoutSeconds)"),
        })
    })
}

async fn connect(app: SocketAddr) -> Result<TcpStream, Failure> {
    let tcp = TcpStream::connect(app).await.map_err(|error| Failure {
        status: StatusCode::SERVICE_UNAVAILABLE,
        why: format!("the app does not accept connections at {app}: {error}; does it listen on the pod's address?"),
    })?;
    // Best effort: one packet more.
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

/// The app's status as an answer. One that an HTTP server must not send by itself (1xx), or that none knows, is a failure for
/// kubelet, and so is this.
fn said(status: StatusCode, app: SocketAddr) -> Answer {
    let why = format!("the app at {app} answered {status}");
    match status.as_u16() {
        200..=599 => Answer::Status(status, why),
        _ => Answer::Status(StatusCode::BAD_GATEWAY, why),
    }
}

/// A redirect that is not followed is a success with a warning to kubelet.
fn is_success(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// The name that the app is told: kubelet's own, which has its version. Whatever else asks has no say.
fn agent(headers: &HeaderMap) -> String {
    let shown = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
    let kubelets = |agent: &&str| {
        let version = AGENTS.iter().find_map(|name| agent.strip_prefix(name));
        let of_version = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-');
        agent.len() <= MAX_AGENT && version.is_some_and(|version| version.bytes().all(of_version))
    };
    shown.filter(kubelets).unwrap_or("kube-probe/").to_owned()
}

#[cfg(test)]
mod tests;
