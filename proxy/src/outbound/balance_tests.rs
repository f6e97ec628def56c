//! In simulated time, with seeded random numbers.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::{Balancer, Member, Pick};
use crate::model::{Ejection, Workload};
use crate::outbound::affinity::Caller;
use crate::outbound::health::{Answer, HUNG};
use crate::outbound::member::InHand;
use crate::outbound::testing::{MS, NO_RULES, SECOND, ask_by, balancer, endpoints, member, pick_by, port, rng};

/// As without a policy.
const EJECTION: Duration = Ejection::DEFAULT.base;
const FAILURES: u32 = 5;

fn pick(balancer: &Balancer, tried: &[Rc<Member>], now: Instant, rng: &RefCell<SmallRng>) -> Rc<Member> {
    pick_by(balancer, &NO_RULES, tried, now, rng)
}

fn ask(member: &Rc<Member>, answer: Answer, time: Duration, now: Instant) -> Instant {
    ask_by(member, &NO_RULES, answer, time, now)
}

fn is_ejected(member: &Member, now: Instant) -> bool {
    member.left_out(&NO_RULES, now).is_some()
}

#[test]
fn the_faster_endpoint_gets_more() {
    let mut now = Instant::now();
    let rng = rng(1);
    let balancer = balancer(2, now);
    let mut counts = [0; 3];
    for _ in 0..2000 {
        now += 5 * MS;
        let picked = pick(&balancer, &[], now, &rng);
        counts[usize::from(port(&picked))] += 1;
        let time = if port(&picked) == 1 { 5 * MS } else { 50 * MS };
        ask(&picked, Answer::Good, time, now);
    }
    assert!(counts[1] > 4 * counts[2], "{counts:?}");
    assert!(counts[2] > 0, "the slow one is never asked again");
}

#[test]
fn a_new_endpoint_is_asked_however_fast_the_others_are() {
    let now = Instant::now();
    let rng = rng(8);
    let mut balancer = balancer(1, now);
    ask(&member(&balancer, 1), Answer::Good, Duration::from_micros(100), now);
    balancer.update(&endpoints(1..3), None, now);
    let news = (0..100).filter(|_| port(&pick(&balancer, &[], now, &rng)) == 2);
    assert!((30..70).contains(&news.count()));
    // But no more than the others have in hand, until it has answered once.
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(pick(&balancer, &[], now, &rng).take(&NO_RULES, now));
    }
    assert!(member(&balancer, 2).in_hand().abs_diff(50) <= 1);
}

#[test]
fn load_in_hand_spreads() {
    let now = Instant::now();
    let rng = rng(2);
    let balancer = balancer(4, now);
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(pick(&balancer, &[], now, &rng).take(&NO_RULES, now));
    }
    for m in balancer.members() {
        assert!((80..120).contains(&m.in_hand()), "{}", m.in_hand());
    }
    held.clear();
    assert!(balancer.members().iter().all(|m| m.in_hand() == 0));
}

#[test]
fn a_failing_endpoint_is_left_out_and_comes_back() {
    let mut now = Instant::now();
    let rng = rng(3);
    let balancer = balancer(3, now);
    let bad = member(&balancer, 1);
    for answer in [Answer::Bad, Answer::Broken]
        .into_iter()
        .cycle()
        .take(FAILURES as usize)
    {
        assert!(!is_ejected(&bad, now));
        ask(&bad, answer, Duration::ZERO, now);
    }
    assert!((0..500).all(|_| !Rc::ptr_eq(&pick(&balancer, &[], now, &rng), &bad)));
    // One more failure after its time is enough, and it is left out for longer.
    now += EJECTION;
    assert!(!is_ejected(&bad, now));
    ask(&bad, Answer::Bad, Duration::ZERO, now);
    assert!(is_ejected(&bad, now + EJECTION) && !is_ejected(&bad, now + 2 * EJECTION));
    // A success clears it.
    now += 2 * EJECTION;
    ask(&bad, Answer::Good, Duration::ZERO, now);
    ask(&bad, Answer::Bad, Duration::ZERO, now);
    assert!(!is_ejected(&bad, now));
}

