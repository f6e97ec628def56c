//! In simulated time, with seeded random numbers.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rand::Rng;
use tokio::time::Instant;

use super::{LeftOut, most};
use crate::model::{Balancing, Ejection};
use crate::outbound::balance::Balancer;
use crate::outbound::health::Answer;
use crate::outbound::member::Member;
use crate::outbound::testing::{MS, NO_RULES, SECOND, ask_by, balancer, endpoints, member, pick_by, port, rng, rules};

fn fail(member: &Rc<Member>, rules: &Balancing, times: u32, now: Instant) {
    for _ in 0..times {
        ask_by(member, rules, Answer::Bad, MS, now);
    }
}

fn left_out(balancer: &Balancer, rules: &Balancing, now: Instant) -> usize {
    let members = balancer.members().iter();
    members.filter(|member| member.left_out(rules, now).is_some()).count()
}

/// Which endpoints so many requests go to.
fn picked(balancer: &Balancer, rules: &Balancing, requests: u32, now: Instant) -> HashMap<u16, u32> {
    let rng = rng(1);
    let mut picked = HashMap::new();
    for _ in 0..requests {
        *picked
            .entry(port(&pick_by(balancer, rules, &[], now, &rng)))
            .or_default() += 1;
    }
    picked
}

#[test]
fn how_many_may_be_left_out() {
    for (percent, present, expected) in [
        (50, 0, 0),
        (50, 1, 0),
        (50, 2, 1),
        (50, 3, 1),
        (50, 10, 5),
        (10, 2, 1),
        (10, 9, 1),
        (10, 30, 3),
        (100, 1, 0),
        (100, 3, 2),
        (0, 10, 0),
    ] {
        let rules = rules(&format!("ejection: {{maxEjectedPercent: {percent}}}"));
        assert_eq!(most(rules.ejection(), present), expected, "{percent} % of {present}");
    }
}

#[test]
fn which_answers_are_failures() {
    let defaults = &Ejection::DEFAULT;
    let listed = rules("ejection: {statuses: [500, 599], grpcStatuses: [13]}");
    for (status, grpc, by_default, by_list) in [
        (200, None, false, false),
        (200, Some(0), false, false),
        (403, None, false, false),
        (429, None, false, false),
        (500, None, false, true),
        (502, None, true, false),
        (503, None, true, false),
        (504, None, true, false),
        (599, None, false, true),
        // PERMISSION_DENIED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, and what is none.
        (200, Some(7), false, false),
        (200, Some(8), false, false),
        (200, Some(13), false, true),
        (200, Some(14), true, false),
        (200, Some(46), false, false),
        (200, Some(u16::MAX), false, false),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let of = |policy: &Ejection| policy.is_failure(status, grpc);
        assert_eq!(
            (of(defaults), of(listed.ejection())),
            (by_default, by_list),
            "{status} {grpc:?}"
        );
    }
}

#[test]
fn failures_in_a_row_and_times_are_those_of_the_policy() {
    let mut now = Instant::now();
    let rules = rules("ejection: {consecutiveFailures: 2, baseEjectionTime: 3s, maxEjectionTime: 5s}");
    let balancer = balancer(2, now);
    let one = member(&balancer, 1);
    fail(&one, &rules, 1, now);
    ask_by(&one, &rules, Answer::Good, MS, now);
    fail(&one, &rules, 1, now);
    assert_eq!(one.left_out(&rules, now), None, "they are not in a row");
    fail(&one, &rules, 1, now);
    for time in [3, 5, 5] {
        assert_eq!(one.left_out(&rules, now + time * SECOND), Some(LeftOut::Failing));
        now += time * SECOND + MS;
        assert_eq!(one.left_out(&rules, now), None);
        fail(&one, &rules, 1, now);
    }
    // None in a row is enough where there is no such number.
    let never = self::rules("ejection: {consecutiveFailures: 0}");
    let other = member(&balancer, 2);
    fail(&other, &never, 1000, now);
    assert_eq!(other.left_out(&never, now), None);
    ask_by(&other, &never, Answer::Unreachable, MS, now);
    assert_eq!(other.left_out(&never, now), Some(LeftOut::Absent));
}

#[test]
fn one_request_goes_first_and_the_others_elsewhere_until_it_is_answered() {
    for (answer, takes_part) in [(Answer::Good, true), (Answer::Bad, false)] {
        let mut now = Instant::now();
        let balancer = balancer(2, now);
        let one = member(&balancer, 1);
        fail(&one, &NO_RULES, 5, now);
        now += 11 * SECOND;
        assert_eq!(one.left_out(&NO_RULES, now), None);
        let mut probe = one.take(&NO_RULES, now);
        assert_eq!(picked(&balancer, &NO_RULES, 100, now), HashMap::from([(2, 100)]));
        now += SECOND;
        probe.end(answer, now);
        assert_eq!(one.left_out(&NO_RULES, now).is_none(), takes_part, "{answer:?}");
    }
}

