//! Watches of the kinds that may be absent, and may come and go ([`Kind::optional`]).
//!
//! API discovery needs no rights of its own and costs the API server next to nothing, so it is asked every few seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::ApiResource;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio_util::task::AbortOnDropHandle;

use super::fill::{Fill, Waiting};
use crate::index::Index;
use crate::objects::{Kind, Object};

/// How often API discovery is asked.
const POLL: Duration = Duration::from_secs(3);

/// The watches that there are; each ends when it is taken out.
type Watched = HashMap<Kind, (ApiResource, AbortOnDropHandle<()>)>;

/// Watches the kinds that there are, for ever.
pub(super) async fn run(client: Client, index: Arc<Index>, waiting: Waiting) {
    let mut watched = Watched::new();
    loop {
        match resources(&client).await {
            Ok(present) => {
                for kind in Kind::optional() {
                    follow(&client, &index, &waiting, kind, present.get(&kind), &mut watched);
                }
            }
            Err(e) => tracing::warn!(error = %e, "API discovery failed; the kinds that are known stay in use"),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Starts, restarts or ends the watch of one kind.
fn follow(
    client: &Client,
    index: &Arc<Index>,
    waiting: &Waiting,
    kind: Kind,
    present: Option<&ApiResource>,
    watched: &mut Watched,
) {
    // A watch does not end by itself; if one did, it is started again.
    let running = watched.get(&kind).filter(|(_, task)| !task.is_finished());
    if running.map(|(resource, _)| resource) == present {
        if present.is_none() {
            // There are none of them, and that is known.
            index.set_listed(kind);
            waiting.arrived(kind);
        }
        return;
    }
    drop(watched.remove(&kind));
    let Some(resource) = present else {
        tracing::info!(?kind, "the cluster does not have this kind any more");
        index.retain(kind, &[].into());
        return;
    };
    tracing::info!(?kind, version = resource.version, "the cluster has this kind");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let fill = Fill {
        kind,
        index: index.clone(),
        waiting: waiting.clone(),
    };
    let convert = move |object: &DynamicObject| Object::read(kind, object);
    let task = AbortOnDropHandle::new(tokio::spawn(fill.follow(events, convert)));
    watched.insert(kind, (resource.clone(), task));
}

/// Which of the kinds the API server has, each in the version that its group prefers among those that have it.
async fn resources(client: &Client) -> kube::Result<HashMap<Kind, ApiResource>> {
    let mut found = HashMap::new();
    let wanted: Vec<_> = Kind::optional()
        .filter_map(|kind| Some((kind, kind.resource()?)))
        .collect();
    for group in client.list_api_groups().await?.groups {
        if !wanted.iter().any(|(_, resource)| resource.group == group.name) {
            continue;
        }
        let preferred = group.preferred_version.iter();
        let versions = preferred.chain(
            group
                .versions
                .iter()
                .filter(|v| Some(*v) != group.preferred_version.as_ref()),
        );
        for version in versions {
            for resource in client.list_api_group_resources(&version.group_version).await?.resources {
                let is_it =
                    |(_, known): &&(Kind, ApiResource)| known.group == group.name && known.kind == resource.kind;
                let Some((kind, _)) = wanted.iter().find(is_it) else {
                    continue;
                };
                if resource.name.contains('/') {
                    continue; // a subresource
                }
                let gvk = GroupVersionKind::gvk(&group.name, &version.version, &resource.kind);
                found
                    .entry(*kind)
                    .or_insert_with(|| ApiResource::from_gvk_with_plural(&gvk, &resource.name));
            }
        }
    }
    Ok(found)
}
