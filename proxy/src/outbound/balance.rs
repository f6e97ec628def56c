//! Which endpoint gets the next request: the better of two drawn at random (P2C) by peak EWMA, leaving out those that
//! failed of late.
//!
//! **Load** is the time that an endpoint takes to answer, a moving average that jumps up to every peak and decays over
//! [`DECAY`], times the requests that it has in hand plus one. A failure counts as slow, so an endpoint that fails fast
//! does not draw traffic to itself. An endpoint that was never asked has no such time: it is compared by what is in hand
//! alone, so a new one has its share at once, however fast the others are.
//!
//! **Ejection.** An endpoint that cannot be connected to, or that fails [`FAILURES`] times in a row (502, 503, 504, or a
//! connection that breaks before the response), is left out for [`EJECTION`] × the number of its ejections, at most
//! [`MAX_EJECTION`]. Then it takes part again: the next failure ejects it at once, a success clears the count. Answers
//! like 429 or 500 are the app's word and not the endpoint's failure. With every endpoint ejected all of them are used:
//! the last error is better than none. What it does not protect from: an endpoint that answers wrong, with 200.
//!
//! Time and randomness are arguments, so that tests run in simulated time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::http::pool::Pool;
use crate::model::Endpoint;

/// The time in which a measurement loses two thirds of its weight.
pub const DECAY: Duration = Duration::from_secs(10);
/// Added to the time of a failure.
const PENALTY: Duration = Duration::from_millis(500);
/// Failures in a row.
pub const FAILURES: u32 = 5;
/// Of the first ejection.
pub const EJECTION: Duration = Duration::from_secs(10);
/// Of any.
pub const MAX_EJECTION: Duration = Duration::from_secs(300);

/// The endpoints of one backend on one worker.
#[derive(Default)]
pub struct Balancer {
    members: Vec<Rc<Member>>,
    in_order: bool,
}

/// One endpoint with what is known of it, and the connections to it.
pub struct Member {
    pub endpoint: Arc<Endpoint>,
    pub pool: Rc<Pool>,
    in_hand: Cell<u32>,
    health: RefCell<Health>,
}

/// How a request to an endpoint went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Anything that the app itself says.
    Good,
    /// 502, 503, 504, or a connection that broke.
    Bad,
    /// There was no connection, or the app behind the peer sidecar is not there.
    Unreachable,
}

struct Health {
    /// Seconds. `None`: never asked.
    average: Option<f64>,
    measured: Instant,
    failures: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
}

/// A request in an endpoint's hands.
pub struct InHand(Rc<Member>);

impl Balancer {
    /// Takes over the endpoints; those that stay keep what is known of them, and their connections.
    pub fn update(&mut self, endpoints: &[Arc<Endpoint>], now: Instant) {
        let mut old: HashMap<Arc<Endpoint>, Rc<Member>> = self
            .members
            .drain(..)
            .map(|member| (Arc::clone(&member.endpoint), member))
            .collect();
        self.members = endpoints
            .iter()
            .map(|endpoint| {
                old.remove(endpoint)
                    .unwrap_or_else(|| Rc::new(Member::new(Arc::clone(endpoint), now)))
            })
            .collect();
    }

    /// The endpoint for the next attempt; one of `tried` only if there is no other that works.
    pub fn pick(&self, tried: &[Rc<Member>], now: Instant, rng: &mut impl Rng) -> Option<Rc<Member>> {
        let fresh = |m: &Rc<Member>| !tried.iter().any(|t| Rc::ptr_eq(t, m));
        let healthy = |m: &Rc<Member>| !m.health.borrow().is_ejected(now);
        self.pick_among(|m| fresh(m) && healthy(m), now, rng)
            .or_else(|| self.pick_among(healthy, now, rng))
            .or_else(|| self.pick_among(fresh, now, rng))
            .or_else(|| self.pick_among(|_| true, now, rng))
            .map(Rc::clone)
    }

    /// Whether the first endpoint that can be asked gets the request, whatever its load (see [`super::affinity`]).
    pub fn in_order(&mut self, in_order: bool) {
        self.in_order = in_order;
    }

    /// For the timer, and for `/config`.
    pub fn members(&self) -> &[Rc<Member>] {
        &self.members
    }

