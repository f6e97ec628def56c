//! The webhook itself: HTTPS, one path, one question and one answer.
//!
//! Any pod can reach it, and kube-apiserver has no credential to show here. So what is read is bounded in size, number and
//! time, and what there is is shared by address: a pod that asks much gets in its own way.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, Client};
use outrigger_api::labels;
use outrigger_gate::{
    Budget, Charge, Crowded, Gate, Holder, Limits, OverBudget, Room, Times, Turns, Work, memory_limit,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::certs::Serving;
use crate::inject::{self, Given, NamespaceMeta, Outcome, Refusal};
use crate::metrics::{Metrics, Reviewed};
use crate::review;
use crate::settings::Settings;

/// The only path.
pub const PATH: &str = "/inject";

/// kube-apiserver takes no object beyond 3 MiB; a review is hardly larger than its object.
const MAX_BODY: usize = 7 * 1024 * 1024;
const MAX_HEAD: usize = 16 * 1024;
/// kube-apiserver does at most 200 mutating requests at the same time (--max-mutating-requests-inflight), and each has one
/// connection; a cluster has some of it. See docs/limits.md.
const CONNECTIONS: Limits = Limits {
    incomplete: 1024,
    total: 2048,
    grace: Duration::from_secs(1),
};
/// The webhook configuration gives 10 seconds in all: a third for handshake, head and body, the rest for the answer.
/// kube-apiserver closes a connection after 90 idle seconds (Go's `http.DefaultTransport`), and does so first: a review that it
/// sends on one that is just being closed here is lost, and the pod with it. A CronJob of every minute would meet 60 s often.
const TIMES: Times = Times {
    input: Duration::from_secs(3),
    work: Duration::from_secs(9),
    idle: Duration::from_secs(120),
};
/// Reviews, by the address that they came from.
const REVIEWS: Room = Room {
    working: 16,
    waiting: 512,
};
/// For bodies, and what is made from them. Half of the container's limit; this where it has none.
const MEMORY: u64 = 128 * 1024 * 1024;
/// A body's memory is charged in steps.
const STEP: usize = 16 * 1024;
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Where namespaces are looked up. A review has the pod only.
pub(crate) trait Namespaces: Send + Sync {
    /// The namespace as it is now.
    fn find<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<NamespaceMeta>>;
}

/// Asks kube-apiserver each time: what a namespace says about mTLS must not come from an old copy, and whoever asks the
/// webhook can answer that too.
impl Namespaces for Client {
    fn find<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<NamespaceMeta>> {
        Box::pin(async move {
            let namespace = Api::<Namespace>::all(self.clone()).get(name).await?;
            Ok(NamespaceMeta::from(&namespace))
        })
    }
}

/// Answers reviews.
pub(crate) struct Webhook {
    pub(crate) settings: Settings,
    pub(crate) namespaces: Box<dyn Namespaces>,
    roots: watch::Receiver<Option<Arc<str>>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Tests give more, on machines that do other things too.
    pub(crate) times: Times,
    turns: Turns<IpAddr>,
    memory: Arc<Budget<IpAddr>>,
}

/// A connection, and whose it is.
struct Caller {
    address: IpAddr,
    work: Work,
    holder: Arc<[Holder<IpAddr>]>,
}

/// What is answered instead of a review, and why.
type Refused = (StatusCode, String);

/// A body that is whole, and the memory that it has.
struct Body {
    text: BytesMut,
    _memory: Vec<Charge<IpAddr>>,
}

impl Webhook {
    /// `roots` is the trust bundle, once it is known.
    pub(crate) fn new(
        settings: Settings,
        namespaces: Box<dyn Namespaces>,
        roots: watch::Receiver<Option<Arc<str>>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            settings,
            namespaces,
            roots,
            metrics,
            times: TIMES,
            turns: Turns::new(REVIEWS),
            memory: Budget::new(memory_limit().map_or(MEMORY, |limit| limit / 2)),
        }
    }

    /// Accepts connections until `shutdown`, and then lets those that are there finish.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        serving: Arc<Serving>,
        shutdown: CancellationToken,
    ) {
        let acceptor = TlsAcceptor::from(Arc::new(tls(serving)));
        let graceful = GracefulShutdown::new();
        let gate = Gate::new(CONNECTIONS);
        self.metrics.watch_gate(&gate);
        let begin = |stream, address: SocketAddr, work| {
            let (webhook, acceptor, watcher) = (Arc::clone(&self), acceptor.clone(), graceful.watcher());
            let address = address.ip().to_canonical();
            let caller = Caller {
                address,
                work,
                holder: [Holder {
                    key: address,
                    divisor: 1,
                }]
                .into(),
            };
            tokio::spawn(async move {
                if let Err(error) = webhook.connection(stream, caller, acceptor, watcher).await {
                    tracing::debug!(error = format!("{error:#}"), "a connection ended with an error");
                }
            });
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = outrigger_gate::accept(&listener, &gate, self.times, begin) => {}
        }
        drop(listener);
        if timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            tracing::warn!("connections were cut: they had not ended {DRAIN_TIMEOUT:?} after they were asked to");
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        caller: Caller,
        acceptor: TlsAcceptor,
        watcher: hyper_util::server::graceful::Watcher,
    ) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let stream = tokio::select! {
            () = caller.work.over() => anyhow::bail!("the TLS handshake took too long, or another connection needed its place"),
            stream = acceptor.accept(stream) => stream.context("TLS handshake")?,
        };
        let stream = caller.work.guard(stream);
        let caller = Arc::new(caller);
        let service = service_fn(|request| {
            let (webhook, caller) = (Arc::clone(&self), Arc::clone(&caller));
            async move { Ok::<_, Infallible>(webhook.respond(request, &caller).await) }
        });
        let connection = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        watcher.watch(connection).await?;
        Ok(())
    }

    async fn respond(&self, request: Request<Incoming>, caller: &Caller) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return refusal(StatusCode::NOT_FOUND, &format!("there is only {PATH}"));
        }
        if request.method() != Method::POST {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "reviews are sent by POST");
        }
        match self.read(request.into_body(), caller).await {
            Ok(body) => {
                let _working = caller.work.complete();
                let answer = self.in_turn(&body.text, caller).await;
                answer.unwrap_or_else(|(status, why)| refusal(status, &why))
            }
            Err((status, why)) => refusal(status, &why),
        }
    }

    /// The whole body. Its time is limited by the connection's.
    async fn read(&self, mut body: Incoming, caller: &Caller) -> Result<Body, Refused> {
        let (mut text, mut memory, mut charged) = (BytesMut::new(), Vec::new(), 0);
        let too_large = || {
            self.metrics.reviewed(Reviewed::Malformed);
            let why = format!("a review has at most {MAX_BODY} bytes");
            Err((StatusCode::PAYLOAD_TOO_LARGE, why))
        };
        // By its announced length, nothing of it is read.
        if body.size_hint().lower() > MAX_BODY as u64 {
            return too_large();
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.malformed(format!("reading the body: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = text.len() + data.len();
            if length > MAX_BODY {
                return too_large();
            }
            while charged < length {
                memory.push(self.charge(caller, STEP as u64)?);
                charged += STEP;
            }
            text.extend_from_slice(&data);
        }
        Ok(Body { text, _memory: memory })
    }

    /// Answers when the caller has its turn.
    async fn in_turn(&self, body: &[u8], caller: &Caller) -> Result<Response<Full<Bytes>>, Refused> {
        let turn = self.turns.turn(caller.address).await;
        let _turn =
            turn.map_err(|Crowded| self.crowded("too many reviews wait, and most of them are of this address"))?;
        let _memory = self.charge(caller, cost::of(body))?;
        self.review(body).await
    }

    fn charge(&self, caller: &Caller, bytes: u64) -> Result<Charge<IpAddr>, Refused> {
        let charge = self.memory.charge(&caller.holder, bytes);
        charge.map_err(|OverBudget| self.crowded("the reviews of this address need too much memory at once"))
    }

    async fn review(&self, body: &[u8]) -> Result<Response<Full<Bytes>>, Refused> {
        let mut request = review::parse(body).map_err(|why| self.malformed(why))?;
        let Some(pod) = request.pod().map_err(|why| self.malformed(why))? else {
            return Ok(json(&review::allow(&request.uid)));
        };
        let Some(roots) = self.roots.borrow().clone() else {
            return Err(self.failed(format!(
                "the injector does not know yet whom sidecars are to trust: the controller writes the ConfigMap {}/{}",
                self.settings.namespace,
                labels::TRUST_BUNDLE_CONFIG_MAP
            )));
        };
        let found = timeout(LOOKUP_TIMEOUT, self.namespaces.find(&request.namespace)).await;
        let namespace = match found.map_err(anyhow::Error::from).and_then(|found| found) {
            Ok(namespace) => namespace,
            Err(error) => {
                let why = format!("the injector cannot read namespace {:?}: {error:#}", request.namespace);
                return Err(self.failed(why));
            }
        };
        let key = inject::random_key().map_err(|error| self.failed(error.to_string()))?;
        let given = Given {
            key: &key,
            roots: Some(&roots),
            controller: self.controller_for(&pod).await,
        };
        let decision = inject::patch(&pod, &namespace, &self.settings, given);
        self.note(&pod, &namespace, &decision);
        Ok(json(&review::answer_to(&request.uid, &decision)))
    }

    /// The controller's address, for a pod that cannot ask for it.
    async fn controller_for(&self, pod: &Pod) -> Option<SocketAddr> {
        pod.spec.as_ref().filter(|spec| inject::has_other_name_servers(spec))?;
        let name = self.settings.controller();
        let found = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(&name)).await;
        match found.map_err(std::io::Error::from).and_then(|found| found) {
            Ok(mut addresses) => addresses.next(),
            Err(error) => {
                tracing::warn!("the address of {name} is not known: {error}");
                None
            }
        }
    }

    fn note(&self, pod: &Pod, namespace: &NamespaceMeta, decision: &Result<Outcome, Refusal>) {
        let name = pod.metadata.name.as_deref().or(pod.metadata.generate_name.as_deref());
        let (name, namespace) = (name.unwrap_or_default(), &namespace.name);
        let outcome = match decision {
            Ok(Outcome::Patched { .. }) => Reviewed::Patched,
            Ok(Outcome::AlreadyInjected) => Reviewed::AlreadyInjected,
            Ok(Outcome::OptedOut) => Reviewed::OptedOut,
            Ok(Outcome::NotSelected) => Reviewed::NotSelected,
            Ok(Outcome::LeftAlone(why)) => {
                tracing::info!(namespace, pod = name, "left alone: {why}");
                Reviewed::LeftAlone
            }
            Err(refusal) => {
                tracing::info!(namespace, pod = name, "refused: {}", refusal.problems.join("; "));
                Reviewed::Refused
            }
        };
        self.metrics.reviewed(outcome);
        tracing::debug!(namespace, pod = name, ?outcome, "review");
    }

    /// Nobody can say what the pod should be: better none than one outside of the mesh, or one that trusts anybody.
    fn failed(&self, why: String) -> Refused {
        self.metrics.reviewed(Reviewed::Failed);
        tracing::warn!("{why}");
        (StatusCode::INTERNAL_SERVER_ERROR, why)
    }

    fn crowded(&self, why: &str) -> Refused {
        self.metrics.reviewed(Reviewed::Crowded);
        tracing::debug!("{why}");
        (StatusCode::SERVICE_UNAVAILABLE, why.to_owned())
    }

    fn malformed(&self, why: String) -> Refused {
        self.metrics.reviewed(Reviewed::Malformed);
        tracing::debug!("{why}");
        (StatusCode::BAD_REQUEST, why)
    }
}

/// TLS 1.2 and later. HTTP/1.1 only: a kube-apiserver keeps its few connections open, and one review at a time on each is
/// enough.
fn tls(serving: Arc<Serving>) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        // The provider is complete: it has cipher suites for both.
        .unwrap_or_else(|e| unreachable!("aws-lc-rs knows TLS 1.2 and 1.3: {e}"))
        .with_no_client_auth()
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    response(StatusCode::OK, "application/json", value.to_string())
}

/// For what is no review, or cannot be answered now: the connection ends with it, and so does its place.
fn refusal(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut response = response(status, "text/plain; charset=utf-8", format!("{why}\n"));
    let close = header::HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

pub(crate) fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

mod cost;
#[cfg(test)]
mod tests;
