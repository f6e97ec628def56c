//! What is known of one endpoint whoever asks it: how long it takes, and what it owes. `balance` says what for.

use std::time::Duration;

use tokio::time::Instant;

/// The time in which a measurement loses two thirds of its weight.
pub const DECAY: Duration = Duration::from_secs(10);
/// Added to the time of a failure.
const PENALTY: Duration = Duration::from_millis(500);
/// A request without an answer is no failure of its endpoint before this time.
pub const HUNG: Duration = Duration::from_secs(1);
/// Nor before so many times the median of the others' averages.
const SLOWER: f64 = 3.0;
/// A measurement that is older is replaced by the next one, and not weighed against it.
const STALE: Duration = Duration::from_secs(5);
/// An endpoint that owes an answer is asked again after this time, when it was passed over [`PASSED`] times as well.
pub const PROBE: Duration = Duration::from_secs(10);
/// The same for one that is only slower than others.
pub const PROBE_SLOW: Duration = Duration::from_secs(30);
/// One that owes an answer is asked again after this time in any case.
pub const PROBE_AT_LAST: Duration = Duration::from_secs(300);
/// How often another endpoint is preferred before an endpoint is asked again all the same.
pub const PASSED: u32 = 64;

/// How a request to an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With the head of a response: anything that the app itself says.
    Good,
    /// With a status that counts as the endpoint's failure.
    Bad,
    /// The connection broke before there was a response.
    Broken,
    /// There was no connection, or the app behind the peer sidecar is not there.
    Unreachable,
    /// A time-out, or a client that went away: how long the response would have taken is not known.
    Missing,
    /// It was a connection of bytes, and it was made.
    Connected,
}

/// See the module.
pub struct Health {
    /// Seconds to the head of a response. `None`: it has not answered yet.
    average: Option<f64>,
    measured: Instant,
    /// Requests that wait for the head of a response.
    waiting: u32,
    /// The last head, or the begin of the request that has waited longest, whichever is later. Where one waits.
    silent_since: Instant,
    /// Seconds that requests, which have ended, have waited in vain since the last head.
    owed: f64,
    /// When it was last asked,
    asked: Instant,
    /// and how often another one was preferred since.
    passed: u32,
    /// The last head that was no failure.
    answered: Option<Instant>,
}

impl Health {
    /// Nothing is known.
    pub fn new(now: Instant) -> Self {
        Self {
            average: None,
            measured: now,
            waiting: 0,
            silent_since: now,
            owed: 0.0,
            asked: now,
            passed: 0,
            answered: None,
        }
    }

    /// A request begins to wait.
    pub fn ask(&mut self, now: Instant) {
        if self.waiting == 0 {
            self.silent_since = now;
        }
        self.waiting += 1;
        (self.asked, self.passed) = (now, 0);
    }

    /// Another endpoint was preferred.
    pub fn pass_over(&mut self) {
        self.passed = self.passed.saturating_add(1);
    }

    /// A request that began to wait at `began` does so no more.
    pub fn learn(&mut self, answer: Answer, began: Instant, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        let time = now.saturating_duration_since(began);
        match answer {
            Answer::Good => {
                self.head(time, now);
                self.answered = Some(now);
            }
            Answer::Bad => self.head(time + PENALTY, now),
            Answer::Broken | Answer::Unreachable => self.no_head(time + PENALTY, now),
            Answer::Missing => self.no_head(time, now),
            Answer::Connected => (self.silent_since, self.owed) = (now, 0.0),
        }
    }

    /// Seconds that it is expected to take: decays towards nothing, so that an endpoint that was slow once is asked again.
    pub fn average(&self, now: Instant) -> Option<f64> {
        Some(self.average? * self.decay(now))
    }

    /// Seconds that it takes at least, by what was waited for in vain since its last head. Does not decay.
    pub fn at_least(&self, now: Instant) -> f64 {
        let silent = match self.waiting {
            0 => Duration::ZERO,
            _ => now.saturating_duration_since(self.silent_since),
        };
        self.owed + silent.as_secs_f64()
    }

    /// Whether something was waited for in vain, or is waited for.
    fn owes(&self) -> bool {
        self.owed > 0.0 || self.waiting > 0
    }

    /// Whether it is asked again, to see whether it still hangs, or is still slow.
    pub fn is_due(&self, now: Instant) -> bool {
        let left_alone = now.saturating_duration_since(self.asked);
        let passed = self.passed >= PASSED;
        match self.owes() {
            true => left_alone >= PROBE && (passed || left_alone >= PROBE_AT_LAST),
            false => left_alone >= PROBE_SLOW && passed,
        }
    }

    /// The head of a response: what was waited for so far was worth it.
    fn head(&mut self, time: Duration, now: Instant) {
        (self.silent_since, self.owed) = (now, 0.0);
        let seconds = time.as_secs_f64();
        let is_stale = now.saturating_duration_since(self.measured) >= STALE;
        let weight = self.decay(now);
        self.average = Some(match self.average {
            Some(average) if seconds < average && !is_stale => average * weight + seconds * (1.0 - weight),
            _ => seconds,
        });
        self.measured = now;
    }

    /// The head would have taken `time` at least, so the average may rise and does not fall.
    fn no_head(&mut self, time: Duration, now: Instant) {
        let seconds = time.as_secs_f64();
        self.owed += seconds;
        if self.average(now).is_some_and(|average| average < seconds) {
            (self.average, self.measured) = (Some(seconds), now);
        }
    }

    /// Whether a request that got no answer may say that the endpoint hangs: it has waited for long, and nothing was answered
    /// meanwhile.
    pub fn is_silent(&self, began: Instant, now: Instant) -> bool {
        let answered_since = self.answered.is_some_and(|at| at >= began);
        now.saturating_duration_since(began) > HUNG && !answered_since
    }

    fn decay(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.measured);
        (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// The endpoints beside one that are not left out: what they say about it.
#[derive(Default)]
pub struct Others {
    one_answers: bool,
    /// Seconds, of each that has answered.
    averages: Vec<f64>,
}

impl Others {
    /// One more. It answers if it has done so since `began`, or owes nothing: perhaps nobody has asked it.
    #[must_use]
    pub fn with(mut self, other: &Health, began: Instant) -> Self {
        self.one_answers |= !other.owes() || other.answered.is_some_and(|at| at >= began);
        // As it was measured: one that was not asked for a while has not become faster by that.
        self.averages.extend(other.average);
        self
    }

    /// Whether one that is silent since `began` hangs, and not all of the Service, nor that requests take their time.
    pub fn say_that_one_hangs(self, began: Instant, now: Instant) -> bool {
        let waited = now.saturating_duration_since(began).as_secs_f64();
        self.one_answers && self.median().is_none_or(|median| waited > SLOWER * median)
    }

    /// Seconds; the greater of two in the middle. `None`: none of them has answered.
    fn median(mut self) -> Option<f64> {
        let middle = self.averages.len() / 2;
        self.averages.sort_unstable_by(f64::total_cmp);
        self.averages.get(middle).copied()
    }
}
