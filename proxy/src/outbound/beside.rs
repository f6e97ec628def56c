//! Requests beside those of the app: copies for mirrors, and questions about a request. They have no policies of their own, and what they find out about an
//! endpoint is learned as from any other request.

use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use outrigger_proxy_transport::body::RequestBody;
use outrigger_proxy_transport::client::{Failure, Lease};
use outrigger_proxy_transport::error::ProxyError;
use outrigger_proxy_transport::net::HttpVersion;
use tokio::time::Instant;

use super::State;
use super::attempts::{ask, attempted, says};
use super::balance::Pick;
use super::connect::checkout;
use super::member::{InHand, Member};
use super::target::WorkerBackend;
use crate::model::Balancing;

const CONNECT: Duration = Duration::from_secs(1);

/// A request that was sent once.
pub struct SentBeside {
    pub member: Rc<Member>,
    /// Until the answer has been read.
    pub in_hand: InHand,
    pub result: Result<(Response<Incoming>, Lease), Failure>,
}

/// Sends a request to one endpoint, rather none of those that were tried.
///
/// # Errors
/// There is no endpoint.
pub async fn send_beside(
    state: &Rc<State>,
    backend: &WorkerBackend,
    tried: &[Rc<Member>],
    version: HttpVersion,
    request: Request<RequestBody>,
) -> Result<SentBeside, ProxyError> {
    let rules = Balancing::NONE;
    let pick = Pick {
        tried,
        now: Instant::now(),
        rng: &state.context.rng,
        rules: &rules,
        key: None,
        session: None,
        limit: None,
    };
    let member = backend.pick(pick, None, CONNECT).await?;
    let mut in_hand = member.take(&rules, Instant::now());
    let sent = async {
        let checkout = checkout(state, &member, None, version, CONNECT).await?;
        in_hand.sent(Instant::now());
        ask(checkout, request, &member).await
    };
    let result = sent.await;
    in_hand.end(says(&attempted(&result), rules.ejection()), Instant::now());
    Ok(SentBeside {
        member,
        in_hand,
        result,
    })
}
