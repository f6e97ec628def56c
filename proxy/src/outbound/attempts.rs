//! The attempts of one request: each to an endpoint of its own choice, with a span of its own, until an answer is final.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use outrigger_proxy_transport::body::BodySource;
use outrigger_proxy_transport::client::{Failure, Lease, send};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::grpc::{self, grpc_status};
use outrigger_proxy_transport::headers::strip_ours;
use outrigger_proxy_transport::server::{Ended, HttpVersion, OnEnd, ResponseBody, error_response, reason_of};
use tokio::time::Instant;

use super::balance::{InHand, Member, Pick};
use super::connect::checkout;
use super::retry::{Attempted, Verdict, backoff, judge, repeatable};
use super::target::{WorkerBackend, WorkerTarget};
use super::{State, health};
use crate::exchange::{Exchange, Other, Outcome, Span};
use crate::model::Policy;
use crate::telemetry::{Outcome as Counts, ServiceMetrics};

/// What is read of a failed response so that its connection can be used again.
const DISCARD: usize = 16 * 1024;
const DISCARD_TIME: Duration = Duration::from_millis(500);

/// What stays the same from attempt to attempt.
pub struct Attempts<'a> {
    pub state: &'a Rc<State>,
    pub target: &'a Rc<WorkerTarget>,
    pub backend: &'a WorkerBackend,
    pub policy: &'a Policy,
    pub version: HttpVersion,
}

/// The answer that goes to the client.
pub struct Answer {
    pub response: Response<Incoming>,
    /// The endpoint is in the mesh. What only sidecars say was removed from the head of any other's response.
    pub from_sidecar: bool,
    pub lease: Lease,
    /// When the body must have ended, and what it is if it has not.
    pub deadline: Option<(Instant, Reason)>,
}

/// Sends the request until there is an answer that is final.
///
/// # Errors
/// Why the last attempt has none.
pub async fn attempt_until_final(
    attempts: Attempts<'_>,
    head: &Parts,
    body: &BodySource,
    record: &mut Record,
) -> Result<Answer, ProxyError> {
    let policy = attempts.policy;
    let repeatable = repeatable(&head.method, &head.headers, &policy.retry);
    let asked = asked_deadline(&record.exchange, head);
    let until = policy.request_timeout.map(|limit| record.exchange.started + limit);
    let until = until.into_iter().chain(asked).min();
    let mut tried: Vec<Rc<Member>> = Vec::new();
    loop {
        let pick = Pick {
            tried: &tried,
            now: Instant::now(),
            rng: &attempts.state.context.rng,
        };
        let member = attempts.backend.pick(pick, policy.connect_timeout).await?;
        let began = Instant::now();
        record.begin(&member, began);
        let deadline = earliest(until, policy.backend_request_timeout.map(|limit| began + limit));
        let result = match deadline {
            None => attempt(&attempts, &member, head, body, asked, record).await,
            Some((at, reason)) => tokio::time::timeout_at(at, attempt(&attempts, &member, head, body, asked, record))
                .await
                .unwrap_or_else(|_| Err(out_of_time(reason, &member, began.elapsed()))),
        };
        let attempted = attempted(&result);
        if let Some((_, in_hand)) = &mut record.current {
            in_hand.end(says(&attempted), Instant::now());
        }
        let clock = attempts.state.context.process.identity.clock();
        let verdict = judge(&attempted, repeatable, &policy.retry, clock.now());
        match attempts.wait_before_retry(verdict, body, record, until) {
            Some(wait) => {
                record.attempt_failed(&attempted);
                if let Ok((response, lease)) = result {
                    discard(response, lease);
                }
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                tried.push(member);
            }
            None => {
                return match result {
                    Ok((response, lease)) => Ok(Answer {
                        response,
                        from_sidecar: member.endpoint.identity.is_some(),
                        lease,
                        deadline,
                    }),
                    Err(failure) => Err(failure.error),
                };
            }
        }
    }
}

