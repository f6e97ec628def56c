//! Values that are kept up to date while somebody watches them, one task for each.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The values by key: at most `limit`. Beyond it, some go that nobody watches: first what is not known yet, then what is
/// worth least, and of these what was asked for longest ago.
pub(crate) struct Shared<K, V> {
    entries: Mutex<HashMap<K, Entry<V>>>,
    limit: usize,
    worth: fn(&V) -> u8,
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
        Self::with_worth(limit, |_| 0)
    }

    /// What is worth more stays for longer.
    pub(crate) fn with_worth(limit: usize, worth: fn(&V) -> u8) -> Self {
        Self {
            entries: Mutex::new(HashMap::new()),
            limit,
            worth,
        }
    }

    /// A receiver of a value that is known, whose `changed()` returns at once.
    pub(crate) fn known(&self, key: &K) -> Option<watch::Receiver<V>> {
        let mut entries = self.entries.lock();
        entries.get_mut(key).filter(|entry| entry.known).map(Entry::receiver)
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
        if !entries.contains_key(key) && !self.make_room(&mut entries) {
            return Err(Full);
        }
        Ok(receiver(&mut entries, key, placeholder, start))
    }

    /// The same, also where there are `limit` keys that somebody watches: then the watchers are the limit.
    pub(crate) fn subscribe_always(
        &self,
        key: &K,
        placeholder: V,
        start: impl FnOnce(watch::Sender<V>) -> AbortHandle,
    ) -> watch::Receiver<V> {
        let mut entries = self.entries.lock();
        if !entries.contains_key(key) {
            self.make_room(&mut entries);
        }
        receiver(&mut entries, key, placeholder, start)
    }

    /// Whether there is room for another key.
    fn make_room(&self, entries: &mut HashMap<K, Entry<V>>) -> bool {
        if entries.len() < self.limit {
            return true;
        }
        let unused = entries.iter().filter(|(_, entry)| entry.sender.receiver_count() == 0);
        let unused = unused.map(|(key, entry)| {
            let worth = entry.known.then(|| (self.worth)(&entry.sender.borrow()));
            (worth, entry.asked, key.clone())
        });
        let mut unused: Vec<_> = unused.collect();
        unused.sort_unstable_by_key(|(worth, asked, _)| (*worth, *asked));
        let Some(&(least, ..)) = unused.first() else {
            return false;
        };
        // Some of the same worth at once: whoever wants many new keys looks through all of them seldom.
        let equal = unused.into_iter().take_while(|(worth, ..)| *worth == least);
        for (_, _, key) in equal.take((self.limit / 16).max(1)) {
            if let Some(evicted) = entries.remove(&key) {
                evicted.task.abort();
            }
        }
        true
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

impl<V> Entry<V> {
    fn receiver(&mut self) -> watch::Receiver<V> {
        self.asked = Instant::now();
        let mut receiver = self.sender.subscribe();
        if self.known {
            receiver.mark_changed();
        }
        receiver
    }
}

fn receiver<K: Clone + Eq + Hash, V>(
    entries: &mut HashMap<K, Entry<V>>,
    key: &K,
    placeholder: V,
    start: impl FnOnce(watch::Sender<V>) -> AbortHandle,
) -> watch::Receiver<V> {
    if let Some(entry) = entries.get_mut(key) {
        return entry.receiver();
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
    receiver
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
        let six = shared.subscribe_always(&6, 0, idle);
        assert_eq!(shared.seen().len(), 4, "what is in use is the limit then");
        drop((watched, four, five, six));
        assert!(shared.subscribe(&7, 0, idle).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_worth_most_goes_last() {
        let shared = Shared::<u8, u32>::with_worth(4, |value| u8::try_from(*value).unwrap());
        // The oldest is worth most; the newest is not known.
        for (key, value) in [(1, Some(2)), (2, Some(1)), (3, Some(1)), (4, None)] {
            sleep(Duration::from_secs(1)).await;
            shared.subscribe(&key, 0, idle).ok().unwrap();
            if let Some(value) = value {
                shared.publish(&key, value);
            }
        }
        assert!(shared.known(&1).unwrap().has_changed().unwrap());
        assert!(shared.known(&4).is_none() && shared.known(&9).is_none());
        let mut watched = Vec::new();
        for (next, goes) in [(5, 4), (6, 2), (7, 3), (8, 1)] {
            watched.push(shared.subscribe(&next, 0, idle).ok().unwrap());
            let keys: Vec<_> = shared.seen().into_iter().map(|seen| seen.key).collect();
            assert_eq!(keys.len(), 4);
            assert!(!keys.contains(&goes), "{goes} is among {keys:?}");
        }
    }
}
