//! How endpoints are chosen for the requests of a rule, and when one is left out: see `outbound::balance` and `outbound::ejection`.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use outrigger_api::discovery as proto;
use outrigger_api::discovery::hash_key;
use outrigger_api::policy::{
    BOUNDED_LOAD, EJECTION_TIME, FAILURES_IN_A_ROW, PENALTY, SLOW_START, SUCCESS_REQUESTS, SUCCESS_WINDOW,
};

use super::rules::within;

/// The part of a rule's policies that is about endpoints. What no policy says is `None`, so that the usual request asks no more than
/// that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Balancing {
    pub load_balancer: Option<Arc<LoadBalancer>>,
    pub ejection: Option<Arc<Ejection>>,
}

/// Which endpoint a request goes to: see `outbound::methods`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadBalancer {
    pub choice: Choice,
    pub slow_start: Option<SlowStart>,
    pub penalty: Option<Penalty>,
    pub zone: Zone,
}

/// Whether endpoints near the caller are called first: see `outbound::zones`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Zone {
    Off,
    #[default]
    Prefer,
}

/// An endpoint that comes gets its share of requests little by little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// More than nothing, up to 1 h.
    pub window: Duration,
    /// Of its share, from the beginning on: 0.01 to 1.0.
    pub least: f64,
}

/// An endpoint that is busy gets fewer requests for a while: see `outbound::penalty`.
#[derive(Clone, Debug, PartialEq)]
pub struct Penalty {
    pub statuses: Vec<u16>,
    /// Where the answer does not say it, 1 s to 1 h.
    pub duration: Duration,
    /// 1 s to 1 h.
    pub max: Duration,
}

/// How the endpoint of a request is found.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Choice {
    #[default]
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    ConsistentHash {
        keys: Vec<HashKey>,
        /// Percent of the average of requests in hand.
        bounded_load: u64,
    },
}

/// A part of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum HashKey {
    Header(HeaderName),
    Cookie(Box<str>),
    Query(Box<str>),
    Path,
    /// The pod that calls.
    Caller,
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
    pub const NONE: Self = Self {
        load_balancer: None,
        ejection: None,
    };

    /// Takes over what `nearer` says.
    pub fn adopt(&mut self, nearer: &proto::Policy) {
        if let Some(said) = &nearer.load_balancer {
            let mut load_balancer = self.load_balancer.as_deref().cloned().unwrap_or_default();
            load_balancer.adopt(said);
            self.load_balancer = Some(Arc::new(load_balancer));
        }
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

    /// What requests of the same endpoint have in common, where it is up to a hash.
    pub fn hash_keys(&self) -> Option<&[HashKey]> {
        match &self.load_balancer.as_ref()?.choice {
            Choice::ConsistentHash { keys, .. } => Some(keys),
            _ => None,
        }
    }

    /// Whether endpoints near the caller are called first.
    pub fn prefers_near(&self) -> bool {
        self.load_balancer.as_ref().is_none_or(|said| said.zone == Zone::Prefer)
    }

    /// What is done about endpoints that are busy.
    pub fn penalty(&self) -> Option<&Penalty> {
        self.load_balancer.as_ref()?.penalty.as_ref()
    }

    /// The route whose requests are counted apart, if those of this rule are.
    pub fn counters(&self) -> Option<&Arc<str>> {
        self.ejection.as_ref()?.counters.as_ref()
    }
}

