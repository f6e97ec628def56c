//! Whether a request is tried again: the decision, without any I/O.
//!
//! Two things are told apart. A request that **was never processed** (no connection, a refused stream, the peer sidecar's
//! word that its app was not there) may be sent again whatever it is. A request that **may have been processed** (a
//! status, a reset before the response, a time-out) is sent again only if its method is idempotent (RFC 9110 section
//! 9.2.2), it carries an `Idempotency-Key`, or the owner of the Service said `nonIdempotent: true`. gRPC calls are POSTs, so
//! UNAVAILABLE from the app falls under that rule: gRPC servers send it for half-done work too. UNAVAILABLE that a sidecar
//! made, because the app was not there, was never processed.
//!
//! `Retry-After` and `grpc-retry-pushback-ms` are obeyed: the wait is at least that long. A server that asks for more than
//! [`MAX_SERVER_WAIT`] is not asked again: the client can wait better than a proxy that holds its connection.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, Method, StatusCode};
use outrigger_proxy_transport::error::Reason;
use outrigger_proxy_transport::grpc::{GRPC_PUSHBACK, grpc_status};
use outrigger_proxy_transport::headers::IDEMPOTENCY_KEY;
use rand::Rng;

use crate::model::RetryPolicy;

/// The longest wait that a server may ask for.
pub const MAX_SERVER_WAIT: Duration = Duration::from_secs(1);

/// How an attempt went.
#[derive(Clone, Copy, Debug)]
pub enum Attempted<'a> {
    /// With the head of a response.
    Answered {
        status: StatusCode,
        headers: &'a HeaderMap,
        /// What the peer sidecar says in `outrigger-error`.
        reason: Option<Reason>,
    },
    /// Without.
    Failed {
        reason: Reason,
        /// On a connection that had carried a request before.
        reused: bool,
        /// Not a byte was sent.
        unsent: bool,
    },
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Goes to the client as it is.
    Final,
    /// Is sent again at once, once, without cost: the connection was a stale one.
    Replay,
    /// Is tried again, after at least this time.
    Retry { after: Duration },
}

/// Whether the request may be processed twice without harm.
pub fn repeatable(method: &Method, headers: &HeaderMap, policy: &RetryPolicy) -> bool {
    method.is_idempotent() || policy.non_idempotent || headers.contains_key(IDEMPOTENCY_KEY)
}

/// Decides.
pub fn judge(attempted: &Attempted<'_>, repeatable: bool, policy: &RetryPolicy, now: SystemTime) -> RetryDecision {
    match *attempted {
        Attempted::Answered {
            status,
            headers,
            reason,
        } => {
            let wanted = match grpc_status(headers) {
                Some(0) => false,
                Some(grpc) => policy.grpc_statuses.contains(&grpc),
                None => policy.statuses.contains(&status),
            };
            // A policy of the callee's that cannot be decided for now: a little later it is no different.
            if reason == Some(Reason::LimitUnavailable) {
                return RetryDecision::Final;
            }
            let never_processed = reason.is_some_and(Reason::never_processed);
            match server_wait(headers, now) {
                Some(after) if never_processed || (wanted && repeatable) => RetryDecision::Retry { after },
                _ => RetryDecision::Final,
            }
        }
        // A sent request on a stale connection, and one that found it closed before it was sent.
        Attempted::Failed {
            reused: true,
            unsent,
            reason,
        } if unsent || (repeatable && reason == Reason::UpstreamReset) => RetryDecision::Replay,
        Attempted::Failed { reason, unsent, .. } => {
            let again = match reason {
                Reason::UpstreamReset | Reason::AttemptTimeout => repeatable,
                // Nobody is there to hear it; or it would be no different a moment later. An attempt is one more of what there is too much of.
                Reason::ClientClosed | Reason::IdentityUnavailable | Reason::Overloaded => false,
                _ => unsent || reason.never_processed(),
            };
            if again {
                RetryDecision::Retry { after: Duration::ZERO }
            } else {
                RetryDecision::Final
            }
        }
    }
}