#[test]
fn all_ejected_means_all_are_used() {
    let now = Instant::now();
    let rng = rng(4);
    let balancer = balancer(3, now);
    for m in balancer.members() {
        ask(m, Answer::Unreachable, Duration::ZERO, now);
        assert!(is_ejected(m, now));
    }
    pick(&balancer, &[], now, &rng);
    let only = self::balancer(1, now);
    ask(&only.members()[0], Answer::Unreachable, Duration::ZERO, now);
    pick(&only, &[], now, &rng);
}

#[test]
fn ejection_is_bounded() {
    let mut now = Instant::now();
    let balancer = balancer(1, now);
    let m = member(&balancer, 1);
    for _ in 0..100 {
        ask(&m, Answer::Unreachable, Duration::ZERO, now);
        now += Ejection::DEFAULT.max;
        assert!(!is_ejected(&m, now));
    }
}

#[test]
fn a_retry_goes_elsewhere_if_it_can() {
    let now = Instant::now();
    let rng = rng(5);
    let balancer = balancer(2, now);
    let tried = [member(&balancer, 1)];
    assert!((0..100).all(|_| port(&pick(&balancer, &tried, now, &rng)) == 2));
    // The other is ejected: better the one that failed once than the one that is known to fail.
    ask(&member(&balancer, 2), Answer::Unreachable, Duration::ZERO, now);
    assert!((0..100).all(|_| port(&pick(&balancer, &tried, now, &rng)) == 1));
}

#[test]
fn an_update_keeps_what_is_known() {
    let now = Instant::now();
    let mut balancer = balancer(3, now);
    let stays = member(&balancer, 2);
    ask(&stays, Answer::Unreachable, Duration::ZERO, now);
    balancer.update(&endpoints(2..6), None, now);
    assert_eq!(balancer.members().len(), 4);
    assert!(Rc::ptr_eq(&member(&balancer, 2), &stays));
    assert!(is_ejected(&member(&balancer, 2), now));
    balancer.update(&[], None, now);
    assert!(
        balancer
            .pick(&Pick {
                tried: &[],
                now,
                rng: &rng(6),
                rules: &NO_RULES,
                key: None,
                session: None,
                limit: None,
            })
            .is_none()
    );
}

/// Two of which the second answers at once, now and then.
fn with_one_that_answers(now: Instant) -> (Balancer, Rc<Member>, Rc<Member>) {
    let balancer = balancer(2, now);
    let (one, other) = (member(&balancer, 1), member(&balancer, 2));
    ask(&one, Answer::Good, MS, now);
    ask(&other, Answer::Good, MS, now);
    (balancer, one, other)
}

/// `times` requests to `one` after each other that get no answer in `time`; `other` answers while they wait.
fn in_vain(one: &Rc<Member>, other: &Rc<Member>, times: u32, time: Duration, mut now: Instant) -> Instant {
    for _ in 0..times {
        ask(other, Answer::Good, MS, now + time / 2);
        now = ask(one, Answer::Missing, time, now);
    }
    now
}

#[test]
fn one_that_hangs_while_another_answers_is_ejected() {
    let now = Instant::now();
    let (_balancer, one, other) = with_one_that_answers(now);
    let now = in_vain(&one, &other, FAILURES - 1, HUNG + MS, now + SECOND);
    assert!(!is_ejected(&one, now));
    let now = in_vain(&one, &other, 1, HUNG + MS, now);
    assert!(is_ejected(&one, now));
    // The other one is the last: nobody answers beside it.
    let mut now = now;
    for _ in 0..2 * FAILURES {
        now = ask(&other, Answer::Missing, HUNG + MS, now);
    }
    assert!(!is_ejected(&other, now));
}

