//! Kubernetes watches into the index.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::fill::{Fill, Waiting};
use super::{crds, old_crds};
use crate::index::Index;
use crate::objects::policy::PolicyKind;
use crate::objects::{Kind, from_k8s};

/// What the start waits for without end. Without AccessPolicies, sidecars would be told that there are none, and let everybody in;
/// until they are told they go on with those that they know, and a new pod is closed. Without BackendTLSPolicies, they would be told to call in
/// plaintext. A cluster without these kinds says so at once.
const NEEDED: [Kind; 6] = [
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Pod,
    Kind::Namespace,
    Kind::Policy(PolicyKind::Access),
    Kind::BackendTls,
];
/// How long it waits for the other kinds: a route kind that cannot be listed, or nodes that an older ClusterRole does not let it list,
/// must not keep the whole mesh without discovery. Of limits nothing is told meanwhile ([`UNTOLD`]).
const PATIENCE: Duration = Duration::from_secs(20);
/// Of this kind nothing is told before it has been listed, however late: a sidecar that is told that there are none would drop its limits.
const UNTOLD: Kind = Kind::Policy(PolicyKind::RateLimit);
/// How long it waits for the keys of tokens. Without them no token is valid in a sidecar that has just begun. (One that has heard of them
/// from another controller, or from this one before it was restarted, goes on with those.)
const FIRST_KEYS: Duration = Duration::from_secs(5);

/// Watches everything that the index is made from until `stop` is cancelled, and tells the index when it is complete.
pub async fn run(client: Client, index: Arc<Index>, stop: CancellationToken) {
    let waiting = Waiting::new(Kind::optional().chain(NEEDED).chain([Kind::Node]));
    index.set_unlisted(UNTOLD);
    let own_kinds = async {
        let fill = |kind| Fill {
            kind,
            index: index.clone(),
            waiting: waiting.clone(),
        };
        tokio::join!(
            fill(Kind::Service).follow(all::<Service>(&client), from_k8s::service),
            fill(Kind::EndpointSlice).follow(all::<EndpointSlice>(&client), from_k8s::endpoint_slice),
            fill(Kind::Pod).follow(all::<Pod>(&client), from_k8s::pod),
            fill(Kind::Namespace).follow(all::<Namespace>(&client), from_k8s::namespace),
            // A Node's status is large and changes often; its labels do not.
            fill(Kind::Node).follow(all::<PartialObjectMeta<Node>>(&client), from_k8s::node),
        );
    };
    let complete = async {
        waiting.these(&NEEDED).await;
        if tokio::time::timeout(PATIENCE, waiting.all()).await.is_err() {
            tracing::error!(
                missing = ?waiting.kinds(),
                "going on without some kinds: check that the API server answers and that the ClusterRole allows list and watch"
            );
        }
        index.first_keys(FIRST_KEYS).await;
        index.set_synced();
        tracing::info!("the index is complete");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = index.run() => {}
        () = own_kinds => {}
        () = crds::run(client.clone(), index.clone(), waiting.clone()) => {}
        () = old_crds::run(client.clone(), index.clone()) => {}
        () = complete => {}
    }
}

fn all<K>(client: &Client) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    watcher(Api::all(client.clone()), watcher::Config::default()).default_backoff()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
