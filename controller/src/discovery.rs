//! The discovery service: streams of what the index knows.
//!
//! An update is encoded once, for the first stream that sends it, and its bytes go to every stream as they are; so the service
//! is written by hand over tonic, with a codec that encodes nothing.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use futures_util::stream::{self, Stream};
use outrigger_api::discovery::{Target, WatchTargetRequest, WatchWorkloadRequest, Workload};
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Code, Request, Response, Status};

use crate::metrics::{Metrics, StreamKind};
use crate::pieces::{Pieces, Unread};
use crate::server::{Bound, Peer};
use crate::share::{self, Held, Share};
use crate::topology::{Place, TargetViews};

/// A message, and its bytes once somebody needed them.
#[derive(Debug, Default)]
pub struct Update<M> {
    /// The message.
    pub message: M,
    bytes: OnceLock<Bytes>,
}

impl<M> From<M> for Update<M> {
    fn from(message: M) -> Self {
        Self {
            message,
            bytes: OnceLock::new(),
        }
    }
}

impl<M: PartialEq> PartialEq for Update<M> {
    fn eq(&self, other: &Self) -> bool {
        self.message == other.message
    }
}

/// A pod that asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Of its SVID.
    pub namespace: Arc<str>,
    /// Of its SVID.
    pub service_account: Arc<str>,
    /// Its own word, and so believed only as far as it is a pod of this ServiceAccount. "": it does not say.
    pub pod: Arc<str>,
    /// The other end of its connection.
    pub address: IpAddr,
}

/// What the service serves.
pub trait Discover: Send + Sync + 'static {
    /// What is behind an address, for a client in `namespace`; kept up to date while the receiver lives.
    fn watch_target(&self, address: SocketAddr, namespace: &str) -> watch::Receiver<Arc<TargetViews>>;
    /// Where a caller runs; kept up to date while the receiver lives.
    fn watch_place(&self, caller: &Caller) -> watch::Receiver<Arc<Place>>;
    /// What is known of a pod.
    fn watch_workload(&self, namespace: &str, pod: &str) -> watch::Receiver<Arc<Update<Workload>>>;
    /// Whether the identity is still some pod's. An SVID lives on where its pod is gone, and with a copy of its key anybody could
    /// ask what the namespace may know.
    fn is_alive(&self, caller: &Caller) -> bool;
    /// Becomes true once the answers can be relied upon. Before that nothing is told to anybody, since "not in the
    /// cluster" would send traffic past the mesh.
    fn synced(&self) -> watch::Receiver<bool>;
}

/// Targets that do not change: for tests without Kubernetes.
#[derive(Default)]
pub struct FixedTargets {
    targets: HashMap<SocketAddr, watch::Sender<Arc<TargetViews>>>,
    external: watch::Sender<Arc<TargetViews>>,
    place: watch::Sender<Arc<Place>>,
    workload: watch::Sender<Arc<Update<Workload>>>,
}

impl FixedTargets {
    /// All other addresses are not in the cluster; about every workload nothing is known, until something is said.
    pub fn new(targets: impl IntoIterator<Item = (SocketAddr, Target)>) -> Self {
        Self {
            targets: targets
                .into_iter()
                .map(|(address, target)| (address, watch::Sender::new(Arc::new(target.into()))))
                .collect(),
            ..Self::default()
        }
    }

    /// Replaces one of the targets.
    pub fn replace(&self, address: SocketAddr, target: Target) {
        if let Some(sender) = self.targets.get(&address) {
            sender.send_replace(Arc::new(target.into()));
        }
    }

    /// Says something about every workload.
    pub fn set_workload(&self, workload: Workload) {
        self.workload.send_replace(Arc::new(workload.into()));
    }
}

impl Discover for FixedTargets {
    fn watch_target(&self, address: SocketAddr, _: &str) -> watch::Receiver<Arc<TargetViews>> {
        self.targets.get(&address).unwrap_or(&self.external).subscribe()
    }

    fn watch_place(&self, _: &Caller) -> watch::Receiver<Arc<Place>> {
        self.place.subscribe()
    }

    fn watch_workload(&self, _: &str, _: &str) -> watch::Receiver<Arc<Update<Workload>>> {
        self.workload.subscribe()
    }

    fn is_alive(&self, _: &Caller) -> bool {
        true
    }

    fn synced(&self) -> watch::Receiver<bool> {
        watch::Sender::new(true).subscribe()
    }
}

/// Kubernetes' own limit. What is asked for is kept while it is watched.
const MAX_POD_NAME: usize = 253;
const WATCH_TARGET: &str = "/outrigger.discovery.v1.Discovery/WatchTarget";
const WATCH_WORKLOAD: &str = "/outrigger.discovery.v1.Discovery/WatchWorkload";

