//! Bytes of heads: of those whose end is not here, and of those whose requests wait for their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// An address may hold so many times what is free: alone three quarters of all, and the more addresses hold something, the less
/// each of them may (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
pub(super) const SHARE: usize = 3;

/// What the connections of one address hold, and those of all. Atomics only because the library that carries HTTP/1 asks for
/// it: all of them are on one thread.
#[derive(Clone, Debug, Default)]
pub struct Heads {
    all: Arc<AtomicUsize>,
    own: Arc<AtomicUsize>,
    limit: usize,
}

/// What one connection holds. Dropped, it holds nothing.
#[derive(Debug, Default)]
pub struct Held {
    heads: Heads,
    bytes: usize,
}

impl Heads {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// So many bytes for one address.
    #[cfg(test)]
    pub(crate) fn for_test(limit: usize) -> Self {
        Self::new(limit)
    }

    /// The same for another address.
    pub(crate) fn of_another(&self) -> Self {
        Self {
            all: Arc::clone(&self.all),
            own: Arc::default(),
            limit: self.limit,
        }
    }

    /// Bytes of all connections.
    pub(super) fn all(&self) -> usize {
        self.all.load(Relaxed)
    }
}

impl Held {
    /// Nothing yet.
    pub fn new(heads: Heads) -> Self {
        Self { heads, bytes: 0 }
    }

    /// Counts so many bytes in place of those before. False, and nothing changes: there is no room for them.
    #[must_use]
    pub fn set(&mut self, bytes: usize) -> bool {
        let Heads { all, own, limit } = &self.heads;
        let others = all.load(Relaxed) - self.bytes;
        let of_address = own.load(Relaxed) - self.bytes + bytes;
        let free = limit.saturating_sub(others + bytes);
        if bytes > self.bytes && of_address > free.saturating_mul(SHARE) {
            return false;
        }
        all.store(others + bytes, Relaxed);
        own.store(of_address, Relaxed);
        self.bytes = bytes;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.heads.all.fetch_sub(self.bytes, Relaxed);
        self.heads.own.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{Heads, Held};

    #[test]
    fn one_address_leaves_room_for_others() {
        let attacker = Heads::new(4000);
        let other = attacker.of_another();
        // Ten thousand heads of 62 bytes each, of which none is given up.
        let mut held: Vec<Held> = Vec::new();
        for _ in 0..10_000 {
            let mut one = Held::new(attacker.clone());
            if one.set(62) {
                held.push(one);
            }
        }
        assert!(attacker.all() <= 3000 && attacker.all() > 2900, "{}", attacker.all());
        let mut large = Held::new(other.clone());
        assert!(large.set(500));
        assert!(!large.set(5000) && large.set(400), "what is too much changes nothing");
        drop((held, large));
        assert_eq!((attacker.all(), other.all()), (0, 0));
    }

    #[test]
    fn many_addresses_share() {
        let first = Heads::new(1000);
        let mut held = Vec::new();
        for _ in 0..10_000 {
            let mut one = Held::new(first.of_another());
            _ = one.set(10);
            held.push(one);
        }
        assert!(first.all() <= 1000, "{}", first.all());
    }

    #[test]
    fn who_holds_less_than_before_is_never_refused() {
        let heads = Heads::new(100);
        let mut one = Held::new(heads.clone());
        assert!(one.set(70));
        let mut other = Held::new(heads.of_another());
        assert!(other.set(20));
        assert!(!one.set(71) && one.set(60) && one.set(0));
    }
}
