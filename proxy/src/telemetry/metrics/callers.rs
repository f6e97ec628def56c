//! Whom the app has taken requests and connections of, on which port, by which method: what `outrigger check --what-if` judges a policy by that is not in force
//! yet.
//!
//! It is shown at `/callers` of the admin port, over the pod's loopback, and not among the metrics: who calls whom is for those who may
//! forward ports to the pod, and a thousand series of each sidecar are more than a Prometheus should keep for a question that is asked
//! seldom.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Method;
use outrigger_api::spiffe::SpiffeId;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::series::{METHOD_NAMES, method_index};

/// Series of a caller, a port and a method; what is beyond is counted together.
const MAX_SERIES: usize = 1000;
/// Where all are taken, one that was not seen for so long gives way to a new one: a week, and a day, so that who comes once a week stays.
/// It is long because whoever has many identities could drive out the others' series otherwise.
const UNSEEN: Duration = Duration::from_secs(8 * 24 * 3600);
/// Behind the methods.
const BYTES: usize = METHOD_NAMES.len();

/// See the module. It is read without a lock, and found by comparing a few names: nothing is hashed or allocated.
pub struct Callers {
    /// In the order of their keys.
    all: ArcSwap<Vec<Arc<Counts>>>,
    /// Held by who adds one, or takes some away.
    adding: Mutex<()>,
    /// Those that are not 0.
    series: AtomicUsize,
    /// Before this second none is [`UNSEEN`] for long enough.
    next_sweep: AtomicU32,
    /// Requests and connections beyond [`MAX_SERIES`], and those of series that gave way.
    others: AtomicU64,
    since: Instant,
}

/// One caller at one port.
struct Counts {
    identity: Option<SpiffeId>,
    port: u16,
    /// By method, and of connections of bytes.
    by: [Series; BYTES + 1],
}

#[derive(Default)]
struct Series {
    count: AtomicU64,
    /// When it was counted last, in seconds since [`Callers::since`].
    seen: AtomicU32,
}

type Key<'a> = (u16, Option<&'a str>);

impl Callers {
    pub(super) fn new() -> Self {
        Self {
            all: ArcSwap::default(),
            adding: Mutex::default(),
            series: AtomicUsize::new(0),
            next_sweep: AtomicU32::new(seconds(UNSEEN)),
            others: AtomicU64::new(0),
            since: Instant::now(),
        }
    }

    /// The app has taken a request of this method, at this port, of whom the peer has proven to be. Without a method: a connection
    /// of bytes.
    pub fn count(&self, identity: Option<&SpiffeId>, port: u16, method: Option<&Method>) {
        let kind = method.map_or(BYTES, method_index);
        let now = seconds(self.since.elapsed());
        let key = (port, identity.map(SpiffeId::as_str));
        let all = self.all.load();
        match find(&all, key) {
            Ok(at) if all[at].by[kind].goes_on(now) => {}
            // Before the lock: who fills all series must not make the others wait for one another.
            _ if self.is_full() && now < self.next_sweep.load(Relaxed) => _ = self.others.fetch_add(1, Relaxed),
            _ => self.begin(identity, port, kind, now),
        }
    }

    /// Begins a series, if there is room for it.
    fn begin(&self, identity: Option<&SpiffeId>, port: u16, kind: usize, now: u32) {
        let _adding = self.adding.lock();
        if self.is_full() {
            self.sweep(now);
        }
        let all = self.all.load();
        let found = find(&all, (port, identity.map(SpiffeId::as_str)));
        if let Ok(at) = found
            && all[at].by[kind].goes_on(now)
        {
            // Somebody else has begun it meanwhile.
            return;
        }
        if self.is_full() {
            self.others.fetch_add(1, Relaxed);
            return;
        }
        self.series.fetch_add(1, Relaxed);
        match found {
            Ok(at) => all[at].by[kind].begins(now),
            Err(at) => {
                let by: [Series; BYTES + 1] = Default::default();
                by[kind].begins(now);
                let mut more = Vec::clone(&all);
                more.insert(
                    at,
                    Arc::new(Counts {
                        identity: identity.cloned(),
                        port,
                        by,
                    }),
                );
                self.all.store(Arc::new(more));
            }
        }
    }

