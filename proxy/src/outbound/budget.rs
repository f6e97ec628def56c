//! The retry budget: retries are a share of the requests, so that they cannot make an overload worse.
//!
//! Within an interval, retries may be at most `ratio` × requests, plus a few so that a Service with little traffic has some
//! (`retryConstraint`, as GEP-3388 has it). When all endpoints fail, the load on them is therefore at most 1 + `ratio` of the normal
//! one, and that rate. Each worker has a budget of its own, for its own requests. A request that was never sent (its connection was
//! gone) is sent again for free.
//!
//! Requests of a target have one budget, unless routes of it count over other intervals: then those have theirs.

use std::time::Duration;

use tokio::time::Instant;

use super::window::{Window, micros};
use crate::model::RetryBudget;

/// The budgets of one target on one worker: one for all policies that count over the same intervals.
#[derive(Debug, Default)]
pub struct Budgets(Vec<Budget>);

/// Counts of one target on one worker.
#[derive(Debug)]
pub struct Budget {
    intervals: (Duration, Duration),
    requests: Window,
    retries: Window,
    /// Retries within the interval of the rate, where that is the longer one.
    slow: Option<Window>,
}

impl Budgets {
    /// The budget that counts as the policy says.
    pub fn of(&mut self, policy: &RetryBudget, now: Instant) -> &mut Budget {
        let intervals = intervals(policy);
        let known = self.0.iter().position(|budget| budget.intervals == intervals);
        let index = known.unwrap_or_else(|| {
            self.0.push(Budget::new(policy, now));
            self.0.len() - 1
        });
        &mut self.0[index]
    }

    /// Forgets those of which no policy is left.
    pub fn keep<'a>(&mut self, policies: impl Iterator<Item = &'a RetryBudget> + Clone) {
        self.0
            .retain(|budget| policies.clone().any(|policy| intervals(policy) == budget.intervals));
    }
}

fn intervals(policy: &RetryBudget) -> (Duration, Duration) {
    (policy.interval, policy.min_interval)
}

impl Budget {
    /// Empty.
    pub fn new(policy: &RetryBudget, now: Instant) -> Self {
        let slow = policy.min_interval > policy.interval;
        Self {
            intervals: intervals(policy),
            requests: Window::new(policy.interval, now),
            retries: Window::new(policy.interval, now),
            slow: slow.then(|| Window::new(policy.min_interval, now)),
        }
    }

    /// A request came in (its first attempt).
    pub fn deposit(&mut self, now: Instant) {
        self.requests.count(now);
    }

    /// Takes a retry, if there is one.
    pub fn withdraw(&mut self, policy: &RetryBudget, now: Instant) -> bool {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts of an hour are far below 2^52, and the ratio is not negative"
        )]
        let share = (self.requests.sum(now) as f64 * policy.ratio) as u64;
        let retries = self.retries.sum(now);
        let count = u64::from(policy.min_count);
        let allowed = match &mut self.slow {
            // In one interval of the requests there is not even one retry of the rate: it is counted by itself.
            Some(slow) => retries < share || slow.sum(now) < count,
            None => retries < share + count * micros(policy.interval) / micros(policy.min_interval),
        };
        if allowed {
            self.retries.count(now);
            self.slow.iter_mut().for_each(|slow| slow.count(now));
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, Budgets};
    use crate::model::RetryBudget;
    use std::time::Duration;
    use tokio::time::{Instant, advance};

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(ratio: f64, interval: Duration, min_count: u32, min_interval: Duration) -> RetryBudget {
        RetryBudget {
            ratio,
            interval,
            min_count,
            min_interval,
        }
    }

    fn requests(budget: &mut Budget, number: u32) {
        (0..number).for_each(|_| budget.deposit(Instant::now()));
    }

    fn granted(budget: &mut Budget, policy: &RetryBudget) -> usize {
        (0..10_000)
            .take_while(|_| budget.withdraw(policy, Instant::now()))
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_the_requests_within_the_interval() {
        for interval in [SECOND, 10 * SECOND, 90 * SECOND, 3600 * SECOND] {
            let policy = policy(0.2, interval, 0, SECOND);
            let mut budget = Budget::new(&policy, Instant::now());
            requests(&mut budget, 100);
            assert_eq!(granted(&mut budget, &policy), 20, "{interval:?}");
            // They are gone until the requests that earned them, and the retries themselves, have left the window.
            advance(interval * 9 / 10).await;
            assert_eq!(granted(&mut budget, &policy), 0, "{interval:?}");
            requests(&mut budget, 5);
            assert_eq!(granted(&mut budget, &policy), 1, "{interval:?}");
            advance(interval / 10).await;
            // 5 requests and 1 retry are left.
            assert_eq!(granted(&mut budget, &policy), 0, "{interval:?}");
            requests(&mut budget, 5);
            assert_eq!(granted(&mut budget, &policy), 1, "{interval:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_service_has_a_few() {
        for (interval, min_count, min_interval, at_once) in [
            (10 * SECOND, 3, SECOND, 30),
            (10 * SECOND, 3, 10 * SECOND, 3),
            (10 * SECOND, 1, Duration::from_millis(100), 100),
            (SECOND, 3, SECOND, 3),
            (60 * SECOND, 2, 60 * SECOND, 2),
        ] {
            let policy = policy(0.2, interval, min_count, min_interval);
            let mut budget = Budget::new(&policy, Instant::now());
            assert_eq!(granted(&mut budget, &policy), at_once);
            advance(interval).await;
            assert_eq!(granted(&mut budget, &policy), at_once);
            advance(3600 * SECOND).await;
            assert_eq!(granted(&mut budget, &policy), at_once);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_slower_than_the_interval_has_all_its_time() {
        let policy = policy(0.2, 10 * SECOND, 2, 60 * SECOND);
        let mut budget = Budget::new(&policy, Instant::now());
        assert_eq!(granted(&mut budget, &policy), 2);
        advance(50 * SECOND).await;
        assert_eq!(granted(&mut budget, &policy), 0);
        // The share is not bound by it.
        requests(&mut budget, 10);
        assert_eq!(granted(&mut budget, &policy), 2);
        advance(60 * SECOND).await;
        assert_eq!(granted(&mut budget, &policy), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn policies_of_the_same_intervals_share_and_others_do_not() {
        let (wide, narrow, other) = (
            policy(0.5, 10 * SECOND, 0, SECOND),
            policy(0.1, 10 * SECOND, 0, SECOND),
            policy(0.1, 60 * SECOND, 0, SECOND),
        );
        let mut budgets = Budgets::default();
        let now = Instant::now();
        requests(budgets.of(&wide, now), 100);
        assert_eq!(granted(budgets.of(&narrow, now), &narrow), 10);
        assert_eq!(granted(budgets.of(&wide, now), &wide), 40);
        assert_eq!(granted(budgets.of(&other, now), &other), 0);
        budgets.keep([&other].into_iter());
        assert_eq!(budgets.0.len(), 1);
        budgets.keep([&other, &wide].into_iter());
        requests(budgets.of(&wide, now), 10);
        assert_eq!(granted(budgets.of(&wide, now), &wide), 5);
        assert_eq!(budgets.0.len(), 2);
    }
}
