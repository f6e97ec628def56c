//! The webhook itself: HTTPS, one path, one question and one answer. What is read is bounded in size, number and time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::certs::Serving;
use crate::inject::{self, NamespaceMeta, Outcome};
use crate::metrics::{Metrics, Reviewed};
use crate::review;
use crate::settings::Settings;

/// The only path.
pub const PATH: &str = "/inject";

/// kube-apiserver takes no object beyond 3 MiB; a review is hardly larger than its object.
const MAX_BODY: usize = 7 * 1024 * 1024;
/// Reviews whose bodies are in memory at the same time.
const MAX_REVIEWS: usize = 16;
const MAX_CONNECTIONS: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_TIMEOUT: Duration = Duration::from_secs(60); // also how long a connection may be idle
/// The webhook configuration gives 10 seconds in all.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
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
    pub(crate) metrics: Arc<Metrics>,
    reviews: Semaphore,
}

impl Webhook {
    pub(crate) fn new(settings: Settings, namespaces: Box<dyn Namespaces>, metrics: Arc<Metrics>) -> Self {
        Self {
            settings,
            namespaces,
            metrics,
            reviews: Semaphore::new(MAX_REVIEWS),
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
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let permit = tokio::select! {
                () = shutdown.cancelled() => break,
                Ok(permit) = Arc::clone(&connections).acquire_owned() => permit,
            };
            let stream = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(Duration::from_millis(100)).await; // out of file descriptors, perhaps
                        continue;
                    }
                },
            };
            let (webhook, acceptor, watcher) = (Arc::clone(&self), acceptor.clone(), graceful.watcher());
            tokio::spawn(async move {
                if let Err(error) = webhook.connection(stream, acceptor, watcher).await {
                    tracing::debug!(error = format!("{error:#}"), "a connection ended with an error");
                }
                drop(permit);
            });
        }
        drop(listener);
        if timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            tracing::warn!("connections were cut: they had not ended {DRAIN_TIMEOUT:?} after they were asked to");
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        watcher: hyper_util::server::graceful::Watcher,
    ) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
            .await
            .context("TLS handshake")??;
        let service = service_fn(|request| {
            let webhook = Arc::clone(&self);
            async move { Ok::<_, Infallible>(webhook.respond(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        watcher.watch(connection).await?;
        Ok(())
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return text(StatusCode::NOT_FOUND, &format!("there is only {PATH}\n"));
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "reviews are sent by POST\n");
        }
        // Never closed.
        let _permit = self.reviews.acquire().await;
        let body = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MAX_BODY).collect()).await;
        let body = match body {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                self.metrics.reviewed(Reviewed::Malformed);
                return text(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    &format!("a review has at most {MAX_BODY} bytes\n"),
                );
            }
            Ok(Err(error)) => return self.malformed(&format!("reading the body: {error}")),
            Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n"),
        };
        self.review(&body).await
    }

    async fn review(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let mut request = match review::parse(body) {
            Ok(request) => request,
            Err(why) => return self.malformed(&why),
        };
        let pod = match request.pod() {
            Ok(Some(pod)) => pod,
            Ok(None) => return json(&review::allow(&request.uid)),
            Err(why) => return self.malformed(&why),
        };
        let found = timeout(LOOKUP_TIMEOUT, self.namespaces.find(&request.namespace)).await;
        let namespace = match found.map_err(anyhow::Error::from).and_then(|found| found) {
            Ok(namespace) => namespace,
            Err(error) => {
                self.metrics.reviewed(Reviewed::Failed);
                let why = format!(
                    "the injector cannot read namespace {:?}: {error:#}\n",
                    request.namespace
                );
                tracing::warn!("{}", why.trim());
                return text(StatusCode::INTERNAL_SERVER_ERROR, &why);
            }
        };
        let decision = inject::patch(&pod, &namespace, &self.settings);
        let name = pod
            .metadata
            .name
            .as_deref()
            .or(pod.metadata.generate_name.as_deref())
            .unwrap_or_default();
        let outcome = match &decision {
            Ok(Outcome::Patched { .. }) => Reviewed::Patched,
            Ok(Outcome::AlreadyInjected) => Reviewed::AlreadyInjected,
            Ok(Outcome::OptedOut) => Reviewed::OptedOut,
            Ok(Outcome::NotSelected) => Reviewed::NotSelected,
            Err(refusal) => {
                tracing::info!(
                    namespace = namespace.name,
                    pod = name,
                    "refused: {}",
                    refusal.problems.join("; ")
                );
                Reviewed::Refused
            }
        };
        self.metrics.reviewed(outcome);
        tracing::debug!(namespace = namespace.name, pod = name, ?outcome, "review");
        json(&review::answer_to(&request.uid, &decision))
    }

    fn malformed(&self, why: &str) -> Response<Full<Bytes>> {
        self.metrics.reviewed(Reviewed::Malformed);
        tracing::warn!("{why}");
        text(StatusCode::BAD_REQUEST, &format!("{why}\n"))
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

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text.to_owned())
}

pub(crate) fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;
