//! The decision, and what is kept between two of them.

use std::cmp::Reverse;
use std::hash::RandomState;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_access::{Asked, Facts};
use outrigger_api::limits as proto;
use parking_lot::Mutex;

use crate::asking::{self, Match};
use crate::key;
use crate::open::Open;
use crate::plan::{Headers, Limit, Plan, Policy};
use crate::store::{Ask, Store};
use crate::table::{State, Table, Wish};
use crate::view::{LimitView, PolicyView};

/// The limits of a pod, and what has been taken of each. All workers of a sidecar share one.
#[derive(Debug, Default)]
pub struct Limiter {
    pub(crate) plan: ArcSwap<Plan>,
    pub(crate) tables: Mutex<Tables>,
    /// Connections of bytes.
    pub(crate) open: Mutex<Open>,
    /// One update after the other: what it compiles, no request waits for.
    updating: Mutex<()>,
    /// Of keys: nobody can choose two that count as the same.
    pub(crate) random: RandomState,
}

/// Of the plan of this version: a table for each limit.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    version: u64,
    pub(crate) all: Vec<Table>,
}

/// What becomes of a request that a limit is about.
#[derive(Debug)]
pub struct Outcome {
    pub(crate) plan: Arc<Plan>,
    /// Those that are enforced and that it matches.
    pub(crate) enforced: Vec<usize>,
    /// The one that it has to wait for longest, and for how long.
    pub(crate) refused: Option<(usize, u64)>,
    /// The one with least left, of those of which responses say something.
    pub(crate) shown: Option<Shown>,
    /// Of each policy that is a shadow, and would refuse it.
    pub(crate) shadows: Vec<usize>,
    /// What is not decided yet.
    pub(crate) open: Option<Box<asking::Open>>,
    /// Of those that are enforced, the ones whose store has not answered.
    pub(crate) unanswered: Vec<usize>,
    /// The one of these that refuses it for that.
    pub(crate) unavailable: Option<usize>,
}

/// How a limit is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) limit: usize,
    pub(crate) rate: usize,
    /// It is the whole rate, of all pods together.
    pub(crate) whole: bool,
    pub(crate) state: State,
}

/// A limit that refuses a request, or would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<'a> {
    /// "namespace/name".
    pub policy: &'a str,
    /// As the policy names it, or its position.
    pub limit: &'a str,
}

/// What is left of a limit, for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing<'a> {
    /// How it is said.
    pub headers: Headers,
    /// As the policy names it, or its position.
    pub limit: &'a str,
    /// Requests in an interval, of this pod.
    pub quota: u64,
    /// The interval.
    pub seconds: u64,
    /// Requests that it would admit now.
    pub remaining: u64,
    /// Until it would admit one more, rounded up to seconds.
    pub next: u64,
    /// Until all of the burst is there again, rounded up to seconds.
    pub reset: u64,
}

impl Limiter {
    /// Puts other policies in the place of those before, at a time since whenever the caller counts from. Limits of the same policy, name
    /// and key keep what was taken of them.
    pub fn update(&self, message: &proto::Limits, now: Duration) {
        let now = micros(now);
        let _updating = self.updating.lock();
        let before = self.plan.load_full();
        let plan = Arc::new(Plan::new(message, before.version + 1));
        let same = plan.limits.iter().map(|limit| before.find(&plan, limit));
        let same: Vec<Option<usize>> = same.collect();
        let mut all: Vec<Table> = plan.limits.iter().map(Limit::table).collect();
        self.open.lock().follow(message, now);
        let mut tables = self.tables.lock();
        for (table, same) in all.iter_mut().zip(same) {
            if let Some(n) = same
                && let Some(old) = tables.all.get_mut(n)
            {
                table.follow(old, now);
            }
        }
        let new = Tables {
            version: plan.version,
            all,
        };
        let old = mem::replace(&mut *tables, new);
        // Under the lock: whoever has it finds the two together.
        self.plan.store(plan);
        drop(tables);
        // No request waits for that either.
        drop(old);
    }

    /// Whether no request is limited.
    pub fn is_empty(&self) -> bool {
        self.plan.load().limits.is_empty()
    }

    /// Whether a limit in force is about requests to the port. A shadow changes nothing, and so not what is read as a request.
    pub fn counts_requests(&self, port: u16) -> bool {
        let plan = self.plan.load();
        let is_about = |limit| {
            let policy = plan.policy_of(limit);
            !policy.shadow && policy.selects(port)
        };
        plan.limits.iter().any(is_about)
    }

    /// Another one whenever it is told something.
    pub fn version(&self) -> u64 {
        self.plan.load().version
    }

