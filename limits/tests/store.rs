//! What holds where a store counts: over many interleavings from seeds, with time as an argument, and a store that carries out what the script
//! says of itself. That the script does so, a real Redis proves (`tests/tests/limits/global.rs`).

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use outrigger_access::{Caller, Carries, Facts, Head, Tokens};
use outrigger_api::limits::{
    Global, KeyPart, Limit, Limits, OnFailure, PerHeader, Policy, Rate, ResponseHeaders, key_part,
};
use outrigger_limits::store::{Answer, Ask, Entry, State};
use outrigger_limits::{Limiter, Outcome};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const HOUR: u64 = 3_600_000;
const LOCAL: OnFailure = OnFailure::Unspecified;

fn limit(name: &str, requests: u32, interval_ms: u64, global: bool) -> Limit {
    Limit {
        name: name.to_owned(),
        rate: Some(Rate {
            requests,
            interval_ms,
            burst: requests,
        }),
        global,
        ..Limit::default()
    }
}

fn per_header(limit: Limit) -> Limit {
    let kind = Some(key_part::Kind::Header(PerHeader {
        name: "x-key".to_owned(),
    }));
    Limit {
        per: vec![KeyPart { kind }],
        max_keys: 100,
        ..limit
    }
}

fn policy(name: &str, limits: Vec<Limit>, store: &str, on_failure: OnFailure) -> Policy {
    Policy {
        name: name.to_owned(),
        limits,
        global: Some(Global {
            address: store.to_owned(),
            timeout_ms: 20,
            on_failure: on_failure.into(),
        }),
        ..Policy::default()
    }
}

fn limiter(policies: &[Policy]) -> Limiter {
    let limiter = Limiter::default();
    limiter.update(&told(policies), Duration::ZERO);
    limiter
}

fn told(policies: &[Policy]) -> Limits {
    Limits {
        policies: policies.to_vec(),
    }
}

/// As `store.lua` says, in whole numbers.
#[derive(Default)]
struct Store {
    buckets: HashMap<String, (u64, u64)>,
    calls: usize,
}

impl Store {
    fn ask(&mut self, entries: &[Entry], now: u64) -> Vec<State> {
        self.calls += 1;
        let debt = |store: &Self, entry: &Entry| {
            let (debt, since) = store.buckets.get(&entry.key).copied().unwrap_or((0, now));
            debt.saturating_sub((now - since) * entry.gives)
        };
        let wanted = |debt: u64, entry: &Entry| debt.saturating_add_signed(entry.units);
        let wait = |store: &Self, entry: &Entry| {
            let over = wanted(debt(store, entry), entry).saturating_sub(entry.holds);
            if entry.units > 0 { over.div_ceil(entry.gives) } else { 0 }
        };
        let waits: Vec<u64> = entries.iter().map(|entry| wait(self, entry)).collect();
        let refuses = |group| {
            entries
                .iter()
                .zip(&waits)
                .any(|(entry, wait)| entry.group == group && *wait > 0)
        };
        let mut states = Vec::new();
        for (entry, wait) in entries.iter().zip(&waits) {
            let mut debt = debt(self, entry);
            if !refuses(0) && !refuses(entry.group) {
                debt = wanted(debt, entry);
                self.buckets.insert(entry.key.clone(), (debt, now));
            }
            states.push(State {
                wait: *wait,
                remaining: entry.holds.saturating_sub(debt) / entry.token,
                full: debt.div_ceil(entry.gives),
            });
        }
        states
    }

    /// Tokens that are missing of a limit, all its keys together, if time stands still.
    fn missing(&self, limit: &str, token: u64) -> u64 {
        let name = format!(":{limit}:");
        let of_limit = self.buckets.iter().filter(|(key, _)| key.contains(&name));
        of_limit.map(|(_, (debt, _))| debt.div_ceil(token)).sum()
    }
}

/// All of them, by their addresses. Those that are not there do not answer.
type Stores = HashMap<&'static str, Store>;

fn begin(limiter: &Limiter, key: &str, now: u64) -> Option<Outcome> {
    let mut headers = HeaderMap::new();
    headers.insert("x-key", HeaderValue::try_from(key).unwrap());
    let facts = Facts {
        port: 80,
        caller: Caller {
            identity: None,
            address: None,
        },
        carries: Carries::Http(Head {
            method: "GET",
            path: "/",
            host: "",
            headers: &headers,
            tokens: &Tokens::NONE,
        }),
    };
    limiter.decide(&facts, Duration::from_micros(now))
}

