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
use crate::server::Peer;
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
    /// All other addresses are not in the cluster; about every workload nothing is known.
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

    fn synced(&self) -> watch::Receiver<bool> {
        watch::Sender::new(true).subscribe()
    }
}

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

    /// A view of each value, as often as it is another one.
    fn updates<V: View>(
        &self,
        kind: StreamKind,
        values: watch::Receiver<Arc<V>>,
        place: watch::Receiver<Arc<Place>>,
    ) -> Response<Updates> {
        struct State<V> {
            values: watch::Receiver<Arc<V>>,
            place: watch::Receiver<Arc<Place>>,
            sent: Option<Bytes>,
            service: DiscoveryService,
            _open: crate::metrics::OpenStream,
        }
        let state = State {
            values,
            place,
            sent: None,
            service: self.clone(),
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
                Some(Some(bytes)) => {
                    state.service.metrics.pushed(kind);
                    Some((Ok(bytes), state))
                }
                Some(None) | None => None,
            }
        });
        // The end of a stream is a status, so that the sidecar asks the other replica at once.
        let end = stream::once(async { Err(Status::unavailable("this controller is going away: ask again")) });
        Response::new(Box::pin(futures_util::StreamExt::chain(stream, end)))
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
        let asked = request.get_ref();
        let answer = authorize(&request, &asked.namespace, &asked.pod).and_then(|caller| {
            let address = &asked.address;
            let address: SocketAddr = address
                .parse()
                .map_err(|_| Status::invalid_argument(format!("{address:?} is not an address and a port")))?;
            // An IPv4 address in IPv6 form is what a dual-stack socket says of an IPv4 connection.
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            let target = self.index.watch_target(address, &caller.namespace);
            Ok(self.updates(StreamKind::Target, target, self.index.watch_place(&caller)))
        });
        std::future::ready(answer)
    }
}

impl ServerStreamingService<WatchWorkloadRequest> for DiscoveryService {
    type Response = Bytes;
    type ResponseStream = Updates;
    type Future = std::future::Ready<Result<Response<Updates>, Status>>;

    fn call(&mut self, request: Request<WatchWorkloadRequest>) -> Self::Future {
        let asked = request.get_ref();
        let answer = authorize(&request, &asked.namespace, &asked.pod).map(|caller| {
            let workload = self.index.watch_workload(&caller.namespace, &caller.pod);
            self.updates(StreamKind::Workload, workload, self.index.watch_place(&caller))
        });
        std::future::ready(answer)
    }
}

/// The caller, who must have an SVID, of the namespace that it speaks of.
fn authorize<T>(request: &Request<T>, namespace: &str, pod: &str) -> Result<Caller, Status> {
    let peer = request.extensions().get::<Peer>();
    let Some((peer, identity)) = peer.and_then(|peer| Some((peer, peer.identity.as_ref()?))) else {
        return Err(Status::unauthenticated(
            "discovery is for workloads of the mesh: present an SVID as the TLS client certificate",
        ));
    };
    if !namespace.is_empty() && namespace != identity.namespace() {
        return Err(Status::permission_denied(format!(
            "{identity} asks for the namespace {namespace:?}"
        )));
    }
    Ok(Caller {
        namespace: identity.namespace().into(),
        service_account: identity.service_account().into(),
        pod: pod.into(),
        address: peer.address.ip().to_canonical(),
    })
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

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        let max = Some(self.max_request_bytes);
        Box::pin(async move {
            Ok(match request.uri().path() {
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
            })
        })
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
        BufferSettings::new(512, 32 * 1024)
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
