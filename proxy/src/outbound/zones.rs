//! Endpoints near the caller first (`loadBalancer.zone`), and the others as well where the near ones cannot do it alone.
//!
//! **Near** is what the hints of a Service's EndpointSlices say (`trafficDistribution`); the controller marks all others. Without hints
//! there is nothing to prefer. All that says which of several endpoints gets a request holds among the near ones; the others get it
//!
//! - where all near ones are left out, or were tried;
//! - by load: a part of the requests, where near endpoints take more than [`SLOWER`] times as long as the others, the way there
//!   included. (With as many requests for each, they have that many times as many in flight. A sidecar knows no more of the load that
//!   all callers make: what it has in flight itself is always more at the near ones, because it prefers them.) The part grows
//!   by [`STEP`] with each [`ROUND`] answers while that is so, and falls by it while it is not. It is never more than what the others would
//!   have without a preference: a measurement that is wrong costs no more than that.
//!
//! So that the times of the others are known, one of [`LOOK`] requests goes to them, and one of [`LOOK_FIRST`] while too few are known.
//! Compared are the geometric means of the times to the head of a response: single slow answers, which every Service has, say little.
//!
//! It is independent of ejection. `sessionAffinity` and `ConsistentHash` prefer near endpoints too, but never spill by load, because
//! requests would not stay where they belong; nor do connections of bytes, which have no response.
//!
//! Time and randomness are arguments.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

/// Where near endpoints take so many times as long as the others, these help.
pub const SLOWER: f64 = 1.2;
/// One of so many requests goes to the others, to see how long they take.
const LOOK: f64 = 64.0;
/// The same while too little is known of them.
const LOOK_FIRST: f64 = 16.0;
/// Answers of near endpoints after which the part is looked at again.
const ROUND: u32 = 32;
/// What the part changes by.
const STEP: f64 = 1.0 / 16.0;
/// So many answers of the others say something,
const ENOUGH: u32 = 8;
/// for this time.
const KNOWN: Duration = Duration::from_secs(60);
/// Answers after which a new one has all of its weight.
const WEIGHT: u32 = 32;

/// See the module. For one backend on one worker.
#[derive(Debug, Default)]
pub struct Zones {
    near: Times,
    others: Times,
    /// Answers of near endpoints since the part was looked at.
    round: u32,
    /// Of the requests, what goes to the others.
    part: f64,
    /// What goes there at most.
    most: f64,
}

/// How long answers take.
#[derive(Debug, Default)]
struct Times {
    /// The mean of their logarithms, newer ones with more weight.
    mean: f64,
    /// At most [`WEIGHT`].
    answers: u32,
    last: Option<Instant>,
}

impl Zones {
    /// So many endpoints are near, of so many.
    pub fn resize(&mut self, near: usize, all: usize) {
        #[expect(clippy::cast_precision_loss, reason = "they are fewer than 2^52")]
        let share = (all - near) as f64 / all.max(1) as f64;
        self.most = share;
        self.part = self.part.min(share);
    }

    /// Whether a request goes to those that are not near.
    pub fn spills(&self, now: Instant, rng: &mut SmallRng) -> bool {
        // Without a response there is nothing to compare with.
        if self.near.answers == 0 {
            return false;
        }
        let look = if self.others.are_known(now) { LOOK } else { LOOK_FIRST };
        rng.random::<f64>() < self.part.max(1.0 / look).min(self.most)
    }

    /// An endpoint has answered after this time.
    pub fn answered(&mut self, is_near: bool, time: Duration, now: Instant) {
        if !is_near {
            return self.others.learn(time, now);
        }
        self.near.learn(time, now);
        self.round += 1;
        if self.round >= ROUND {
            self.round = 0;
            let slower = self.others.are_known(now) && self.near.mean > self.others.mean + SLOWER.ln();
            self.part = match slower {
                true => (self.part + STEP).min(self.most),
                false => (self.part - STEP).max(0.0),
            };
        }
    }
}

impl Times {
    fn are_known(&self, now: Instant) -> bool {
        let is_new = |last: Instant| now.saturating_duration_since(last) < KNOWN;
        self.answers >= ENOUGH && self.last.is_some_and(is_new)
    }

    fn learn(&mut self, time: Duration, now: Instant) {
        if self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) >= KNOWN)
        {
            self.answers = 0;
        }
        self.answers = (self.answers + 1).min(WEIGHT);
        self.last = Some(now);
        // Less than that is no difference.
        let time = time.max(Duration::from_micros(10)).as_secs_f64().ln();
        self.mean += (time - self.mean) / f64::from(self.answers);
    }
}

#[cfg(test)]
#[path = "zones_tests.rs"]
mod tests;
