//! A value that many follow, at little cost for each: who follows it has a number of its own, and finds that number in its inbox
//! when the value has changed. A `watch` alone would need a future for each value that a session follows.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outrigger_api::discovery::Feature;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// The numbers of what is to be looked at again, each once. A session of a sidecar has one.
#[derive(Debug, Default)]
pub struct Inbox {
    /// What the sidecar understands, each once.
    features: BTreeSet<i32>,
    /// What it was told last of who may call it is that nobody may, because its pod has no room for more.
    closed: AtomicBool,
    marked: Mutex<HashSet<usize>>,
    changed: Notify,
}

/// Whose number it is.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Where the number is to be found.
    pub inbox: Arc<Inbox>,
    /// The reader's own.
    pub number: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Topic<V> {
    values: watch::Sender<Arc<V>>,
    readers: Arc<Mutex<Readers>>,
}

/// By the address of the inbox and the number.
type Readers = HashMap<(usize, usize), Arc<Inbox>>;

/// A topic that is followed until this is dropped.
#[derive(Debug)]
pub struct Followed<V> {
    values: watch::Receiver<Arc<V>>,
    readers: Arc<Mutex<Readers>>,
    reader: Reader,
}

impl Inbox {
    /// Of a sidecar that understands these.
    pub(crate) fn new(features: impl Iterator<Item = Feature>) -> Self {
        Self {
            features: features.map(i32::from).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn understands(&self, feature: Feature) -> bool {
        self.features.contains(&feature.into())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// Waits for a number.
    pub async fn next(&self) -> usize {
        loop {
            if let Some(number) = self.take() {
                return number;
            }
            self.changed.notified().await;
        }
    }

    fn take(&self) -> Option<usize> {
        let mut marked = self.marked.lock();
        let number = *marked.iter().next()?;
        marked.remove(&number);
        Some(number)
    }

    fn mark(&self, number: usize) {
        self.marked.lock().insert(number);
        self.changed.notify_one();
    }
}

impl Reader {
    fn key(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.inbox).addr(), self.number)
    }
}

impl<V: Default> Default for Topic<V> {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl<V> Clone for Topic<V> {
    /// The same one.
    fn clone(&self) -> Self {
        Self {
            values: self.values.clone(),
            readers: Arc::clone(&self.readers),
        }
    }
}

impl<V> Topic<V> {
    pub(crate) fn new(value: Arc<V>) -> Self {
        Self {
            values: watch::Sender::new(value),
            readers: Arc::default(),
        }
    }

    /// The value now.
    pub(crate) fn value(&self) -> Arc<V> {
        Arc::clone(&self.values.borrow())
    }

    /// A new value, of which all hear.
    pub(crate) fn replace(&self, value: Arc<V>) {
        self.values.send_replace(value);
        for ((_, number), inbox) in &*self.readers.lock() {
            inbox.mark(*number);
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<V>> {
        self.values.subscribe()
    }

    pub(crate) fn follow(&self, reader: Reader) -> Followed<V> {
        self.readers.lock().insert(reader.key(), Arc::clone(&reader.inbox));
        Followed {
            values: self.values.subscribe(),
            readers: Arc::clone(&self.readers),
            reader,
        }
    }

    /// Whose it is that follow it.
    pub(crate) fn readers(&self) -> Vec<Arc<Inbox>> {
        self.readers.lock().values().cloned().collect()
    }

    /// How many watch it.
    pub(crate) fn watchers(&self) -> usize {
        self.values.receiver_count().saturating_sub(self.readers.lock().len())
    }

    /// Whether nobody watches or follows it.
    pub(crate) fn is_unused(&self) -> bool {
        self.values.receiver_count() == 0
    }
}

impl<V> Followed<V> {
    /// The value now.
    pub fn newest(&self) -> Arc<V> {
        Arc::clone(&self.values.borrow())
    }

    /// The reader's number.
    pub fn number(&self) -> usize {
        self.reader.number
    }
}

impl<V> Drop for Followed<V> {
    fn drop(&mut self) {
        self.readers.lock().remove(&self.reader.key());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_hears_of_its_own_topics_once() {
        let (one, two) = (Topic::new(Arc::new("a")), Topic::new(Arc::new("b")));
        let (here, there) = (Arc::new(Inbox::default()), Arc::new(Inbox::default()));
        let reader = |inbox: &Arc<Inbox>, number| Reader {
            inbox: Arc::clone(inbox),
            number,
        };
        let first = one.follow(reader(&here, 1));
        let second = two.follow(reader(&here, 2));
        let other = one.follow(reader(&there, 1));
        one.replace(Arc::new("c"));
        one.replace(Arc::new("d"));
        assert_eq!((here.take(), here.take(), there.take()), (Some(1), None, Some(1)));
        assert_eq!((*first.newest(), *second.newest(), *other.newest()), ("d", "b", "d"));
        drop(first);
        one.replace(Arc::new("e"));
        assert_eq!((here.take(), there.take()), (None, Some(1)));
        drop(other);
        assert!(one.is_unused() && !two.is_unused());
        assert!(one.readers.lock().is_empty());
    }
}
