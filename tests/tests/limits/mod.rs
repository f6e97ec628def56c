//! How much: RateLimitPolicies, through real sidecars with real mutual TLS, in HTTP/1, HTTP/2 and gRPC.
//!
//! The decision itself has properties of its own (`limits/tests`). Here is how the sidecar finds its facts, what callers hear, and what is
//! told. An interval is an hour, so that nothing depends on how fast a test runs.

mod connections;
mod global;
mod shared;
mod tokens;
mod undeclared;

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderValue, Method, Response};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{
    App, Authority, Collector, Http, SOON, Seen, Sidecar, attribute, id, metric, request, text, until,
};
use sfv::{List, ListEntry, Parser};

const DAY: Duration = Duration::from_secs(86_400);

/// Does not wait for ever.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it takes too long")
}

/// An app, its sidecar with policies, and the sidecars of two workloads that call it.
struct Scene {
    authority: Authority,
    collector: Collector,
    _app: App,
    orders: RunningProxy,
    web: RunningProxy,
}

impl Scene {
    async fn new(policies: &str) -> Self {
        let authority = Authority::start(&["web", "jobs", "orders"], DAY).await;
        let collector = Collector::start().await;
        let app = App::start(|request| async move {
            let mut response = Response::new(text(""));
            let headers = response.headers_mut();
            if request.headers().contains_key("content-type") {
                headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                headers.insert("grpc-status", HeaderValue::from_static("0"));
            }
            if request.uri().path() == "/own" {
                headers.insert("x-ratelimit-limit", HeaderValue::from_static("7"));
                headers.insert("ratelimit", HeaderValue::from_static("\"own\";r=7"));
            }
            response
        })
        .await;
        let orders = Sidecar::new("orders")
            .protects(app.address)
            .with(&format!("rateLimitPolicies: [{policies}]"))
            .with(&collector.line());
        let orders = orders.start(&authority).await;
        let web = caller(&authority, &orders, "web").await;
        Self {
            authority,
            collector,
            _app: app,
            orders,
            web,
        }
    }

    fn to(&self) -> SocketAddr {
        self.web.outbound[0]
    }

    async fn get(&self, path: &str) -> Seen {
        Http::one().get(self.to(), path).await
    }

    fn counted(&self, decision: &str, limit: &str) -> u64 {
        let labels = [format!("decision=\"{decision}\""), format!("limit=\"{limit}\"")];
        let labels = [labels[0].as_str(), labels[1].as_str()];
        metric(&self.orders, "outrigger_limited_requests_total", &labels)
    }
}

async fn caller(authority: &Authority, orders: &RunningProxy, name: &str) -> RunningProxy {
    let at = [(orders.inbound[0], Some(id("orders")))];
    let caller = Sidecar::new(name).calls("orders", "detect", &at, "{retry: {attempts: 0}}");
    caller.start(authority).await
}

/// With a header.
async fn with(http: &Http, to: SocketAddr, path: &str, name: &'static str, value: &str) -> Seen {
    let mut request = request(Method::GET, to, path, "");
    request.headers_mut().insert(name, value.parse().unwrap());
    http.send(request).await.unwrap()
}

fn number(seen: &Seen, name: &str) -> u64 {
    seen.headers[name].to_str().unwrap().parse().unwrap()
}

/// The parameters of one item of a List (RFC 9651 section 3.1), as a library of others reads it.
fn numbers(seen: &Seen, header: &str, is_it: impl Fn(&str) -> bool) -> Vec<(&'static str, i64)> {
    let lines = seen.headers.get_all(header).iter();
    let text = lines.map(|line| line.to_str().unwrap()).collect::<Vec<_>>().join(", ");
    let list: List = Parser::new(&text).parse().unwrap();
    let mut items = list.iter().filter_map(|entry| match entry {
        ListEntry::Item(item) => Some(item),
        ListEntry::InnerList(_) => None,
    });
    let item = items.find(|item| item.bare_item.as_string().is_some_and(|name| is_it(name.as_str())));
    let known = ["q", "w", "r", "t"];
    let parameters = item.unwrap().params.iter();
    let numbers = parameters.map(|(key, value)| {
        let key = known.into_iter().find(|known| *known == key.as_str());
        (key.unwrap(), value.as_integer().unwrap().into())
    });
    numbers.collect()
}

const TWO: &str = "{name: two, spec: {limits: [{name: all, rate: {requests: 2, interval: 1h}, scope: Pod}]}}";

