//! When a request is tried again, and how often at most.

use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{millis, to_millis, within};
use crate::discovery::{self, Feature};
use crate::duration;

/// Of `retryConstraint.budget`, as GEP-3388 has it.
pub const BUDGET_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Of `retryConstraint.minRetryRate`, as GEP-3388 has it.
pub const RATE_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// Of `retryConstraint.minRetryRate`, as GEP-3388 has it.
pub const RATE_COUNT: RangeInclusive<u32> = 1..=1_000_000;
/// Of a rate that does not say them.
const DEFAULT_RATE: (u32, Duration) = (10, Duration::from_secs(1));
/// Retries a second that an older sidecar can be told.
const MAX_PER_SECOND: u32 = 10_000;

/// Whether and when a request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrySpec {
    /// Attempts after the first, 0 to 10. Default 2.
    #[schemars(range(max = 10))]
    pub attempts: Option<u32>,
    /// Statuses that are tried again, instead of 502, 503 and 504; each 400 to 599.
    #[schemars(length(max = 32))]
    pub statuses: Option<Vec<u16>>,
    /// gRPC statuses that are tried again, by number; default 14 (UNAVAILABLE).
    #[schemars(length(max = 17))]
    pub grpc_statuses: Option<Vec<u16>>,
    /// How long to wait between attempts.
    pub backoff: Option<BackoffSpec>,
    /// The older form of `retryConstraint`.
    pub budget: Option<BudgetSpec>,
    /// Also tries methods again that are not idempotent (RFC 9110 section 9.2.2). Default false.
    pub non_idempotent: Option<bool>,
    /// Bytes of a request's body that are kept for another attempt, up to 1 MiB; a larger body is sent once.
    /// Default 65,536.
    #[schemars(range(max = 1048576))]
    pub max_body_bytes: Option<u64>,
}

/// Exponential backoff with full jitter: before retry n, a random time up to `base` × 2ⁿ⁻¹, at most `max`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackoffSpec {
    /// Default 25ms.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub base: Option<String>,
    /// Default 250ms.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub max: Option<String>,
}

/// The older form of [`RetryConstraintSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BudgetSpec {
    /// Retries as a share of the requests of the last ten seconds, 0 to 100. Default 20.
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// Retries a second that are allowed whatever the share, so that a quiet Service has some. Default 10.
    #[schemars(range(max = 10000))]
    pub min_per_second: Option<u32>,
}

/// Bounds retries so that they cannot make an overload worse: beyond the budget and the rate together, nothing is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryConstraintSpec {
    /// Retries as a share of the requests.
    pub budget: Option<RetryBudgetSpec>,
    /// Retries that are allowed beside the budget, so that a quiet Service has some. Default: 10 in 1s. Both of its fields count
    /// as one: where one is left out, its default holds, and not the outer policy's.
    pub min_retry_rate: Option<RetryRateSpec>,
}

/// Retries as a share of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudgetSpec {
    /// The share, 0 to 100. Default 20.
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// The time over which requests and retries are counted, 1s to 1h. Default 10s.
    #[schemars(
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('1s') && duration(self) <= duration('1h')",
            "message": "the interval is 1s to 1h"
        }])
    )]
    pub interval: Option<String>,
}

/// So many in a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryRateSpec {
    /// How many, 1 to 1,000,000. Default 10.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub count: Option<u32>,
    /// In which time, up to 1h. Default 1s.
    #[schemars(
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) > duration('0s') && duration(self) <= duration('1h')",
            "message": "the interval is more than nothing, and at most 1h"
        }])
    )]
    pub interval: Option<String>,
}

