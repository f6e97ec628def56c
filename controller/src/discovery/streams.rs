//! `WatchTarget` and `WatchWorkload`: one stream for each thing that a sidecar of the version before the session asks for.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use outrigger_api::discovery::{WatchTargetRequest, WatchWorkloadRequest, Workload};
use tokio::sync::watch;
use tonic::server::ServerStreamingService;
use tonic::{Request, Response, Status};

use super::Update;
use super::service::{DiscoveryService, Member, Messages, address, respond};
use crate::metrics::{AnswerKind, StreamKind};
use crate::topology::{Place, TargetViews};

/// Answers `WatchTarget`.
pub(super) struct Targets(DiscoveryService);

/// Answers `WatchWorkload`.
pub(super) struct Workloads(DiscoveryService);

impl DiscoveryService {
    pub(super) fn targets(&self) -> Targets {
        Targets(self.clone())
    }

    pub(super) fn workloads(&self) -> Workloads {
        Workloads(self.clone())
    }
}

impl ServerStreamingService<WatchTargetRequest> for Targets {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = std::future::Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<WatchTargetRequest>) -> Self::Future {
        std::future::ready(
            self.0
                .member(StreamKind::Target, request)
                .and_then(|(mut member, asked)| {
                    member.says(&asked.namespace, &asked.pod)?;
                    let address = address(&asked.address)?;
                    let target = self.0.index.watch_target(address, &member.caller.namespace);
                    Ok(updates(&self.0, member, AnswerKind::Target, target))
                }),
        )
    }
}

impl ServerStreamingService<WatchWorkloadRequest> for Workloads {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = std::future::Ready<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<WatchWorkloadRequest>) -> Self::Future {
        std::future::ready(
            self.0
                .member(StreamKind::Workload, request)
                .and_then(|(mut member, asked)| {
                    member.says(&asked.namespace, &asked.pod)?;
                    let workload = self
                        .0
                        .index
                        .watch_workload(&member.caller.namespace, &member.caller.pod);
                    Ok(updates(&self.0, member, AnswerKind::Workload, workload))
                }),
        )
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

impl View for Update<Workload> {
    fn view(&self, _: &Place) -> Bytes {
        self.bytes()
    }
}

fn updates<V: View>(
    service: &DiscoveryService,
    member: Member,
    kind: AnswerKind,
    values: watch::Receiver<Arc<V>>,
) -> Response<Messages> {
    let place = service.index.watch_place(&member.caller);
    let unread = member.unread();
    respond(service, unread, views(member, kind, values, place))
}

/// A view of each value, as often as it is another one.
fn views<V: View>(
    member: Member,
    kind: AnswerKind,
    values: watch::Receiver<Arc<V>>,
    place: watch::Receiver<Arc<Place>>,
) -> impl Stream<Item = Result<Bytes, Status>> + Send + 'static {
    let state = (member, values, place, None::<Bytes>);
    stream::unfold(state, move |(member, mut values, mut place, sent)| async move {
        loop {
            if sent.is_none() {
                // The sender of `synced` is the index itself, which lives as long as the service.
                let _ = member.service.index.synced().wait_for(|&synced| synced).await;
            } else {
                let changed = tokio::select! {
                    changed = values.changed() => changed,
                    changed = place.changed() => changed,
                };
                changed.ok()?;
            }
            let at = place.borrow_and_update().clone();
            let bytes = values.borrow_and_update().view(&at);
            // What changed may be other callers' alone.
            if sent.as_ref() != Some(&bytes) {
                let paid = member.is_alive().and_then(|()| member.pay(&bytes, Some(kind)));
                return Some((paid.map(|()| bytes.clone()), (member, values, place, Some(bytes))));
            }
        }
    })
}
