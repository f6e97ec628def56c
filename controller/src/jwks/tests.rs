use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rand::SeedableRng;
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::sleep;

use super::*;
use crate::objects::ObjectName;
use crate::testing::Cluster;

/// A key of RFC 8037, by another name each time.
fn jwks(kid: &str) -> String {
    format!(
        r#"{{"keys":[{{"kty":"OKP","kid":"{kid}","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}]}}"#
    )
}

/// ConfigMaps, and how they are asked for; and servers, of the namespaces whose name begins with "evil" and of the others.
#[derive(Clone, Default)]
struct Maps(Arc<Asked>);

#[derive(Default)]
struct Asked {
    /// By default the first keys.
    value: Mutex<Option<Result<String, String>>>,
    /// How long an answer takes, by namespace; else it is there at once.
    slow: Mutex<Option<(Arc<str>, Duration)>>,
    count: AtomicUsize,
    servers: Mutex<Option<(Says, Says)>>,
    /// Those that are under way, by namespace, and the most that were.
    under_way: Mutex<HashMap<Arc<str>, (usize, usize)>>,
}

impl World for Maps {
    type Stream = DuplexStream;

    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, String>> {
        unreachable!("nothing has a name")
    }

    fn forbidden(&self, _: IpAddr) -> Option<IpAddr> {
        None
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<DuplexStream>> {
        let servers = self.0.servers.lock();
        let (hostile, honest) = servers.clone().unwrap();
        drop(servers);
        async move {
            let says = if address.ip() == EVIL { hostile } else { honest };
            let Says { connects: true, .. } = says else {
                return std::future::pending().await;
            };
            let (ours, theirs) = tokio::io::duplex(4096);
            tokio::spawn(serve(theirs, says.answer));
            Ok(ours)
        }
        .boxed()
    }

    fn config_map<'a>(&'a self, map: ObjectName, _: &'a str) -> BoxFuture<'a, Result<String, Failure>> {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        {
            let mut under_way = self.0.under_way.lock();
            let (now, most) = under_way.entry(Arc::clone(&map.namespace)).or_default();
            *now += 1;
            *most = (*most).max(*now);
        }
        async move {
            let slow = self.0.slow.lock().clone();
            if let Some((_, time)) = slow.filter(|(namespace, _)| *namespace == map.namespace) {
                sleep(time).await;
            }
            if let Some((now, _)) = self.0.under_way.lock().get_mut(&map.namespace) {
                *now -= 1;
            }
            let value = self.0.value.lock().clone().unwrap_or_else(|| Ok(jwks("one")));
            value.map_err(|why| match why.starts_with("there is no") {
                true => Failure::gone(why),
                false => why.into(),
            })
        }
        .boxed()
    }

    fn service(&self, service: ObjectName, port: u16) -> Result<SocketAddr, String> {
        let is_evil = service.namespace.starts_with("evil");
        Ok(SocketAddr::new(if is_evil { EVIL } else { GOOD }, port))
    }
}

const EVIL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const GOOD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// What a server does: it answers with these bytes, and then leaves the connection open.
#[derive(Clone)]
struct Says {
    connects: bool,
    answer: String,
}

fn says(answer: &str) -> Says {
    Says {
        connects: true,
        answer: answer.to_owned(),
    }
}

async fn serve(mut stream: DuplexStream, answer: String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let _ = stream.write_all(answer.as_bytes()).await;
    // Until the other end goes away.
    let _ = stream.read_u8().await;
}

impl Maps {
    fn set(&self, value: Result<String, &str>) {
        *self.0.value.lock() = Some(value.map_err(str::to_owned));
    }

    fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }
}

