//! Which endpoint gets the next request: the better of two drawn at random (P2C) by peak EWMA, leaving out those that
//! failed of late.
//!
//! **Load** is the time that an endpoint takes to answer, times the requests that it has in hand plus one. The time is a
//! moving average that jumps up to every peak and decays over [`DECAY`](super::health::DECAY), and at least what is owed (see
//! below). A failure counts as slow, so an endpoint that fails fast does not draw traffic to itself. An endpoint that has not
//! answered yet has no such time: it counts as fast as the one that it is compared with, so a new one has its share at once,
//! however fast the others are.
//!
//! **Chance is no load.** With few requests in hand the times alone would decide, and of a few equal endpoints the one that was
//! slow last would get nothing for as long as it is remembered. So times within a factor of [`SIMILAR`] count as
//! equal, a peak is one only if the answer before was slow as well, and the handshake is no part of the time.
//!
//! **What is owed.** A request that ends without the head of a response (a time-out of any kind, a client that goes away, a
//! broken connection) says only how long the response would have taken *at least*. That raises the average, and never
//! lowers it. Beside it the endpoint owes the sum of all that was waited for in vain since its last head, and the time for
//! which those that still wait have heard nothing. What is owed does not decay, whatever the clients' limits are: an endpoint
//! that hangs gets worse with every request that it swallows. The next head clears it.
//!
//! **Probes.** So that there can be a head, an endpoint that owes is asked again after [`PROBE`](super::health::PROBE), one
//! that is only slow after [`PROBE_SLOW`](super::health::PROBE_SLOW), which doubles while it stays so, and one that failed after
//! [`PROBE_FAILED`](super::health::PROBE_FAILED), if another one was preferred
//! [`PASSED`](super::health::PASSED) times meanwhile: that is at most one of 65 requests, fast or slow. (In a Service with few
//! requests, one that owes is asked after [`PROBE_AT_LAST`](super::health::PROBE_AT_LAST).) A measurement that is a second old
//! is replaced by the next one, so that an endpoint which has recovered has its share after one or two of them.
//!
//! **Left out** is an endpoint that cannot be connected to or that fails: [`ejection`](super::ejection) has when, and for how long.
//! A request that got no answer is such a failure only if it waited for more than [`HUNG`](super::health::HUNG) and three
//! times the median of the others' averages (if any has answered yet), this endpoint has answered nothing meanwhile, and there
//! is another one that has, or that owes nothing. So nobody is ejected for an impatient client, for a long poll or a watch, or
//! where all of the Service hangs, and never the last one. Requests that waited at the same time are one failure.
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

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proxy_transport::client::Pool;
use outrigger_proxy_transport::net::count::Place;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::affinity::Caller;
use super::ejection::{Counts, LeftOut, Standing, Verdict};
use super::group::Group;
use super::hash::{of_address, of_endpoint};
use super::health::{Answer, Health, Others, SIMILAR};
use super::methods::Among;
use crate::model::{BackendTls, Balancing, Endpoint, ServiceName};
use crate::telemetry::ServiceMetrics;
use crate::usage::{Registry, Usage};

/// Seconds that an endpoint takes which has not answered yet, beside another such.
const UNKNOWN: f64 = 0.001;

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

/// How much one endpoint may have of this sidecar, all workers together.
#[derive(Clone, Copy, Debug)]
pub enum EndpointLimit {
    Requests(usize),
    Connections(usize),
}

/// One endpoint with what is known of it, and the connections to it.
pub struct Member {
    pub endpoint: Arc<Endpoint>,
    pub pool: Rc<Pool>,
    /// How it is called, if it is not in the mesh. `None`: in plaintext.
    tls: Option<Arc<BackendTls>>,
    /// See [`super::hash`].
    hash: u64,
    /// By what sessions know it.
    reference: u64,
    /// When it came. `None`: it was there when this worker began to call the Service.
    came: Option<Instant>,
    /// Until when its load counts more, because it has said that it is busy.
    busy_until: Cell<Option<Instant>>,
    /// It is not near the caller.
    remote: Cell<bool>,
    in_hand: Cell<u32>,
    health: RefCell<Health>,
    /// With requests that are counted together,
    standing: RefCell<Standing>,
    /// and with those of rules that count apart, by the name of the route. At most one for each route.
    apart: RefCell<Vec<(Arc<str>, Standing)>>,
    group: Rc<Group>,
    /// What all workers have of it.
    usage: OnceCell<Arc<Usage>>,
}

