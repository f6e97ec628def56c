//! A RateLimitPolicy as it goes to a sidecar.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::global::global;
use super::unresolved::UnresolvedLimit;
use super::{
    CONNECTIONS, COST, ConnectionsSpec, CostSpec, HEADERS, INTERVAL, KEYS, KeyPartSpec, LimitJwtSpec, LimitMatchSpec,
    LimitSpec, MODES, OVERFLOWS, OverrideSpec, PARTS, REQUESTS, RateLimitPolicySpec, RateSpec, SCOPES,
    UnresolvedLimits,
};
use crate::access::{HttpMatches, condition};
use crate::duration;
use crate::limits as proto;
use crate::limits::key_part;
use crate::policy::access::{Condition, Reader, Source, SourceSpec, TokenParts, TokenSpec, no_header};

const DEFAULT_KEYS: u32 = 10_000;
const LIMITS: usize = 16;
/// Headers of a connection, and not of a request (RFC 9110 section 7.6.1).
const OF_CONNECTIONS: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

impl RateLimitPolicySpec {
    /// The policy `name` ("namespace/name") of a namespace.
    ///
    /// # Errors
    /// All mistakes, each with the path of its field.
    pub fn to_wire(&self, name: &str, namespace: &str) -> Result<UnresolvedLimits, Vec<String>> {
        let mut reader = Reader::new(namespace);
        // Its conditions are read as those of a Deny rule.
        reader.deny = true;
        let policy = policy(&mut reader, name, self);
        match reader.mistakes.is_empty() {
            true => Ok(policy),
            false => Err(reader.mistakes),
        }
    }
}

fn policy(reader: &mut Reader<'_>, name: &str, spec: &RateLimitPolicySpec) -> UnresolvedLimits {
    let mode = reader.one_of("mode", spec.mode.as_deref().unwrap_or("Enforce"), &MODES);
    let headers = spec
        .response
        .as_ref()
        .and_then(|response| response.headers.as_deref())
        .unwrap_or("Off");
    let headers = match reader.one_of("response.headers", headers, &HEADERS) {
        Some("IETF") => proto::ResponseHeaders::Ietf,
        Some("Legacy") => proto::ResponseHeaders::Legacy,
        _ => proto::ResponseHeaders::Unspecified,
    };
    for (n, target) in spec.target_refs.iter().enumerate() {
        reader.target(&format!("targetRefs[{n}]"), target);
    }
    let connections = spec.connections.as_ref().map(|spec| connections(reader, spec));
    let limits = spec.limits.as_deref().unwrap_or_default();
    if limits.is_empty() && (spec.limits.is_some() || connections.is_none()) {
        reader.mistake("limits", "name at least one limit");
    }
    if limits.len() > LIMITS {
        reader.mistake("limits", &format!("{} are more than {LIMITS}", limits.len()));
    }
    let limits = limits.iter().enumerate();
    let limits: Vec<_> = limits.map(|(n, spec)| limit(reader, n, spec)).collect();
    for (n, one) in limits.iter().enumerate() {
        if limits[..n].iter().any(|other| other.limit.name == one.limit.name) {
            let wrong = format!("another limit of the policy is named {:?} too", one.limit.name);
            reader.mistake(&format!("limits[{n}].name"), &wrong);
        }
    }
    let global = spec.global.as_ref().map(|spec| global(reader, spec));
    if global.is_some() != limits.iter().any(|limit| limit.global) {
        reader.mistake("global", "limits of the scope Global need it, and no others have it");
    }
    UnresolvedLimits {
        name: name.to_owned(),
        shadow: mode == Some("Shadow"),
        headers,
        limits,
        connections,
        global,
    }
}

fn connections(reader: &mut Reader<'_>, spec: &ConnectionsSpec) -> proto::Connections {
    let mut number = |field: &str, number: Option<u32>| {
        if let Some(number) = number {
            within(reader, &format!("connections.{field}"), number, &CONNECTIONS);
        }
        number.unwrap_or_default()
    };
    let connections = proto::Connections {
        max: number("max", spec.max),
        per_identity: number("perIdentity", spec.per_identity),
        new_per_second: number("newPerSecond", spec.new_per_second),
    };
    if *spec == ConnectionsSpec::default() {
        reader.mistake("connections", "name at least one number");
    }
    connections
}

