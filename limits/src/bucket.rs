//! A token bucket in whole numbers.

use std::time::Duration;

use outrigger_api::limits as proto;
use outrigger_api::policy::limits::{INTERVAL, REQUESTS};

/// Pods that share a rate: more are as many.
const MOST_SHARES: u32 = 1_000_000;
/// Units that are missing at most: with what a request takes it still fits.
const MOST_DEBT: u64 = u64::MAX / 4;

/// How fast a bucket fills, and how much it holds. Units are such that nothing is rounded; the largest number is below 10^17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Units of one token.
    pub(crate) token: u64,
    /// Units that come back in a microsecond.
    pub(crate) per_micro: u64,
    /// Units. At least one token.
    pub(crate) capacity: u64,
    /// Whole requests in an interval, at least one: for people.
    pub(crate) requests: u64,
    /// In seconds, rounded up: for people.
    pub(crate) seconds: u64,
}

/// Units that are missing, at a time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    debt: u64,
    at: u64,
}

impl Rate {
    /// `None`: a number is out of its range.
    pub(crate) fn new(message: &proto::Rate, shares: u32) -> Option<Self> {
        let (requests, burst, ms) = (message.requests, message.burst, message.interval_ms);
        if !REQUESTS.contains(&requests) || !REQUESTS.contains(&burst) || !INTERVAL.contains(&Duration::from_millis(ms))
        {
            return None;
        }
        let shares = shares.clamp(1, MOST_SHARES);
        let micros = ms * 1000;
        let token = micros * u64::from(shares);
        Some(Self {
            token,
            // At least one request an interval.
            per_micro: requests.max(shares).into(),
            capacity: (u64::from(burst) * micros).max(token),
            requests: u64::from((requests / shares).max(1)),
            seconds: ms.div_ceil(1000),
        })
    }

    /// Units that so many tokens are: at most all that there are.
    pub(crate) fn units(&self, tokens: u32) -> u64 {
        self.token.saturating_mul(tokens.into()).min(self.capacity)
    }

    /// Microseconds until one more request is admitted than now, of a bucket that is full again after `full` microseconds.
    pub(crate) fn next_in(&self, full: u64) -> u64 {
        let [token, per_micro, capacity, full] = [self.token, self.per_micro, self.capacity, full].map(u128::from);
        // Not rounded up, or a bucket that lacks whole tokens would seem to lack a little more.
        let missing = (full.saturating_sub(1) * per_micro + u128::from(full > 0)).min(capacity);
        let there = capacity - missing;
        let units = ((there / token + 1) * token - there).min(missing);
        u64::try_from(units.div_ceil(per_micro)).unwrap_or(u64::MAX)
    }
}

impl Bucket {
    /// Microseconds until it admits a request of so many tokens. 0: now.
    pub(crate) fn wait(&self, rate: &Rate, tokens: u32, now: u64) -> u64 {
        let wanted = self.debt_at(rate, now) + rate.units(tokens);
        wanted.saturating_sub(rate.capacity).div_ceil(rate.per_micro)
    }

    /// Takes tokens. Only where [`Self::wait`] says 0.
    pub(crate) fn take(&mut self, rate: &Rate, tokens: u32, now: u64) {
        self.debt = self.debt_at(rate, now) + rate.units(tokens);
        // Another worker may have looked at the clock later, and come first.
        self.at = self.at.max(now);
    }

    /// Gives back what was taken for a request that was refused after all.
    pub(crate) fn give_back(&mut self, rate: &Rate, tokens: u32, now: u64) {
        self.debt = self.debt_at(rate, now).saturating_sub(rate.units(tokens));
        self.at = self.at.max(now);
    }

    /// Whole tokens that are there.
    pub(crate) fn remaining(&self, rate: &Rate, now: u64) -> u64 {
        rate.capacity.saturating_sub(self.debt_at(rate, now)) / rate.token
    }

    /// When it is full again, in microseconds, if nothing is taken.
    pub(crate) fn full_at(&self, rate: &Rate) -> u64 {
        self.at.saturating_add(self.debt.div_ceil(rate.per_micro))
    }

    /// The same use of another rate: as many tokens are missing, also where it holds fewer. Otherwise a rate that goes down and up again would
    /// give back what was used up.
    pub(crate) fn at_rate(&self, old: &Rate, new: &Rate, now: u64) -> Self {
        let debt = u128::from(self.debt_at(old, now));
        let debt = (debt * u128::from(new.token)).div_ceil(u128::from(old.token));
        Self {
            debt: u64::try_from(debt).map_or(MOST_DEBT, |debt| debt.min(MOST_DEBT)),
            at: self.at.max(now),
        }
    }

