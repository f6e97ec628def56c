//! Limits that all pods count together: real sidecars and a real Redis (Debian: `redis-server redis-tools`), which is killed, hangs, is full, and
//! comes back.
//!
//! An interval is an hour where a test counts, so that nothing depends on how fast it runs.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use http::{HeaderValue, Method, Response};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Http, Seen, Sidecar, metric, request, text, until};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{DAY, with};

const PODS: [&str; 3] = ["a", "b", "c"];

/// A Redis on a port of its own. It ends when this is dropped.
struct Redis {
    port: u16,
    folder: TempDir,
    process: Option<Child>,
}

impl Redis {
    async fn start() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut redis = Self {
            port: free.local_addr().unwrap().port(),
            folder: tempfile::tempdir().unwrap(),
            process: None,
        };
        drop(free);
        redis.run().await;
        redis
    }

    async fn run(&mut self) {
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
        ]);
        command
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let process = command.kill_on_drop(true).spawn();
        self.process = Some(process.expect("there is no redis-server: apt-get install redis-server redis-tools"));
        until("it takes connections", async || {
            self.try_ask(&["PING"]).await.is_some_and(|answer| answer == "PONG")
        })
        .await;
    }

    async fn kill(&mut self) {
        self.process.take().unwrap().kill().await.unwrap();
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.process.as_ref().unwrap().id().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
    }

    async fn ask(&self, command: &[&str]) -> String {
        self.try_ask(command).await.unwrap()
    }

    async fn try_ask(&self, command: &[&str]) -> Option<String> {
        let mut client = Command::new("redis-cli");
        client
            .args(["-p", &self.port.to_string()])
            .args(command)
            .kill_on_drop(true);
        let said = client
            .output()
            .await
            .expect("there is no redis-cli: apt-get install redis-tools");
        let said = said.status.success().then(|| String::from_utf8(said.stdout).unwrap());
        said.map(|said| said.trim().to_owned())
    }

    /// How often a command was called, by its own count.
    async fn calls(&self, command: &str) -> u64 {
        let all = self.ask(&["INFO", "commandstats"]).await;
        let line = all
            .lines()
            .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }
}

/// Three pods of one app.
struct Scene {
    redis: Redis,
    _app: App,
    pods: Vec<RunningProxy>,
}

impl Scene {
    /// With the limits of a policy, and further fields of `global`.
    async fn new(limits: &str, global: &str) -> Self {
        let redis = Redis::start().await;
        let address = format!("127.0.0.1:{}", redis.port);
        // A machine that does other things must not look like a slow store.
        let timeout = if global.contains("timeout") {
            ""
        } else {
            ", timeout: 1s"
        };
        let policy =
            format!("{{name: p, spec: {{limits: [{limits}], global: {{address: '{address}'{timeout}{global}}}}}}}");
        Self::of(redis, &policy).await
    }

    async fn of(redis: Redis, policies: &str) -> Self {
        let authority = Authority::start(&PODS, DAY).await;
        let app = App::start(|_| async { Response::new(text("")) }).await;
        let mut pods = Vec::new();
        for one in PODS {
            let sidecar = Sidecar::new(one).protects(app.address);
            let sidecar = sidecar.with(&format!("rateLimitPolicies: [{policies}]"));
            pods.push(sidecar.start(&authority).await);
        }
        let scene = Self { redis, _app: app, pods };
        scene.is_back().await;
        scene
    }

    async fn get(&self, pod: usize) -> Seen {
        Http::one().get(self.pods[pod].inbound[0], "/").await
    }

    /// How many of so many requests to a pod are admitted; the others are answered this.
    async fn admitted(&self, pod: usize, count: usize, refused: u16) -> usize {
        let mut admitted = 0;
        for _ in 0..count {
            let status = self.get(pod).await.status;
            assert!(status == 200 || status == refused, "{status}");
            admitted += usize::from(status == 200);
        }
        admitted
    }

    fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        self.pods.iter().map(|pod| metric(pod, name, labels)).sum()
    }

    fn asked(&self, result: &str) -> u64 {
        self.sum("outrigger_limit_store_asked_total", &[&format!("result=\"{result}\"")])
    }

    /// Every worker of every pod has a connection that answers.
    async fn is_back(&self) {
        until("the store answers", async || {
            let of = |state| self.sum("outrigger_limit_store_connections", &[state]);
            of("state=\"answers\"") > 0 && of("state=\"away\"") == 0
        })
        .await;
    }

    async fn is_away(&self, pod: usize) {
        until("the store is away", async || {
            metric(
                &self.pods[pod],
                "outrigger_limit_store_connections",
                &["state=\"answers\""],
            ) == 0
        })
        .await;
    }
}

fn limit(name: &str, requests: u32, more: &str) -> String {
    format!("{{name: {name}, rate: {{requests: {requests}, interval: 1h}}, scope: Global{more}}}")
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn pods_together_admit_the_rate_however_they_are_called() {
    let scene = Scene::new(&limit("all", 60, ""), "").await;
    for calls in [[40, 40, 40], [1, 9, 100], [0, 120, 0]] {
        let mut admitted = 0;
        for (pod, count) in calls.into_iter().enumerate() {
            admitted += scene.admitted(pod, count, 429).await;
        }
        assert_eq!(admitted, 60, "{calls:?}");
        // What is said is of all pods.
        let seen = scene.get(2).await;
        assert_eq!((seen.status, seen.error()), (429, Some("rate-limited")));
        scene.redis.ask(&["FLUSHALL"]).await;
    }
    assert_eq!(
        (scene.asked("late"), scene.asked("error"), scene.asked("away")),
        (0, 0, 0)
    );
}

/// Several limits, policies and a shadow: one command for each request, by the store's own count.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_request_is_one_round_trip() {
    let redis = Redis::start().await;
    let global = format!("global: {{address: '127.0.0.1:{}', timeout: 1s}}", redis.port);
    let limits = [
        limit("a", 9000, ""),
        limit("b", 9000, ", per: [{type: Identity}, {type: Address}]"),
    ]
    .join(", ");
    let policies = format!(
        "{{name: one, spec: {{limits: [{limits}], {global}}}}}, {{name: two, spec: {{limits: [{}], {global}}}}}, \
         {{name: three, spec: {{mode: Shadow, limits: [{}], {global}}}}}",
        limit("c", 9000, ""),
        limit("d", 9000, "")
    );
    let scene = Scene::of(redis, &policies).await;
    let before = scene.redis.calls("evalsha").await;
    for http in [Http::one(), Http::two()] {
        for _ in 0..10 {
            assert_eq!(http.get(scene.pods[0].inbound[0], "/").await.status, 200);
        }
    }
    assert_eq!(scene.redis.calls("evalsha").await - before, 20);
    assert_eq!(scene.redis.calls("eval").await, 0);
    // Four buckets for each, and nothing of a request is in their names.
    let keys = scene.redis.ask(&["KEYS", "*"]).await;
    let mut names: Vec<&str> = keys
        .lines()
        .filter_map(|key| key.rsplit_once(':'))
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    let expected =
        ["shop/one:a", "shop/one:b", "shop/three:d", "shop/two:c"].map(|name| format!("outrigger:limit:{name}"));
    assert_eq!(names, expected);
    for key in keys.lines() {
        let left: i64 = scene.redis.ask(&["PTTL", key]).await.parse().unwrap();
        assert!(left > 0, "{key} stays for ever");
    }
    // The script is sent once more where it was forgotten.
    scene.redis.ask(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(scene.admitted(0, 5, 429).await, 5);
    assert_eq!(scene.redis.calls("eval").await, 1);
    assert_eq!(scene.asked("answered"), 25);
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn tokens_are_taken_only_where_all_limits_admit() {
    let limits = [
        limit("wide", 10, ""),
        limit("narrow", 1, ", per: [{type: Header, header: {name: x-key}}]"),
    ]
    .join(", ");
    let own = "{name: own, rate: {requests: 4, interval: 1h}, scope: Pod}";
    let scene = Scene::new(&format!("{limits}, {own}"), "").await;
    let admitted = async |pod: usize, keys: std::ops::Range<usize>, times: usize| {
        let mut admitted = 0;
        for key in keys {
            for _ in 0..times {
                let to = scene.pods[pod].inbound[0];
                let seen = with(&Http::one(), to, "/", "x-key", &key.to_string()).await;
                admitted += usize::from(seen.status == 200);
            }
        }
        admitted
    };
    // One key has one, on all pods; what is refused takes nothing of the others, nor of the pod's own.
    assert_eq!(admitted(0, 0..1, 10).await, 1);
    assert_eq!(admitted(1, 0..1, 10).await, 0);
    assert_eq!(admitted(1, 1..20, 1).await, 4);
    assert_eq!(admitted(0, 20..40, 1).await, 3);
    assert_eq!(admitted(2, 40..60, 1).await, 2);
    scene.redis.ask(&["FLUSHALL"]).await;
    assert_eq!(admitted(2, 60..80, 1).await, 2);
}

/// What each policy does while the store is killed; and all is as before when it is back.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_store_that_is_killed_and_comes_back() {
    for (on_failure, admitted, refused) in [("Local", 5, 429), ("Allow", 20, 0), ("Deny", 0, 503)] {
        let mut scene = Scene::new(&limit("all", 5, ""), &format!(", onFailure: {on_failure}")).await;
        assert_eq!(scene.admitted(0, 3, 429).await + scene.admitted(1, 10, 429).await, 5);
        scene.redis.kill().await;
        scene.is_away(0).await;
        let began = scene.asked("away");
        // Alone: a standalone sidecar knows of no other pods.
        assert_eq!(scene.admitted(0, 20, refused).await, admitted, "{on_failure}");
        assert_eq!(scene.asked("away") - began, 20, "nobody waits for it");
        for http in [Http::one(), Http::two()] {
            let seen = http.get(scene.pods[0].inbound[0], "/").await;
            match on_failure {
                "Deny" => {
                    assert_eq!((seen.status, seen.error()), (503, Some("limit-unavailable")));
                    assert_eq!(seen.headers["retry-after"], "1");
                }
                "Allow" => assert_eq!(seen.status, 200),
                _ => assert_eq!(seen.error(), Some("rate-limited")),
            }
        }
        let mut call = request(Method::POST, scene.pods[0].inbound[0], "/shop.Orders/Get", "");
        call.headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        let seen = Http::two().send(call).await.unwrap();
        if on_failure == "Deny" {
            assert_eq!(
                (seen.error(), seen.headers["grpc-status"].to_str().unwrap()),
                (Some("limit-unavailable"), "14")
            );
        }
        let counted = |decision| scene.sum("outrigger_limited_requests_total", &[decision]);
        assert_eq!(counted("decision=\"unavailable\"") > 0, on_failure == "Deny");
        assert_eq!(counted("decision=\"fallback\"") > 0, on_failure != "Deny");
        // It has forgotten all.
        scene.redis.run().await;
        scene.is_back().await;
        assert_eq!(
            scene.admitted(2, 10, 429).await + scene.admitted(0, 10, 429).await,
            5,
            "{on_failure}"
        );
    }
}

/// A store that hangs costs a few requests its timeout, and the others nothing.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_store_that_hangs() {
    let scene = Scene::new(&limit("all", 1000, ""), ", timeout: 100ms").await;
    assert_eq!(scene.get(0).await.status, 200);
    let counted = |result| metric(&scene.pods[0], "outrigger_limit_store_asked_total", &[result]);
    let late_before = counted("result=\"late\"");
    scene.redis.signal(nix::sys::signal::Signal::SIGSTOP);
    // By one connection, and so by one worker.
    let http = Http::one();
    for _ in 0..50 {
        assert_eq!(http.get(scene.pods[0].inbound[0], "/").await.status, 200);
    }
    // And as many where a worker had just connected anew.
    let late = counted("result=\"late\"") - late_before;
    assert!((3..=6).contains(&late), "{late}");
    assert!(counted("result=\"away\"") >= 44);
    scene.redis.signal(nix::sys::signal::Signal::SIGCONT);
    scene.is_back().await;
    let answered = counted("result=\"answered\"");
    assert_eq!(scene.admitted(0, 5, 429).await, 5);
    assert_eq!(counted("result=\"answered\"") - answered, 5);
}