    /// The stores that limits are counted in. Of several policies with one, the shortest time.
    pub fn stores(&self) -> Vec<Store> {
        let plan = self.plan.load();
        let mut stores: Vec<Store> = Vec::new();
        let limits = plan.limits.iter().filter(|limit| limit.global.is_some());
        for store in limits.filter_map(|limit| plan.policy_of(limit).store.as_ref()) {
            match stores.iter_mut().find(|known| known.address == store.address) {
                Some(known) => known.timeout = known.timeout.min(store.timeout),
                None => stores.push(store.clone()),
            }
        }
        stores
    }

    /// Whether there is a policy of this name.
    pub fn has_policy(&self, name: &str) -> bool {
        self.plan.load().policies.iter().any(|policy| *policy.name == *name)
    }

    /// Decides, and takes tokens. `None`: no limit is about the request. Where [`Outcome::asks`] has something, stores have to be asked, and
    /// [`Self::settle`] decides.
    pub fn decide(&self, facts: &Facts<'_>, now: Duration) -> Option<Outcome> {
        loop {
            let plan = self.plan.load();
            if plan.limits.is_empty() {
                return None;
            }
            let asked = Asked::new(facts);
            let is_shadow = |m: &Match| plan.policy_of(&plan.limits[m.limit]).shadow;
            let (shadows, enforced): (Vec<Match>, Vec<Match>) = self.matches(&plan, &asked).partition(is_shadow);
            if shadows.is_empty() && enforced.is_empty() {
                return None;
            }
            // No request waits for its hashes.
            let open = open(&plan, &enforced, &shadows, facts);
            let mut tables = self.tables.lock();
            if tables.version == plan.version {
                return Some(match open {
                    None => tables.decide(&plan, &enforced, &shadows, micros(now)),
                    Some(open) => tables.begin(&plan, open, micros(now)),
                });
            }
            // It has changed meanwhile.
        }
    }

    /// What the policies come to, for people.
    pub fn view(&self) -> Vec<PolicyView> {
        let tables = self.tables.lock();
        let plan = self.plan.load_full();
        let keys: Vec<usize> = tables.all.iter().map(Table::len).collect();
        // No request waits for what is written.
        drop(tables);
        let open = self.open.lock();
        let of = |(n, policy): (usize, &Policy)| {
            let limits = plan.limits.iter().zip(&keys);
            let limits = limits.filter(|(limit, _)| limit.policy == n);
            PolicyView {
                name: policy.name.to_string(),
                shadow: policy.shadow,
                ports: policy.ports.as_ref().map(|ports| ports.to_vec()),
                limits: limits
                    .map(|(limit, keys)| LimitView::new(policy, limit, *keys))
                    .collect(),
                connections: open.view(&policy.name),
            }
        };
        plan.policies.iter().enumerate().map(of).collect()
    }

    fn matches(&self, plan: &Plan, asked: &Asked<'_>) -> impl Iterator<Item = Match> {
        let limits = plan.limits.iter().enumerate();
        let about = limits.filter(move |(_, limit)| limit.is_about(plan.policy_of(limit), asked));
        about.map(move |(n, limit)| {
            let rate = limit.rate_of(asked);
            Match {
                limit: n,
                wish: Wish {
                    key: key::of(&limit.per, rate, asked.facts(), &self.random),
                    rate,
                    tokens: limit.tokens_of(asked),
                },
                asked: None,
                taken: None,
            }
        })
    }
}

/// What stores have to be asked.
fn open(plan: &Plan, enforced: &[Match], shadows: &[Match], facts: &Facts<'_>) -> Option<asking::Open> {
    let is_whole = |m: &Match| plan.limits[m.limit].global.is_some();
    if !enforced.iter().chain(shadows).any(is_whole) {
        return None;
    }
    let shadows = of_policies(plan, shadows).map(<[Match]>::to_vec);
    let groups = std::iter::once(enforced.to_vec()).chain(shadows);
    asking::Open::new(plan, groups.collect(), facts)
}

/// Those of each policy.
fn of_policies<'a>(plan: &'a Plan, matches: &'a [Match]) -> impl Iterator<Item = &'a [Match]> {
    matches.chunk_by(|a, b| plan.limits[a.limit].policy == plan.limits[b.limit].policy)
}

impl Tables {
    fn decide(&mut self, plan: &Arc<Plan>, enforced: &[Match], of_shadows: &[Match], now: u64) -> Outcome {
        let refused = self.refusal(enforced, now);
        if refused.is_none() {
            self.take(enforced, now);
        }
        let shown = enforced.iter().filter_map(|m| {
            plan.policy_of(&plan.limits[m.limit]).headers?;
            Some(Shown {
                limit: m.limit,
                rate: m.wish.rate,
                whole: false,
                state: self.all[m.limit].state(&m.wish, now),
            })
        });
        let shown = shown.min_by_key(Shown::order);
        let mut shadows = Vec::new();
        // What is refused already, no shadow is asked about.
        if refused.is_none() {
            for of_policy in of_policies(plan, of_shadows) {
                match self.refusal(of_policy, now) {
                    Some((limit, _)) => shadows.push(limit),
                    None => self.take(of_policy, now),
                }
            }
        }
        Outcome {
            plan: Arc::clone(plan),
            enforced: enforced.iter().map(|m| m.limit).collect(),
            refused,
            shown,
            shadows,
            open: None,
            unanswered: Vec::new(),
            unavailable: None,
        }
    }

