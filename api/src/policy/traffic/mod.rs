//! `TrafficPolicy`: how a Service is called, in what Gateway API does not say. The same text is used in the CRD and in
//! a standalone sidecar's file.

mod ejection;
mod fallback;
mod faults;
mod limits;
mod load_balancer;
mod retry;
mod sessions;
mod timeouts;

use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetRef;
use crate::discovery::{self, Feature};
use crate::duration;

pub use ejection::{
    DEFAULT_SUCCESS_RATE, EJECTION_TIME, EjectionSpec, FAILURES_IN_A_ROW, SUCCESS_REQUESTS, SUCCESS_WINDOW,
    SuccessRateSpec,
};
pub use fallback::{
    FALLBACK_GRPC_STATUSES, FALLBACK_STATUSES, FALLBACK_WHEN, FALLBACK_WHEN_GRPC, FallbackBackendSpec,
    FallbackHeaderSpec, FallbackReason, FallbackResponseSpec, FallbackSpec, FallbackWhenSpec, MAX_FALLBACK_BODY,
};
pub use faults::{
    ABORT_GRPC_STATUSES, ABORT_STATUSES, FAULT_DELAY, FaultAbortSpec, FaultDelaySpec, FaultHeaderSpec, FaultMatchSpec,
    FaultSpec, MAX_FAULTS,
};
pub use limits::{CallLimitsSpec, MOST_AT_A_TIME, PerEndpointSpec};
pub use load_balancer::{
    BOUNDED_LOAD, ConsistentHashSpec, DEFAULT_BOUNDED_LOAD, HashKeySpec, HashKeyType, LoadBalancerSpec,
    LoadBalancerType, MAX_HASH_KEYS, PENALTY, PenaltySpec, SLOW_START, SlowStartSpec, ZoneMode,
};
pub use retry::{
    BUDGET_INTERVAL, BackoffSpec, BudgetSpec, RATE_COUNT, RATE_INTERVAL, RetryBudgetSpec, RetryConstraintSpec,
    RetryRateSpec, RetrySpec,
};
pub use sessions::{CookieConfigSpec, CookieLifetime, SESSION_TIMEOUT, SessionPersistenceSpec, SessionPersistenceType};
pub use timeouts::TimeoutSpec;

/// How a Service is called: retries, their budget, timeouts, which endpoint a request goes to, when endpoints
/// are left out, and how much is asked of it at a time. Fields that are left out keep the outer policy's value,
/// and then the safe default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "outrigger.dev",
        version = "v1alpha1",
        kind = "TrafficPolicy",
        namespaced,
        status = "super::PolicyStatus",
        category = "outrigger",
        shortname = "trafficpol",
        printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
        printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].reason"}"#,
        printcolumn = r#"{"name":"Programmed","type":"string","jsonPath":".status.conditions[?(@.type=='Programmed')].status"}"#,
        printcolumn = r#"{"name":"Programmed-Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Programmed')].reason"}"#,
        printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
    )
)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.targetRefs)",
    "message": "targetRefs: name at least one object that the policy holds for"
}, {
    "rule": "!(has(self.retryConstraint) && has(self.retry) && has(self.retry.budget))",
    "message": "retry.budget is the older form of retryConstraint: give one of them"
}, {
    "rule": "!has(self.limits) || !(has(self.limits.maxConnections) || has(self.limits.maxPendingRequests) || has(self.limits.perEndpoint)) || !has(self.targetRefs) || self.targetRefs.all(t, t.kind != 'HTTPRoute' && t.kind != 'GRPCRoute')",
    "message": "limits of a route: it has maxRequests alone, since connections are shared by the routes of a Service"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// What the policy holds for: Services or their ports, HTTPRoutes, GRPCRoutes or their rules, or the policy's own namespace;
    /// Outrigger's own namespace stands for the whole mesh.
    // In a standalone sidecar's file there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub target_refs: Vec<TargetRef>,
    /// Whether and when a request is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// How many retries there may be beside the requests (Gateway API, GEP-3388).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_constraint: Option<RetryConstraintSpec>,
    /// Time limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutSpec>,
    /// Which endpoint a request goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSpec>,
    /// When an endpoint that fails is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection: Option<EjectionSpec>,
    /// Requests that are delayed or answered with an error on purpose, to see how an app takes it. An empty list: none, whatever an outer
    /// policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub faults: Option<Vec<FaultSpec>>,
    /// What a request is answered with in place of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<FallbackSpec>,
    /// Keeps the requests of a session at one endpoint (Gateway API, GEP-1619). Its fields count as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistenceSpec>,
    /// How much one sidecar asks for at a time; what is beyond is answered 503 at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<CallLimitsSpec>,
}

