//! The attempts of one request: each to an endpoint of its own choice, with a span of its own, until an answer is final.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use futures_util::TryFutureExt;
use http::request::Parts;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use outrigger_proxy_transport::body::{BodySource, RequestBody};
use outrigger_proxy_transport::client::{Checkout, Failure, Lease, Sender, send};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::grpc::{self, grpc_status};
use outrigger_proxy_transport::headers::strip_ours;
use outrigger_proxy_transport::net::count::Place;
use outrigger_proxy_transport::server::{HttpVersion, reason_of};
use tokio::time::Instant;

use super::balance::Pick;
use super::breaker::Breaker;
use super::connect::checkout;
use super::earlier::Earlier;
use super::member::{EndpointLimit, InHand, Member};
use super::penalty::penalised;
use super::retry::{Attempted, RetryDecision, backoff, judge, repeatable};
use super::target::{WorkerBackend, WorkerTarget};
use super::waits::{Limit, Moving, Waits};
use super::{State, hash, health, tls};
use crate::call::{Call, LocalReply, Remote};
use crate::model::{AttemptRules, Ejection, RetryPolicy};
use crate::telemetry::{Peer, ServiceMetrics, Status};

/// What is read of a failed response so that its connection can be used again.
const DISCARD: usize = 16 * 1024;
const DISCARD_TIME: Duration = Duration::from_millis(500);

/// What stays the same from attempt to attempt.
pub struct Attempts<'a> {
    pub state: &'a Rc<State>,
    pub target: &'a Rc<WorkerTarget>,
    pub backend: &'a WorkerBackend,
    pub rules: &'a AttemptRules,
    /// What limits it. The request has its place already.
    pub breaker: Option<&'a Breaker<'a>>,
    pub metrics: &'a ServiceMetrics,
    pub deadlines: Deadlines,
    pub moving: Option<&'a Moving>,
    pub version: HttpVersion,
    /// The endpoint that the request's session is at.
    pub session: Option<u64>,
}

/// When a request must have been answered, however many attempts there are.
#[derive(Clone, Copy)]
pub struct Deadlines {
    /// A gRPC caller stops waiting.
    caller: Option<Instant>,
    /// That, or the end of the time that its route gives it.
    request: Option<Instant>,
}

/// A server's response, or what this sidecar answers.
pub type Sent = Result<ServerResponse, LocalReply>;

/// A server's response, which goes to the client.
pub struct ServerResponse {
    pub response: Response<Incoming>,
    /// The endpoint is in the mesh. What only sidecars say was removed from the head of any other's response.
    pub from_sidecar: bool,
    pub lease: Lease,
    pub in_flight: InHand,
    /// When the body must have ended, and what it is if it has not.
    pub deadline: Option<(Instant, Reason)>,
}

impl ServerResponse {
    /// Another one goes to the client.
    pub fn discard(self) {
        discard(self.response, self.lease);
    }
}

/// How often a request was sent again so far.
#[derive(Default)]
struct Repeats {
    retries: u32,
    /// The one free replay is used up.
    replayed: bool,
}

impl Deadlines {
    /// `timeout`: the route's, for all attempts together.
    pub fn new(call: &Call, head: &Parts, timeout: Option<Duration>) -> Self {
        // Looked up for gRPC alone: the usual request has no such header.
        let wanted = call.request.is_grpc().then(|| grpc::timeout(&head.headers)).flatten();
        let caller = wanted.and_then(|wanted| call.started.checked_add(wanted));
        let request = timeout.map(|limit| call.started + limit);
        Self {
            caller,
            request: request.into_iter().chain(caller).min(),
        }
    }

    /// When all of it must have ended.
    pub fn request(&self) -> Option<Instant> {
        self.request
    }
}

