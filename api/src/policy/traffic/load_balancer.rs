//! Which endpoint a request goes to.

use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{to_millis, within};
use crate::discovery::{self, Feature, hash_key};
use crate::duration;
use crate::policy::access::no_header;

/// Of `loadBalancer.consistentHash.boundedLoad`, in percent.
pub const BOUNDED_LOAD: RangeInclusive<u32> = 100..=10_000;
/// Of a consistent hash that does not say it.
pub const DEFAULT_BOUNDED_LOAD: u32 = 125;
/// Of `loadBalancer.slowStart.window`.
pub const SLOW_START: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// Of `loadBalancer.penalty.duration` and `max`.
pub const PENALTY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Of a slow start that does not say it.
const DEFAULT_MIN_PERCENT: u32 = 10;
/// Of a penalty that does not say them: the statuses, for how long, and at most.
const DEFAULT_PENALTY: ([u16; 2], Duration, Duration) = ([429, 503], Duration::from_secs(5), Duration::from_secs(300));
/// Parts of a request that one hash is made of.
pub const MAX_HASH_KEYS: usize = 4;
/// Bytes of a name of a header, a cookie or a parameter.
const MAX_NAME: usize = 256;

/// Which endpoint a request goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.type) || self.type != 'ConsistentHash' || has(self.consistentHash)",
    "message": "type ConsistentHash needs consistentHash.keys"
}, {
    "rule": "!has(self.consistentHash) || (has(self.type) && self.type == 'ConsistentHash')",
    "message": "consistentHash needs type: ConsistentHash beside it"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancerSpec {
    /// How the endpoint of a request is found. Default `PeakEWMA`.
    #[serde(rename = "type")]
    pub method: Option<LoadBalancerType>,
    /// Which requests go to the same endpoint, for `ConsistentHash`.
    pub consistent_hash: Option<ConsistentHashSpec>,
    /// Gives an endpoint that comes its share of requests little by little. Default: off. Its fields count as one.
    pub slow_start: Option<SlowStartSpec>,
    /// Gives an endpoint that says it is busy fewer requests for a while. Default: off. Its fields count as one.
    pub penalty: Option<PenaltySpec>,
    /// Whether endpoints near the caller are called first, by the hints of the Service's EndpointSlices (`trafficDistribution`). Default
    /// `Prefer`.
    pub zone: Option<ZoneMode>,
}

/// Whether endpoints near the caller are called first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ZoneMode {
    /// Any are called.
    Off,
    /// They are, and the others as well where they cannot do it alone.
    Prefer,
}

/// How the endpoint of a request is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum LoadBalancerType {
    /// The better of two drawn at random, by the time that they take and the requests that they have in hand.
    #[serde(rename = "PeakEWMA")]
    PeakEwma,
    /// The one of two drawn at random that has fewer requests of this sidecar in hand.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The same for all requests that are alike, as long as it works and is not too busy.
    ConsistentHash,
}

/// Which requests go to the same endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsistentHashSpec {
    /// What is alike in requests that go to the same endpoint: all of it together. A request that has nothing of it goes where `PeakEWMA`
    /// says.
    #[schemars(length(min = 1, max = 4))]
    pub keys: Vec<HashKeySpec>,
    /// How many requests of a sidecar an endpoint may have in hand, in percent of the average; what is more goes to the next. 100 to
    /// 10,000. Default 125.
    #[schemars(range(min = 100, max = 10000))]
    pub bounded_load: Option<u32>,
}

/// A part of a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.name) == (self.type in ['Header', 'Cookie', 'Query'])",
    "message": "Header, Cookie and Query have a name, the others none"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashKeySpec {
    /// Which part.
    #[serde(rename = "type")]
    pub kind: HashKeyType,
    /// The header's, the cookie's or the parameter's name.
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum HashKeyType {
    /// The value of a header, all its lines.
    Header,
    /// The value of a cookie, the first of its name.
    Cookie,
    /// The value of a parameter of the query, the first of its name.
    Query,
    /// The path without its query, as it is sent.
    Path,
    /// The pod that calls, by its address.
    Caller,
}

/// An endpoint that comes gets a share of its requests that grows evenly with the time. Those that are there when a sidecar begins to
/// call the Service are not new to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowStartSpec {
    /// After which time it has all of its share, up to 1h; 0s: at once.
    #[schemars(
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) <= duration('1h')",
            "message": "the window is at most 1h"
        }])
    )]
    pub window: String,
    /// What it has of its share from the beginning on, 1 to 100. Default 10.
    #[schemars(range(min = 1, max = 100))]
    pub min_percent: Option<u32>,
}

