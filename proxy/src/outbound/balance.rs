//! Which endpoint gets the next request: the better of two drawn at random (P2C) by peak EWMA, leaving out those that
//! failed of late (see [`member`](super::member)).
//!
//! **Load** is the time that an endpoint takes to answer, times the requests that it has in hand plus one. The time is a
//! moving average that jumps up to every peak and decays over [`DECAY`](super::health::DECAY), and at least what it owes (see
//! [`member`](super::member)). A failure counts as slow, so an endpoint that fails fast does not draw traffic to itself. An endpoint that has not
//! answered yet has no such time: it counts as fast as the one that it is compared with, so a new one has its share at once,
//! however fast the others are.
//!
//! **Chance is no load.** With few requests in hand the times alone would decide, and of a few equal endpoints the one that was
//! slow last would get nothing for as long as it is remembered. So times within a factor of [`SIMILAR`] count as
//! equal, a peak is one only if the answer before was slow as well, and the handshake is no part of the time.
//!
//! **Probes.** So that there can be a head, an endpoint that owes is asked again after [`PROBE`](super::health::PROBE), one
//! that is only slow after [`PROBE_SLOW`](super::health::PROBE_SLOW), which doubles while it stays so, and one that failed after
//! [`PROBE_FAILED`](super::health::PROBE_FAILED), if another one was preferred
//! [`PASSED`](super::health::PASSED) times meanwhile: that is at most one of 65 requests, fast or slow. (In a Service with few
//! requests, one that owes is asked after [`PROBE_AT_LAST`](super::health::PROBE_AT_LAST).) A measurement that is a second old
//! is replaced by the next one, so that an endpoint which has recovered has its share after one or two of them.
//!
//! **Connections of bytes** have no response: they are spread by their number alone, and only those are failures that could
//! not be made.
//!
//! Endpoints near the caller are preferred, where the Service has hints for it: see [`zones`](super::zones).
//!
//! Where a policy says how endpoints are chosen (`loadBalancer`), [`methods`](super::methods) does.
//!
//! What it does not protect from: an endpoint that answers wrong, with 200.
//!
//! Time and randomness are arguments, so that tests run in simulated time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::affinity::Caller;
use super::ejection::LeftOut;
use super::group::Group;
use super::member::{EndpointLimit, Member};
use super::methods::Among;
use crate::model::{BackendTls, Balancing, Endpoint, ServiceName};
use crate::telemetry::ServiceMetrics;
use crate::usage::Registry;

/// The endpoints of one backend on one worker.
#[derive(Default)]
pub struct Balancer {
    /// Those near the caller first.
    members: Vec<Rc<Member>>,
    /// How many these are.
    near: usize,
    /// The first that can be asked gets the request, whatever its load (see [`super::affinity`]).
    in_order: bool,
    /// Where the next turn begins, in `RoundRobin`, and the same among those that are not near.
    turns: [Cell<Option<usize>>; 2],
    /// The same, for each of them.
    group: Rc<Group>,
}

/// What an endpoint is picked by.
pub struct Pick<'a> {
    /// Those that this request was sent to already.
    pub tried: &'a [Rc<Member>],
    pub now: Instant,
    /// For what is left to chance.
    pub rng: &'a RefCell<SmallRng>,
    /// Those of the request's rule.
    pub rules: &'a Balancing,
    /// What `ConsistentHash` goes by; see [`hash::key`](super::hash::key).
    pub key: Option<u64>,
    /// The endpoint that the request's session is at; see [`hash::of_endpoint`](super::hash::of_endpoint).
    pub session: Option<u64>,
    /// One that has so much is not picked.
    pub limit: Option<EndpointLimit>,
}

impl Balancer {
    /// Takes over the endpoints; those that stay keep what is known of them, and their connections. With session `affinity`, all
    /// requests of this pod go to the one that it prefers, as long as that works.
    pub fn update(&mut self, endpoints: &[Arc<Endpoint>], affinity: Option<Caller>, now: Instant) {
        self.update_secured(endpoints, None, affinity, now);
    }

    /// The same; those of them that are not in the mesh are called as `tls` says. One that was called otherwise is another one: what is known of
    /// it says nothing, and no connection to it is used again.
    pub fn update_secured(
        &mut self,
        endpoints: &[Arc<Endpoint>],
        tls: Option<&Arc<BackendTls>>,
        affinity: Option<Caller>,
        now: Instant,
    ) {
        self.in_order = affinity.is_some();
        match affinity {
            Some(caller) => self.replace(&caller.ranked(endpoints), tls, now),
            None => self.replace(endpoints, tls, now),
        }
    }

    /// The endpoint for the next attempt; one that was tried only if there is no other that works. `None`: there is no endpoint.
    pub fn pick(&self, pick: &Pick<'_>) -> Option<Rc<Member>> {
        let (now, rng) = (pick.now, &mut *pick.rng.borrow_mut());
        let fresh = |m: &Rc<Member>| !pick.tried.iter().any(|t| Rc::ptr_eq(t, m));
        let healthy = |m: &Rc<Member>| match m.left_out(pick.rules, now) {
            None => true,
            Some(LeftOut::Absent) => false,
            Some(LeftOut::Failing) => self.group.uses_all(pick.rules, now),
        };
        let all = &*self.members;
        if let Some(session) = pick.session {
            let of_session = all
                .iter()
                .find(|m| m.reference() == session && healthy(m) && m.has_room(pick.limit));
            if let Some(member) = of_session {
                return Some(Rc::clone(member));
            }
        }
        if (1..all.len()).contains(&self.near) && pick.rules.prefers_near() {
            let (near, others) = all.split_at(self.near);
            let mut sides = [(near, &self.turns[0]), (others, &self.turns[1])];
            if self.may_spill(pick) && self.group.zones.borrow().spills(now, rng) {
                sides.reverse();
            }
            let allowed = |m: &Rc<Member>| fresh(m) && healthy(m);
            let mut picked = sides.into_iter();
            if let Some(member) = picked.find_map(|(side, turn)| self.pick_among(side, turn, allowed, pick, rng)) {
                return Some(Rc::clone(member));
            }
        }
        let turn = &self.turns[0];
        self.pick_among(all, turn, |m| fresh(m) && healthy(m), pick, rng)
            .or_else(|| self.pick_among(all, turn, healthy, pick, rng))
            .or_else(|| self.pick_among(all, turn, fresh, pick, rng))
            .or_else(|| self.pick_among(all, turn, |_| true, pick, rng))
            .map(Rc::clone)
    }

