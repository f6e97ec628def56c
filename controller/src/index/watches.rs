//! Answers that somebody watches, and by what they are to be made anew.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;

use super::build::Deps;
use super::store::Dep;

pub(super) struct Watches<K, V> {
    watched: HashMap<K, Watched<V>>,
    dependents: HashMap<Dep, HashSet<K>>,
}

struct Watched<V> {
    sender: watch::Sender<Arc<V>>,
    deps: Deps,
}

impl<K, V> Default for Watches<K, V> {
    fn default() -> Self {
        Self {
            watched: HashMap::new(),
            dependents: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, V: PartialEq> Watches<K, V> {
    /// The answer to `key`, and what it becomes.
    pub(super) fn watch(&mut self, key: K, build: impl FnOnce(&K, &mut Deps) -> V) -> watch::Receiver<Arc<V>> {
        if let Some(watched) = self.watched.get(&key) {
            return watched.sender.subscribe();
        }
        let mut deps = Deps::new();
        let (sender, receiver) = watch::channel(Arc::new(build(&key, &mut deps)));
        self.depend(&key, &deps);
        self.watched.insert(key, Watched { sender, deps });
        receiver
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
            let value = build(&key, &mut deps);
            if **watched.sender.borrow() != value {
                watched.sender.send_replace(Arc::new(value));
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
        let idle = self.watched.iter().filter(|(_, w)| w.sender.receiver_count() == 0);
        let idle: Vec<K> = idle.map(|(key, _)| key.clone()).collect();
        for key in idle {
            if let Some(watched) = self.watched.remove(&key) {
                self.forget(&key, &watched.deps);
            }
        }
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
