//! Answers that somebody watches, and by what they are to be made anew.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use prost::Message;
use tokio::sync::watch;

use super::build::Deps;
use super::store::Dep;
use crate::discovery::Update;

pub(super) struct Watches<K, M> {
    watched: HashMap<K, Watched<M>>,
    dependents: HashMap<Dep, HashSet<K>>,
}

struct Watched<M> {
    sender: watch::Sender<Arc<Update<M>>>,
    deps: Deps,
}

impl<K, M> Default for Watches<K, M> {
    fn default() -> Self {
        Self {
            watched: HashMap::new(),
            dependents: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, M: Message + PartialEq> Watches<K, M> {
    /// The answer to `key`, and what it becomes.
    pub(super) fn watch(&mut self, key: K, build: impl FnOnce(&K, &mut Deps) -> M) -> watch::Receiver<Arc<Update<M>>> {
        if let Some(watched) = self.watched.get(&key) {
            return watched.sender.subscribe();
        }
        let mut deps = Deps::new();
        let (sender, receiver) = watch::channel(Arc::new(build(&key, &mut deps).into()));
        self.depend(&key, &deps);
        self.watched.insert(key, Watched { sender, deps });
        receiver
    }

    /// Makes anew what depends on one of `touched`, and sends it if it is another.
    pub(super) fn rebuild(&mut self, touched: &HashSet<Dep>, mut build: impl FnMut(&K, &mut Deps) -> M) {
        let keys = touched.iter().filter_map(|dep| self.dependents.get(dep)).flatten();
        let keys: HashSet<K> = keys.cloned().collect();
        for key in keys {
            let Some(watched) = self.watched.get_mut(&key) else {
                continue;
            };
            let mut deps = Deps::new();
            let message = build(&key, &mut deps);
            if watched.sender.borrow().message != message {
                watched.sender.send_replace(Arc::new(message.into()));
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
