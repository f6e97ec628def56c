//! `WatchTarget` and `WatchWorkload`: one stream for each thing that a sidecar of the version before the session asks for.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use outrigger_api::discovery::{WatchTargetRequest, WatchWorkloadRequest};
use tokio::sync::watch;
use tonic::server::ServerStreamingService;
use tonic::{Request, Response, Status};

use super::Known;
use super::service::{DiscoveryService, Member, Messages, address, respond};
use crate::metrics::{AnswerKind, StreamKind};
use crate::room::Refusal;
use crate::topology::{Encoded, Place, TargetViews};

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
                    let workload = self.0.index.watch_workload(&member.caller.pod_key());
                    Ok(updates(&self.0, member, AnswerKind::Workload, workload))
                }),
        )
    }
}

/// Something that a caller sees by where it runs.
trait View: Send + Sync + 'static {
    /// The message for the caller.
    fn view(&self, caller: &Place) -> Result<Encoded, Refusal>;
}

impl View for TargetViews {
    fn view(&self, caller: &Place) -> Result<Encoded, Refusal> {
        self.view(caller)
    }
}

impl View for Known {
    fn view(&self, _: &Place) -> Result<Encoded, Refusal> {
        let workload = self.workload.as_ref().ok_or(Refusal::NoRoom)?;
        Ok(Encoded::of(workload))
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
    let state = (member, values, place, None::<u64>);
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
            let view = values.borrow_and_update().view(&at);
            let view = view.map_err(Status::from);
            let now = view.as_ref().map_or(0, |view| view.fingerprint);
            // What changed may be other callers' alone.
            if view.is_err() || sent != Some(now) {
                let paid = view.and_then(|view| {
                    member.is_alive()?;
                    member.send(member.charge(&view.bytes)?, Some(kind));
                    Ok(view.bytes)
                });
                return Some((paid, (member, values, place, Some(now))));
            }
        }
    })
}
