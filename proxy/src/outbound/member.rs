//! One endpoint, and the requests that it has in hand: how fast it is, what it owes, and whether it fails.
//!
//! **What is owed.** A request that ends without the head of a response (a time-out of any kind, a client that goes away, a
//! broken connection) says only how long the response would have taken *at least*. That raises the average, and never
//! lowers it. Beside it the endpoint owes the sum of all that was waited for in vain since its last head, and the time for
//! which those that still wait have heard nothing. What is owed does not decay, whatever the clients' limits are: an endpoint
//! that hangs gets worse with every request that it swallows. The next head clears it.
//!
//! **Left out** is an endpoint that cannot be connected to or that fails: [`ejection`](super::ejection) has when, and for how long.
//! A request that got no answer is such a failure only if it waited for more than [`HUNG`](super::health::HUNG) and three
//! times the median of the others' averages (if any has answered yet), this endpoint has answered nothing meanwhile, and there
//! is another one that has, or that owes nothing. So nobody is ejected for an impatient client, for a long poll or a watch, or
//! where all of the Service hangs, and never the last one. Requests that waited at the same time are one failure.
//!
//! Time is an argument.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proxy_transport::client::Pool;
use outrigger_proxy_transport::net::count::Place;
use tokio::time::Instant;

use super::ejection::{Counts, LeftOut, Standing, Verdict};
use super::group::Group;
use super::hash::{of_address, of_endpoint};
use super::health::{Answer, Health, Others, SIMILAR};
use crate::model::{BackendTls, Balancing, Endpoint};
use crate::usage::Usage;

/// Seconds that an endpoint takes which has not answered yet, beside another such.
const UNKNOWN: f64 = 0.001;

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

impl Member {
    /// How it is called, where it is not in the mesh. `None`: in plaintext.
    pub fn tls(&self) -> Option<&Arc<BackendTls>> {
        self.tls.as_ref()
    }

    /// An endpoint that came at that time (`None`: with the Service itself), of which nothing is known. `tls`: how it is called, if it is not in
    /// the mesh; `None`: in plaintext.
    pub fn new(
        endpoint: Arc<Endpoint>,
        tls: Option<Arc<BackendTls>>,
        group: Rc<Group>,
        came: Option<Instant>,
        now: Instant,
    ) -> Self {
        Self {
            pool: Rc::new(Pool::new(endpoint.identity.is_some())),
            hash: of_address(endpoint.address),
            reference: of_endpoint(&endpoint),
            endpoint,
            tls,
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

    /// Whether it has less than the limit.
    pub fn has_room(&self, limit: Option<EndpointLimit>) -> bool {
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

    /// Whether it is not near the caller.
    pub fn is_remote(&self) -> bool {
        self.remote.get()
    }

    /// Says so: it may change.
    pub fn set_remote(&self, remote: bool) {
        self.remote.set(remote);
    }

    /// Whether it is to be asked again, to see if it has recovered.
    pub fn is_due(&self, now: Instant) -> bool {
        self.health.borrow().is_due(now)
    }

    /// Another one was preferred.
    pub fn pass_over(&self) {
        self.health.borrow_mut().pass_over();
    }

    #[cfg(test)]
    pub fn health(&self) -> std::cell::Ref<'_, Health> {
        self.health.borrow()
    }

    /// Forgets what was counted for rules that are no more.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.apart.borrow_mut().retain(|(route, _)| is_there(route));
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

    /// Whether it has less load, where each one's load counts so many `times`.
    pub fn is_lighter_than(&self, other: &Self, now: Instant, times: impl Fn(&Self) -> f64) -> bool {
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