async fn attempt(
    attempts: &Attempts<'_>,
    member: &Rc<Member>,
    head: &Parts,
    body: &BodySource,
    asked: Option<Instant>,
    record: &Record,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let endpoint = &member.endpoint;
    let state = attempts.state;
    let checkout = checkout(state, member, attempts.version, attempts.policy.connect_timeout).await;
    let checkout = checkout.map_err(Failure::before_sending)?;
    let Some(next) = body.attempt() else {
        // Not reached: there is no retry without a body.
        let lost = ProxyError::new(Reason::UpstreamReset, "the request's body cannot be sent again");
        return Err(Failure::before_sending(lost));
    };
    let mut request = Request::from_parts(head.clone(), next);
    if let Some(span) = record.span() {
        record.exchange.context.inject(span.id, request.headers_mut());
    }
    if let Some(asked) = asked {
        grpc::set_timeout(request.headers_mut(), asked.saturating_duration_since(Instant::now()));
    }
    record.exchange.sent_on();
    let (mut response, lease) = send(checkout, request, endpoint.address).await?;
    if endpoint.identity.is_none() {
        strip_ours(response.headers_mut());
    }
    Ok((response, lease))
}

impl Attempts<'_> {
    /// `Some`: there is to be another attempt, after this time.
    fn wait_before_retry(
        &self,
        verdict: Verdict,
        body: &BodySource,
        record: &mut Record,
        until: Option<Instant>,
    ) -> Option<Duration> {
        let after = match verdict {
            Verdict::Final => return None,
            Verdict::Replay if !record.replayed && body.can_repeat() => {
                record.replayed = true;
                return Some(Duration::ZERO);
            }
            Verdict::Replay => Duration::ZERO,
            Verdict::Retry { after } => after,
        };
        let retry = &self.policy.retry;
        if record.retries >= retry.attempts || !body.can_repeat() {
            return None;
        }
        let wait = backoff(retry, record.retries + 1, &mut *self.state.context.rng.borrow_mut()).max(after);
        let now = Instant::now();
        if until.is_some_and(|until| now + wait >= until) {
            return None;
        }
        let mut budget = self.target.budget.borrow_mut();
        if !budget.withdraw(now, retry.budget_ratio, retry.budget_min_per_second) {
            record.metrics.budget_exhausted();
            return None;
        }
        record.retries += 1;
        Some(wait)
    }
}

/// What is recorded of a request: each attempt, and the whole at its end, whichever end that is.
pub struct Record {
    pub exchange: Exchange,
    pub metrics: Arc<ServiceMetrics>,
    /// The attempt that is under way, or whose response is.
    current: Option<(Span, InHand)>,
    sent: u32,
    retries: u32,
    /// The one free replay is used up.
    replayed: bool,
    outcome: Outcome,
    ended: bool,
}

impl Record {
    /// Nothing was sent yet.
    pub fn new(exchange: Exchange, metrics: Arc<ServiceMetrics>) -> Self {
        Self {
            exchange,
            metrics,
            current: None,
            sent: 0,
            retries: 0,
            replayed: false,
            outcome: Outcome::default(),
            ended: false,
        }
    }

    /// A response of this sidecar that is no error.
    pub fn answered(mut self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        self.outcome.status = Some(response.status().as_u16());
        response.map(|body| body.with_end(Box::new(self)))
    }

    /// The response to a request that failed.
    pub fn failed(mut self, error: &ProxyError) -> Response<ResponseBody> {
        tracing::debug!(error = %error, reason = error.reason.code(), "a request failed");
        let response = error_response(error, self.exchange.is_grpc());
        self.outcome = Outcome {
            status: Some(response.status().as_u16()),
            grpc_status: grpc_status(response.headers()),
            reason: Some(error.reason),
        };
        response.map(|body| body.with_end(Box::new(self)))
    }

    /// A server's response, on its way to the client.
    pub fn respond(mut self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        self.outcome = Outcome {
            status: Some(response.status().as_u16()),
            grpc_status: grpc_status(response.headers()),
            reason: reason_of(response.headers()),
        };
        response.map(|body| body.with_end(Box::new(self)))
    }

    fn begin(&mut self, member: &Rc<Member>, now: Instant) {
        let span = self.exchange.span(self.sent);
        self.sent += 1;
        self.current = Some((span, member.take(now)));
    }

    fn span(&self) -> Option<&Span> {
        self.current.as_ref().map(|(span, _)| span)
    }

