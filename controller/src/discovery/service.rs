//! `outrigger.discovery.v1.Discovery`: who may ask, and what each answer costs.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, Stream};
use outrigger_issuer::ca::Ca;
use outrigger_issuer::peer::{Bound, Peer};
use outrigger_issuer::share::{Held, Share};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::server::{Grpc, NamedService};
use tonic::{Code, Request, Response, Status};

use super::codec::Encoded;
use super::{Caller, Discover};
use crate::metrics::{AnswerKind, Metrics, OpenStream, StreamKind};
use crate::pieces::{Pieces, Unread};

/// What an open stream costs, with what the index keeps for it, in bytes.
const STREAM: u64 = 6 * 1024;
/// A session without what is wanted in it.
const SESSION: u64 = 16 * 1024;
/// An address that a session wants, and what the index keeps for it.
pub(super) const WANT: u64 = 2560;
/// A set of endpoints that a session is told, and what the index keeps for it.
pub(super) const SET: u64 = 2 * 1024;
/// What a message may have that costs nothing more than its stream, so that who has as much as it may is still told what is
/// small.
const MESSAGE: u64 = 2 * 1024;
/// What a sidecar says at a time: an address, and the names of a namespace and a pod.
const MAX_REQUEST_BYTES: usize = 1024;
/// Kubernetes' own limit. What is asked for is kept while it is watched.
const MAX_POD_NAME: usize = 253;
const SESSION_PATH: &str = "/outrigger.discovery.v1.Discovery/Session";
const WATCH_TARGET: &str = "/outrigger.discovery.v1.Discovery/WatchTarget";
const WATCH_WORKLOAD: &str = "/outrigger.discovery.v1.Discovery/WatchWorkload";

/// See the module.
#[derive(Clone)]
pub(super) struct DiscoveryService {
    pub(super) index: Arc<dyn Discover>,
    pub(super) metrics: Arc<Metrics>,
    /// Whom to trust.
    pub(super) ca: watch::Receiver<Arc<Ca>>,
    stop: CancellationToken,
}

/// Encoded messages.
pub(super) type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Somebody with an SVID who has opened a stream, and paid for it.
pub(super) struct Member {
    pub(super) service: DiscoveryService,
    /// Without the name of the pod.
    pub(super) caller: Caller,
    pub(super) share: Share,
    /// What the stream itself costs.
    _stream: Arc<Held>,
    unread: Unread,
    _open: OpenStream,
}

impl DiscoveryService {
    pub(super) fn new(
        index: Arc<dyn Discover>,
        metrics: Arc<Metrics>,
        ca: watch::Receiver<Arc<Ca>>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            index,
            metrics,
            ca,
            stop,
        }
    }

    /// Who opens a stream of this kind, and what it asks.
    pub(super) fn member<T>(&self, kind: StreamKind, mut request: Request<T>) -> Result<(Member, T), Status> {
        // Whoever has no SVID has no stream that was paid for.
        let extensions = request.extensions_mut();
        let (Some(peer), Some(stream)) = (extensions.remove::<Peer>(), extensions.remove::<Arc<Held>>()) else {
            return Err(no_svid());
        };
        let (Some(id), Bound::Share(share)) = (peer.identity, peer.bound) else {
            return Err(no_svid());
        };
        let caller = Caller {
            namespace: id.namespace().into(),
            service_account: id.service_account().into(),
            pod: "".into(),
            address: peer.address.ip().to_canonical(),
        };
        let member = Member {
            service: self.clone(),
            caller,
            share,
            _stream: stream,
            unread: Unread::default(),
            _open: self.metrics.stream(kind),
        };
        member.is_alive()?;
        Ok((member, request.into_inner()))
    }
}

impl Member {
    /// Takes its word on who it is. It must be of the namespace that it speaks of.
    pub(super) fn says(&mut self, namespace: &str, pod: &str) -> Result<(), Status> {
        if !namespace.is_empty() && *namespace != *self.caller.namespace {
            return Err(Status::permission_denied(format!(
                "a workload of the namespace {} asks for the namespace {namespace:?}",
                self.caller.namespace
            )));
        }
        if pod.len() > MAX_POD_NAME {
            return Err(Status::invalid_argument("the pod's name is longer than a name can be"));
        }
        self.caller.pod = pod.into();
        Ok(())
    }

