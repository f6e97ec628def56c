//! `TrafficPolicy`: how a Service is called, in what Gateway API does not say. The same text is used in the CRD and in
//! a standalone sidecar's file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::discovery;
use crate::duration;

/// How a Service is called: retries, their budget, and timeouts. Fields that are left out keep the outer policy's value,
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
        status = "TrafficPolicyStatus",
        category = "outrigger",
        shortname = "trafficpol",
        printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
        printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].reason"}"#,
        printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// What the policy holds for: Services, HTTPRoutes or GRPCRoutes of its own namespace, or the namespace itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Whether and when a request is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// Time limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutSpec>,
}

/// An object in the policy's own namespace (Gateway API, GEP-713).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// "" for a Service or a Namespace, "gateway.networking.k8s.io" for a route.
    #[serde(default)]
    pub group: String,
    /// `Service`, `Namespace`, `HTTPRoute` or `GRPCRoute`.
    pub kind: String,
    /// The object's name. Of a Namespace: the policy's own.
    pub name: String,
}

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
    /// How many retries there may be beside the requests.
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

/// Bounds retries so that they cannot make an overload worse.
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

/// Time limits; "0s" is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeoutSpec {
    /// The whole request with all its attempts, to the last byte of the response. Default: none.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub request: Option<String>,
    /// One attempt. Default: none.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub backend_request: Option<String>,
    /// A TCP connect and TLS handshake. Default 1s.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub connect: Option<String>,
}

/// Whether the policy is in force, and why not.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicyStatus {
    /// `Accepted`: the policy is in force for all its targets. Reasons: `Accepted`, `Invalid`, `TargetNotFound`,
    /// `Conflicted` (an older policy holds for the same target).
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A condition as in Kubernetes' `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which condition.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One CamelCase word.
    pub reason: String,
    /// For a person.
    pub message: String,
    /// RFC 3339.
    pub last_transition_time: String,
    /// The generation that the condition was made for.
    #[serde(default)]
    pub observed_generation: i64,
}

impl TrafficPolicySpec {
    /// The policy as it goes to a sidecar.
    ///
    /// # Errors
    /// All mistakes, each with the path of its field.
    pub fn to_proto(&self) -> Result<discovery::Policy, Vec<String>> {
        let mut errors = Vec::new();
        let mut millis = |field: &str, text: &Option<String>| {
            text.as_ref().and_then(|text| {
                duration::parse(text)
                    .map_err(|e| errors.push(format!("{field}: {e}")))
                    .ok()
                    // At most four times 99,999 hours: far below 2^64 ms.
                    .map(|d| d.as_millis() as u64)
            })
        };
        let timeouts = self.timeouts.clone().unwrap_or_default();
        let mut policy = discovery::Policy {
            request_timeout_ms: millis("timeouts.request", &timeouts.request),
            backend_request_timeout_ms: millis("timeouts.backendRequest", &timeouts.backend_request),
            connect_timeout_ms: millis("timeouts.connect", &timeouts.connect),
            retry: None,
        };
        if let Some(retry) = &self.retry {
            let backoff = retry.backoff.clone().unwrap_or_default();
            let budget = retry.budget.clone().unwrap_or_default();
            policy.retry = Some(discovery::Retry {
                attempts: retry.attempts,
                statuses_set: retry.statuses.is_some(),
                statuses: retry.statuses.iter().flatten().map(|&s| s.into()).collect(),
                grpc_statuses: retry.grpc_statuses.iter().flatten().map(|&s| s.into()).collect(),
                backoff_base_ms: millis("retry.backoff.base", &backoff.base),
                backoff_max_ms: millis("retry.backoff.max", &backoff.max),
                budget_percent: budget.percent,
                budget_min_per_second: budget.min_per_second,
                non_idempotent: retry.non_idempotent,
                max_body_bytes: retry.max_body_bytes,
            });
            let mut at_most = |field: &str, value: Option<u64>, max: u64| {
                if let Some(value) = value.filter(|&v| v > max) {
                    errors.push(format!("retry.{field}: {value} is more than {max}"));
                }
            };
            at_most("attempts", retry.attempts.map(u64::from), 10);
            at_most("maxBodyBytes", retry.max_body_bytes, 1 << 20);
            at_most("budget.percent", budget.percent.map(u64::from), 100);
            at_most("budget.minPerSecond", budget.min_per_second.map(u64::from), 10_000);
            for status in retry.statuses.iter().flatten().filter(|s| !(400..600).contains(*s)) {
                errors.push(format!(
                    "retry.statuses: {status} is not a status of an error (400 to 599)"
                ));
            }
            for status in retry.grpc_statuses.iter().flatten().filter(|s| !(1..=16).contains(*s)) {
                errors.push(format!(
                    "retry.grpcStatuses: {status} is not a gRPC status of an error (1 to 16)"
                ));
            }
        }
        if errors.is_empty() { Ok(policy) } else { Err(errors) }
    }
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