#[test]
fn one_that_hangs_is_left_where_nobody_else_is_asked() {
    // With session affinity, the second is asked only when the first is left out.
    let mut now = Instant::now();
    let rng = rng(10);
    let workload = Workload {
        name: "web".into(),
        namespace: "shop".into(),
        pod: "web-1".into(),
        service_account: "web".into(),
        trust_domain: "mesh.test".into(),
        node: "".into(),
        pod_ips: Vec::new(),
    };
    let mut balancer = Balancer::default();
    balancer.update(&endpoints(1..3), Some(Caller::new(&workload)), now);
    let preferred = pick(&balancer, &[], now, &rng);
    for _ in 0..FAILURES {
        let picked = pick(&balancer, &[], now, &rng);
        assert!(Rc::ptr_eq(&picked, &preferred));
        now = ask(&picked, Answer::Missing, 2 * SECOND, now);
    }
    assert!(!Rc::ptr_eq(&pick(&balancer, &[], now, &rng), &preferred));
    // And so it is where clients come one after the other.
    let now = Instant::now();
    let (_balancer, one, _) = with_one_that_answers(now);
    let mut now = now + SECOND;
    for _ in 0..FAILURES {
        assert!(!is_ejected(&one, now));
        now = ask(&one, Answer::Missing, 2 * SECOND, now);
    }
    assert!(is_ejected(&one, now));
}

#[test]
fn impatience_ejects_nobody() {
    for time in [10 * MS, 200 * MS, HUNG] {
        let now = Instant::now();
        let (_balancer, one, other) = with_one_that_answers(now);
        let now = in_vain(&one, &other, 1000, time, now + SECOND);
        assert!(!is_ejected(&one, now), "{time:?}");
    }
}

#[test]
fn what_others_take_too_is_no_failure() {
    let now = Instant::now();
    let (_balancer, one, other) = with_one_that_answers(now);
    let now = ask(&other, Answer::Good, 2 * SECOND, now);
    // Three times what the other takes, and not a moment more.
    let mut now = now;
    for more in [Duration::ZERO, MS] {
        for _ in 0..FAILURES {
            let ends = now + 6 * SECOND + more;
            ask(&other, Answer::Good, 2 * SECOND, ends - 3 * SECOND);
            now = ask(&one, Answer::Missing, 6 * SECOND + more, now);
        }
        assert_eq!(is_ejected(&one, now), !more.is_zero());
    }
}

#[test]
fn where_all_of_the_service_hangs_nobody_is_ejected() {
    let mut now = Instant::now();
    let (balancer, ..) = with_one_that_answers(now);
    for _ in 0..10 * FAILURES {
        for m in balancer.members() {
            ask(m, Answer::Missing, 5 * SECOND, now);
        }
        now += 5 * SECOND;
    }
    assert!(balancer.members().iter().all(|m| !is_ejected(m, now)));
}

#[test]
fn long_polls_eject_nobody() {
    let now = Instant::now();
    let (_balancer, one, other) = with_one_that_answers(now);
    let poll = 30 * SECOND;
    let mut now = now;
    // Those that wait at the same time, while only another one is asked for anything else.
    let polls: Vec<_> = (0..3 * FAILURES).map(|_| one.take(&NO_RULES, now)).collect();
    ask(&other, Answer::Good, MS, now + SECOND);
    for mut waiting in polls {
        waiting.end(Answer::Missing, now + poll);
    }
    now += poll;
    assert!(!is_ejected(&one, now));
    // One after the other, while it answers other requests.
    for _ in 0..3 * FAILURES {
        for m in [&one, &other] {
            ask(m, Answer::Good, MS, now + SECOND);
        }
        now = ask(&one, Answer::Missing, poll, now);
    }
    assert!(!is_ejected(&one, now));
}

