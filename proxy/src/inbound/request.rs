//! One request to the app.

use std::net::SocketAddr;
use std::rc::Rc;

use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use outrigger_api::probes::GRPC_HEALTH;
use outrigger_proxy_transport::body::{BodySource, ClientBody, RequestBody};
use outrigger_proxy_transport::client::{Checkout, Failure, Lease, Pool, send, upgrade};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::grpc;
use outrigger_proxy_transport::grpc::grpc_status;
use outrigger_proxy_transport::headers::{strip_hop_by_hop, strip_ours, strip_response, wants_upgrade};
use outrigger_proxy_transport::server::{
    Ended, HttpVersion, OnEnd, PLAINTEXT_REFUSED, ResponseBody, check, error_response,
};

use super::apps::AppDialer;
use super::{Caller, State};
use crate::config::{LetIn, Mtls, Plaintext};
use crate::exchange::{Exchange, Other, Outcome, Span};
use crate::telemetry::Direction;

/// What is kept of a body while its connection to the app may turn out to be a stale one.
const REPLAY: usize = 64 * 1024;

/// Answers a request.
pub(super) async fn handle(
    state: &Rc<State>,
    caller: &Caller,
    pool: &Rc<Pool>,
    version: HttpVersion,
    mut request: Request<ClientBody>,
) -> Response<ResponseBody> {
    let upgrade = wants_upgrade(request.method(), request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let telemetry = &state.context.process.telemetry;
    let in_flight = state.context.activity.begin();
    let port = caller.app.port();
    let received = body.received();
    let mut exchange = Exchange::begin(
        telemetry,
        Direction::Inbound,
        None,
        port,
        &mut head,
        received,
        in_flight,
    );
    let bare = body.is_end_stream() && upgrade.is_none();
    let probe = is_let_in(&state.context.config().let_in, caller, &head, bare);
    if exchange.context.parent.is_none() && probe {
        // A trace every few seconds that nobody asked for would bury the others.
        exchange.context.sampled = false;
    }
    let record = Record::new(exchange, caller);
    let admitted = admit(state, caller, &head, probe);
    strip_hop_by_hop(&mut head.headers, upgrade.is_some() && version == HttpVersion::Http1);
    strip_ours(&mut head.headers);
    record.exchange.context.inject(record.span.id, &mut head.headers);
    let answer = match admitted {
        Ok(()) => call_app(caller, pool, version, head, body, &record).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok((response, lease)) => respond(state, response, lease, upgrade, record),
        Err(error) => record.failed(&error),
    }
}

/// Whether the app may see the request.
fn admit(state: &State, caller: &Caller, head: &Parts, probe: bool) -> Result<(), ProxyError> {
    check(head)?;
    if probe || caller.peer.is_some() || state.context.config().mtls == Mtls::Permissive {
        return Ok(());
    }
    Err(ProxyError::new(Reason::PlaintextRefused, PLAINTEXT_REFUSED))
}

/// Whether it is what kubelet asks the app itself, in plaintext. Nobody can be told apart from kubelet, so it is no more than
/// kubelet's own request: no other method, query, body or upgrade. `bare`: it has neither body nor upgrade.
fn is_let_in(let_in: &[LetIn], caller: &Caller, head: &Parts, bare: bool) -> bool {
    let path = head.uri.path();
    let target = head.uri.path_and_query().map_or(path, |p| p.as_str());
    let get = head.method == Method::GET && bare;
    let is = |what: &Plaintext| match what {
        Plaintext::Connection => false,
        Plaintext::Get(declared) => get && target == declared,
        Plaintext::GetPath(declared) => get && (path == declared || target == declared),
        Plaintext::GrpcHealth => head.method == Method::POST && target == GRPC_HEALTH,
    };
    caller.peer.is_none() && let_in.iter().any(|e| e.port == caller.app.port() && is(&e.what))
}

/// Sends the request to the app; once more if that does no harm: its connection was a stale one, or refused it.
async fn call_app(
    caller: &Caller,
    pool: &Rc<Pool>,
    version: HttpVersion,
    mut head: Parts,
    body: ClientBody,
    record: &Record,
) -> Result<(Response<Incoming>, Lease), ProxyError> {
    let exchange = &record.exchange;
    let timeout = exchange.is_grpc().then(|| grpc::timeout(&head.headers)).flatten();
    let body = BodySource::new(body, REPLAY, None);
    let mut again = false;
    loop {
        let checkout = checkout(caller, pool, version).await?;
        if let Some(timeout) = timeout {
            grpc::set_timeout(&mut head.headers, timeout.saturating_sub(exchange.elapsed()));
        }
        // It is whole: there is no second time for a body that is not.
        let attempt = body.attempt().unwrap_or(RequestBody::Empty);
        let request = Request::from_parts(head.clone(), attempt);
        exchange.sent_on();
        let failure = match send(checkout, request, caller.app).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if again || !is_harmless(&failure, &head) || !body.can_repeat() {
            return Err(failure.error);
        }
        again = true;
    }
}

/// Whether the app cannot have seen the request, or may see it twice: on a connection that it had closed, perhaps.
fn is_harmless(failure: &Failure, head: &Parts) -> bool {
    let refused = failure.unsent || failure.error.reason == Reason::UpstreamRefused;
    let stale = failure.reused && failure.error.reason == Reason::UpstreamReset;
    refused || (stale && head.method.is_idempotent())
}

async fn checkout(caller: &Caller, pool: &Rc<Pool>, version: HttpVersion) -> Result<Checkout, ProxyError> {
    let checkout = pool.checkout(version, &AppDialer(caller.app)).await;
    checkout.map_err(|error| match error.reason {
        // It takes connections and does nothing with them.
        Reason::ConnectTimeout => ProxyError::new(Reason::AppUnavailable, error.detail),
        _ => error,
    })
}

fn respond(
    state: &Rc<State>,
    mut response: Response<Incoming>,
    lease: Lease,
    upgrade: Option<OnUpgrade>,
    record: Record,
) -> Response<ResponseBody> {
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS
        || (record.exchange.is_connect() && response.status().is_success());
    let lease = match (switches, upgrade) {
        (false, _) => Some(lease),
        (true, None) => None,
        (true, Some(client)) => {
            let server = hyper::upgrade::on(&mut response);
            upgrade::join(client, server, state.context.activity.begin(), lease);
            None
        }
    };
    strip_response(&mut response);
    // Only a sidecar's own word may say that a request was not processed.
    strip_ours(response.headers_mut());
    let grpc = record.exchange.is_grpc();
    record.respond(response.map(|body| ResponseBody::streaming(body, grpc, false).with_lease(lease)))
}

/// What is recorded of a request, at its end, whichever end that is.
struct Record {
    exchange: Exchange,
    span: Span,
    peer: Option<outrigger_api::spiffe::SpiffeId>,
    address: Option<SocketAddr>,
    outcome: Outcome,
    ended: bool,
}

impl Record {
    fn new(exchange: Exchange, caller: &Caller) -> Self {
        Self {
            span: exchange.span(0),
            exchange,
            peer: caller.peer.clone(),
            address: caller.address,
            outcome: Outcome::default(),
            ended: false,
        }
    }

    fn failed(mut self, error: &ProxyError) -> Response<ResponseBody> {
        tracing::debug!(error = %error, reason = error.reason.code(), "a request failed");
        let response = error_response(error, self.exchange.is_grpc());
        self.outcome.reason = Some(error.reason);
        self.respond(response)
    }

    fn respond(mut self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        self.outcome.status = Some(response.status().as_u16());
        self.outcome.grpc_status = grpc_status(response.headers());
        response.map(|body| body.with_end(Box::new(self)))
    }

    /// Counts once.
    fn end(&mut self, ended: Ended, bytes: u64) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.outcome.end(ended);
        let other = Other {
            identity: self.peer.as_ref(),
            address: self.address,
        };
        self.exchange.record(&self.span, other, self.outcome);
        self.exchange.end(other, self.outcome, 0, bytes);
    }
}

impl OnEnd for Record {
    fn ended(mut self: Box<Self>, ended: Ended, bytes: u64) {
        self.end(ended, bytes);
    }
}

impl Drop for Record {
    /// The client went away before there was a response.
    fn drop(&mut self) {
        self.end(Ended::Cancelled, 0);
    }
}
