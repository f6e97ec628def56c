//! When an endpoint is left out, and when it takes part again.
//!
//! **Why.** An endpoint that cannot be connected to is *absent*, at once. One that fails so many times in a row
//! (`ejection.consecutiveFailures`: the statuses that count, a connection that breaks before the response, or silence while others
//! answer, see [`member`](super::member)) is *failing*, and so is, where a policy asks for it, one that succeeds less often than the
//! others together (`successRate`), by more than chance explains: where all fail alike, nobody is. Other answers, like 403, 429 or 500, are the app's word and not the
//! endpoint's failure.
//!
//! **For how long.** `baseEjectionTime` × the number of its ejections without a success between them, at most `maxEjectionTime`.
//!
//! **How it comes back.** One request is sent to it, and the others go elsewhere until that one has an answer, or for
//! `baseEjectionTime`. A success of a request that was sent after the ejection clears everything; a failure ejects it again. What says nothing (a client that went away) leaves it to
//! the next request.
//!
//! **How many.** Of the endpoints that are not absent, `maxEjectedPercent` may be left out as failing, at least one of two, and never
//! the last. Where more of them fail, it is not about single endpoints: all of those are used, so that the rest does not drown in what
//! they had. That is logged once, and counted. The percentage says nothing of absent ones: a request to them is lost in any case.
//! Where there are only such, all are used: the last error is better than none.
//!
//! **Whose failures.** Those of all requests to a backend of the same Service count together, unless the policy of a route's rule says
//! something about ejection: then those of its requests count for them alone. Connections, the requests in flight and the time that
//! an endpoint takes are the endpoint's, whatever the rule.
//!
//! Each worker of each sidecar counts by itself. Time is an argument.

use tokio::time::Instant;

use super::window::Window;
use crate::model::{Ejection, SuccessRate};

/// Few requests fail more often than many by chance: so many standard deviations of a binomial distribution are not held against an
/// endpoint.
const CHANCE: f64 = 2.0;

/// What a request says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Works,
    Fails,
    /// It cannot be connected to.
    Absent,
    Nothing,
}

/// Why an endpoint is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    Absent,
    Failing,
}

/// How an endpoint stands with the requests that are counted together.
#[derive(Debug, Default)]
pub struct Standing {
    failures: u32,
    ejections: u32,
    /// It was ejected, and has not shown since that it works.
    ejected: Option<Ejected>,
    /// When it was last found to hang.
    hung: Option<Instant>,
    rate: Option<Box<Rate>>,
}

#[derive(Clone, Copy, Debug)]
struct Ejected {
    why: LeftOut,
    since: Instant,
    until: Instant,
    /// While a request is there that was sent first: until when the others wait for it.
    probe: Option<Instant>,
}

/// Where a policy asks for it.
#[derive(Debug)]
struct Rate {
    policy: SuccessRate,
    requests: Window,
    failures: Window,
}

/// Requests within a window, and those that failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub requests: u64,
    pub failures: u64,
}

impl Standing {
    /// `None`: it may be asked.
    pub fn left_out(&self, now: Instant) -> Option<LeftOut> {
        let ejected = self.ejected?;
        (now < ejected.ends()).then_some(ejected.why)
    }

    /// When it is not left out any more, if nothing happens meanwhile.
    pub fn ends(&self) -> Option<Instant> {
        Some(self.ejected?.ends())
    }

    /// A request is sent. True: it is the first one after an ejection.
    pub fn ask(&mut self, policy: &Ejection, now: Instant) -> bool {
        match &mut self.ejected {
            Some(ejected) if ejected.ends() <= now => {
                ejected.probe = Some(now + policy.base);
                true
            }
            _ => false,
        }
    }

    /// The first request after an ejection has ended, whatever it says.
    pub fn asked(&mut self) {
        if let Some(ejected) = &mut self.ejected {
            ejected.probe = None;
        }
    }