    /// A stream may be older than the end of its reader.
    pub(super) fn is_alive(&self) -> Result<(), Status> {
        if self.service.index.is_alive(&self.caller) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "no pod of the ServiceAccount {}/{} exists any more, as far as this controller knows",
            self.caller.namespace, self.caller.service_account
        )))
    }

    /// Charges a message. None: it costs nothing.
    pub(super) fn charge(&self, message: &Bytes) -> Result<Option<Held>, Status> {
        let more = (message.len() as u64).saturating_sub(MESSAGE);
        (more > 0).then(|| self.share.charge(more)).transpose()
    }

    /// A message goes out, for which this is charged until it is taken.
    pub(super) fn send(&self, held: Option<Held>, answer: Option<AnswerKind>) {
        *self.unread.lock() = held;
        if let Some(answer) = answer {
            self.service.metrics.pushed(answer);
        }
    }

    /// The charge for a message that is not all taken.
    pub(super) fn unread(&self) -> Unread {
        Arc::clone(&self.unread)
    }
}

/// The response that brings these messages, each charged in `unread`, until this controller goes away.
pub(super) fn respond(
    service: &DiscoveryService,
    unread: Unread,
    messages: impl Stream<Item = Result<Bytes, Status>> + Send + 'static,
) -> Response<Messages> {
    // The end of a stream is a status, so that the sidecar asks the other replica at once.
    let end = stream::once(async { Err(Status::unavailable("this controller is going away: ask again")) });
    let messages = messages.take_until(service.stop.clone().cancelled_owned()).chain(end);
    let mut response: Response<Messages> = Response::new(Box::pin(messages));
    response.extensions_mut().insert(unread);
    response
}

/// An address as it is asked for.
pub(super) fn address(text: &str) -> Result<SocketAddr, Status> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| Status::invalid_argument(format!("{text:?} is not an address and a port")))?;
    // An IPv4 address in IPv6 form is what a dual-stack socket says of an IPv4 connection.
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Charges a stream to its caller, before anything of it is read.
fn charge_stream<B>(request: &mut http::Request<B>) -> Result<(), Status> {
    let Some(Bound::Share(share)) = request.extensions().get::<Peer>().map(|peer| &peer.bound) else {
        return Err(no_svid());
    };
    let cost = match request.uri().path() {
        SESSION_PATH => SESSION,
        _ => STREAM,
    };
    let stream = Arc::new(share.charge(cost)?);
    request.extensions_mut().insert(stream);
    Ok(())
}

fn no_svid() -> Status {
    Status::unauthenticated("discovery is for workloads of the mesh: present an SVID as the TLS client certificate")
}

impl NamedService for DiscoveryService {
    const NAME: &'static str = "outrigger.discovery.v1.Discovery";
}

impl<B> tower::Service<http::Request<B>> for DiscoveryService
where
    B: hyper::body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        if let Err(status) = charge_stream(&mut request) {
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let service = self.clone();
        Box::pin(async move {
            let response = match request.uri().path() {
                SESSION_PATH => service.grpc().streaming(service, request).await,
                WATCH_TARGET => service.grpc().server_streaming(service.targets(), request).await,
                WATCH_WORKLOAD => service.grpc().server_streaming(service.workloads(), request).await,
                _ => Status::new(
                    Code::Unimplemented,
                    "discovery has no such method: the sidecar may be newer than the controller",
                )
                .into_http(),
            };
            Ok(in_pieces(response))
        })
    }
}

impl DiscoveryService {
    fn grpc<R: prost::Message + Default + 'static>(&self) -> Grpc<Encoded<R>> {
        Grpc::new(Encoded::default()).apply_max_message_size_config(Some(MAX_REQUEST_BYTES), None)
    }
}

fn in_pieces(mut response: http::Response<tonic::body::Body>) -> http::Response<tonic::body::Body> {
    match response.extensions_mut().remove::<Unread>() {
        Some(unread) => response.map(|body| tonic::body::Body::new(Pieces::new(body, unread))),
        // An error, which has no body.
        None => response,
    }
}
