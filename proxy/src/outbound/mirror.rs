//! Mirrored requests: a copy, best effort, whose answer nobody waits for.
//!
//! Only requests without a body, or whose body was small and complete when the response came, are mirrored; and only so
//! many at once.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use outrigger_proxy_transport::body::{BodySource, RequestBody};
use outrigger_proxy_transport::client::{Failure, Lease, send};
use outrigger_proxy_transport::error::ProxyError;
use outrigger_proxy_transport::headers::{strip_ours, wants_upgrade};
use outrigger_proxy_transport::server::HttpVersion;
use rand::Rng;
use tokio::time::Instant;

use super::State;
use super::attempts::{attempted, says};
use super::balance::{Member, Pick};
use super::connect::checkout;
use super::target::{Snapshot, WorkerBackend};
use crate::model::{Filters, Mirror};

/// On one worker.
const MAX_MIRRORS: usize = 64;
/// All of a mirrored request.
const LIMIT: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(1);

/// Sends copies to the mirrors that the filters name.
pub fn mirror(
    state: &Rc<State>,
    snapshot: &Snapshot,
    filters: [&Filters; 2],
    version: HttpVersion,
    head: &Parts,
    body: &BodySource,
) {
    for Mirror {
        backend,
        parts_per_million,
    } in filters.into_iter().flat_map(|filters| &filters.mirrors)
    {
        let drawn = state.context.rng.borrow_mut().random_range(0..1_000_000) < *parts_per_million;
        if !drawn || wants_upgrade(&head.method, &head.headers) {
            continue;
        }
        if let (Some(backend), Some(body)) = (snapshot.backend(*backend), body.whole())
            && let Some(under_way) = UnderWay::begin(state)
        {
            let (backend, head) = (backend.clone(), head.clone());
            tokio::task::spawn_local(async move {
                let sent = send_copy(&under_way.0, &backend, version, head, body);
                if let Ok(Err(error)) = tokio::time::timeout(LIMIT, sent).await {
                    tracing::debug!(%error, backend = %backend.name(), "a mirrored request failed");
                }
            });
        }
    }
}

/// A copy that counts as one of [`MAX_MIRRORS`] until it is dropped, however its task ends.
struct UnderWay(Rc<State>);

impl UnderWay {
    /// `None`: there are as many as there may be.
    fn begin(state: &Rc<State>) -> Option<Self> {
        let now = state.mirrors.get();
        (now < MAX_MIRRORS).then(|| {
            state.mirrors.set(now + 1);
            Self(Rc::clone(state))
        })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get() - 1);
    }
}

async fn send_copy(
    state: &Rc<State>,
    backend: &WorkerBackend,
    version: HttpVersion,
    head: Parts,
    body: Bytes,
) -> Result<(), ProxyError> {
    let pick = Pick {
        tried: &[],
        now: Instant::now(),
        rng: &state.context.rng,
    };
    let member = backend.pick(pick, CONNECT).await?;
    let mut in_hand = member.take(Instant::now());
    let sent = send_to(state, &member, version, head, body).await;
    in_hand.end(says(&attempted(&sent)), Instant::now());
    let (response, lease) = sent.map_err(|Failure { error, .. }| error)?;
    let mut rest = response.into_body();
    while let Some(Ok(_)) = rest.frame().await {}
    lease.release();
    Ok(())
}

async fn send_to(
    state: &Rc<State>,
    member: &Rc<Member>,
    version: HttpVersion,
    head: Parts,
    body: Bytes,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let endpoint = &member.endpoint;
    let checkout = checkout(state, member, version, CONNECT).await;
    let checkout = checkout.map_err(Failure::before_sending)?;
    let request = Request::from_parts(head, RequestBody::full(body));
    let (mut response, lease) = send(checkout, request, endpoint.address).await?;
    if endpoint.identity.is_none() {
        strip_ours(response.headers_mut());
    }
    Ok((response, lease))
}