    fn is_full(&self) -> bool {
        self.series.load(Relaxed) >= MAX_SERIES
    }

    /// Takes away what was not seen for [`UNSEEN`]. Called with the lock. A call that is counted in this very moment, after so long a time,
    /// may be missed.
    fn sweep(&self, now: u32) {
        if now < self.next_sweep.load(Relaxed) {
            return;
        }
        let all = self.all.load();
        let (mut series, mut oldest) = (0, now);
        for of in all.iter().flat_map(|of| &of.by) {
            let seen = of.seen.load(Relaxed);
            if of.count.load(Relaxed) == 0 {
                continue;
            }
            if now.saturating_sub(seen) >= seconds(UNSEEN) {
                self.others.fetch_add(of.count.swap(0, Relaxed), Relaxed);
            } else {
                series += 1;
                oldest = oldest.min(seen);
            }
        }
        let is_counted = |of: &&Arc<Counts>| of.by.iter().any(|series| series.count.load(Relaxed) > 0);
        self.all
            .store(Arc::new(all.iter().filter(is_counted).cloned().collect()));
        self.series.store(series, Relaxed);
        // What is seen until then only makes it later.
        self.next_sweep.store(oldest.saturating_add(seconds(UNSEEN)), Relaxed);
    }

    /// All of it, for the admin port.
    pub fn page(&self) -> Value {
        let all = self.all.load();
        let series = all.iter().flat_map(|of| {
            let counts = of.by.iter().map(|series| series.count.load(Relaxed)).enumerate();
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

impl Series {
    /// Counts. False: it has not begun.
    fn goes_on(&self, now: u32) -> bool {
        if self.count.load(Relaxed) == 0 {
            return false;
        }
        self.count.fetch_add(1, Relaxed);
        // Written once a second: the line is shared by all workers.
        if self.seen.load(Relaxed) != now {
            self.seen.store(now, Relaxed);
        }
        true
    }

    fn begins(&self, now: u32) {
        self.seen.store(now, Relaxed);
        self.count.store(1, Relaxed);
    }
}

fn seconds(time: Duration) -> u32 {
    // For 136 years.
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
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

    /// What was not seen for long gives way, and is not forgotten silently.
    #[tokio::test(start_paused = true)]
    async fn who_is_not_seen_for_long_gives_way_to_others() {
        let callers = Callers::new();
        let day = Duration::from_secs(24 * 3600);
        let get = |name: &str| callers.count(Some(&id(name)), 8080, Some(&Method::GET));
        let names = |page: &Value| {
            let all = page["callers"].as_array().unwrap().iter();
            all.map(|of| of["identity"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        for n in 0..MAX_SERIES {
            get(&format!("old-{n:03}"));
        }
        tokio::time::advance(7 * day).await;
        // Once a week is often enough.
        get("old-007");
        get("new");
        assert_eq!(callers.page()["others"], 1);
        assert!(!names(&callers.page()).contains(&id("new").as_str().to_owned()));
        tokio::time::advance(day).await;
        get("new");
        callers.count(Some(&id("new")), 8080, None);
        let page = callers.page();
        let new = id("new").as_str().to_owned();
        assert_eq!(names(&page), [new.clone(), new, id("old-007").as_str().to_owned()]);
        assert_eq!(page["others"], 1 + 999, "what gave way is among the others");
        // One that comes again begins again.
        get("old-008");
        assert_eq!(names(&callers.page()).len(), 4);
        assert_eq!(callers.series.load(Relaxed), 4);
    }

    /// What is asked for each new series of an attacker costs no look at all of them.
    #[tokio::test(start_paused = true)]
    async fn where_nothing_is_old_enough_nobody_looks() {
        let callers = Callers::new();
        tokio::time::advance(UNSEEN).await;
        for n in 0..=MAX_SERIES {
            callers.count(Some(&id(&format!("job-{n:04}"))), 8080, None);
        }
        assert_eq!(callers.next_sweep.load(Relaxed), 2 * seconds(UNSEEN));
        assert_eq!(callers.page()["others"], 1);
    }
}