#[test]
fn a_first_request_that_says_nothing_leaves_it_to_the_next() {
    let mut now = Instant::now();
    let balancer = balancer(2, now);
    let one = member(&balancer, 1);
    fail(&one, &NO_RULES, 5, now);
    now += 11 * SECOND;
    one.take(&NO_RULES, now).end(Answer::Missing, now);
    assert_eq!(one.left_out(&NO_RULES, now), None);
    let waits = one.take(&NO_RULES, now);
    assert!(one.left_out(&NO_RULES, now).is_some());
    // Nor is it waited for without end: it may be a long poll.
    now += 10 * SECOND;
    assert_eq!(one.left_out(&NO_RULES, now), None);
    drop(waits);
}

#[test]
fn where_more_fail_than_may_be_left_out_all_are_used() {
    let now = Instant::now();
    let balancer = balancer(10, now);
    for n in 1..=5 {
        fail(&member(&balancer, n), &NO_RULES, 5, now);
    }
    assert!(picked(&balancer, &NO_RULES, 1000, now).keys().all(|port| *port > 5));
    fail(&member(&balancer, 6), &NO_RULES, 5, now);
    assert_eq!(left_out(&balancer, &NO_RULES, now), 6);
    assert!(picked(&balancer, &NO_RULES, 1000, now).keys().any(|port| *port <= 5));
    // Until the first of them may be asked again.
    let later = now + 11 * SECOND;
    let probe = member(&balancer, 6).take(&NO_RULES, later);
    assert!(!picked(&balancer, &NO_RULES, 1000, later).contains_key(&6));
    drop(probe);
}

#[test]
fn the_last_that_can_be_connected_to_is_used_whatever_it_answers() {
    let now = Instant::now();
    let rules = rules("ejection: {maxEjectedPercent: 100}");
    for n in 1..=5 {
        let balancer = balancer(n, now);
        for one in 1..n {
            ask_by(&member(&balancer, one), &rules, Answer::Unreachable, MS, now);
        }
        fail(&member(&balancer, n), &rules, 100, now);
        assert_eq!(picked(&balancer, &rules, 100, now), HashMap::from([(n, 100)]), "of {n}");
    }
}

#[test]
fn absent_ones_are_left_out_however_many_they_are() {
    let now = Instant::now();
    let balancer = balancer(10, now);
    for n in 1..=8 {
        ask_by(&member(&balancer, n), &NO_RULES, Answer::Unreachable, MS, now);
    }
    assert!(picked(&balancer, &NO_RULES, 1000, now).keys().all(|port| *port > 8));
    // Of the two that are there one may be left out.
    fail(&member(&balancer, 9), &NO_RULES, 5, now);
    assert_eq!(picked(&balancer, &NO_RULES, 100, now), HashMap::from([(10, 100)]));
}

#[test]
fn a_route_that_says_something_of_ejection_counts_for_itself() {
    let now = Instant::now();
    let mut of_route = rules("ejection: {consecutiveFailures: 1}");
    let route: Arc<str> = "shop/orders/0".into();
    of_route.count_apart(&route);
    let mut balancer = balancer(2, now);
    let one = member(&balancer, 1);
    fail(&one, &of_route, 1, now);
    assert_eq!(one.left_out(&of_route, now), Some(LeftOut::Failing));
    assert_eq!(one.left_out(&NO_RULES, now), None);
    assert_eq!(picked(&balancer, &of_route, 100, now), HashMap::from([(2, 100)]));
    fail(&member(&balancer, 2), &NO_RULES, 5, now);
    assert_eq!(member(&balancer, 2).left_out(&of_route, now), None);
    // What was counted stays while the route does.
    balancer.update(&endpoints(1..3), None, now);
    balancer.keep(|name| *name == *route);
    assert!(one.left_out(&of_route, now).is_some());
    balancer.keep(|_| false);
    assert!(one.left_out(&of_route, now).is_none());
}

/// Requests to ten endpoints, of which one fails with some of them, and all with others.
fn ejected_by_success(rules: &Balancing, of_one: f64, of_all: f64, seconds: u32) -> Vec<u16> {
    let mut now = Instant::now();
    let random = rng(4);
    let balancer = balancer(10, now);
    for _ in 0..seconds * 100 {
        now += 10 * MS;
        let picked = pick_by(&balancer, rules, &[], now, &random);
        let share = if port(&picked) == 1 { of_one } else { of_all };
        let answer = if random.borrow_mut().random_bool(share) {
            Answer::Bad
        } else {
            Answer::Good
        };
        // So long that a failure is not much slower.
        ask_by(&picked, rules, answer, 2 * SECOND, now);
    }
    let members = balancer.members().iter();
    let ejected = members.filter(|member| member.ends(rules).is_some());
    ejected.map(|member| port(member)).collect()
}

