//! What is known of one endpoint: how long it takes, what it owes, and whether it is left out. `balance` says what for.

use std::time::Duration;

use tokio::time::Instant;

/// The time in which a measurement loses two thirds of its weight.
pub const DECAY: Duration = Duration::from_secs(10);
/// Added to the time of a failure.
const PENALTY: Duration = Duration::from_millis(500);
/// Failures in a row.
pub const FAILURES: u32 = 5;
/// Of the first ejection.
pub const EJECTION: Duration = Duration::from_secs(10);
/// Of any.
pub const MAX_EJECTION: Duration = Duration::from_secs(300);
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
    /// With 502, 503 or 504.
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
    /// When it was last found to hang.
    hung: Option<Instant>,
    failures: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
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
            hung: None,
            failures: 0,
            ejections: 0,
            ejected_until: None,
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

    /// A request that began to wait at `began` does so no more. `others` are the endpoints that might have had it.
    pub fn learn(&mut self, answer: Answer, began: Instant, now: Instant, others: impl FnOnce() -> Others) {
        self.waiting = self.waiting.saturating_sub(1);
        let time = now.saturating_duration_since(began);
        match answer {
            Answer::Good => {
                self.head(time, now);
                self.answered = Some(now);
                self.works(now);
            }
            Answer::Bad => {
                self.head(time + PENALTY, now);
                self.fail(now);
            }
            Answer::Broken => {
                self.no_head(time + PENALTY, now);
                self.fail(now);
            }
            Answer::Unreachable => {
                self.no_head(time + PENALTY, now);
                self.eject(now);
            }
            Answer::Missing => {
                let hangs = self.hangs(began, now, others);
                self.no_head(time, now);
                if hangs {
                    self.hung = Some(now);
                    self.fail(now);
                }
            }
            Answer::Connected => {
                (self.silent_since, self.owed) = (now, 0.0);
                self.works(now);
            }
        }
    }

    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
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

    /// Whether a request that got no answer says that the endpoint hangs, and not that the client was impatient, that the
    /// request takes its time, or that all of the Service hangs.
    fn hangs(&self, began: Instant, now: Instant, others: impl FnOnce() -> Others) -> bool {
        let waited = now.saturating_duration_since(began);
        let answered_since = self.answered.is_some_and(|at| at >= began);
        // Those that waited at the same time are one failure.
        let known_since = self.hung.is_some_and(|at| at > began);
        if waited <= HUNG || answered_since || known_since {
            return false;
        }
        let others = others();
        let is_slower = |median| waited.as_secs_f64() > SLOWER * median;
        others.one_answers && others.median().is_none_or(is_slower)
    }

    fn works(&mut self, now: Instant) {
        self.failures = 0;
        if self.is_on_probation(now) {
            (self.ejected_until, self.ejections) = (None, 0);
        }
    }

    fn fail(&mut self, now: Instant) {
        self.failures += 1;
        if self.failures >= FAILURES || self.is_on_probation(now) {
            self.eject(now);
        }
    }

    /// It was ejected, and has not shown since that it works.
    fn is_on_probation(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| until <= now)
    }

    fn eject(&mut self, now: Instant) {
        if self.is_ejected(now) {
            return;
        }
        self.failures = 0;
        self.ejections = self.ejections.saturating_add(1);
        self.ejected_until = Some(now + (EJECTION * self.ejections.min(1000)).min(MAX_EJECTION));
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
    pub fn with(mut self, other: &Health, began: Instant, now: Instant) -> Self {
        if !other.is_ejected(now) {
            self.one_answers |= !other.owes() || other.answered.is_some_and(|at| at >= began);
            // As it was measured: one that was not asked for a while has not become faster by that.
            self.averages.extend(other.average);
        }
        self
    }

    /// Seconds; the greater of two in the middle. `None`: none of them has answered.
    fn median(mut self) -> Option<f64> {
        let middle = self.averages.len() / 2;
        self.averages.sort_unstable_by(f64::total_cmp);
        self.averages.get(middle).copied()
    }
}
