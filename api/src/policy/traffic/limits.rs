//! How much one sidecar asks of a Service at a time (a circuit breaker by limits).

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::discovery;

/// Of each limit; 0: none.
pub const MOST_AT_A_TIME: RangeInclusive<u32> = 0..=1_000_000;

/// How much one sidecar asks of a backend at a time, all of its workers together. What is beyond is answered 503 `overloaded` with
/// `Retry-After` at once, and a connection of bytes is reset. Each is 1 to 1,000,000, or 0: no limit. Default: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CallLimitsSpec {
    /// Connections that are open to the backend, idle ones too. A request that needs one more waits for one; see `maxPendingRequests`.
    #[schemars(range(max = 1_000_000))]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection: for one that is being made, or because there may be no more of them.
    #[schemars(range(max = 1_000_000))]
    pub max_pending_requests: Option<u32>,
    /// Requests that are not answered to the last byte. In the policy of a route or of its rule: those of the route or rule alone.
    #[schemars(range(max = 1_000_000))]
    pub max_requests: Option<u32>,
    /// The same for each endpoint: another one is asked in its place.
    pub per_endpoint: Option<PerEndpointSpec>,
}

/// Limits of each endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PerEndpointSpec {
    /// Connections that are open to it, idle ones too.
    #[schemars(range(max = 1_000_000))]
    pub max_connections: Option<u32>,
    /// Requests that it has not answered to the last byte.
    #[schemars(range(max = 1_000_000))]
    pub max_requests: Option<u32>,
}

impl CallLimitsSpec {
    pub(super) fn to_proto(&self, of_route: bool, errors: &mut Vec<String>) -> discovery::CallLimits {
        let endpoint = self.per_endpoint.clone().unwrap_or_default();
        for (field, limit) in [
            ("maxConnections", self.max_connections),
            ("maxPendingRequests", self.max_pending_requests),
            ("maxRequests", self.max_requests),
            ("perEndpoint.maxConnections", endpoint.max_connections),
            ("perEndpoint.maxRequests", endpoint.max_requests),
        ] {
            let Some(limit) = limit else { continue };
            if !MOST_AT_A_TIME.contains(&limit) {
                let most = MOST_AT_A_TIME.end();
                errors.push(format!("limits.{field}: {limit} is more than {most}"));
            }
            if of_route && field != "maxRequests" {
                errors.push(format!(
                    "limits.{field}: a route has maxRequests alone, since connections are shared by the routes of a Service"
                ));
            }
        }
        discovery::CallLimits {
            max_connections: self.max_connections,
            max_pending_requests: self.max_pending_requests,
            max_requests: self.max_requests,
            endpoint_max_connections: endpoint.max_connections,
            endpoint_max_requests: endpoint.max_requests,
        }
    }
}

/// What is nearer, and what it does not say from `outer`.
pub(super) fn over(
    nearer: Option<&discovery::CallLimits>,
    outer: Option<&discovery::CallLimits>,
) -> Option<discovery::CallLimits> {
    let (Some(nearer), Some(outer)) = (nearer, outer) else {
        return nearer.or(outer).cloned();
    };
    Some(discovery::CallLimits {
        max_connections: nearer.max_connections.or(outer.max_connections),
        max_pending_requests: nearer.max_pending_requests.or(outer.max_pending_requests),
        max_requests: nearer.max_requests.or(outer.max_requests),
        endpoint_max_connections: nearer.endpoint_max_connections.or(outer.endpoint_max_connections),
        endpoint_max_requests: nearer.endpoint_max_requests.or(outer.endpoint_max_requests),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{TrafficPolicySpec, needs};
    use crate::discovery::{CallLimits, Feature};

    fn parse(yaml: &str) -> Result<crate::discovery::Policy, Vec<String>> {
        serde_saphyr::from_str::<TrafficPolicySpec>(yaml).unwrap().to_proto()
    }

    #[test]
    fn what_is_said_and_what_is_not() {
        assert_eq!(parse("{}").unwrap().limits, None);
        let all = "limits: {maxConnections: 1, maxPendingRequests: 2, maxRequests: 0, perEndpoint: {maxConnections: 4, maxRequests: 5}}";
        let policy = parse(all).unwrap();
        assert_eq!(needs(&policy), [(Feature::CircuitBreaker, "limits")]);
        let expected = CallLimits {
            max_connections: Some(1),
            max_pending_requests: Some(2),
            max_requests: Some(0),
            endpoint_max_connections: Some(4),
            endpoint_max_requests: Some(5),
        };
        assert_eq!(policy.limits, Some(expected));
    }

    #[test]
    fn mistakes_with_their_fields() {
        let service = "targetRefs: [{group: '', kind: Service, name: orders}]";
        let route = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: orders}]";
        for (target, limits, field) in [
            (service, "{maxConnections: 1000001}", Some("maxConnections")),
            (service, "{maxPendingRequests: 1000001}", Some("maxPendingRequests")),
            (service, "{maxRequests: 1000001}", Some("maxRequests")),
            (
                service,
                "{perEndpoint: {maxConnections: 1000001}}",
                Some("perEndpoint.maxConnections"),
            ),
            (
                service,
                "{perEndpoint: {maxRequests: 1000001}}",
                Some("perEndpoint.maxRequests"),
            ),
            (route, "{maxRequests: 10}", None),
            (route, "{maxConnections: 10}", Some("maxConnections")),
            (route, "{maxPendingRequests: 10}", Some("maxPendingRequests")),
            (
                route,
                "{perEndpoint: {maxConnections: 10}}",
                Some("perEndpoint.maxConnections"),
            ),
            (
                route,
                "{perEndpoint: {maxRequests: 10}}",
                Some("perEndpoint.maxRequests"),
            ),
        ] {
            let errors = parse(&format!("{target}\nlimits: {limits}")).err().unwrap_or_default();
            assert_eq!(errors.len(), usize::from(field.is_some()), "{limits}: {errors:?}");
            for (error, field) in errors.iter().zip(field) {
                assert!(error.starts_with(&format!("limits.{field}: ")), "{error}");
            }
        }
    }

    #[test]
    fn what_is_nearer_wins_field_by_field() {
        let outer = parse("limits: {maxConnections: 1, maxRequests: 2, perEndpoint: {maxRequests: 3}}").unwrap();
        let nearer =
            parse("limits: {maxRequests: 0, maxPendingRequests: 4, perEndpoint: {maxConnections: 5}}").unwrap();
        let merged = "limits: {maxConnections: 1, maxRequests: 0, maxPendingRequests: 4, perEndpoint: {maxConnections: 5, maxRequests: 3}}";
        assert_eq!(nearer.over(&outer).limits, parse(merged).unwrap().limits);
        let nothing = parse("{}").unwrap();
        for (one, other) in [(&outer, &nothing), (&nothing, &outer)] {
            assert_eq!(one.over(other).limits, outer.limits);
        }
    }
}
