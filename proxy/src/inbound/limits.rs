//! How much the app gets, by the RateLimitPolicies that select this pod.
//!
//! The decision itself is [`outrigger_limits`]'s. Here are its facts, what is told of it, and what the caller hears: 429 with
//! `Retry-After`, in gRPC RESOURCE_EXHAUSTED with `grpc-retry-pushback-ms` (gRFC A6), and where a policy says so, what is left of a limit.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use outrigger_api::address;
use outrigger_api::spiffe::SpiffeId;
use outrigger_limits::{Headers, Outcome, Place, Refused, Standing};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::server::{ResponseBody, error_response, say_when};
use tokio::time::Instant;

use super::Caller;
use super::access::{Beside, facts_of};
use crate::call::{Call, LocalReply};
use crate::context::{Context, Process};
use crate::discovery::{DiscoveryConfig, Limits};
use crate::store::{Permitted, Stores};
use crate::telemetry::logging::LogLimit;
use crate::telemetry::{LimitDecision, LimitNote, Metrics};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
const LEGACY_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const LEGACY_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const LEGACY_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The limits of this pod, as one worker asks for them.
pub(super) struct LimitRule {
    limits: Arc<Limits>,
    /// Of which policies the metrics are.
    version: Cell<u64>,
    metrics: Arc<Metrics>,
    stores: Stores,
    /// Of which policies the stores are.
    followed: Cell<u64>,
    limited: LogLimit,
    shadows: LogLimit,
}

/// What a response says of what is left.
pub(super) struct Left {
    style: Headers,
    headers: HeaderMap,
}

impl LimitRule {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            limits: context.process.discovery.limits(),
            version: Cell::new(0),
            metrics: Arc::clone(context.metrics()),
            stores: Stores::new(
                context.process.resolver.clone(),
                permitted(&context.process),
                Arc::clone(context.metrics()),
            ),
            followed: Cell::new(0),
            limited: LogLimit::default(),
            shadows: LogLimit::default(),
        }
    }

    /// Forgets the metrics of policies that are not there any more, and connects to the stores of those that are.
    pub(super) fn sweep(&self) {
        self.follow();
        let version = self.limits.version();
        if self.version.replace(version) != version {
            self.metrics.retain_limits(|name| self.limits.has_policy(name));
        }
    }

    /// Whether no request is limited.
    pub(super) fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Whether a limit in force is about requests to the port: none of them must be missed.
    pub(super) fn counts_requests(&self, port: u16) -> bool {
        self.limits.counts_requests(port)
    }

    /// Lets a request through, or not. It costs next to nothing where no limit is in force.
    ///
    /// # Errors
    /// The answer [`Reason::RateLimited`], or [`Reason::LimitUnavailable`].
    pub(super) async fn admit(
        &self,
        caller: &Caller,
        head: &Parts,
        beside: &Beside,
        call: &mut Call,
    ) -> Result<Option<Box<Left>>, LocalReply> {
        if self.limits.is_empty() {
            return Ok(None);
        }
        let Some(mut outcome) = self.decide(caller, head, beside, call) else {
            return Ok(None);
        };
        if !outcome.asks().is_empty() {
            // Boxed: requests that no store is asked about have no room for it (`sizes`).
            Box::pin(self.ask(&mut outcome)).await;
        }
        let left = outcome.standing().and_then(|standing| left(&standing)).map(Box::new);
        if let Some((by, wait)) = outcome.refused() {
            self.metrics.limit(LimitDecision::Limited, by.policy, by.limit);
            let note = self.tell(caller, "a request", LimitDecision::Limited, by);
            call.request.limit = Some(note);
            return Err(refusal(wait, left.as_deref(), call.request.is_grpc()).into());
        }
        if let Some(by) = outcome.unavailable() {
            self.metrics.limit(LimitDecision::Unavailable, by.policy, by.limit);
            let note = self.tell(caller, "a request", LimitDecision::Unavailable, by);
            call.request.limit = Some(note);
            return Err(unavailable(call.request.is_grpc()).into());
        }
        for by in outcome.unanswered() {
            self.metrics.limit(LimitDecision::Fallback, by.policy, by.limit);
            // Each of them would be said: that the store is away, the log says once.
            call.request
                .limit
                .get_or_insert_with(|| note(LimitDecision::Fallback, by));
        }
        for by in outcome.enforced() {
            self.metrics.limit(LimitDecision::Admitted, by.policy, by.limit);
        }
        for by in outcome.shadows() {
            self.metrics.limit(LimitDecision::Shadow, by.policy, by.limit);
            let note = self.tell(caller, "a request", LimitDecision::Shadow, by);
            // Of several, the first stands in the log and in the span; each is counted.
            call.request.limit.get_or_insert(note);
        }
        Ok(left)
    }

    fn decide(&self, caller: &Caller, head: &Parts, beside: &Beside, call: &Call) -> Option<Outcome> {
        // What the client names in `Connection` does not come to the app; it hides nothing from limits all the same.
        let headers = beside.and_named(&head.headers);
        let facts = facts_of(caller, head, &headers, beside);
        self.limits.decide(&facts, call.started)
    }

    /// Decides by what stores say.
    async fn ask(&self, outcome: &mut Outcome) {
        self.follow();
        let answers = self.stores.ask(outcome.asks()).await;
        let back = self.limits.settle(outcome, &answers);
        self.stores.tell(&back);
    }

    fn follow(&self) {
        let version = self.limits.version();
        if self.followed.replace(version) != version {
            self.stores.follow(&self.limits.stores());
        }
    }

    /// Lets a connection of bytes have a place, or not.
    ///
    /// # Errors
    /// The policy that refuses it, which was logged.
    pub(super) fn connect(&self, caller: &Caller) -> Result<Place, Box<LimitNote>> {
        let count = |decision, by: Refused<'_>| self.metrics.limit_connection(decision, by.policy, by.limit);
        let connection = self.limits.connect(caller.app.port(), caller.peer.as_ref());
        let connection = connection.map_err(|denied| {
            count(LimitDecision::Limited, denied.by());
            self.tell(caller, "a connection", LimitDecision::Limited, denied.by())
        })?;
        for by in connection.enforced() {
            count(LimitDecision::Admitted, by);
        }
        for by in connection.shadows() {
            count(LimitDecision::Shadow, by);
            self.tell(caller, "a connection", LimitDecision::Shadow, by);
        }
        Ok(connection.place)
    }

    fn tell(&self, caller: &Caller, what: &str, decision: LimitDecision, by: Refused<'_>) -> Box<LimitNote> {
        let (log, verb) = match decision {
            LimitDecision::Shadow => (&self.shadows, "would be refused by a limit in Shadow mode"),
            LimitDecision::Unavailable => (&self.limited, "is refused because the store of a limit does not answer"),
            _ => (&self.limited, "is refused by a limit"),
        };
        log.log(Instant::now(), |left_out| {
            tracing::info!(
                client = caller.address.map(tracing::field::display),
                peer = caller.peer.as_ref().map(SpiffeId::as_str),
                port = caller.app.port(),
                policy = by.policy,
                limit = by.limit,
                left_out,
                "{what} {verb}"
            );
        });
        note(decision, by)
    }
}

