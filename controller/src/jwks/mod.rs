//! Keys of the issuers of tokens, and CA certificates: fetched here, so that no sidecar calls where a policy says, and handed to the index.
//!
//! Each source has a task, which fetches, waits as long as the keys are good, and fetches again; sooner, and at most once a minute,
//! when a sidecar has met a token of a key that is not known. What was fetched last stays while nothing better comes. Whoever writes
//! policies can make the controller wait for servers that never answer, and read what is no set of keys: so each namespace has a bounded
//! number of sources, and of fetches at one time; and what costs more than the wait for an answer is done in turns by namespace, each for
//! a short while ([`fetch`]). What is read is read beside the threads that serve sidecars, one set after the other.

mod addresses;
mod certificates;
mod fetch;
mod get;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use outrigger_access::jwt::KeySet;
use outrigger_issuer::clock;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

pub use self::addresses::may_be_called;
pub(crate) use self::addresses::written_in;
pub use self::fetch::{Failure, Fetched, Fetcher, World};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::objects::keys::{KeyPlace, KeySource};

/// Sources of one namespace.
pub const MAX_SOURCES: usize = 64;
/// Fetches of one namespace at one time.
const PER_NAMESPACE: usize = 2;
/// From one fetch to the next that sidecars asked for.
const ASKED: Duration = Duration::from_secs(60);
/// After failures.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Keeps the index in keys, for ever.
pub async fn run<W: World>(index: Arc<Index>, fetcher: Fetcher<W>, metrics: Arc<Metrics>, random: SmallRng) {
    let (mut sources, mut asked) = (index.key_sources(), index.asked_for_keys());
    let shared = Arc::new(Shared {
        index,
        fetcher,
        metrics,
        random: Mutex::new(random),
    });
    let mut following = Following::default();
    // Those that are there already count as a change.
    sources.mark_changed();
    loop {
        tokio::select! {
            changed = sources.changed() => {
                if changed.is_err() {
                    return;
                }
                // The index is locked by who changes it, and is told of what is refused here.
                let wanted = sources.borrow_and_update().clone();
                following.update(&shared, &wanted);
            }
            source = asked.recv() => {
                // Of those that were missed, sidecars say it again.
                if let Ok(source) = source {
                    following.ask(&source);
                }
            }
        }
    }
}

struct Shared<W> {
    index: Arc<Index>,
    fetcher: Fetcher<W>,
    metrics: Arc<Metrics>,
    random: Mutex<SmallRng>,
}

/// The sources that are followed, by namespace.
#[derive(Default)]
struct Following(HashMap<Arc<str>, Namespace>);

struct Namespace {
    fetches: Arc<Semaphore>,
    sources: BTreeMap<KeySource, Follower>,
}

/// Ends when it is dropped.
struct Follower {
    asked: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Following {
    /// Follows those that are new, and no more those that are gone.
    fn update<W: World>(&mut self, shared: &Arc<Shared<W>>, wanted: &BTreeSet<KeySource>) {
        for namespace in self.0.values_mut() {
            namespace.sources.retain(|source, _| wanted.contains(source));
        }
        self.0.retain(|_, namespace| !namespace.sources.is_empty());
        for source in wanted {
            let namespace = self
                .0
                .entry(Arc::clone(&source.namespace))
                .or_insert_with(|| Namespace {
                    fetches: Arc::new(Semaphore::new(PER_NAMESPACE)),
                    sources: BTreeMap::new(),
                });
            if namespace.sources.contains_key(source) {
                continue;
            }
            if namespace.sources.len() >= MAX_SOURCES {
                let why = format!("the policies of the namespace have keys at more than {MAX_SOURCES} places");
                shared.index.set_keys(source, Err(why), clock::now());
                continue;
            }
            let asked = Arc::new(Notify::new());
            let follow = follow(
                Arc::clone(shared),
                source.clone(),
                Arc::clone(&namespace.fetches),
                Arc::clone(&asked),
            );
            let task = tokio::spawn(follow).abort_handle();
            namespace.sources.insert(source.clone(), Follower { asked, task });
        }
    }

    fn ask(&self, source: &KeySource) {
        let namespace = self.0.get(&source.namespace);
        if let Some(follower) = namespace.and_then(|namespace| namespace.sources.get(source)) {
            follower.asked.notify_one();
        }
    }
}

async fn follow<W: World>(shared: Arc<Shared<W>>, source: KeySource, fetches: Arc<Semaphore>, asked: Arc<Notify>) {
    let mut failures = 0;
    loop {
        let result = {
            // It is never closed.
            let _own = fetches.acquire().await;
            // This answers all that was asked until now.
            let _ = asked.notified().now_or_never();
            match shared.fetcher.fetch(&source).await {
                Ok(fetched) => {
                    let of = source.clone();
                    shared
                        .fetcher
                        .read(&source, fetched, move |bytes| read(&of, bytes))
                        .await
                }
                Err(why) => Err(why),
            }
        };
        let ended = Instant::now();
        shared.metrics.keys_fetched(result.is_ok());
        failures = if result.is_ok() { 0 } else { failures + 1 };
        match result {
            Err(Failure { why, gone: true }) => shared.index.forget_keys(&source, why, clock::now()),
            result => {
                let result = result.map_err(|failure| failure.why);
                shared.index.set_keys(&source, result, clock::now());
            }
        }
        let until = ended + shared.pause(&source, failures);
        tokio::select! {
            () = sleep_until(until) => {}
            () = asked.notified() => sleep_until(until.min(ended + ASKED)).await,
        }
    }
}

fn read(source: &KeySource, bytes: &[u8]) -> Result<String, Failure> {
    match source.place {
        // Whoever takes certificates away takes trust away.
        KeyPlace::Certificates(_) => certificates::certificates(bytes).map_err(Failure::gone),
        _ => Ok(usable(source, bytes)?),
    }
}

/// What sidecars get of a JWK Set. What a status says of one quotes nothing of it: its reader is who wrote the policy, and need not be
/// somebody who may read what is there.
fn usable(source: &KeySource, json: &[u8]) -> Result<String, String> {
    let (namespace, place) = (&source.namespace, &source.place);
    let reading = KeySet::read(json).map_err(|e| {
        let why = e.to_string();
        match why.split_once(": ") {
            None => why,
            Some((summary, _)) => {
                tracing::warn!(%namespace, %place, "{why}");
                format!("{summary}; the log of the controller has more")
            }
        }
    })?;
    if !reading.unusable.is_empty() {
        let why = reading.unusable.join("; ");
        tracing::info!(%namespace, %place, "some keys are not used: {why}");
    }
    Ok(reading.usable.to_json())
}

impl<W> Shared<W> {
    /// Never the same for all that began together.
    fn pause(&self, source: &KeySource, failures: u32) -> Duration {
        let full = match failures {
            0 => source.cache,
            // Two to the 6th is beyond the maximum.
            n => RETRY.0.saturating_mul(1 << (n - 1).min(6)).min(RETRY.1),
        };
        full.mul_f64(self.random.lock().random_range(0.75..=1.0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
