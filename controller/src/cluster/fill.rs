//! One watch's way into the index, and what has not been listed yet.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use kube::Resource;
use kube::runtime::watcher;
use tokio::sync::watch;

use crate::index::Index;
use crate::objects::{Kind, Object, ObjectName, from_k8s};

/// One kind's way into the index.
pub(super) struct Fill {
    pub(super) kind: Kind,
    pub(super) index: Arc<Index>,
    pub(super) waiting: Waiting,
}

impl Fill {
    /// Follows a watch for ever. Of each object only what `convert` makes of it is kept.
    pub(super) async fn follow<K: Resource>(
        self,
        events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
        convert: impl Fn(&K) -> Option<(ObjectName, Object)>,
    ) {
        let mut events = std::pin::pin!(events);
        // The objects of a list that is under way; those that are not in it are gone when it ends.
        let mut listed = HashSet::new();
        loop {
            match events.try_next().await {
                Ok(Some(event)) => self.event(event, &mut listed, &convert),
                Ok(None) => return,
                Err(e) => {
                    tracing::warn!(kind = ?self.kind, error = %e, "a watch failed; what is known stays in use, trying again");
                }
            }
        }
    }

    fn event<K: Resource>(
        &self,
        event: watcher::Event<K>,
        listed: &mut HashSet<ObjectName>,
        convert: &impl Fn(&K) -> Option<(ObjectName, Object)>,
    ) {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(object) => listed.extend(self.apply(&object, convert)),
            watcher::Event::InitDone => {
                self.index.retain(self.kind, listed);
                *listed = HashSet::new();
                self.index.set_listed(self.kind);
                self.waiting.arrived(self.kind);
            }
            watcher::Event::Apply(object) => drop(self.apply(&object, convert)),
            watcher::Event::Delete(object) => self.index.delete(self.kind, from_k8s::object_name(object.meta())),
        }
    }

    /// An object that nothing can be made of is as if it were not there.
    fn apply<K: Resource>(
        &self,
        object: &K,
        convert: &impl Fn(&K) -> Option<(ObjectName, Object)>,
    ) -> Option<ObjectName> {
        match convert(object) {
            Some((name, object)) => {
                self.index.apply(name.clone(), object);
                Some(name)
            }
            None => {
                self.index.delete(self.kind, from_k8s::object_name(object.meta()));
                None
            }
        }
    }
}

/// Kinds that have not been listed yet.
#[derive(Clone)]
pub(super) struct Waiting(Arc<watch::Sender<BTreeSet<Kind>>>);

impl Waiting {
    pub(super) fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self(Arc::new(watch::Sender::new(kinds.into_iter().collect())))
    }

    pub(super) fn arrived(&self, kind: Kind) {
        self.0.send_if_modified(|kinds| kinds.remove(&kind));
    }

    /// Those that are still to come.
    pub(super) fn kinds(&self) -> BTreeSet<Kind> {
        self.0.borrow().clone()
    }

    /// Until these have come.
    pub(super) async fn these(&self, kinds: &[Kind]) {
        let have_come = |waiting: &BTreeSet<Kind>| !kinds.iter().any(|kind| waiting.contains(kind));
        // The sender is `self`, so the wait does not fail.
        let _ = self.0.subscribe().wait_for(have_come).await;
    }

    /// Until all have come.
    pub(super) async fn all(&self) {
        let _ = self.0.subscribe().wait_for(BTreeSet::is_empty).await;
    }
}
