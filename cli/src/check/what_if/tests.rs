#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::file::policies;
use super::judge::{Change, Cluster, Outcome, Seen, changes, report};
use crate::check::Level;

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str, app: &str, hash: &str) -> Pod {
    of(json!({
        "metadata": {
            "namespace": "shop", "name": format!("{app}-{hash}-{name}"),
            "labels": {"app": app, "pod-template-hash": hash, "outrigger.dev/proxy-version": "0.1.0"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash}"), "uid": "1"}],
        },
        "spec": {
            "serviceAccountName": app,
            "containers": [
                {"name": app, "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}]},
                {"name": "outrigger-proxy"},
            ],
        },
        "status": {"phase": "Running"},
    }))
}

/// Two pods of orders behind a Service, one of web, and these policies.
fn cluster(policies: &[&str]) -> Cluster {
    let policies = policies
        .iter()
        .map(|policy| serde_saphyr::from_str::<DynamicObject>(policy).unwrap());
    Cluster {
        own_namespace: "outrigger".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        namespaces: vec![
            of(json!({"metadata": {"name": "shop", "labels": {"outrigger.dev/inject": "enabled", "team": "shop"}}})),
            of(json!({"metadata": {"name": "outrigger"}})),
        ],
        pods: vec![
            pod("1", "orders", "7d9c"),
            pod("2", "orders", "7d9c"),
            pod("1", "web", "5f6b"),
        ],
        services: vec![of(json!({
            "metadata": {"namespace": "shop", "name": "orders"},
            "spec": {"selector": {"app": "orders"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        }))],
        policies: policies.collect(),
    }
}

/// An AccessPolicy of the namespace shop, in one line.
fn access(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: outrigger.dev/v1alpha1, kind: AccessPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {spec}}}"
    )
}

fn sees(callers: &Value, others: u64) -> Seen {
    of(json!({"seconds": 7300, "callers": callers, "others": others}))
}

fn callers() -> Value {
    let [web, jobs, scraper] =
        ["shop/sa/web", "shop/sa/jobs", "monitoring/sa/prometheus"].map(|id| format!("spiffe://cluster.local/ns/{id}"));
    json!([
        {"identity": web, "port": 8080, "method": "GET", "count": 5},
        {"identity": web, "port": 8080, "method": "POST", "count": 3},
        {"identity": web, "port": 8080, "method": "_OTHER", "count": 1},
        {"identity": jobs, "port": 8080, "method": "GET", "count": 2},
        {"identity": jobs, "port": 8080, "method": null, "count": 1},
        {"identity": scraper, "port": 9090, "method": "GET", "count": 9},
        {"identity": null, "port": 8080, "method": "GET", "count": 4},
    ])
}

/// What is found, a line each: a letter for the level, and the text; with the policies that there are, and those of the file.
fn found(now: &[&str], then: &str) -> Vec<String> {
    let cluster = cluster(now);
    let proposed = policies("new.yaml", then, "shop").unwrap();
    let changes = changes(&cluster, &proposed).unwrap();
    let seen: Vec<_> = changes.iter().map(|_| Ok(sees(&callers(), 0))).collect();
    let written = report(&proposed, &changes, &seen).findings.into_iter().map(|finding| {
        let level = match finding.level {
            Level::Good => "good",
            Level::Warning => "warning",
            Level::Wrong => "wrong",
        };
        format!("{level}: {} | {}", finding.text, finding.hint)
    });
    written.collect()
}

const ORDERS: &str = "targetRefs: [{kind: Service, name: orders}]";
const WEB: &str = "{type: ServiceAccount, serviceAccount: {name: web}}";
const SHOP: &str = "spiffe://cluster.local/ns/shop/sa";

/// Calls at the port that the policy selects, in the order in which they are told; of two pods together. What is of another port stays.
fn about(found: &[String], level: &str, call: &str) -> bool {
    found.iter().any(|line| line.starts_with(level) && line.contains(call))
}

