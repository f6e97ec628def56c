//! Policies, compiled.

use outrigger_access::{Asked, Carries, Selection};
use outrigger_api::limits as proto;
use outrigger_api::pattern::Budget;
use outrigger_api::policy::limits::{COST, KEYS};

use crate::bucket::Rate;
use crate::key::Part;
use crate::store::{OnFailure, Store};
use crate::table::Table;

/// Buckets of all limits of a pod together, of at most some 100 bytes each. Where policies ask for more, each limit with keys has its share;
/// shadows have what the others leave, and at least one.
pub const MOST_BUCKETS: usize = 200_000;

/// What responses say of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    /// RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-11).
    Ietf,
    /// X-RateLimit-Limit, X-RateLimit-Remaining and X-RateLimit-Reset.
    Legacy,
}

/// Policies in the order of their names, and of each its limits in that of theirs, so that nothing depends on how they are told.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Another plan has another one.
    pub(crate) version: u64,
    pub(crate) policies: Box<[Policy]>,
    pub(crate) limits: Box<[Limit]>,
}

#[derive(Debug)]
pub(crate) struct Policy {
    /// "namespace/name".
    pub(crate) name: Box<str>,
    pub(crate) shadow: bool,
    /// `None`: all.
    pub(crate) ports: Option<Box<[u16]>>,
    pub(crate) headers: Option<Headers>,
    /// Where those of its limits are counted that have [`Limit::global`].
    pub(crate) store: Option<Store>,
    pub(crate) on_failure: OnFailure,
}

#[derive(Debug)]
pub(crate) struct Limit {
    /// Of `Plan::policies`.
    pub(crate) policy: usize,
    pub(crate) name: Box<str>,
    /// `None`: all.
    matches: Option<Selection>,
    pub(crate) per: Box<[Part]>,
    overrides: Box<[Selection]>,
    cost: Option<Cost>,
    /// Its own, and then those of the overrides.
    pub(crate) rates: Box<[Rate]>,
    /// The same of all pods together, where it is counted in the policy's store. `rates` hold while that does not answer.
    pub(crate) global: Option<Box<[Rate]>>,
    pub(crate) max: usize,
    pub(crate) reject: bool,
}

#[derive(Debug)]
struct Cost {
    header: http::HeaderName,
    max: u32,
}

impl Plan {
    pub(crate) fn new(message: &proto::Limits, version: u64) -> Self {
        let mut messages: Vec<&proto::Policy> = message.policies.iter().collect();
        messages.sort_by(|a, b| a.name.cmp(&b.name));
        let mut patterns = Budget::default();
        let policies: Box<[Policy]> = messages.iter().map(|message| Policy::new(message)).collect();
        let mut compiled: Vec<Vec<Limit>> = messages.iter().map(|_| Vec::new()).collect();
        // Shadows last: what they cost must change nothing of what is enforced.
        for shadow in [false, true] {
            for (n, message) in messages.iter().enumerate().filter(|(_, one)| one.shadow == shadow) {
                let mut of_policy: Vec<&proto::Limit> = message.limits.iter().collect();
                of_policy.sort_by(|a, b| a.name.cmp(&b.name));
                let of_policy = of_policy.into_iter();
                compiled[n] = of_policy
                    .filter_map(|limit| Limit::new(limit, (n, policies[n].store.is_some()), &mut patterns))
                    .collect();
            }
        }
        let mut limits: Vec<Limit> = compiled.into_iter().flatten().collect();
        bound(&mut limits, &policies);
        Self {
            version,
            policies,
            limits: limits.into(),
        }
    }

    /// The limit that is the same one in another plan: by the names of policy and limit, and by the key.
    pub(crate) fn find(&self, other: &Self, limit: &Limit) -> Option<usize> {
        let name = (&other.policy_of(limit).name, &limit.name, &limit.per);
        let mut own = self.limits.iter();
        own.position(|own| (&self.policy_of(own).name, &own.name, &own.per) == name)
    }

    pub(crate) fn policy_of(&self, limit: &Limit) -> &Policy {
        &self.policies[limit.policy]
    }
}

/// Bounds the buckets of all together.
fn bound(limits: &mut [Limit], policies: &[Policy]) {
    let mut left = MOST_BUCKETS;
    for shadow in [false, true] {
        let is_one =
            |limit: &Limit, keyed: bool| policies[limit.policy].shadow == shadow && limit.per.is_empty() != keyed;
        let sum = |limits: &[Limit], keyed: bool| -> usize {
            let some = limits.iter().filter(|limit| is_one(limit, keyed));
            some.map(|limit| limit.max).sum()
        };
        // One for each rate: these are few, and each is needed.
        left = left.saturating_sub(sum(limits, false));
        let asked = sum(limits, true);
        if asked > left {
            for limit in limits.iter_mut().filter(|limit| is_one(limit, true)) {
                // At most 100,000 times 200,000: it fits.
                limit.max = (limit.max * left / asked).max(1);
            }
        }
        left = left.saturating_sub(sum(limits, true));
    }
}

