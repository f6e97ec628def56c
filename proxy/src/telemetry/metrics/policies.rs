//! What the policies of this pod decided, by policy, rule and reason: on who may call, and on how much.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

/// Series that are kept apart; with those of what is beyond them, of each decision, there are 200.
const MAX_SERIES: usize = 197;
/// The policy of what is beyond.
const OVERFLOW: &str = "_overflow";

/// See the module. It is read without a lock, and found by comparing a few names: nothing is hashed or allocated.
pub(super) struct PolicyCounters<D> {
    /// In the order of their keys.
    series: ArcSwap<Vec<Arc<Series<D>>>>,
    /// Held by who changes which series there are.
    changing: Mutex<()>,
}

pub(super) struct Series<D> {
    pub(super) decision: D,
    /// "": no policy matched.
    pub(super) policy: Box<str>,
    /// Of its rules, or of its limits. "": none of them matched.
    pub(super) rule: Box<str>,
    /// "": policy and rule say it all.
    pub(super) reason: &'static str,
    count: AtomicU64,
}

type Key<'a, D> = (D, &'a str, &'a str, &'static str);

impl<D> Default for PolicyCounters<D> {
    fn default() -> Self {
        Self {
            series: ArcSwap::default(),
            changing: Mutex::default(),
        }
    }
}

impl<D: Copy + Ord> PolicyCounters<D> {
    pub(super) fn count(&self, decision: D, policy: &str, rule: &str, reason: &'static str) {
        let (series, key) = (self.series.load(), (decision, policy, rule, reason));
        match find(&series, key) {
            Ok(at) => series[at].add(),
            Err(_) => self.add(key),
        }
    }

    fn add(&self, key: Key<'_, D>) {
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
        let stays = |series: &Series<D>| matches!(&*series.policy, "" | OVERFLOW) || is_there(&series.policy);
        let _changing = self.changing.lock();
        let series = self.series.load();
        if !series.iter().all(|series| stays(series)) {
            let stay = series.iter().filter(|series| stays(series)).cloned().collect();
            self.series.store(Arc::new(stay));
        }
    }

    /// In the order of their keys.
    pub(super) fn snapshot(&self) -> Arc<Vec<Arc<Series<D>>>> {
        self.series.load_full()
    }
}

fn find<D: Copy + Ord>(series: &[Arc<Series<D>>], key: Key<'_, D>) -> Result<usize, usize> {
    series.binary_search_by(|series| series.key().cmp(&key))
}

impl<D: Copy> Series<D> {
    fn new((decision, policy, rule, reason): Key<'_, D>) -> Self {
        Self {
            decision,
            policy: policy.into(),
            rule: rule.into(),
            reason,
            count: AtomicU64::new(0),
        }
    }

    fn key(&self) -> Key<'_, D> {
        (self.decision, &self.policy, &self.rule, self.reason)
    }

    fn add(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    pub(super) fn total(&self) -> u64 {
        self.count.load(Relaxed)
    }
}
