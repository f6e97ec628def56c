//! How much, whatever the policies say, whoever calls and whenever they change: against what must hold of every limit.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_access::{Caller, Carries, Facts, Head, Tokens};
use outrigger_api::limits as proto;
use outrigger_api::policy::limits::{INTERVAL, REQUESTS};
use outrigger_api::spiffe::SpiffeId;
use outrigger_limits::store::{Answer, Ask, State};
use outrigger_limits::{Limiter, MOST_BUCKETS, Place};
use prost::Message;

use crate::Input;

const PORTS: [u16; 3] = [80, 8080, 0];
const IDS: [&str; 3] = [
    "",
    "spiffe://cluster.local/ns/shop/sa/web",
    "spiffe://other.test/ns/ops/sa/web",
];
const ADDRESSES: [&str; 4] = ["", "10.0.0.7", "::ffff:10.0.0.7", "fd00::1"];
const PATHS: [&str; 6] = ["/", "/a", "/A/", "/a%2Fb", "//a", ""];
const VALUES: [&str; 6] = ["1", "2", "1, 50", "", "99999999999999999999", "many"];
const NAMES: [&str; 3] = ["x-one", "x-two", "authorization"];
/// Milliseconds between two calls.
const PAUSES: [u64; 6] = [0, 1, 333, 1000, 60_000, 90_000_000];

/// A call, and when.
struct Step {
    pause: Duration,
    port: u16,
    identity: Option<SpiffeId>,
    address: Option<IpAddr>,
    path: &'static str,
    headers: HeaderMap,
    /// A connection of bytes begins, and one ends.
    connects: bool,
    closes: bool,
    /// The policies are told again, or the other ones are; and whether stores refuse, or do not answer.
    told: usize,
}

/// Choices for some calls, how long the first message is, and two messages of limits.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let steps = input.some(24, step);
    let first = input.below(256);
    let rest = input.rest();
    let (first, second) = rest.split_at(first.min(rest.len()));
    let messages = [proto::Limits::decode(first), proto::Limits::decode(second)];
    if let [Ok(first), Ok(second)] = messages {
        carry_out(&[first, second], &steps);
    }
}

