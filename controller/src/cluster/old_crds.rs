//! Whether the CRDs of policies have all fields that this controller knows. Helm does not upgrade CRDs, and what one has not, the API
//! server drops without a word.

use std::sync::Arc;

use futures_util::TryStreamExt;
use futures_util::future::join_all;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use outrigger_api::policy::crd;

use crate::index::Index;
use crate::objects::policy::PolicyKind;

/// Watches the CRD of each kind, for ever.
pub(super) async fn run(client: Client, index: Arc<Index>) {
    join_all(PolicyKind::ALL.map(|kind| follow(&client, &index, kind))).await;
}

async fn follow(client: &Client, index: &Index, kind: PolicyKind) {
    let ours = (kind.row().crd)();
    let name = ours.metadata.name.as_deref().unwrap_or_default();
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = watcher(Api::<CustomResourceDefinition>::all(client.clone()), config).default_backoff();
    let mut events = std::pin::pin!(events);
    loop {
        let lacking = match events.try_next().await {
            Ok(Some(watcher::Event::InitApply(crd) | watcher::Event::Apply(crd))) => crd::lacking(&crd, &ours),
            // Without a CRD there are no policies.
            Ok(Some(watcher::Event::Delete(_))) => Vec::new(),
            Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => continue,
            Ok(None) => return,
            Err(e) => {
                tracing::warn!(name, error = %e, "cannot see whether a CRD has all fields; trying again");
                continue;
            }
        };
        if !lacking.is_empty() {
            let lacking = lacking.join(", ");
            tracing::warn!(name, lacking, "the CRD is older than this controller: {}", crd::APPLY);
        }
        index.set_old_crd(kind, lacking);
    }
}