    /// Takes the verdict of a request that began then over. `others`: the requests of those that are not left out. True: it is left out from now on.
    pub fn judge(
        &mut self,
        verdict: Verdict,
        policy: &Ejection,
        began: Instant,
        now: Instant,
        others: impl FnOnce(SuccessRate) -> Counts,
    ) -> bool {
        if let Some(rate) = policy.success_rate {
            self.rate(rate, now).count(verdict, now);
        }
        let may_be_ejected = self.left_out(now).is_none();
        match verdict {
            Verdict::Nothing => false,
            Verdict::Works => {
                self.failures = 0;
                // Also of one that is used while it is left out, because all are: it would be shut out again when others recover.
                if self.ejected.is_none_or(|ejected| began > ejected.since) {
                    (self.ejected, self.ejections) = (None, 0);
                }
                false
            }
            Verdict::Absent => may_be_ejected && self.eject(LeftOut::Absent, policy, now),
            Verdict::Fails => {
                self.failures = self.failures.saturating_add(1);
                let too_many = policy.failures.is_some_and(|most| self.failures >= most);
                let fails = too_many || self.ejected.is_some() || self.succeeds_too_seldom(policy, now, others);
                may_be_ejected && fails && self.eject(LeftOut::Failing, policy, now)
            }
        }
    }

    /// Whether a request that began then is of those which waited when it was last found to hang: they are one failure.
    pub fn hung_since(&self, began: Instant) -> bool {
        self.hung.is_some_and(|at| at > began)
    }

    /// It is found to hang.
    pub fn hangs(&mut self, now: Instant) {
        self.hung = Some(now);
    }

    /// What was counted for a success rate.
    pub fn counts(&mut self, policy: SuccessRate, now: Instant) -> Counts {
        let rate = self.rate(policy, now);
        Counts {
            requests: rate.requests.sum(now),
            failures: rate.failures.sum(now),
        }
    }

    fn rate(&mut self, policy: SuccessRate, now: Instant) -> &mut Rate {
        let same = self.rate.take().filter(|rate| rate.policy.window == policy.window);
        self.rate
            .insert(same.unwrap_or_else(|| Box::new(Rate::new(policy, now))))
    }

    fn succeeds_too_seldom(
        &mut self,
        policy: &Ejection,
        now: Instant,
        others: impl FnOnce(SuccessRate) -> Counts,
    ) -> bool {
        let Some(policy) = policy.success_rate else {
            return false;
        };
        let mine = self.counts(policy, now);
        if mine.requests < policy.min_requests {
            return false;
        }
        let others = others(policy);
        let (requests, share) = (as_f64(mine.requests), others.success());
        let chance = CHANCE * (requests * share * (1.0 - share)).sqrt();
        others.requests >= policy.min_requests && mine.success() * requests < policy.ratio * share * requests - chance
    }

    fn eject(&mut self, why: LeftOut, policy: &Ejection, now: Instant) -> bool {
        self.failures = 0;
        // What it was ejected for is not held against it again.
        self.rate = None;
        // At most as many as make a difference: the product stays within what a duration holds.
        self.ejections = self.ejections.saturating_add(1).min(10_000);
        self.ejected = Some(Ejected {
            why,
            since: now,
            until: now + (policy.base * self.ejections).min(policy.max),
            probe: None,
        });
        true
    }
}

impl Ejected {
    fn ends(&self) -> Instant {
        self.probe.map_or(self.until, |probe| self.until.max(probe))
    }
}

impl Rate {
    fn new(policy: SuccessRate, now: Instant) -> Self {
        Self {
            policy,
            requests: Window::new(policy.window, now),
            failures: Window::new(policy.window, now),
        }
    }

    fn count(&mut self, verdict: Verdict, now: Instant) {
        match verdict {
            Verdict::Nothing => {}
            Verdict::Works => self.requests.count(now),
            Verdict::Fails | Verdict::Absent => {
                self.requests.count(now);
                self.failures.count(now);
            }
        }
    }
}

impl Counts {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            failures: self.failures + other.failures,
        }
    }

    /// The share that did not fail.
    fn success(self) -> f64 {
        1.0 - as_f64(self.failures) / as_f64(self.requests.max(1))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of an hour are far below 2^52")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

/// How many of `present` endpoints, which can be connected to, may be left out as failing.
pub fn most(policy: &Ejection, present: usize) -> usize {
    match policy.max_percent {
        0 => 0,
        percent => {
            let share = present * percent as usize / 100;
            share.max(1).min(present.saturating_sub(1))
        }
    }
}

#[cfg(test)]
#[path = "ejection_tests.rs"]
mod tests;