/// The load of an endpoint that answers so counts four times for a while. It is never left out for that. (`ConsistentHash` and a
/// Service's `sessionAffinity` do not look at load.)
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PenaltySpec {
    /// Statuses that say it, each 400 to 599; none: never. 429 stands for RESOURCE_EXHAUSTED of gRPC too, 503 for UNAVAILABLE. Default 429
    /// and 503.
    #[schemars(length(max = 32), inner(range(min = 400, max = 599)))]
    pub statuses: Option<Vec<u16>>,
    /// For how long where the answer has no `Retry-After` or `grpc-retry-pushback-ms`, 1s to 1h. Default 5s.
    #[schemars(
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('1s') && duration(self) <= duration('1h')",
            "message": "the duration is 1s to 1h"
        }])
    )]
    pub duration: Option<String>,
    /// For how long at most, whatever the answer says, 1s to 1h. Default 300s.
    #[schemars(
        regex(pattern = duration::PATTERN),
        extend("x-kubernetes-validations" = [{
            "rule": "duration(self) >= duration('1s') && duration(self) <= duration('1h')",
            "message": "the duration is 1s to 1h"
        }])
    )]
    pub max: Option<String>,
}

impl LoadBalancerSpec {
    pub(super) fn to_proto(&self, errors: &mut Vec<String>) -> discovery::LoadBalancer {
        let is_hash = self.method == Some(LoadBalancerType::ConsistentHash);
        match (is_hash, &self.consistent_hash) {
            (true, None) => errors.push("loadBalancer.type: ConsistentHash needs consistentHash.keys".to_owned()),
            (false, Some(_)) => {
                errors.push("loadBalancer.consistentHash: it needs type: ConsistentHash beside it".to_owned());
            }
            _ => {}
        }
        discovery::LoadBalancer {
            r#type: self.method.map_or(0, |method| method.to_proto().into()),
            consistent_hash: self.consistent_hash.as_ref().map(|hash| hash.to_proto(errors)),
            slow_start: self.slow_start.as_ref().map(|slow| slow.to_proto(errors)),
            penalty: self.penalty.as_ref().map(|penalty| penalty.to_proto(errors)),
            zone: match self.zone {
                None => discovery::ZoneMode::Unspecified,
                Some(ZoneMode::Off) => discovery::ZoneMode::Off,
                Some(ZoneMode::Prefer) => discovery::ZoneMode::Prefer,
            }
            .into(),
        }
    }
}

impl LoadBalancerType {
    fn to_proto(self) -> discovery::LoadBalancerType {
        match self {
            Self::PeakEwma => discovery::LoadBalancerType::PeakEwma,
            Self::LeastRequest => discovery::LoadBalancerType::LeastRequest,
            Self::RoundRobin => discovery::LoadBalancerType::RoundRobin,
            Self::Random => discovery::LoadBalancerType::Random,
            Self::ConsistentHash => discovery::LoadBalancerType::ConsistentHash,
        }
    }
}

impl ConsistentHashSpec {
    fn to_proto(&self, errors: &mut Vec<String>) -> discovery::ConsistentHash {
        let field = "loadBalancer.consistentHash";
        if !(1..=MAX_HASH_KEYS).contains(&self.keys.len()) {
            errors.push(format!("{field}.keys: it has 1 to {MAX_HASH_KEYS} parts"));
        }
        let bounded_load_percent = self.bounded_load.unwrap_or(DEFAULT_BOUNDED_LOAD);
        if !BOUNDED_LOAD.contains(&bounded_load_percent) {
            let (least, most) = BOUNDED_LOAD.into_inner();
            errors.push(format!(
                "{field}.boundedLoad: {bounded_load_percent} is not {least} to {most}"
            ));
        }
        let keys = self.keys.iter().zip(0..).filter_map(|(key, index)| {
            let read = key.to_proto();
            read.map_err(|why| errors.push(format!("{field}.keys[{index}].name: {why}")))
                .ok()
        });
        discovery::ConsistentHash {
            keys: keys.collect(),
            bounded_load_percent,
        }
    }
}

impl SlowStartSpec {
    fn to_proto(&self, errors: &mut Vec<String>) -> discovery::SlowStart {
        let window = within("loadBalancer.slowStart.window", Some(&self.window), SLOW_START, errors);
        let min_percent = self.min_percent.unwrap_or(DEFAULT_MIN_PERCENT);
        if !(1..=100).contains(&min_percent) {
            errors.push(format!(
                "loadBalancer.slowStart.minPercent: {min_percent} is not 1 to 100"
            ));
        }
        discovery::SlowStart {
            window_ms: to_millis(window.unwrap_or_default()),
            min_percent,
        }
    }
}