    /// For the timer, and for `/config`.
    pub fn members(&self) -> &[Rc<Member>] {
        &self.members
    }

    /// Where ejections are counted.
    pub fn count_at(&self, metrics: &Arc<ServiceMetrics>) {
        self.group.count_at(metrics);
    }

    /// Where limits are counted that hold for all workers.
    pub fn count_in(&self, counts: &Arc<Registry>, service: &ServiceName, backend: &ServiceName) {
        self.group.count_in(counts, service, backend);
    }

    /// Forgets what was counted for rules that are no more.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.group.keep(&is_there);
        for member in &self.members {
            member.keep(&is_there);
        }
    }

    fn replace(&mut self, endpoints: &[Arc<Endpoint>], tls: Option<&Arc<BackendTls>>, now: Instant) {
        let came = (!self.members.is_empty()).then_some(now);
        let mut old: HashMap<SocketAddr, Rc<Member>> = self
            .members
            .drain(..)
            .map(|member| (member.endpoint.address, member))
            .collect();
        let tls_of = |endpoint: &Endpoint| tls.filter(|_| endpoint.identity.is_none());
        let same = |member: &Rc<Member>, endpoint: &Endpoint| {
            let (was, is) = (member.tls().map(Arc::as_ptr), tls_of(endpoint).map(Arc::as_ptr));
            member.endpoint.is_same(endpoint) && was == is
        };
        self.members = endpoints
            .iter()
            .map(|endpoint| {
                let known = old.remove(&endpoint.address).filter(|member| same(member, endpoint));
                let member = known.unwrap_or_else(|| {
                    let (tls, group) = (tls_of(endpoint).cloned(), Rc::clone(&self.group));
                    Rc::new(Member::new(Arc::clone(endpoint), tls, group, came, now))
                });
                member.set_remote(endpoint.remote);
                member
            })
            .collect();
        // The order stays the same on each side.
        self.members.sort_by_key(|member| member.is_remote());
        self.near = self.members.iter().filter(|member| !member.is_remote()).count();
        self.group.replace(&self.members, self.near);
    }

    /// Requests that are to stay where they belong do not spill.
    fn may_spill(&self, pick: &Pick<'_>) -> bool {
        !self.in_order && (pick.key.is_none() || pick.rules.hash_keys().is_none())
    }

    fn pick_among<'a>(
        &'a self,
        members: &'a [Rc<Member>],
        turn: &'a Cell<Option<usize>>,
        allowed: impl Fn(&Rc<Member>) -> bool,
        pick: &Pick<'_>,
        rng: &mut SmallRng,
    ) -> Option<&'a Rc<Member>> {
        let allowed = |m: &Rc<Member>| m.has_room(pick.limit) && allowed(m);
        match members {
            [] => None,
            [only] => Some(only).filter(|m| allowed(m)),
            members if self.in_order => members.iter().find(|m| allowed(m)),
            members => match &pick.rules.load_balancer {
                // A retry is no probe.
                None => of_two(
                    members,
                    allowed,
                    |a, b| better(a, b, pick.tried.is_empty(), pick.now, |_| 1.0),
                    rng,
                ),
                Some(by) => Among { members, allowed, turn }.choose(by, pick, rng),
            },
        }
    }
}

/// The better of two of at least two that are drawn, of those that are allowed.
pub fn of_two<'a>(
    members: &'a [Rc<Member>],
    allowed: impl Fn(&Rc<Member>) -> bool,
    better: impl FnOnce(&'a Rc<Member>, &'a Rc<Member>) -> &'a Rc<Member>,
    rng: &mut SmallRng,
) -> Option<&'a Rc<Member>> {
    let first = rng.random_range(0..members.len());
    let mut second = rng.random_range(0..members.len() - 1);
    second += usize::from(second >= first);
    let mut drawn = [first, second].into_iter().map(|i| &members[i]).filter(|m| allowed(m));
    match (drawn.next(), drawn.next()) {
        (Some(a), Some(b)) => Some(better(a, b)),
        (Some(a), None) => Some(a),
        // Two that are left out: the next that is not.
        _ => {
            let (before, after) = members.split_at(first);
            after.iter().chain(before).find(|m| allowed(m))
        }
    }
}

/// The one that is due, if one of them is; or the one with less load, which counts so many `times`.
pub fn better<'a>(
    a: &'a Rc<Member>,
    b: &'a Rc<Member>,
    probing: bool,
    now: Instant,
    times: impl Fn(&Member) -> f64,
) -> &'a Rc<Member> {
    let due = |m: &Member| probing && m.is_due(now);
    let b_is_better = match (due(a), due(b)) {
        (false, true) => true,
        (true, false) => false,
        _ => b.is_lighter_than(a, now, times),
    };
    let (better, other) = if b_is_better { (b, a) } else { (a, b) };
    other.pass_over();
    better
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "balance_few_tests.rs"]
mod few_tests;
