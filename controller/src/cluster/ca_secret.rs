//! The CA's Secret: made when it is absent, read again whenever it changes, and put back when it is deleted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
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
    name: String,
    trust_domain: String,
}

impl CaSecret {
    /// The Secret of this name in the controller's namespace.
    pub fn new(client: Client, namespace: &str, name: &str, trust_domain: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            trust_domain: trust_domain.to_owned(),
        }
    }

    /// The CA in the Secret. Where there is none, one is made; of several replicas that make one at the same time, the
    /// first wins, and all use it.
    ///
    /// # Errors
    /// When the API server cannot be asked, or the Secret holds no usable CA.
    pub async fn read_or_make(&self) -> anyhow::Result<Ca> {
        if let Some(secret) = self.api.get_opt(&self.name).await.context("reading the CA's Secret")? {
            return self.parse(&secret);
        }
        let ca = Ca::generate(&self.trust_domain)?;
        match self.api.create(&PostParams::default(), &self.secret(&ca)).await {
            Ok(_) => {
                tracing::info!(secret = self.name, "made a new CA");
                Ok(ca)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let secret = self
                    .api
                    .get(&self.name)
                    .await
                    .context("reading the CA's Secret, which another replica made")?;
                self.parse(&secret)
            }
            Err(e) => Err(e).context("making the CA's Secret"),
        }
    }

    /// Keeps `ca` as the Secret is, for ever. A Secret that is broken changes nothing: the last good CA is kept. One that is
    /// deleted is put back with that CA: with the last process its key would be lost, and every workload would need a new root.
    pub async fn follow(self, ca: watch::Sender<Arc<Ca>>, metrics: Arc<Metrics>) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = std::pin::pin!(watcher(self.api.clone(), config).default_backoff());
        loop {
            let secret = tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret))) => secret,
                    Ok(Some(watcher::Event::Delete(_))) => {
                        metrics.ca_error();
                        tracing::error!(secret = self.name, "the CA's Secret was deleted, and is put back; to change the CA, edit it");
                        let current = Arc::clone(&ca.borrow());
                        self.put_back(&current).await;
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
                        let current = Arc::clone(&ca.borrow());
                        self.put_back(&current).await;
                        continue;
                    }
                    Err(e) => {
                        tracing::warn!(error = %e, "reading the CA's Secret failed; trying again");
                        continue;
                    }
                },
            };
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

    async fn put_back(&self, ca: &Ca) {
        match self.api.create(&PostParams::default(), &self.secret(ca)).await {
            Ok(_) => tracing::info!(secret = self.name, "the CA's Secret is there again"),
            // Another replica was first; what it put there is seen next.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(e) => tracing::error!(
                secret = self.name,
                error = %e,
                "the CA's Secret cannot be put back: its CA is in use until this process ends, and is lost then"
            ),
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
            bail!(
                "the Secret {} needs tls.crt and tls.key (type kubernetes.io/tls)",
                self.name
            );
        };
        let pem = CaPem {
            certificates,
            key,
            roots: field("ca.crt")?,
        };
        Ca::from_pem(pem, &self.trust_domain, SystemTime::now()).with_context(|| format!("the Secret {}", self.name))
    }

    fn secret(&self, ca: &Ca) -> Secret {
        let pem = ca.pem();
        let mut data = std::collections::BTreeMap::new();
        for (name, value) in [
            ("tls.crt", Some(&pem.certificates)),
            ("tls.key", Some(&pem.key)),
            ("ca.crt", pem.roots.as_ref()),
        ] {
            data.extend(value.map(|value| (name.to_owned(), ByteString(value.clone().into_bytes()))));
        }
        Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data),
            ..Secret::default()
        }
    }
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
