//! A histogram of durations that many threads count into without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds in seconds: what OpenTelemetry recommends for `http.*.request.duration`.
pub(super) const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

#[derive(Default)]
pub(super) struct Histogram {
    /// Not cumulative; the last is for what is beyond every bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// Microseconds: enough for half a million years.
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum.fetch_add(micros, Relaxed);
    }

    /// Sum in seconds, count, and each bucket with its bound, not cumulative.
    pub(super) fn snapshot(&self) -> (f64, u64, [(f64, u64); BOUNDS.len() + 1]) {
        let mut buckets = [(f64::INFINITY, 0); BOUNDS.len() + 1];
        for (i, bucket) in buckets.iter_mut().enumerate() {
            bucket.0 = BOUNDS.get(i).copied().unwrap_or(f64::INFINITY);
            bucket.1 = self.buckets[i].load(Relaxed);
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        #[expect(clippy::cast_precision_loss, reason = "a sum of seconds is approximate anyway")]
        let sum = self.sum.load(Relaxed) as f64 / 1e6;
        (sum, count, buckets)
    }
}
