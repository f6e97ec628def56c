//! Kubernetes watches into the index.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::crds;
use crate::index::objects::{Kind, Object, ObjectName};
use crate::index::{Index, from_k8s};

/// How long the start waits for kinds that discovery can do without: those that are not Kubernetes' own, and nodes. A route kind
/// that cannot be listed, or an older ClusterRole, must not keep the whole mesh without discovery.
const PATIENCE: Duration = Duration::from_secs(20);

/// Watches everything that the index is made from until `stop` is cancelled, and tells the index when it is complete.
pub async fn run(client: Client, index: Arc<Index>, stop: CancellationToken) {
    let waiting = Waiting::new([Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Namespace]);
    let waiting_with_patience = Waiting::new(crds::KINDS.into_iter().chain([Kind::Node]));
    let own_kinds = async {
        let fill = |kind| Fill {
            kind,
            index: index.clone(),
            waiting: waiting.clone(),
        };
        let nodes = Fill {
            kind: Kind::Node,
            index: index.clone(),
            waiting: waiting_with_patience.clone(),
        };
        tokio::join!(
            fill(Kind::Service).follow(all::<Service>(&client), from_k8s::service),
            fill(Kind::EndpointSlice).follow(all::<EndpointSlice>(&client), from_k8s::endpoint_slice),
            fill(Kind::Pod).follow(all::<Pod>(&client), from_k8s::pod),
            fill(Kind::Namespace).follow(all::<Namespace>(&client), from_k8s::namespace),
            // A Node's status is large and changes often; its labels do not.
            nodes.follow(all::<PartialObjectMeta<Node>>(&client), from_k8s::node),
        );
    };
    let complete = async {
        waiting.done().await;
        if tokio::time::timeout(PATIENCE, waiting_with_patience.done())
            .await
            .is_err()
        {
            tracing::error!(
                missing = ?waiting_with_patience.0.borrow(),
                "going on without some kinds: check that the API server answers and that the ClusterRole allows list and watch"
            );
        }
        index.set_synced();
        tracing::info!("the index is complete");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = index.run() => {}
        () = own_kinds => {}
        () = crds::run(client.clone(), index.clone(), waiting_with_patience.clone()) => {}
        () = complete => {}
    }
}

fn all<K>(client: &Client) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff()
}

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

    async fn done(&self) {
        // The sender is `self`, so the wait does not fail.
        let _ = self.0.subscribe().wait_for(BTreeSet::is_empty).await;
    }
}