impl Policy {
    fn new(message: &proto::Policy) -> Self {
        let ports = message.ports.as_ref().map(|ports| ports.tcp().collect());
        Self {
            name: message.name.as_str().into(),
            shadow: message.shadow,
            ports,
            headers: match message.headers() {
                proto::ResponseHeaders::Ietf => Some(Headers::Ietf),
                proto::ResponseHeaders::Legacy => Some(Headers::Legacy),
                proto::ResponseHeaders::Unspecified => None,
            },
            store: message.global.as_ref().and_then(Store::new),
            on_failure: match message.global.as_ref().map(proto::Global::on_failure) {
                Some(proto::OnFailure::Allow) => OnFailure::Allow,
                Some(proto::OnFailure::Deny) => OnFailure::Deny,
                Some(proto::OnFailure::Unspecified) | None => OnFailure::Local,
            },
        }
    }

    pub(crate) fn selects(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}

impl Limit {
    /// `None`: a part of it is faulty, or this version does not know it.
    fn new(message: &proto::Limit, (policy, has_store): (usize, bool), patterns: &mut Budget) -> Option<Self> {
        let matches = match message.matches.is_empty() {
            true => None,
            false => {
                let any = message.matches.iter().map(|one| &*one.all);
                Some(Selection::new(any, patterns)?)
            }
        };
        let per: Option<Box<[Part]>> = message.per.iter().map(Part::new).collect();
        let mut overrides = Vec::new();
        for one in &message.overrides {
            overrides.push(Selection::of_sources(one.sources.as_ref()?, patterns)?);
        }
        let all = || {
            [&message.rate]
                .into_iter()
                .chain(message.overrides.iter().map(|one| &one.rate))
        };
        let divided_by =
            |shares| -> Option<Vec<Rate>> { all().map(|rate| Rate::new(rate.as_ref()?, shares)).collect() };
        let rates = divided_by(message.shares)?;
        let global = match message.global && has_store {
            true => Some(divided_by(1)?.into()),
            false => None,
        };
        let per = per?;
        let max = match per.is_empty() {
            true => rates.len(),
            // At most 100,000.
            false => message.max_keys.clamp(1, *KEYS.end()) as usize,
        };
        Some(Self {
            policy,
            name: message.name.as_str().into(),
            matches,
            per,
            overrides: overrides.into(),
            cost: match &message.cost {
                Some(cost) => Some(Cost::new(cost)?),
                None => None,
            },
            rates: rates.into(),
            global,
            max,
            reject: message.reject_overflow,
        })
    }

    pub(crate) fn table(&self) -> Table {
        Table::new(&self.rates, self.max, self.reject)
    }

    pub(crate) fn is_about(&self, policy: &Policy, asked: &Asked<'_>) -> bool {
        policy.selects(asked.facts().port) && self.matches.as_ref().is_none_or(|matches| matches.is_met(asked))
    }

    /// Which of its rates.
    pub(crate) fn rate_of(&self, asked: &Asked<'_>) -> usize {
        let mut overrides = self.overrides.iter();
        overrides.position(|one| one.is_met(asked)).map_or(0, |n| n + 1)
    }

    pub(crate) fn tokens_of(&self, asked: &Asked<'_>) -> u32 {
        match (&self.cost, &asked.facts().carries) {
            (Some(cost), Carries::Http(head)) => cost.of(head.headers),
            _ => 1,
        }
    }
}

impl Cost {
    fn new(message: &proto::Cost) -> Option<Self> {
        Some(Self {
            header: http::HeaderName::from_bytes(message.header.as_bytes()).ok()?,
            max: message.max.clamp(1, *COST.end()),
        })
    }

    /// Of all members of all lines (RFC 9110 section 5.3: they are one list), the largest.
    fn of(&self, headers: &http::HeaderMap) -> u32 {
        let lines = headers.get_all(&self.header).iter();
        let members = lines.flat_map(|line| line.as_bytes().split(|&b| b == b','));
        members
            .filter_map(number)
            .max()
            .map_or(1, |number| number.clamp(1, self.max))
    }
}

/// What does not fit is the largest that does.
fn number(text: &[u8]) -> Option<u32> {
    let text = text.trim_ascii();
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let add = |n: u32, digit: &u8| n.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    is_number.then(|| text.iter().fold(0, add))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderMap, HeaderValue};

    use super::{Cost, proto};

    #[test]
    fn a_request_costs_the_largest_number_of_a_list() {
        let message = proto::Cost {
            header: "x-cost".to_owned(),
            max: 100,
        };
        let cost = Cost::new(&message).unwrap();
        let rows: [(&[&str], u32); 8] = [
            (&[], 1),
            (&["7"], 7),
            (&["1, 50"], 50),
            (&["50 ,1", "2,3"], 50),
            (&["1", "50"], 50),
            (&["many, 4,,-9"], 4),
            (&["1,99999999999"], 100),
            (&["1 50", "0"], 1),
        ];
        for (lines, expected) in rows {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-cost", HeaderValue::try_from(*line).unwrap());
            }
            assert_eq!(cost.of(&headers), expected, "{lines:?}");
        }
    }
}
