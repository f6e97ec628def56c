//! Answers that somebody watches, and by what they are to be made anew.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;

use crate::same::Same;
use crate::store::{Dep, Deps};
use crate::topic::{Followed, Reader, Topic};

pub(super) struct Watches<K, V> {
    watched: HashMap<K, Watched<V>>,
    dependents: HashMap<Dep, HashSet<K>>,
    /// Most namespaces are told the same of an address.
    same: Same<V>,
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

    /// There was no room for it, or it is too large: it is made again when somebody asks for it anew, and not at each change.
    fn is_refused(&self) -> bool {
        false
    }

    /// Bytes that are charged for it.
    fn charged(&self) -> u64 {
        0
    }

    /// By which an equal answer to another question is found. None: there is none.
    fn fingerprint(&self) -> Option<u64> {
        None
    }
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
            same: Same::default(),
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
        match self.watched.get(&key) {
            None => {
                if self.watched.len() >= self.sweep_at {
                    self.sweep();
                }
                let mut deps = Deps::new();
                let value = build(&key, &mut deps);
                let topic = Topic::new(self.shared(value));
                self.depend(&key, &deps);
                self.watched.insert(key.clone(), Watched { topic, deps });
            }
            Some(watched) if watched.topic.value().is_refused() => self.rebuild(&key, |_, key, deps| build(key, deps)),
            Some(_) => {}
        }
        &self.watched[&key].topic
    }

    /// What is to be made anew because one of `touched` was. What nobody watches is forgotten instead.
    pub(super) fn stale(&mut self, touched: &HashSet<Dep>) -> Vec<K> {
        let keys = touched.iter().filter_map(|dep| self.dependents.get(dep)).flatten();
        let keys: HashSet<K> = keys.cloned().collect();
        let (mut unused, mut stale) = (Vec::new(), Vec::new());
        for key in keys {
            match self.watched.get(&key).map(|watched| &watched.topic) {
                Some(topic) if topic.is_unused() => unused.push(key),
                Some(topic) if !topic.value().is_refused() => stale.push(key),
                _ => {}
            }
        }
        self.remove(unused);
        stale
    }

    /// Makes an answer anew, and sends it if it is another. `build` hears how many bytes are charged for the old one and are free
    /// when the new one has come: none if it stays, because it answers other questions too or is being sent.
    pub(super) fn rebuild(&mut self, key: &K, build: impl FnOnce(u64, &K, &mut Deps) -> V) {
        // It may have been swept away meanwhile.
        let Some(before) = self.watched.get(key).map(|watched| watched.topic.value()) else {
            return;
        };
        let mut deps = Deps::new();
        // Its topic has it, and `before`.
        let is_alone = Arc::strong_count(&before) <= 2;
        let freed = if is_alone { before.charged() } else { 0 };
        let mut value = build(freed, key, &mut deps);
        let value = (*before != value).then(|| {
            value.replaces(&before);
            self.shared(value)
        });
        let Some(watched) = self.watched.get_mut(key) else {
            return;
        };
        if let Some(value) = value {
            watched.topic.replace(value);
        }
        if watched.deps != deps {
            let old = std::mem::replace(&mut watched.deps, deps.clone());
            self.forget(key, &old);
            self.depend(key, &deps);
        }
    }

    fn shared(&mut self, value: V) -> Arc<V> {
        match value.fingerprint() {
            Some(fingerprint) => self.same.share(fingerprint, value),
            None => Arc::new(value),
        }
    }

    /// Drops answers that nobody watches.
    pub(super) fn sweep(&mut self) {
        let unused = self.watched.iter().filter(|(_, w)| w.topic.is_unused());
        self.remove(unused.map(|(key, _)| key.clone()).collect());
        self.same.sweep();
        // So that a sweep has had as many answers since the last one as it looks at.
        self.sweep_at = (2 * self.watched.len()).max(FEW);
    }

    /// The questions that are answered so.
    pub(super) fn those(&self, so: impl Fn(&V) -> bool) -> Vec<K> {
        let those = self.watched.iter().filter(|(_, watched)| so(&watched.topic.value()));
        those.map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &Topic<V>)> {
        self.watched.iter().map(|(key, watched)| (key, &watched.topic))
    }

    pub(super) fn len(&self) -> usize {
        self.watched.len()
    }

    fn remove(&mut self, keys: Vec<K>) {
        for key in keys {
            if let Some(watched) = self.watched.remove(&key) {
                self.forget(&key, &watched.deps);
            }
        }
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
    fn what_nobody_watches_is_forgotten_where_it_would_be_made_again() {
        let mut watches = Watches::<usize, Place>::default();
        let touched = HashSet::from([Dep::Networks]);
        let kept = watches.watch(1, |_, deps| {
            deps.insert(Dep::Networks);
            Place::default()
        });
        drop(watches.watch(2, |_, deps| {
            deps.insert(Dep::Networks);
            Place::default()
        }));
        assert_eq!(watches.stale(&touched), [1]);
        assert_eq!(watches.len(), 1);
        drop(kept);
        assert!(watches.stale(&touched).is_empty());
        assert!(watches.dependents.is_empty());
    }

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