impl PenaltySpec {
    fn to_proto(&self, errors: &mut Vec<String>) -> discovery::Penalty {
        let statuses = self.statuses.as_deref().unwrap_or(&DEFAULT_PENALTY.0);
        for status in statuses.iter().filter(|s| !(400..600).contains(*s)) {
            errors.push(format!(
                "loadBalancer.penalty.statuses: {status} is not a status of an error (400 to 599)"
            ));
        }
        let duration = within(
            "loadBalancer.penalty.duration",
            self.duration.as_deref(),
            PENALTY,
            errors,
        );
        let max = within("loadBalancer.penalty.max", self.max.as_deref(), PENALTY, errors);
        discovery::Penalty {
            statuses: statuses.iter().map(|&s| s.into()).collect(),
            duration_ms: to_millis(duration.unwrap_or(DEFAULT_PENALTY.1)),
            max_ms: to_millis(max.unwrap_or(DEFAULT_PENALTY.2)),
        }
    }
}

impl HashKeySpec {
    /// # Errors
    /// Why the name cannot be one.
    fn to_proto(&self) -> Result<discovery::HashKey, String> {
        let named = || {
            let name = self.name.clone().unwrap_or_default();
            match name.len() {
                1..=MAX_NAME => Ok(name),
                _ => Err(format!("it is needed, and has at most {MAX_NAME} bytes")),
            }
        };
        let kind = match self.kind {
            HashKeyType::Header => {
                let name = named()?;
                if let Some(why) = no_header(&name) {
                    return Err(why);
                }
                hash_key::Kind::Header(name)
            }
            HashKeyType::Cookie => hash_key::Kind::Cookie(named()?),
            HashKeyType::Query => hash_key::Kind::Query(named()?),
            HashKeyType::Path | HashKeyType::Caller if self.name.is_some() => {
                return Err("Path and Caller have none".to_owned());
            }
            HashKeyType::Path => hash_key::Kind::Path(true),
            HashKeyType::Caller => hash_key::Kind::Caller(true),
        };
        Ok(discovery::HashKey { kind: Some(kind) })
    }
}

/// What a sidecar must understand, and the field that says it.
pub(super) fn needs(policy: &discovery::LoadBalancer) -> impl Iterator<Item = (Feature, &'static str)> {
    // Without marks, a sidecar has nothing to switch off.
    let zone = (policy.zone != 0).then_some((Feature::ZoneSpill, "loadBalancer.zone"));
    [(Feature::LoadBalancer, "loadBalancer")].into_iter().chain(zone)
}

/// What is nearer, and what it does not say from `outer`.
pub(super) fn over(
    nearer: Option<&discovery::LoadBalancer>,
    outer: Option<&discovery::LoadBalancer>,
) -> Option<discovery::LoadBalancer> {
    let (Some(nearer), Some(outer)) = (nearer, outer) else {
        return nearer.or(outer).cloned();
    };
    // The hash is a part of its type.
    let method = if nearer.r#type == 0 { outer } else { nearer };
    Some(discovery::LoadBalancer {
        r#type: method.r#type,
        consistent_hash: method.consistent_hash.clone(),
        slow_start: nearer.slow_start.or(outer.slow_start),
        penalty: nearer.penalty.clone().or_else(|| outer.penalty.clone()),
        zone: if nearer.zone == 0 { outer.zone } else { nearer.zone },
    })
}

#[cfg(test)]
mod tests {
    use super::super::{TrafficPolicySpec, needs};
    use crate::discovery::{
        ConsistentHash, Feature, HashKey, LoadBalancer, LoadBalancerType as Type, Penalty, SlowStart, ZoneMode,
        hash_key::Kind,
    };

    fn parse(yaml: &str) -> TrafficPolicySpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn load_balancer(yaml: &str) -> LoadBalancer {
        let policy = parse(&format!("loadBalancer: {yaml}")).to_proto().unwrap();
        assert_eq!(needs(&policy), [(Feature::LoadBalancer, "loadBalancer")]);
        policy.load_balancer.unwrap()
    }