fn step(input: &mut Input<'_>) -> Step {
    let pause = Duration::from_millis(input.pick(&PAUSES));
    let mut headers = HeaderMap::new();
    for (name, value) in input.some(3, |i| (i.pick(&NAMES), i.pick(&VALUES))) {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    Step {
        pause,
        headers,
        port: input.pick(&PORTS),
        identity: input.pick(&IDS).parse().ok(),
        address: input.pick(&ADDRESSES).parse().ok(),
        path: input.pick(&PATHS),
        connects: input.below(3) == 0,
        closes: input.below(4) == 0,
        told: input.below(16),
    }
}

fn carry_out(messages: &[proto::Limits; 2], steps: &[Step]) {
    // Two that are told the same in another order, and hash with other keys.
    let [one, other] = [(); 2].map(|()| Arc::new(Limiter::default()));
    let mut now = Duration::ZERO;
    let tell = |n: usize, now| {
        let mut turned = messages[n].clone();
        one.update(&turned, now);
        turned.policies.reverse();
        turned.policies.iter_mut().for_each(|policy| policy.limits.reverse());
        other.update(&turned, now);
    };
    tell(0, now);
    let is_named_once = is_named_once(&messages[0]) && is_named_once(&messages[1]);
    let mut places: Vec<(u16, [Place; 2])> = Vec::new();
    let mut admitted: HashMap<(String, String), u128> = HashMap::new();
    let mut changed = false;
    for step in steps {
        now += step.pause;
        if step.told > 12 {
            changed |= step.told == 13;
            tell(usize::from(step.told == 13), now);
        }
        let said = [&one, &other].map(|limiter| ask(limiter, step, now));
        // Those with keys share a bucket where there are too many, by which hash comes first.
        if is_named_once {
            assert_eq!(said[0].text, said[1].text, "{messages:#?}");
        }
        for name in said.into_iter().next().into_iter().flat_map(|said| said.taken) {
            *admitted.entry(name).or_default() += 1;
        }
        if step.closes {
            places.pop();
        }
        if step.connects {
            let connect = |limiter: &Arc<Limiter>| limiter.connect(step.port, step.identity.as_ref(), now).ok();
            match (connect(&one), connect(&other)) {
                (Some(a), Some(b)) => places.push((step.port, [a.place, b.place])),
                (a, b) => assert!(a.is_none() && b.is_none(), "{messages:#?}"),
            }
        }
        bounded(&one, &places);
    }
    if !changed && is_named_once {
        exact(&messages[0], &admitted, now);
    }
    drop(places);
    bounded(&one, &[]);
}

struct Said {
    text: String,
    /// Limits that gave a token.
    taken: Vec<(String, String)>,
}

fn ask(limiter: &Limiter, step: &Step, now: Duration) -> Said {
    let facts = Facts {
        port: step.port,
        caller: Caller {
            identity: step.identity.as_ref(),
            address: step.address,
        },
        carries: Carries::Http(Head {
            method: "GET",
            path: step.path,
            host: "shop.test",
            headers: &step.headers,
            tokens: &Tokens::NONE,
        }),
    };
    let Some(mut outcome) = limiter.decide(&facts, now) else {
        let (text, taken) = (String::new(), Vec::new());
        return Said { text, taken };
    };
    let answers: Vec<Answer> = outcome.asks().iter().map(|ask| answer(ask, step)).collect();
    for ask in limiter.settle(&mut outcome, &answers, now) {
        assert!(ask.entries.iter().all(|entry| entry.units <= 0), "it gives back");
    }
    assert!(outcome.asks().is_empty());
    let mut shadows: Vec<String> = outcome.shadows().map(|by| format!("{by:?}")).collect();
    shadows.sort();
    let refused = outcome.refused();
    let unavailable = outcome.unavailable();
    assert!(refused.is_none() || unavailable.is_none());
    assert!(refused.is_none_or(|(_, wait)| wait > Duration::ZERO));
    let taken = outcome.enforced().map(|by| (by.policy.to_owned(), by.limit.to_owned()));
    Said {
        text: format!("{refused:?} {unavailable:?} {:?} {shadows:?}", outcome.standing()),
        taken: if refused.is_none() && unavailable.is_none() {
            taken.collect()
        } else {
            Vec::new()
        },
    }
}

/// A store does not answer, or refuses.
fn answer(ask: &Ask, step: &Step) -> Answer {
    let refuses = State {
        wait: 1,
        remaining: 0,
        full: 1,
    };
    step.told.is_multiple_of(4).then(|| vec![refuses; ask.entries.len()])
}

fn is_named_once(message: &proto::Limits) -> bool {
    let once = |mut names: Vec<&str>| {
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        names.len() == all
    };
    let policies = message.policies.iter();
    once(policies.clone().map(|policy| &*policy.name).collect()) && { policies }
        .all(|policy| once(policy.limits.iter().map(|limit| &*limit.name).collect()))
}

/// No more is kept than there may be, and what is open is counted.
fn bounded(limiter: &Limiter, places: &[(u16, [Place; 2])]) {
    let mut most = 0;
    for policy in limiter.view() {
        let selects = |port: u16| policy.ports.as_ref().is_none_or(|ports| ports.contains(&port));
        let open = places.iter().filter(|(port, _)| selects(*port)).count();
        if let Some(connections) = &policy.connections {
            assert_eq!(connections.open as usize, open);
        }
        for limit in &policy.limits {
            assert!(limit.keys <= limit.max_keys);
            most += limit.max_keys;
        }
    }
    // One bucket for each limit, at least.
    assert!(most <= MOST_BUCKETS + 100_000, "{most}");
}

/// Of a limit with one bucket no more has come through than the burst and what the rate has given, at one token a request.
fn exact(message: &proto::Limits, admitted: &HashMap<(String, String), u128>, elapsed: Duration) {
    for policy in &message.policies {
        for limit in policy
            .limits
            .iter()
            .filter(|limit| limit.per.is_empty() && limit.overrides.is_empty())
        {
            let Some(rate) = limit.rate.filter(is_sound) else {
                continue;
            };
            let shares = u128::from(limit.shares.clamp(1, 1_000_000));
            let (interval, requests) = (u128::from(rate.interval_ms), u128::from(rate.requests).max(shares));
            // In units of which a token is `interval * shares`.
            let token = interval * shares;
            let given = (u128::from(rate.burst) * interval).max(token) + requests * elapsed.as_millis();
            let key = (policy.name.clone(), limit.name.clone());
            let taken = admitted.get(&key).copied().unwrap_or_default() * token;
            assert!(taken <= given, "{message:#?}");
        }
    }
}

fn is_sound(rate: &proto::Rate) -> bool {
    REQUESTS.contains(&rate.requests)
        && REQUESTS.contains(&rate.burst)
        && INTERVAL.contains(&Duration::from_millis(rate.interval_ms))
}
