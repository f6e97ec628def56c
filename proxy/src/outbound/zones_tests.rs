//! In simulated time, with seeded random numbers.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::model::{Balancing, Endpoint, Workload};
use crate::outbound::affinity::Caller;
use crate::outbound::balance::Balancer;
use crate::outbound::hash::mix;
use crate::outbound::health::Answer;
use crate::outbound::member::InHand;
use crate::outbound::testing::{
    MS, NO_RULES, SECOND, ask_by, endpoints, member, pick_by, pick_keyed, port, rng, rules,
};

/// With ports 1 to `near` near the caller, and others up to `all`.
fn zoned(near: u16, all: u16, affinity: Option<Caller>, now: Instant) -> Balancer {
    let mut balancer = Balancer::default();
    let marked = endpoints(1..=all).into_iter().map(|endpoint| {
        let is_near = endpoint.address.port() <= near;
        Arc::new(Endpoint {
            remote: !is_near,
            ..Endpoint::clone(&endpoint)
        })
    });
    // In whatever order they come.
    let mut marked: Vec<_> = marked.collect();
    marked.reverse();
    balancer.update(&marked, affinity, now);
    balancer
}

/// Endpoints that answer one request after the other, a third of them near the caller, at a steady rate.
struct Zoned {
    /// In each of three zones.
    each: u16,
    /// Requests in a second.
    rate: u32,
    /// What a near endpoint takes for a request, and another one; the way is a part of it.
    takes: [Duration; 2],
    /// By how much it may be longer, at random: often by little, seldom by very much.
    scatter: f64,
    lasts: Duration,
}

impl Zoned {
    /// The share of the requests in the second half that near endpoints get, and the longest that one of these takes.
    fn run(&self, rules: &Balancing) -> (f64, Duration) {
        let random = rng(21);
        let start = Instant::now();
        let balancer = zoned(self.each, 3 * self.each, None, start);
        let mut free_at = vec![Duration::ZERO; usize::from(3 * self.each) + 1];
        let mut under_way: Vec<(Duration, InHand)> = Vec::new();
        let (mut at, mut near, mut all, mut longest) = (Duration::ZERO, 0, 0, Duration::ZERO);
        while at < self.lasts {
            under_way.sort_by_key(|(ends, _)| *ends);
            let ended = under_way.partition_point(|(ends, _)| *ends <= at);
            for (ends, mut in_hand) in under_way.drain(..ended) {
                in_hand.end(Answer::Good, start + ends);
            }
            let picked = pick_by(&balancer, rules, &[], start + at, &random);
            let is_near = port(&picked) <= self.each;
            let chance: f64 = random.borrow_mut().random();
            let takes = self.takes[usize::from(!is_near)].mul_f64(1.0 + self.scatter * chance.powi(8));
            let free = &mut free_at[usize::from(port(&picked))];
            let ends = at.max(*free) + takes;
            *free = ends;
            if at >= self.lasts / 2 {
                near += u32::from(is_near);
                all += 1;
                longest = longest.max(ends.saturating_sub(at));
            }
            under_way.push((ends, picked.take(rules, start + at)));
            at += SECOND / self.rate;
        }
        (f64::from(near) / f64::from(all), longest)
    }
}

fn scene(rate: u32, near: Duration, others: Duration) -> Zoned {
    Zoned {
        each: 1,
        rate,
        takes: [near, others],
        scatter: 0.0,
        lasts: 120 * SECOND,
    }
}

#[test]
fn requests_stay_near_while_near_endpoints_can_do_it() {
    for each in [1, 3, 10] {
        for rate in [20, 60, 80] {
            for scatter in [0.0, 0.2, 3.0] {
                let zoned = Zoned {
                    each,
                    rate: rate * u32::from(each) / 2,
                    scatter,
                    ..scene(0, 10 * MS, 11 * MS)
                };
                let (share, _) = zoned.run(&NO_RULES);
                assert!(share > 0.95, "{each} endpoints, {rate}/s, scatter {scatter}: {share}");
            }
        }
    }
}

#[test]
fn they_spill_where_near_endpoints_take_more_than_one_and_a_fifth_times_as_long() {
    for (near, least, most) in [
        (10 * MS, 0.97, 1.0),
        (11 * MS, 0.97, 1.0),
        // Not before.
        (Duration::from_micros(11_900), 0.97, 1.0),
        (Duration::from_micros(12_100), 0.3, 0.4),
        // As slow as they may be, they have what they would have without a preference.
        (30 * MS, 0.3, 0.4),
    ] {
        let (share, _) = scene(20, near, 10 * MS).run(&NO_RULES);
        assert!((least..=most).contains(&share), "{near:?}: {share}");
    }
}

