//! The keys of tokens' issuers, between the policies, who fetches them, and the sidecars.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use super::Index;
use crate::access::PodKey;
use crate::answers::provider_of;
use crate::objects::ObjectName;
use crate::objects::keys::{KeySource, address_of};

/// Questions that wait to be heard. Sidecars repeat those that are lost.
const ASKED: usize = 256;

pub(super) struct KeyWatch {
    pub(super) sources: watch::Sender<BTreeSet<KeySource>>,
    asked: broadcast::Sender<KeySource>,
    /// Counts results.
    results: watch::Sender<u64>,
}

impl Default for KeyWatch {
    fn default() -> Self {
        Self {
            sources: watch::Sender::default(),
            asked: broadcast::Sender::new(ASKED),
            results: watch::Sender::new(0),
        }
    }
}

impl Index {
    /// Where the keys are that policies want.
    pub(crate) fn key_sources(&self) -> watch::Receiver<BTreeSet<KeySource>> {
        self.keys.sources.subscribe()
    }

    /// Sources of which a sidecar says that a token's key is not among theirs.
    pub(crate) fn asked_for_keys(&self) -> broadcast::Receiver<KeySource> {
        self.keys.asked.subscribe()
    }

    /// What came of fetching: a JWK Set of usable keys, or why there is none, in words for a status.
    pub(crate) fn set_keys(&self, source: &KeySource, result: Result<String, String>, now: SystemTime) {
        self.change(|store, touched| store.set_keys(source, result, &self.room, now, touched));
        self.keys.results.send_modify(|count| *count += 1);
    }

    /// The API server has said that there is nothing, or nothing of use: what came last does not hold any more.
    pub(crate) fn forget_keys(&self, source: &KeySource, why: String, now: SystemTime) {
        self.change(|store, touched| store.forget_keys(source, why, now, touched));
        self.keys.results.send_modify(|count| *count += 1);
    }

    /// Waits until the keys of all providers are there, and not longer than so long.
    pub(crate) async fn first_keys(&self, limit: Duration) {
        let mut results = self.keys.results.subscribe();
        // The sender is the index itself.
        let all = results.wait_for(|_| self.read(|store| store.has_all_keys()));
        let _ = timeout(limit, all).await;
    }

    /// Where a Service is asked.
    ///
    /// # Errors
    /// Why it cannot be, in words for a status.
    pub(crate) fn service_address(&self, service: &ObjectName, port: u16) -> Result<SocketAddr, String> {
        self.read(|store| address_of(store.services.get(service), &service.name, port))
    }

    /// Where kube-proxy may send what is sent to the address, if that is a Service's: the first of its endpoints of which this is so.
    pub(crate) fn endpoint_behind(&self, address: IpAddr, is_it: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        self.read(|store| {
            let (service, _) = store.service_at(address)?;
            let mut slices = store.slices_of(service);
            slices.find_map(|slice| {
                let endpoints = slice.endpoints.iter().map(|endpoint| endpoint.address);
                endpoints.chain(slice.left_out).find(|address| is_it(*address))
            })
        })
    }

    /// A sidecar's word that a provider of one of its pod's policies has a key that is not known. What is of other pods is no business
    /// of this one.
    pub(super) fn ask_for_keys(&self, pod: &PodKey, policy: &str, provider: &str) {
        let source = self.read(|store| provider_of(store, pod, policy, provider));
        if let Some(source) = source {
            // Nobody listens where nothing is fetched.
            let _ = self.keys.asked.send(source);
        }
    }
}