/// One that has no memory for a key, or wants a password, says so, and is not asked again until it takes keys.
#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_store_that_is_full_or_wants_a_password() {
    let scene = Scene::new(&limit("all", 1000, ""), ", onFailure: Deny").await;
    for (faulty, well) in [
        (
            &[&["CONFIG", "SET", "maxmemory", "1"][..]][..],
            &["CONFIG", "SET", "maxmemory", "0"][..],
        ),
        (
            &[
                &["CONFIG", "SET", "requirepass", "secret"],
                &["-a", "secret", "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"],
            ],
            &["-a", "secret", "CONFIG", "SET", "requirepass", ""],
        ),
    ] {
        assert_eq!(scene.get(0).await.status, 200);
        for command in faulty {
            scene.redis.ask(command).await;
        }
        until("it is found out", async || scene.get(0).await.status == 503).await;
        scene.is_away(0).await;
        assert_eq!(scene.admitted(0, 20, 503).await, 0);
        scene.redis.ask(well).await;
        scene.is_back().await;
    }
    assert_eq!(scene.get(0).await.status, 200);
    assert_eq!(scene.asked("late"), 0);
}

/// Buckets fill at the store's time, and go when they are full; as many as come meanwhile are admitted, however uneven the load is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server"]
async fn a_rate_is_kept_by_all_pods_together() {
    const RATE: f64 = 100.0;
    let all = "{name: all, rate: {requests: 100, interval: 1s}, scope: Global}";
    let scene = Scene::new(all, ", onFailure: Deny").await;
    for callers in [[2, 2, 2], [6, 1, 0]] {
        let mut shares = Vec::new();
        for _ in 0..20 {
            let (share, longest) = window(&scene, callers, RATE).await;
            // Never more, however the machine stands still. At both ends a request may be counted that began outside.
            assert!(share <= 1.1, "{callers:?}: {share}");
            shares.push(share);
            // A bucket that was not empty all the time may have been full.
            if longest < Duration::from_millis(300) {
                break;
            }
        }
        assert!(shares.iter().any(|share| *share >= 0.9), "{callers:?}: {shares:?}");
    }
    until("the bucket goes", async || scene.redis.ask(&["DBSIZE"]).await == "0").await;
}

