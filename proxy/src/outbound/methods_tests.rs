//! In simulated time, with seeded random numbers.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::HashMap;

use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::NOT_BUSY;
use crate::model::{Balancing, Workload};
use crate::outbound::affinity::Caller;
use crate::outbound::balance::Balancer;
use crate::outbound::hash::mix;
use crate::outbound::health::Answer;
use crate::outbound::testing::{
    MS, SECOND, ask_by, balancer, endpoints, member, pick_by, pick_keyed, port, rng, rules,
};

const HASH: &str = "loadBalancer: {type: ConsistentHash, consistentHash: {keys: [{type: Header, name: x-user}]}}";

/// How many of so many requests, each of which has ended before the next, go to which endpoint.
fn counts(balancer: &Balancer, rules: &Balancing, requests: u32, now: Instant) -> HashMap<u16, u32> {
    let rng = rng(3);
    let mut counts = HashMap::new();
    for _ in 0..requests {
        *counts
            .entry(port(&pick_by(balancer, rules, &[], now, &rng)))
            .or_default() += 1;
    }
    counts
}

/// Where each of so many users is sent, one at a time.
fn homes(balancer: &Balancer, rules: &Balancing, users: u64, now: Instant, rng: &RefCell<SmallRng>) -> Vec<u16> {
    let home = |user| port(&pick_keyed(balancer, rules, Some(mix(user + 1)), now, rng));
    (0..users).map(home).collect()
}

#[test]
fn round_robin_gives_each_its_turn() {
    let now = Instant::now();
    let rules = rules("loadBalancer: {type: RoundRobin}");
    for n in [2, 3, 7] {
        let mut balancer = balancer(n, now);
        let counts_of = |balancer: &Balancer, requests| counts(balancer, &rules, requests, now);
        let each: HashMap<_, _> = (1..=n).map(|port| (port, 100)).collect();
        assert_eq!(counts_of(&balancer, 100 * u32::from(n)), each);
        // Also where one of them is left out, or one more comes.
        ask_by(&member(&balancer, 1), &rules, Answer::Unreachable, MS, now);
        let each: HashMap<_, _> = (2..=n).map(|port| (port, 100)).collect();
        assert_eq!(counts_of(&balancer, 100 * u32::from(n - 1)), each);
        balancer.update(&endpoints(2..=n + 1), None, now);
        let each: HashMap<_, _> = (2..=n + 1).map(|port| (port, 100)).collect();
        assert_eq!(counts_of(&balancer, 100 * u32::from(n)), each);
    }
}

#[test]
fn sidecars_that_start_together_do_not_begin_with_the_same_endpoint() {
    let now = Instant::now();
    let rules = rules("loadBalancer: {type: RoundRobin}");
    let first = |seed| port(&pick_by(&balancer(10, now), &rules, &[], now, &rng(seed)));
    let first: std::collections::BTreeSet<_> = (0..100).map(first).collect();
    assert_eq!(first.len(), 10);
}

#[test]
fn random_is_even_and_looks_at_nothing() {
    let now = Instant::now();
    let rules = rules("loadBalancer: {type: Random}");
    let balancer = balancer(4, now);
    let _held: Vec<_> = (0..100).map(|_| member(&balancer, 1).take(&rules, now)).collect();
    let all = counts(&balancer, &rules, 4000, now);
    assert!((1..=4).all(|port| (850..1150).contains(&all[&port])), "{all:?}");
    ask_by(&member(&balancer, 2), &rules, Answer::Unreachable, MS, now);
    let others = counts(&balancer, &rules, 3000, now);
    assert!(
        [1, 3, 4].iter().all(|port| (850..1150).contains(&others[port])),
        "{others:?}"
    );
}

#[test]
fn the_least_requests_in_hand_count_and_not_the_time() {
    let now = Instant::now();
    let rules = rules("loadBalancer: {type: LeastRequest}");
    let balancer = balancer(2, now);
    ask_by(&member(&balancer, 1), &rules, Answer::Good, 900 * MS, now);
    ask_by(&member(&balancer, 2), &rules, Answer::Good, MS, now);
    let slow = counts(&balancer, &rules, 1000, now)[&1];
    assert!((400..600).contains(&slow), "{slow}");
    let random = rng(5);
    let held: Vec<_> = (0..100)
        .map(|_| pick_by(&balancer, &rules, &[], now, &random).take(&rules, now))
        .collect();
    assert!(member(&balancer, 1).in_hand().abs_diff(50) <= 1);
    drop(held);
}