    fn pick_among(
        &self,
        allowed: impl Fn(&Rc<Member>) -> bool,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<&Rc<Member>> {
        match self.members.as_slice() {
            [] => None,
            [only] => Some(only).filter(|m| allowed(m)),
            members if self.in_order => members.iter().find(|m| allowed(m)),
            members => {
                let first = rng.random_range(0..members.len());
                let mut second = rng.random_range(0..members.len() - 1);
                second += usize::from(second >= first);
                let mut drawn = [first, second].into_iter().map(|i| &members[i]).filter(|m| allowed(m));
                match (drawn.next(), drawn.next()) {
                    (Some(a), Some(b)) => Some(if b.is_lighter_than(a, now) { b } else { a }),
                    (Some(a), None) => Some(a),
                    // Two that are left out: the next that is not.
                    _ => {
                        let (before, after) = members.split_at(first);
                        after.iter().chain(before).find(|m| allowed(m))
                    }
                }
            }
        }
    }
}

impl Member {
    /// An endpoint that nothing is known of.
    pub fn new(endpoint: Arc<Endpoint>, now: Instant) -> Self {
        Self {
            pool: Rc::new(Pool::new(endpoint.identity.is_some())),
            endpoint,
            in_hand: Cell::new(0),
            health: RefCell::new(Health {
                average: None,
                measured: now,
                failures: 0,
                ejections: 0,
                ejected_until: None,
            }),
        }
    }

    /// Counts a request until the guard is dropped, with the last byte of its response.
    pub fn take(self: &Rc<Self>) -> InHand {
        self.in_hand.set(self.in_hand.get() + 1);
        InHand(Rc::clone(self))
    }

    /// Learns from an attempt that took `time` to the head of its response, or to its failure.
    pub fn learn(&self, answer: Answer, time: Duration, now: Instant) {
        let mut health = self.health.borrow_mut();
        let time = if answer == Answer::Good { time } else { time + PENALTY };
        health.measure(time.as_secs_f64(), now);
        match answer {
            Answer::Good => {
                health.failures = 0;
                if health.ejected_until.is_some_and(|until| until <= now) {
                    (health.ejected_until, health.ejections) = (None, 0);
                }
            }
            Answer::Bad => {
                health.failures += 1;
                if health.failures >= FAILURES || health.is_on_probation(now) {
                    health.eject(now);
                }
            }
            Answer::Unreachable => health.eject(now),
        }
    }

    /// Whether it is left out at the moment.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.health.borrow().is_ejected(now)
    }

    fn is_lighter_than(&self, other: &Self, now: Instant) -> bool {
        let (mine, others) = (self.in_hand.get(), other.in_hand.get());
        match (self.health.borrow().average(now), other.health.borrow().average(now)) {
            (Some(my), Some(other)) => my * f64::from(mine + 1) < other * f64::from(others + 1),
            _ => mine < others,
        }
    }
}

