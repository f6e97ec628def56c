//! The rules of requests: what routes and policies say, every field decided, compiled when they arrive. Each is a field here,
//! and a line in the function that carries it out. That names all fields, so it does not compile while one is forgotten.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use outrigger_api::discovery as proto;
use outrigger_api::duration;
use outrigger_api::pattern;
use outrigger_api::policy::{BUDGET_INTERVAL, RATE_COUNT, RATE_INTERVAL};

use super::{Balancing, CallLimits, Fallback, Faults, Filters, Sessions};

/// Stands for "no limit" where a limit must be given.
const NO_CONNECT_LIMIT: Duration = Duration::from_secs(3600);
const MAX_ATTEMPTS: u32 = 10;
const MAX_BODY: u64 = 1 << 20;
const MAX_BUDGET_PER_SECOND: u32 = 10_000;

/// For the requests that take a route, or that go to a Service without routes.
#[derive(Debug, Default, PartialEq)]
pub struct RouteRules {
    pub request: RequestRules,
    pub attempt: AttemptRules,
}

/// For a request as a whole: see `outbound::request`.
#[derive(Debug, Default, PartialEq)]
pub struct RequestRules {
    /// The route's own: no outer policy has any.
    pub filters: Filters,
    /// All attempts together, to the response's last byte.
    pub timeout: Option<Duration>,
    /// Without a byte in either direction; of connections of bytes and of upgraded ones too.
    pub idle: Option<Duration>,
    /// What is done to requests on purpose.
    pub faults: Faults,
    /// What stands in for a failure.
    pub fallback: Option<Arc<Fallback>>,
    /// Of the rule alone, and so put in where it is known which one this is.
    pub sessions: Option<Arc<Sessions>>,
}

/// For each attempt: see `outbound::attempts`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptRules {
    pub retry: RetryPolicy,
    /// To the response's last byte.
    pub timeout: Option<Duration>,
    /// To the response's head, from the request's last byte.
    pub response_headers: Option<Duration>,
    /// TCP connect, TLS handshake and, in HTTP/2, the peer's SETTINGS.
    pub connect_timeout: Duration,
    /// Which endpoint it goes to.
    pub balancing: Balancing,
    /// How much is asked of the backend at a time. `None`: any number.
    pub limits: Option<Arc<CallLimits>>,
}

/// Safe by default: see `outbound::retry`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub attempts: u32,
    pub statuses: Vec<StatusCode>,
    pub grpc_statuses: Vec<u16>,
    pub backoff_base: Duration,
    pub backoff_max: Duration,
    pub budget: RetryBudget,
    pub non_idempotent: bool,
    /// Of a request's body, what is kept for further attempts, in bytes.
    pub max_body_bytes: usize,
}

/// How many retries there may be (Gateway API, GEP-3388): see `outbound::budget`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Share of the requests within `interval`, 0.0 to 1.0.
    pub ratio: f64,
    /// 1 s to 1 h.
    pub interval: Duration,
    /// Retries within `min_interval` that are allowed beside the share.
    pub min_count: u32,
    /// 1 ms to 1 h.
    pub min_interval: Duration,
}