fn note(decision: LimitDecision, by: Refused<'_>) -> Box<LimitNote> {
    Box::new(LimitNote {
        decision,
        policy: by.policy.to_owned(),
        limit: by.limit.to_owned(),
    })
}

/// Which addresses a policy may have called. The file of a standalone sidecar is of whoever runs it, and may name any.
fn permitted(process: &Arc<Process>) -> Permitted {
    let process = Arc::clone(process);
    Rc::new(move |ip: IpAddr| match process.config.discovery {
        DiscoveryConfig::Standalone(_) => Ok(()),
        DiscoveryConfig::Controller { .. } if process.is_own_pod(SocketAddr::new(ip, 0)) => Err("this pod's own"),
        DiscoveryConfig::Controller { .. } => address::why_no_backend(ip).map_or(Ok(()), Err),
    })
}

impl Left {
    /// Says it in a response. What the app says itself stays: the fields of the IETF are lists, and of the older ones there is one.
    pub(super) fn say(&self, headers: &mut HeaderMap) {
        if self.style == Headers::Legacy && headers.contains_key(LEGACY_LIMIT) {
            return;
        }
        for (name, value) in &self.headers {
            headers.append(name.clone(), value.clone());
        }
    }
}

/// It says nothing of policies but what they say themselves to callers.
fn refusal(wait: Duration, left: Option<&Left>, grpc: bool) -> Response<ResponseBody> {
    let seconds = wait.as_micros().div_ceil(1_000_000).max(1);
    let error = ProxyError::new(
        Reason::RateLimited,
        format!("the called workload takes no more such requests for now; try again in {seconds} s"),
    );
    let mut response = error_response(&error, grpc);
    let headers = response.headers_mut();
    say_when(headers, wait, grpc);
    if let Some(left) = left {
        left.say(headers);
    }
    response
}

/// 503, since nobody has sent too much: whether he has, nobody knows.
fn unavailable(grpc: bool) -> Response<ResponseBody> {
    let error = ProxyError::new(
        Reason::LimitUnavailable,
        "the store in which the called workload counts requests does not answer, and its policy refuses them until it does",
    );
    let mut response = error_response(&error, grpc);
    say_when(response.headers_mut(), Duration::from_secs(1), grpc);
    response
}

fn left(standing: &Standing<'_>) -> Option<Left> {
    let Standing {
        limit,
        quota,
        seconds,
        remaining,
        next,
        reset,
        ..
    } = *standing;
    let mut headers = HeaderMap::with_capacity(3);
    match standing.headers {
        Headers::Ietf => {
            // Names are of letters, digits, ".", "_" and "-": nothing is to be escaped in a String (RFC 9651 section 3.3.3).
            headers.insert(POLICY, format!("\"{limit}\";q={quota};w={seconds}").try_into().ok()?);
            // `t` is the time until there is more, of which Retry-After is to be no earlier one.
            headers.insert(LEFT, format!("\"{limit}\";r={remaining};t={next}").try_into().ok()?);
        }
        Headers::Legacy => {
            insert(&mut headers, LEGACY_LIMIT, quota);
            insert(&mut headers, LEGACY_REMAINING, remaining);
            insert(&mut headers, LEGACY_RESET, reset);
        }
    }
    Some(Left {
        style: standing.headers,
        headers,
    })
}

fn insert(headers: &mut HeaderMap, name: HeaderName, number: impl ToString) {
    if let Ok(value) = HeaderValue::try_from(number.to_string()) {
        headers.insert(name, value);
    }
}
