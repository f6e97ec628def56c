//! Keeps the webhook's certificate: reads and writes the Secret that all replicas share, swaps what they serve, and keeps
//! the CA bundle in the webhook configuration. Both objects are watched, so a `helm upgrade` that puts back an empty
//! bundle, and the other replica's renewal, are followed at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures_util::stream::{BoxStream, StreamExt, select};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::certs::{self, Material, Plan, Profile, Serving};
use crate::clock;
use crate::metrics::Metrics;

/// What is kept where.
#[derive(Clone, Debug)]
pub struct Places {
    /// The namespace of the Secret.
    pub namespace: String,
    /// The Secret's name.
    pub secret: String,
    /// The name of the MutatingWebhookConfiguration.
    pub webhook_configuration: String,
}

/// Runs until the process ends.
pub(crate) struct Rotation {
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    places: Places,
    profile: Profile,
    serving: Arc<Serving>,
    metrics: Arc<Metrics>,
    /// The bundle that the webhook configuration has, and since when this process sees it there.
    in_force: Option<(ByteString, Instant)>,
    /// Set once this replica serves a certificate that kube-apiserver was told to trust.
    ready: Arc<AtomicBool>,
}

/// How often it looks without being told to, unless certificates live shorter than usual.
const INTERVAL: Duration = Duration::from_secs(60);
/// After a failure; doubled up to [`INTERVAL`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Changes that follow one another are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(100);

impl Rotation {
    pub(crate) fn new(
        client: &Client,
        places: Places,
        profile: Profile,
        serving: Arc<Serving>,
        metrics: Arc<Metrics>,
        ready: Arc<AtomicBool>,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &places.namespace),
            configurations: Api::all(client.clone()),
            places,
            profile,
            serving,
            metrics,
            in_force: None,
            ready,
        }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = self.changes();
        let interval = INTERVAL
            .min(self.profile.leaf_life / 10)
            .min(self.profile.settle.max(DEBOUNCE));
        let mut retry = FIRST_RETRY;
        loop {
            let wait = match self.reconcile().await {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    interval
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the webhook's certificate could not be looked after; \
                        trying again in {retry:?}"
                    );
                    let wait = retry;
                    retry = (retry * 2).min(INTERVAL);
                    wait
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                // After a failure a change is no reason to hurry; after success it is.
                Some(()) = changes.next(), if retry == FIRST_RETRY => tokio::time::sleep(DEBOUNCE).await,
            }
        }
    }

    /// Something happens to one of the two objects.
    fn changes(&self) -> BoxStream<'static, ()> {
        let secret = watch_object(self.secrets.clone(), &self.places.secret).default_backoff();
        let configuration =
            watch_object(self.configurations.clone(), &self.places.webhook_configuration).default_backoff();
        // An error is logged where the same object is read anyway.
        let secret = secret.filter_map(async |event| event.ok().map(drop));
        let configuration = configuration.filter_map(async |event| event.ok().map(drop));
        select(secret.boxed(), configuration.boxed()).boxed()
    }

    /// One look at everything.
    async fn reconcile(&mut self) -> anyhow::Result<()> {
        // Another replica may write between reading and writing: then its word counts, and is read.
        for _ in 0..5 {
            if let Some(material) = self.secret().await? {
                return self.use_material(&material).await;
            }
        }
        anyhow::bail!("Secret {} is written by somebody else all the time", self.secret_name())
    }

    /// The Secret as it is after this replica has done what is to be done; `None` when another one was faster.
    async fn secret(&mut self) -> anyhow::Result<Option<Material>> {
        let name = self.secret_name();
        let found = self
            .secrets
            .get_opt(&self.places.secret)
            .await
            .with_context(|| format!("reading Secret {name}"))?;
        self.metrics.secret_is_there(found.is_some());
        let mut secret = found.with_context(|| {
            format!("there is no Secret {name}: it is part of the chart, `helm upgrade` brings it back")
        })?;
        // The chart makes it empty.
        let data = secret.data.as_ref().filter(|data| !data.is_empty());
        let current = data.and_then(|data| {
            Material::from_secret(data)
                .inspect_err(|why| tracing::warn!("Secret {name} is not usable and is filled anew: {why:#}"))
                .ok()
        });
        let trusted = current.as_ref().is_some_and(|material| self.trusts(&bundle(material)));
        let plan = certs::plan(current.as_ref(), &self.profile, clock::now(), trusted)?;
        let next = match plan {
            Plan::Keep => return Ok(current),
            Plan::Write(next) => next,
        };
        secret.data = Some(next.to_secret());
        // With the resourceVersion that was read.
        let written = self
            .secrets
            .replace(&self.places.secret, &PostParams::default(), &secret)
            .await;
        match written {
            Ok(_) => {
                let end = next.expiry()?;
                tracing::info!(leaf_ends = %end.leaf, ca_ends = %end.ca, "the webhook's certificate was made anew");
                Ok(Some(*next))
            }
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(None),
            Err(error) => Err(error).with_context(|| format!("writing Secret {name}")),
        }
    }

    async fn use_material(&mut self, material: &Material) -> anyhow::Result<()> {
        self.serving.swap(material.certified_key()?);
        let end = material.expiry()?;
        self.metrics.expiry(end.leaf, end.ca);
        self.publish(bundle(material)).await?;
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Brings the bundle into every webhook of the configuration.
    async fn publish(&mut self, bundle: ByteString) -> anyhow::Result<()> {
        let name = &self.places.webhook_configuration;
        let configuration = self.configurations.get(name).await.with_context(|| {
            format!(
                "reading MutatingWebhookConfiguration {name}: it is part of the chart, `helm upgrade` brings it back"
            )
        })?;
        let webhooks = configuration.webhooks.iter().flatten();
        let stale: Vec<_> = webhooks
            .filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        if !stale.is_empty() {
            // A strategic merge finds the webhooks by their names and leaves everything else as it is.
            let patch = Patch::Strategic(json!({"webhooks": stale}));
            let written = self.configurations.patch(name, &PatchParams::default(), &patch).await;
            written.with_context(|| format!("writing the CA bundle into MutatingWebhookConfiguration {name}"))?;
            tracing::info!(
                webhooks = stale.len(),
                "the CA bundle of the webhook configuration was renewed"
            );
        }
        match &self.in_force {
            Some((known, _)) if *known == bundle && stale.is_empty() => {}
            _ => self.in_force = Some((bundle, Instant::now())),
        }
        Ok(())
    }

    /// Whether kube-apiserver has had time to read this bundle.
    fn trusts(&self, bundle: &ByteString) -> bool {
        let in_force = self.in_force.as_ref().filter(|(known, _)| known == bundle);
        in_force.is_some_and(|(_, since)| since.elapsed() >= self.profile.settle)
    }

    fn secret_name(&self) -> String {
        format!("{}/{}", self.places.namespace, self.places.secret)
    }
}

fn bundle(material: &Material) -> ByteString {
    ByteString(material.bundle.concat().into_bytes())
}