#[tokio::test]
async fn beyond_the_limit_is_429_in_every_version_and_8_in_grpc() {
    for http in [Http::one(), Http::two()] {
        let scene = Scene::new(TWO).await;
        for _ in 0..2 {
            let seen = http.get(scene.to(), "/").await;
            assert_eq!(seen.status, 200);
            assert!(!seen.headers.contains_key("ratelimit") && !seen.headers.contains_key("x-ratelimit-limit"));
        }
        let seen = http.get(scene.to(), "/").await;
        assert_eq!((seen.status, seen.error()), (429, Some("rate-limited")));
        // Half an hour for each request.
        let wait = number(&seen, "retry-after");
        assert!((1..=1800).contains(&wait), "{wait}");
        assert_eq!(
            (scene.counted("admitted", "all"), scene.counted("limited", "all")),
            (2, 1)
        );
    }
    let scene = Scene::new(TWO).await;
    let call = async || {
        let mut call = request(Method::POST, scene.to(), "/shop.Orders/Get", "");
        let grpc = HeaderValue::from_static("application/grpc");
        call.headers_mut().insert("content-type", grpc);
        Http::two().send(call).await.unwrap()
    };
    for _ in 0..2 {
        assert_eq!(call().await.headers["grpc-status"], "0");
    }
    let seen = call().await;
    assert_eq!((seen.status, seen.error()), (200, Some("rate-limited")));
    let said = |name: &str| {
        let trailer = seen.trailers.as_ref().and_then(|trailers| trailers.get(name));
        trailer
            .unwrap_or_else(|| &seen.headers[name])
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(said("grpc-status"), "8");
    let pushback: u64 = said("grpc-retry-pushback-ms").parse().unwrap();
    assert!((1..=1_800_000).contains(&pushback), "{pushback}");
    assert!(said("retry-after").parse::<u64>().is_ok());
}

#[tokio::test]
async fn what_is_left_is_said_as_the_policy_says() {
    let of = |headers: &str| {
        format!(
            "{{name: p, spec: {{response: {{headers: {headers}}}, limits: [\
             {{name: wide, rate: {{requests: 50, interval: 1h}}, scope: Pod}}, \
             {{name: narrow, rate: {{requests: 3, interval: 1h}}, scope: Pod}}]}}}}"
        )
    };
    let scene = Scene::new(&of("IETF")).await;
    let seen = scene.get("/").await;
    let ours = |name: &str| name == "narrow";
    assert_eq!(numbers(&seen, "ratelimit-policy", ours), [("q", 3), ("w", 3600)]);
    // A third of an hour for each that is missing.
    let left = numbers(&seen, "ratelimit", ours);
    assert!(matches!(left[..], [("r", 2), ("t", 1..=1200)]), "{left:?}");
    // A list may have several lines.
    let seen = scene.get("/own").await;
    assert_eq!(numbers(&seen, "ratelimit", |name| name == "own"), [("r", 7)]);
    assert_eq!(numbers(&seen, "ratelimit", ours)[0], ("r", 1));
    scene.get("/").await;
    let seen = scene.get("/").await;
    assert_eq!(seen.status, 429);
    // Not later than Retry-After says (section "Server Behavior" of the draft), and not when all of the three are there again.
    let left = numbers(&seen, "ratelimit", ours);
    let after = i64::try_from(number(&seen, "retry-after")).unwrap();
    assert_eq!((left[0], left[1]), (("r", 0), ("t", after)));
    assert!((1..=1200).contains(&after), "{after}");

    let scene = Scene::new(&of("Legacy")).await;
    let seen = scene.get("/").await;
    assert_eq!(
        (
            number(&seen, "x-ratelimit-limit"),
            number(&seen, "x-ratelimit-remaining")
        ),
        (3, 2)
    );
    assert!((1..=1200).contains(&number(&seen, "x-ratelimit-reset")));
    assert!(!seen.headers.contains_key("ratelimit"));
    // The app's own word stays alone.
    let seen = scene.get("/own").await;
    assert_eq!(seen.headers["x-ratelimit-limit"], "7");
    assert!(!seen.headers.contains_key("x-ratelimit-remaining"));
}

#[tokio::test]
async fn a_shadow_refuses_nothing_and_is_told() {
    let mut scene = Scene::new(&TWO.replace("spec: {", "spec: {mode: Shadow, response: {headers: IETF}, ")).await;
    for _ in 0..5 {
        let seen = scene.get("/").await;
        assert_eq!(seen.status, 200);
        assert!(!seen.headers.contains_key("ratelimit"));
    }
    assert_eq!(
        (scene.counted("limited", "all"), scene.counted("shadow", "all")),
        (0, 3)
    );
    scene.orders.telemetry().flush(SOON).await;
    let mut said = 0;
    for _ in 0..5 {
        let (_, span) = scene.collector.any().await;
        if attribute(&span, "outrigger.limit.decision").as_deref() == Some("shadow") {
            assert_eq!(attribute(&span, "outrigger.limit.policy").as_deref(), Some("shop/two"));
            assert_eq!(attribute(&span, "outrigger.limit.name").as_deref(), Some("all"));
            said += 1;
        }
    }
    assert_eq!(said, 3);
}

/// Which requests, of whom, and what they cost.
#[tokio::test]
async fn limits_are_of_the_requests_and_callers_that_they_name() {
    let scene = Scene::new(
        "{name: p, spec: {limits: [\
         {name: login, matches: [{httpAttributes: [{paths: [{type: Exact, value: /login}]}]}], rate: {requests: 1, interval: 1h}, scope: Pod}, \
         {name: callers, matches: [{httpAttributes: [{paths: [{type: PathPrefix, value: /of}]}]}], per: [{type: Identity}], \
          overrides: [{sources: [{type: ServiceAccount, serviceAccount: {name: jobs}}], rate: {requests: 3, interval: 1h}}], \
          rate: {requests: 1, interval: 1h}, scope: Pod}, \
         {name: hidden, matches: [{httpAttributes: [{paths: [{type: PathPrefix, value: /hidden}]}]}], cost: {header: x-cost, max: 5}, \
          rate: {requests: 10, interval: 1h}, scope: Pod}, \
         {name: heavy, matches: [{httpAttributes: [{paths: [{type: PathPrefix, value: /heavy}]}]}], cost: {header: x-cost, max: 5}, \
          rate: {requests: 10, interval: 1h}, scope: Pod}]}}",
    )
    .await;
    assert_eq!(scene.get("/login").await.status, 200);
    // However it is written.
    for path in ["/login", "/login/", "/LOGIN", "//login", "/%6Cogin", "/a/%2e%2e/login"] {
        assert_eq!(scene.get(path).await.status, 429, "{path}");
    }
    assert_eq!(scene.get("/").await.status, 200);
    // What is named for this hop alone counts too.
    for status in [200, 200, 429] {
        // At the app's sidecar itself: another one takes it away.
        let mut hidden = request(Method::GET, scene.orders.inbound[0], "/hidden", "");
        hidden.headers_mut().insert("x-cost", HeaderValue::from_static("5"));
        hidden
            .headers_mut()
            .insert("connection", HeaderValue::from_static("x-cost"));
        assert_eq!(Http::one().send(hidden).await.unwrap().status, status);
    }
    let jobs = caller(&scene.authority, &scene.orders, "jobs").await;
    for (by, admitted) in [(scene.to(), 1), (jobs.outbound[0], 3)] {
        for n in 0..4 {
            let expected = if n < admitted { 200 } else { 429 };
            assert_eq!(Http::one().get(by, "/of").await.status, expected, "{n} of {admitted}");
        }
    }
    // 5, not 100; then 1, which is no number; then 4.
    for (cost, status) in [("100", 200), ("many", 200), ("4", 200), ("0", 429)] {
        let seen = with(&Http::one(), scene.to(), "/heavy", "x-cost", cost).await;
        assert_eq!(seen.status, status, "{cost}");
    }
}

/// Who is refused takes nothing of what a limit has.
#[tokio::test]
async fn only_who_is_let_in_takes_anything() {
    let authority = Authority::start(&["web", "jobs", "orders"], DAY).await;
    let app = App::start(|_| async { Response::new(text("")) }).await;
    let orders = Sidecar::new("orders").protects(app.address).with(&format!(
        "accessPolicies: [{{name: web, spec: {{rules: [{{sources: [{{type: ServiceAccount, serviceAccount: {{name: web}}}}]}}]}}}}]\n\
         rateLimitPolicies: [{TWO}]"
    ));
    let orders = orders.start(&authority).await;
    let web = caller(&authority, &orders, "web").await;
    let jobs = caller(&authority, &orders, "jobs").await;
    for _ in 0..5 {
        assert_eq!(Http::one().get(jobs.outbound[0], "/").await.status, 403);
    }
    for status in [200, 200, 429] {
        assert_eq!(Http::one().get(web.outbound[0], "/").await.status, status);
    }
}

/// Ten thousand values of a header find no more buckets than there may be: the others share one, or are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_values_of_a_header_find_a_bounded_number_of_buckets() {
    for (overflow, expected) in [("Shared", 103), ("Reject", 100)] {
        let scene = Scene::new(&format!(
            "{{name: p, spec: {{limits: [{{name: keys, per: [{{type: Header, header: {{name: x-key}}}}], keys: {{max: 100, overflow: {overflow}}}, \
             rate: {{requests: 3, interval: 1h}}, scope: Pod}}]}}}}"
        ))
        .await;
        // At the app's sidecar itself, over few connections.
        let to = scene.orders.inbound[0];
        let tasks = (0..10).map(|task| {
            tokio::spawn(async move {
                let http = Http::two();
                let mut admitted = 0;
                for n in 0..1000 {
                    let key = format!("{task}-{n}-{}", "x".repeat(1000));
                    let seen = with(&http, to, "/", "x-key", &key).await;
                    admitted += usize::from(seen.status == 200);
                }
                admitted
            })
        });
        let mut admitted = 0;
        for task in tasks.collect::<Vec<_>>() {
            admitted += task.await.unwrap();
        }
        assert_eq!(admitted, expected, "{overflow}");
        let config = Http::one().get(scene.orders.admin, "/config").await;
        let config: serde_json::Value = serde_json::from_slice(&config.body).unwrap();
        let limit = &config["targets"]["limits"][0]["limits"][0];
        assert_eq!(
            (&limit["name"], &limit["keys"], &limit["maxKeys"]),
            (&"keys".into(), &100.into(), &100.into())
        );
    }
}