#[test]
fn who_is_shut_out_who_is_let_in_and_what_cannot_be_judged() {
    let only_web = format!("{{{ORDERS}, rules: [{{sources: [{WEB}]}}]}}");
    let reads = format!("{{{ORDERS}, rules: [{{sources: [{WEB}], httpAttributes: [{{methods: [GET]}}]}}]}}");
    let paths = format!(
        "{{{ORDERS}, rules: [{{sources: [{WEB}], httpAttributes: [{{paths: [{{type: PathPrefix, value: /orders}}], hosts: [orders]}}]}}]}}"
    );
    let headers = format!(
        "{{{ORDERS}, action: Deny, rules: [{{name: debug, sources: [{{type: Any}}], httpAttributes: [{{headers: [{{name: x-debug, value: \"1\"}}]}}]}}]}}"
    );
    let addresses =
        format!("{{{ORDERS}, rules: [{{sources: [{{type: Address, address: {{cidrs: [10.0.0.0/8]}}}}]}}]}}");
    let plaintext = "{targetRefs: [{kind: Namespace, name: shop}], action: Deny, rules: [{name: strangers, sources: [{type: Unauthenticated}]}]}".to_owned();
    let labelled = format!(
        "{{{ORDERS}, rules: [{{sources: [{{type: Namespace, namespace: {{selector: {{matchLabels: {{team: shop}}}}}}}}]}}]}}"
    );
    // A token that is not good is refused whatever else lets the caller in, and bytes have none.
    let tokens = format!(
        "{{{ORDERS}, rules: [{{sources: [{{type: ServiceAccount, serviceAccount: {{name: \"*\"}}}}]}}], jwt: {{providers: [{{name: login, \
         issuer: i, audiences: [a], jwks: {{configMapRef: {{name: keys, key: jwks}}}}}}]}}}}"
    );
    let closed = "closes the port to what no policy allows";
    // The policy; who or what; what is to be said.
    for (spec, level, call, hint) in [
        (
            &only_web,
            "wrong",
            format!("shop/orders would refuse {SHOP}/jobs at port 8080: GET 4, bytes 2"),
            closed,
        ),
        (
            &only_web,
            "wrong",
            "shop/orders would refuse whoever has no identity at port 8080: GET 8".to_owned(),
            closed,
        ),
        (
            &only_web,
            "good",
            format!("shop/orders would let in {SHOP}/web at port 8080: GET 10, POST 6, _OTHER 2"),
            "",
        ),
        (
            &only_web,
            "good",
            "monitoring/sa/prometheus at port 9090: GET 18".to_owned(),
            "",
        ),
        (&reads, "wrong", format!("{SHOP}/web at port 8080: POST 6"), closed),
        (
            &reads,
            "warning",
            format!("{SHOP}/web at port 8080: _OTHER 2"),
            "(method)",
        ),
        (&reads, "good", format!("{SHOP}/web at port 8080: GET 10"), ""),
        (
            &paths,
            "warning",
            format!("{SHOP}/web at port 8080: GET 10, POST 6, _OTHER 2"),
            "(path, host)",
        ),
        (
            &paths,
            "wrong",
            format!("{SHOP}/jobs at port 8080: GET 4, bytes 2"),
            closed,
        ),
        (
            &headers,
            "warning",
            format!("{SHOP}/jobs at port 8080: GET 4"),
            "(header)",
        ),
        // A Deny rule that needs HTTP is met by bytes.
        (
            &headers,
            "wrong",
            format!("{SHOP}/jobs at port 8080: bytes 2"),
            "denies it by its rule debug",
        ),
        (
            &addresses,
            "warning",
            format!("{SHOP}/web at port 8080: GET 10"),
            "(address)",
        ),
        (
            &plaintext,
            "wrong",
            "whoever has no identity at port 8080: GET 8".to_owned(),
            "shop/new denies it by its rule strangers",
        ),
        (
            &plaintext,
            "good",
            format!("{SHOP}/jobs at port 8080: GET 4, bytes 2"),
            "",
        ),
        (
            &tokens,
            "warning",
            format!("{SHOP}/web at port 8080: GET 10"),
            "(token)",
        ),
        (&tokens, "good", format!("{SHOP}/jobs at port 8080: bytes 2"), ""),
        (
            &labelled,
            "good",
            format!("{SHOP}/jobs at port 8080: GET 4, bytes 2"),
            "",
        ),
    ] {
        let found = found(&[], &access("new", spec));
        let line = found
            .iter()
            .find(|line| line.starts_with(level) && line.contains(&call));
        let is_said = line.is_some_and(|line| line.contains(hint));
        assert!(is_said, "{level}: {call} ({hint}) of {spec} is not in {found:#?}");
    }
}

