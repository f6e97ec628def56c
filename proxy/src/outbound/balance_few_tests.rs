//! A caller with few requests at a time, for which the requests in hand say nothing: in simulated time, with seeds.

use std::collections::VecDeque;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::outbound::health::Answer;
use crate::outbound::member::InHand;
use crate::outbound::testing::{MS, NO_RULES, SECOND, balancer, pick_by, port, rng};

const SEEDS: std::ops::Range<u64> = 0..4;

/// One caller, whose requests come at a steady rate.
struct Caller {
    endpoints: u16,
    /// Requests in a second.
    rate: u32,
    lasts: Duration,
}

/// How endpoint 1 answers from when on; the others answer well.
#[derive(Clone, Copy)]
enum One {
    Well,
    /// So many times as slow as the others, until then.
    Slow(f64, Duration),
    /// One of so many requests fails at once.
    Fails(u32),
}

/// When each request came, and which endpoint got it.
type Came = Vec<(Duration, u16)>;

impl Caller {
    fn run(&self, seed: u64, one: One) -> Came {
        let rng = rng(seed);
        let start = Instant::now();
        let balancer = balancer(self.endpoints, start);
        let mut connected = Vec::new();
        let mut under_way: VecDeque<(Duration, Answer, InHand)> = VecDeque::new();
        let mut came = Came::new();
        let mut at = Duration::ZERO;
        while at < self.lasts {
            under_way.make_contiguous().sort_by_key(|(ends, ..)| *ends);
            let ended = under_way.partition_point(|(ends, ..)| *ends <= at);
            for (ends, answer, mut in_hand) in under_way.drain(..ended) {
                in_hand.end(answer, start + ends);
            }
            let member = pick_by(&balancer, &NO_RULES, &[], start + at, &rng);
            let to = port(&member);
            let mut in_hand = member.take(&NO_RULES, start + at);
            let mut sent = at;
            if !connected.contains(&to) {
                connected.push(to);
                sent += Duration::from_secs_f64(rng.borrow_mut().random_range(0.003..0.03));
            }
            in_hand.sent(start + sent);
            let (answer, time) = one.answer(to, at, &mut rng.borrow_mut());
            under_way.push_back((sent + time, answer, in_hand));
            came.push((at, to));
            at += SECOND / self.rate;
        }
        for (_, answer, mut in_hand) in under_way {
            in_hand.end(answer, start + self.lasts + SECOND);
        }
        came
    }

    /// What an endpoint has of its fair share of the requests that came in a time.
    fn share(&self, came: &Came, of: u16, time: std::ops::Range<Duration>) -> f64 {
        let (mut all, mut its) = (0, 0);
        for (_, to) in came.iter().filter(|(at, _)| time.contains(at)) {
            all += 1;
            its += u32::from(*to == of);
        }
        f64::from(its) / f64::from(all) * f64::from(self.endpoints)
    }

    /// The same, of all seeds.
    fn mean_share(&self, one: One, time: &std::ops::Range<Duration>) -> f64 {
        let shares = SEEDS.map(|seed| self.share(&self.run(seed, one), 1, time.clone()));
        shares.sum::<f64>() / f64::from(u32::try_from(SEEDS.end).unwrap_or(u32::MAX))
    }
}

impl One {
    /// Half a millisecond, more or less; one answer of a hundred takes up to 40 ms.
    fn answer(self, to: u16, at: Duration, rng: &mut SmallRng) -> (Answer, Duration) {
        let mut seconds = 0.0005 * rng.random_range(-0.7f64..0.7).exp();
        if rng.random_bool(0.01) {
            seconds += rng.random_range(0.005..0.04);
        }
        let time = Duration::from_secs_f64(seconds);
        match self {
            One::Slow(times, until) if to == 1 && at < until => (Answer::Good, time.mul_f64(times)),
            One::Fails(one_of) if to == 1 && rng.random_ratio(1, one_of) => (Answer::Bad, MS / 10),
            _ => (Answer::Good, time),
        }
    }
}

