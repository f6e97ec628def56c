//! What has become of the tokens that came last, so that a token is verified once and not with each request.
//!
//! Good tokens have a store of their own: a flood of bad ones drives none of them out. Both are bounded, and the oldest goes first.
//! A bad token costs a signature each time that it is another one; that bound is the price of asymmetric signatures.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::{Checked, Providers};

/// Bytes that good tokens take, about.
const MAX_GOOD: usize = 2 * 1024 * 1024;
/// The same of bad ones: their claims are not kept.
const MAX_BAD: usize = 64 * 1024;

/// What an entry takes beside it: its digest twice, and a place in the table.
const ENTRY: usize = 128;

/// A token's SHA-256.
pub(super) type Digest = [u8; 32];

/// Of one worker.
#[derive(Default)]
pub struct Cache {
    /// Whose word all of it is. With other providers, or other keys of theirs, all begins anew.
    providers: Option<Arc<Providers>>,
    good: Store,
    bad: Store,
}

#[derive(Default)]
struct Store {
    entries: HashMap<Digest, Arc<Checked>>,
    /// The oldest first.
    order: VecDeque<Digest>,
    bytes: usize,
}

impl Cache {
    pub(super) fn get(&mut self, providers: &Arc<Providers>, digest: &Digest) -> Option<Arc<Checked>> {
        if !self.providers.as_ref().is_some_and(|of| Arc::ptr_eq(of, providers)) {
            *self = Self {
                providers: Some(Arc::clone(providers)),
                ..Self::default()
            };
        }
        self.good.get(digest).or_else(|| self.bad.get(digest))
    }

    /// After [`Self::get`] of the same providers.
    pub(super) fn insert(&mut self, digest: Digest, checked: Arc<Checked>) {
        match checked.good.is_some() {
            true => self.good.insert(digest, checked, MAX_GOOD),
            false => self.bad.insert(digest, checked, MAX_BAD),
        }
    }
}

impl Store {
    fn get(&self, digest: &Digest) -> Option<Arc<Checked>> {
        self.entries.get(digest).cloned()
    }

    fn insert(&mut self, digest: Digest, checked: Arc<Checked>, max: usize) {
        if self.entries.contains_key(&digest) {
            return;
        }
        self.bytes += checked.size() + ENTRY;
        self.order.push_back(digest);
        self.entries.insert(digest, checked);
        while self.bytes > max {
            let Some(oldest) = self.order.pop_front() else { return };
            let gone = self.entries.remove(&oldest);
            self.bytes -= gone.map_or(0, |gone| gone.size() + ENTRY);
        }
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
