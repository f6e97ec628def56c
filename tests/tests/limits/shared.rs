//! A rate that the pods of a Service share: five real sidecars that the real controller tells of a policy, under load through real callers.
//!
//! Nothing is said of how fast the machine is. What comes through in a window is compared with what the buckets had to give in the time that
//! the window took; where one of them was not found empty again and again, so that it may have been full and lost something, the window is none,
//! and there is another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use http::Response;
use outrigger_controller::index::Index;
use outrigger_controller::objects::policy::{Policy, PolicyKind};
use outrigger_controller::objects::{Object, from_k8s};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Http, Sidecar, TRUST_DOMAIN, ask_the_controller, id, metric, text};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{DAY, until};

/// Requests in a second, all pods together, and as many at once.
const RATE: u32 = 100;
const PODS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// After a change, until the bursts of the pods are used up.
const SETTLES: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(2);
/// A bucket takes a second to be full again.
const STANDSTILL: Duration = Duration::from_millis(300);
/// How often each of them is looked at.
const SLICE: Duration = Duration::from_millis(150);
const WINDOWS: usize = 60;

fn pod(name: &str, ready: bool) -> Object {
    let ready = if ready { "True" } else { "False" };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": format!("{name}-1"), "uid": name, "labels": {"app": "orders"}},
        "spec": {"serviceAccountName": name, "containers": [{"name": "outrigger-proxy"}]},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    });
    from_k8s::pod(&serde_json::from_value(pod).unwrap()).unwrap().1
}

fn policy() -> Object {
    let policy = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "RateLimitPolicy", "metadata": {"namespace": "shop", "name": "orders"},
        "spec": {
            "targetRefs": [{"kind": "Pod", "selector": {"matchLabels": {"app": "orders"}}}],
            "limits": [{"name": "all", "rate": {"requests": RATE, "interval": "1s"}, "scope": "Service"}],
        },
    });
    let policy = Policy::read(PolicyKind::RateLimit, &serde_json::from_value(policy).unwrap());
    Object::Policy(Box::new(policy))
}

fn name(name: &str) -> outrigger_controller::objects::ObjectName {
    outrigger_controller::objects::ObjectName::new("shop", name)
}

struct Scene {
    index: Arc<Index>,
    authority: Authority,
    _app: App,
    orders: Vec<RunningProxy>,
    _tasks: JoinSet<()>,
}

impl Scene {
    async fn new() -> Self {
        let index = Index::new(TRUST_DOMAIN, Arc::default());
        index.set_own("outrigger", "controller-a");
        for one in PODS {
            index.apply(name(&format!("{one}-1")), pod(one, false));
        }
        index.apply(name("orders"), policy());
        let mut tasks = JoinSet::new();
        let running = Arc::clone(&index);
        tasks.spawn(async move { running.run().await });
        index.set_synced();
        let names = [&PODS[..], &["web"]].concat();
        let authority = Authority::with_discovery(&names, DAY, Some(Arc::clone(&index) as _)).await;
        let app = App::start(|_| async { Response::new(text("")) }).await;
        let mut orders = Vec::new();
        for one in PODS {
            let sidecar = Sidecar::new(one).protects(app.address);
            orders.push(sidecar.start_with(&authority, ask_the_controller).await);
        }
        Self {
            index,
            authority,
            _app: app,
            orders,
            _tasks: tasks,
        }
    }

    /// From now on so many pods are ready. Gives where a caller's sidecar calls them.
    async fn becomes(&self, count: usize) -> RunningProxy {
        for (n, one) in PODS.iter().enumerate() {
            self.index.apply(name(&format!("{one}-1")), pod(one, n < count));
        }
        let share = u64::from(RATE) / count as u64;
        for sidecar in &self.orders {
            until("it has its share", async || {
                let config = Http::one().get(sidecar.admin, "/config").await.body;
                let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
                config["targets"]["limits"][0]["limits"][0]["requests"] == share
            })
            .await;
        }
        let at = self.orders.iter().zip(PODS).take(count);
        let at: Vec<_> = at.map(|(sidecar, one)| (sidecar.inbound[0], Some(id(one)))).collect();
        let caller = Sidecar::new("web").calls("orders", "detect", &at, "{retry: {attempts: 0}}");
        caller.start(&self.authority).await
    }

    /// Of each pod, what was admitted and what was refused.
    fn counted(&self) -> Vec<[u64; 2]> {
        let of = |sidecar, decision| metric(sidecar, "outrigger_limited_requests_total", &[decision]);
        let orders = self.orders.iter();
        orders
            .map(|one| [of(one, "decision=\"admitted\""), of(one, "decision=\"limited\"")])
            .collect()
    }
}

/// Calls again and again, until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Load {
    fn on(to: SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let stop = Arc::clone(&stop);
            tasks.spawn(async move {
                let http = Http::one();
                while !stop.load(SeqCst) {
                    let status = http.get(to, "/").await.status;
                    assert!([200, 429].contains(&status), "{status}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        Self { stop, _tasks: tasks }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

/// What comes through in a window, of what so much a second had to give in it. `None`: a bucket that is called may have been full, since it was
/// not empty again soon enough, and what it had to give was lost.
async fn window(scene: &Scene, called: usize, a_second: f64) -> Option<f64> {
    let (begin, before) = (Instant::now(), scene.counted());
    let (mut last, mut looked) = (before.clone(), begin);
    while begin.elapsed() < WINDOW {
        tokio::time::sleep(SLICE).await;
        let now = scene.counted();
        let all_were_empty = (0..called).all(|n| now[n][1] > last[n][1]);
        if !all_were_empty || looked.elapsed() > STANDSTILL {
            return None;
        }
        (last, looked) = (now, Instant::now());
    }
    let admitted: u64 = (0..PODS.len()).map(|n| last[n][0] - before[n][0]).sum();
    Some(admitted as f64 / (a_second * (looked - begin).as_secs_f64()))
}

async fn share_of(scene: &Scene, called: usize, a_second: f64) -> f64 {
    for _ in 0..WINDOWS {
        if let Some(share) = window(scene, called, a_second).await {
            return share;
        }
    }
    panic!("{WINDOWS} windows were none: this machine does nothing else for long enough");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_shared_by_three_five_and_one_and_uneven_load_gets_a_share() {
    let scene = Scene::new().await;
    for count in [3, 5, 1] {
        let web = scene.becomes(count).await;
        let _load = Load::on(web.outbound[0]);
        tokio::time::sleep(SETTLES).await;
        let share = share_of(&scene, count, RATE.into()).await;
        assert!((0.9..=1.1).contains(&share), "{count} pods: {share}");
    }
    // All of it comes to one of five.
    let _web = scene.becomes(5).await;
    let _load = Load::on(scene.orders[0].inbound[0]);
    // As the only one, it has used up more than it holds now: that is paid off first.
    let before = scene.counted()[0][0];
    until("it admits again", async || scene.counted()[0][0] > before).await;
    tokio::time::sleep(SETTLES).await;
    let share = share_of(&scene, 1, f64::from(RATE) / 5.0).await;
    assert!((0.9..=1.1).contains(&share), "uneven load: {share}");
}
