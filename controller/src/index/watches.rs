//! Answers that somebody watches, and by what they are to be made anew.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;

use crate::store::{Dep, Deps};
use crate::topic::{Followed, Reader, Topic};

pub(super) struct Watches<K, V> {
    watched: HashMap<K, Watched<V>>,
    dependents: HashMap<Dep, HashSet<K>>,
    /// At so many answers those that nobody watches are dropped, however soon after the last sweep: whoever opens streams and
    /// closes them again would fill the memory between two.
    sweep_at: usize,
}

/// Answers that are kept without a look at who watches them.
const FEW: usize = 1024;

/// Something that is watched.
pub(super) trait Answer: PartialEq {
    /// It takes the place of another answer to the same question.
    fn replaces(&mut self, _before: &Self) {}
}

struct Watched<V> {
    topic: Topic<V>,
    deps: Deps,
}

impl<K, V> Default for Watches<K, V> {
    fn default() -> Self {
        Self {
            watched: HashMap::new(),
            dependents: HashMap::new(),
            sweep_at: FEW,
        }
    }
}

impl<K: Clone + Eq + Hash, V: Answer> Watches<K, V> {
    /// The answer to `key`, and what it becomes.
    pub(super) fn watch(&mut self, key: K, build: impl FnOnce(&K, &mut Deps) -> V) -> watch::Receiver<Arc<V>> {
        self.topic(key, build).watch()
    }

    /// The same for a reader that hears of it in its inbox.
    pub(super) fn follow(&mut self, key: K, reader: Reader, build: impl FnOnce(&K, &mut Deps) -> V) -> Followed<V> {
        self.topic(key, build).follow(reader)
    }

    fn topic(&mut self, key: K, build: impl FnOnce(&K, &mut Deps) -> V) -> &Topic<V> {
        if !self.watched.contains_key(&key) {
            if self.watched.len() >= self.sweep_at {
                self.sweep();
            }
            let mut deps = Deps::new();
            let topic = Topic::new(build(&key, &mut deps));
            self.depend(&key, &deps);
            self.watched.insert(key.clone(), Watched { topic, deps });
        }
        &self.watched[&key].topic
    }

    /// Makes anew what depends on one of `touched`, and sends it if it is another.
    pub(super) fn rebuild(&mut self, touched: &HashSet<Dep>, mut build: impl FnMut(&K, &mut Deps) -> V) {
        let keys = touched.iter().filter_map(|dep| self.dependents.get(dep)).flatten();
        let keys: HashSet<K> = keys.cloned().collect();
        for key in keys {
            let Some(watched) = self.watched.get_mut(&key) else {
                continue;
            };
            let mut deps = Deps::new();
            let mut value = build(&key, &mut deps);
            let before = watched.topic.value();
            if *before != value {
                value.replaces(&before);
                watched.topic.replace(value);
            }
            if watched.deps != deps {
                let old = std::mem::replace(&mut watched.deps, deps.clone());
                self.forget(&key, &old);
                self.depend(&key, &deps);
            }
        }
    }

    /// Drops answers that nobody watches.
    pub(super) fn sweep(&mut self) {
        let idle = self.watched.iter().filter(|(_, w)| w.topic.is_unused());
        let idle: Vec<K> = idle.map(|(key, _)| key.clone()).collect();
        for key in idle {
            if let Some(watched) = self.watched.remove(&key) {
                self.forget(&key, &watched.deps);
            }
        }
        // So that a sweep has had as many answers since the last one as it looks at.
        self.sweep_at = (2 * self.watched.len()).max(FEW);
    }

    pub(super) fn get(&self, key: &K) -> Option<&Topic<V>> {
        self.watched.get(key).map(|watched| &watched.topic)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &Topic<V>)> {
        self.watched.iter().map(|(key, watched)| (key, &watched.topic))
    }

    pub(super) fn len(&self) -> usize {
        self.watched.len()
    }

    fn depend(&mut self, key: &K, deps: &Deps) {
        for dep in deps {
            self.dependents.entry(dep.clone()).or_default().insert(key.clone());
        }
    }

    fn forget(&mut self, key: &K, deps: &Deps) {
        for dep in deps {
            if let Some(keys) = self.dependents.get_mut(dep) {
                keys.remove(key);
                if keys.is_empty() {
                    self.dependents.remove(dep);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Place;

    #[test]
    fn answers_that_nobody_watches_do_not_pile_up_between_sweeps() {
        let mut watches = Watches::<usize, Place>::default();
        let kept: Vec<_> = (0..10).map(|n| watches.watch(n, |_, _| Place::default())).collect();
        for n in 0..100_000 {
            drop(watches.watch(n, |_, _| Place::default()));
            assert!(watches.len() <= FEW);
        }
        watches.sweep();
        assert_eq!(watches.len(), kept.len());
    }
}
