//! When an endpoint that fails is left out, and for how long.

use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{to_millis, within};
use crate::discovery;
use crate::duration;

/// Of `ejection.baseEjectionTime` and `maxEjectionTime`.
pub const EJECTION_TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Of `ejection.consecutiveFailures`.
pub const FAILURES_IN_A_ROW: RangeInclusive<u32> = 0..=1000;
/// Of `ejection.successRate.window`.
pub const SUCCESS_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Of `ejection.successRate.minRequests`.
pub const SUCCESS_REQUESTS: RangeInclusive<u32> = 1..=1_000_000;
/// Of a success rate that does not say them.
pub const DEFAULT_SUCCESS_RATE: (Duration, u32) = (Duration::from_secs(10), 20);
/// What a gRPC server says when it fails itself: UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS. All others are about
/// the call: PERMISSION_DENIED, or RESOURCE_EXHAUSTED, which stands for 429.
const FAILURES_OF_SERVERS: [u16; 5] = [2, 4, 13, 14, 15];

/// When an endpoint is left out: after failures in a row, or because it succeeds less often than the others. An endpoint that
/// cannot be connected to is left out at once. When its time is over, one request is sent to it, and the others follow when that was
/// answered well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EjectionSpec {
    /// Failures in a row after which an endpoint is left out, 0 to 1,000; 0: however many there are. Default 5.
    #[schemars(range(max = 1000))]
    pub consecutive_failures: Option<u32>,
    /// How long an endpoint is left out the first time, 1s to 1h; the nth time without a success n times as long. Default 10s.
    #[schemars(
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('1s') && duration(self) <= duration('1h')",
            "message": "the time is 1s to 1h"
        }])
    )]
    pub base_ejection_time: Option<String>,
    /// How long an endpoint is left out at most, 1s to 1h, and at least `baseEjectionTime`. Default 300s.
    #[schemars(
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('1s') && duration(self) <= duration('1h')",
            "message": "the time is 1s to 1h"
        }])
    )]
    pub max_ejection_time: Option<String>,
    /// How many of the endpoints that can be connected to may be left out for what they answer, in percent; but for 0, one of two or more
    /// always may, and never the last. Where more of them fail, all are used. Default 50.
    #[schemars(range(max = 100))]
    pub max_ejected_percent: Option<u32>,
    /// Statuses that are failures, instead of 502, 503 and 504; each 500 to 599. Others, like 403 or 429, are answers.
    #[schemars(length(max = 32), inner(range(min = 500, max = 599)))]
    pub statuses: Option<Vec<u16>>,
    /// gRPC statuses that are failures, by number, instead of 14 (UNAVAILABLE): 2, 4, 13, 14, 15.
    #[schemars(length(max = 5), inner(range(min = 2, max = 15)))]
    pub grpc_statuses: Option<Vec<u16>>,
    /// Also leaves out an endpoint that succeeds less often than the others. Default: off. All of its fields count as one: where one is
    /// left out, its default holds, and not the outer policy's.
    pub success_rate: Option<SuccessRateSpec>,
}

/// Compares each endpoint with the others together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRateSpec {
    /// An endpoint is left out whose share of successes is less than so many percent of the others' share, by more than chance
    /// explains; 0: off.
    #[schemars(range(max = 99))]
    pub threshold: u32,
    /// Over which time, 1s to 1h. Default 10s.
    #[schemars(
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('1s') && duration(self) <= duration('1h')",
            "message": "the window is 1s to 1h"
        }])
    )]
    pub window: Option<String>,
    /// How many requests the endpoint, and the others together, must have had within the window. Default 20.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
}

impl EjectionSpec {
    pub(super) fn to_proto(&self, errors: &mut Vec<String>) -> discovery::Ejection {
        if let Some(failures) = self.consecutive_failures.filter(|n| !FAILURES_IN_A_ROW.contains(n)) {
            let most = FAILURES_IN_A_ROW.end();
            errors.push(format!("ejection.consecutiveFailures: {failures} is more than {most}"));
        }
        if let Some(percent) = self.max_ejected_percent.filter(|&p| p > 100) {
            errors.push(format!("ejection.maxEjectedPercent: {percent} is more than 100"));
        }
        let statuses = self.statuses.iter().flatten();
        for status in statuses.clone().filter(|s| !(500..600).contains(*s)) {
            errors.push(format!(
                "ejection.statuses: {status} is not a status of a server's error (500 to 599)"
            ));
        }
        let grpc = self.grpc_statuses.iter().flatten();
        for status in grpc.clone().filter(|s| !FAILURES_OF_SERVERS.contains(s)) {
            errors.push(format!(
                "ejection.grpcStatuses: {status} is none of {FAILURES_OF_SERVERS:?}; the others are answers"
            ));
        }
        let base = within(
            "ejection.baseEjectionTime",
            self.base_ejection_time.as_deref(),
            EJECTION_TIME,
            errors,
        );
        let max = within(
            "ejection.maxEjectionTime",
            self.max_ejection_time.as_deref(),
            EJECTION_TIME,
            errors,
        );
        if base.zip(max).is_some_and(|(base, max)| max < base) {
            errors.push("ejection.maxEjectionTime: it is less than baseEjectionTime".to_owned());
        }
        discovery::Ejection {
            consecutive_failures: self.consecutive_failures,
            base_ms: base.map(to_millis),
            max_ms: max.map(to_millis),
            max_percent: self.max_ejected_percent,
            statuses_set: self.statuses.is_some(),
            statuses: statuses.map(|&s| s.into()).collect(),
            grpc_statuses_set: self.grpc_statuses.is_some(),
            grpc_statuses: grpc.map(|&s| s.into()).collect(),
            success_rate: self.success_rate.as_ref().map(|rate| rate.to_proto(errors)),
        }
    }
}