fn limit(reader: &mut Reader<'_>, n: usize, spec: &LimitSpec) -> UnresolvedLimit {
    let at = format!("limits[{n}]");
    let name = spec.name.clone().unwrap_or_else(|| n.to_string());
    if !is_name(&name) {
        reader.mistake(
            &format!("{at}.name"),
            &format!("{name:?} is no name of letters, digits, \".\", \"_\" and \"-\""),
        );
    }
    let scope = reader.one_of(&format!("{at}.scope"), &spec.scope, &SCOPES);
    let matches = entries(reader, &format!("{at}.matches"), spec.matches.as_deref(), matching);
    let per = entries(reader, &format!("{at}.per"), spec.per.as_deref(), part);
    if spec.keys.is_some() && spec.per.is_none() {
        reader.mistake(&format!("{at}.keys"), "without `per` there is one bucket");
    }
    let keys = spec.keys.clone().unwrap_or_default();
    let max = keys.max.unwrap_or(DEFAULT_KEYS);
    within(reader, &format!("{at}.keys.max"), max, &KEYS);
    let overflow = keys.overflow.as_deref().unwrap_or("Shared");
    let overflow = reader.one_of(&format!("{at}.keys.overflow"), overflow, &OVERFLOWS);
    let rate = rate(reader, &at, &spec.rate, spec.burst);
    let overrides = entries(
        reader,
        &format!("{at}.overrides"),
        spec.overrides.as_deref(),
        override_of,
    );
    let cost = spec.cost.as_ref().map(|spec| cost(reader, &format!("{at}.cost"), spec));
    UnresolvedLimit {
        limit: proto::Limit {
            name,
            per: per.into_iter().map(|kind| proto::KeyPart { kind }).collect(),
            rate: Some(rate),
            max_keys: max,
            reject_overflow: overflow == Some("Reject"),
            cost,
            ..proto::Limit::default()
        },
        matches,
        shared: scope == Some("Service"),
        global: scope == Some("Global"),
        overrides,
    }
}

/// Each entry of a list that has one, where it is there.
fn entries<S, T>(
    reader: &mut Reader<'_>,
    at: &str,
    list: Option<&[S]>,
    mut read: impl FnMut(&mut Reader<'_>, &str, &S) -> T,
) -> Vec<T> {
    if list.is_some_and(<[S]>::is_empty) {
        reader.mistake(at, "it is empty");
    }
    let list = list.unwrap_or_default().iter().enumerate();
    list.map(|(n, entry)| read(reader, &format!("{at}[{n}]"), entry))
        .collect()
}

fn matching(reader: &mut Reader<'_>, at: &str, spec: &LimitMatchSpec) -> Vec<Condition> {
    let mut all = Vec::new();
    if let Some(any) = &spec.sources {
        all.push(Condition::Sources(sources(reader, &format!("{at}.sources"), any)));
    }
    if let Some(any) = &spec.http_attributes {
        let at = format!("{at}.httpAttributes");
        let any = entries(reader, &at, Some(any), |reader, at, spec| reader.http(at, spec));
        let http = condition::Kind::Http(HttpMatches { any });
        all.push(Condition::Known(Some(http)));
    }
    if all.is_empty() {
        reader.mistake(at, "say who calls, or with which requests");
    }
    all
}

fn sources(reader: &mut Reader<'_>, at: &str, specs: &[SourceSpec<LimitJwtSpec>]) -> Vec<Source> {
    if specs.is_empty() {
        reader.mistake(at, "it is empty");
    }
    reader.sources(at, specs)
}

impl TokenSpec for LimitJwtSpec {
    fn parts(&self) -> TokenParts<'_> {
        TokenParts {
            policy: Some(&self.access_policy),
            provider: &self.provider,
            claims: self.claims.as_deref(),
            scopes: self.scopes.as_deref(),
        }
    }
}