#[test]
fn a_watch_that_ends_says_nothing() {
    let now = Instant::now();
    let (_balancer, one, other) = with_one_that_answers(now);
    let before = one.health().average(now + 60 * SECOND);
    for at in 0..100 {
        let mut watch = one.take(&NO_RULES, now);
        watch.end(Answer::Good, now + MS);
        ask(&other, Answer::Good, MS, now + at * SECOND);
        drop(watch);
    }
    let later = now + 60 * SECOND;
    let health = one.health();
    assert!(!is_ejected(&one, later) && health.average(later) <= before && health.at_least(later) <= 0.0);
}

#[test]
fn a_lower_bound_raises_and_never_lowers() {
    let now = Instant::now();
    let (_balancer, one, _) = with_one_that_answers(now);
    let average = |now| one.health().average(now).unwrap();
    // One slow answer alone says nothing.
    let now = ask(&one, Answer::Good, 2 * SECOND, now);
    let now = ask(&one, Answer::Good, 2 * SECOND, now);
    for (answer, time) in [
        (Answer::Missing, 10 * MS),
        (Answer::Broken, 10 * MS),
        (Answer::Unreachable, Duration::ZERO),
    ] {
        ask(&one, answer, time, now - time);
        assert!((average(now) - 2.0).abs() < 1e-9, "{answer:?}");
        assert!(
            (average(now + SECOND) - 2.0 * (-0.1f64).exp()).abs() < 1e-9,
            "{answer:?}"
        );
    }
    let now = ask(&one, Answer::Missing, 3 * SECOND, now);
    assert!((average(now) - 3.0).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_has_waited_in_vain() {
    let (_balancer, one, _) = with_one_that_answers(Instant::now());
    let in_hand = one.take(&NO_RULES, Instant::now());
    tokio::time::sleep(2 * SECOND).await;
    drop(in_hand);
    assert_eq!(one.in_hand(), 0);
    let health = one.health();
    assert!(health.at_least(Instant::now()) >= 2.0 && health.average(Instant::now()) >= Some(2.0));
}

#[test]
fn connections_are_spread_by_their_number_whatever_failed_once() {
    let mut now = Instant::now();
    let rng = rng(9);
    let balancer = balancer(2, now);
    // Each of them could not be connected to once, at different times.
    for m in balancer.members() {
        ask(m, Answer::Unreachable, SECOND, now);
        now += 600 * SECOND;
    }
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut in_hand = pick(&balancer, &[], now, &rng).take(&NO_RULES, now);
        in_hand.end(Answer::Connected, now + MS);
        held.push(in_hand);
    }
    assert_eq!(member(&balancer, 1).in_hand(), 50);
    // It has shown that it works: the next failure is its first.
    ask(&member(&balancer, 1), Answer::Unreachable, SECOND, now);
    assert!(!is_ejected(&member(&balancer, 1), now + SECOND + EJECTION));
}

/// Requests that come at a steady rate to endpoints that answer after `latency`, but for one that hangs for a while.
struct Simulation {
    endpoints: u16,
    /// Requests in a second.
    rate: u32,
    latency: Duration,
    /// How long the clients wait.
    patience: Duration,
    /// While which port 1 answers nothing, since the beginning.
    hangs: std::ops::Range<Duration>,
    /// The share of the requests that it answers all the same.
    answers: f64,
    lasts: Duration,
}

/// When each request came, and whether port 1 got it.
type Came = Vec<(Duration, bool)>;

impl Simulation {
    fn run(&self) -> Came {
        let rng = rng(7);
        let start = Instant::now();
        let balancer = balancer(self.endpoints, start);
        let mut under_way: Vec<(Duration, Answer, InHand)> = Vec::new();
        let mut came = Came::new();
        let mut at = Duration::ZERO;
        while at < self.lasts {
            under_way.sort_by_key(|(ends, ..)| *ends);
            let ended = under_way.partition_point(|(ends, ..)| *ends <= at);
            for (ends, answer, mut in_hand) in under_way.drain(..ended) {
                in_hand.end(answer, start + ends);
            }
            let picked = pick(&balancer, &[], start + at, &rng);
            let to_one = port(&picked) == 1;
            let hangs = to_one && self.hangs.contains(&at) && !rng.borrow_mut().random_bool(self.answers);
            let (ends, answer) = self.end(at, hangs);
            came.push((at, to_one));
            under_way.push((ends, answer, picked.take(&NO_RULES, start + at)));
            at += SECOND / self.rate;
        }
        for (ends, answer, mut in_hand) in under_way {
            in_hand.end(answer, start + ends.min(2 * self.lasts));
        }
        came
    }

    fn end(&self, at: Duration, hangs: bool) -> (Duration, Answer) {
        let answers = self.latency + if hangs { self.hangs.end } else { at };
        let gives_up = at.saturating_add(self.patience);
        match answers <= gives_up {
            true => (answers, Answer::Good),
            false => (gives_up, Answer::Missing),
        }
    }
}

impl std::fmt::Display for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            endpoints,
            rate,
            latency,
            patience,
            ..
        } = self;
        write!(
            f,
            "{endpoints} endpoints, {rate} requests/s, {latency:?}, clients wait {patience:?}"
        )
    }
}