fn ask(stores: &mut Stores, asks: &[Ask], now: u64) -> Vec<Answer> {
    let answers = asks.iter().map(|ask| {
        let store = stores.get_mut(&*ask.store.address)?;
        Some(store.ask(&ask.entries, now))
    });
    answers.collect()
}

fn settle(limiter: &Limiter, outcome: &mut Outcome, answers: &[Answer], stores: &mut Stores, now: u64) -> bool {
    let back = limiter.settle(outcome, answers, Duration::from_micros(now));
    ask(stores, &back, now);
    outcome.refused().is_none() && outcome.unavailable().is_none()
}

fn admits(limiter: &Limiter, key: &str, stores: &mut Stores, now: u64) -> bool {
    let Some(mut outcome) = begin(limiter, key, now) else {
        return true;
    };
    let answers = ask(stores, outcome.asks(), now);
    settle(limiter, &mut outcome, &answers, stores, now)
}

fn token(interval_ms: u64) -> u64 {
    interval_ms * 1000
}

/// However requests of several pods come in between one another, pods together admit no more than the store's limits say, no pod more than its own,
/// and what is refused takes nothing anywhere.
#[test]
fn what_is_refused_takes_nothing_and_no_more_is_admitted_however_requests_interleave() {
    let mut seen = (0, 0);
    for seed in 0..300 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let (whole, keyed, own, other) = (
            random.random_range(1..40),
            random.random_range(1..10),
            random.random_range(1..20),
            random.random_range(1..40),
        );
        let policies = [
            policy(
                "shop/a",
                vec![
                    limit("whole", whole, HOUR, true),
                    per_header(limit("keyed", keyed, HOUR, true)),
                    limit("own", own, HOUR, false),
                ],
                "one",
                LOCAL,
            ),
            policy("shop/b", vec![limit("other", other, HOUR, true)], "two", LOCAL),
        ];
        let pods = [limiter(&policies), limiter(&policies), limiter(&policies)];
        let mut stores: Stores = [("one", Store::default()), ("two", Store::default())].into();
        let mut waiting: Vec<(usize, String, Outcome, Option<Vec<Answer>>)> = Vec::new();
        let mut admitted: HashMap<(usize, String), u64> = HashMap::new();
        for _ in 0..400 {
            if waiting.len() < 6 && random.random() {
                let (pod, key) = (random.random_range(0..3), random.random_range(0..4).to_string());
                let outcome = begin(&pods[pod], &key, 0).unwrap();
                waiting.push((pod, key, outcome, None));
            } else if !waiting.is_empty() {
                let n = random.random_range(0..waiting.len());
                match waiting[n].3.take() {
                    None => waiting[n].3 = Some(ask(&mut stores, waiting[n].2.asks(), 0)),
                    Some(answers) => {
                        let (pod, key, mut outcome, _) = waiting.swap_remove(n);
                        if settle(&pods[pod], &mut outcome, &answers, &mut stores, 0) {
                            *admitted.entry((pod, key)).or_default() += 1;
                            seen.0 += 1;
                        } else {
                            seen.1 += 1;
                        }
                    }
                }
            }
        }
        for (pod, key, mut outcome, answers) in waiting {
            let answers = answers.unwrap_or_else(|| ask(&mut stores, outcome.asks(), 0));
            if settle(&pods[pod], &mut outcome, &answers, &mut stores, 0) {
                *admitted.entry((pod, key)).or_default() += 1;
            }
        }
        let all: u64 = admitted.values().sum();
        assert!(all <= whole.min(other).into(), "seed {seed}");
        assert_eq!(stores["one"].missing("whole", token(HOUR)), all, "seed {seed}");
        assert_eq!(stores["one"].missing("keyed", token(HOUR)), all, "seed {seed}");
        assert_eq!(stores["two"].missing("other", token(HOUR)), all, "seed {seed}");
        for (n, pod) in pods.iter().enumerate() {
            let of_pod: u64 = admitted
                .iter()
                .filter(|((pod, _), _)| *pod == n)
                .map(|(_, count)| count)
                .sum();
            assert!(of_pod <= own.into(), "seed {seed}");
            // What is left of its own bucket is there: nothing that was refused holds it.
            let others = [policy("shop/a", vec![limit("own", own, HOUR, false)], "one", LOCAL)];
            pod.update(&told(&others), Duration::ZERO);
            let left = (0..100).filter(|_| admits(pod, "", &mut Stores::new(), 0)).count();
            assert_eq!(left as u64, u64::from(own) - of_pod, "seed {seed}");
        }
    }
    assert!(seen.0 > 1000 && seen.1 > 1000, "{seen:?}");
}

