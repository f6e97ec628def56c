//! What is told of a decision: counters, the span, `/config` and the sidecar's log, and nothing to whom it refuses. And what Audit
//! mode changes: nothing.

use std::time::Duration;

use http::Method;
use outrigger_tests::mesh::{Authority, Collector, Http, SOON, Sidecar, attribute, heard, id, metric, request};
use outrigger_tests::program::Program;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::scene::{NAMES, Scene, Witness};
use super::{DAY, soon};

const WEB: &str = "{type: ServiceAccount, serviceAccount: {name: web}}";

/// A standalone file's policies: web may read, nobody may come to /admin, and tomorrow jobs may not come at all.
fn policies() -> String {
    format!(
        "accessPolicies: [\
         {{name: readers, spec: {{rules: [{{name: read, sources: [{WEB}], httpAttributes: [{{methods: [GET]}}]}}]}}}}, \
         {{name: no-admin, spec: {{action: Deny, rules: [{{name: admin, sources: [{{type: Any}}], httpAttributes: [{{paths: [{{type: PathPrefix, value: /admin}}]}}]}}]}}}}, \
         {{name: tomorrow, spec: {{action: Deny, mode: Audit, rules: [{{name: reports, sources: [{{type: Any}}], httpAttributes: [{{paths: [{{type: PathPrefix, value: /reports}}]}}]}}]}}}}]"
    )
}