struct Running {
    cluster: Cluster,
    maps: Maps,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Running {
    /// With policies of these namespaces and names, whose keys are in the ConfigMap of the same name.
    async fn start(policies: &[(&str, &str)]) -> Self {
        let (cluster, maps) = (Cluster::new(), Maps::default());
        cluster.index.set_own("outrigger", "controller");
        policies
            .iter()
            .for_each(|(namespace, name)| cluster.apply(&policy(namespace, name, name)));
        let fetcher = Fetcher::new(maps.clone(), RootCertStore::empty()).unwrap();
        let run = run(
            Arc::clone(&cluster.index),
            fetcher,
            Arc::default(),
            SmallRng::seed_from_u64(1),
        );
        let running = Self {
            cluster,
            maps,
            _task: tokio_util::task::AbortOnDropHandle::new(tokio::spawn(run)),
        };
        // Paused time stands still until everybody waits.
        sleep(Duration::from_millis(1)).await;
        running
    }

    /// The keys that pods of the namespace are told.
    fn told(&self, namespace: &str) -> Vec<String> {
        self.cluster.index.flush();
        let policies = self.cluster.access_of(namespace, "pod", "default").enforced.into_iter();
        let providers = policies.flat_map(|policy| policy.providers);
        providers.map(|provider| provider.jwks).collect()
    }

    fn problem(&self, namespace: &str) -> Option<String> {
        let source = self
            .cluster
            .index
            .key_sources()
            .borrow()
            .iter()
            .find(|s| &*s.namespace == namespace)
            .cloned();
        let keys = self
            .cluster
            .index
            .read(|store| store.keys_at(&source.unwrap()).cloned());
        keys.unwrap().problem.map(|problem| problem.why)
    }
}

fn policy(namespace: &str, name: &str, map: &str) -> String {
    format!(
        "
kind: AccessPolicy
metadata: {{namespace: {namespace}, name: {name}, creationTimestamp: '2026-01-01T00:00:00Z'}}
spec:
  targetRefs: [{{kind: Namespace, name: {namespace}}}]
  rules: [{{sources: [{{type: JWT, jwt: {{provider: login}}}}]}}]
  jwt: {{providers: [{{name: login, issuer: 'https://i', audiences: [a], jwks: {{configMapRef: {{name: {map}}}}}}}]}}
"
    )
}

/// The same with keys at a Service, which has half a minute to answer.
fn policy_of_service(namespace: &str, name: &str) -> String {
    let service = "remote: {backendRef: {name: login, port: 80, path: /";
    policy(namespace, name, "NAME").replace(
        "configMapRef: {name: NAME}",
        &format!("{service}{name}}}, timeout: 30s}}"),
    )
}

/// A ConfigMap.
fn source(namespace: &str, cache: Duration) -> KeySource {
    KeySource {
        namespace: namespace.into(),
        place: crate::objects::keys::KeyPlace::ConfigMap(crate::objects::keys::ConfigMapKey {
            name: "orders".into(),
            key: "jwks.json".into(),
        }),
        cache,
        timeout: Duration::from_secs(1),
    }
}

fn shared(running: &Running) -> Shared<Maps> {
    Shared {
        index: Arc::clone(&running.cluster.index),
        fetcher: Fetcher::new(running.maps.clone(), RootCertStore::empty()).unwrap(),
        metrics: Arc::default(),
        random: Mutex::new(SmallRng::seed_from_u64(1)),
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn the_last_good_keys_stay_while_there_is_nothing_better() {
    let running = Running::start(&[("shop", "orders")]).await;
    assert_eq!(running.told("shop"), [jwks("one")]);
    for (value, problem) in [
        (Err("it is gone"), "it is gone"),
        (Ok("<html>".to_owned()), "it is no JWK Set (line 1, column 1)"),
        (Ok(r#"{"keys":[]}"#.to_owned()), "it has no keys"),
    ] {
        running.maps.set(value);
        sleep(MINUTE).await;
        assert_eq!(running.problem("shop").as_deref(), Some(problem));
        assert_eq!(running.told("shop"), [jwks("one")]);
    }
    running.maps.set(Ok(jwks("two")));
    sleep(MINUTE).await;
    assert_eq!(
        (running.told("shop"), running.problem("shop")),
        (vec![jwks("two")], None)
    );
    // Another place is another trust: what was had at the first is nothing there.
    running.maps.set(Err("not there"));
    running.cluster.apply(&policy("shop", "orders", "elsewhere"));
    assert_eq!(running.told("shop"), [""]);
    // With the policy, its keys go.
    running.cluster.delete(
        crate::objects::Kind::Policy(crate::objects::policy::PolicyKind::Access),
        "shop",
        "orders",
    );
    assert!(running.told("shop").is_empty() && running.cluster.index.key_sources().borrow().is_empty());
    sleep(MINUTE).await;
    let asked = running.maps.count();
    sleep(10 * MINUTE).await;
    assert_eq!(running.maps.count(), asked);
}

/// Who takes certificates away takes trust away; where nobody answers, what was read last holds.
#[tokio::test(start_paused = true)]
async fn certificates_hold_until_the_api_server_says_that_they_are_gone() {
    let running = Running::start(&[]).await;
    let pem = outrigger_issuer::ca::Ca::generate("cluster.local").unwrap();
    let pem = pem.pem().certificates.clone();
    running.maps.set(Ok(pem.clone()));
    running.cluster.apply(
        "
kind: BackendTLSPolicy
metadata: {namespace: shop, name: p}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  validation: {hostname: a.b, caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}
",
    );
    let read = || {
        let source = running.cluster.index.key_sources().borrow().first().cloned().unwrap();
        let keys = running.cluster.index.read(|store| store.keys_at(&source).cloned());
        keys.unwrap().jwks().map_or(0, |lines| lines.lines().count())
    };
    for (value, certificates) in [
        (Ok(pem.clone()), 1),
        (Ok(pem.repeat(2)), 2),
        (Err("nobody answers"), 2),
        (Err("there is no ConfigMap ca"), 0),
        (Ok(pem.clone()), 1),
        (Ok("nothing".to_owned()), 0),
    ] {
        running.maps.set(value.clone());
        sleep(MINUTE).await;
        assert_eq!(read(), certificates, "{value:?}");
    }
}

/// Else a sidecar that begins with a controller that has just begun would hear that there are none.
#[tokio::test(start_paused = true)]
async fn the_start_waits_for_keys_and_not_for_long() {
    for (slow, waits) in [(None, 0), (Some(2), 2), (Some(100), 5)] {
        let running = Running::start(&[]).await;
        *running.maps.0.slow.lock() = slow.map(|seconds| ("shop".into(), Duration::from_secs(seconds)));
        running.cluster.apply(&policy("shop", "orders", "a"));
        let began = Instant::now();
        running.cluster.index.first_keys(Duration::from_secs(5)).await;
        assert_eq!(began.elapsed().as_millis() / 1_000, waits, "{slow:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_asked_for_less_and_less_often() {
    let running = Running::start(&[]).await;
    running.maps.set(Err("no"));
    running.cluster.apply(&policy("shop", "orders", "a"));
    sleep(MINUTE).await;
    let first = running.maps.count();
    // 1, 2, 4, 8, 16 and 32 s, and sooner by up to a quarter.
    assert!((6..=8).contains(&first), "{first}");
    sleep(30 * MINUTE).await;
    let rest = running.maps.count() - first;
    assert!((30..=41).contains(&rest), "{rest}");
}

/// A megabyte of keys takes milliseconds of a processor, which all namespaces share.
#[tokio::test(start_paused = true)]
async fn sets_are_read_one_after_the_other() {
    let running = Running::start(&[]).await;
    let shared = Arc::new(shared(&running));
    let held = shared.fetcher.reads.0.turn("evil".into()).await.ok().unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    for namespace in ["evil", "evil", "evil", "shop"] {
        let (shared, order) = (Arc::clone(&shared), Arc::clone(&order));
        tokio::spawn(async move {
            let source = source(namespace, MINUTE);
            let fetched = shared.fetcher.fetch(&source).await.ok().unwrap();
            let read = shared.fetcher.read(&source, fetched, move |json| {
                order.lock().push(namespace);
                Ok::<_, String>(json.len())
            });
            assert_eq!(read.await, Ok(jwks("one").len()));
        });
        sleep(Duration::from_millis(1)).await;
    }
    sleep(MINUTE).await;
    assert_eq!((shared.fetcher.reads.0.waiting(), order.lock().len()), (4, 0));
    drop(held);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(*order.lock(), ["evil", "shop", "evil", "evil"]);
}

/// However many sidecars say it, and however often: who sends tokens of made-up keys makes nobody ask more.
#[tokio::test(start_paused = true)]
async fn a_key_that_sidecars_do_not_know_is_asked_for_at_most_once_a_minute() {
    let running = Running::start(&[]).await;
    // ConfigMaps are looked at twice a minute anyway; a URL would not be for a day.
    let source = source("shop", Duration::from_secs(86_400));
    let shared = Arc::new(shared(&running));
    let mut following = Following::default();
    following.update(&shared, &[source.clone()].into());
    sleep(Duration::from_secs(10)).await;
    assert_eq!(running.maps.count(), 1);
    // Half an hour of it, every second.
    for _ in 0..1_800 {
        following.ask(&source);
        sleep(Duration::from_secs(1)).await;
    }
    let asked = running.maps.count() - 1;
    assert!((29..=31).contains(&asked), "{asked}");
    sleep(Duration::from_secs(3_600)).await;
    assert!(running.maps.count() - 1 <= asked + 1, "nobody has asked since");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_whose_servers_never_answer_holds_up_no_other() {
    let hanging: Vec<String> = (0..MAX_SOURCES + 6).map(|n| format!("p{n:02}")).collect();
    let policies: Vec<(&str, &str)> = hanging.iter().map(|name| ("evil", &**name)).collect();
    let running = Running::start(&[]).await;
    *running.maps.0.slow.lock() = Some(("evil".into(), Duration::from_secs(9)));
    policies
        .iter()
        .for_each(|(namespace, name)| running.cluster.apply(&policy(namespace, name, name)));
    sleep(Duration::from_secs(5)).await;
    let before = Instant::now();
    running.cluster.apply(&policy("shop", "orders", "orders"));
    while running.told("shop") != [jwks("one")] {
        sleep(Duration::from_millis(10)).await;
        assert!(before.elapsed() < Duration::from_secs(1));
    }
    sleep(10 * MINUTE).await;
    let under_way = running.maps.0.under_way.lock()[&Arc::<str>::from("evil")];
    assert_eq!(under_way.1, PER_NAMESPACE);
    let sources = running.cluster.index.key_sources().borrow().clone();
    let refused = running.cluster.index.read(|store| {
        let mut sources = sources.iter().filter_map(|source| store.keys_at(source));
        sources.by_ref().filter(|keys| keys.problem.is_some()).count()
    });
    assert_eq!(refused, 6);
}

/// Sixteen of them had all turns there were, once, for half a minute each time.
#[tokio::test(start_paused = true)]
async fn places_that_are_silent_hold_up_no_other_namespace_however_many_there_are() {
    let answer = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let cut = |body: &str, at: usize| says(&answer(body)[..at]);
    let small = jwks("good");
    let large = format!("{small}{}", " ".repeat(200_000));
    let deaf = Says {
        connects: false,
        answer: String::new(),
    };
    for (what, hostile, namespaces, honest, seconds) in [
        ("connections that are never made", deaf.clone(), 16, &small, 0),
        ("requests that are never answered", says(""), 16, &small, 0),
        ("heads that never end", says("HTTP/1.1 200 OK\r\n"), 16, &small, 0),
        ("bodies that never come", cut(&large, 50), 16, &small, 0),
        ("large bodies that never end", cut(&large, 100_000), 16, &small, 0),
        // In turn with them.
        ("connections that are never made", deaf, 200, &small, 8),
        ("requests that are never answered", says(""), 200, &small, 8),
        ("large bodies that never end", cut(&large, 100_000), 16, &large, 8),
    ] {
        let running = Running::start(&[]).await;
        *running.maps.0.servers.lock() = Some((hostile, says(&answer(honest))));
        for n in 0..namespaces {
            let namespace = format!("evil{n}");
            for name in ["a", "b", "c"] {
                running.cluster.apply(&policy_of_service(&namespace, name));
            }
        }
        sleep(Duration::from_secs(1)).await;
        let before = Instant::now();
        running.cluster.apply(&policy_of_service("shop", "orders"));
        while running.told("shop") != [small.clone()] {
            sleep(Duration::from_millis(10)).await;
            assert!(before.elapsed() < MINUTE, "{what}, {namespaces}: never");
        }
        let took = before.elapsed();
        assert!(
            took <= Duration::from_millis(seconds * 1_000 + 100),
            "{what}, {namespaces}: {took:?}"
        );
    }
}

#[test]
fn a_problem_is_since_it_began() {
    let cluster = Cluster::new();
    cluster.apply(&policy("shop", "orders", "a"));
    let source = cluster.index.key_sources().borrow().first().cloned().unwrap();
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    for (seconds, why) in [(1, "a"), (2, "a"), (3, "b")] {
        cluster.index.set_keys(&source, Err(why.to_owned()), at(seconds));
    }
    let problem = cluster
        .index
        .read(|store| store.keys_at(&source).unwrap().problem.clone().unwrap());
    assert_eq!((problem.since, &*problem.why), (at(1), "b"));
}

/// What is at a place is a stranger's, and a status is read by who wrote the policy.
#[test]
fn of_a_set_what_verifies_is_told_and_nothing_else() {
    let source = KeySource {
        namespace: "shop".into(),
        place: crate::objects::keys::KeyPlace::Service {
            name: "login".into(),
            port: 80,
            path: "/keys".into(),
        },
        cache: MINUTE,
        timeout: MINUTE,
    };
    let usable = |json: &str| usable(&source, json.as_bytes());
    let one = jwks("one");
    let key = |json: &str| one.replacen("\"keys\":[", &format!("\"keys\":[{json},"), 1);
    for set in [
        one.replace(
            "\"x\"",
            "\"d\":\"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A\",\"x5c\":[\"MIIC\"],\"x\"",
        ),
        one.replacen('{', "{\"next\":\"secret\",", 1),
        key("{\"kty\":\"oct\",\"kid\":\"secret\",\"alg\":\"HS256\",\"k\":\"c2VjcmV0\"}"),
        key("{\"kty\":\"RSA\",\"kid\":\"short\",\"n\":\"AQAB\",\"e\":\"AQAB\"}"),
        key("{}"),
        key("1"),
    ] {
        assert_eq!(usable(&set).as_deref(), Ok(&*one), "{set}");
    }
    let more = "none of its keys can be used; the log of the controller has more";
    for (set, why) in [
        (
            "{\"keys\":[{\"kty\":\"oct\",\"kid\":\"secret\",\"alg\":\"HS256\",\"k\":\"c2VjcmV0\"}]}",
            more,
        ),
        ("{\"keys\":[{\"kty\":\"secret\"}]}", more),
        ("{\"keys\":[\"secret\"]}", more),
        ("{\"keys\":[]}", "it has no keys"),
        ("secret", "it is no JWK Set (line 1, column 1)"),
        ("{\"secret\":\"secret\"}", "it is no JWK Set (line 1, column 19)"),
        ("", "it is no JWK Set (line 1, column 0)"),
        ("[", "it is no JWK Set (line 1, column 0)"),
    ] {
        assert_eq!(usable(set), Err(why.to_owned()), "{set}");
    }
}
