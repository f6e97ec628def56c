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

use crate::key;
use crate::open::Open;
use crate::plan::{Headers, Limit, Plan, Policy};
use crate::table::{State, Table, Wish};
use crate::view::{LimitView, PolicyView};

/// The limits of a pod, and what has been taken of each. All workers of a sidecar share one.
#[derive(Debug, Default)]
pub struct Limiter {
    plan: ArcSwap<Plan>,
    tables: Mutex<Tables>,
    /// Connections of bytes.
    pub(crate) open: Mutex<Open>,
    /// One update after the other: what it compiles, no request waits for.
    updating: Mutex<()>,
    /// Of keys: nobody can choose two that count as the same.
    pub(crate) random: RandomState,
}

/// Of the plan of this version: a table for each limit.
#[derive(Debug, Default)]
struct Tables {
    version: u64,
    all: Vec<Table>,
}

/// A limit that a request matches.
#[derive(Clone, Copy, Debug)]
struct Match {
    limit: usize,
    wish: Wish,
}

/// What becomes of a request that a limit is about.
#[derive(Debug)]
pub struct Outcome {
    plan: Arc<Plan>,
    /// Those that are enforced and that it matches.
    enforced: Vec<usize>,
    /// The one that it has to wait for longest, and for how long.
    refused: Option<(usize, u64)>,
    /// The one with least left, of those of which responses say something.
    shown: Option<(usize, usize, State)>,
    /// Of each policy that is a shadow, and would refuse it.
    shadows: Vec<usize>,
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
        let same = plan.limits.iter().map(|limit| {
            let name = (&plan.policy_of(limit).name, &limit.name, &limit.per);
            let mut old = before.limits.iter();
            old.position(|old| (&before.policy_of(old).name, &old.name, &old.per) == name)
        });
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

    /// Whether there is a policy of this name.
    pub fn has_policy(&self, name: &str) -> bool {
        self.plan.load().policies.iter().any(|policy| *policy.name == *name)
    }

    /// Decides, and takes tokens. `None`: no limit is about the request.
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
            let mut tables = self.tables.lock();
            if tables.version == plan.version {
                return Some(tables.decide(&plan, &enforced, &shadows, micros(now)));
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
                limits: limits.map(|(limit, keys)| LimitView::new(limit, *keys)).collect(),
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
            }
        })
    }
}

impl Tables {
    fn decide(&mut self, plan: &Arc<Plan>, enforced: &[Match], of_shadows: &[Match], now: u64) -> Outcome {
        let refused = self.refusal(enforced, now);
        if refused.is_none() {
            self.take(enforced, now);
        }
        let shown = enforced.iter().filter_map(|m| {
            plan.policy_of(&plan.limits[m.limit]).headers?;
            Some((m.limit, m.wish.rate, self.all[m.limit].state(&m.wish, now)))
        });
        let shown = shown.min_by_key(|(limit, _, state)| (state.remaining, Reverse(state.full), *limit));
        let mut shadows = Vec::new();
        // What is refused already, no shadow is asked about.
        if refused.is_none() {
            for of_policy in of_shadows.chunk_by(|a, b| plan.limits[a.limit].policy == plan.limits[b.limit].policy) {
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

impl Outcome {
    /// Why it is refused, and after which time it would not be, if nobody else came. `None`: it is admitted.
    pub fn refused(&self) -> Option<(Refused<'_>, Duration)> {
        let (limit, wait) = self.refused?;
        Some((self.name(limit), Duration::from_micros(wait)))
    }

    /// The limits in force that it matches.
    pub fn enforced(&self) -> impl Iterator<Item = Refused<'_>> {
        self.enforced.iter().map(|&limit| self.name(limit))
    }

    /// Shadows that would refuse it: of each policy one limit.
    pub fn shadows(&self) -> impl Iterator<Item = Refused<'_>> {
        self.shadows.iter().map(|&limit| self.name(limit))
    }

    /// What its response says.
    pub fn standing(&self) -> Option<Standing<'_>> {
        let (limit, rate, state) = self.shown.as_ref()?;
        let limit = &self.plan.limits[*limit];
        let rate = &limit.rates[*rate];
        Some(Standing {
            headers: self.plan.policy_of(limit).headers?,
            limit: &limit.name,
            quota: rate.requests,
            seconds: rate.seconds,
            remaining: state.remaining,
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