impl Attempts<'_> {
    /// Sends the request until there is an answer that is final. It keeps its place until that has ended.
    ///
    /// # Errors
    /// Why the last attempt has none.
    pub async fn send(
        &self,
        head: &Parts,
        body: &BodySource,
        mut place: Option<Place>,
        call: &mut Call,
    ) -> Result<ServerResponse, ProxyError> {
        let AttemptRules {
            retry,
            timeout,
            response_headers: _, // in `self.moving`
            connect_timeout,
            balancing,
            limits,
        } = self.rules;
        let limit = limits.as_ref().and_then(|limits| limits.endpoint_requests);
        let limit = limit.map(EndpointLimit::Requests);
        let repeatable = repeatable(&head.method, &head.headers, retry);
        let mut repeats = Repeats::default();
        let mut tried: Vec<Rc<Member>> = Vec::new();
        let mut earlier = Earlier::new(limit.is_some());
        let mut session = self.session;
        let key = balancing.hash_keys();
        let key = key.and_then(|on| hash::key(on, Some(head), self.state.caller));
        loop {
            let pick = Pick {
                tried: &tried,
                now: Instant::now(),
                rng: &self.state.context.rng,
                rules: balancing,
                key,
                session,
                limit,
            };
            let member = match self.backend.pick(pick, self.breaker, *connect_timeout).await {
                Ok(member) => member,
                Err(error) => {
                    let mut sent = earlier.in_place_of(error);
                    if let Ok(server) = &mut sent {
                        let of_endpoint = self
                            .breaker
                            .and_then(|b| b.of_endpoint_again(server.in_flight.member()));
                        server.in_flight.hold([place.take(), of_endpoint]);
                    }
                    return sent;
                }
            };
            // Another worker may have been faster.
            let Ok(of_endpoint) = self.breaker.map_or(Ok(None), |breaker| breaker.of_endpoint(&member)) else {
                continue;
            };
            earlier.discard();
            let began = Instant::now();
            let mut in_flight = member.take(balancing, began);
            if session == Some(member.reference()) {
                in_flight.stays();
            }
            call.attempt(Rc::clone(&member) as Rc<dyn Remote>);
            let deadline = earliest(self.deadlines.request, timeout.map(|limit| began + limit));
            let waits = Waits {
                began,
                deadline,
                moving: self.moving,
            };
            let result = tokio::select! {
                biased;
                result = self.attempt(&mut in_flight, !tried.is_empty(), (head, body), call) => result,
                limit = waits.over() => {
                    let took = Took {
                        attempt: began.elapsed(),
                        attempts: tried.len() + 1,
                        all: call.started.elapsed(),
                    };
                    Err(out_of_time(limit, &member, &took))
                }
            };
            let attempted = attempted(&result);
            in_flight.end(says(&attempted, balancing.ejection()), Instant::now());
            let clock = self.state.context.process.identity.clock();
            if let Some(penalty) = balancing.penalty()
                && let Some(time) = penalised(&attempted, penalty, clock.now())
            {
                member.penalise(Instant::now() + time);
            }
            let decision = judge(&attempted, repeatable, retry, clock.now());
            let again = self.wait_before_retry(decision, retry, body, &mut repeats);
            let again = again.map(|wait| (wait, status(&attempted)));
            let sent = result.map_err(|failure| failure.error);
            let mut sent = sent.map(|(response, lease)| ServerResponse {
                response,
                from_sidecar: member.endpoint.identity.is_some(),
                lease,
                in_flight,
                deadline,
            });
            match again {
                Some((wait, status)) => {
                    call.end_attempt(status);
                    drop(of_endpoint);
                    earlier.set(sent);
                    if !wait.is_zero() {
                        tokio::time::sleep(wait).await;
                    }
                    // What found a stale connection has learnt nothing of the endpoint; what failed goes elsewhere.
                    session = session.filter(|_| decision == RetryDecision::Replay && tried.is_empty());
                    tried.push(member);
                }
                None => {
                    if let Ok(server) = &mut sent {
                        server.in_flight.hold([place.take(), of_endpoint]);
                    }
                    return sent;
                }
            }
        }
    }

    async fn attempt(
        &self,
        in_flight: &mut InHand,
        again: bool,
        (head, body): (&Parts, &BodySource),
        call: &Call,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let limit = self.rules.connect_timeout;
        let member = in_flight.member();
        let bounds = self.breaker.map(|breaker| breaker.bounds(in_flight, again));
        let checkout = checkout(self.state, member, bounds, self.version, limit).await?;
        let Some(next) = body.attempt() else {
            // Not reached: there is no retry without a body.
            let lost = ProxyError::new(Reason::UpstreamReset, "the request's body cannot be sent again");
            return Err(Failure::before_sending(lost));
        };
        let mut request = Request::from_parts(head.clone(), next);
        call.propagate(request.headers_mut());
        if let Some(caller) = self.deadlines.caller {
            grpc::set_timeout(request.headers_mut(), caller.saturating_duration_since(Instant::now()));
        }
        call.sent();
        in_flight.sent(Instant::now());
        ask(checkout, request, in_flight.member()).await
    }

    /// `Some`: there is to be another attempt, after this time.
    fn wait_before_retry(
        &self,
        decision: RetryDecision,
        retry: &RetryPolicy,
        body: &BodySource,
        repeats: &mut Repeats,
    ) -> Option<Duration> {
        let after = match decision {
            RetryDecision::Final => return None,
            RetryDecision::Replay if !repeats.replayed && body.can_repeat() => {
                repeats.replayed = true;
                return Some(Duration::ZERO);
            }
            RetryDecision::Replay => Duration::ZERO,
            RetryDecision::Retry { after } => after,
        };
        if repeats.retries >= retry.attempts || !body.can_repeat() {
            return None;
        }
        let wait = backoff(retry, repeats.retries + 1, &mut *self.state.context.rng.borrow_mut()).max(after);
        let now = Instant::now();
        if self.deadlines.request.is_some_and(|until| now + wait >= until) {
            return None;
        }
        let mut budgets = self.target.budgets.borrow_mut();
        if !budgets.of(&retry.budget, now).withdraw(&retry.budget, now) {
            self.metrics.budget_exhausted();
            return None;
        }
        repeats.retries += 1;
        Some(wait)
    }
}

