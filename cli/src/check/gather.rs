//! What `outrigger check` looks at.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::SystemTime;

use anyhow::Context;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, ListParams, TypeMeta};
use kube::core::DynamicObject;
use kube::{Api, Client, ResourceExt};
use outrigger_api::labels;
use outrigger_api::policy::crd;
use outrigger_controller::objects::Kind;
use serde::de::DeserializeOwned;

use super::namespaces::is_labelled;
use super::{Facts, lives, metrics, with_ready_sidecar};

/// Objects in one answer.
const PAGE: u32 = 500;
/// What the chart makes empty, and the controller and the injector fill.
const SECRETS: [&str; 2] = ["outrigger-ca", "outrigger-injector-tls"];

#[expect(clippy::disallowed_methods, reason = "the place where the clock is read")]
pub(super) async fn facts(client: &Client, namespace: &str) -> anyhow::Result<Facts> {
    let version = client
        .apiserver_version()
        .await
        .context("asking the cluster for its version")?;
    let deployments = Api::<Deployment>::namespaced(client.clone(), namespace);
    let webhooks = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let groups = client
        .list_api_groups()
        .await
        .context("asking the cluster for its kinds")?;
    let serves = |group: &str| groups.groups.iter().any(|g| g.name == group);
    let namespaces = list(&Api::<Namespace>::all(client.clone()), ListParams::default())
        .await
        .context("listing namespaces")?;

    let mut bundles = BTreeMap::new();
    let mut pods = Vec::new();
    for name in namespaces
        .iter()
        .filter(|namespace| is_labelled(namespace))
        .map(ResourceExt::name_any)
    {
        let bundle = trust_bundle(client, &name).await?;
        let mut of_namespace = list(&Api::<Pod>::namespaced(client.clone(), &name), ListParams::default())
            .await
            .with_context(|| format!("listing the pods of {name}"))?;
        pods.append(&mut of_namespace);
        bundles.insert(name, bundle);
    }
    let controllers = ListParams::default().labels("app.kubernetes.io/name=outrigger-controller");
    let controllers = list(&Api::<Pod>::namespaced(client.clone(), namespace), controllers)
        .await
        .context("listing the controllers")?;
    let running = controllers.iter().filter(|pod| lives(pod));
    let running = running.map(|pod| (namespace.to_owned(), pod.name_any()));
    let controllers_say = metrics::ask(client, running.collect()).await;
    let sidecars_say = metrics::ask(client, with_ready_sidecar(&pods).collect()).await;
    Ok(Facts {
        namespace: namespace.to_owned(),
        cluster_version: version.git_version,
        controller: deployments
            .get_opt("outrigger-controller")
            .await
            .context("reading the controller's Deployment")?,
        injector: deployments
            .get_opt("outrigger-injector")
            .await
            .context("reading the injector's Deployment")?,
        webhooks: webhooks
            .get_opt("outrigger-injector")
            .await
            .context("reading the webhook configuration")?,
        missing_secrets: missing_secrets(client, namespace).await?,
        crds: crds(client).await?,
        own_kinds: serves("outrigger.dev"),
        gateway_api: serves("gateway.networking.k8s.io"),
        bundle: trust_bundle(client, namespace).await?,
        bundles,
        namespaces,
        pods,
        objects: objects(client).await?,
        sidecars_say,
        controllers_say,
        now: SystemTime::now(),
    })
}

/// The CRDs of Outrigger's own kinds.
async fn crds(client: &Client) -> anyhow::Result<BTreeMap<String, CustomResourceDefinition>> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let mut found = BTreeMap::new();
    for crd in crd::crds() {
        let name = crd.name_any();
        match api.get_opt(&name).await {
            Ok(crd) => found.extend(crd.map(|crd| (name, crd))),
            Err(kube::Error::Api(status)) if status.code == 403 => {}
            Err(error) => return Err(error).with_context(|| format!("reading the CRD {name}")),
        }
    }
    Ok(found)
}

/// Policies and routes, of the kinds that the cluster serves.
async fn objects(client: &Client) -> anyhow::Result<Vec<DynamicObject>> {
    let mut objects = Vec::new();
    for resource in kinds() {
        match list(
            &Api::<DynamicObject>::all_with(client.clone(), &resource),
            ListParams::default(),
        )
        .await
        {
            // A list does not say of each object what it is.
            Ok(found) => objects.extend(found.into_iter().map(|object| DynamicObject {
                types: Some(TypeMeta {
                    api_version: resource.api_version.clone(),
                    kind: resource.kind.clone(),
                }),
                ..object
            })),
            // The kind is not served, or the user may not look at it.
            Err(kube::Error::Api(status)) if [403, 404].contains(&status.code) => {}
            Err(error) => return Err(error).with_context(|| format!("listing {}", resource.plural)),
        }
    }
    Ok(objects)
}

/// What the controller writes conditions on: all kinds that a cluster may have or not, apart from the ServiceCIDRs, which it only reads.
fn kinds() -> impl Iterator<Item = ApiResource> {
    let kinds = Kind::optional().filter(|kind| *kind != Kind::ServiceCidr);
    kinds.filter_map(Kind::resource)
}

async fn trust_bundle(client: &Client, namespace: &str) -> anyhow::Result<Option<String>> {
    let config_maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let map = config_maps.get_opt(labels::TRUST_BUNDLE_CONFIG_MAP).await;
    let map = map.with_context(|| format!("reading ConfigMap {namespace}/{}", labels::TRUST_BUNDLE_CONFIG_MAP))?;
    Ok(map.and_then(|map| map.data?.remove(labels::TRUST_BUNDLE_KEY)))
}

/// Of the Secrets that the chart makes. Whoever may not look at Secrets is not told.
async fn missing_secrets(client: &Client, namespace: &str) -> anyhow::Result<Vec<&'static str>> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let mut missing = Vec::new();
    for name in SECRETS {
        match secrets.get_metadata_opt(name).await {
            Ok(None) => missing.push(name),
            Ok(Some(_)) => {}
            Err(kube::Error::Api(status)) if status.code == 403 => {}
            Err(error) => return Err(error).with_context(|| format!("reading the Secret {namespace}/{name}")),
        }
    }
    Ok(missing)
}

pub(super) async fn list<K: Clone + DeserializeOwned + Debug>(
    api: &Api<K>,
    mut parameters: ListParams,
) -> kube::Result<Vec<K>> {
    parameters.limit = Some(PAGE);
    let mut all = Vec::new();
    loop {
        let mut page = api.list(&parameters).await?;
        all.append(&mut page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::kinds;

    #[test]
    fn all_kinds_are_looked_at_that_the_controller_writes_conditions_on() {
        let mut kinds: Vec<_> = kinds().map(|resource| resource.kind).collect();
        kinds.sort();
        assert_eq!(
            kinds,
            [
                "AccessPolicy",
                "BackendTLSPolicy",
                "GRPCRoute",
                "HTTPRoute",
                "RateLimitPolicy",
                "TCPRoute",
                "TLSRoute",
                "TrafficPolicy",
                "XMesh"
            ]
        );
    }
}