/// `outrigger.discovery.v1.Discovery`.
#[derive(Clone)]
pub struct DiscoveryService {
    index: Arc<dyn Discover>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    max_request_bytes: usize,
}

impl DiscoveryService {
    pub(crate) fn new(
        index: Arc<dyn Discover>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
        max_request_bytes: usize,
    ) -> Self {
        Self {
            index,
            metrics,
            stop,
            max_request_bytes,
        }
    }

    /// The caller, who must be of the namespace that it speaks of, and what it asks.
    fn authorize<T: Ask>(&self, mut request: Request<T>) -> Result<(Caller, Paid, T), Status> {
        // Whoever has no SVID has no stream that was paid for.
        let extensions = request.extensions_mut();
        let (Some(peer), Some(stream)) = (extensions.remove::<Peer>(), extensions.remove::<Arc<Held>>()) else {
            return Err(no_svid());
        };
        let (Some(id), Bound::Share(share)) = (peer.identity, peer.bound) else {
            return Err(no_svid());
        };
        let request = request.into_inner();
        let namespace = request.namespace();
        if !namespace.is_empty() && namespace != id.namespace() {
            return Err(Status::permission_denied(format!(
                "{id} asks for the namespace {namespace:?}"
            )));
        }
        if request.pod().len() > MAX_POD_NAME {
            return Err(Status::invalid_argument("the pod's name is longer than a name can be"));
        }
        let caller = Caller {
            namespace: id.namespace().into(),
            service_account: id.service_account().into(),
            pod: request.pod().into(),
            address: peer.address.ip().to_canonical(),
        };
        if !self.index.is_alive(&caller) {
            return Err(gone(&caller));
        }
        let paid = Paid { share, _stream: stream };
        Ok((caller, paid, request))
    }

    /// Charges a message of so many bytes, and looks whether its reader is still there: a stream may be older than that.
    fn may_send(&self, caller: &Caller, paid: &Paid, bytes: usize) -> Result<Held, Status> {
        if !self.index.is_alive(caller) {
            return Err(gone(caller));
        }
        paid.share.charge(bytes as u64)
    }

    /// A view of each value, as often as it is another one.
    fn updates<V: View>(
        &self,
        kind: StreamKind,
        (caller, paid): (Caller, Paid),
        values: watch::Receiver<Arc<V>>,
        place: watch::Receiver<Arc<Place>>,
    ) -> Response<Updates> {
        struct State<V> {
            values: watch::Receiver<Arc<V>>,
            place: watch::Receiver<Arc<Place>>,
            sent: Option<Bytes>,
            service: DiscoveryService,
            caller: Caller,
            paid: Paid,
            unread: Unread,
            _open: crate::metrics::OpenStream,
        }
        let unread = Unread::default();
        let state = State {
            values,
            place,
            sent: None,
            service: self.clone(),
            caller,
            paid,
            unread: Arc::clone(&unread),
            _open: self.metrics.stream(kind),
        };
        let stream = stream::unfold(state, move |mut state| async move {
            let stop = state.service.stop.clone();
            let next = stop.run_until_cancelled(async {
                loop {
                    if state.sent.is_none() {
                        // The sender of `synced` is the index itself, which lives as long as the service.
                        let _ = state.service.index.synced().wait_for(|&synced| synced).await;
                    } else {
                        let changed = tokio::select! {
                            changed = state.values.changed() => changed,
                            changed = state.place.changed() => changed,
                        };
                        changed.ok()?;
                    }
                    let place = state.place.borrow_and_update().clone();
                    let bytes = state.values.borrow_and_update().view(&place);
                    // What changed may be other callers' alone.
                    let known = state.sent.replace(bytes.clone());
                    if known.as_ref() != Some(&bytes) {
                        return Some(bytes);
                    }
                }
            });
            match next.await {
                Some(Some(bytes)) => match state.service.may_send(&state.caller, &state.paid, bytes.len()) {
                    Ok(held) => {
                        *state.unread.lock() = Some(held);
                        state.service.metrics.pushed(kind);
                        Some((Ok(bytes), state))
                    }
                    Err(status) => Some((Err(status), state)),
                },
                Some(None) | None => None,
            }
        });
        // The end of a stream is a status, so that the sidecar asks the other replica at once.
        let end = stream::once(async { Err(Status::unavailable("this controller is going away: ask again")) });
        let mut response: Response<Updates> = Response::new(Box::pin(futures_util::StreamExt::chain(stream, end)));
        response.extensions_mut().insert(unread);
        response
    }
}

