//! What the policies of this pod decided, by policy, rule and reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::super::AccessDecision;

/// Series that are kept apart; with those of what is beyond them, of each decision, there are 200.
const MAX_SERIES: usize = 197;
/// The policy of what is beyond.
const OVERFLOW: &str = "_overflow";

/// See the module. It is read without a lock, and found by comparing a few names: nothing is hashed or allocated.
#[derive(Default)]
pub(super) struct AccessCounters {
    /// In the order of their keys.
    series: ArcSwap<Vec<Arc<Series>>>,
    /// Held by who changes which series there are.
    changing: Mutex<()>,
}

pub(super) struct Series {
    pub(super) decision: AccessDecision,
    /// "": no policy matched.
    pub(super) policy: Box<str>,
    /// "": none of its rules matched.
    pub(super) rule: Box<str>,
    /// "": policy and rule say it all.
    pub(super) reason: &'static str,
    count: AtomicU64,
}

type Key<'a> = (AccessDecision, &'a str, &'a str, &'static str);

impl AccessCounters {
    pub(super) fn count(&self, decision: AccessDecision, policy: &str, rule: &str, reason: &'static str) {
        let (series, key) = (self.series.load(), (decision, policy, rule, reason));
        match find(&series, key) {
            Ok(at) => series[at].add(),
            Err(_) => self.add(key),
        }
    }

    fn add(&self, key: Key<'_>) {
        let _changing = self.changing.lock();
        let series = self.series.load();
        let key = match series.len() < MAX_SERIES {
            true => key,
            false => (key.0, OVERFLOW, "", ""),
        };
        match find(&series, key) {
            Ok(at) => series[at].add(),
            Err(at) => {
                let mut more = Vec::clone(&series);
                more.insert(at, Arc::new(Series::new(key)));
                more[at].add();
                self.series.store(Arc::new(more));
            }
        }
    }

    /// A policy that is not there any more has no series.
    pub(super) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let stays = |series: &Series| matches!(&*series.policy, "" | OVERFLOW) || is_there(&series.policy);
        let _changing = self.changing.lock();
        let series = self.series.load();
        if !series.iter().all(|series| stays(series)) {
            let stay = series.iter().filter(|series| stays(series)).cloned().collect();
            self.series.store(Arc::new(stay));
        }
    }

    /// In the order of their keys.
    pub(super) fn snapshot(&self) -> Arc<Vec<Arc<Series>>> {
        self.series.load_full()
    }
}

fn find(series: &[Arc<Series>], key: Key<'_>) -> Result<usize, usize> {
    series.binary_search_by(|series| series.key().cmp(&key))
}

impl Series {
    fn new((decision, policy, rule, reason): Key<'_>) -> Self {
        Self {
            decision,
            policy: policy.into(),
            rule: rule.into(),
            reason,
            count: AtomicU64::new(0),
        }
    }

    fn key(&self) -> Key<'_> {
        (self.decision, &self.policy, &self.rule, self.reason)
    }

    fn add(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    pub(super) fn total(&self) -> u64 {
        self.count.load(Relaxed)
    }
}