#[test]
fn policies_are_joined_with_those_that_are_there_or_replace_them() {
    let jobs =
        format!("{{{ORDERS}, rules: [{{sources: [{{type: ServiceAccount, serviceAccount: {{name: jobs}}}}]}}]}}");
    let web = format!("{{{ORDERS}, rules: [{{sources: [{WEB}]}}]}}");
    let call = format!("{SHOP}/jobs at port 8080");
    // Another policy lets them in.
    let joined = found(&[&access("jobs", &jobs)], &access("web", &web));
    assert!(about(&joined, "good", &call), "{joined:#?}");
    // The file says something else of the same one.
    let replaced = found(&[&access("callers", &jobs)], &access("callers", &web));
    assert!(about(&replaced, "wrong", &call), "{replaced:#?}");
    // Who is refused already is not shut out by this.
    assert!(
        !replaced.iter().any(|line| line.contains("no identity")),
        "{replaced:#?}"
    );
    // It is there, word for word.
    let same = found(&[&access("web", &web)], &access("web", &web));
    assert!(
        matches!(&same[..], [one] if one.starts_with("warning: no sidecar would be told anything else")),
        "{same:#?}"
    );
    // Of the mesh as a whole.
    let mesh = access("all", "{targetRefs: [{kind: Namespace, name: outrigger}]}")
        .replace("namespace: shop", "namespace: outrigger");
    let mesh = found(&[], &mesh);
    assert!(
        about(&mesh, "wrong", "shop/web would refuse") && about(&mesh, "wrong", "shop/orders would refuse"),
        "{mesh:#?}"
    );
}

#[test]
fn audit_mode_is_judged_as_if_it_were_enforced() {
    let audit = access(
        "new",
        &format!("{{{ORDERS}, mode: Audit, rules: [{{sources: [{WEB}]}}]}}"),
    );
    let found = found(&[], &audit);
    assert!(about(&found, "warning", "shop/new is in Audit mode"), "{found:#?}");
    assert!(
        about(&found, "wrong", &format!("{SHOP}/jobs at port 8080")),
        "{found:#?}"
    );
}

#[test]
fn what_is_not_known_is_said() {
    let cluster = cluster(&[]);
    let proposed = policies("new.yaml", &access("new", &format!("{{{ORDERS}}}")), "shop").unwrap();
    let changes: Vec<Change> = changes(&cluster, &proposed).unwrap();
    assert_eq!(changes.len(), 2, "web is not selected");
    let seen = [Ok(sees(&json!([]), 12)), Err("forbidden".to_owned())];
    let texts: Vec<String> = report(&proposed, &changes, &seen)
        .findings
        .iter()
        .map(ToString::to_string)
        .collect();
    let wrote = json!([{"identity": null, "port": 8080, "method": "GET 1\n✓ \u{1b}[2K", "count": u64::MAX}]);
    let wrote = [Ok(sees(&wrote, u64::MAX)), Ok(sees(&wrote, 1))];
    let wrote: String = report(&proposed, &changes, &wrote)
        .findings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(wrote.contains("GET 1\\n✓ \\u{1b}[2K 18446744073709551615"), "{wrote}");
    for part in [
        "! 12 calls cannot be judged",
        "shop/orders-7d9c-2\n    forbidden",
        "✓ 2 pods would be told of it",
        "2 hours ago",
    ] {
        assert!(texts.iter().any(|text| text.contains(part)), "{part}: {texts:#?}");
    }
}