impl RetrySpec {
    pub(super) fn to_proto(&self, errors: &mut Vec<String>) -> discovery::Retry {
        let backoff = self.backoff.clone().unwrap_or_default();
        let budget = self.budget.clone().unwrap_or_default();
        let mut at_most = |field: &str, value: Option<u64>, max: u64| {
            if let Some(value) = value.filter(|&v| v > max) {
                errors.push(format!("retry.{field}: {value} is more than {max}"));
            }
        };
        at_most("attempts", self.attempts.map(u64::from), 10);
        at_most("maxBodyBytes", self.max_body_bytes, 1 << 20);
        at_most("budget.percent", budget.percent.map(u64::from), 100);
        at_most(
            "budget.minPerSecond",
            budget.min_per_second.map(u64::from),
            MAX_PER_SECOND.into(),
        );
        for status in self.statuses.iter().flatten().filter(|s| !(400..600).contains(*s)) {
            errors.push(format!(
                "retry.statuses: {status} is not a status of an error (400 to 599)"
            ));
        }
        for status in self.grpc_statuses.iter().flatten().filter(|s| !(1..=16).contains(*s)) {
            errors.push(format!(
                "retry.grpcStatuses: {status} is not a gRPC status of an error (1 to 16)"
            ));
        }
        discovery::Retry {
            attempts: self.attempts,
            statuses_set: self.statuses.is_some(),
            statuses: self.statuses.iter().flatten().map(|&s| s.into()).collect(),
            grpc_statuses: self.grpc_statuses.iter().flatten().map(|&s| s.into()).collect(),
            backoff_base_ms: millis("retry.backoff.base", backoff.base.as_deref(), errors),
            backoff_max_ms: millis("retry.backoff.max", backoff.max.as_deref(), errors),
            budget_percent: budget.percent,
            budget_min_per_second: budget.min_per_second,
            non_idempotent: self.non_idempotent,
            max_body_bytes: self.max_body_bytes,
            budget_interval_ms: None,
            budget_min_rate: None,
        }
    }
}

impl RetryConstraintSpec {
    pub(super) fn fill(&self, retry: &mut discovery::Retry, errors: &mut Vec<String>) {
        if let Some(budget) = &self.budget {
            if let Some(percent) = budget.percent.filter(|&p| p > 100) {
                errors.push(format!("retryConstraint.budget.percent: {percent} is more than 100"));
            }
            retry.budget_percent = budget.percent;
            let interval = within(
                "retryConstraint.budget.interval",
                budget.interval.as_deref(),
                BUDGET_INTERVAL,
                errors,
            );
            retry.budget_interval_ms = interval.map(to_millis);
        }
        if let Some(rate) = &self.min_retry_rate {
            let count = rate.count.unwrap_or(DEFAULT_RATE.0);
            if !RATE_COUNT.contains(&count) {
                let (least, most) = RATE_COUNT.into_inner();
                errors.push(format!(
                    "retryConstraint.minRetryRate.count: {count} is not {least} to {most}"
                ));
            }
            let interval = within(
                "retryConstraint.minRetryRate.interval",
                rate.interval.as_deref(),
                RATE_INTERVAL,
                errors,
            );
            let interval_ms = to_millis(interval.unwrap_or(DEFAULT_RATE.1));
            // For sidecars that do not know the rate: fewer rather than more.
            let per_second = u64::from(count) * 1000 / interval_ms;
            retry.budget_min_per_second =
                Some(u32::try_from(per_second).map_or(MAX_PER_SECOND, |n| n.min(MAX_PER_SECOND)));
            retry.budget_min_rate = Some(discovery::RetryRate { count, interval_ms });
        }
    }
}

impl discovery::Retry {
    pub(super) fn over(&self, outer: &Self) -> Self {
        let one_of = |nearer_says: bool| if nearer_says { self } else { outer };
        let statuses = one_of(self.statuses_set || !self.statuses.is_empty());
        let grpc = one_of(!self.grpc_statuses.is_empty());
        // One thing in two words.
        let rate = one_of(self.budget_min_per_second.is_some() || self.budget_min_rate.is_some());
        Self {
            attempts: self.attempts.or(outer.attempts),
            statuses: statuses.statuses.clone(),
            statuses_set: statuses.statuses_set,
            grpc_statuses: grpc.grpc_statuses.clone(),
            backoff_base_ms: self.backoff_base_ms.or(outer.backoff_base_ms),
            backoff_max_ms: self.backoff_max_ms.or(outer.backoff_max_ms),
            budget_percent: self.budget_percent.or(outer.budget_percent),
            budget_interval_ms: self.budget_interval_ms.or(outer.budget_interval_ms),
            budget_min_per_second: rate.budget_min_per_second,
            budget_min_rate: rate.budget_min_rate,
            non_idempotent: self.non_idempotent.or(outer.non_idempotent),
            max_body_bytes: self.max_body_bytes.or(outer.max_body_bytes),
        }
    }

