//! What holds of every limit: each property over many limits and requests from seeds, with time as an argument.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use outrigger_access::{Caller, Carries, Facts, Head, Tokens};
use outrigger_api::access;
use outrigger_api::discovery::{NamedMatch, StringMatch, string_match};
use outrigger_api::limits::{Cost, KeyPart, Limit, Limits, Override, PerHeader, PerIdentity, Policy, Rate, key_part};
use outrigger_api::pattern::MAX_PATTERNS;
use outrigger_api::spiffe::SpiffeId;
use outrigger_limits::view::PolicyView;
use outrigger_limits::{Limiter, MOST_BUCKETS};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const SECOND: Duration = Duration::from_secs(1);

fn rate(requests: u32, interval_ms: u64, burst: u32) -> Option<Rate> {
    Some(Rate {
        requests,
        interval_ms,
        burst,
    })
}

fn limit(name: &str, rate: Option<Rate>) -> Limit {
    Limit {
        name: name.to_owned(),
        rate,
        ..Limit::default()
    }
}

fn per_header(max_keys: u32, limit: Limit) -> Limit {
    let kind = Some(key_part::Kind::Header(PerHeader {
        name: "x-key".to_owned(),
    }));
    Limit {
        per: vec![KeyPart { kind }],
        max_keys,
        ..limit
    }
}

fn policy(name: &str, limits: Vec<Limit>) -> Policy {
    Policy {
        name: name.to_owned(),
        limits,
        ..Policy::default()
    }
}

fn limiter(policies: Vec<Policy>) -> Limiter {
    let limiter = Limiter::default();
    limiter.update(&Limits { policies }, Duration::ZERO);
    limiter
}

