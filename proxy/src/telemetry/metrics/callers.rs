//! Who has been let in to the app, on which port, by which method: what `outrigger check --what-if` judges a policy by that is not in force
//! yet.
//!
//! It is shown at `/callers` of the admin port, over the pod's loopback, and not among the metrics: who calls whom is for those who may
//! forward ports to the pod, and a thousand series of each sidecar are more than a Prometheus should keep for a question that is asked
//! seldom.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use http::Method;
use outrigger_api::spiffe::SpiffeId;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::series::{METHOD_NAMES, method_index};

/// Series of a caller, a port and a method; what is beyond is counted together.
const MAX_SERIES: usize = 1000;
/// Behind the methods.
const BYTES: usize = METHOD_NAMES.len();

/// See the module. It is read without a lock, and found by comparing a few names: nothing is hashed or allocated.
pub struct Callers {
    /// In the order of their keys.
    all: ArcSwap<Vec<Arc<Counts>>>,
    /// Held by who adds one.
    adding: Mutex<()>,
    /// Those that are not 0.
    series: AtomicUsize,
    /// Requests and connections beyond [`MAX_SERIES`].
    others: AtomicU64,
    since: Instant,
}

/// One caller at one port.
struct Counts {
    identity: Option<SpiffeId>,
    port: u16,
    /// By method, and of connections of bytes.
    by: [AtomicU64; BYTES + 1],
}

type Key<'a> = (u16, Option<&'a str>);

impl Callers {
    pub(super) fn new() -> Self {
        Self {
            all: ArcSwap::default(),
            adding: Mutex::default(),
            series: AtomicUsize::new(0),
            others: AtomicU64::new(0),
            since: Instant::now(),
        }
    }

    /// A request was let in, of this method, to this port of the app, by whom the peer has proven to be. Without a method: a connection
    /// of bytes.
    pub fn count(&self, identity: Option<&SpiffeId>, port: u16, method: Option<&Method>) {
        let kind = method.map_or(BYTES, method_index);
        let key = (port, identity.map(SpiffeId::as_str));
        let all = self.all.load();
        match find(&all, key) {
            Ok(at) => self.add(&all[at].by[kind]),
            // Before the lock: who fills all series must not make the others wait for one another.
            Err(_) if self.series.load(Relaxed) >= MAX_SERIES => _ = self.others.fetch_add(1, Relaxed),
            Err(_) => self.add_caller(identity, port, kind),
        }
    }

    fn add_caller(&self, identity: Option<&SpiffeId>, port: u16, kind: usize) {
        let _adding = self.adding.lock();
        let all = self.all.load();
        match find(&all, (port, identity.map(SpiffeId::as_str))) {
            Ok(at) => self.add(&all[at].by[kind]),
            Err(at) => {
                let mut more = Vec::clone(&all);
                let by = Default::default();
                more.insert(
                    at,
                    Arc::new(Counts {
                        identity: identity.cloned(),
                        port,
                        by,
                    }),
                );
                self.add(&more[at].by[kind]);
                self.all.store(Arc::new(more));
            }
        }
    }

    fn add(&self, series: &AtomicU64) {
        match series.load(Relaxed) > 0 || self.has_room() {
            true => series.fetch_add(1, Relaxed),
            false => self.others.fetch_add(1, Relaxed),
        };
    }

    /// Takes the room for a series. Two that begin the same one in the same moment take two.
    fn has_room(&self) -> bool {
        let more = |series| (series < MAX_SERIES).then_some(series + 1);
        self.series.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// All of it, for the admin port.
    pub fn page(&self) -> Value {
        let all = self.all.load();
        let series = all.iter().flat_map(|of| {
            let counts = of.by.iter().map(|count| count.load(Relaxed)).enumerate();
            counts.filter(|(_, count)| *count > 0).map(|(at, count)| {
                json!({
                    "identity": of.identity.as_ref().map(SpiffeId::as_str),
                    "port": of.port,
                    "method": METHOD_NAMES.get(at),
                    "count": count,
                })
            })
        });
        json!({
            "seconds": self.since.elapsed().as_secs(),
            "callers": series.collect::<Vec<_>>(),
            "others": self.others.load(Relaxed),
        })
    }
}

fn find(all: &[Arc<Counts>], key: Key<'_>) -> Result<usize, usize> {
    all.binary_search_by(|of| (of.port, of.identity.as_ref().map(SpiffeId::as_str)).cmp(&key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn id(name: &str) -> SpiffeId {
        SpiffeId::new("mesh.test", "shop", name).unwrap()
    }

    #[test]
    fn by_caller_port_and_method() {
        let callers = Callers::new();
        let web = id("web");
        for method in [
            Method::GET,
            Method::GET,
            Method::from_bytes(b"BREW").unwrap(),
            Method::GET,
        ] {
            callers.count(Some(&web), 8080, Some(&method));
        }
        callers.count(None, 8080, None);
        callers.count(Some(&web), 80, Some(&Method::POST));
        let page = callers.page();
        let web = web.as_str();
        let expected = json!([
            {"identity": web, "port": 80, "method": "POST", "count": 1},
            {"identity": null, "port": 8080, "method": null, "count": 1},
            {"identity": web, "port": 8080, "method": "GET", "count": 3},
            {"identity": web, "port": 8080, "method": "_OTHER", "count": 1},
        ]);
        assert_eq!((&page["callers"], &page["others"]), (&expected, &json!(0)));
    }

    /// Whoever calls, with however many identities and methods.
    #[test]
    fn a_thousand_series_and_the_others_together() {
        let callers = Callers::new();
        for n in 0..700 {
            let caller = id(&format!("job-{n:03}"));
            callers.count(Some(&caller), 8080, Some(&Method::GET));
            callers.count(Some(&caller), 8080, Some(&Method::POST));
        }
        let page = callers.page();
        assert_eq!(page["callers"].as_array().unwrap().len(), MAX_SERIES);
        assert_eq!(page["others"], 400);
        assert_eq!(
            callers.all.load().len(),
            MAX_SERIES / 2,
            "callers beyond take no memory"
        );
        // Those that there are go on, and none is added.
        callers.count(Some(&id("job-003")), 8080, Some(&Method::GET));
        assert_eq!(callers.page()["others"], 400);
        callers.count(Some(&id("job-003")), 8080, None);
        assert_eq!(callers.page()["others"], 401);
    }
}