/// Nobody takes an exit code of 0 for a look at all callers when it was none.
#[test]
fn what_could_not_be_judged_is_in_the_exit_code() {
    let cluster = cluster(&[]);
    let web = format!("{{{ORDERS}, rules: [{{sources: [{WEB}]}}]}}");
    let paths = format!(
        "{{{ORDERS}, rules: [{{sources: [{WEB}], httpAttributes: [{{paths: [{{type: PathPrefix, value: /orders}}]}}]}}]}}"
    );
    let calls = |name: &str| json!([{"identity": format!("{SHOP}/{name}"), "port": 8080, "method": "GET", "count": 1}]);
    let (web_calls, jobs_calls) = (calls("web"), calls("jobs"));
    for (spec, callers, others, other_pod, expected) in [
        (&web, &web_calls, 0, true, Outcome::NobodyShutOut),
        (&web, &web_calls, 1, true, Outcome::NotAllJudged),
        (&web, &web_calls, 0, false, Outcome::NotAllJudged),
        (&paths, &web_calls, 0, true, Outcome::NotAllJudged),
        (&web, &jobs_calls, 0, true, Outcome::SomebodyShutOut),
        (&web, &jobs_calls, 1, false, Outcome::SomebodyShutOut),
    ] {
        let proposed = policies("new.yaml", &access("new", spec), "shop").unwrap();
        let changes = changes(&cluster, &proposed).unwrap();
        let other_pod = if other_pod {
            Ok(sees(&json!([]), 0))
        } else {
            Err("forbidden".to_owned())
        };
        let report = report(&proposed, &changes, &[Ok(sees(callers, others)), other_pod]);
        assert_eq!(report.outcome(), expected, "{spec}: {callers}, {others}");
    }
    // Who is not ready now has let somebody in before.
    let mut unready = cluster;
    let starting = json!([{"name": "outrigger-proxy", "ready": false, "restartCount": 1, "image": "", "imageID": ""}]);
    unready.pods[1].status = of(json!({"phase": "Running", "containerStatuses": starting}));
    let proposed = policies("new.yaml", &access("new", &web), "shop").unwrap();
    let changes = changes(&unready, &proposed).unwrap();
    let ready: Vec<bool> = changes.iter().map(|change| change.is_ready).collect();
    assert_eq!(ready, [true, false]);
    let all = [Outcome::NobodyShutOut, Outcome::SomebodyShutOut, Outcome::NotAllJudged];
    assert_eq!(all.map(Outcome::exit_code), [0, 1, 3]);
}

/// File, line, field, and what is wrong.
#[test]
fn mistakes_name_their_line_and_their_field() {
    let file = "\
# Two.
apiVersion: outrigger.dev/v1alpha1
kind: AccessPolicy
metadata: {name: one}
spec:
  targetRefs:
  - kind: Service
    name: orders
  rules:
  - name: first
    sources:
    - type: ServiceAccount
      serviceAccount: {name: web}
  - name: second
    sources:
    - type: Address
      address:
        cidrs: [10.0.0.0/8, 10.0.0.0/33]
---
apiVersion: outrigger.dev/v1alpha1
kind: AccessPolicy
metadata: {name: two}
spec:
  targetRefs: [{kind: HTTPRoute, name: orders}]
  rules:
  - {name: no-sources}
---
apiVersion: v1
kind: Service
---
apiVersion: outrigger.dev/v1alpha1
kind: AccessPolicy
metadata: {name: three}
spec:
  targetRefs: [{kind: Service, name: orders}]
  rulez: []
";
    let mistakes = policies("new.yaml", file, "shop").unwrap_err();
    for (start, part) in [
        (
            "new.yaml:18: spec.rules[1].sources[0].address.cidrs[1]: ",
            "10.0.0.0/33",
        ),
        ("new.yaml:26: spec.rules[0].sources: ", ""),
        ("new.yaml:24: spec.targetRefs: ", "HTTPRoute"),
        ("new.yaml:29: kind: ", "only AccessPolicies"),
        ("new.yaml:36: ", "rulez"),
    ] {
        let is_there = mistakes
            .iter()
            .any(|mistake| mistake.starts_with(start) && mistake.contains(part));
        assert!(is_there, "{start}{part} is not in {mistakes:#?}");
    }
    assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
    assert_eq!(
        policies("new.yaml", "---\n\n---\n", "shop").unwrap_err(),
        ["new.yaml: there is no AccessPolicy in it"]
    );
    let broken = policies("new.yaml", "kind: [\n", "shop").unwrap_err();
    assert!(broken[0].starts_with("new.yaml:"), "{broken:?}");
}

/// The examples, as their authors would ask about them.
#[test]
fn a_policy_without_a_namespace_is_of_that_of_the_context() {
    let policy = "{apiVersion: outrigger.dev/v1alpha1, kind: AccessPolicy, metadata: {name: x}, spec: {targetRefs: [{kind: Namespace, name: shop}]}}";
    let proposed = policies("x.yaml", policy, "shop").unwrap();
    assert_eq!(proposed[0].policy.metadata.namespace.as_deref(), Some("shop"));
    assert_eq!(changes(&cluster(&[]), &proposed).unwrap().len(), 3);
}