#[test]
fn only_the_share_of_what_comes_and_goes_moves() {
    let now = Instant::now();
    let (rules, random) = (rules(HASH), rng(6));
    let mut balancer = balancer(3, now);
    let users = 10_000;
    let three = homes(&balancer, &rules, users, now, &random);
    for port in 1..=3 {
        let share = three.iter().filter(|home| **home == port).count();
        assert!((3100..3570).contains(&share), "{port}: {share}");
    }
    // In another order, which says nothing.
    balancer.update(&endpoints((1..=10).rev()), None, now);
    let ten = homes(&balancer, &rules, users, now, &random);
    let moved: Vec<_> = three
        .iter()
        .zip(&ten)
        .filter(|(before, after)| before != after)
        .collect();
    assert!(
        moved.iter().all(|(_, after)| **after > 3),
        "who moves comes to a new one"
    );
    assert!((6800..7200).contains(&moved.len()), "{}", moved.len());
    balancer.update(&endpoints(1..=3), None, now);
    assert_eq!(homes(&balancer, &rules, users, now, &random), three);
}

#[test]
fn users_of_an_endpoint_that_is_left_out_go_to_their_second_and_come_back() {
    let now = Instant::now();
    let (rules, random) = (rules(HASH), rng(7));
    let balancer = balancer(5, now);
    let before = homes(&balancer, &rules, 1000, now, &random);
    ask_by(&member(&balancer, 1), &rules, Answer::Unreachable, MS, now);
    let without = homes(&balancer, &rules, 1000, now, &random);
    for (before, without) in before.iter().zip(&without) {
        assert!(*without != 1 && (before == without || *before == 1));
    }
    let later = now + rules.ejection().base + MS;
    assert_eq!(homes(&balancer, &rules, 1000, later, &random), before);
}

#[test]
fn no_endpoint_has_more_in_hand_than_the_bound() {
    let now = Instant::now();
    for (percent, spec) in [
        (125, String::new()),
        (100, ", boundedLoad: 100".to_owned()),
        (200, ", boundedLoad: 200".to_owned()),
    ] {
        let rules = rules(&format!(
            "loadBalancer: {{type: ConsistentHash, consistentHash: {{keys: [{{type: Header, name: x-user}}]{spec}}}}}"
        ));
        let (balancer, random) = (balancer(5, now), rng(8));
        let mut held = Vec::new();
        // All of one user, which is the worst.
        for requests in 1..=1000_u64 {
            held.push(pick_keyed(&balancer, &rules, Some(42), now, &random).take(&rules, now));
            let most = balancer
                .members()
                .iter()
                .map(|member| u64::from(member.in_hand()))
                .max()
                .unwrap();
            let bound = (requests * percent).div_ceil(500).max(NOT_BUSY);
            assert!(most <= bound, "{percent} %: {most} of {requests}");
        }
        // Few at a time stay where they belong.
        held.clear();
        let home = port(&pick_keyed(&balancer, &rules, Some(42), now, &random));
        for _ in 0..NOT_BUSY {
            let picked = pick_keyed(&balancer, &rules, Some(42), now, &random);
            assert_eq!(port(&picked), home);
            held.push(picked.take(&rules, now));
        }
    }
}

#[test]
fn what_has_nothing_to_go_by_is_balanced() {
    let now = Instant::now();
    let (rules, random) = (rules(HASH), rng(9));
    let balancer = balancer(2, now);
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(pick_by(&balancer, &rules, &[], now, &random).take(&rules, now));
    }
    assert!(member(&balancer, 1).in_hand().abs_diff(50) <= 1);
}

#[test]
fn session_affinity_comes_first() {
    let now = Instant::now();
    let caller = Caller::new(&Workload::default());
    for spec in ["loadBalancer: {type: RoundRobin}", "loadBalancer: {type: Random}", HASH] {
        let rules = rules(spec);
        let mut balancer = Balancer::default();
        balancer.update(&endpoints(1..=5), Some(caller), now);
        let random = rng(10);
        let homes = homes(&balancer, &rules, 100, now, &random);
        assert!(homes.iter().all(|home| *home == homes[0]), "{spec}");
    }
}

const TYPES: [&str; 5] = ["PeakEWMA", "LeastRequest", "RoundRobin", "Random", "ConsistentHash"];

fn of_type(name: &str, more: &str) -> Balancing {
    let hash = match name {
        "ConsistentHash" => ", consistentHash: {keys: [{type: Header, name: x-user}], boundedLoad: 10000}",
        _ => "",
    };
    rules(&format!("loadBalancer: {{type: {name}{hash}, {more}}}"))
}