impl SuccessRateSpec {
    fn to_proto(&self, errors: &mut Vec<String>) -> discovery::SuccessRate {
        let (window, requests) = DEFAULT_SUCCESS_RATE;
        if self.threshold > 99 {
            errors.push(format!(
                "ejection.successRate.threshold: {} is more than 99",
                self.threshold
            ));
        }
        let min_requests = self.min_requests.unwrap_or(requests);
        if !SUCCESS_REQUESTS.contains(&min_requests) {
            let (least, most) = SUCCESS_REQUESTS.into_inner();
            errors.push(format!(
                "ejection.successRate.minRequests: {min_requests} is not {least} to {most}"
            ));
        }
        let said = within(
            "ejection.successRate.window",
            self.window.as_deref(),
            SUCCESS_WINDOW,
            errors,
        );
        discovery::SuccessRate {
            threshold: self.threshold,
            window_ms: to_millis(said.unwrap_or(window)),
            min_requests,
        }
    }
}

/// What is nearer, and what it does not say from `outer`.
pub(super) fn over(
    nearer: Option<&discovery::Ejection>,
    outer: Option<&discovery::Ejection>,
) -> Option<discovery::Ejection> {
    let (Some(nearer), Some(outer)) = (nearer, outer) else {
        return nearer.or(outer).cloned();
    };
    let one_of = |nearer_says: bool| if nearer_says { nearer } else { outer };
    let (statuses, grpc) = (one_of(nearer.statuses_set), one_of(nearer.grpc_statuses_set));
    Some(discovery::Ejection {
        consecutive_failures: nearer.consecutive_failures.or(outer.consecutive_failures),
        base_ms: nearer.base_ms.or(outer.base_ms),
        max_ms: nearer.max_ms.or(outer.max_ms),
        max_percent: nearer.max_percent.or(outer.max_percent),
        statuses: statuses.statuses.clone(),
        statuses_set: statuses.statuses_set,
        grpc_statuses: grpc.grpc_statuses.clone(),
        grpc_statuses_set: grpc.grpc_statuses_set,
        success_rate: nearer.success_rate.or(outer.success_rate),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{TrafficPolicySpec, needs};
    use crate::discovery::{Ejection, Feature, SuccessRate};

    fn parse(yaml: &str) -> TrafficPolicySpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn ejection(yaml: &str) -> Ejection {
        let policy = parse(&format!("ejection: {yaml}")).to_proto().unwrap();
        assert_eq!(needs(&policy), [(Feature::Ejection, "ejection")]);
        policy.ejection.unwrap()
    }

    #[test]
    fn what_is_said_and_what_is_not() {
        assert_eq!(ejection("{}"), Ejection::default());
        assert_eq!(parse("{}").to_proto().unwrap().ejection, None);
        let all = "{consecutiveFailures: 3, baseEjectionTime: 5s, maxEjectionTime: 1m, maxEjectedPercent: 20, statuses: [500], \
                   grpcStatuses: [], successRate: {threshold: 80}}";
        let expected = Ejection {
            consecutive_failures: Some(3),
            base_ms: Some(5000),
            max_ms: Some(60_000),
            max_percent: Some(20),
            statuses: vec![500],
            statuses_set: true,
            grpc_statuses: Vec::new(),
            grpc_statuses_set: true,
            success_rate: Some(SuccessRate {
                threshold: 80,
                window_ms: 10_000,
                min_requests: 20,
            }),
        };
        assert_eq!(ejection(all), expected);
    }

    #[test]
    fn mistakes_with_their_fields() {
        for (spec, field) in [
            ("{consecutiveFailures: 1001}", "consecutiveFailures"),
            ("{baseEjectionTime: 999ms}", "baseEjectionTime"),
            ("{maxEjectionTime: 2h}", "maxEjectionTime"),
            ("{baseEjectionTime: 2m, maxEjectionTime: 1m}", "maxEjectionTime"),
            ("{maxEjectedPercent: 101}", "maxEjectedPercent"),
            ("{statuses: [429]}", "statuses"),
            ("{statuses: [600]}", "statuses"),
            // PERMISSION_DENIED and RESOURCE_EXHAUSTED.
            ("{grpcStatuses: [7]}", "grpcStatuses"),
            ("{grpcStatuses: [8]}", "grpcStatuses"),
            ("{successRate: {threshold: 100}}", "successRate.threshold"),
            ("{successRate: {threshold: 50, window: 0s}}", "successRate.window"),
            (
                "{successRate: {threshold: 50, minRequests: 0}}",
                "successRate.minRequests",
            ),
        ] {
            let errors = parse(&format!("ejection: {spec}")).to_proto().unwrap_err();
            assert!(
                errors.len() == 1 && errors[0].starts_with(&format!("ejection.{field}: ")),
                "{errors:?}"
            );
        }
    }

    #[test]
    fn what_is_nearer_wins_field_by_field() {
        let policy = |yaml: &str| parse(yaml).to_proto().unwrap();
        let outer = policy(
            "ejection: {consecutiveFailures: 3, maxEjectedPercent: 20, statuses: [500], grpcStatuses: [13], \
             successRate: {threshold: 80, window: 1m}}",
        );
        let nearer = policy("ejection: {consecutiveFailures: 4, statuses: [], successRate: {threshold: 0}}");
        let merged = nearer.over(&outer).ejection.unwrap();
        let expected = ejection(
            "{consecutiveFailures: 4, maxEjectedPercent: 20, statuses: [], grpcStatuses: [13], successRate: {threshold: 0}}",
        );
        assert_eq!(merged, expected);
        for (one, other) in [(&outer, &policy("{}")), (&policy("{}"), &outer)] {
            assert_eq!(one.over(other).ejection, outer.ejection);
        }
    }
}
