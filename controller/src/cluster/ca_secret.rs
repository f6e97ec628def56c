//! The CA's Secret, which the chart makes empty: filled, read again whenever it changes, and filled again with the same CA where
//! it was deleted and the chart brought it back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use crate::ca::{Ca, CaPem};
use crate::metrics::Metrics;

/// The Secret is also read on a timer: a watch that hangs must not let a certificate expire.
const REREAD: Duration = Duration::from_secs(300);

/// The Secret that holds the CA.
#[derive(Clone)]
pub struct CaSecret {
    api: Api<Secret>,
    namespace: String,
    name: String,
    trust_domain: String,
}

impl CaSecret {
    /// The Secret of this name in the controller's namespace.
    pub fn new(client: Client, namespace: &str, name: &str, trust_domain: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            trust_domain: trust_domain.to_owned(),
        }
    }

    /// The CA in the Secret. Where it is empty, one is made; of several replicas that make one at the same time, the first
    /// wins, and all use it.
    ///
    /// # Errors
    /// When the API server cannot be asked, there is no Secret, or it holds no usable CA.
    pub async fn read_or_make(&self) -> anyhow::Result<Ca> {
        let found = self.api.get_opt(&self.name).await.context("reading the CA's Secret")?;
        let secret = found.with_context(|| {
            let name = &self.name;
            format!("there is no Secret {name}: it is part of the chart, `helm upgrade` brings it back")
        })?;
        if !is_empty(&secret) {
            return self.parse(&secret);
        }
        let ca = Ca::generate(&self.trust_domain)?;
        if self.fill(secret, &ca).await? {
            tracing::info!(secret = self.name, "made a new CA");
            return Ok(ca);
        }
        let secret = self.api.get(&self.name).await;
        self.parse(&secret.context("reading the CA's Secret, which another replica filled")?)
    }

    /// Puts the CA into the Secret as it was read; false where somebody has written it since.
    async fn fill(&self, mut secret: Secret, ca: &Ca) -> anyhow::Result<bool> {
        secret.data = Some(data(ca));
        match self.api.replace(&self.name, &PostParams::default(), &secret).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(e) => Err(e).context("filling the CA's Secret"),
        }
    }

    /// Keeps `ca` as the Secret is, for ever. A Secret that is broken changes nothing: the last good CA is kept. One that is
    /// empty, because it was deleted and the chart brought it back, is filled with that CA: with the last process its key would
    /// be lost, and every workload would need a new root.
    pub async fn follow(self, ca: watch::Sender<Arc<Ca>>, metrics: Arc<Metrics>) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = std::pin::pin!(watcher(self.api.clone(), config).default_backoff());
        loop {
            let secret = tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret))) => secret,
                    Ok(Some(watcher::Event::Delete(_))) => {
                        self.missing(&metrics).await;
                        continue;
                    }
                    Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => continue,
                    Ok(None) => return,
                    Err(e) => {
                        tracing::warn!(error = %e, "watching the CA's Secret failed; trying again");
                        continue;
                    }
                },
                () = tokio::time::sleep(REREAD) => match self.api.get_opt(&self.name).await {
                    Ok(Some(secret)) => secret,
                    Ok(None) => {
                        self.missing(&metrics).await;
                        continue;
                    }
                    Err(e) => {
                        tracing::warn!(error = %e, "reading the CA's Secret failed; trying again");
                        continue;
                    }
                },
            };
            metrics.secret_is_there(true);
            if is_empty(&secret) {
                let current = Arc::clone(&ca.borrow());
                match self.fill(secret, &current).await {
                    Ok(true) => tracing::info!(secret = self.name, "the CA's Secret was empty, and has its CA again"),
                    // Another replica was first; what it put there is seen next.
                    Ok(false) => {}
                    Err(e) => tracing::error!(
                        secret = self.name,
                        error = %format!("{e:#}"),
                        "the CA is in use until this process ends, and is lost then"
                    ),
                }
                continue;
            }
            match self.parse(&secret) {
                Ok(new) if new.pem() == ca.borrow().pem() => {}
                Ok(new) => {
                    tracing::info!(secret = self.name, roots = new.bundle().len(), "the CA has changed");
                    if lost_roots(&ca.borrow(), &new) > 0 {
                        metrics.ca_error();
                        tracing::warn!(
                            secret = self.name,
                            "a root that was trusted is gone from the CA's Secret: until they have renewed their SVIDs, workloads \
                             below it are refused; keep it in ca.crt beside the new one for as long as an SVID lives"
                        );
                    }
                    ca.send_replace(Arc::new(new));
                }
                Err(e) => {
                    metrics.ca_error();
                    tracing::error!(secret = self.name, error = %format!("{e:#}"), "the CA's Secret cannot be used; the last good CA is kept");
                }
            }
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

    fn parse(&self, secret: &Secret) -> anyhow::Result<Ca> {
        let field = |name: &str| -> anyhow::Result<Option<String>> {
            let Some(ByteString(bytes)) = secret.data.as_ref().and_then(|data| data.get(name)) else {
                return Ok(None);
            };
            let text = String::from_utf8(bytes.clone());
            Ok(Some(text.with_context(|| {
                format!("{name} of the Secret {} is not text", self.name)
            })?))
        };
        let (Some(certificates), Some(key)) = (field("tls.crt")?, field("tls.key")?) else {
            bail!("the Secret {} needs tls.crt and tls.key", self.name);
        };
        let pem = CaPem {
            certificates,
            key,
            roots: field("ca.crt")?,
        };
        Ca::from_pem(pem, &self.trust_domain, SystemTime::now()).with_context(|| format!("the Secret {}", self.name))
    }
}

/// As the chart makes it.
fn is_empty(secret: &Secret) -> bool {
    secret.data.as_ref().is_none_or(BTreeMap::is_empty)
}

fn data(ca: &Ca) -> BTreeMap<String, ByteString> {
    let pem = ca.pem();
    let fields = [
        ("tls.crt", Some(&pem.certificates)),
        ("tls.key", Some(&pem.key)),
        ("ca.crt", pem.roots.as_ref()),
    ];
    let present = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
    present
        .map(|(name, value)| (name.to_owned(), ByteString(value.clone().into_bytes())))
        .collect()
}

/// How many roots were trusted and are not any more.
fn lost_roots(old: &Ca, new: &Ca) -> usize {
    old.bundle().iter().filter(|root| !new.bundle().contains(root)).count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::lost_roots;
    use crate::ca::{Ca, CaPem};
    use std::time::SystemTime;

    #[test]
    fn a_root_that_is_gone_is_seen() {
        let [old, new] = [(); 2].map(|()| Ca::generate("mesh.test").unwrap());
        assert_eq!(lost_roots(&old, &old), 0);
        assert_eq!(lost_roots(&old, &new), 1);
        let both = CaPem {
            roots: Some(old.bundle_pem() + &new.bundle_pem()),
            ..new.pem().clone()
        };
        let both = Ca::from_pem(both, "mesh.test", SystemTime::now()).unwrap();
        assert_eq!((lost_roots(&old, &both), lost_roots(&both, &new)), (0, 1));
    }
}
