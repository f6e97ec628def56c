//! Equal values, kept once.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, LazyLock, Weak};

/// Of this process: nobody can say which values have the same.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A number that equal values share.
pub(crate) fn fingerprint(value: impl Hash) -> u64 {
    HASHER.hash_one(value)
}

/// Values of which somebody else keeps each, by their fingerprints.
pub(crate) struct Same<V>(HashMap<u64, Weak<V>>);

impl<V> Default for Same<V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<V: PartialEq> Same<V> {
    /// The value, or an equal one that somebody has.
    pub(crate) fn share(&mut self, fingerprint: u64, value: V) -> Arc<V> {
        let known = self.0.get(&fingerprint).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| **known == value) {
            return known;
        }
        let value = Arc::new(value);
        self.0.insert(fingerprint, Arc::downgrade(&value));
        value
    }

    /// Forgets what nobody has any more.
    pub(crate) fn sweep(&mut self) {
        self.0.retain(|_, value| value.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ones_are_the_same_while_somebody_has_one() {
        let mut same = Same::default();
        let first = same.share(1, "a");
        assert!(Arc::ptr_eq(&first, &same.share(1, "a")));
        // Two that are not equal may have one fingerprint.
        assert_eq!(*same.share(1, "b"), "b");
        same.sweep();
        assert!(same.0.is_empty());
        let other = same.share(2, "a");
        assert!(!Arc::ptr_eq(&first, &other));
        drop(other);
        assert_eq!(*same.share(2, "c"), "c");
    }
}
