//! The retry budget: retries are a share of the requests, so that they cannot make an overload worse.
//!
//! Over the last ten seconds, retries may be at most `ratio` × requests, plus a few every second so that a Service with
//! little traffic has some. When all endpoints fail, the load on them is therefore at most 1 + `ratio` of the normal one.
//! Each worker has a budget
//! of its own, for its own requests. A request that was never sent (its connection was gone) is sent again for free.

use tokio::time::Instant;

const WINDOW_SECONDS: usize = 10;

/// Counts of one target on one worker.
#[derive(Debug)]
pub struct Budget {
    /// Requests and retries of each of the last seconds.
    seconds: [(u32, u32); WINDOW_SECONDS],
    /// The second that is counted into now, since `began`.
    current: u64,
    began: Instant,
}

impl Budget {
    /// Empty.
    pub fn new(now: Instant) -> Self {
        Self {
            seconds: [(0, 0); WINDOW_SECONDS],
            current: 0,
            began: now,
        }
    }

    /// A request came in (its first attempt).
    pub fn deposit(&mut self, now: Instant) {
        let slot = self.advance(now);
        self.seconds[slot].0 = self.seconds[slot].0.saturating_add(1);
    }

    /// Takes a retry, if there is one.
    pub fn withdraw(&mut self, now: Instant, ratio: f64, min_per_second: u32) -> bool {
        let slot = self.advance(now);
        let (requests, retries) = self
            .seconds
            .iter()
            .fold((0u64, 0u64), |(a, b), (c, d)| (a + u64::from(*c), b + u64::from(*d)));
        let reserve = u64::from(min_per_second) * WINDOW_SECONDS as u64;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts of ten seconds are far below 2^52, and the ratio is not negative"
        )]
        let share = (requests as f64 * ratio) as u64;
        if retries >= share + reserve {
            return false;
        }
        self.seconds[slot].1 = self.seconds[slot].1.saturating_add(1);
        true
    }

    fn advance(&mut self, now: Instant) -> usize {
        let second = now.saturating_duration_since(self.began).as_secs();
        if second > self.current {
            let gone = (second - self.current).min(WINDOW_SECONDS as u64);
            for i in 1..=gone {
                self.seconds[slot(self.current + i)] = (0, 0);
            }
            // After a long silence only the window's last seconds matter, and they are all empty.
            if gone == WINDOW_SECONDS as u64 {
                self.seconds = [(0, 0); WINDOW_SECONDS];
            }
            self.current = second;
        }
        slot(self.current)
    }
}

fn slot(second: u64) -> usize {
    (second % WINDOW_SECONDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::Budget;
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn retries_are_a_share_of_the_requests() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        for _ in 0..100 {
            budget.deposit(now);
        }
        let granted = (0..100).filter(|_| budget.withdraw(now, 0.2, 0)).count();
        assert_eq!(granted, 20);
        // They are gone until the requests that earned them, and the retries themselves, have left the window.
        assert!(!budget.withdraw(now + Duration::from_secs(9), 0.2, 0));
        let later = now + Duration::from_secs(10);
        assert!(!budget.withdraw(later, 0.2, 0), "nothing was requested");
        for _ in 0..5 {
            budget.deposit(later);
        }
        assert!(budget.withdraw(later, 0.2, 0));
    }

    #[test]
    fn a_quiet_service_has_a_few() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        let granted = (0..1000).filter(|_| budget.withdraw(now, 0.2, 3)).count();
        assert_eq!(granted, 30);
        assert!(budget.withdraw(now + Duration::from_secs(3600), 0.2, 3));
    }
}