/// The share of an endpoint of requests that have ended when the next begins, each of another user.
fn share(balancer: &Balancer, rules: &Balancing, of: u16, now: Instant) -> f64 {
    let random = rng(12);
    let requests = 4000;
    let homes = homes(balancer, rules, requests, now, &random);
    homes.iter().filter(|home| **home == of).count() as f64 / requests as f64
}

#[test]
fn one_that_comes_has_its_share_little_by_little() {
    for name in TYPES {
        let now = Instant::now();
        let rules = of_type(name, "slowStart: {window: 100s, minPercent: 10}");
        let mut balancer = balancer(4, now);
        // Those that are there from the beginning are not new.
        let first = share(&balancer, &rules, 1, now);
        assert!((0.2..0.3).contains(&first), "{name}: {first}");
        balancer.update(&endpoints(1..=5), None, now);
        for (seconds, part) in [
            (0, 0.1),
            (5, 0.1),
            (25, 0.25),
            (50, 0.5),
            (75, 0.75),
            (100, 1.0),
            (1000, 1.0),
        ] {
            let share = share(&balancer, &rules, 5, now + seconds * SECOND);
            let expected = part / 5.0;
            // A pass over one goes to the others: its share of what is left is a little more.
            assert!(
                (0.8 * expected..1.4 * expected).contains(&share),
                "{name} after {seconds} s: {share}, not {expected}"
            );
        }
    }
}

#[test]
fn users_move_to_one_that_comes_once_each() {
    let now = Instant::now();
    let rules = of_type("ConsistentHash", "slowStart: {window: 100s, minPercent: 1}");
    let (mut balancer, random) = (balancer(3, now), rng(13));
    let mut before = homes(&balancer, &rules, 1000, now, &random);
    balancer.update(&endpoints(1..=4), None, now);
    for seconds in 0..=100 {
        let after = homes(&balancer, &rules, 1000, now + seconds * SECOND, &random);
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || (*before != 4 && *after == 4));
        }
        before = after;
    }
    assert!((200..300).contains(&before.iter().filter(|home| **home == 4).count()));
}

#[test]
fn where_all_are_new_all_are_used() {
    let now = Instant::now();
    for name in TYPES {
        let rules = of_type(name, "slowStart: {window: 100s, minPercent: 1}");
        let mut balancer = balancer(2, now);
        balancer.update(&endpoints(5..=8), None, now);
        for port in 5..=8 {
            let share = share(&balancer, &rules, port, now);
            assert!((0.15..0.35).contains(&share), "{name}: {share}");
        }
    }
}

#[test]
fn one_that_is_busy_gets_less_and_something() {
    for (name, least, most) in [
        ("PeakEWMA", 0.06, 0.14),
        ("LeastRequest", 0.06, 0.14),
        ("RoundRobin", 0.04, 0.1),
        ("Random", 0.04, 0.1),
        // A user stays.
        ("ConsistentHash", 0.2, 0.3),
    ] {
        let now = Instant::now();
        let rules = of_type(name, "penalty: {}");
        let balancer = balancer(4, now);
        member(&balancer, 1).penalise(now + 5 * SECOND);
        let share_of = |rules: &Balancing, now| {
            // With requests in hand, so that load says something.
            let random = rng(14);
            let mut held = std::collections::VecDeque::new();
            let mut to_one = 0;
            for user in 0..4000 {
                let picked = pick_keyed(&balancer, rules, Some(mix(user + 1)), now, &random);
                to_one += u32::from(port(&picked) == 1);
                held.push_back(picked.take(rules, now));
                if held.len() > 100 {
                    held.pop_front().unwrap().end(Answer::Good, now + MS);
                }
            }
            f64::from(to_one) / 4000.0
        };
        let share = share_of(&rules, now);
        assert!((least..most).contains(&share), "{name}: {share}");
        let others = share_of(&of_type(name, "slowStart: {window: 1s}"), now);
        assert!((0.2..0.3).contains(&others), "{name}: {others}, without a penalty");
        let later = share_of(&rules, now + 5 * SECOND);
        assert!((0.2..0.3).contains(&later), "{name}: {later}, when its time is over");
        // Where all are busy nothing has changed.
        (1..=4).for_each(|port| member(&balancer, port).penalise(now + 60 * SECOND));
        let all = share_of(&rules, now + 6 * SECOND);
        assert!((0.2..0.3).contains(&all), "{name}: {all}, as all are");
    }
}