    fn attempt_failed(&mut self, attempted: &Attempted<'_>) {
        let outcome = match *attempted {
            Attempted::Answered {
                status,
                headers,
                reason,
            } => Outcome {
                status: Some(status.as_u16()),
                grpc_status: grpc_status(headers),
                reason,
            },
            Attempted::Failed { reason, .. } => Outcome {
                reason: Some(reason),
                ..Outcome::default()
            },
        };
        self.end_attempt(outcome);
    }

    fn end_attempt(&mut self, outcome: Outcome) {
        let Some((span, in_hand)) = self.current.take() else {
            return;
        };
        let endpoint = &in_hand.member().endpoint;
        self.exchange.record(&span, other(endpoint), outcome);
        let counts = if outcome.failed() {
            Counts::Failure
        } else {
            Counts::Success
        };
        self.metrics.attempt(counts);
        if span.resend > 0 {
            self.metrics.retry(counts);
        }
    }

    /// Counts once.
    fn end(&mut self, ended: Ended, bytes: u64) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.outcome.end(ended);
        let outcome = self.outcome;
        let endpoint = self
            .current
            .as_ref()
            .map(|(_, in_hand)| Arc::clone(&in_hand.member().endpoint));
        self.end_attempt(outcome);
        let other = endpoint.as_deref().map(other).unwrap_or_default();
        self.exchange.end(other, outcome, self.sent.saturating_sub(1), bytes);
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

fn other(endpoint: &crate::model::Endpoint) -> Other<'_> {
    Other {
        identity: endpoint.identity.as_ref(),
        address: Some(endpoint.address),
    }
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
pub(super) fn says(attempted: &Attempted<'_>) -> health::Answer {
    match *attempted {
        Attempted::Answered {
            reason: Some(Reason::AppUnavailable),
            ..
        } => health::Answer::Unreachable,
        Attempted::Answered { status, headers, .. } => {
            let unavailable = grpc_status(headers) == Some(14);
            if unavailable || matches!(status.as_u16(), 502..=504) {
                health::Answer::Bad
            } else {
                health::Answer::Good
            }
        }
        Attempted::Failed { reason, reused, .. } => match reason {
            // Ours or the client's, and not the endpoint's failure.
            Reason::ClientClosed | Reason::BadRequest | Reason::IdentityUnavailable => health::Answer::Missing,
            Reason::RequestTimeout | Reason::AttemptTimeout => health::Answer::Missing,
            // A connection that says goodbye. A new one has no reason to.
            Reason::UpstreamRefused if reused => health::Answer::Missing,
            Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed | Reason::IdentityMismatch => {
                health::Answer::Unreachable
            }
            _ => health::Answer::Broken,
        },
    }
}

/// When a gRPC caller stops waiting.
fn asked_deadline(exchange: &Exchange, head: &Parts) -> Option<Instant> {
    // Looked up for gRPC alone: the usual request has no such header.
    let timeout = exchange.is_grpc().then(|| grpc::timeout(&head.headers))??;
    exchange.started.checked_add(timeout)
}

/// The earlier of the two limits, and what it is called when it is reached.
fn earliest(request: Option<Instant>, attempt: Option<Instant>) -> Option<(Instant, Reason)> {
    match (request, attempt) {
        (Some(request), Some(attempt)) if attempt < request => Some((attempt, Reason::AttemptTimeout)),
        (Some(request), _) => Some((request, Reason::RequestTimeout)),
        (None, attempt) => attempt.map(|attempt| (attempt, Reason::AttemptTimeout)),
    }
}

fn out_of_time(reason: Reason, member: &Member, after: Duration) -> Failure {
    let which = match reason {
        Reason::AttemptTimeout => "timeouts.backendRequest",
        _ => "timeouts.request and the caller's grpc-timeout",
    };
    Failure {
        error: ProxyError::new(
            reason,
            format!(
                "no response from {} after {after:?}; see {which}",
                member.endpoint.address
            ),
        ),
        reused: false,
        unsent: false,
    }
}

/// Reads a small rest of a response that nobody wants, so that its connection can be used again.
fn discard(response: Response<Incoming>, lease: Lease) {
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
