//! What the apps executed: the one place that knows whether a request was executed twice.

use std::collections::HashMap;
use std::sync::Mutex;

/// Requests of which the executions are known. Only the newest matter: nothing is retried for long.
const KEPT: u64 = 100_000;

/// More is not worth the reading.
const TOLD: usize = 20;

/// See the module. It outlives every app.
#[derive(Default)]
pub(super) struct Ledger(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    /// By whom each request was executed.
    executions: HashMap<u64, Vec<String>>,
    /// Requests that must not be executed twice, and were.
    twice: Vec<String>,
}

impl Ledger {
    /// An app executes a request; `once`: nobody else may. Ids only grow.
    pub(super) fn execute(&self, id: u64, once: bool, by: &str) {
        let pages = &mut *self.pages();
        let executions = pages.executions.entry(id).or_default();
        executions.push(by.to_owned());
        if once && executions.len() > 1 && pages.twice.len() < TOLD {
            let text = format!("request {id} was executed by {}", executions.join(" and by "));
            pages.twice.push(text);
        }
        if pages.executions.len() as u64 > 2 * KEPT {
            pages.executions.retain(|old, _| old + KEPT > id);
        }
    }

    /// How often a request was executed so far.
    pub(super) fn executions(&self, id: u64) -> usize {
        self.pages().executions.get(&id).map_or(0, Vec::len)
    }

    /// What was executed twice and must not have been.
    pub(super) fn twice(&self) -> Vec<String> {
        self.pages().twice.clone()
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.0.lock().expect("nobody panics with the ledger in hand")
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT, Ledger};

    #[test]
    fn who_executes_twice_is_told() {
        let ledger = Ledger::default();
        ledger.execute(1, true, "a");
        ledger.execute(2, false, "a");
        ledger.execute(2, false, "b");
        assert!(ledger.twice().is_empty());
        ledger.execute(1, true, "b");
        assert_eq!(ledger.twice(), ["request 1 was executed by a and by b"]);
        assert_eq!([0, 1, 2].map(|id| ledger.executions(id)), [0, 2, 2]);
    }

    #[test]
    fn old_pages_are_torn_out() {
        let ledger = Ledger::default();
        for id in 0..3 * KEPT {
            ledger.execute(id, true, "a");
        }
        assert!(ledger.pages().executions.len() as u64 <= 2 * KEPT);
        assert_eq!(ledger.executions(3 * KEPT - 1), 1);
    }
}
