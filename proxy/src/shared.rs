//! Values that are kept up to date while somebody watches them, one task for each.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The values by key: at most `limit`. Beyond it, the one that nobody watches and that was asked for longest ago goes.
pub(crate) struct Shared<K, V> {
    entries: Mutex<HashMap<K, Entry<V>>>,
    limit: usize,
}

struct Entry<V> {
    sender: watch::Sender<V>,
    /// Whether the value is more than a placeholder.
    known: bool,
    asked: Instant,
    task: AbortHandle,
}

/// What `/config` shows of an entry.
pub(crate) struct Seen<K, V> {
    pub(crate) key: K,
    pub(crate) value: V,
    pub(crate) known: bool,
    pub(crate) watchers: usize,
}

/// There is no room for another key.
pub(crate) struct Full;

impl<K: Clone + Eq + Hash, V: Clone> Shared<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            entries: Mutex::new(HashMap::new()),
            limit,
        }
    }

    /// A receiver whose `changed()` returns as soon as the value is known, also where it is known already. `start` makes
    /// the task of a new key; it must not finish before it is aborted or [`Shared::remove_if_unused`] says so.
    pub(crate) fn subscribe(
        &self,
        key: &K,
        placeholder: V,
        start: impl FnOnce(watch::Sender<V>) -> AbortHandle,
    ) -> Result<watch::Receiver<V>, Full> {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(key) {
            entry.asked = Instant::now();
            let mut receiver = entry.sender.subscribe();
            if entry.known {
                receiver.mark_changed();
            }
            return Ok(receiver);
        }
        if entries.len() >= self.limit {
            let unused = entries.iter().filter(|(_, entry)| entry.sender.receiver_count() == 0);
            let oldest = unused.min_by_key(|(_, entry)| entry.asked).map(|(key, _)| key.clone());
            let evicted = oldest.and_then(|key| entries.remove(&key)).ok_or(Full)?;
            evicted.task.abort();
        }
        let (sender, receiver) = watch::channel(placeholder);
        let task = start(sender.clone());
        let entry = Entry {
            sender,
            known: false,
            asked: Instant::now(),
            task,
        };
        entries.insert(key.clone(), entry);
        Ok(receiver)
    }

    /// A new value.
    pub(crate) fn publish(&self, key: &K, value: V) {
        // Under the lock, so that whoever subscribes either sees `known` or gets the change.
        if let Some(entry) = self.entries.lock().get_mut(key) {
            entry.sender.send_replace(value);
            entry.known = true;
        }
    }

    /// Forgets a key that nobody watches and that nobody has asked for since `since`. True: the task must end.
    pub(crate) fn remove_if_unused(&self, key: &K, since: Instant) -> bool {
        let mut entries = self.entries.lock();
        let unused = entries
            .get(key)
            .is_none_or(|entry| entry.sender.receiver_count() == 0 && entry.asked <= since);
        if unused {
            entries.remove(key);
        }
        unused
    }

    pub(crate) fn seen(&self) -> Vec<Seen<K, V>> {
        let entries = self.entries.lock();
        let seen = entries.iter().map(|(key, entry)| Seen {
            key: key.clone(),
            value: entry.sender.borrow().clone(),
            known: entry.known,
            watchers: entry.sender.receiver_count(),
        });
        seen.collect()
    }
}

impl<K, V> Drop for Shared<K, V> {
    fn drop(&mut self) {
        for entry in self.entries.get_mut().values() {
            entry.task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    fn idle(_: watch::Sender<u32>) -> AbortHandle {
        tokio::spawn(std::future::pending::<()>()).abort_handle()
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_is_kept_while_it_is_watched() {
        let shared = Shared::<&str, u32>::new(4);
        let mut first = shared.subscribe(&"a", 0, idle).ok().unwrap();
        assert!(!first.has_changed().unwrap());
        shared.publish(&"a", 1);
        assert_eq!(*first.borrow_and_update(), 1);
        // Whoever comes later has the value at once.
        let second = shared.subscribe(&"a", 0, idle).ok().unwrap();
        assert!(second.has_changed().unwrap());
        sleep(Duration::from_secs(1)).await;
        assert!(!shared.remove_if_unused(&"a", Instant::now()), "it is watched");
        drop((first, second));
        let since = Instant::now();
        sleep(Duration::from_secs(1)).await;
        drop(shared.subscribe(&"a", 0, idle).ok().unwrap());
        assert!(!shared.remove_if_unused(&"a", since), "it was asked for");
        assert!(shared.remove_if_unused(&"a", Instant::now()));
        assert!(shared.seen().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_that_nobody_watches_makes_room() {
        let shared = Shared::<u8, u32>::new(3);
        let watched = shared.subscribe(&1, 0, idle).ok().unwrap();
        for key in [2, 3] {
            sleep(Duration::from_secs(1)).await;
            shared.subscribe(&key, 0, idle).ok().unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        let four = shared.subscribe(&4, 0, idle).ok().unwrap();
        let mut keys: Vec<_> = shared.seen().into_iter().map(|seen| seen.key).collect();
        keys.sort_unstable();
        assert_eq!(keys, [1, 3, 4]);
        let five = shared.subscribe(&5, 0, idle).ok().unwrap();
        assert!(shared.subscribe(&6, 0, idle).is_err(), "all are in use");
        // A value for a key that has gone is nobody's.
        shared.publish(&2, 7);
        drop((watched, four, five));
        assert!(shared.subscribe(&6, 0, idle).is_ok());
    }
}