/// The share of port 1 of the requests in a time.
fn share(came: &Came, time: std::ops::Range<Duration>) -> f64 {
    let (all, one) = came
        .iter()
        .filter(|(at, _)| time.contains(at))
        .fold((0, 0), |(all, one), (_, to_one)| (all + 1, one + u32::from(*to_one)));
    f64::from(one) / f64::from(all)
}

/// Slow and fast Services with many and few requests, and clients that give up early, late and never.
fn simulations(hangs: &std::ops::Range<Duration>, lasts: Duration) -> Vec<Simulation> {
    let mut all = Vec::new();
    for endpoints in [2, 3, 10] {
        for rate in [1, 20, 200] {
            for latency in [MS / 10, 5 * MS, 300 * MS, 900 * MS] {
                for patience in [10 * MS, 100 * MS, SECOND, 30 * SECOND, Duration::MAX] {
                    all.push(Simulation {
                        endpoints,
                        rate,
                        latency,
                        patience,
                        hangs: hangs.clone(),
                        answers: 0.0,
                        lasts,
                    });
                }
            }
        }
    }
    all.retain(|s| s.latency < s.patience);
    all
}

#[test]
fn one_that_hangs_gets_less_than_three_in_a_hundred() {
    // From its first request on, and after it has worked for a while.
    for begins in [Duration::ZERO, 20 * SECOND] {
        let lasts = begins + 40 * SECOND;
        for simulation in simulations(&(begins..Duration::MAX / 2), lasts) {
            let share = share(&simulation.run(), begins + 10 * SECOND..lasts);
            assert!(share < 0.03, "{simulation}, hangs from {begins:?} on: {share}");
        }
    }
}

#[test]
fn one_that_hangs_with_half_of_its_requests_gets_few() {
    let mut simulations = simulations(&(Duration::ZERO..Duration::MAX / 2), 60 * SECOND);
    // Where clients wait for hardly longer than an answer takes, nothing tells the two apart.
    simulations.retain(|s| s.rate == 20 && s.patience >= 3 * s.latency && s.patience >= SECOND);
    for simulation in simulations {
        let simulation = Simulation {
            answers: 0.5,
            ..simulation
        };
        let share = share(&simulation.run(), 10 * SECOND..60 * SECOND);
        assert!(share < 0.05, "{simulation}: {share}");
    }
}

#[test]
fn one_that_comes_back_has_its_share_again_within_a_minute() {
    for hangs in [Duration::ZERO..5 * SECOND, 10 * SECOND..30 * SECOND] {
        let back = hangs.end + 60 * SECOND;
        let mut simulations = simulations(&hangs, back + 30 * SECOND);
        simulations.retain(|s| s.rate == 20);
        for simulation in simulations {
            let share = share(&simulation.run(), back..back + 30 * SECOND);
            let fair = 1.0 / f64::from(simulation.endpoints);
            assert!(share > 0.8 * fair, "{simulation}, hung in {hangs:?}: {share}");
        }
    }
}