impl LoadBalancer {
    /// What is not understood is as without a policy.
    fn adopt(&mut self, nearer: &proto::LoadBalancer) {
        if let Some(slow) = &nearer.slow_start {
            self.slow_start = (slow.window_ms > 0).then(|| SlowStart {
                window: within(slow.window_ms, SLOW_START),
                least: f64::from(slow.min_percent.clamp(1, 100)) / 100.0,
            });
        }
        if let Some(penalty) = &nearer.penalty {
            let statuses = penalty.statuses.iter().filter_map(|&status| u16::try_from(status).ok());
            self.penalty = (!penalty.statuses.is_empty()).then(|| Penalty {
                statuses: statuses.collect(),
                duration: within(penalty.duration_ms, PENALTY),
                max: within(penalty.max_ms, PENALTY),
            });
        }
        match nearer.zone() {
            proto::ZoneMode::Off => self.zone = Zone::Off,
            proto::ZoneMode::Prefer => self.zone = Zone::Prefer,
            proto::ZoneMode::Unspecified => {}
        }
        self.choice = match (nearer.r#type(), &nearer.consistent_hash) {
            // An unknown number is not the one that says nothing.
            (proto::LoadBalancerType::Unspecified, _) if nearer.r#type == 0 => return,
            (proto::LoadBalancerType::LeastRequest, _) => Choice::LeastRequest,
            (proto::LoadBalancerType::RoundRobin, _) => Choice::RoundRobin,
            (proto::LoadBalancerType::Random, _) => Choice::Random,
            (proto::LoadBalancerType::ConsistentHash, Some(hash)) => Choice::ConsistentHash {
                keys: hash.keys.iter().filter_map(HashKey::from_proto).collect(),
                bounded_load: u64::from(hash.bounded_load_percent)
                    .clamp(u64::from(*BOUNDED_LOAD.start()), u64::from(*BOUNDED_LOAD.end())),
            },
            (
                proto::LoadBalancerType::PeakEwma
                | proto::LoadBalancerType::Unspecified
                | proto::LoadBalancerType::ConsistentHash,
                _,
            ) => Choice::PeakEwma,
        };
    }
}

impl HashKey {
    /// `None`: no request has it.
    fn from_proto(key: &proto::HashKey) -> Option<Self> {
        match key.kind.as_ref()? {
            hash_key::Kind::Header(name) => Some(Self::Header(name.parse().ok()?)),
            hash_key::Kind::Cookie(name) => Some(Self::Cookie(name.as_str().into())),
            hash_key::Kind::Query(name) => Some(Self::Query(name.as_str().into())),
            hash_key::Kind::Path(_) => Some(Self::Path),
            hash_key::Kind::Caller(_) => Some(Self::Caller),
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::model::from_proto;

    fn ejection(failures: u32) -> proto::Policy {
        proto::Policy {
            ejection: Some(proto::Ejection {
                consecutive_failures: Some(failures),
                ..proto::Ejection::default()
            }),
            ..proto::Policy::default()
        }
    }

    #[test]
    fn a_route_counts_apart_where_its_own_policy_has_an_ejection() {
        let route = |name: &str, policy| proto::Route {
            name: name.to_owned(),
            policy,
            ..proto::Route::default()
        };
        let service = from_proto::service(&proto::Service {
            policy: Some(ejection(3)),
            routes: vec![
                route("a", None),
                route("b", Some(proto::Policy::default())),
                route("c", Some(ejection(7))),
                route("d", Some(ejection(0))),
            ],
            ..proto::Service::default()
        });
        let of = |rules: &crate::model::RouteRules| {
            let balancing = &rules.attempt.balancing;
            (
                balancing.ejection().failures,
                balancing.counters().map(ToString::to_string),
            )
        };
        let all: Vec<_> = service.routes.iter().map(|route| of(&route.rules)).collect();
        let expected = [
            (Some(3), None),
            (Some(3), None),
            (Some(7), Some("c".to_owned())),
            (None, Some("d".to_owned())),
        ];
        assert_eq!(all, expected);
        assert_eq!(of(&service.rules), (Some(3), None));
    }

    /// Of a newer controller.
    #[test]
    fn what_is_not_understood_is_as_without_a_policy() {
        let choice = |r#type: i32, keys: Option<Vec<proto::HashKey>>| {
            let mut balancing = Balancing::default();
            balancing.adopt(&proto::Policy {
                load_balancer: Some(proto::LoadBalancer {
                    r#type,
                    consistent_hash: keys.map(|keys| proto::ConsistentHash {
                        keys,
                        bounded_load_percent: 0,
                    }),
                    ..Default::default()
                }),
                ..proto::Policy::default()
            });
            balancing.load_balancer.unwrap().choice.clone()
        };
        let hash = proto::LoadBalancerType::ConsistentHash.into();
        assert_eq!(choice(4711, None), Choice::PeakEwma);
        assert_eq!(choice(hash, None), Choice::PeakEwma);
        let name = |name: &str| proto::HashKey {
            kind: Some(hash_key::Kind::Header(name.to_owned())),
        };
        let keys = vec![proto::HashKey { kind: None }, name("a b"), name("x-user")];
        let expected = Choice::ConsistentHash {
            keys: vec![HashKey::Header(HeaderName::from_static("x-user"))],
            bounded_load: 100,
        };
        assert_eq!(choice(hash, Some(keys)), expected);
    }
}