/// Something that a caller sees by where it runs.
trait View: Send + Sync + 'static {
    /// The message for the caller, encoded.
    fn view(&self, caller: &Place) -> Bytes;
}

impl View for TargetViews {
    fn view(&self, caller: &Place) -> Bytes {
        self.bytes(caller)
    }
}

impl<M: Message + 'static> View for Update<M> {
    fn view(&self, _: &Place) -> Bytes {
        self.bytes.get_or_init(|| self.message.encode_to_vec().into()).clone()
    }
}

type Updates = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl ServerStreamingService<WatchTargetRequest> for DiscoveryService {
    type Response = Bytes;
    type ResponseStream = Updates;
    type Future = std::future::Ready<Result<Response<Updates>, Status>>;

    fn call(&mut self, request: Request<WatchTargetRequest>) -> Self::Future {
        let answer = self.authorize(request).and_then(|(caller, paid, asked)| {
            let address = &asked.address;
            let address: SocketAddr = address
                .parse()
                .map_err(|_| Status::invalid_argument(format!("{address:?} is not an address and a port")))?;
            // An IPv4 address in IPv6 form is what a dual-stack socket says of an IPv4 connection.
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            let target = self.index.watch_target(address, &caller.namespace);
            let place = self.index.watch_place(&caller);
            Ok(self.updates(StreamKind::Target, (caller, paid), target, place))
        });
        std::future::ready(answer)
    }
}

impl ServerStreamingService<WatchWorkloadRequest> for DiscoveryService {
    type Response = Bytes;
    type ResponseStream = Updates;
    type Future = std::future::Ready<Result<Response<Updates>, Status>>;

    fn call(&mut self, request: Request<WatchWorkloadRequest>) -> Self::Future {
        let answer = self.authorize(request).map(|(caller, paid, _)| {
            let workload = self.index.watch_workload(&caller.namespace, &caller.pod);
            let place = self.index.watch_place(&caller);
            self.updates(StreamKind::Workload, (caller, paid), workload, place)
        });
        std::future::ready(answer)
    }
}

/// What a stream is paid with.
struct Paid {
    share: Share,
    /// What the stream itself costs.
    _stream: Arc<Held>,
}

/// A request says who asks.
trait Ask {
    fn namespace(&self) -> &str;
    fn pod(&self) -> &str;
}

impl Ask for WatchTargetRequest {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn pod(&self) -> &str {
        &self.pod
    }
}

impl Ask for WatchWorkloadRequest {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn pod(&self) -> &str {
        &self.pod
    }
}

/// Charges a stream to its caller, before anything of it is read.
fn charge_stream<B>(request: &mut http::Request<B>) -> Result<(), Status> {
    let Some(Bound::Share(share)) = request.extensions().get::<Peer>().map(|peer| &peer.bound) else {
        return Err(no_svid());
    };
    let stream = Arc::new(share.charge(share::STREAM)?);
    request.extensions_mut().insert(stream);
    Ok(())
}

fn gone(caller: &Caller) -> Status {
    Status::permission_denied(format!(
        "no pod of the ServiceAccount {}/{} exists any more, as far as this controller knows",
        caller.namespace, caller.service_account
    ))
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
        let max = Some(self.max_request_bytes);
        Box::pin(async move {
            let response = match request.uri().path() {
                WATCH_TARGET => {
                    let mut grpc =
                        Grpc::new(Encoded::<WatchTargetRequest>::default()).apply_max_message_size_config(max, None);
                    grpc.server_streaming(service, request).await
                }
                WATCH_WORKLOAD => {
                    let mut grpc =
                        Grpc::new(Encoded::<WatchWorkloadRequest>::default()).apply_max_message_size_config(max, None);
                    grpc.server_streaming(service, request).await
                }
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

fn in_pieces(mut response: http::Response<tonic::body::Body>) -> http::Response<tonic::body::Body> {
    match response.extensions_mut().remove::<Unread>() {
        Some(unread) => response.map(|body| tonic::body::Body::new(Pieces::new(body, unread))),
        // An error, which has no body.
        None => response,
    }
}

/// A codec whose answers are encoded already.
struct Encoded<R>(PhantomData<R>);

impl<R> Default for Encoded<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R: Message + Default + 'static> Codec for Encoded<R> {
    type Encode = Bytes;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<R> Encoder for Encoded<R> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }

    /// Most streams are idle most of the time, and there are many.
    fn buffer_settings(&self) -> BufferSettings {
        // Each message is a frame of its own, so that `Pieces` knows where one ends.
        BufferSettings::new(512, 1)
    }
}

impl<R: Message + Default> Decoder for Encoded<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buffer)
            .map(Some)
            .map_err(|e| Status::invalid_argument(format!("the request cannot be decoded: {e}")))
    }
}
