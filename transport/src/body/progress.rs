//! A client of HTTP/1 that ends its half of the connection: it has said all, or it has gone.
//!
//! TCP has one word for both, and HTTP does not say which it is (RFC 9112 section 9.6 asks for neither). `nc -N` and old
//! `wget`s end their half behind their request and wait for the answer; a client that gives up closes, and its request is to
//! be cancelled, or work is done for nobody. What tells them apart is the moment. Who ends its half before the request was
//! passed on cannot be waiting for less than the answer to it. Who ends it later has waited in vain.
//!
//! On a connection that is at hand a request is passed on faster than the end comes that was sent right behind it. So an end
//! that comes in the [`SAME_MOMENT`] as the request is not yet a cancel: the server has [`LAST_CHANCE`] for its answer.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// How long the answer is waited for, up to its head, when a client has ended its half before its request was passed on.
pub const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Between the last byte of a request and the end of a client that sends both one after the other.
pub const SAME_MOMENT: Duration = Duration::from_millis(5);
/// How long the answer is waited for, up to its head, when a client has ended its half in the same moment as its request, and
/// that was passed on already. Shorter than what a server that hangs is known by.
pub const LAST_CHANCE: Duration = Duration::from_millis(500);

/// How far the request is that a connection carries now.
#[derive(Debug, Default)]
pub struct Progress(AtomicU8);

// The bits of `Progress`.
const IN_HAND: u8 = 1;
const SENT_HEAD: u8 = 2;
const SENT_BODY: u8 = 4;
const ANSWERED: u8 = 8;
const HALF_CLOSED: u8 = 16;

impl Progress {
    /// A request has come.
    pub fn begin(&self) {
        self.0.store(IN_HAND, Ordering::Relaxed);
    }

    /// A server that takes it gets it now.
    pub fn sent_head(&self) {
        self.0.fetch_or(SENT_HEAD, Ordering::Relaxed);
    }

    /// All of its body has been read by who sends it on.
    pub fn sent_body(&self) {
        self.0.fetch_or(SENT_BODY, Ordering::Relaxed);
    }

    /// The client has ended its half, and waits.
    pub fn half_closed(&self) {
        self.0.fetch_or(HALF_CLOSED, Ordering::Relaxed);
    }

    /// The head of the response is there. Whether the client has ended its half: there is no next request.
    pub fn answered(&self) -> bool {
        self.0.fetch_or(ANSWERED, Ordering::Relaxed) & HALF_CLOSED != 0
    }

    /// The response has ended.
    pub fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether there is a request whose response has not ended.
    pub fn in_hand(&self) -> bool {
        self.has(IN_HAND)
    }

    /// Whether the head of the response is there.
    pub fn is_answered(&self) -> bool {
        self.has(ANSWERED)
    }

    /// How long a client that ends its half now may wait for the head of the response, `since` the last byte of its request.
    /// `None`: it is gone.
    pub fn patience(&self, since: Duration) -> Option<Duration> {
        if !self.has(IN_HAND) {
            None
        } else if !self.has(SENT_HEAD | SENT_BODY) {
            Some(ANSWER_TIME)
        } else {
            (since < SAME_MOMENT).then_some(LAST_CHANCE)
        }
    }

    fn has(&self, bits: u8) -> bool {
        self.0.load(Ordering::Relaxed) & bits == bits
    }
}

#[cfg(test)]
mod tests {
    use super::{ANSWER_TIME, LAST_CHANCE, Progress, SAME_MOMENT};

    #[test]
    fn the_moment_says_who_waits() {
        let progress = Progress::default();
        let (now, later) = (SAME_MOMENT / 2, SAME_MOMENT);
        assert_eq!(progress.patience(now), None, "no request");
        progress.begin();
        for since in [now, later] {
            assert_eq!(progress.patience(since), Some(ANSWER_TIME));
        }
        progress.sent_head();
        assert_eq!(
            progress.patience(later),
            Some(ANSWER_TIME),
            "a part of its body is here"
        );
        progress.sent_body();
        assert_eq!(progress.patience(now), Some(LAST_CHANCE));
        assert_eq!(progress.patience(later), None);
        progress.half_closed();
        assert!(progress.answered() && progress.is_answered());
        progress.end();
        assert_eq!(progress.patience(now), None, "it is idle");
        progress.begin();
        assert!(!progress.answered(), "an earlier request's");
    }
}
