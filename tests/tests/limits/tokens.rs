//! Limits by what verified tokens say: as keys, in matches and in overrides.

use http::Method;
use outrigger_tests::mesh::{App, Authority, Http, Sidecar, request, text};
use serde_json::json;

use super::DAY;
use crate::access::issuer::{Issuer, claims, with};

struct Scene {
    issuer: Issuer,
    _authority: Authority,
    _app: App,
    orders: outrigger_proxy::app::RunningProxy,
}

impl Scene {
    /// A policy that verifies tokens and lets everybody in; `tokens` is its name.
    async fn new(limits: &str) -> Self {
        let issuer = Issuer::new("k1");
        let authority = Authority::start(&["orders"], DAY).await;
        let app = App::start(|_| async { http::Response::new(text("")) }).await;
        let orders = Sidecar::new("orders").protects(app.address).with(&format!(
            "accessPolicies: [{{name: tokens, spec: {{exclusive: false, jwt: {{providers: [{}]}}, rules: [{{sources: [{{type: Any}}]}}]}}}}]\n\
             rateLimitPolicies: [{{name: p, spec: {{limits: [{limits}]}}}}]",
            issuer.provider(", forward: false")
        ));
        let orders = orders.start(&authority).await;
        Self {
            issuer,
            _authority: authority,
            _app: app,
            orders,
        }
    }

    /// With a token that says this, or without one.
    async fn status(&self, claims: Option<&serde_json::Value>) -> u16 {
        let mut asks = request(Method::GET, self.orders.inbound[0], "/", "");
        if let Some(claims) = claims {
            let bearer = format!("Bearer {}", self.issuer.token(claims));
            asks.headers_mut().insert("authorization", bearer.parse().unwrap());
        }
        Http::one().send(asks).await.unwrap().status
    }

    async fn admitted(&self, claims: Option<&serde_json::Value>) -> usize {
        let mut admitted = 0;
        for _ in 0..6 {
            admitted += usize::from(self.status(claims).await == 200);
        }
        admitted
    }
}

fn per(policy: &str, provider: &str, name: &str, requests: u32) -> String {
    format!(
        "{{per: [{{type: Claim, claim: {{accessPolicy: {policy}, provider: {provider}, name: {name}}}}}], \
         rate: {{requests: {requests}, interval: 1h}}, scope: Pod}}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_value_of_a_claim_has_a_bucket_and_requests_without_it_share_one() {
    for (policy, name) in [("tokens", "sub"), ("shop/tokens", "/sub")] {
        let scene = Scene::new(&per(policy, "login", name, 2)).await;
        assert_eq!(scene.admitted(Some(&claims())).await, 2);
        assert_eq!(scene.admitted(Some(&with("sub", "bob"))).await, 2);
        // Another token of the same subject is nobody else.
        assert_eq!(scene.admitted(Some(&with("jti", "2"))).await, 0);
        let mut without = claims();
        without.as_object_mut().unwrap().remove("sub");
        assert_eq!(scene.admitted(Some(&without)).await, 2);
        assert_eq!(scene.admitted(None).await, 0, "it is the same key");
        assert_eq!(scene.admitted(Some(&with("sub", json!(null)))).await, 0);
        // What is no text has a value too.
        assert_eq!(scene.admitted(Some(&with("sub", json!(["a", "b"])))).await, 2);
        assert_eq!(scene.admitted(Some(&with("sub", json!({"a": 1})))).await, 2);
    }
}

/// A limit is no lock, and is not lost: where nothing verifies the tokens, all are one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_provider_a_limit_counts_all_together() {
    for (policy, provider) in [("tokens", "other"), ("others", "login"), ("ops/tokens", "login")] {
        let scene = Scene::new(&per(policy, provider, "sub", 3)).await;
        assert_eq!(scene.admitted(Some(&claims())).await, 3, "{policy} {provider}");
        assert_eq!(
            scene.admitted(Some(&with("sub", "bob"))).await,
            0,
            "{policy} {provider}"
        );
        assert_eq!(scene.admitted(None).await, 0, "{policy} {provider}");
        let source = format!("{{type: JWT, jwt: {{accessPolicy: {policy}, provider: {provider}}}}}");
        let matching =
            format!("{{matches: [{{sources: [{source}]}}], rate: {{requests: 3, interval: 1h}}, scope: Pod}}");
        let scene = Scene::new(&matching).await;
        assert_eq!(scene.admitted(None).await, 3, "{policy} {provider}");
        // Nobody has the rate of an exception.
        let except = format!(
            "{{overrides: [{{sources: [{source}], rate: {{requests: 6, interval: 1h}}}}], rate: {{requests: 3, interval: 1h}}, scope: Pod}}"
        );
        let scene = Scene::new(&except).await;
        assert_eq!(scene.admitted(Some(&claims())).await, 3, "{policy} {provider}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_told_apart_in_matches_and_overrides() {
    let source = "{type: JWT, jwt: {accessPolicy: tokens, provider: login, claims: [{name: groups, values: [free]}]}}";
    let scene = Scene::new(&format!(
        "{{matches: [{{sources: [{source}]}}], rate: {{requests: 2, interval: 1h}}, scope: Pod}}"
    ))
    .await;
    assert_eq!(scene.admitted(None).await, 6);
    assert_eq!(scene.admitted(Some(&claims())).await, 6);
    assert_eq!(scene.admitted(Some(&with("groups", json!(["free"])))).await, 2);
    let scene = Scene::new(&format!(
        "{{overrides: [{{sources: [{source}], rate: {{requests: 2, interval: 1h}}}}], rate: {{requests: 4, interval: 1h}}, scope: Pod}}"
    ))
    .await;
    assert_eq!(scene.admitted(Some(&with("groups", json!(["free"])))).await, 2);
    assert_eq!(scene.admitted(Some(&claims())).await, 4);
    assert_eq!(scene.admitted(None).await, 0, "it has the rate of all others");
}

/// Ten thousand subjects find no more buckets than there may be, and bad tokens find none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_subjects_find_a_bounded_number_of_buckets() {
    let limit = per("tokens", "login", "sub", 1).replace("rate:", "keys: {max: 100, overflow: Reject}, rate:");
    let scene = Scene::new(&limit).await;
    let other = Issuer::new("k1");
    let to = scene.orders.inbound[0];
    let http = Http::two();
    let mut counted = [0_usize; 3];
    for n in 0..10_000 {
        let claims = with("sub", format!("{n}-{}", "x".repeat(500)));
        let issuer = if n % 4 == 3 { &other } else { &scene.issuer };
        let mut asks = request(Method::GET, to, "/", "");
        let bearer = format!("Bearer {}", issuer.token(&claims));
        asks.headers_mut().insert("authorization", bearer.parse().unwrap());
        let status = http.send(asks).await.unwrap().status;
        counted[[200, 429, 401].iter().position(|one| *one == status).unwrap()] += 1;
    }
    assert_eq!(counted, [100, 7400, 2500]);
}