    /// Takes what the pod itself counts, before stores are asked. Where that refuses, they need not be.
    fn begin(&mut self, plan: &Arc<Plan>, mut open: asking::Open, now: u64) -> Outcome {
        let enforced = &open.groups[0];
        let own: Vec<Match> = enforced.iter().filter(|m| m.asked.is_none()).copied().collect();
        if self.refusal(&own, now).is_some() {
            let mut outcome = self.decide(plan, &own, &[], now);
            outcome.enforced = enforced.iter().map(|m| m.limit).collect();
            return outcome;
        }
        let enforced = enforced.iter().map(|m| m.limit).collect();
        for (group, refused) in open.groups.iter_mut().zip(&mut open.refused) {
            let own: Vec<Match> = group.iter().filter(|m| m.asked.is_none()).copied().collect();
            *refused = self.refusal(&own, now);
            if refused.is_none() {
                for m in group.iter_mut().filter(|m| m.asked.is_none()) {
                    m.taken = Some(self.all[m.limit].take(&m.wish, now));
                }
            }
        }
        Outcome {
            plan: Arc::clone(plan),
            enforced,
            refused: None,
            shown: None,
            shadows: Vec::new(),
            open: Some(Box::new(open)),
            unanswered: Vec::new(),
            unavailable: None,
        }
    }

    /// The limit that has to be waited for longest.
    fn refusal(&mut self, matches: &[Match], now: u64) -> Option<(usize, u64)> {
        let waits = matches
            .iter()
            .map(|m| (m.limit, self.all[m.limit].state(&m.wish, now).wait));
        let waits = waits.filter(|(_, wait)| *wait > 0);
        waits.max_by_key(|(limit, wait)| (*wait, Reverse(*limit)))
    }

    fn take(&mut self, matches: &[Match], now: u64) {
        for m in matches {
            self.all[m.limit].take(&m.wish, now);
        }
    }
}

impl Shown {
    /// The one with least left first.
    pub(crate) fn order(&self) -> (u64, Reverse<u64>, usize) {
        (self.state.remaining, Reverse(self.state.full), self.limit)
    }
}

impl Outcome {
    /// Why it is refused, and after which time it would not be, if nobody else came. `None`: it is admitted.
    pub fn refused(&self) -> Option<(Refused<'_>, Duration)> {
        let (limit, wait) = self.refused?;
        Some((self.name(limit), Duration::from_micros(wait)))
    }

    /// What stores have to be asked, each once. Empty: it is decided.
    pub fn asks(&self) -> &[Ask] {
        self.open.as_ref().map(|open| &*open.asks).unwrap_or_default()
    }

    /// The limit that refuses it because its store does not answer.
    pub fn unavailable(&self) -> Option<Refused<'_>> {
        Some(self.name(self.unavailable?))
    }

    /// The limits in force that it matches, but for those that are [`Self::unanswered`].
    pub fn enforced(&self) -> impl Iterator<Item = Refused<'_>> {
        let answered = self.enforced.iter().filter(|limit| !self.unanswered.contains(limit));
        answered.map(|&limit| self.name(limit))
    }

    /// The limits in force that it matches and whose store has not answered.
    pub fn unanswered(&self) -> impl Iterator<Item = Refused<'_>> {
        self.unanswered.iter().map(|&limit| self.name(limit))
    }

    /// Shadows that would refuse it: of each policy one limit.
    pub fn shadows(&self) -> impl Iterator<Item = Refused<'_>> {
        self.shadows.iter().map(|&limit| self.name(limit))
    }

    /// What its response says.
    pub fn standing(&self) -> Option<Standing<'_>> {
        let Shown {
            limit,
            rate,
            whole,
            state,
        } = self.shown.as_ref()?;
        let limit = &self.plan.limits[*limit];
        let rates = limit.global.as_ref().filter(|_| *whole).unwrap_or(&limit.rates);
        let rate = &rates[*rate];
        Some(Standing {
            headers: self.plan.policy_of(limit).headers?,
            limit: &limit.name,
            quota: rate.requests,
            seconds: rate.seconds,
            remaining: state.remaining,
            next: rate.next_in(state.full).div_ceil(1_000_000),
            reset: state.full.div_ceil(1_000_000),
        })
    }

    fn name(&self, limit: usize) -> Refused<'_> {
        let limit = &self.plan.limits[limit];
        Refused {
            policy: &self.plan.policy_of(limit).name,
            limit: &limit.name,
        }
    }
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