/// None: a mistake says why.
fn part(reader: &mut Reader<'_>, at: &str, spec: &KeyPartSpec) -> Option<key_part::Kind> {
    let type_ = reader.one_of(&format!("{at}.type"), &spec.type_, &PARTS)?;
    if (type_ == "Header") != spec.header.is_some() {
        return reader.none(
            &format!("{at}.header"),
            "a part of the type Header, and no other one, has it".to_owned(),
        );
    }
    if spec.address.is_some() && type_ != "Address" {
        return reader.none(
            &format!("{at}.address"),
            "only a part of the type Address has it".to_owned(),
        );
    }
    if (type_ == "Claim") != spec.claim.is_some() {
        return reader.none(
            &format!("{at}.claim"),
            "a part of the type Claim, and no other one, has it".to_owned(),
        );
    }
    if let Some(claim) = &spec.claim {
        let at = format!("{at}.claim");
        reader.claim(&format!("{at}.name"), &claim.name);
        let policy = reader.access_policy(&format!("{at}.accessPolicy"), &claim.access_policy)?;
        return Some(key_part::Kind::Claim(proto::PerClaim {
            policy,
            provider: claim.provider.clone(),
            name: claim.name.clone(),
        }));
    }
    match (type_, &spec.header) {
        (_, Some(header)) => {
            let name = header_name(reader, &format!("{at}.header.name"), &header.name)?;
            Some(key_part::Kind::Header(proto::PerHeader { name }))
        }
        ("Identity", _) => Some(key_part::Kind::Identity(proto::PerIdentity {})),
        ("Namespace", _) => Some(key_part::Kind::Namespace(proto::PerNamespace {})),
        _ => {
            let address = spec.address.clone().unwrap_or_default();
            let (v4_prefix, v6_prefix) = (address.v4_prefix.unwrap_or(32), address.v6_prefix.unwrap_or(64));
            within(reader, &format!("{at}.address.v4Prefix"), v4_prefix, &(1..=32));
            within(reader, &format!("{at}.address.v6Prefix"), v6_prefix, &(1..=128));
            Some(key_part::Kind::Address(proto::PerAddress { v4_prefix, v6_prefix }))
        }
    }
}

fn rate(reader: &mut Reader<'_>, at: &str, spec: &RateSpec, burst: Option<u32>) -> proto::Rate {
    within(reader, &format!("{at}.rate.requests"), spec.requests, &REQUESTS);
    let interval = duration::parse_within(&spec.interval, INTERVAL);
    let interval = interval.unwrap_or_else(|why| {
        reader.mistake(&format!("{at}.rate.interval"), &why);
        Duration::default()
    });
    let burst = burst.unwrap_or(spec.requests);
    within(reader, &format!("{at}.burst"), burst, &REQUESTS);
    proto::Rate {
        requests: spec.requests,
        // At most a day.
        interval_ms: interval.as_millis() as u64,
        burst,
    }
}

fn override_of(reader: &mut Reader<'_>, at: &str, spec: &OverrideSpec) -> (Vec<Source>, proto::Rate) {
    let any = spec.sources.as_deref().unwrap_or_default();
    let any = sources(reader, &format!("{at}.sources"), any);
    (any, rate(reader, at, &spec.rate, spec.burst))
}

fn cost(reader: &mut Reader<'_>, at: &str, spec: &CostSpec) -> proto::Cost {
    let header = header_name(reader, &format!("{at}.header"), &spec.header);
    within(reader, &format!("{at}.max"), spec.max, &COST);
    proto::Cost {
        header: header.unwrap_or_default(),
        max: spec.max,
    }
}

/// Of a header that limits find in requests. None: a mistake says why.
fn header_name(reader: &mut Reader<'_>, at: &str, name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let why = if let Some(why) = no_header(name) {
        why
    } else if lower == "host" {
        "HTTP/2 has no such header".to_owned()
    } else if OF_CONNECTIONS.contains(&&*lower) {
        format!("{lower} is of a connection, and not of a request")
    } else {
        return Some(name.to_owned());
    };
    reader.none(at, why)
}

fn within(reader: &mut Reader<'_>, at: &str, value: u32, range: &RangeInclusive<u32>) {
    if !range.contains(&value) {
        let (least, most) = (range.start(), range.end());
        reader.mistake(at, &format!("{value} is not {least} to {most}"));
    }
}

/// It stands in headers and labels.
fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= 63 && text.bytes().all(inner) && ends(text.bytes().next()) && ends(text.bytes().last())
}
