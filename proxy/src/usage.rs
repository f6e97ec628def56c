//! What all workers use together, so that a limit holds for the sidecar as a whole.
//!
//! A worker asks for a count when it hears of a Service or calls an endpoint for the first time, and keeps it: no request looks for one. A count
//! is forgotten with the last who keeps it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use outrigger_proxy_transport::net::count::Count;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::ServiceName;

/// A storm is over when nothing was refused for so long.
const CALM: Duration = Duration::from_secs(10);
/// With so many, those are looked for that are forgotten.
const LOOK_AT: usize = 256;

/// What is counted for one key.
#[derive(Debug, Default)]
pub struct Usage {
    /// Requests that are not answered to the last byte.
    pub requests: Arc<Count>,
    /// Requests that wait for a connection.
    pub pending: Arc<Count>,
    /// Connections that are open, idle ones too.
    pub connections: Arc<Count>,
    /// What was refused.
    pub storm: Storm,
}

/// What is counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// What the app calls,
    pub service: ServiceName,
    /// and where its requests go.
    pub backend: ServiceName,
    /// All of that, or less.
    pub part: Part,
}

/// A part of what goes from a Service to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    All,
    /// Requests that take a route.
    Route(Arc<str>),
    Endpoint(SocketAddr),
}

/// The counts of this sidecar.
#[derive(Debug, Default)]
pub struct Registry(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    counts: HashMap<Key, Weak<Usage>>,
    look_at: usize,
}

/// A time in which limits refuse something: it begins with the first refusal, and ends when there was none for [`CALM`]. For whom it is told:
/// each refusal by itself would be thousands of lines.
#[derive(Debug, Default)]
pub struct Storm {
    open: AtomicBool,
    refused: AtomicU64,
    /// Milliseconds since the first refusal of all.
    last: AtomicU64,
    began: OnceLock<Instant>,
}

impl Registry {
    /// Those of a key.
    pub fn of(&self, key: Key) -> Arc<Usage> {
        let Known { counts, look_at } = &mut *self.0.lock();
        if counts.len() >= (*look_at).max(LOOK_AT) {
            counts.retain(|_, known| known.strong_count() > 0);
            *look_at = 2 * counts.len();
        }
        let known = counts.entry(key).or_default();
        known.upgrade().unwrap_or_else(|| {
            let new = Arc::<Usage>::default();
            *known = Arc::downgrade(&new);
            new
        })
    }
}

impl Storm {
    /// Something was refused. `true`: the storm begins.
    pub fn refused(&self, now: Instant) -> bool {
        let began = *self.began.get_or_init(|| now);
        let since = now.saturating_duration_since(began).as_millis();
        self.last.fetch_max(since as u64, SeqCst);
        self.refused.fetch_add(1, SeqCst);
        !self.open.swap(true, SeqCst)
    }

    /// Whether there is one.
    #[cfg(test)]
    pub fn is_open(&self) -> bool {
        self.open.load(SeqCst)
    }

    /// How many were refused in the storm that is over from now on. `None`: there is none, or it goes on.
    pub fn is_over(&self, now: Instant) -> Option<u64> {
        if !self.open.load(SeqCst) {
            return None;
        }
        let last = *self.began.get()? + Duration::from_millis(self.last.load(SeqCst));
        let calm = now.saturating_duration_since(last) >= CALM;
        // One worker says so.
        (calm && self.open.swap(false, SeqCst)).then(|| self.refused.swap(0, SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServiceName {
        ServiceName {
            namespace: "shop".into(),
            name: name.into(),
            port: 80,
        }
    }

    fn key(backend: &str, part: Part) -> Key {
        Key {
            service: name("orders"),
            backend: name(backend),
            part,
        }
    }

    #[test]
    fn one_key_is_counted_once_as_long_as_somebody_keeps_it() {
        let registry = Registry::default();
        let counts = registry.of(key("orders", Part::All));
        assert!(Arc::ptr_eq(&counts, &registry.of(key("orders", Part::All))));
        for other in [
            key("orders-2", Part::All),
            key("orders", Part::Route("r".into())),
            key("orders", Part::Endpoint(([10, 0, 0, 1], 80).into())),
        ] {
            assert!(!Arc::ptr_eq(&counts, &registry.of(other)));
        }
        for port in 0..5000 {
            registry.of(key("orders", Part::Endpoint(([10, 0, 0, 1], port).into())));
        }
        assert!(
            registry.0.lock().counts.len() <= LOOK_AT,
            "what nobody keeps is forgotten"
        );
        assert!(Arc::ptr_eq(&counts, &registry.of(key("orders", Part::All))));
    }

    #[test]
    fn a_storm_begins_once_and_is_over_once() {
        let (storm, mut now) = (Storm::default(), Instant::now());
        assert_eq!(storm.is_over(now), None);
        assert!(storm.refused(now), "it begins");
        // With breaks that are no calm.
        for _ in 0..50 {
            now += CALM - Duration::from_millis(1);
            assert_eq!(storm.is_over(now), None);
            assert!(!storm.refused(now), "it goes on");
        }
        now += CALM;
        assert_eq!(storm.is_over(now), Some(51));
        assert_eq!(storm.is_over(now), None, "once");
        assert!(storm.refused(now), "another one begins");
    }
}