/// A request in an endpoint's hands, until the last byte of its response. Dropped before [`InHand::end`], it got no answer.
pub struct InHand {
    member: Rc<Member>,
    began: Cell<Instant>,
    /// When there was a connection for it.
    sent: Instant,
    rules: Balancing,
    /// The first one after an ejection.
    is_probe: bool,
    /// It may go to endpoints near the caller and to others: how long it takes compares them.
    compares: bool,
    /// Whether it waits for the head of a response.
    waits: bool,
    /// A limit of this sidecar's keeps it from the endpoint meanwhile.
    held_back: Cell<bool>,
    /// Where the number of requests is limited: its own, and its endpoint's.
    places: [Option<Place>; 2],
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
                .find(|m| m.reference == session && healthy(m) && m.has_room(pick.limit));
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
            member.apart.borrow_mut().retain(|(route, _)| is_there(route));
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
            let (was, is) = (member.tls.as_ref().map(Arc::as_ptr), tls_of(endpoint).map(Arc::as_ptr));
            member.endpoint.is_same(endpoint) && was == is
        };
        self.members = endpoints
            .iter()
            .map(|endpoint| {
                let known = old.remove(&endpoint.address).filter(|member| same(member, endpoint));
                let member = known.unwrap_or_else(|| {
                    let mut new = Member::new(Arc::clone(endpoint), Rc::clone(&self.group), came, now);
                    new.tls = tls_of(endpoint).cloned();
                    Rc::new(new)
                });
                member.remote.set(endpoint.remote);
                member
            })
            .collect();
        // The order stays the same on each side.
        self.members.sort_by_key(|member| member.remote.get());
        self.near = self.members.iter().filter(|member| !member.remote.get()).count();
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
    let due = |m: &Member| probing && m.health.borrow().is_due(now);
    let b_is_better = match (due(a), due(b)) {
        (false, true) => true,
        (true, false) => false,
        _ => b.is_lighter_than(a, now, times),
    };
    let (better, other) = if b_is_better { (b, a) } else { (a, b) };
    other.health.borrow_mut().pass_over();
    better
}

impl Member {
    /// How it is called, where it is not in the mesh. `None`: in plaintext.
    pub fn tls(&self) -> Option<&Arc<BackendTls>> {
        self.tls.as_ref()
    }

    fn new(endpoint: Arc<Endpoint>, group: Rc<Group>, came: Option<Instant>, now: Instant) -> Self {
        Self {
            pool: Rc::new(Pool::new(endpoint.identity.is_some())),
            hash: of_address(endpoint.address),
            reference: of_endpoint(&endpoint),
            endpoint,
            tls: None,
            came,
            busy_until: Cell::new(None),
            remote: Cell::new(false),
            in_hand: Cell::new(0),
            health: RefCell::new(Health::new(now)),
            standing: RefCell::default(),
            apart: RefCell::default(),
            group,
            usage: OnceCell::new(),
        }
    }

    /// What all workers have of it.
    pub fn usage(&self) -> &Usage {
        self.usage.get_or_init(|| self.group.usage_of(self.endpoint.address))
    }

    /// Closes an idle connection to any endpoint of the backend. `false`: there is none.
    pub fn close_one_idle(&self) -> bool {
        self.group.members().iter().any(|member| member.pool.close_idle())
    }

    fn has_room(&self, limit: Option<EndpointLimit>) -> bool {
        match limit {
            None => true,
            Some(EndpointLimit::Requests(most)) => self.usage().requests.taken() < most,
            Some(EndpointLimit::Connections(most)) => self.usage().connections.taken() < most,
        }
    }