impl TrafficPolicySpec {
    /// The policy as it goes to a sidecar.
    ///
    /// # Errors
    /// All mistakes, each with the path of its field.
    pub fn to_proto(&self) -> Result<discovery::Policy, Vec<String>> {
        let mut errors = Vec::new();
        let mut policy = discovery::Policy::default();
        if let Some(timeouts) = &self.timeouts {
            timeouts.fill(&mut policy, &mut errors);
        }
        policy.retry = self.retry.as_ref().map(|retry| retry.to_proto(&mut errors));
        if let Some(constraint) = &self.retry_constraint {
            if self.retry.as_ref().is_some_and(|retry| retry.budget.is_some()) {
                errors.push("retry.budget: it is the older form of retryConstraint; give one of them".to_owned());
            }
            constraint.fill(policy.retry.get_or_insert_default(), &mut errors);
        }
        policy.load_balancer = self.load_balancer.as_ref().map(|said| said.to_proto(&mut errors));
        policy.ejection = self.ejection.as_ref().map(|ejection| ejection.to_proto(&mut errors));
        policy.faults = self.faults.as_ref().map(|said| faults::to_proto(said, &mut errors));
        policy.fallback = self.fallback.as_ref().map(|fallback| fallback.to_proto(&mut errors));
        let sessions = self.session_persistence.as_ref();
        policy.session_persistence = sessions.map(|said| said.to_proto("sessionPersistence", &mut errors));
        if let Some(limits) = &self.limits {
            let of_route = self.target_refs.iter().any(TargetRef::is_route);
            policy.limits = Some(limits.to_proto(of_route, &mut errors));
        }
        if errors.is_empty() { Ok(policy) } else { Err(errors) }
    }
}

impl discovery::Policy {
    /// This policy with what it does not say taken from `outer`, field by field. A list is one field.
    pub fn over(&self, outer: &Self) -> Self {
        Self {
            retry: match (&self.retry, &outer.retry) {
                (Some(nearer), Some(outer)) => Some(nearer.over(outer)),
                (nearer, outer) => nearer.clone().or_else(|| outer.clone()),
            },
            request_timeout_ms: self.request_timeout_ms.or(outer.request_timeout_ms),
            backend_request_timeout_ms: self.backend_request_timeout_ms.or(outer.backend_request_timeout_ms),
            connect_timeout_ms: self.connect_timeout_ms.or(outer.connect_timeout_ms),
            load_balancer: load_balancer::over(self.load_balancer.as_ref(), outer.load_balancer.as_ref()),
            ejection: ejection::over(self.ejection.as_ref(), outer.ejection.as_ref()),
            idle_timeout_ms: self.idle_timeout_ms.or(outer.idle_timeout_ms),
            response_headers_timeout_ms: self.response_headers_timeout_ms.or(outer.response_headers_timeout_ms),
            faults: self.faults.as_ref().or(outer.faults.as_ref()).cloned(),
            fallback: self.fallback.as_ref().or(outer.fallback.as_ref()).cloned(),
            session_persistence: { self.session_persistence.as_ref() }
                .or(outer.session_persistence.as_ref())
                .cloned(),
            limits: limits::over(self.limits.as_ref(), outer.limits.as_ref()),
        }
    }
}

fn millis(field: &str, text: Option<&str>, errors: &mut Vec<String>) -> Option<u64> {
    duration::parse(text?)
        .map_err(|e| errors.push(format!("{field}: {e}")))
        .ok()
        .map(to_millis)
}

fn within(
    field: &str,
    text: Option<&str>,
    range: RangeInclusive<Duration>,
    errors: &mut Vec<String>,
) -> Option<Duration> {
    duration::parse_within(text?, range)
        .map_err(|e| errors.push(format!("{field}: {e}")))
        .ok()
}

fn to_millis(duration: Duration) -> u64 {
    // At most four times 99,999 hours: far below 2^64 ms.
    duration.as_millis() as u64
}

/// What a sidecar must understand, beyond the first version of the session, to carry the policy out as it is meant; and the field
/// that says it.
pub fn needs(policy: &discovery::Policy) -> Vec<(Feature, &'static str)> {
    let retry = policy.retry.iter().filter_map(discovery::Retry::needs);
    let ejection = policy.ejection.iter().map(|_| (Feature::Ejection, "ejection"));
    let load_balancer = policy.load_balancer.iter().flat_map(load_balancer::needs);
    let limits = policy.limits.iter().map(|_| (Feature::CircuitBreaker, "limits"));
    retry
        .chain(load_balancer)
        .chain(ejection)
        .chain(limits)
        .chain(timeouts::needs(policy))
        .chain(faults::needs(policy))
        .chain(fallback::needs(policy))
        .chain(sessions::needs(policy))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::TrafficPolicySpec;

    fn parse(yaml: &str) -> TrafficPolicySpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let spec = parse(
            "retry: {attempts: 11, statuses: [200], grpcStatuses: [0], backoff: {base: soon}, budget: {percent: 200}}\n\
             timeouts: {request: 1 hour}",
        );
        let errors = spec.to_proto().unwrap_err();
        for field in [
            "timeouts.request",
            "retry.backoff.base",
            "retry.attempts",
            "retry.statuses",
            "retry.grpcStatuses",
            "retry.budget.percent",
        ] {
            assert!(errors.iter().any(|e| e.starts_with(field)), "{field} not in {errors:?}");
        }
        assert_eq!(errors.len(), 6);
    }

    #[test]
    fn absent_fields_say_nothing() {
        let policy = parse("timeouts: {request: 2s}").to_proto().unwrap();
        assert_eq!(policy.request_timeout_ms, Some(2000));
        assert_eq!(policy.backend_request_timeout_ms, None);
        assert_eq!(policy.retry, None);
        // No statuses at all is something else than the default's.
        let retry = parse("retry: {statuses: []}").to_proto().unwrap().retry.unwrap();
        assert!(retry.statuses_set && retry.statuses.is_empty());
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(serde_saphyr::from_str::<TrafficPolicySpec>("retries: {}").is_err());
    }
}