#[test]
fn one_that_succeeds_less_often_than_the_others_is_left_out() {
    let by_rate =
        rules("ejection: {consecutiveFailures: 0, successRate: {threshold: 80, window: 30s, minRequests: 20}}");
    let without = rules("ejection: {consecutiveFailures: 0}");
    assert_eq!(ejected_by_success(&by_rate, 0.5, 0.02, 60), [1]);
    assert_eq!(ejected_by_success(&without, 0.5, 0.02, 60), [0u16; 0]);
    // All fail alike, so none of them does.
    assert_eq!(ejected_by_success(&by_rate, 0.3, 0.3, 20), [0u16; 0]);
    // Not so much less.
    assert_eq!(ejected_by_success(&by_rate, 0.1, 0.02, 60), [0u16; 0]);
}

#[test]
fn few_requests_say_nothing_of_a_success_rate() {
    let rules = rules("ejection: {consecutiveFailures: 0, successRate: {threshold: 80, minRequests: 20}}");
    let now = Instant::now();
    let balancer = balancer(2, now);
    let (one, other) = (member(&balancer, 1), member(&balancer, 2));
    fail(&one, &rules, 30, now);
    assert_eq!(one.left_out(&rules, now), None, "nobody is there to compare it with");
    for _ in 0..20 {
        ask_by(&other, &rules, Answer::Good, MS, now);
    }
    fail(&one, &rules, 1, now);
    assert_eq!(one.left_out(&rules, now), Some(LeftOut::Failing));
    let now = now + Duration::from_secs(3600);
    fail(&other, &rules, 19, now);
    assert_eq!(other.left_out(&rules, now), None);
}

/// Whatever endpoints do, somebody is asked.
#[test]
fn the_last_one_is_never_left_out() {
    let random = rng(11);
    for seed in 0..200 {
        let mut now = Instant::now();
        let percent = random.borrow_mut().random_range(1..=100);
        let failures = random.borrow_mut().random_range(1..=3);
        let rules = rules(&format!(
            "ejection: {{consecutiveFailures: {failures}, maxEjectedPercent: {percent}, successRate: {{threshold: 90}}}}"
        ));
        let n = random.borrow_mut().random_range(1..=6);
        let balancer = balancer(n, now);
        for _ in 0..500 {
            now += MS * random.borrow_mut().random_range(0..500);
            let one = pick_by(&balancer, &rules, &[], now, &random);
            let draw = random.borrow_mut().random_range(0..10);
            let answer = match draw {
                0..5 => Answer::Bad,
                5 => Answer::Unreachable,
                6 => Answer::Missing,
                _ => Answer::Good,
            };
            ask_by(&one, &rules, answer, MS, now);
            let out = |why| {
                let members = balancer.members().iter();
                members.filter(|m| m.left_out(&rules, now) == Some(why)).count()
            };
            let present = usize::from(n) - out(LeftOut::Absent);
            // More than may be are in use, and so are all where there are only absent ones.
            let unused = match out(LeftOut::Failing) {
                failing if failing > most(rules.ejection(), present) => 0,
                failing => failing,
            };
            assert!(present == 0 || unused < present, "seed {seed}: {unused} of {present}");
        }
    }
}

/// Where too many fail, all are used. Those that have recovered by then are not shut out again as the ejections of others end.
#[test]
fn who_works_while_all_are_used_takes_part_from_then_on() {
    let begin = Instant::now();
    let balancer = balancer(4, begin);
    for of in 1..=4 {
        fail(&member(&balancer, of), &NO_RULES, 5, begin);
    }
    assert_eq!(left_out(&balancer, &NO_RULES, begin), 4);
    assert_eq!(picked(&balancer, &NO_RULES, 400, begin).len(), 4, "all are used");
    // A request from before says nothing of what is now.
    let of_before = member(&balancer, 1).take(&NO_RULES, begin);
    let now = begin + SECOND;
    for of in 2..=4 {
        ask_by(&member(&balancer, of), &NO_RULES, Answer::Good, MS, now);
    }
    let mut of_before = of_before;
    of_before.end(Answer::Good, now);
    assert_eq!(left_out(&balancer, &NO_RULES, now), 1);
    let picked = picked(&balancer, &NO_RULES, 400, now);
    assert!(picked.len() == 3 && !picked.contains_key(&1), "{picked:?}");
}