/// Exponential backoff with full jitter: before retry `n` (from 1), a random time up to `base` × 2ⁿ⁻¹, at most `max`.
pub fn backoff(policy: &RetryPolicy, n: u32, rng: &mut impl Rng) -> Duration {
    let ceiling = policy
        .backoff_base
        .saturating_mul(1u32.checked_shl(n.saturating_sub(1)).unwrap_or(u32::MAX))
        .min(policy.backoff_max);
    ceiling.mul_f64(rng.random())
}

/// How long the server wants us to wait; zero where it says nothing. `None`: it does not want to be asked again, or later
/// than we wait.
fn server_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    match wanted_wait(headers, now) {
        Wanted::Nothing => Some(Duration::ZERO),
        Wanted::Wait(wait) => Some(wait).filter(|wait| *wait <= MAX_SERVER_WAIT),
        Wanted::Never => None,
    }
}

/// What a server says of when it wants to be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing that can be understood.
    Nothing,
    /// After this time.
    Wait(Duration),
    Never,
}

/// Reads it from the head of a response.
pub fn wanted_wait(headers: &HeaderMap, now: SystemTime) -> Wanted {
    if let Some(pushback) = headers.get(GRPC_PUSHBACK) {
        // gRFC A6: what is negative or not a number means that there is to be no retry.
        let millis = pushback.to_str().ok().and_then(|millis| number(millis.trim()));
        return millis.map_or(Wanted::Never, |millis| Wanted::Wait(Duration::from_millis(millis)));
    }
    let Some(after) = headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok()) else {
        return Wanted::Nothing;
    };
    let after = after.trim();
    // RFC 9110 section 10.2.3: seconds or a date. A date that has passed is no wait; nonsense is as good as nothing.
    match number(after) {
        Some(seconds) => Wanted::Wait(Duration::from_secs(seconds)),
        None => httpdate::parse_http_date(after)
            .ok()
            .and_then(|date| date.duration_since(now).ok())
            .map_or(Wanted::Nothing, Wanted::Wait),
    }
}