    fn debt_at(&self, rate: &Rate, now: u64) -> u64 {
        let given = now.saturating_sub(self.at).saturating_mul(rate.per_micro);
        self.debt.saturating_sub(given)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn rate(requests: u32, interval_ms: u64, burst: u32, shares: u32) -> Option<Rate> {
        let message = proto::Rate {
            requests,
            interval_ms,
            burst,
        };
        Rate::new(&message, shares)
    }

    #[test]
    fn it_holds_its_burst_and_fills_at_its_rate() {
        let rate = rate(3, 1000, 5, 0).unwrap();
        let mut bucket = Bucket::default();
        for left in (0..5).rev() {
            assert_eq!(bucket.wait(&rate, 1, 7), 0);
            bucket.take(&rate, 1, 7);
            assert_eq!(bucket.remaining(&rate, 7), left);
        }
        // A third of a second, to the microsecond.
        assert_eq!(bucket.wait(&rate, 1, 7), 333_334);
        assert_eq!(bucket.wait(&rate, 1, 7 + 333_333), 1);
        assert_eq!(bucket.wait(&rate, 1, 7 + 333_334), 0);
        assert_eq!(bucket.full_at(&rate), 7 + 1_666_667);
        // What costs more than all takes all.
        assert_eq!(bucket.wait(&rate, 10_000, 7), 1_666_667);
    }

    #[test]
    fn a_share_is_at_least_one_request_an_interval() {
        let rate = rate(2, 60_000, 2, 5).unwrap();
        let mut bucket = Bucket::default();
        bucket.take(&rate, 1, 0);
        assert_eq!(bucket.wait(&rate, 1, 0), 60_000_000);
        assert_eq!(rate.requests, 1);
    }

    #[test]
    fn a_debt_of_more_than_all_is_paid_off_and_fits() {
        let (wide, narrow) = (rate(10, 1000, 10, 1).unwrap(), rate(10, 1000, 10, 10).unwrap());
        let mut bucket = Bucket::default();
        bucket.take(&wide, 10, 0);
        let narrowed = bucket.at_rate(&wide, &narrow, 0);
        assert_eq!(
            (narrowed.remaining(&narrow, 0), narrowed.wait(&narrow, 1, 0)),
            (0, 10_000_000)
        );
        assert_eq!(narrowed.at_rate(&narrow, &wide, 0), bucket);
        // The most that is owed, at the rate with the largest tokens.
        let (small, large) = (
            rate(1, 1000, 1_000_000, 1).unwrap(),
            rate(1, 86_400_000, 1_000_000, u32::MAX).unwrap(),
        );
        let mut bucket = Bucket::default();
        bucket.take(&small, 1_000_000, 0);
        let most = bucket.at_rate(&small, &large, 0);
        assert_eq!(most.debt, MOST_DEBT);
        assert!(most.wait(&large, u32::MAX, 0) > 0 && most.full_at(&large) > 0);
        assert_eq!(most.at_rate(&large, &large, 0), most);
    }

    #[test]
    fn the_largest_numbers_fit_and_others_are_none() {
        let largest = rate(1_000_000, 86_400_000, 1_000_000, u32::MAX).unwrap();
        let mut bucket = Bucket::default();
        bucket.take(&largest, u32::MAX, u64::MAX - 1);
        assert!(bucket.wait(&largest, u32::MAX, u64::MAX) > 0);
        assert_eq!(
            bucket
                .at_rate(&largest, &rate(1, 1000, 1, 1).unwrap(), u64::MAX)
                .full_at(&largest),
            u64::MAX
        );
        for (requests, interval, burst) in [
            (0, 1000, 1),
            (1_000_001, 1000, 1),
            (1, 999, 1),
            (1, 86_400_001, 1),
            (1, 1000, 0),
            (1, 1000, 1_000_001),
        ] {
            assert_eq!(rate(requests, interval, burst, 1), None);
        }
    }

    #[test]
    fn the_next_request_is_admitted_before_the_bucket_is_full() {
        // 5 a minute: one every 12 s.
        let rate = self::rate(5, 60_000, 5, 0).unwrap();
        let (second, mut bucket) = (1_000_000, Bucket::default());
        assert_eq!(rate.next_in(0), 0);
        for taken in 1..=5 {
            bucket.take(&rate, 1, 0);
            assert_eq!(bucket.full_at(&rate), taken * 12 * second);
            assert_eq!(rate.next_in(taken * 12 * second), 12 * second, "{taken}");
        }
        assert_eq!(rate.next_in(60 * second - 5 * second), 7 * second);
        assert_eq!(rate.next_in(second), second);
        // A share that is no whole number of requests: what is beyond the last whole one admits nobody.
        let third = self::rate(5, 60_000, 5, 3).unwrap();
        assert_eq!(third.next_in(60 * second), 36 * second);
        assert_eq!(third.next_in(24 * second), 24 * second);
        // Where a token is no whole number of microseconds.
        let thirds = self::rate(3, 1000, 5, 0).unwrap();
        assert_eq!(thirds.next_in(1_666_667), 333_333);
    }
}