/// Two to five endpoints, with few requests and with many.
fn callers(lasts: Duration) -> impl Iterator<Item = Caller> {
    let of = move |endpoints| [20, 200].map(|rate| Caller { endpoints, rate, lasts });
    [2, 3, 5].into_iter().flat_map(of)
}

#[test]
fn equals_have_equal_shares() {
    for caller in callers(60 * SECOND) {
        for seed in SEEDS {
            let came = caller.run(seed, One::Well);
            // After the first second, in which each of them is asked for the first time.
            for of in 1..=caller.endpoints {
                let share = caller.share(&came, of, SECOND..60 * SECOND);
                let of_rate = (caller.endpoints, caller.rate);
                assert!(
                    (0.85..1.15).contains(&share),
                    "{of} of {of_rate:?}, seed {seed}: {share}"
                );
            }
            if caller.rate < 200 {
                continue;
            }
            // No time of six seconds in which one is forgotten.
            for (of, begin) in (1..=caller.endpoints).flat_map(|of| (0..10).map(move |begin| (of, begin * 6 * SECOND)))
            {
                let share = caller.share(&came, of, begin..begin + 6 * SECOND);
                assert!(
                    share > 0.5,
                    "{of} of {}, seed {seed}, from {begin:?} on: {share}",
                    caller.endpoints
                );
            }
        }
    }
}

/// As `RateLimitPolicy`'s scope `Service` does it: each endpoint admits its part of the rate.
#[test]
fn a_limit_that_endpoints_share_admits_what_it_says() {
    let limit = 100.0;
    for caller in callers(60 * SECOND).filter(|caller| caller.rate == 200) {
        for seed in SEEDS {
            let part = limit / f64::from(caller.endpoints);
            let mut buckets = vec![(part, Duration::ZERO); usize::from(caller.endpoints)];
            let mut admitted = 0.0;
            for (at, to) in caller.run(seed, One::Well) {
                let (tokens, last) = &mut buckets[usize::from(to) - 1];
                *tokens = (*tokens + (at - *last).as_secs_f64() * part).min(part);
                *last = at;
                if *tokens >= 1.0 {
                    *tokens -= 1.0;
                    admitted += 1.0;
                }
            }
            let rate = admitted / caller.lasts.as_secs_f64();
            assert!(
                (rate - limit).abs() < 0.1 * limit,
                "{}, seed {seed}: {rate}",
                caller.endpoints
            );
        }
    }
}

#[test]
fn one_that_is_slow_has_little() {
    let time = 5 * SECOND..60 * SECOND;
    for caller in callers(60 * SECOND) {
        for (times, most) in [(3.0, 0.6), (10.0, 0.2), (50.0, 0.06)] {
            let share = caller.mean_share(One::Slow(times, Duration::MAX), &time);
            let of_rate = (caller.endpoints, caller.rate);
            assert!(share < most, "{of_rate:?}, {times} times as slow: {share}");
            assert!(
                share > 0.0,
                "{of_rate:?}, {times} times as slow: it is never asked again"
            );
        }
    }
}

#[test]
fn one_that_is_fast_again_has_its_share_in_half_a_minute() {
    for caller in callers(120 * SECOND) {
        for times in [3.0, 50.0] {
            let share = caller.mean_share(One::Slow(times, 20 * SECOND), &(50 * SECOND..120 * SECOND));
            let of_rate = (caller.endpoints, caller.rate);
            assert!(share > 0.8, "{of_rate:?}, {times} times as slow before: {share}");
        }
    }
}

#[test]
fn one_that_fails_now_and_then_has_little() {
    let time = 5 * SECOND..120 * SECOND;
    for caller in callers(120 * SECOND) {
        for one_of in [2, 10] {
            let share = caller.mean_share(One::Fails(one_of), &time);
            let of_rate = (caller.endpoints, caller.rate);
            assert!(share < 0.25, "{of_rate:?}, one of {one_of} fails: {share}");
        }
    }
}
