//! How endpoints are chosen for the requests of a rule, and when one is left out: see `outbound::balance` and `outbound::ejection`.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use outrigger_api::discovery as proto;
use outrigger_api::policy::{EJECTION_TIME, FAILURES_IN_A_ROW, SUCCESS_REQUESTS, SUCCESS_WINDOW};

use super::rules::within;

/// The part of a rule's policies that is about endpoints. What no policy says is `None`, so that the usual request asks no more than
/// that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Balancing {
    pub ejection: Option<Arc<Ejection>>,
}

/// When an endpoint is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Ejection {
    /// The route whose requests are counted apart from all others. `None`: the Service's.
    pub counters: Option<Arc<str>>,
    /// Failures in a row. `None`: they eject nobody.
    pub failures: Option<u32>,
    /// Of the first ejection; of the nth n times as long.
    pub base: Duration,
    /// Of any; at least `base`.
    pub max: Duration,
    /// Of the endpoints that can be connected to, how many may be left out for what they answer.
    pub max_percent: u32,
    /// Bit n is 500 + n.
    statuses: u128,
    /// Bit n is n.
    grpc_statuses: u32,
    pub success_rate: Option<SuccessRate>,
}

/// An endpoint is left out that succeeds less often than the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// Of the others' share of successes.
    pub ratio: f64,
    /// 1 s to 1 h.
    pub window: Duration,
    /// Of the endpoint, and of the others together, within the window.
    pub min_requests: u64,
}

impl Balancing {
    /// Without a policy.
    pub const NONE: Self = Self { ejection: None };

    /// Takes over what `nearer` says.
    pub fn adopt(&mut self, nearer: &proto::Policy) {
        if let Some(said) = &nearer.ejection {
            let mut ejection = self.ejection.as_deref().unwrap_or(&Ejection::DEFAULT).clone();
            ejection.adopt(said);
            self.ejection = Some(Arc::new(ejection));
        }
    }

    /// The policy of the route itself says when endpoints are left out: its requests are counted apart.
    pub fn count_apart(&mut self, route: &Arc<str>) {
        if let Some(ejection) = &mut self.ejection {
            Arc::make_mut(ejection).counters = Some(Arc::clone(route));
        }
    }

    /// What holds, whether a policy says it or not.
    pub fn ejection(&self) -> &Ejection {
        self.ejection.as_deref().unwrap_or(&Ejection::DEFAULT)
    }

    /// The route whose requests are counted apart, if those of this rule are.
    pub fn counters(&self) -> Option<&Arc<str>> {
        self.ejection.as_ref()?.counters.as_ref()
    }
}

impl Ejection {
    /// Without a policy.
    pub const DEFAULT: Self = Self {
        counters: None,
        failures: Some(5),
        base: Duration::from_secs(10),
        max: Duration::from_secs(300),
        max_percent: 50,
        statuses: bit(502) | bit(503) | bit(504),
        grpc_statuses: 1 << 14,
        success_rate: None,
    };

    /// Whether an answer is the endpoint's failure.
    pub fn is_failure(&self, status: StatusCode, grpc: Option<u16>) -> bool {
        let grpc = grpc.is_some_and(|status| status < 32 && self.grpc_statuses >> status & 1 == 1);
        grpc || self.statuses & bit(status.as_u16()) != 0
    }

    fn adopt(&mut self, nearer: &proto::Ejection) {
        if let Some(failures) = nearer.consecutive_failures {
            self.failures = (failures > 0).then(|| failures.min(*FAILURES_IN_A_ROW.end()));
        }
        if let Some(ms) = nearer.base_ms {
            self.base = within(ms, EJECTION_TIME);
        }
        if let Some(ms) = nearer.max_ms {
            self.max = within(ms, EJECTION_TIME);
        }
        self.max = self.max.max(self.base);
        if let Some(percent) = nearer.max_percent {
            self.max_percent = percent.min(100);
        }
        if nearer.statuses_set {
            let statuses = nearer.statuses.iter().filter_map(|&status| u16::try_from(status).ok());
            self.statuses = statuses.map(bit).fold(0, |all, status| all | status);
        }
        if nearer.grpc_statuses_set {
            let statuses = nearer.grpc_statuses.iter().filter(|status| (1..=16).contains(*status));
            self.grpc_statuses = statuses.map(|status| 1 << status).fold(0, |all, status| all | status);
        }
        if let Some(rate) = &nearer.success_rate {
            self.success_rate = (rate.threshold > 0).then(|| SuccessRate {
                ratio: f64::from(rate.threshold.min(99)) / 100.0,
                window: within(rate.window_ms, SUCCESS_WINDOW),
                min_requests: rate
                    .min_requests
                    .clamp(*SUCCESS_REQUESTS.start(), *SUCCESS_REQUESTS.end())
                    .into(),
            });
        }
    }
}

/// 0 for what is not 500 to 599.
const fn bit(status: u16) -> u128 {
    if status >= 500 && status < 600 {
        1 << (status - 500)
    } else {
        0
    }
}