fn decided(by: &outrigger_proxy::app::RunningProxy, labels: &[&str]) -> u64 {
    metric(by, "outrigger_access_total", labels)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_span_and_the_counters_name_policy_and_rule_and_the_caller_hears_of_neither() {
    let authority = Authority::start(&NAMES, DAY).await;
    let mut collector = Collector::start().await;
    let app = Witness::start().await;
    let orders = Sidecar::new("orders")
        .protects(app.address)
        .with(&policies())
        .with(&collector.line());
    let orders = orders.start(&authority).await;
    let web = Sidecar::new("web").with(&collector.line());
    let web = web.calls(
        "orders",
        "http1",
        &[(orders.inbound[0], Some(id("orders")))],
        "{retry: {attempts: 0}}",
    );
    let web = web.start(&authority).await;
    // The request; its status; the decision, the policy, the rule and the reason in the span; the decision as it is counted.
    let none = [None, None, None, None];
    let some = |decision, policy, rule, reason| [Some(decision), Some(policy), rule, reason];
    for (n, (method, path, status, span, counted)) in [
        (Method::GET, "/orders", 200, none, ["allowed", "shop/readers", "read"]),
        (
            Method::POST,
            "/orders",
            403,
            some("denied", "shop/readers", None, None),
            ["denied", "shop/readers", ""],
        ),
        (
            Method::GET,
            "/admin",
            403,
            some("denied", "shop/no-admin", Some("admin"), None),
            ["denied", "shop/no-admin", "admin"],
        ),
        (
            Method::GET,
            "/x/..%2fadmin",
            403,
            some("denied", "shop/no-admin", Some("admin"), Some("ambiguous-path")),
            ["denied", "shop/no-admin", "admin"],
        ),
        (
            Method::GET,
            "/reports",
            200,
            some("audited", "shop/tomorrow", Some("reports"), None),
            ["audited", "shop/tomorrow", "reports"],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let labels = counted.map(|value| format!("\"{value}\""));
        let labels: Vec<&str> = labels
            .iter()
            .map(String::as_str)
            .filter(|label| *label != "\"\"")
            .collect();
        let before = decided(&orders, &labels);
        let trace = format!("0af7651916cd43dd8448eb22{n:08x}");
        let mut asks = request(method, web.outbound[0], path, "");
        let parent = format!("00-{trace}-b7ad6b7169203331-01");
        asks.headers_mut().insert("traceparent", parent.parse().unwrap());
        let seen = Http::one().send(asks).await.unwrap();
        assert_eq!(seen.status, status, "{path}");
        let said = format!("{:?} {}", seen.headers, String::from_utf8_lossy(&seen.body));
        for name in ["readers", "no-admin", "tomorrow", "reports"] {
            assert!(!said.contains(name), "{path}: {said}");
        }
        assert_eq!(decided(&orders, &labels), before + 1, "{path}: {labels:?}");
        for proxy in [&web, &orders] {
            proxy.telemetry().flush(SOON).await;
        }
        let trace: Vec<u8> = (0..16)
            .map(|i| u8::from_str_radix(&trace[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let spans = collector.trace(&trace, 2).await;
        let of = |service: &str| {
            spans
                .iter()
                .find(|(name, _)| name == service)
                .map(|(_, span)| span)
                .unwrap()
        };
        let keys = ["decision", "policy", "rule", "reason"].map(|key| format!("outrigger.access.{key}"));
        let told = keys.each_ref().map(|key| attribute(of("orders"), key));
        assert_eq!(told.each_ref().map(Option::as_deref), span, "{path}");
        // The caller's span has the code alone.
        let error = (status == 403).then_some("access-denied");
        assert_eq!(attribute(of("web"), "error.type").as_deref(), error, "{path}");
        assert!(keys.iter().all(|key| attribute(of("web"), key).is_none()), "{path}");
    }
    // Both are told: what lets it in, and what would not.
    assert_eq!(decided(&orders, &["allowed", "shop/readers"]), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_shows_what_is_in_force() {
    let authority = Authority::start(&NAMES, DAY).await;
    let app = Witness::start().await;
    let orders = Sidecar::new("orders")
        .protects(app.address)
        .with(&policies())
        .start(&authority)
        .await;
    let config = Http::one().get(orders.admin, "/config").await.body;
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let all = &config["targets"]["access"]["others"];
    let policies = ["enforced", "audited"].map(|list| all[list].as_array().unwrap());
    let told: Vec<String> = policies
        .iter()
        .flat_map(|list| list.iter())
        .map(|policy| format!("{} {} {}", policy["name"], policy["action"], policy["rules"][0]["name"]))
        .collect();
    assert_eq!(
        told,
        [
            r#""shop/no-admin" "Deny" "admin""#,
            r#""shop/readers" "Allow" "read""#,
            r#""shop/tomorrow" "Deny" "reports""#,
        ]
    );
    let sources = policies[0][1]["rules"][0]["sources"].to_string();
    assert_eq!(sources, r#"[["spiffe://mesh.test/ns/shop/sa/web"]]"#);
}

/// Everything that a policy could refuse, in Audit mode: the app cannot tell whether there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_mode_changes_nothing_and_counts() {
    let scene = Scene::new().await;
    let asked = async |scene: &Scene| {
        let mut outcomes = Vec::new();
        for to in [scene.web.outbound[0], scene.jobs.outbound[0], scene.orders.inbound[0]] {
            // Each has one request: for a second one it may make a connection more than it needs, which is carried as bytes.
            for http in [Http::one, Http::two] {
                outcomes.push(http().get(to, "/a//b/..%2fc").await.status);
                outcomes.push(http().post(to, "/", "x").await.status);
            }
        }
        for to in [scene.web.outbound[1], scene.orders.inbound[0]] {
            let echoed = soon(heard(to, b"\0word", 5)).await.is_ok();
            outcomes.push(u16::from(echoed));
        }
        outcomes
    };
    let without = asked(&scene).await;
    assert!(without.iter().all(|outcome| [1, 200].contains(outcome)), "{without:?}");
    assert_eq!(decided(&scene.orders, &[]), 0);
    let calls = without.len() as u64;
    for (policy, counted) in [
        ("{name: nobody, spec: {mode: Audit}}", calls),
        (
            "{name: nobody, spec: {mode: Audit, action: Deny, rules: [{sources: [{type: Any}]}]}}",
            calls,
        ),
        ("{name: nobody, spec: {mode: Audit, exclusive: false}}", 0),
    ] {
        let mut living = TcpStream::connect(scene.orders.inbound[0]).await.unwrap();
        living.write_all(b"\0").await.unwrap();
        soon(living.read_u8()).await.unwrap();
        let before = decided(&scene.orders, &["audited"]);
        scene.enforces(&format!("[{policy}]")).await;
        let before = before.min(decided(&scene.orders, &["audited"]));
        assert_eq!(asked(&scene).await, without, "{policy}");
        assert_eq!(decided(&scene.orders, &["audited"]) - before, counted, "{policy}");
        assert_eq!(decided(&scene.orders, &["denied"]), 0, "{policy}");
        living.write_all(b"\0").await.unwrap();
        soon(living.read_u8()).await.unwrap();
        scene.enforces("[]").await;
    }
}

/// With the program itself: its log says who was refused and why, and no more of that than it has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_whom_a_policy_refuses_and_is_not_flooded() {
    let authority = Authority::start(&NAMES, DAY).await;
    let app = Witness::start().await;
    let orders = Sidecar::new("orders").protects(app.address).with(&policies());
    let orders = Program::start("orders", orders, &authority, None).await;
    let http = Http::one();
    for _ in 0..500 {
        assert_eq!(http.get(orders.inbound[0], "/admin").await.status, 403);
    }
    for _ in 0..50 {
        assert!(soon(heard(orders.inbound[0], b"\0word", 1)).await.is_err());
    }
    super::until("it is logged", async || {
        orders.said("a request is refused by a policy") > 0
    })
    .await;
    assert!(orders.said("shop/no-admin") > 0);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // 20 in 10 s, of both together.
    let said = orders.said("is refused by a policy");
    assert!((1..=60).contains(&said), "{said} lines");
}

/// Who has been let in, and who has not been is not there; whatever policies there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_counts_whom_it_has_let_in() {
    let scene = Scene::new().await;
    let [to, bytes, directly] = [scene.web.outbound[0], scene.web.outbound[1], scene.orders.inbound[0]];
    for http in [Http::one, Http::two] {
        assert_eq!(http().get(to, "/one").await.status, 200);
        assert_eq!(http().post(to, "/two", "x").await.status, 200);
        assert_eq!(http().get(directly, "/").await.status, 200);
    }
    let mut stream = tokio::net::TcpStream::connect(bytes).await.unwrap();
    stream.write_all(b"\0word").await.unwrap();
    stream.read_exact(&mut [0; 5]).await.unwrap();
    scene
        .enforces(&format!("[{{name: web, spec: {{rules: [{{sources: [{WEB}]}}]}}}}]"))
        .await;
    assert_eq!(Http::one().get(to, "/").await.status, 200);
    assert_eq!(Http::one().get(scene.jobs.outbound[0], "/").await.status, 403);
    assert_eq!(Http::one().get(directly, "/").await.status, 403);

    let page = Http::one().get(scene.orders.admin, "/callers").await.body;
    let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
    let callers = page["callers"].as_array().unwrap();
    let port = scene.app.address.port();
    let counted = |identity: Option<&str>, method: Option<&str>| {
        let is_it = |of: &&serde_json::Value| {
            (of["identity"].as_str(), of["method"].as_str()) == (identity, method) && of["port"] == port
        };
        callers.iter().find(is_it).map_or(0, |of| of["count"].as_u64().unwrap())
    };
    let web = Some("spiffe://mesh.test/ns/shop/sa/web");
    assert_eq!(
        (counted(web, Some("GET")), counted(web, Some("POST"))),
        (3, 2),
        "{page}"
    );
    assert_eq!(counted(None, Some("GET")), 2, "{page}");
    assert!(counted(web, None) >= 1, "{page}");
    assert!(
        callers
            .iter()
            .all(|of| of["identity"] != "spiffe://mesh.test/ns/shop/sa/jobs"),
        "{page}"
    );
    assert_eq!(page["others"], 0);
}

/// A port that nobody listens at: whoever tries ports, methods and protocols fills no series.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_app_has_not_taken_is_not_counted() {
    let authority = Authority::start(&["orders"], DAY).await;
    // Bound, and not listening: it is nobody else's meanwhile.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let orders = Sidecar::new("orders").protects(nobody.local_addr().unwrap());
    let orders = orders.start(&authority).await;
    let to = orders.inbound[0];
    for method in [Method::GET, Method::POST, Method::from_bytes(b"JUNK").unwrap()] {
        for http in [Http::one, Http::two] {
            let seen = http().send(request(method.clone(), to, "/", "")).await.unwrap();
            assert_eq!(seen.error(), Some("app-unavailable"), "{method}");
        }
    }
    let mut grpc = request(Method::POST, to, "/shop.Orders/Get", "");
    let kind = "application/grpc".parse().unwrap();
    grpc.headers_mut().insert("content-type", kind);
    let seen = Http::two().send(grpc).await.unwrap();
    assert_eq!(seen.error(), Some("app-unavailable"));
    soon(heard(to, b"\0word", 1)).await.unwrap_err();

    let page = Http::one().get(orders.admin, "/callers").await.body;
    let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
    assert_eq!(page["callers"], serde_json::json!([]));
    assert_eq!(page["others"], 0);
}
