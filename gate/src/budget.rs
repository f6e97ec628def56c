//! Memory that holders share.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Bytes for all holders together. What is left over decides how much each may have: a holder may have at most
/// 1 / [`Holder::divisor`] of what is free. So one alone never gets everything, nobody needs a number of its own, and the
/// more there are the less is each one's share (dynamic thresholds: Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998).
#[derive(Debug)]
pub struct Budget<K> {
    total: u64,
    used: Mutex<Used<K>>,
}

#[derive(Debug)]
struct Used<K> {
    all: u64,
    by: HashMap<K, u64>,
    refused: u64,
}

/// One of those who answer for a charge.
#[derive(Clone, Debug)]
pub struct Holder<K> {
    /// Who.
    pub key: K,
    /// At least 1: it may have as much as is free, divided by this.
    pub divisor: u64,
}

/// There is too little left for this holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverBudget;

impl<K: Clone + Eq + Hash> Budget<K> {
    /// Nothing is used yet.
    pub fn new(total: u64) -> Arc<Self> {
        let used = Mutex::new(Used {
            all: 0,
            by: HashMap::new(),
            refused: 0,
        });
        Arc::new(Self { total, used })
    }

    /// Charges `bytes` to every one of the holders, until the charge is dropped.
    ///
    /// # Errors
    /// When one of them would have more than its share.
    pub fn charge(self: &Arc<Self>, holders: &Arc<[Holder<K>]>, bytes: u64) -> Result<Charge<K>, OverBudget> {
        self.charge_instead(holders, bytes, 0)
    }

    /// The same in the place of a charge of `instead` bytes to the same holders, which is dropped right after: those count as free, and
    /// what is no more than before always fits.
    ///
    /// # Errors
    /// When one of them would have more than its share.
    pub fn charge_instead(
        self: &Arc<Self>,
        holders: &Arc<[Holder<K>]>,
        bytes: u64,
        instead: u64,
    ) -> Result<Charge<K>, OverBudget> {
        let mut used = self.used.lock();
        if !self.fits(&used, holders, bytes, instead) {
            used.refused += 1;
            return Err(OverBudget);
        }
        used.all += bytes;
        for holder in holders.iter() {
            *used.by.entry(holder.key.clone()).or_insert(0) += bytes;
        }
        drop(used);
        Ok(Charge {
            budget: Arc::clone(self),
            holders: Arc::clone(holders),
            bytes,
        })
    }

    /// Whether [`Self::charge`] would take it. Nothing is counted.
    pub fn has_room(&self, holders: &[Holder<K>], bytes: u64) -> bool {
        self.fits(&self.used.lock(), holders, bytes, 0)
    }

    fn fits(&self, used: &Used<K>, holders: &[Holder<K>], bytes: u64, instead: u64) -> bool {
        let free = self.total.saturating_sub(used.all.saturating_sub(instead));
        let has_room = |holder: &Holder<K>| {
            let has = used.by.get(&holder.key).copied().unwrap_or(0);
            let has = has.saturating_sub(instead);
            has.saturating_add(bytes) <= free / holder.divisor.max(1)
        };
        // What is no more than before always fits. Without a holder, what is free is all that counts.
        bytes <= instead || (bytes <= free && holders.iter().all(has_room))
    }

    /// Bytes that are charged.
    pub fn used(&self) -> u64 {
        self.used.lock().all
    }

    /// Charges that were refused, since the start.
    pub fn refused(&self) -> u64 {
        self.used.lock().refused
    }

    /// Bytes that there are.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// Bytes that are used until this is dropped.
#[derive(Debug)]
pub struct Charge<K: Eq + Hash> {
    budget: Arc<Budget<K>>,
    holders: Arc<[Holder<K>]>,
    bytes: u64,
}

impl<K: Eq + Hash> Charge<K> {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<K: Eq + Hash> Drop for Charge<K> {
    fn drop(&mut self) {
        let mut used = self.budget.used.lock();
        used.all -= self.bytes;
        for holder in self.holders.iter() {
            if let Some(has) = used.by.get_mut(&holder.key) {
                *has -= self.bytes;
                if *has == 0 {
                    used.by.remove(&holder.key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(keys: &[(&'static str, u64)]) -> Arc<[Holder<&'static str>]> {
        keys.iter().map(|&(key, divisor)| Holder { key, divisor }).collect()
    }

    fn fill(budget: &Arc<Budget<&'static str>>, holders: &Arc<[Holder<&'static str>]>) -> Vec<Charge<&'static str>> {
        std::iter::from_fn(|| budget.charge(holders, 1).ok()).collect()
    }

    #[test]
    fn one_alone_gets_half_and_leaves_the_rest_to_others() {
        let budget = Budget::new(1200);
        let first = fill(&budget, &holders(&[("a", 1)]));
        assert_eq!(first.len(), 600);
        let second = fill(&budget, &holders(&[("b", 1)]));
        assert_eq!(second.len(), 300);
        assert!(budget.charge(&holders(&[("c", 1)]), 1).is_ok());
        drop(first);
        assert!(budget.charge(&holders(&[("b", 1)]), 1).is_ok());
        drop(second);
        assert_eq!((budget.used(), budget.refused()), (0, 2));
        assert!(budget.used.lock().by.is_empty());
    }

    #[test]
    fn every_holder_of_a_charge_must_have_room() {
        let budget = Budget::new(1000);
        let one_pod = fill(&budget, &holders(&[("namespace", 1), ("pod", 4)]));
        assert_eq!(one_pod.len(), 200, "a fifth of all");
        let sibling = fill(&budget, &holders(&[("namespace", 1), ("sibling", 4)]));
        assert!(sibling.len() > 100, "{}", sibling.len());
        // The namespace as a whole never has more than half.
        let others: Vec<_> = ["c", "d", "e", "f"]
            .iter()
            .flat_map(|key| fill(&budget, &holders(&[("namespace", 1), (key, 4)])))
            .collect();
        assert!(one_pod.len() + sibling.len() + others.len() <= 500);
    }

    #[test]
    fn what_takes_the_place_of_something_needs_room_for_the_difference_only() {
        let budget = Budget::new(1000);
        let a = holders(&[("a", 1)]);
        let before = budget.charge(&a, 500).unwrap();
        let _others = budget.charge(&holders(&[]), 500).unwrap();
        assert!(budget.charge(&a, 500).is_err() && !budget.has_room(&a, 500));
        assert!(budget.charge_instead(&a, 501, before.bytes()).is_err());
        let after = budget.charge_instead(&a, 500, before.bytes()).unwrap();
        drop(before);
        assert_eq!((after.bytes(), budget.used()), (500, 1000));
    }

    #[test]
    fn numbers_at_the_end_do_not_overflow() {
        let budget = Budget::new(u64::MAX);
        let a = holders(&[("a", 0)]);
        let charge = budget.charge(&a, u64::MAX - 1).unwrap();
        assert_eq!(budget.charge(&a, u64::MAX).unwrap_err(), OverBudget);
        drop(charge);
        assert_eq!(Budget::<&str>::new(1).charge(&holders(&[]), 2).unwrap_err(), OverBudget);
    }
}