    /// A request of a rule begins, which ends when the guard is dropped.
    pub fn take(self: &Rc<Self>, rules: &Balancing, now: Instant) -> InHand {
        self.in_hand.set(self.in_hand.get() + 1);
        self.health.borrow_mut().ask(now);
        let is_probe = self.with_standing(rules, |standing| standing.ask(rules.ejection(), now));
        if is_probe {
            self.group.changed();
        }
        InHand {
            member: Rc::clone(self),
            began: Cell::new(now),
            sent: now,
            // All that is asked of it when it ends.
            rules: Balancing {
                load_balancer: None,
                ejection: rules.ejection.clone(),
            },
            is_probe,
            compares: rules.prefers_near() && rules.hash_keys().is_none(),
            waits: true,
            held_back: Cell::new(false),
            places: [None, None],
        }
    }

    /// Requests of this worker that it has not answered to the last byte.
    pub fn in_hand(&self) -> u32 {
        self.in_hand.get()
    }

    /// By what sessions know it.
    pub fn reference(&self) -> u64 {
        self.reference
    }

    /// How long ago it came. `None`: it was there from the beginning.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.came?))
    }

    /// It has said that it is busy.
    pub fn penalise(&self, until: Instant) {
        self.busy_until.set(self.busy_until.get().max(Some(until)));
    }

    /// Whether it has said so.
    pub fn is_busy(&self, now: Instant) -> bool {
        self.busy_until.get().is_some_and(|until| now < until)
    }

    /// See [`super::hash`].
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether requests of a rule leave it out at the moment.
    pub fn left_out(&self, rules: &Balancing, now: Instant) -> Option<LeftOut> {
        match rules.counters() {
            None => self.standing.borrow().left_out(now),
            Some(route) => self.apart(route, |standing| standing.left_out(now)),
        }
    }

    /// When requests of a rule do so no more.
    pub fn ends(&self, rules: &Balancing) -> Option<Instant> {
        match rules.counters() {
            None => self.standing.borrow().ends(),
            Some(route) => self.apart(route, Standing::ends),
        }
    }

    fn apart<T>(&self, route: &Arc<str>, of: impl FnOnce(&Standing) -> Option<T>) -> Option<T> {
        let apart = self.apart.borrow();
        let (_, standing) = apart.iter().find(|(name, _)| name == route)?;
        of(standing)
    }

    fn with_standing<T>(&self, rules: &Balancing, what: impl FnOnce(&mut Standing) -> T) -> T {
        let Some(route) = rules.counters() else {
            return what(&mut self.standing.borrow_mut());
        };
        let mut apart = self.apart.borrow_mut();
        let known = apart.iter().position(|(name, _)| name == route);
        let index = known.unwrap_or_else(|| {
            apart.push((Arc::clone(route), Standing::default()));
            apart.len() - 1
        });
        what(&mut apart[index].1)
    }

    fn learn(&self, in_hand: &InHand, answer: Answer, now: Instant) {
        let (rules, began) = (&in_hand.rules, in_hand.began.get());
        let verdict = match answer {
            Answer::Good | Answer::Connected => Verdict::Works,
            Answer::Bad | Answer::Broken => Verdict::Fails,
            Answer::Unreachable => Verdict::Absent,
            Answer::Missing if self.hangs(rules, began, now) => Verdict::Fails,
            Answer::Missing | Answer::Unasked => Verdict::Nothing,
        };
        self.health.borrow_mut().learn(answer, began, in_hand.sent, now);
        let compares = in_hand.compares && self.group.has_zones();
        if compares && matches!((answer, verdict), (Answer::Good, _) | (Answer::Missing, Verdict::Fails)) {
            let time = now.saturating_duration_since(in_hand.sent);
            self.group.zones.borrow_mut().answered(!self.remote.get(), time, now);
        }
        let others = |policy| {
            let counts = |other: &Self| other.with_standing(rules, |standing| standing.counts(policy, now));
            self.others(rules, now, Counts::default(), |all, other| all.and(counts(other)))
        };
        let (has_changed, ejected) = self.with_standing(rules, |standing| {
            let before = standing.ends();
            if in_hand.is_probe {
                standing.asked();
            }
            if answer == Answer::Missing && verdict == Verdict::Fails {
                standing.hangs(now);
            }
            let ejected = standing.judge(verdict, rules.ejection(), began, now, others);
            (standing.ends() != before, ejected)
        });
        if has_changed {
            self.group.changed();
        }
        if ejected {
            self.group.say_ejected(self, rules, now);
        }
    }

    /// Whether a request that got no answer says that the endpoint hangs, and not that the client was impatient, that the
    /// request takes its time, or that all of the Service hangs.
    fn hangs(&self, rules: &Balancing, began: Instant, now: Instant) -> bool {
        // Those that waited at the same time are one failure.
        let known = self.with_standing(rules, |standing| standing.hung_since(began));
        if known || !self.health.borrow().is_silent(began, now) {
            return false;
        }
        let others = self.others(rules, now, Others::default(), |others, other| {
            others.with(&other.health.borrow(), began)
        });
        others.say_that_one_hangs(began, now)
    }

    /// Does not look at its own state, which may be borrowed, nor at those that are left out.
    fn others<T>(&self, rules: &Balancing, now: Instant, none: T, and: impl FnMut(T, &Self) -> T) -> T {
        let all = self.group.members();
        let others = all.iter().filter(|other| !std::ptr::eq(Rc::as_ptr(other), self));
        let others = others.filter(|other| other.left_out(rules, now).is_none());
        others.map(Rc::as_ref).fold(none, and)
    }

    fn is_lighter_than(&self, other: &Self, now: Instant, times: impl Fn(&Self) -> f64) -> bool {
        let (mine, others) = (self.health.borrow(), other.health.borrow());
        let (my_average, other_average) = (mine.average(now), others.average(now));
        // Of two that have not answered yet, any time will do: it is compared with what they owe.
        let known = my_average.or(other_average).unwrap_or(UNKNOWN);
        let seconds = |health: &Health, average: Option<f64>| average.unwrap_or(known).max(health.at_least(now));
        let (my_time, other_time) = (seconds(&mine, my_average), seconds(&others, other_average));
        let (my_time, other_time) = match my_time.max(other_time) < SIMILAR * my_time.min(other_time) {
            true => (1.0, 1.0),
            false => (my_time, other_time),
        };
        let in_hand = |member: &Self| f64::from(member.in_hand.get() + 1) * times(member);
        my_time * in_hand(self) < other_time * in_hand(other)
    }
}