#[test]
fn an_overloaded_zone_gives_away_what_is_too_much() {
    // One endpoint near the caller does 100 requests in a second.
    for (rate, least, most) in [(110, 0.6, 0.98), (150, 0.36, 0.75), (250, 0.33, 0.5)] {
        let zoned = scene(rate, 10 * MS, 11 * MS);
        let (share, longest) = zoned.run(&NO_RULES);
        assert!((least..most).contains(&share), "{rate}/s: {share}");
        assert!(longest < SECOND, "{rate}/s: {longest:?}");
        let off = rules("loadBalancer: {zone: Off}");
        let (share, _) = zoned.run(&off);
        assert!((0.25..0.45).contains(&share), "{rate}/s without a preference: {share}");
    }
}

#[test]
fn where_all_near_ones_are_left_out_the_others_are_asked_whatever_the_type() {
    let hash = "{type: ConsistentHash, consistentHash: {keys: [{type: Path}]}}";
    let random = rng(22);
    for (spec, affinity) in [
        ("{}", None),
        ("{type: LeastRequest}", None),
        ("{type: RoundRobin}", None),
        ("{type: Random}", None),
        (hash, None),
        ("{}", Some(Caller::new(&Workload::default()))),
    ] {
        let now = Instant::now();
        let rules = rules(&format!("loadBalancer: {spec}"));
        let balancer = zoned(2, 6, affinity, now);
        let near = || {
            let picked = (0..1000).map(|user| port(&pick_keyed(&balancer, &rules, Some(mix(user + 1)), now, &random)));
            picked.filter(|port| *port <= 2).count()
        };
        assert_eq!(near(), 1000, "{spec}: nothing is known yet");
        ask_by(&member(&balancer, 1), &rules, Answer::Connected, MS, now);
        assert_eq!(near(), 1000, "{spec}: bytes have no response");
        ask_by(&member(&balancer, 1), &rules, Answer::Good, MS, now);
        let stays = affinity.is_some() || spec == hash;
        let looking = near();
        assert!(looking > 900 && (looking == 1000) == stays, "{spec}: {looking}");
        ask_by(&member(&balancer, 1), &rules, Answer::Unreachable, MS, now);
        assert!(near() > 900, "{spec}: one of them is there");
        ask_by(&member(&balancer, 2), &rules, Answer::Unreachable, MS, now);
        assert_eq!(near(), 0, "{spec}");
    }
}

#[test]
fn a_retry_prefers_a_near_one_that_was_not_tried() {
    let now = Instant::now();
    let (balancer, random) = (zoned(2, 6, None, now), rng(23));
    let picked = |tried: &[_]| port(&pick_by(&balancer, &NO_RULES, tried, now, &random));
    let one = member(&balancer, 1);
    assert!((0..1000).all(|_| picked(std::slice::from_ref(&one)) == 2));
    let both = [one, member(&balancer, 2)];
    assert!((0..1000).all(|_| picked(&both) > 2));
}

#[test]
fn who_becomes_near_keeps_what_is_known() {
    let now = Instant::now();
    let mut balancer = zoned(1, 3, None, now);
    let (one, two) = (member(&balancer, 1), member(&balancer, 2));
    balancer.update(&endpoints(1..=2), None, now);
    assert!(std::rc::Rc::ptr_eq(&member(&balancer, 1), &one));
    assert!(std::rc::Rc::ptr_eq(&member(&balancer, 2), &two));
    let random = rng(24);
    let to_two = (0..1000).filter(|_| port(&pick_by(&balancer, &NO_RULES, &[], now, &random)) == 2);
    assert!((400..600).contains(&to_two.count()));
}

/// Requests that stay near whatever it takes say nothing about the others, which have none of their kind.
#[test]
fn slow_requests_that_stay_near_send_no_others_away() {
    for policy in [
        "loadBalancer: {type: ConsistentHash, consistentHash: {keys: [{type: Path}]}}",
        "loadBalancer: {zone: Off}",
    ] {
        let staying = rules(policy);
        let random = rng(5);
        let begin = Instant::now();
        let balancer = zoned(2, 6, None, begin);
        let mut near = 0;
        for n in 0..2000u32 {
            let now = begin + n * SECOND / 10;
            // Whichever it is: of the near ones, as a rule that knows no zones would call them too.
            let slow = member(&balancer, 1 + (n % 2) as u16);
            ask_by(&slow, &staying, Answer::Good, 5 * SECOND, now);
            let picked = pick_by(&balancer, &NO_RULES, &[], now, &random);
            ask_by(&picked, &NO_RULES, Answer::Good, 10 * MS, now);
            near += u32::from(port(&picked) <= 2);
        }
        assert!(near > 1900, "{policy}: {near} of 2000 stay near");
    }
}
