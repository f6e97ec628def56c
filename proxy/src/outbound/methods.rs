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
//! Endpoints that are left out are passed over by all of them; a Service's `sessionAffinity` comes before all of them.

use std::cell::Cell;
use std::rc::Rc;

use rand::Rng;
use rand::rngs::SmallRng;

use super::balance::{Member, Pick, better, of_two};
use super::hash::score;
use crate::model::{Choice, LoadBalancer};

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
        match (&by.choice, pick.key) {
            (Choice::ConsistentHash { bounded_load, .. }, Some(key)) => self.hashed(key, *bounded_load),
            (Choice::PeakEwma | Choice::ConsistentHash { .. }, _) => {
                let probing = pick.tried.is_empty();
                of_two(self.members, &self.allowed, |a, b| better(a, b, probing, pick.now), rng)
            }
            (Choice::LeastRequest, _) => {
                let fewer = |a: &'a Rc<Member>, b: &'a Rc<Member>| if b.in_hand() < a.in_hand() { b } else { a };
                of_two(self.members, &self.allowed, fewer, rng)
            }
            (Choice::RoundRobin, _) => self.in_turn(rng),
            (Choice::Random, _) => self.any(rng),
        }
    }

    fn in_turn(&self, rng: &mut SmallRng) -> Option<&'a Rc<Member>> {
        let count = self.members.len();
        let begin = self.turn.get().unwrap_or_else(|| rng.random_range(0..count)) % count;
        let index = (begin..count)
            .chain(0..begin)
            .find(|i| (self.allowed)(&self.members[*i]))?;
        self.turn.set(Some(index + 1));
        Some(&self.members[index])
    }

    fn any(&self, rng: &mut SmallRng) -> Option<&'a Rc<Member>> {
        let mut draw = || &self.members[rng.random_range(0..self.members.len())];
        let drawn = (0..DRAWS).map(|_| draw()).find(|member| (self.allowed)(member));
        drawn.or_else(|| {
            let (before, after) = self.members.split_at(rng.random_range(0..self.members.len()));
            after.iter().chain(before).find(|member| (self.allowed)(member))
        })
    }

    fn hashed(&self, key: u64, bounded_load: u64) -> Option<&'a Rc<Member>> {
        let allowed = || self.members.iter().filter(|member| (self.allowed)(member));
        let (mut requests, mut count) = (1, 0);
        for member in allowed() {
            requests += u64::from(member.in_hand());
            count += 1;
        }
        let most = (requests * bounded_load).div_ceil(100 * count.max(1)).max(NOT_BUSY);
        let by_score = |member: &&Rc<Member>| score(key, member.hash());
        let has_room = |member: &&Rc<Member>| u64::from(member.in_hand()) < most;
        allowed()
            .filter(has_room)
            .max_by_key(by_score)
            .or_else(|| allowed().max_by_key(by_score))
    }
}

#[cfg(test)]
#[path = "methods_tests.rs"]
mod tests;
