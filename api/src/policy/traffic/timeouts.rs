//! How long a request may take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::millis;
use crate::discovery::{self, Feature};
use crate::duration;

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
    /// Without a byte in either direction: of a request and its response, an upgraded connection (WebSocket), and a connection of
    /// bytes (TCP). A stream that is quiet by nature ends too: HTTP/2 and gRPC keepalive pings do not count. Default: none.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub idle: Option<String>,
    /// Of one attempt: from the last byte of the request to the head of the response. Default: none.
    #[schemars(regex(pattern = duration::PATTERN))]
    pub response_headers: Option<String>,
}

impl TimeoutSpec {
    pub(super) fn fill(&self, policy: &mut discovery::Policy, errors: &mut Vec<String>) {
        let mut millis = |field: &str, text: &Option<String>| millis(field, text.as_deref(), errors);
        policy.request_timeout_ms = millis("timeouts.request", &self.request);
        policy.backend_request_timeout_ms = millis("timeouts.backendRequest", &self.backend_request);
        policy.connect_timeout_ms = millis("timeouts.connect", &self.connect);
        policy.idle_timeout_ms = millis("timeouts.idle", &self.idle);
        policy.response_headers_timeout_ms = millis("timeouts.responseHeaders", &self.response_headers);
    }
}

/// What a sidecar must understand for the limits, and the field that says each. "0s" is what it does anyway.
pub(super) fn needs(policy: &discovery::Policy) -> impl Iterator<Item = (Feature, &'static str)> {
    let of = |ms: Option<u64>, field| ms.filter(|&ms| ms > 0).map(|_| (Feature::MoreTimeouts, field));
    let idle = of(policy.idle_timeout_ms, "timeouts.idle");
    let headers = of(policy.response_headers_timeout_ms, "timeouts.responseHeaders");
    idle.into_iter().chain(headers)
}

#[cfg(test)]
mod tests {
    use super::super::{TrafficPolicySpec, needs};

    #[test]
    fn what_an_older_sidecar_does_not_know_is_named() {
        for (timeouts, said, needed) in [
            ("{request: 1s}", (None, None), &[][..]),
            ("{idle: 0s, responseHeaders: 0s}", (Some(0), Some(0)), &[]),
            ("{idle: 1m}", (Some(60_000), None), &["timeouts.idle"]),
            (
                "{responseHeaders: 2s}",
                (None, Some(2000)),
                &["timeouts.responseHeaders"],
            ),
        ] {
            let spec: TrafficPolicySpec = serde_saphyr::from_str(&format!("timeouts: {timeouts}")).unwrap();
            let policy = spec.to_proto().unwrap();
            assert_eq!(
                (policy.idle_timeout_ms, policy.response_headers_timeout_ms),
                said,
                "{timeouts}"
            );
            let fields: Vec<_> = needs(&policy).into_iter().map(|(_, field)| field).collect();
            assert_eq!(fields, needed, "{timeouts}");
            // What is nearer wins, also with "no limit".
            let over = policy.over(&spec_of("{idle: 5s, responseHeaders: 5s}"));
            assert_eq!(over.idle_timeout_ms, said.0.or(Some(5000)), "{timeouts}");
            assert_eq!(over.response_headers_timeout_ms, said.1.or(Some(5000)), "{timeouts}");
        }
    }

    fn spec_of(timeouts: &str) -> crate::discovery::Policy {
        let spec: TrafficPolicySpec = serde_saphyr::from_str(&format!("timeouts: {timeouts}")).unwrap();
        spec.to_proto().unwrap()
    }
}
