//! Which of several endpoints gets a request, where a policy says how (`loadBalancer`). Without one, it is [`balance`](super::balance)
//! that says it.
//!
//! - `PeakEWMA`: as without a policy. `LeastRequest`: of two drawn at random, the one with fewer requests of this worker in hand.
//! - `RoundRobin`: each worker goes through the list by itself, from a place that is drawn, so that sidecars which start together
//!   do not all begin with the same one. `Random`: any.
//! - `ConsistentHash`: rendezvous hashing (Thaler and Ravishankar 1998). Each endpoint has a score for what is alike in the requests,
//!   and the highest gets them; so where endpoints come and go, only those requests move that came to one which goes, or come to a
//!   new one. All sidecars choose the same, whatever order their lists have. An endpoint that has more requests in hand than
//!   `boundedLoad` percent of the average is passed over (consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam
//!   2016), but never one with less than [`NOT_BUSY`]: two requests at a time are no load. A request that has nothing to go by goes
//!   where `PeakEWMA` says.
//!
//! With `slowStart`, an endpoint that comes takes a part of the requests that it would get otherwise, which grows with its age; the
//! others go to who is next. In `ConsistentHash` these are always the same ones, so that each moves once. An endpoint that is there when
//! this worker begins to call the Service is not new. With `penalty` (see [`penalty`](super::penalty)), load counts four times; where load
//! says nothing, an endpoint has a fourth of its turns. `ConsistentHash` does not look at that.
//!
//! Endpoints that are left out are passed over by all of them; a Service's `sessionAffinity` comes before all of them.

use std::cell::Cell;
use std::rc::Rc;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::balance::{Pick, better, of_two};
use super::hash::{mix, score};
use super::member::Member;
use super::penalty::TIMES;
use crate::model::{Choice, LoadBalancer, SlowStart};

/// Requests in hand that make no endpoint too busy for another one.
pub const NOT_BUSY: u64 = 4;
/// How often an endpoint is drawn before the next one in the list is taken.
const DRAWS: usize = 8;

/// Of at least two endpoints, those that are `allowed`.
pub struct Among<'a, F> {
    pub members: &'a [Rc<Member>],
    pub allowed: F,
    /// Where the next turn begins.
    pub turn: &'a Cell<Option<usize>>,
}

impl<'a, F: Fn(&Rc<Member>) -> bool> Among<'a, F> {
    /// `None`: none is allowed.
    pub fn choose(&self, by: &LoadBalancer, pick: &Pick<'_>, rng: &mut SmallRng) -> Option<&'a Rc<Member>> {
        let now = pick.now;
        let times = |member: &Member| match by.penalty.is_some() && member.is_busy(now) {
            true => TIMES,
            false => 1,
        };
        let came = |member: &Member| share(by.slow_start, member, now);
        match (&by.choice, pick.key) {
            (Choice::ConsistentHash { bounded_load, .. }, Some(key)) => self.hashed(key, *bounded_load, came),
            (Choice::PeakEwma | Choice::ConsistentHash { .. }, _) => {
                let probing = pick.tried.is_empty();
                let lighter = |a, b| better(a, b, probing, now, |member| f64::from(times(member)));
                self.of_two(lighter, came, rng)
            }
            (Choice::LeastRequest, _) => {
                let load = |member: &Member| u64::from(member.in_hand() + 1) * u64::from(times(member));
                let fewer = |a: &'a Rc<Member>, b: &'a Rc<Member>| if load(b) < load(a) { b } else { a };
                self.of_two(fewer, came, rng)
            }
            (Choice::RoundRobin, _) => self.in_turn(|member| came(member) / f64::from(times(member)), rng),
            (Choice::Random, _) => self.any(|member| came(member) / f64::from(times(member)), rng),
        }
    }

    /// The better of two; the other one, where that has come of late and the draw is against it.
    fn of_two(
        &self,
        better: impl Fn(&'a Rc<Member>, &'a Rc<Member>) -> &'a Rc<Member>,
        share: impl Fn(&Member) -> f64,
        rng: &mut SmallRng,
    ) -> Option<&'a Rc<Member>> {
        let mut other = None;
        let chosen = of_two(
            self.members,
            &self.allowed,
            |a, b| {
                let chosen = better(a, b);
                other = Some(if Rc::ptr_eq(chosen, a) { b } else { a });
                chosen
            },
            rng,
        )?;
        Some(other.filter(|_| !accepts(share(chosen), rng)).unwrap_or(chosen))
    }

    fn in_turn(&self, share: impl Fn(&Member) -> f64, rng: &mut SmallRng) -> Option<&'a Rc<Member>> {
        let count = self.members.len();
        let begin = self.turn.get().unwrap_or_else(|| rng.random_range(0..count)) % count;
        let mut passed = None;
        let mut in_turn = (begin..count)
            .chain(0..begin)
            .filter(|i| (self.allowed)(&self.members[*i]));
        let index = in_turn.find(|i| {
            let accepted = accepts(share(&self.members[*i]), rng);
            passed = passed.or(Some(*i));
            accepted
        });
        let index = index.or(passed)?;
        self.turn.set(Some(index + 1));
        Some(&self.members[index])
    }

    fn any(&self, share: impl Fn(&Member) -> f64, rng: &mut SmallRng) -> Option<&'a Rc<Member>> {
        for _ in 0..DRAWS {
            let drawn = &self.members[rng.random_range(0..self.members.len())];
            if (self.allowed)(drawn) && accepts(share(drawn), rng) {
                return Some(drawn);
            }
        }
        let (before, after) = self.members.split_at(rng.random_range(0..self.members.len()));
        after.iter().chain(before).find(|member| (self.allowed)(member))
    }

    fn hashed(&self, key: u64, bounded_load: u64, share: impl Fn(&Member) -> f64) -> Option<&'a Rc<Member>> {
        let allowed = || self.members.iter().filter(|member| (self.allowed)(member));
        let (mut requests, mut count) = (1, 0);
        for member in allowed() {
            requests += u64::from(member.in_hand());
            count += 1;
        }
        let most = (requests * bounded_load).div_ceil(100 * count.max(1)).max(NOT_BUSY);
        let by_score = |member: &&Rc<Member>| score(key, member.hash());
        let has_room = |member: &&Rc<Member>| u64::from(member.in_hand()) < most;
        // A part of what is alike comes to it for good, and more with the time.
        let takes = |member: &&Rc<Member>| part(mix(by_score(member))) < share(member);
        allowed()
            .filter(|member| has_room(member) && takes(member))
            .max_by_key(by_score)
            .or_else(|| allowed().max_by_key(by_score))
    }
}

/// What an endpoint has of its share of the requests.
fn share(slow_start: Option<SlowStart>, member: &Member, now: Instant) -> f64 {
    let Some((slow, age)) = slow_start.zip(member.age(now)) else {
        return 1.0;
    };
    (age.as_secs_f64() / slow.window.as_secs_f64()).clamp(slow.least, 1.0)
}

/// Whether an endpoint that has this share takes a request that it would have if it had all of it.
fn accepts(share: f64, rng: &mut SmallRng) -> bool {
    share >= 1.0 || rng.random::<f64>() < share
}

/// A number that is as good as random, from 0.0 to below 1.0.
fn part(bits: u64) -> f64 {
    // The upper 32 bits are exact.
    f64::from((bits >> 32) as u32) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
#[path = "methods_tests.rs"]
mod tests;