    /// What a sidecar must understand to keep to the budget, and the field that says it.
    pub(super) fn needs(&self) -> Option<(Feature, &'static str)> {
        // What an older sidecar understands all the same: ten seconds, and a whole number in one second.
        let interval = self.budget_interval_ms.is_some_and(|ms| ms != 10_000);
        let rate = self.budget_min_rate.as_ref();
        let constrained = interval || rate.is_some_and(|rate| rate.interval_ms != 1000 || rate.count > MAX_PER_SECOND);
        constrained.then_some((Feature::RetryConstraint, "retryConstraint"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TrafficPolicySpec, needs};

    fn parse(yaml: &str) -> TrafficPolicySpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn the_constraint_says_what_the_budget_says_and_more() {
        let older = parse("retry: {budget: {percent: 30, minPerSecond: 5}}")
            .to_proto()
            .unwrap();
        let retry = older.retry.clone().unwrap();
        assert_eq!((retry.budget_percent, retry.budget_min_per_second), (Some(30), Some(5)));
        assert_eq!((retry.budget_interval_ms, retry.budget_min_rate), (None, None));
        for (constraint, percent, interval, rate, per_second, needed) in [
            ("{}", None, None, None, None, false),
            ("{budget: {percent: 0}}", Some(0), None, None, None, false),
            (
                "{budget: {percent: 30, interval: 10s}}",
                Some(30),
                Some(10_000),
                None,
                None,
                false,
            ),
            ("{budget: {interval: 1h}}", None, Some(3_600_000), None, None, true),
            ("{minRetryRate: {}}", None, None, Some((10, 1000)), Some(10), false),
            (
                "{minRetryRate: {count: 5}}",
                None,
                None,
                Some((5, 1000)),
                Some(5),
                false,
            ),
            (
                "{minRetryRate: {count: 30, interval: 1m}}",
                None,
                None,
                Some((30, 60_000)),
                Some(0),
                true,
            ),
            (
                "{minRetryRate: {interval: 500ms}}",
                None,
                None,
                Some((10, 500)),
                Some(20),
                true,
            ),
            (
                "{minRetryRate: {count: 1000000}}",
                None,
                None,
                Some((1_000_000, 1000)),
                Some(10_000),
                true,
            ),
        ] {
            let policy = parse(&format!("retryConstraint: {constraint}")).to_proto().unwrap();
            let retry = policy.retry.clone().unwrap();
            assert_eq!(
                (retry.budget_percent, retry.budget_interval_ms),
                (percent, interval),
                "{constraint}"
            );
            let said = retry.budget_min_rate.map(|rate| (rate.count, rate.interval_ms));
            assert_eq!((said, retry.budget_min_per_second), (rate, per_second), "{constraint}");
            assert_eq!(!needs(&policy).is_empty(), needed, "{constraint}");
        }
        assert!(needs(&older).is_empty());
    }

    #[test]
    fn mistakes_of_the_constraint() {
        for (spec, field) in [
            (
                "retryConstraint: {budget: {percent: 101}}",
                "retryConstraint.budget.percent",
            ),
            (
                "retryConstraint: {budget: {interval: 999ms}}",
                "retryConstraint.budget.interval",
            ),
            (
                "retryConstraint: {budget: {interval: 1h1ms}}",
                "retryConstraint.budget.interval",
            ),
            (
                "retryConstraint: {budget: {interval: soon}}",
                "retryConstraint.budget.interval",
            ),
            (
                "retryConstraint: {minRetryRate: {count: 0}}",
                "retryConstraint.minRetryRate.count",
            ),
            (
                "retryConstraint: {minRetryRate: {count: 1000001}}",
                "retryConstraint.minRetryRate.count",
            ),
            (
                "retryConstraint: {minRetryRate: {interval: 0s}}",
                "retryConstraint.minRetryRate.interval",
            ),
            (
                "retryConstraint: {minRetryRate: {interval: 61m}}",
                "retryConstraint.minRetryRate.interval",
            ),
            ("{retry: {budget: {}}, retryConstraint: {}}", "retry.budget"),
        ] {
            let errors = parse(spec).to_proto().unwrap_err();
            assert!(errors.len() == 1 && errors[0].starts_with(field), "{spec}: {errors:?}");
        }
    }
}
