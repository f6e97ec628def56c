//! What is known of one endpoint whoever asks it: how long it takes, and what it owes. `member` says what for.

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
const STALE: Duration = Duration::from_secs(1);
/// An endpoint that owes an answer is asked again after this time, when it was passed over [`PASSED`] times as well.
pub const PROBE: Duration = Duration::from_secs(10);
/// The same for one that is only slower than others: twice as long after each answer that is slow again, up to [`PROBE`].
pub const PROBE_SLOW: Duration = STALE;
/// The same for one whose last answer was a failure.
pub const PROBE_FAILED: Duration = Duration::from_secs(30);
/// One that owes an answer is asked again after this time in any case.
pub const PROBE_AT_LAST: Duration = Duration::from_secs(300);
/// Times that differ by a smaller factor are the same: more than that between equals is chance.
pub const SIMILAR: f64 = 2.0;
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
    /// A limit of this sidecar's has kept the request from it to the end ([`Health::hold_back`]).
    Unasked,
    /// It was a connection of bytes, and it was made.
    Connected,
}

/// See the module.
pub struct Health {
    /// Seconds to the head of a response. `None`: it has not answered yet.
    average: Option<f64>,
    measured: Instant,
    /// How long the last answer took that was no failure.
    last: Option<Duration>,
    /// After which time it is asked again although it is slow.
    pause: Duration,
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
            last: None,
            pause: PROBE_SLOW,
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
        if !self.owes() && self.is_due(now) {
            self.pause = (2 * self.pause).min(PROBE).max(self.pause);
        }
        if self.waiting == 0 {
            self.silent_since = now;
        }
        self.waiting += 1;
        (self.asked, self.passed) = (now, 0);
    }

    /// A request that was to be sent is kept by a limit of this sidecar's: the endpoint is not silent for that. It asks anew when it is let.
    pub fn hold_back(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Another endpoint was preferred.
    pub fn pass_over(&mut self) {
        self.passed = self.passed.saturating_add(1);
    }

    /// A request that began to wait at `began` does so no more. It was `sent` as soon as there was a connection for it.
    pub fn learn(&mut self, answer: Answer, began: Instant, sent: Instant, now: Instant) {
        if answer != Answer::Unasked {
            self.waiting = self.waiting.saturating_sub(1);
        }
        let time = now.saturating_duration_since(began);
        // A handshake says how long the next one takes, and not the next request.
        let answered_in = now.saturating_duration_since(sent);
        match answer {
            Answer::Good => {
                self.good(answered_in, now);
                self.answered = Some(now);
            }
            Answer::Bad => {
                self.head(answered_in + PENALTY, now);
                self.pause = PROBE_FAILED;
            }
            Answer::Broken | Answer::Unreachable => self.no_head(time + PENALTY, now),
            Answer::Missing => self.no_head(time, now),
            Answer::Unasked => {}
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
            false => passed && now.saturating_duration_since(self.asked.max(self.measured)) >= self.pause,
        }
    }

    /// Single slow answers are everywhere (a scheduler's pause, a garbage collector's): they count when the one before was slow as well.
    fn good(&mut self, time: Duration, now: Instant) {
        let before = self.last.replace(time).unwrap_or(time);
        self.head(time.min(before), now);
    }

    /// The head of a response: what was waited for so far was worth it.
    fn head(&mut self, time: Duration, now: Instant) {
        (self.silent_since, self.owed) = (now, 0.0);
        let seconds = time.as_secs_f64();
        let is_stale = now.saturating_duration_since(self.measured) >= STALE;
        let weight = self.decay(now);
        self.average = Some(match self.average {
            Some(average) if seconds < average && !is_stale => average * weight + seconds * (1.0 - weight),
            Some(average) if SIMILAR * seconds < average * weight => {
                self.pause = PROBE_SLOW;
                seconds
            }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Answer, Health, PASSED, PROBE, PROBE_FAILED, PROBE_SLOW};
    use crate::outbound::testing::{MS, SECOND};

    /// One request after the other, the last of which ends at the time that comes back.
    fn ask(health: &mut Health, answer: Answer, times: &[Duration], mut now: Instant) -> Instant {
        for time in times {
            health.ask(now);
            let began = now;
            now += *time;
            health.learn(answer, began, began, now);
        }
        now
    }

    /// Others are preferred from `now` on: after which time it is asked again.
    fn asked_again(health: &mut Health, now: Instant) -> Duration {
        (0..PASSED).for_each(|_| health.pass_over());
        let mut after = Duration::ZERO;
        while !health.is_due(now + after) {
            after += MS;
        }
        after
    }

    #[test]
    fn one_slow_answer_counts_when_the_one_before_was_slow_too() {
        let now = Instant::now();
        let mut health = Health::new(now);
        let now = ask(&mut health, Answer::Good, &[MS, 50 * MS, MS, 50 * MS], now);
        assert!(health.average(now).unwrap() < 0.0011);
        let now = ask(&mut health, Answer::Good, &[40 * MS], now);
        assert!((health.average(now).unwrap() - 0.04).abs() < 1e-9);
        // A failure and a time-out count at once.
        for (answer, least) in [(Answer::Bad, 0.5), (Answer::Broken, 0.5), (Answer::Missing, 0.1)] {
            let mut health = Health::new(now);
            let now = ask(&mut health, Answer::Good, &[MS, MS], now);
            let now = ask(&mut health, answer, &[100 * MS], now);
            assert!(health.average(now).unwrap() >= least, "{answer:?}");
        }
    }

    #[test]
    fn a_handshake_is_not_the_endpoints_time() {
        let now = Instant::now();
        for (answer, expected) in [(Answer::Good, 0.001), (Answer::Bad, 0.501)] {
            let mut health = Health::new(now);
            health.ask(now);
            let sent = now + 30 * MS;
            health.learn(answer, now, sent, sent + MS);
            assert!(
                (health.average(sent + MS).unwrap() - expected).abs() < 1e-9,
                "{answer:?}"
            );
        }
    }

    #[test]
    fn a_slow_one_is_asked_again_after_ever_longer_times() {
        let now = Instant::now();
        let mut health = Health::new(now);
        let mut now = ask(&mut health, Answer::Good, &[20 * MS], now);
        for pause in [1, 2, 4, 8, 10, 10] {
            let after = asked_again(&mut health, now);
            assert_eq!(after, pause * SECOND);
            now = ask(&mut health, Answer::Good, &[20 * MS], now + after);
        }
        assert_eq!(PROBE, 10 * SECOND);
        // It is fast again, which is believed at once; so the next time begins anew.
        let after = asked_again(&mut health, now);
        now = ask(&mut health, Answer::Good, &[MS], now + after);
        assert!((health.average(now).unwrap() - 0.001).abs() < 1e-9);
        assert_eq!(asked_again(&mut health, now), PROBE_SLOW);
    }

    #[test]
    fn one_that_failed_waits_for_longer() {
        let now = Instant::now();
        let mut health = Health::new(now);
        let now = ask(&mut health, Answer::Good, &[MS, MS], now);
        let now = ask(&mut health, Answer::Bad, &[MS], now);
        assert_eq!(asked_again(&mut health, now), PROBE_FAILED);
        // An answer that is good, soon after that, changes nothing; one after that time does.
        let now = ask(&mut health, Answer::Good, &[MS], now);
        assert_eq!(asked_again(&mut health, now), PROBE_FAILED);
        let now = ask(&mut health, Answer::Good, &[MS], now + PROBE_FAILED);
        assert_eq!(asked_again(&mut health, now), PROBE_SLOW);
    }
}
