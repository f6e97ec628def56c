//! Which endpoint a request goes to.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::discovery::{self, hash_key};
use crate::policy::access::no_header;

/// Of `loadBalancer.consistentHash.boundedLoad`, in percent.
pub const BOUNDED_LOAD: RangeInclusive<u32> = 100..=10_000;
/// Of a consistent hash that does not say it.
pub const DEFAULT_BOUNDED_LOAD: u32 = 125;
/// Parts of a request that one hash is made of.
pub const MAX_HASH_KEYS: usize = 4;
/// Bytes of a name of a header, a cookie or a parameter.
const MAX_NAME: usize = 256;

/// Which endpoint a request goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.consistentHash) == (has(self.type) && self.type == 'ConsistentHash')",
    "message": "consistentHash belongs to the type ConsistentHash, and that needs it"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancerSpec {
    /// How the endpoint of a request is found. Default `PeakEWMA`.
    #[serde(rename = "type")]
    pub method: Option<LoadBalancerType>,
    /// Which requests go to the same endpoint, for `ConsistentHash`.
    pub consistent_hash: Option<ConsistentHashSpec>,
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

impl LoadBalancerSpec {
    pub(super) fn to_proto(&self, errors: &mut Vec<String>) -> discovery::LoadBalancer {
        let is_hash = self.method == Some(LoadBalancerType::ConsistentHash);
        if is_hash != self.consistent_hash.is_some() {
            errors.push(
                "loadBalancer.consistentHash: it belongs to the type ConsistentHash, and that needs it".to_owned(),
            );
        }
        discovery::LoadBalancer {
            r#type: self.method.map_or(0, |method| method.to_proto().into()),
            consistent_hash: self.consistent_hash.as_ref().map(|hash| hash.to_proto(errors)),
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
    })
}

#[cfg(test)]
mod tests {
    use super::super::{TrafficPolicySpec, needs};
    use crate::discovery::{ConsistentHash, Feature, HashKey, LoadBalancer, LoadBalancerType as Type, hash_key::Kind};

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
            ("{type: ConsistentHash}".to_owned(), "consistentHash"),
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
        ] {
            let errors = parse(&format!("loadBalancer: {spec}")).to_proto().unwrap_err();
            assert!(
                errors.len() == 1 && errors[0].starts_with(&format!("loadBalancer.{field}: ")),
                "{spec}: {errors:?}"
            );
        }
    }

    #[test]
    fn a_type_comes_with_its_hash() {
        let policy = |yaml: &str| parse(yaml).to_proto().unwrap();
        let hash = policy("loadBalancer: {type: ConsistentHash, consistentHash: {keys: [{type: Path}]}}");
        let random = policy("loadBalancer: {type: Random}");
        let nothing = policy("loadBalancer: {}");
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
