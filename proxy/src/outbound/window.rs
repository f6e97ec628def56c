//! How many there were within an interval that ends now, in the memory of a few numbers.

use std::time::Duration;

use tokio::time::Instant;

/// Parts of an interval: what is older than the interval goes by one of them at a time.
const SLOTS: usize = 10;

/// See the module.
#[derive(Debug)]
pub struct Window {
    slots: [u32; SLOTS],
    slot: Duration,
    /// The slot that is counted into now, since `began`.
    current: u64,
    began: Instant,
}

impl Window {
    /// Empty.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            slots: [0; SLOTS],
            slot: interval / SLOTS as u32,
            current: 0,
            began: now,
        }
    }

    /// One more.
    pub fn count(&mut self, now: Instant) {
        self.advance(now);
        let slot = &mut self.slots[index(self.current)];
        *slot = slot.saturating_add(1);
    }

    /// Those of the interval that ends now.
    pub fn sum(&mut self, now: Instant) -> u64 {
        self.advance(now);
        self.slots.iter().map(|count| u64::from(*count)).sum()
    }

    fn advance(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.began);
        let newest = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX) / micros(self.slot);
        // After a long silence all of them are empty.
        let gone = newest.saturating_sub(self.current).min(SLOTS as u64);
        for passed in 0..gone {
            self.slots[index(newest - passed)] = 0;
        }
        self.current = self.current.max(newest);
    }
}

fn index(slot: u64) -> usize {
    (slot % SLOTS as u64) as usize
}

/// At most an hour's, and never none.
pub fn micros(interval: Duration) -> u64 {
    u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).max(1)
}