impl RouteRules {
    /// What `policy` says, and `outer` where it says nothing. `patterns`: those of all rules of the Service together.
    pub fn from_proto(
        outer: &Self,
        policy: Option<&proto::Policy>,
        filters: Filters,
        patterns: &mut pattern::Budget,
    ) -> Self {
        let mut rules = Self {
            request: RequestRules {
                filters,
                timeout: outer.request.timeout,
                idle: outer.request.idle,
                faults: outer.request.faults.clone(),
                fallback: outer.request.fallback.clone(),
                sessions: None,
            },
            attempt: outer.attempt.clone(),
        };
        let Some(policy) = policy else {
            return rules;
        };
        let limit = |ms: u64| (ms > 0).then(|| duration::from_millis(ms));
        if let Some(ms) = policy.request_timeout_ms {
            rules.request.timeout = limit(ms);
        }
        if let Some(ms) = policy.backend_request_timeout_ms {
            rules.attempt.timeout = limit(ms);
        }
        if let Some(ms) = policy.idle_timeout_ms {
            rules.request.idle = limit(ms);
        }
        if let Some(faults) = &policy.faults {
            rules.request.faults = Faults::from_proto(faults, patterns);
        }
        if let Some(fallback) = &policy.fallback {
            rules.request.fallback = Fallback::from_proto(fallback).map(Arc::new);
        }
        if let Some(ms) = policy.response_headers_timeout_ms {
            rules.attempt.response_headers = limit(ms);
        }
        if let Some(ms) = policy.connect_timeout_ms {
            rules.attempt.connect_timeout = limit(ms).unwrap_or(NO_CONNECT_LIMIT);
        }
        if let Some(retry) = &policy.retry {
            rules.attempt.retry.adopt(retry);
        }
        rules.attempt.balancing.adopt(policy);
        if let Some(limits) = &policy.limits {
            rules.attempt.limits = CallLimits::adopt(rules.attempt.limits.as_ref(), limits);
        }
        rules
    }
}

impl Default for AttemptRules {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            timeout: None,
            response_headers: None,
            connect_timeout: Duration::from_secs(1),
            balancing: Balancing::default(),
            limits: None,
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            statuses: vec![
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ],
            grpc_statuses: vec![14],
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            budget: RetryBudget {
                ratio: 0.2,
                interval: Duration::from_secs(10),
                min_count: 10,
                min_interval: Duration::from_secs(1),
            },
            non_idempotent: false,
            max_body_bytes: 64 * 1024,
        }
    }
}

impl RetryPolicy {
    /// Takes over what `nearer` says.
    fn adopt(&mut self, nearer: &proto::Retry) {
        let statuses = nearer.statuses.iter().filter_map(|&status| {
            let status = u16::try_from(status).ok()?;
            StatusCode::from_u16(status).ok()
        });
        if nearer.statuses_set {
            self.statuses = statuses.collect();
        } else {
            for status in statuses {
                if !self.statuses.contains(&status) {
                    self.statuses.push(status);
                }
            }
        }
        if !nearer.grpc_statuses.is_empty() {
            let numbers = nearer.grpc_statuses.iter();
            self.grpc_statuses = numbers.filter_map(|&status| u16::try_from(status).ok()).collect();
        }
        if let Some(attempts) = nearer.attempts {
            self.attempts = attempts.min(MAX_ATTEMPTS);
        }
        if let Some(ms) = nearer.backoff_base_ms {
            self.backoff_base = duration::from_millis(ms);
        }
        if let Some(ms) = nearer.backoff_max_ms {
            self.backoff_max = duration::from_millis(ms);
        }
        self.backoff_max = self.backoff_max.max(self.backoff_base);
        if let Some(percent) = nearer.budget_percent {
            self.budget.ratio = f64::from(percent.min(100)) / 100.0;
        }
        if let Some(ms) = nearer.budget_interval_ms {
            self.budget.interval = within(ms, BUDGET_INTERVAL);
        }
        if let Some(rate) = &nearer.budget_min_rate {
            self.budget.min_count = rate.count.min(*RATE_COUNT.end());
            self.budget.min_interval = within(rate.interval_ms, RATE_INTERVAL);
        } else if let Some(number) = nearer.budget_min_per_second {
            self.budget.min_count = number.min(MAX_BUDGET_PER_SECOND);
            self.budget.min_interval = Duration::from_secs(1);
        }
        if let Some(also) = nearer.non_idempotent {
            self.non_idempotent = also;
        }
        if let Some(bytes) = nearer.max_body_bytes {
            // At most 1 MiB: fits every usize.
            self.max_body_bytes = bytes.min(MAX_BODY) as usize;
        }
    }
}

/// Milliseconds as another program says them, within what they may be.
pub(super) fn within(ms: u64, range: RangeInclusive<Duration>) -> Duration {
    Duration::from_millis(ms).clamp(*range.start(), *range.end())
}