/// Digits alone. A number that does not fit is a very large one (RFC 9111 section 1.2.2).
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::{Attempted, RetryDecision, backoff, judge, repeatable};
    use crate::model::RetryPolicy;
    use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
    use outrigger_proxy_transport::error::Reason;
    use rand::SeedableRng;
    use std::time::{Duration, SystemTime};

    const NOW: RetryDecision = RetryDecision::Retry { after: Duration::ZERO };

    fn answered(
        status: u16,
        headers: &[(&'static str, &'static str)],
        reason: Option<Reason>,
        safe: bool,
    ) -> RetryDecision {
        let headers: HeaderMap = headers
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect();
        let attempted = Attempted::Answered {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: &headers,
            reason,
        };
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        judge(&attempted, safe, &RetryPolicy::default(), now)
    }

    fn failed(reason: Reason, reused: bool, unsent: bool, safe: bool) -> RetryDecision {
        let attempted = Attempted::Failed { reason, reused, unsent };
        judge(&attempted, safe, &RetryPolicy::default(), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn statuses_only_for_what_may_be_repeated() {
        for status in [502, 503, 504] {
            assert_eq!(answered(status, &[], None, true), NOW);
            assert_eq!(answered(status, &[], None, false), RetryDecision::Final);
        }
        for status in [200, 404, 429, 500, 501] {
            assert_eq!(answered(status, &[], None, true), RetryDecision::Final);
        }
    }

    #[test]
    fn the_peer_sidecar_knows_that_nothing_was_processed() {
        assert_eq!(answered(503, &[], Some(Reason::AppUnavailable), false), NOW);
        assert_eq!(
            answered(503, &[], Some(Reason::NoEndpoints), false),
            RetryDecision::Final
        );
        let grpc = [("grpc-status", "14")];
        assert_eq!(answered(200, &grpc, Some(Reason::AppUnavailable), false), NOW);
        assert_eq!(answered(200, &grpc, None, false), RetryDecision::Final);
        assert_eq!(answered(200, &grpc, None, true), NOW);
        assert_eq!(answered(200, &[("grpc-status", "0")], None, true), RetryDecision::Final);
        assert_eq!(answered(200, &[("grpc-status", "7")], None, true), RetryDecision::Final);
    }

    #[test]
    fn servers_say_when() {
        let second = RetryDecision::Retry {
            after: Duration::from_secs(1),
        };
        assert_eq!(answered(503, &[("retry-after", "0")], None, true), NOW);
        assert_eq!(answered(503, &[("retry-after", "1")], None, true), second);
        assert_eq!(answered(503, &[("retry-after", "2")], None, true), RetryDecision::Final);
        let endless = "18446744073709551616";
        assert_eq!(
            answered(503, &[("retry-after", endless)], None, true),
            RetryDecision::Final
        );
        let date = |value| answered(503, &[("retry-after", value)], None, true);
        assert_eq!(date("Sun, 06 Nov 1994 08:49:38 GMT"), second);
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT"), NOW);
        assert_eq!(date("Sun, 06 Nov 1994 08:50:37 GMT"), RetryDecision::Final);
        assert_eq!(date("soon"), NOW);
        let pushback = |value| {
            answered(
                200,
                &[("grpc-status", "14"), ("grpc-retry-pushback-ms", value)],
                None,
                true,
            )
        };
        assert_eq!(pushback("1000"), second);
        assert_eq!(pushback("-1"), RetryDecision::Final);
        assert_eq!(pushback("+1"), RetryDecision::Final);
        assert_eq!(pushback("60000"), RetryDecision::Final);
    }

    #[test]
    fn failures() {
        for reason in [Reason::ConnectFailed, Reason::TlsFailed, Reason::UpstreamRefused] {
            assert_eq!(failed(reason, false, false, false), NOW, "{reason:?}");
        }
        for reason in [Reason::UpstreamReset, Reason::AttemptTimeout] {
            assert_eq!(failed(reason, false, false, true), NOW);
            assert_eq!(failed(reason, false, false, false), RetryDecision::Final);
        }
        assert_eq!(failed(Reason::UpstreamReset, true, false, true), RetryDecision::Replay);
        assert_eq!(failed(Reason::UpstreamReset, true, false, false), RetryDecision::Final);
        assert_eq!(
            failed(Reason::UpstreamRefused, true, true, false),
            RetryDecision::Replay
        );
        assert_eq!(failed(Reason::ClientClosed, false, false, true), RetryDecision::Final);
        assert_eq!(
            failed(Reason::IdentityUnavailable, false, true, true),
            RetryDecision::Final
        );
        assert_eq!(
            failed(Reason::UpstreamProtocol, false, false, true),
            RetryDecision::Final
        );
    }

    /// A policy's store is away: it is no different at another endpoint, and a little later.
    #[test]
    fn what_a_policy_cannot_decide_is_final() {
        let after = [("retry-after", "1")];
        let grpc = [("grpc-status", "14")];
        for (status, headers) in [(503, &after), (200, &grpc)] {
            let unavailable = Some(Reason::LimitUnavailable);
            assert_eq!(answered(status, headers, unavailable, true), RetryDecision::Final);
        }
    }

    #[test]
    fn what_may_be_repeated() {
        let mut policy = RetryPolicy::default();
        let mut headers = HeaderMap::new();
        assert!(repeatable(&Method::GET, &headers, &policy) && repeatable(&Method::DELETE, &headers, &policy));
        assert!(!repeatable(&Method::POST, &headers, &policy) && !repeatable(&Method::PATCH, &headers, &policy));
        headers.insert("idempotency-key", HeaderValue::from_static("1"));
        assert!(repeatable(&Method::POST, &headers, &policy));
        policy.non_idempotent = true;
        assert!(repeatable(&Method::POST, &HeaderMap::new(), &policy));
    }

    #[test]
    fn backoff_grows_with_full_jitter() {
        let policy = RetryPolicy {
            backoff_base: Duration::from_millis(25),
            ..RetryPolicy::default()
        };
        let mut rng = rand::rngs::SmallRng::seed_from_u64(1);
        for (n, ceiling) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (40, 250)] {
            let waits: Vec<Duration> = (0..200).map(|_| backoff(&policy, n, &mut rng)).collect();
            let ceiling = Duration::from_millis(ceiling);
            assert!(waits.iter().all(|w| *w <= ceiling));
            assert!(waits.iter().any(|w| *w > ceiling.mul_f64(0.8)) && waits.iter().any(|w| *w < ceiling.mul_f64(0.2)));
        }
    }
}
