//! Objects by their names.

use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module. A copy has the same objects, and costs little.
#[derive(Clone)]
pub(crate) struct Objects<K, V>(BTreeMap<K, Arc<V>>);

impl<K: Ord, V> Objects<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key).map(|object| &**object)
    }

    pub(crate) fn get_key_value(&self, key: &K) -> Option<(&K, &V)> {
        self.0.get_key_value(key).map(|(key, object)| (key, &**object))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, object)| (key, &**object))
    }

    /// Those from this name on.
    pub(super) fn from(&self, first: K) -> impl Iterator<Item = (&K, &V)> + use<'_, K, V> {
        self.0.range(first..).map(|(key, object)| (key, &**object))
    }

    /// `None`: it is gone.
    pub(super) fn set(&mut self, key: K, object: Option<V>) {
        match object {
            Some(object) => drop(self.0.insert(key, Arc::new(object))),
            None => drop(self.0.remove(&key)),
        }
    }
}

impl<K, V> Default for Objects<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

#[cfg(test)]
impl<K: Ord, V> std::ops::Index<&K> for Objects<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        &self.0[key]
    }
}
