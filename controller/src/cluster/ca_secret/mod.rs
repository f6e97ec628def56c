//! The CA's Secret, which the chart makes empty: filled, read again whenever it changes, and filled again with the same CA where
//! it was deleted and the chart brought it back.

mod fields;
mod follow;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};

use crate::metrics::Metrics;
use outrigger_issuer::ca::Ca;
use outrigger_issuer::ca::rotation::{Now, Previous, Rotation};
use outrigger_issuer::clock;

/// The Secret that holds the CA.
#[derive(Clone)]
pub struct CaSecret {
    api: Api<Secret>,
    namespace: String,
    name: String,
    trust_domain: String,
    ttl: Duration,
}

impl CaSecret {
    /// The Secret of this name in the controller's namespace. SVIDs live for `ttl`.
    pub fn new(client: Client, namespace: &str, name: &str, trust_domain: &str, ttl: Duration) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            trust_domain: trust_domain.to_owned(),
            ttl,
        }
    }

    /// The CA in the Secret, and what is left of the one before it. Where it is empty, one is made; of several replicas that make
    /// one at the same time, the first wins, and all use it.
    ///
    /// # Errors
    /// When the API server cannot be asked, there is no Secret, or it holds no usable CA.
    pub async fn read_or_make(&self) -> anyhow::Result<Rotation> {
        let found = self.api.get_opt(&self.name).await.context("reading the CA's Secret")?;
        let secret = found.with_context(|| {
            let name = &self.name;
            format!("there is no Secret {name}: it is part of the chart, `helm upgrade` brings it back")
        })?;
        if !fields::is_empty(&secret) {
            return self.parse(&secret);
        }
        let made = self.begin(Ca::generate(&self.trust_domain)?, None)?;
        if self.fill(secret, &made).await? {
            tracing::info!(secret = self.name, "made a new CA");
            return Ok(made);
        }
        let secret = self.api.get(&self.name).await;
        self.parse(&secret.context("reading the CA's Secret, which another replica filled")?)
    }

    fn parse(&self, secret: &Secret) -> anyhow::Result<Rotation> {
        let wanted = fields::wanted(secret).and_then(|pem| {
            let ca = Ca::from_pem(pem, &self.trust_domain, clock::now());
            ca.map_err(anyhow::Error::from)
        });
        let wanted = wanted.with_context(|| format!("the Secret {}", self.name))?;
        let previous = fields::previous(secret).unwrap_or_else(|e| {
            tracing::warn!(secret = self.name, error = %format!("{e:#}"), "what is said of the CA before this one is passed over");
            None
        });
        self.begin(wanted, previous)
    }

    fn begin(&self, wanted: Ca, previous: Option<Previous>) -> anyhow::Result<Rotation> {
        let rotation = Rotation::begin(wanted, previous, &self.trust_domain, self.ttl, Now::read());
        rotation.with_context(|| format!("the Secret {}", self.name))
    }

    /// Fills the Secret as it was read; false where somebody has written it since.
    async fn fill(&self, mut secret: Secret, rotation: &Rotation) -> anyhow::Result<bool> {
        fields::set_wanted(&mut secret, rotation.wanted());
        fields::set_previous(&mut secret, rotation.previous())?;
        self.replace(&secret).await
    }

    /// Keeps what is left of the CA before in the Secret as it was read; false where somebody has written it since.
    async fn keep(&self, mut secret: Secret, previous: Option<&Previous>) -> anyhow::Result<bool> {
        fields::set_previous(&mut secret, previous)?;
        self.replace(&secret).await
    }

    async fn replace(&self, secret: &Secret) -> anyhow::Result<bool> {
        match self.api.replace(&self.name, &PostParams::default(), secret).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(e) => Err(e).context("writing the CA's Secret"),
        }
    }

    /// Says that the Secret is gone: in the log, a metric, and an event.
    async fn missing(&self, metrics: &Metrics) {
        metrics.ca_error();
        metrics.secret_is_there(false);
        let note = "The CA is in use until the last controller ends, and is lost then. `helm upgrade` brings the Secret back, and it \
                    is filled with the same CA. To change the CA, edit the Secret.";
        tracing::error!(secret = self.name, "the CA's Secret was deleted. {note}");
        let client = self.api.clone().into_client();
        let event = Event {
            type_: EventType::Warning,
            reason: "SecretDeleted".to_owned(),
            note: Some(note.to_owned()),
            action: "Watch".to_owned(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            ..ObjectReference::default()
        };
        let recorder = Recorder::new(client, Reporter::from("outrigger-controller"));
        if let Err(e) = recorder.publish(&event, &about).await {
            tracing::warn!(error = %e, "the event about it could not be written");
        }
    }
}
