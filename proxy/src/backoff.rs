//! Waiting longer after each failure, and never all at the same moment.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

/// Exponential backoff: the n-th wait is between half and all of `base` × 2ⁿ, at most `max`.
pub(crate) struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
    random: SmallRng,
}

impl Backoff {
    pub(crate) fn new(base: Duration, max: Duration, random: SmallRng) -> Self {
        Self {
            base,
            max,
            failures: 0,
            random,
        }
    }

    /// How long to wait after one more failure.
    pub(crate) fn failed(&mut self) -> Duration {
        // Two to the 16th is far beyond every maximum that is used.
        let full = self.base.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// The same after something that went on for `lasted`. What ends soon is no success, whatever came of it until then: it would be
    /// done again, and at once.
    pub(crate) fn ended(&mut self, lasted: Duration) -> Duration {
        if lasted >= self.max {
            self.succeeded();
        }
        self.failed()
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn grows_to_its_limit_and_starts_again() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 30 * second, SmallRng::seed_from_u64(1));
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            let wait = backoff.failed();
            assert!(wait >= expected * second / 2 && wait <= expected * second, "{wait:?}");
        }
        (0..100).for_each(|_| assert!(backoff.failed() <= 30 * second));
        backoff.succeeded();
        assert!(backoff.failed() <= second);
        for _ in 0..10 {
            backoff.ended(29 * second);
        }
        assert!(backoff.failed() >= 15 * second);
        assert!(backoff.ended(30 * second) <= second);
    }
}
