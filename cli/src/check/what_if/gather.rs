//! What is asked of the cluster, and of its sidecars.

use anyhow::Context;
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::{Api, Client, ResourceExt};
use outrigger_controller::objects::policy::PolicyKind;

use super::judge::{Change, Cluster, Seen};
use crate::check::gather::list;
use crate::check::namespaces::is_labelled;
use crate::check::{metrics, proxy_variable};
use crate::cluster::sidecar_page;

/// All that says which policies a pod's sidecar is told of.
pub(super) async fn cluster(client: &Client, own_namespace: &str) -> anyhow::Result<Cluster> {
    let namespaces = Api::<Namespace>::all(client.clone());
    let namespaces = list(&namespaces, ListParams::default())
        .await
        .context("listing namespaces")?;
    let (mut pods, mut services) = (Vec::new(), Vec::new());
    for name in namespaces
        .iter()
        .filter(|of| is_labelled(of))
        .map(ResourceExt::name_any)
    {
        let listing = |what| format!("listing the {what} of {name}");
        let of_namespace = Api::<Pod>::namespaced(client.clone(), &name);
        let of_namespace = list(&of_namespace, ListParams::default()).await;
        pods.extend(of_namespace.with_context(|| listing("pods"))?);
        let of_namespace = Api::<Service>::namespaced(client.clone(), &name);
        let of_namespace = list(&of_namespace, ListParams::default()).await;
        services.extend(of_namespace.with_context(|| listing("Services"))?);
    }
    let resource = (PolicyKind::Access.row().resource)();
    let policies = Api::<DynamicObject>::all_with(client.clone(), &resource);
    let policies = list(&policies, ListParams::default()).await;
    let trust_domain = pods
        .iter()
        .find_map(|pod| proxy_variable(pod, "OUTRIGGER_TRUST_DOMAIN"));
    Ok(Cluster {
        own_namespace: own_namespace.to_owned(),
        trust_domain: trust_domain.unwrap_or("cluster.local").to_owned(),
        policies: policies.context("listing AccessPolicies")?,
        namespaces,
        pods,
        services,
    })
}

/// Whom the sidecars of these pods have let in, in the order of the pods.
pub(super) async fn callers(client: &Client, changes: &[Change]) -> Vec<Result<Seen, String>> {
    let answers = stream::iter(changes.iter().take(metrics::MAX_PODS)).map(async |change| {
        let (namespace, pod) = (&change.namespace, &change.pod);
        if !change.is_ready {
            return Err("it is not ready".to_owned());
        }
        let page = sidecar_page(client, namespace, pod, "/callers").await;
        let seen = page.and_then(|page| serde_json::from_slice(&page).context("its page /callers"));
        seen.map_err(|error| {
            format!("{error:#}; it needs the right to create pods/portforward, and sidecars of this version")
        })
    });
    let mut answers: Vec<_> = answers.buffered(metrics::AT_ONCE).collect().await;
    let left = changes.len() - answers.len();
    answers.extend((0..left).map(|_| Err(format!("more than {} pods are not asked", metrics::MAX_PODS))));
    answers
}
