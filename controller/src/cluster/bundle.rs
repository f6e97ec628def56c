//! The trust bundle, as a ConfigMap: in Outrigger's own namespace, from where the injector writes it into pods; and in every
//! namespace that may have pods which mount it, those of `outrigger inject` and of the version before.
//!
//! It is never taken away: a namespace that has lost its label may still have pods with sidecars, and roots are public.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use outrigger_api::labels::{TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use outrigger_issuer::ca::Ca;

/// From one write of a ConfigMap to the next of the same: twice as long each time, and as the first time again when it was left
/// alone for the longest. Somebody else may write it too, and without end: a tenant, or a replica whose watch of the CA hangs.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What is in the ConfigMaps now, by namespace: the bundle, or None where the ConfigMap has none.
type Present = BTreeMap<Arc<str>, Option<String>>;

/// Keeps the ConfigMaps equal to the CA's bundle, for ever. `home` is the controller's own namespace.
pub async fn run(
    client: Client,
    home: String,
    mut ca: watch::Receiver<Arc<Ca>>,
    mut namespaces: watch::Receiver<BTreeSet<Arc<str>>>,
) {
    let config = watcher::Config::default().fields(&format!("metadata.name={TRUST_BUNDLE_CONFIG_MAP}"));
    let api: Api<ConfigMap> = Api::all(client.clone());
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut present = Present::new();
    let mut pauses = Pauses::default();
    let mut listed = false;
    let mut again = None;
    loop {
        if listed {
            let mut wanted = namespaces.borrow_and_update().clone();
            wanted.insert(home.as_str().into());
            let bundle = ca.borrow_and_update().bundle_pem();
            again = write(&client, &wanted, &bundle, &mut present, &mut pauses).await;
        }
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(event)) => listed |= note(event, &mut present),
                Ok(None) => return,
                Err(e) => tracing::warn!(error = %e, "watching the trust bundle's ConfigMaps failed; trying again"),
            },
            Ok(()) = ca.changed() => {}
            Ok(()) = namespaces.changed() => {}
            () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
        }
    }
}

/// True when a list is complete.
fn note(event: watcher::Event<ConfigMap>, present: &mut Present) -> bool {
    let namespace = |map: &ConfigMap| Arc::from(map.metadata.namespace.as_deref().unwrap_or_default());
    match event {
        watcher::Event::Init => present.clear(),
        watcher::Event::InitDone => return true,
        watcher::Event::Delete(map) => drop(present.remove(&namespace(&map))),
        watcher::Event::Apply(map) | watcher::Event::InitApply(map) => {
            let bundle = map.data.as_ref().and_then(|data| data.get(TRUST_BUNDLE_KEY)).cloned();
            present.insert(namespace(&map), bundle);
        }
    }
    false
}

/// The namespaces whose ConfigMap is absent or another's.
fn to_write<'a>(wanted: &'a BTreeSet<Arc<str>>, bundle: &str, present: &Present) -> Vec<&'a Arc<str>> {
    let is_equal = |namespace: &Arc<str>| present.get(namespace).is_some_and(|now| now.as_deref() == Some(bundle));
    wanted.iter().filter(|namespace| !is_equal(namespace)).collect()
}

/// Writes what may be written now. Gives when to come again, if something is left.
async fn write(
    client: &Client,
    wanted: &BTreeSet<Arc<str>>,
    bundle: &str,
    present: &mut Present,
    pauses: &mut Pauses,
) -> Option<Instant> {
    pauses.forget(Instant::now());
    for namespace in to_write(wanted, bundle, present) {
        if !pauses.begin(namespace, Instant::now()) {
            continue;
        }
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": TRUST_BUNDLE_CONFIG_MAP,
                "labels": {"app.kubernetes.io/managed-by": "outrigger-controller"},
            },
            "data": {TRUST_BUNDLE_KEY: bundle},
        });
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let params = PatchParams::apply("outrigger-controller").force();
        match api.patch(TRUST_BUNDLE_CONFIG_MAP, &params, &Patch::Apply(&map)).await {
            Ok(_) => {
                tracing::info!(%namespace, "wrote the trust bundle");
                present.insert(namespace.clone(), Some(bundle.to_owned()));
            }
            Err(e) => {
                tracing::warn!(%namespace, error = %e, "cannot write the trust bundle; trying again");
            }
        }
    }
    let left = to_write(wanted, bundle, present);
    left.into_iter().filter_map(|namespace| pauses.until(namespace)).min()
}

/// When each ConfigMap that was written lately may be written again.
#[derive(Default)]
struct Pauses(BTreeMap<Arc<str>, Pause>);

struct Pause {
    length: Duration,
    until: Instant,
}

impl Pauses {
    /// Whether it may be written; if so, the next pause begins.
    fn begin(&mut self, namespace: &Arc<str>, now: Instant) -> bool {
        let (first, longest) = PAUSE;
        let length = match self.0.get(namespace) {
            Some(pause) if now < pause.until => return false,
            Some(pause) if !pause.is_over(now) => longest.min(pause.length * 2),
            _ => first,
        };
        let until = now + length;
        self.0.insert(namespace.clone(), Pause { length, until });
        true
    }

    /// Forgets those that were left alone.
    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, pause| !pause.is_over(now));
    }

    fn until(&self, namespace: &Arc<str>) -> Option<Instant> {
        self.0.get(namespace).map(|pause| pause.until)
    }
}

impl Pause {
    /// It was left alone for the longest since its last pause.
    fn is_over(&self, now: Instant) -> bool {
        now >= self.until + PAUSE.1
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
