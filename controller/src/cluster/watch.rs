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
use crate::objects::{Kind, from_k8s};

/// How long the start waits for kinds that discovery can do without: those that are not Kubernetes' own, and nodes. A route kind
/// that cannot be listed, or an older ClusterRole, must not keep the whole mesh without discovery.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it waits for the keys of tokens. Without them no token is valid, and a sidecar that has heard of them from another
/// controller, or from this one before it was restarted, would hear now that there are none.
const FIRST_KEYS: Duration = Duration::from_secs(5);

/// Watches everything that the index is made from until `stop` is cancelled, and tells the index when it is complete.
pub async fn run(client: Client, index: Arc<Index>, stop: CancellationToken) {
    let waiting = Waiting::new([Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Namespace]);
    let waiting_with_patience = Waiting::new(Kind::optional().chain([Kind::Node]));
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
                missing = ?waiting_with_patience.kinds(),
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
        () = crds::run(client.clone(), index.clone(), waiting_with_patience.clone()) => {}
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
