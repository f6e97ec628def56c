//! Refusals in the log: as many as somebody can read, however many there are.

use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

/// Between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Logs refusals of one kind.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    /// Refusals since the last line that have none of their own.
    untold: u64,
}

impl Refusals {
    /// Logs it as `what`, or counts it for the next line.
    pub fn note(&self, what: &'static str, status: &Status, caller: IpAddr) {
        if let Some(more) = self.0.lock().note(Instant::now()) {
            tracing::warn!(
                code = ?status.code(),
                reason = status.message(),
                %caller,
                more,
                "{what}"
            );
        }
    }
}

impl State {
    /// Whether there is a line for this one, and then how many had none before it.
    fn note(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + INTERVAL) {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_says_how_many_there_were() {
        let mut state = State::default();
        let now = Instant::now();
        assert_eq!(state.note(now), Some(0));
        assert_eq!((state.note(now), state.note(now)), (None, None));
        assert_eq!(state.note(now + INTERVAL), Some(2));
    }
}