fn with_facts<T>(key: &str, tokens: u32, caller: Option<&SpiffeId>, ask: impl FnOnce(&Facts<'_>) -> T) -> T {
    let mut headers = HeaderMap::new();
    headers.insert("x-key", HeaderValue::try_from(key).unwrap());
    headers.insert("x-cost", tokens.into());
    let facts = Facts {
        port: 80,
        caller: Caller {
            identity: caller,
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
    ask(&facts)
}

fn admits_at(limiter: &Limiter, key: &str, tokens: u32, now: Duration) -> bool {
    with_facts(key, tokens, None, |facts| {
        limiter
            .decide(facts, now)
            .is_none_or(|outcome| outcome.refused().is_none())
    })
}

/// In no window is more admitted than the burst and what the rate gives meanwhile, whatever requests cost; and what is refused would have
/// been more, or is more at the end of the time that it is told to wait, less a microsecond.
#[test]
fn never_more_than_burst_and_rate_in_any_window() {
    let (mut admitted, mut refused) = (0, 0);
    for seed in 0..400 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let (requests, burst) = (random.random_range(1..50_u32), random.random_range(1..50_u32));
        let (interval, shares) = (random.random_range(1000..5000_u64), random.random_range(1..4_u32));
        let most = random.random_range(1..8_u32);
        let one = Limit {
            shares,
            cost: Some(Cost {
                header: "x-cost".to_owned(),
                max: most,
            }),
            ..limit("a", rate(requests, interval, burst))
        };
        let limiter = limiter(vec![policy("shop/p", vec![one])]);
        // In units of which a token has `interval` × 1000 × shares: see bucket.rs.
        let micros = u128::from(interval) * 1000;
        let token = micros * u128::from(shares);
        let capacity = (u128::from(burst) * micros).max(token);
        let gives = u128::from(requests.max(shares));
        let mut log: Vec<(u128, u128)> = Vec::new();
        let mut now = 0_u64;
        for _ in 0..300 {
            now += match random.random_range(0..3) {
                0 => 0,
                1 => random.random_range(0..2000),
                _ => random.random_range(0..interval * 500),
            };
            let tokens = random.random_range(1..=most);
            let cost = (token * u128::from(tokens)).min(capacity);
            let fits = |log: &[(u128, u128)], now: u128| {
                // Of windows that end now, the worst.
                let mut sum = cost;
                log.iter().rev().all(|(at, units)| {
                    sum += units;
                    sum <= capacity + (now - at) * gives
                })
            };
            let wait = with_facts("", tokens, None, |facts| {
                let outcome = limiter.decide(facts, Duration::from_micros(now)).unwrap();
                outcome.refused().map(|(_, wait)| wait.as_micros())
            });
            match wait {
                None => {
                    assert!(fits(&log, now.into()), "seed {seed}: too much at {now}");
                    log.push((now.into(), cost));
                    admitted += 1;
                }
                Some(wait) => {
                    assert!(!fits(&log, now.into()), "seed {seed}: refused for nothing at {now}");
                    assert!(
                        fits(&log, u128::from(now) + wait),
                        "seed {seed}: told to wait too short at {now}"
                    );
                    assert!(
                        !fits(&log, u128::from(now) + wait - 1),
                        "seed {seed}: told to wait too long at {now}"
                    );
                    refused += 1;
                }
            }
        }
    }
    assert!(admitted > 10_000 && refused > 10_000, "{admitted} {refused}");
}

/// The order in which policies and limits are told changes nothing: what is admitted, what is reported, what is left.
#[test]
fn the_order_of_limits_means_nothing() {
    for seed in 0..200 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let mut policies: Vec<Policy> = (0..random.random_range(1..4))
            .map(|n| {
                let limits = (0..random.random_range(1..4)).map(|n| {
                    let rate = rate(random.random_range(1..5), 1000, random.random_range(1..5));
                    let one = limit(&n.to_string(), rate);
                    if random.random() { per_header(3, one) } else { one }
                });
                let limits = limits.collect();
                Policy {
                    headers: random.random_range(0..3),
                    limits,
                    shadow: random.random_range(0..3) == 0,
                    ..policy(&format!("shop/{n}"), Vec::new())
                }
            })
            .collect();
        let one = limiter(policies.clone());
        policies.shuffle(random);
        policies.iter_mut().for_each(|policy| policy.limits.shuffle(random));
        let other = limiter(policies);
        let mut now = Duration::ZERO;
        for _ in 0..100 {
            now += Duration::from_millis(random.random_range(0..400));
            let key = random.random_range(0..5).to_string();
            let said = |limiter: &Limiter| {
                with_facts(&key, 1, None, |facts| {
                    let outcome = limiter.decide(facts, now)?;
                    let shadows: Vec<_> = outcome.shadows().map(|shadow| format!("{shadow:?}")).collect();
                    Some(format!("{:?} {:?} {shadows:?}", outcome.refused(), outcome.standing()))
                })
            };
            assert_eq!(said(&one), said(&other), "seed {seed}");
        }
    }
}

/// What one limit refuses takes nothing of another one.
#[test]
fn tokens_are_taken_only_where_all_admit() {
    let narrow = per_header(100, limit("narrow", rate(1, 60_000, 1)));
    let limiter = limiter(vec![policy("shop/p", vec![limit("wide", rate(1, 60_000, 10)), narrow])]);
    assert!(admits_at(&limiter, "a", 1, SECOND));
    for _ in 0..100 {
        assert!(!admits_at(&limiter, "a", 1, SECOND));
    }
    let others = (0..100)
        .filter(|n| admits_at(&limiter, &format!("b{n}"), 1, SECOND))
        .count();
    assert_eq!(others, 9);
}

/// A shadow refuses nothing, takes nothing of what is enforced, and counts what it would refuse of what comes through.
#[test]
fn a_shadow_refuses_nothing() {
    let shadow = Policy {
        shadow: true,
        ..policy("shop/shadow", vec![limit("s", rate(1, 60_000, 3))])
    };
    let limiter = limiter(vec![policy("shop/p", vec![limit("e", rate(1, 60_000, 5))]), shadow]);
    let mut seen = (0, 0, 0);
    for _ in 0..10 {
        with_facts("", 1, None, |facts| {
            let outcome = limiter.decide(facts, SECOND).unwrap();
            match outcome.refused() {
                Some((by, _)) => {
                    assert_eq!((by.policy, by.limit), ("shop/p", "e"));
                    assert_eq!(outcome.shadows().count(), 0);
                    seen.2 += 1;
                }
                None if outcome.shadows().any(|by| by.policy == "shop/shadow") => seen.1 += 1,
                None => seen.0 += 1,
            }
        });
    }
    assert_eq!(seen, (3, 2, 5));
}

/// A Service of 100 requests a second, on three, five and then one pod: with even load its pods together admit that; where all of
/// it comes to one pod of five, a fifth.
#[test]
fn shares_of_a_service() {
    for seed in 0..20 {
        let random = &mut SmallRng::seed_from_u64(seed);
        let told = |shares| Limits {
            policies: vec![policy(
                "shop/p",
                vec![Limit {
                    shares,
                    ..limit("a", rate(100, 1000, 100))
                }],
            )],
        };
        let pods: Vec<Limiter> = std::iter::repeat_with(Limiter::default).take(5).collect();
        let mut now = Duration::ZERO;
        for (count, even, expected) in [(3, true, 100.0), (5, true, 100.0), (1, true, 100.0), (5, false, 20.0)] {
            pods.iter().for_each(|pod| pod.update(&told(count), now));
            let ready = &pods[..count as usize];
            // Load of 400 a second; the first ten seconds use up what a pod that is new has as its burst.
            let mut admitted = 0;
            for n in 0..400 * 40_u32 {
                now += Duration::from_micros(random.random_range(1500..3500));
                let pod = if even {
                    &ready[random.random_range(0..ready.len())]
                } else {
                    &ready[0]
                };
                if admits_at(pod, "", 1, now) && n >= 400 * 10 {
                    admitted += 1;
                }
            }
            let a_second = f64::from(admitted) / 30.0;
            let off = a_second / expected;
            assert!((0.9..=1.1).contains(&off), "seed {seed}, {count} pods: {a_second}");
        }
    }
}

/// A pod more gives nobody his burst back, and a rate that changes keeps what was taken.
#[test]
fn a_change_keeps_what_was_taken() {
    let told = |shares, requests, keys| Limits {
        policies: vec![policy(
            "shop/p",
            vec![Limit {
                shares,
                ..per_header(keys, limit("a", rate(requests, 3_600_000, requests)))
            }],
        )],
    };
    let limiter = Limiter::default();
    limiter.update(&told(2, 10, 100), SECOND);
    for key in ["a", "b"] {
        assert_eq!((0..20).filter(|_| admits_at(&limiter, key, 1, SECOND)).count(), 5);
    }
    for (shares, requests, keys) in [(1, 10, 100), (2, 10, 100), (2, 10, 100), (2, 10, 50)] {
        limiter.update(&told(shares, requests, keys), SECOND);
    }
    assert!(!admits_at(&limiter, "a", 1, SECOND), "its five are taken");
    limiter.update(&told(1, 10, 100), SECOND);
    assert_eq!((0..20).filter(|_| admits_at(&limiter, "b", 1, SECOND)).count(), 5);
    // Another key is another limit.
    let mut other = told(1, 10, 100);
    other.policies[0].limits[0].per.clear();
    limiter.update(&other, SECOND);
    assert!(admits_at(&limiter, "a", 1, SECOND));
    limiter.update(&Limits::default(), SECOND);
    assert!(limiter.is_empty());
}

/// A Service that scales up and down again and again gives nobody anything back, with keys or without.
#[test]
fn shares_that_go_up_and_down_give_nothing_back() {
    for keyed in [false, true] {
        let told = |shares| {
            let one = Limit {
                shares,
                ..limit("a", rate(10, 3_600_000, 10))
            };
            let one = if keyed { per_header(100, one) } else { one };
            Limits {
                policies: vec![policy("shop/p", vec![one])],
            }
        };
        let limiter = Limiter::default();
        limiter.update(&told(1), SECOND);
        let admitted = || (0..20).filter(|_| admits_at(&limiter, "a", 1, SECOND)).count();
        assert_eq!(admitted(), 10);
        for shares in [2, 1, 2, 1, 1_000_000, 1] {
            limiter.update(&told(shares), SECOND);
            assert_eq!(admitted(), 0, "{shares} shares, keyed: {keyed}");
        }
        // It is paid off as if nothing had been.
        let later = SECOND + Duration::from_secs(360);
        assert!(admits_at(&limiter, "a", 1, later) && !admits_at(&limiter, "a", 1, later));
    }
}

/// However many keys come, there are no more buckets than it says; those that are full again go first; what has none shares one, or is
/// refused.
#[test]
fn keys_are_bounded_and_idle_ones_go_first() {
    for reject in [false, true] {
        let one = Limit {
            reject_overflow: reject,
            ..per_header(1000, limit("a", rate(2, 1000, 2)))
        };
        let limiter = limiter(vec![policy("shop/p", vec![one])]);
        let keys = || limiter.view()[0].limits[0].keys;
        let many = |from: u32, count: u32, now| {
            let all = (from..from + count).filter(|n| admits_at(&limiter, &n.to_string(), 1, now));
            all.count()
        };
        // One is busy all the time.
        assert!(admits_at(&limiter, "busy", 1, SECOND) && admits_at(&limiter, "busy", 1, SECOND));
        assert_eq!(many(0, 999, SECOND), 999);
        assert_eq!(keys(), 1000);
        // All others share two, or have none.
        assert_eq!(many(1000, 10_000, SECOND), if reject { 0 } else { 2 });
        assert_eq!(keys(), 1000);
        // Half a second later those that took one token are full again.
        let later = SECOND + Duration::from_millis(500);
        assert!(admits_at(&limiter, "busy", 1, later) && !admits_at(&limiter, "busy", 1, later));
        assert_eq!(many(20_000, 999, later), 999);
        assert!(!admits_at(&limiter, "busy", 1, later), "its bucket is still there");
        assert!(keys() <= 1000);
        let shared = many(40_000, 10_000, later);
        assert!(shared <= 3, "{shared}");
    }
}

/// Policies that ask for more than all may have get their shares of it.
#[test]
fn all_limits_together_are_bounded() {
    let limits = (0..40).map(|n| per_header(100_000, limit(&n.to_string(), rate(1, 1000, 1))));
    let limiter = limiter(vec![policy("shop/p", limits.collect())]);
    let view = limiter.view();
    let most: usize = view[0].limits.iter().map(|limit| limit.max_keys).sum();
    assert!(most <= MOST_BUCKETS && most > MOST_BUCKETS / 2, "{most}");
}

fn with_patterns(count: usize, limit: Limit) -> Limit {
    let regex = StringMatch {
        kind: Some(string_match::Kind::Regex("a".to_owned())),
    };
    let header = NamedMatch {
        name: "x-key".to_owned(),
        value: Some(regex),
    };
    let kind = Some(access::http_condition::Kind::Header(header));
    let one = access::HttpMatch {
        all: vec![access::HttpCondition { kind }],
    };
    let any = vec![one; count];
    let kind = Some(access::condition::Kind::Http(access::HttpMatches { any }));
    Limit {
        matches: vec![outrigger_api::limits::Match {
            all: vec![access::Condition { kind }],
        }],
        ..limit
    }
}

/// Whatever shadows ask for, what is enforced has its patterns and its buckets; and what has no keys has a bucket for each rate.
#[test]
fn a_shadow_takes_nothing_of_what_is_enforced() {
    let any = access::source::Kind::Any(access::Anybody {});
    let one = Limit {
        overrides: vec![Override {
            sources: Some(access::Sources {
                any: vec![access::Source { kind: Some(any) }],
            }),
            rate: rate(1, 1000, 1),
        }],
        ..limit("one", rate(1, 1000, 1))
    };
    let many = |count: u32| (0..count).map(|n| per_header(100_000, limit(&n.to_string(), rate(1, 1000, 1))));
    let shadow = Policy {
        shadow: true,
        ..policy(
            "shop/a",
            many(16)
                .chain([with_patterns(MAX_PATTERNS, limit("z", rate(1, 1000, 1)))])
                .collect(),
        )
    };
    let enforced = policy(
        "shop/b",
        many(1)
            .chain([with_patterns(MAX_PATTERNS, limit("a", rate(1, 1000, 1))), one])
            .collect(),
    );
    let alone = limiter(vec![enforced.clone()]).view();
    let both = limiter(vec![shadow.clone(), enforced]).view();
    assert_eq!(both[1], alone[0]);
    let most = |view: &PolicyView| view.limits.iter().map(|limit| limit.max_keys).collect::<Vec<_>>();
    assert_eq!(most(&alone[0]), [100_000, 1, 2]);
    let shadows: usize = most(&both[0]).iter().sum();
    assert!(shadows <= MOST_BUCKETS - 100_000, "{shadows}");
    // Also where nothing is left.
    let all = policy("shop/b", many(4).collect());
    let both = limiter(vec![shadow, all]).view();
    assert_eq!(most(&both[1]), [50_000; 4]);
    assert!(most(&both[0]).iter().all(|&most| most == 1));
}

/// Each identity has its own, those without one share one, and an override is another rate.
#[test]
fn callers_have_buckets_of_their_own() {
    let web = SpiffeId::new("mesh.test", "shop", "web").unwrap();
    let jobs = SpiffeId::new("mesh.test", "shop", "jobs").unwrap();
    let kind = Some(access::identity::Kind::Exact(jobs.to_string()));
    let source = access::source::Kind::Identity(access::Identity { kind });
    let one = Limit {
        per: vec![KeyPart {
            kind: Some(key_part::Kind::Identity(PerIdentity {})),
        }],
        max_keys: 10,
        overrides: vec![Override {
            sources: Some(access::Sources {
                any: vec![access::Source { kind: Some(source) }],
            }),
            rate: rate(7, 60_000, 7),
        }],
        ..limit("a", rate(2, 60_000, 2))
    };
    let limiter = limiter(vec![policy("shop/p", vec![one])]);
    let mut admitted: HashMap<&str, usize> = HashMap::new();
    for (name, caller) in [("web", Some(&web)), ("jobs", Some(&jobs)), ("nobody", None)] {
        for key in 0..20 {
            let outcome = with_facts(&key.to_string(), 1, caller, |facts| {
                limiter.decide(facts, SECOND).unwrap()
            });
            *admitted.entry(name).or_default() += usize::from(outcome.refused().is_none());
        }
    }
    assert_eq!(admitted, HashMap::from([("web", 2), ("jobs", 7), ("nobody", 2)]));
}

/// What this version does not understand of a limit neither refuses more nor less: the limit is left out.
#[test]
fn an_unknown_part_leaves_a_limit_out() {
    let sound = limit("a", rate(1, 60_000, 1));
    let unknown = [
        Limit {
            per: vec![KeyPart { kind: None }],
            ..sound.clone()
        },
        Limit {
            matches: vec![outrigger_api::limits::Match {
                all: vec![access::Condition { kind: None }],
            }],
            ..sound.clone()
        },
        Limit {
            overrides: vec![Override::default()],
            ..sound.clone()
        },
        limit("a", None),
        limit("a", rate(0, 60_000, 1)),
    ];
    for faulty in unknown {
        let limiter = limiter(vec![policy("shop/p", vec![faulty.clone()])]);
        assert!(limiter.is_empty(), "{faulty:?}");
    }
    assert!(!limiter(vec![policy("shop/p", vec![sound])]).is_empty());
}

/// Threads that take at once take no more than there is.
#[test]
fn workers_share_a_limit() {
    let limiter = limiter(vec![policy("shop/p", vec![limit("a", rate(1, 60_000, 1000))])]);
    let take = || (0..1000).filter(|_| admits_at(&limiter, "", 1, SECOND)).count();
    let admitted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(admitted, 1000);
}