impl InHand {
    /// It has these places until its end.
    pub fn hold(&mut self, places: [Option<Place>; 2]) {
        self.places = places;
    }

    /// Gives these places up, to who holds them longer.
    pub fn take_places(&mut self) -> [Option<Place>; 2] {
        std::mem::take(&mut self.places)
    }

    /// Whose hands.
    pub fn member(&self) -> &Rc<Member> {
        &self.member
    }

    /// It stays with its session, and so how long it takes compares nobody.
    pub fn stays(&mut self) {
        self.compares = false;
    }

    /// There is a connection for it: what it takes from now on is the endpoint's time.
    pub fn sent(&mut self, now: Instant) {
        self.sent = now;
    }

    /// A limit of this sidecar's keeps it: what it waits for, and that it ends before, says nothing about the endpoint.
    pub fn hold_back(&self) {
        if !self.held_back.replace(true) {
            self.member.health.borrow_mut().hold_back();
        }
    }

    /// The limit lets it go on.
    pub fn go_on(&self, now: Instant) {
        if self.held_back.replace(false) {
            self.began.set(now);
            self.member.health.borrow_mut().ask(now);
        }
    }

    /// There is an answer, or it is known that there will be none. Counts once.
    pub fn end(&mut self, answer: Answer, now: Instant) {
        if std::mem::take(&mut self.waits) {
            let answer = if self.held_back.get() { Answer::Unasked } else { answer };
            self.member.learn(self, answer, now);
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.member.in_hand.set(self.member.in_hand.get() - 1);
        if self.waits {
            self.end(Answer::Missing, Instant::now());
        }
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "balance_few_tests.rs"]
mod few_tests;
