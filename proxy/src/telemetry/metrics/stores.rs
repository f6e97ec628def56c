//! The stores of rate limits, as metrics have them: no name of one is a label, since policies write them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::Metrics;

/// What came of asking a store about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Answered,
    /// Not in the time that it may take.
    Late,
    /// It said that it could not, or broke off.
    Error,
    /// It was not asked: nothing answers there.
    Away,
    /// It was not asked: too much is on its way.
    Full,
}

impl Asked {
    pub(super) const NAMES: [&'static str; 5] = ["answered", "late", "error", "away", "full"];
}

/// Of all workers.
#[derive(Default)]
pub(super) struct StoreMetrics {
    pub(super) asked: [AtomicU64; Asked::NAMES.len()],
    /// Connections that answer, and those that do not.
    pub(super) links: [AtomicI64; 2],
}

/// One worker's connection to one store; it counts until this is dropped.
pub struct StoreLink {
    metrics: Arc<Metrics>,
    answers: bool,
}

impl Metrics {
    /// A store was asked, or should have been.
    pub fn store_asked(&self, result: Asked) {
        self.stores.asked[result as usize].fetch_add(1, Relaxed);
    }

    /// A connection to a store, which does not answer yet.
    pub fn store_link(self: &Arc<Self>) -> StoreLink {
        self.stores.links[1].fetch_add(1, Relaxed);
        StoreLink {
            metrics: Arc::clone(self),
            answers: false,
        }
    }
}

impl StoreLink {
    /// Whether it answers, from now on. `false`: nothing has changed.
    pub fn answers(&mut self, answers: bool) -> bool {
        let links = &self.metrics.stores.links;
        links[usize::from(!self.answers)].fetch_sub(1, Relaxed);
        links[usize::from(!answers)].fetch_add(1, Relaxed);
        std::mem::replace(&mut self.answers, answers) != answers
    }
}

impl Drop for StoreLink {
    fn drop(&mut self) {
        self.metrics.stores.links[usize::from(!self.answers)].fetch_sub(1, Relaxed);
    }
}