    #[test]
    fn types() {
        for (name, expected) in [
            ("PeakEWMA", Type::PeakEwma),
            ("LeastRequest", Type::LeastRequest),
            ("RoundRobin", Type::RoundRobin),
            ("Random", Type::Random),
        ] {
            assert_eq!(load_balancer(&format!("{{type: {name}}}")).r#type(), expected);
        }
        let hash = "{type: ConsistentHash, consistentHash: {keys: [{type: Header, name: X-User}, {type: Cookie, name: s}, \
                    {type: Query, name: q}, {type: Path}]}}";
        let key = |kind| HashKey { kind: Some(kind) };
        let expected = LoadBalancer {
            r#type: Type::ConsistentHash.into(),
            consistent_hash: Some(ConsistentHash {
                keys: vec![
                    key(Kind::Header("X-User".to_owned())),
                    key(Kind::Cookie("s".to_owned())),
                    key(Kind::Query("q".to_owned())),
                    key(Kind::Path(true)),
                ],
                bounded_load_percent: 125,
            }),
            ..LoadBalancer::default()
        };
        assert_eq!(load_balancer(hash), expected);
    }

    #[test]
    fn mistakes_with_their_fields() {
        let hash = |keys: &str| format!("{{type: ConsistentHash, consistentHash: {{keys: {keys}}}}}");
        for (spec, field) in [
            ("{type: ConsistentHash}".to_owned(), "type"),
            ("{consistentHash: {keys: [{type: Path}]}}".to_owned(), "consistentHash"),
            (
                "{type: Random, consistentHash: {keys: [{type: Path}]}}".to_owned(),
                "consistentHash",
            ),
            (hash("[]"), "consistentHash.keys"),
            (
                hash(&format!("[{}]", ["{type: Path}"; 5].join(", "))),
                "consistentHash.keys",
            ),
            (hash("[{type: Path}, {type: Header}]"), "consistentHash.keys[1].name"),
            (hash("[{type: Header, name: 'a b'}]"), "consistentHash.keys[0].name"),
            (
                hash("[{type: Header, name: outrigger-error}]"),
                "consistentHash.keys[0].name",
            ),
            (hash("[{type: Caller, name: a}]"), "consistentHash.keys[0].name"),
            (
                "{type: ConsistentHash, consistentHash: {keys: [{type: Path}], boundedLoad: 99}}".to_owned(),
                "consistentHash.boundedLoad",
            ),
            ("{slowStart: {window: 2h}}".to_owned(), "slowStart.window"),
            (
                "{slowStart: {window: 1s, minPercent: 0}}".to_owned(),
                "slowStart.minPercent",
            ),
            ("{penalty: {statuses: [200]}}".to_owned(), "penalty.statuses"),
            ("{penalty: {duration: 0s}}".to_owned(), "penalty.duration"),
            ("{penalty: {max: 2h}}".to_owned(), "penalty.max"),
        ] {
            let errors = parse(&format!("loadBalancer: {spec}")).to_proto().unwrap_err();
            assert!(
                errors.len() == 1 && errors[0].starts_with(&format!("loadBalancer.{field}: ")),
                "{spec}: {errors:?}"
            );
        }
    }

    #[test]
    fn defaults_of_slow_start_and_penalty() {
        let said = load_balancer("{slowStart: {window: 30s}, penalty: {}}");
        let slow_start = SlowStart {
            window_ms: 30_000,
            min_percent: 10,
        };
        let penalty = Penalty {
            statuses: vec![429, 503],
            duration_ms: 5000,
            max_ms: 300_000,
        };
        assert_eq!((said.slow_start, said.penalty), (Some(slow_start), Some(penalty)));
        let said = load_balancer("{penalty: {statuses: [500], duration: 1s, max: 2s}}");
        let penalty = Penalty {
            statuses: vec![500],
            duration_ms: 1000,
            max_ms: 2000,
        };
        assert_eq!((said.slow_start, said.penalty), (None, Some(penalty)));
    }

    #[test]
    fn a_type_comes_with_its_hash() {
        let policy = |yaml: &str| parse(yaml).to_proto().unwrap();
        let hash = policy("loadBalancer: {type: ConsistentHash, consistentHash: {keys: [{type: Path}]}}");
        let random = policy("loadBalancer: {type: Random}");
        let nothing = policy("loadBalancer: {}");
        let slow = policy("loadBalancer: {slowStart: {window: 1s}, penalty: {}}");
        let both = random.over(&slow).load_balancer.unwrap();
        assert_eq!(both.slow_start, slow.load_balancer.clone().unwrap().slow_start);
        assert_eq!(both.penalty, slow.load_balancer.clone().unwrap().penalty);
        assert_eq!(both.r#type(), Type::Random);
        let off = policy("loadBalancer: {zone: Off}");
        assert_eq!(
            needs(&off),
            [
                (Feature::LoadBalancer, "loadBalancer"),
                (Feature::ZoneSpill, "loadBalancer.zone")
            ]
        );
        let prefer = policy("loadBalancer: {zone: Prefer}");
        for (nearer, outer, expected) in [
            (&off, &prefer, ZoneMode::Off),
            (&prefer, &off, ZoneMode::Prefer),
            (&random, &off, ZoneMode::Off),
            (&random, &nothing, ZoneMode::Unspecified),
        ] {
            assert_eq!(nearer.over(outer).load_balancer.unwrap().zone(), expected);
        }
        for (nearer, outer, expected) in [
            (&random, &hash, &random),
            (&hash, &random, &hash),
            (&nothing, &hash, &hash),
            (&hash, &nothing, &hash),
        ] {
            assert_eq!(nearer.over(outer).load_balancer, expected.load_balancer);
        }
    }
}