impl Remote for Member {
    fn peer(&self) -> Peer<'_> {
        Peer {
            identity: self.endpoint.identity.as_ref(),
            address: Some(self.endpoint.address),
        }
    }
}

/// Sends a request to an endpoint. The head of its response has what only sidecars say if it is one.
///
/// # Errors
/// Why there is no response.
pub(super) fn ask(
    checkout: Checkout,
    mut request: Request<RequestBody>,
    member: &Member,
) -> impl Future<Output = Result<(Response<Incoming>, Lease), Failure>> {
    if member.tls().is_some() && matches!(checkout.sender, Sender::Http2(_)) {
        tls::name_scheme(&mut request);
    }
    let endpoint = &member.endpoint;
    // An async function would hold the request twice (`outbound::sizes`).
    send(checkout, request, endpoint.address).map_ok(|(mut response, lease)| {
        if endpoint.identity.is_none() {
            strip_ours(response.headers_mut());
        }
        (response, lease)
    })
}

/// How an attempt went.
pub(super) fn attempted(result: &Result<(Response<Incoming>, Lease), Failure>) -> Attempted<'_> {
    match result {
        Ok((response, _)) => Attempted::Answered {
            status: response.status(),
            headers: response.headers(),
            // A peer sidecar's word: nobody else's comes to here.
            reason: reason_of(response.headers()),
        },
        Err(failure) => Attempted::Failed {
            reason: failure.error.reason,
            reused: failure.reused,
            unsent: failure.unsent,
        },
    }
}

/// What an attempt says about its endpoint.
pub(super) fn says(attempted: &Attempted<'_>, ejection: &Ejection) -> health::Answer {
    match *attempted {
        // The peer sidecar is there, and nothing behind it for now.
        Attempted::Answered {
            reason: Some(Reason::AppUnavailable | Reason::AccessUnknown),
            ..
        } => health::Answer::Unreachable,
        // By a policy, while its store is away: it is so at each endpoint, and none of them fails.
        Attempted::Answered {
            reason: Some(Reason::LimitUnavailable),
            ..
        } => health::Answer::Good,
        Attempted::Answered { status, headers, .. } => {
            if ejection.is_failure(status, grpc_status(headers)) {
                health::Answer::Bad
            } else {
                health::Answer::Good
            }
        }
        Attempted::Failed { reason, reused, .. } => match reason {
            // Ours or the client's, and not the endpoint's failure.
            Reason::ClientClosed | Reason::BadRequest | Reason::IdentityUnavailable => health::Answer::Missing,
            // There may be no more connections.
            Reason::Overloaded => health::Answer::Missing,
            Reason::RequestTimeout | Reason::AttemptTimeout | Reason::IdleTimeout => health::Answer::Missing,
            // A connection that says goodbye. A new one has no reason to.
            Reason::UpstreamRefused if reused => health::Answer::Missing,
            Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed | Reason::IdentityMismatch => {
                health::Answer::Unreachable
            }
            _ => health::Answer::Broken,
        },
    }
}