impl Health {
    fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    /// It was ejected, and has not shown since that it works.
    fn is_on_probation(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| until <= now)
    }

    fn eject(&mut self, now: Instant) {
        if self.is_ejected(now) {
            return;
        }
        self.failures = 0;
        self.ejections = self.ejections.saturating_add(1);
        self.ejected_until = Some(now + (EJECTION * self.ejections.min(1000)).min(MAX_EJECTION));
    }

    /// Decays towards nothing, so that an endpoint that was slow once is asked again.
    fn average(&self, now: Instant) -> Option<f64> {
        Some(self.average? * self.decay(now))
    }

    fn measure(&mut self, seconds: f64, now: Instant) {
        let weight = self.decay(now);
        let average = self.average.unwrap_or(seconds);
        self.average = Some(if seconds > average {
            seconds
        } else {
            average * weight + seconds * (1.0 - weight)
        });
        self.measured = now;
    }

    fn decay(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.measured);
        (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

impl InHand {
    /// Whose hands.
    pub fn member(&self) -> &Rc<Member> {
        &self.0
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.in_hand.set(self.0.in_hand.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Answer, Balancer, EJECTION, FAILURES, MAX_EJECTION, Member};
    use crate::model::Endpoint;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::time::Instant;

    fn endpoints(ports: std::ops::Range<u16>) -> Vec<Arc<Endpoint>> {
        ports
            .map(|port| {
                Arc::new(Endpoint {
                    address: ([10, 0, 0, 1], port).into(),
                    identity: None,
                    zone: None,
                    pod: None,
                })
            })
            .collect()
    }

    fn balancer(n: u16, now: Instant) -> Balancer {
        let mut balancer = Balancer::default();
        balancer.update(&endpoints(1..n + 1), now);
        balancer
    }

    fn member(balancer: &Balancer, port: u16) -> Rc<Member> {
        Rc::clone(
            balancer
                .members()
                .iter()
                .find(|m| m.endpoint.address.port() == port)
                .unwrap(),
        )
    }

    #[test]
    fn the_faster_endpoint_gets_more() {
        let mut now = Instant::now();
        let mut rng = SmallRng::seed_from_u64(1);
        let balancer = balancer(2, now);
        let mut counts = [0; 3];
        for _ in 0..2000 {
            now += Duration::from_millis(5);
            let picked = balancer.pick(&[], now, &mut rng).unwrap();
            let port = picked.endpoint.address.port();
            counts[usize::from(port)] += 1;
            let time = if port == 1 { 5 } else { 50 };
            picked.learn(Answer::Good, Duration::from_millis(time), now);
        }
        assert!(counts[1] > 4 * counts[2], "{counts:?}");
        assert!(counts[2] > 0, "the slow one is never asked again");
    }

    #[test]
    fn a_new_endpoint_is_asked_however_fast_the_others_are() {
        let now = Instant::now();
        let mut rng = SmallRng::seed_from_u64(8);
        let mut balancer = balancer(1, now);
        member(&balancer, 1).learn(Answer::Good, Duration::from_micros(100), now);
        balancer.update(&endpoints(1..3), now);
        let news = (0..100).filter(|_| balancer.pick(&[], now, &mut rng).unwrap().endpoint.address.port() == 2);
        assert!((30..70).contains(&news.count()));
        // But no more than the others have in hand, until it has answered once.
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(balancer.pick(&[], now, &mut rng).unwrap().take());
        }
        assert!(member(&balancer, 2).in_hand.get().abs_diff(50) <= 1);
    }

    #[test]
    fn load_in_hand_spreads() {
        let now = Instant::now();
        let mut rng = SmallRng::seed_from_u64(2);
        let balancer = balancer(4, now);
        let mut held = Vec::new();
        for _ in 0..400 {
            held.push(balancer.pick(&[], now, &mut rng).unwrap().take());
        }
        for m in balancer.members() {
            assert!((80..120).contains(&m.in_hand.get()), "{}", m.in_hand.get());
        }
        held.clear();
        assert!(balancer.members().iter().all(|m| m.in_hand.get() == 0));
    }

    #[test]
    fn a_failing_endpoint_is_left_out_and_comes_back() {
        let mut now = Instant::now();
        let mut rng = SmallRng::seed_from_u64(3);
        let balancer = balancer(3, now);
        let bad = member(&balancer, 1);
        for _ in 0..FAILURES {
            assert!(!bad.is_ejected(now));
            bad.learn(Answer::Bad, Duration::ZERO, now);
        }
        assert!((0..500).all(|_| !Rc::ptr_eq(&balancer.pick(&[], now, &mut rng).unwrap(), &bad)));
        // One more failure after its time is enough, and it is left out for longer.
        now += EJECTION;
        assert!(!bad.is_ejected(now));
        bad.learn(Answer::Bad, Duration::ZERO, now);
        assert!(bad.is_ejected(now + EJECTION) && !bad.is_ejected(now + 2 * EJECTION));
        // A success clears it.
        now += 2 * EJECTION;
        bad.learn(Answer::Good, Duration::ZERO, now);
        bad.learn(Answer::Bad, Duration::ZERO, now);
        assert!(!bad.is_ejected(now));
    }

    #[test]
    fn all_ejected_means_all_are_used() {
        let now = Instant::now();
        let mut rng = SmallRng::seed_from_u64(4);
        let balancer = balancer(3, now);
        for m in balancer.members() {
            m.learn(Answer::Unreachable, Duration::ZERO, now);
            assert!(m.is_ejected(now));
        }
        assert!(balancer.pick(&[], now, &mut rng).is_some());
        let only = self::balancer(1, now);
        only.members()[0].learn(Answer::Unreachable, Duration::ZERO, now);
        assert!(only.pick(&[], now, &mut rng).is_some());
    }

    #[test]
    fn ejection_is_bounded() {
        let mut now = Instant::now();
        let balancer = balancer(1, now);
        let m = member(&balancer, 1);
        for _ in 0..100 {
            m.learn(Answer::Unreachable, Duration::ZERO, now);
            now += MAX_EJECTION;
            assert!(!m.is_ejected(now));
        }
    }

    #[test]
    fn a_retry_goes_elsewhere_if_it_can() {
        let now = Instant::now();
        let mut rng = SmallRng::seed_from_u64(5);
        let balancer = balancer(2, now);
        let tried = [member(&balancer, 1)];
        assert!((0..100).all(|_| balancer.pick(&tried, now, &mut rng).unwrap().endpoint.address.port() == 2));
        // The other is ejected: better the one that failed once than the one that is known to fail.
        member(&balancer, 2).learn(Answer::Unreachable, Duration::ZERO, now);
        assert!((0..100).all(|_| balancer.pick(&tried, now, &mut rng).unwrap().endpoint.address.port() == 1));
    }

    #[test]
    fn an_update_keeps_what_is_known() {
        let now = Instant::now();
        let mut balancer = balancer(3, now);
        let stays = member(&balancer, 2);
        stays.learn(Answer::Unreachable, Duration::ZERO, now);
        balancer.update(&endpoints(2..6), now);
        assert_eq!(balancer.members().len(), 4);
        assert!(Rc::ptr_eq(&member(&balancer, 2), &stays));
        assert!(member(&balancer, 2).is_ejected(now));
        balancer.update(&[], now);
        assert!(balancer.pick(&[], now, &mut SmallRng::seed_from_u64(6)).is_none());
    }
}