/// One question to each store, whatever number of limits and policies is counted there, and none where the pod itself refuses.
#[test]
fn each_store_is_asked_once() {
    let shadow = Policy {
        shadow: true,
        ..policy("shop/c", vec![limit("c", 9, HOUR, true)], "one", LOCAL)
    };
    let slow = Global {
        timeout_ms: 900,
        ..policy("", vec![], "one", LOCAL).global.unwrap()
    };
    let policies = [
        policy(
            "shop/a",
            vec![
                limit("a", 9, HOUR, true),
                per_header(limit("b", 9, HOUR, true)),
                limit("own", 3, HOUR, false),
            ],
            "one",
            LOCAL,
        ),
        Policy {
            global: Some(slow),
            ..policy("shop/b", vec![limit("b", 9, HOUR, true)], "one", LOCAL)
        },
        shadow,
    ];
    let pod = limiter(&policies);
    assert_eq!(pod.stores().len(), 1);
    let outcome = begin(&pod, "secret", 0).unwrap();
    let [ask] = outcome.asks() else {
        panic!("{:?}", outcome.asks())
    };
    assert_eq!((ask.entries.len(), ask.store.timeout), (4, Duration::from_millis(20)));
    for entry in &ask.entries {
        assert!(
            entry.key.starts_with("outrigger:limit:shop/") && !entry.key.contains("secret"),
            "{}",
            entry.key
        );
    }
    let mut stores: Stores = [("one", Store::default())].into();
    let pod = limiter(&policies);
    let admitted = (0..10).filter(|_| admits(&pod, "", &mut stores, 0)).count();
    assert_eq!((admitted, stores["one"].calls), (3, 3));
}

/// What each policy says of a store that does not answer, alone and beside others.
#[test]
fn a_store_that_does_not_answer_does_as_the_policy_says() {
    let shared = |requests| Limit {
        shares: 3,
        ..limit("a", requests, HOUR, true)
    };
    let with = |on_failure| policy("shop/a", vec![shared(9)], "one", on_failure);
    for (on_failure, admitted) in [(LOCAL, 3), (OnFailure::Allow, 20), (OnFailure::Deny, 0)] {
        let pod = limiter(&[with(on_failure)]);
        let count = (0..20).filter(|_| admits(&pod, "", &mut Stores::new(), 0)).count();
        assert_eq!(count, admitted, "{on_failure:?}");
        let mut outcome = begin(&pod, "", 0).unwrap();
        pod.settle(&mut outcome, &[None], Duration::ZERO);
        assert_eq!(outcome.refused().is_some(), on_failure == LOCAL);
        assert_eq!(outcome.unavailable().is_some(), on_failure == OnFailure::Deny);
        assert_eq!((outcome.unanswered().count(), outcome.enforced().count()), (1, 0));
    }
    // One that refuses gives back what the other store, and the pod itself, have taken.
    let beside = policy(
        "shop/b",
        vec![limit("b", 5, HOUR, true), limit("own", 5, HOUR, false)],
        "two",
        LOCAL,
    );
    let mut stores: Stores = [("two", Store::default())].into();
    let pod = limiter(&[with(OnFailure::Deny), beside.clone()]);
    assert_eq!((0..20).filter(|_| admits(&pod, "", &mut stores, 0)).count(), 0);
    assert_eq!(stores["two"].missing("b", token(HOUR)), 0);
    pod.update(&told(&[beside]), Duration::ZERO);
    assert_eq!((0..20).filter(|_| admits(&pod, "", &mut stores, 0)).count(), 5);
}