/// What is admitted in two seconds, of what the bucket gives in them, after it was empty; and the longest time in which nobody was refused.
async fn window(scene: &Scene, callers: [usize; 3], a_second: f64) -> (f64, Duration) {
    let (stop, admitted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let refused = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for (pod, count) in callers.into_iter().enumerate() {
        for _ in 0..count {
            let (stop, admitted, refused) = (Arc::clone(&stop), Arc::clone(&admitted), Arc::clone(&refused));
            let to = scene.pods[pod].inbound[0];
            tasks.spawn(async move {
                let http = Http::one();
                while !stop.load(SeqCst) {
                    match http.get(to, "/").await.status {
                        200 => admitted.fetch_add(1, SeqCst),
                        429 => refused.fetch_add(1, SeqCst),
                        status => panic!("{status}"),
                    };
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
    }
    until("the burst is gone", async || refused.load(SeqCst) > 10).await;
    let (begin, before) = (Instant::now(), admitted.load(SeqCst));
    let (mut last, mut longest, mut seen) = (begin, Duration::ZERO, refused.load(SeqCst));
    while begin.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = refused.load(SeqCst);
        if now > seen {
            (last, seen) = (Instant::now(), now);
        }
        longest = longest.max(last.elapsed());
    }
    let share = (admitted.load(SeqCst) - before) as f64 / (a_second * begin.elapsed().as_secs_f64());
    stop.store(true, SeqCst);
    while tasks.join_next().await.is_some() {}
    (share, longest)
}
