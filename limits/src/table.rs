//! The buckets of one limit, by their keys, never more than so many.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::mem;

use crate::bucket::{Bucket, Rate};

/// Buckets that are looked at for one that is full again, of those that may be.
const LOOKS: usize = 64;

#[derive(Debug)]
pub(crate) struct Table {
    /// The limit's, and those of its overrides.
    rates: Box<[Rate]>,
    max: usize,
    reject: bool,
    buckets: HashMap<u64, Entry>,
    /// Each key once, by a time before which its bucket is not full again: what is taken later makes it later, which is found out when
    /// its turn comes.
    full: BinaryHeap<Reverse<(u64, u64)>>,
    /// Of keys that have no bucket, one for each rate.
    overflow: Box<[Bucket]>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bucket: Bucket,
    rate: usize,
}

/// What a request wants of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) key: u64,
    /// Which rate.
    pub(crate) rate: usize,
    pub(crate) tokens: u32,
}

/// Which bucket has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The key's own.
    Own,
    /// That of keys which have none.
    Shared,
}

/// How a bucket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Microseconds until it admits the request. 0: now.
    pub wait: u64,
    /// Whole tokens that are there.
    pub remaining: u64,
    /// Microseconds until it is full again.
    pub full: u64,
}

impl Table {
    pub(crate) fn new(rates: &[Rate], max: usize, reject: bool) -> Self {
        Self {
            rates: rates.into(),
            max: max.max(1),
            reject,
            buckets: HashMap::new(),
            full: BinaryHeap::new(),
            overflow: vec![Bucket::default(); rates.len()].into(),
        }
    }

    /// Takes over what another one of the same keys has. At the same rates nothing is copied.
    pub(crate) fn follow(&mut self, before: &mut Self, now: u64) {
        if self.rates == before.rates && self.max == before.max {
            mem::swap(&mut self.buckets, &mut before.buckets);
            mem::swap(&mut self.full, &mut before.full);
            mem::swap(&mut self.overflow, &mut before.overflow);
            return;
        }
        let most = before.buckets.len().min(self.max);
        self.buckets = HashMap::with_capacity(most);
        self.full = BinaryHeap::with_capacity(most);
        let new = &self.rates;
        let rates = before.rates.iter().zip(new);
        for ((old, new), (from, to)) in rates.zip(before.overflow.iter().zip(&mut self.overflow)) {
            *to = from.at_rate(old, new, now);
        }
        for (key, entry) in &before.buckets {
            let (Some(old), Some(new)) = (before.rates.get(entry.rate), self.rates.get(entry.rate)) else {
                continue;
            };
            let bucket = entry.bucket.at_rate(old, new, now);
            if bucket.full_at(new) > now && self.buckets.len() < self.max {
                self.insert(*key, Entry { bucket, ..*entry });
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// How the bucket of a key is.
    pub(crate) fn state(&mut self, wish: &Wish, now: u64) -> State {
        let rate = self.rates[wish.rate];
        let of = |bucket: &Bucket| State {
            wait: bucket.wait(&rate, wish.tokens, now),
            remaining: bucket.remaining(&rate, now),
            full: bucket.full_at(&rate).saturating_sub(now),
        };
        if let Some(entry) = self.buckets.get(&wish.key) {
            return of(&entry.bucket);
        }
        if self.has_room(now) {
            return of(&Bucket::default());
        }
        if !self.reject {
            return of(&self.overflow[wish.rate]);
        }
        let first = self.full.peek().map_or(now, |Reverse((at, _))| *at);
        let wait = first.saturating_sub(now).max(1);
        State {
            wait,
            remaining: 0,
            full: wait,
        }
    }

    /// Takes tokens, where [`Self::state`] has said that they are there.
    pub(crate) fn take(&mut self, wish: &Wish, now: u64) -> Taken {
        let rate = self.rates[wish.rate];
        if let Some(entry) = self.buckets.get_mut(&wish.key) {
            entry.bucket.take(&rate, wish.tokens, now);
            return Taken::Own;
        }
        if !self.has_room(now) {
            self.overflow[wish.rate].take(&rate, wish.tokens, now);
            return Taken::Shared;
        }
        // Those that nobody uses go also while there is room: one comes, and two go.
        if self.free(now) {
            self.free(now);
        }
        let mut bucket = Bucket::default();
        bucket.take(&rate, wish.tokens, now);
        let rate = wish.rate;
        self.insert(wish.key, Entry { bucket, rate });
        Taken::Own
    }

    /// Gives back what was taken for a request that was refused after all. A bucket that is not there any more was full again.
    pub(crate) fn give_back(&mut self, wish: &Wish, taken: Taken, now: u64) {
        let (own, shared) = (self.buckets.get_mut(&wish.key), self.overflow.get_mut(wish.rate));
        let bucket = match taken {
            Taken::Own => own
                .filter(|entry| entry.rate == wish.rate)
                .map(|entry| &mut entry.bucket),
            Taken::Shared => shared,
        };
        if let (Some(bucket), Some(rate)) = (bucket, self.rates.get(wish.rate)) {
            bucket.give_back(rate, wish.tokens, now);
        }
    }

    /// Whether it has the rate that a request wants: the policy may have changed meanwhile.
    pub(crate) fn knows(&self, wish: &Wish) -> bool {
        wish.rate < self.rates.len()
    }

    fn insert(&mut self, key: u64, entry: Entry) {
        let full = entry.bucket.full_at(&self.rates[entry.rate]);
        self.full.push(Reverse((full, key)));
        self.buckets.insert(key, entry);
    }

    fn has_room(&mut self, now: u64) -> bool {
        self.buckets.len() < self.max || self.free(now)
    }

    /// Lets a bucket go that is full again, of those that could be for longest.
    fn free(&mut self, now: u64) -> bool {
        for _ in 0..LOOKS {
            let Some(&Reverse((at, key))) = self.full.peek() else {
                return false;
            };
            if at > now {
                return false;
            }
            self.full.pop();
            let Some(entry) = self.buckets.get(&key) else { continue };
            let full = entry.bucket.full_at(&self.rates[entry.rate]);
            if full <= now {
                self.buckets.remove(&key);
                return true;
            }
            self.full.push(Reverse((full, key)));
        }
        false
    }
}