fn status(attempted: &Attempted<'_>) -> Status {
    match *attempted {
        Attempted::Answered {
            status,
            headers,
            reason,
        } => Status {
            http: Some(status.as_u16()),
            grpc: grpc_status(headers),
            reason,
        },
        Attempted::Failed { reason, .. } => Status::failure(reason),
    }
}

/// The earlier of the two limits, and what it is called when it is reached.
fn earliest(request: Option<Instant>, attempt: Option<Instant>) -> Option<(Instant, Reason)> {
    match (request, attempt) {
        (Some(request), Some(attempt)) if attempt < request => Some((attempt, Reason::AttemptTimeout)),
        (Some(request), _) => Some((request, Reason::RequestTimeout)),
        (None, attempt) => attempt.map(|attempt| (attempt, Reason::AttemptTimeout)),
    }
}

/// How long a caller has waited.
struct Took {
    attempt: Duration,
    attempts: usize,
    /// With those before it, and the waits between them.
    all: Duration,
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:?}", whole(self.attempt))?;
        match self.attempts {
            0 | 1 => Ok(()),
            attempts => write!(f, ", the last of {attempts} attempts in {:?}", whole(self.all)),
        }
    }
}

/// In milliseconds: what is less is the timer's.
fn whole(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn out_of_time(limit: Limit, member: &Member, took: &Took) -> Failure {
    Failure {
        error: ProxyError::new(
            limit.reason(),
            format!(
                "no response from {} {took}; see {}",
                member.endpoint.address,
                limit.field()
            ),
        ),
        reused: false,
        unsent: false,
    }
}

/// Reads a small rest of a response that nobody wants, so that its connection can be used again.
pub(super) fn discard(response: Response<Incoming>, lease: Lease) {
    if response.version() != Version::HTTP_11 {
        return;
    }
    tokio::task::spawn_local(async move {
        let rest = Limited::new(response.into_body(), DISCARD).collect();
        if let Ok(Ok(_)) = tokio::time::timeout(DISCARD_TIME, rest).await {
            lease.release();
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Attempted, Ejection, Took, health, says};
    use http::{HeaderMap, HeaderValue, StatusCode};
    use outrigger_proxy_transport::error::Reason;
    use std::time::Duration;

    /// Whom an endpoint refuses is not its failure; one that does not know yet whom it lets in is of no use.
    #[test]
    fn a_refusal_by_policy_is_an_answer_as_good_as_any() {
        let plain = HeaderMap::new();
        let denied = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("7"))]);
        let unauthenticated = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("16"))]);
        let unknown = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("14"))]);
        for (status, headers, reason, expected) in [
            (403, &plain, Reason::AccessDenied, health::Answer::Good),
            (200, &denied, Reason::AccessDenied, health::Answer::Good),
            (401, &plain, Reason::TokenRequired, health::Answer::Good),
            (200, &unauthenticated, Reason::TokenInvalid, health::Answer::Good),
            (503, &plain, Reason::LimitUnavailable, health::Answer::Good),
            (200, &unknown, Reason::LimitUnavailable, health::Answer::Good),
            (503, &plain, Reason::AccessUnknown, health::Answer::Unreachable),
            (200, &unknown, Reason::AccessUnknown, health::Answer::Unreachable),
        ] {
            let attempted = Attempted::Answered {
                status: StatusCode::from_u16(status).unwrap(),
                headers,
                reason: Some(reason),
            };
            assert_eq!(says(&attempted, &Ejection::DEFAULT), expected, "{status} {reason:?}");
        }
    }

    #[test]
    fn the_text_of_a_timeout_tells_the_time_of_all_attempts() {
        let [attempt, all] = [300_807, 1_250_001].map(Duration::from_micros);
        let took = |attempts| {
            let took = Took { attempt, attempts, all };
            took.to_string()
        };
        assert_eq!(took(1), "after 300ms");
        assert_eq!(took(3), "after 300ms, the last of 3 attempts in 1.25s");
    }
}