/// A policy that only counts refuses nothing, takes nothing of what is enforced, and where it would have refused, or something in force does,
/// it takes nothing itself.
#[test]
fn a_shadow_asks_in_the_same_question() {
    let shadow = Policy {
        shadow: true,
        ..policy(
            "shop/shadow",
            vec![limit("s", 3, HOUR, true), limit("t", 2, HOUR, false)],
            "one",
            OnFailure::Deny,
        )
    };
    let enforced = policy("shop/a", vec![limit("a", 5, HOUR, true)], "one", LOCAL);
    for (order, s) in [(false, 2), (true, 2)] {
        let mut stores: Stores = [("one", Store::default())].into();
        let mut both = vec![enforced.clone(), shadow.clone()];
        if order {
            both.reverse();
        }
        let pod = limiter(&both);
        let mut seen = (0, 0, 0);
        for _ in 0..10 {
            let mut outcome = begin(&pod, "", 0).unwrap();
            let answers = ask(&mut stores, outcome.asks(), 0);
            let admitted = settle(&pod, &mut outcome, &answers, &mut stores, 0);
            match (admitted, outcome.shadows().next()) {
                (true, None) => seen.0 += 1,
                (true, Some(by)) => {
                    assert_eq!(by.policy, "shop/shadow");
                    seen.1 += 1;
                }
                (false, None) => seen.2 += 1,
                (false, Some(_)) => panic!("it is refused already"),
            }
        }
        assert_eq!(seen, (2, 3, 5));
        assert_eq!(
            (
                stores["one"].missing("a", token(HOUR)),
                stores["one"].missing("s", token(HOUR))
            ),
            (5, s)
        );
    }
    // Without its store, it would refuse.
    let pod = limiter(&[shadow]);
    let mut outcome = begin(&pod, "", 0).unwrap();
    pod.settle(&mut outcome, &[None], Duration::ZERO);
    assert!(outcome.refused().is_none() && outcome.unavailable().is_none());
    assert_eq!(outcome.shadows().map(|by| by.limit).collect::<Vec<_>>(), ["s"]);
}

/// What callers hear is of all pods, where the store answers, and of this one, where it does not.
#[test]
fn what_is_left_is_what_counts() {
    let said = Policy {
        headers: ResponseHeaders::Ietf.into(),
        ..policy(
            "shop/a",
            vec![Limit {
                shares: 3,
                ..limit("a", 9, HOUR, true)
            }],
            "one",
            LOCAL,
        )
    };
    let pods = [limiter(std::slice::from_ref(&said)), limiter(&[said])];
    let mut stores: Stores = [("one", Store::default())].into();
    assert!(admits(&pods[0], "", &mut stores, 0));
    for (stores, quota, remaining) in [(&mut stores, 9, 7), (&mut Stores::new(), 3, 2)] {
        let mut outcome = begin(&pods[1], "", 0).unwrap();
        let answers = ask(stores, outcome.asks(), 0);
        assert!(settle(&pods[1], &mut outcome, &answers, stores, 0));
        let standing = outcome.standing().unwrap();
        assert_eq!((standing.quota, standing.remaining), (quota, remaining));
    }
}

/// Policies that change while a store is asked: what was taken is given back to the limit of the same name, and nothing breaks where it is gone.
#[test]
fn policies_may_change_while_a_store_is_asked() {
    let own = |requests| limit("own", requests, HOUR, false);
    let before = policy("shop/b", vec![own(5), limit("a", 5, HOUR, true)], "one", LOCAL);
    let refuses = [Some(vec![State {
        wait: 1,
        remaining: 0,
        full: 1,
    }])];
    // Others come before it in the plan.
    let more = policy("shop/a", vec![limit("x", 9, HOUR, false)], "one", LOCAL);
    let after = [more, policy("shop/b", vec![own(5)], "one", LOCAL)];
    for answers in [&refuses[..], &[None], &[Some(Vec::new())], &[]] {
        let pod = limiter(std::slice::from_ref(&before));
        let mut outcome = begin(&pod, "", 0).unwrap();
        pod.update(&told(&after), Duration::ZERO);
        pod.settle(&mut outcome, answers, Duration::ZERO);
        let left = (0..20).filter(|_| admits(&pod, "", &mut Stores::new(), 0)).count();
        assert_eq!(left, if outcome.refused().is_some() { 5 } else { 4 }, "{answers:?}");
        let mut outcome = begin(&limiter(std::slice::from_ref(&before)), "", 0).unwrap();
        pod.update(&Limits::default(), Duration::ZERO);
        pod.settle(&mut outcome, answers, Duration::ZERO);
    }
}
