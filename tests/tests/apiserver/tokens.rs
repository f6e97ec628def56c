//! A real provider of tokens, the controller's code that fetches its keys, and a real sidecar that lets in whoever has a token of it.
//! Only the API server is made up: it has one ConfigMap, and keeps what is said of one policy.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use outrigger_controller::cluster::{keys, status};
use outrigger_controller::discovery::Discover;
use outrigger_controller::index::Index;
use outrigger_controller::jwks::{self, Fetcher};
use outrigger_controller::objects::policy::{Policy, PolicyKind};
use outrigger_controller::objects::{Object, from_k8s};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Http, Sidecar, TRUST_DOMAIN, ask_the_controller, request, text};
use outrigger_tests::provider::Provider;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustls::RootCertStore;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const DAY: Duration = Duration::from_secs(86_400);
/// A key that a sidecar has met and does not know is asked for within a minute.
const LONG: Duration = Duration::from_secs(120);

const IN_FORCE: &str = "All that it says is in force";

/// What the API server has.
#[derive(Clone)]
struct Cluster(Arc<Mutex<State>>);

struct State {
    ca: String,
    policy: Value,
    /// Of the controller that runs.
    index: Option<Arc<Index>>,
}

impl Cluster {
    fn new(ca: &str) -> Self {
        Self(Arc::new(Mutex::new(State {
            ca: ca.to_owned(),
            policy: Value::Null,
            index: None,
        })))
    }

    /// The policy is this one from now on, with a mark by which a sidecar says that it has heard of it.
    fn set_policy(&self, issuer: &str, path: &str, cache: &str, mark: &str) {
        let remote = json!({
            "url": format!("{issuer}{path}"), "cacheDuration": cache, "caConfigMapRef": {"name": "login-ca"},
        });
        let provider =
            json!({"name": "login", "issuer": issuer, "audiences": ["orders", mark], "jwks": {"remote": remote}});
        let spec = json!({
            "targetRefs": [{"kind": "Pod", "selector": {}}],
            "rules": [{"sources": [{"type": "JWT", "jwt": {"provider": "login", "scopes": ["read"]}}]}],
            "jwt": {"providers": [provider]},
        });
        self.change(|policy| {
            policy["apiVersion"] = "outrigger.dev/v1alpha1".into();
            policy["kind"] = "AccessPolicy".into();
            policy["metadata"]["name"] = "p".into();
            policy["metadata"]["namespace"] = "shop".into();
            policy["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
            policy["metadata"]["generation"] = (policy["metadata"]["generation"].as_u64().unwrap_or(0) + 1).into();
            policy["spec"] = spec;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut state = self.0.lock().unwrap();
        change(&mut state.policy);
        let version = state.policy["metadata"]["resourceVersion"].as_str();
        let version: u64 = version.map_or(0, |version| version.parse().unwrap()) + 1;
        state.policy["metadata"]["resourceVersion"] = version.to_string().into();
        state.tell();
    }

    /// What the policy's second condition says, of the policy as it is now.
    fn said(&self) -> String {
        let state = self.0.lock().unwrap();
        let condition = state.policy.pointer("/status/ancestors/0/conditions/1");
        let condition = condition.cloned().unwrap_or_default();
        match condition["observedGeneration"] == state.policy["metadata"]["generation"] {
            true => condition["message"].as_str().unwrap_or_default().to_owned(),
            false => String::new(),
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let answer = match (&head.method, head.uri.path()) {
            (&Method::GET, "/api/v1/namespaces/shop/configmaps/login-ca") => {
                let ca = self.0.lock().unwrap().ca.clone();
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "login-ca"}, "data": {"ca.crt": ca}})
            }
            (&Method::PATCH, path) if path.ends_with("/namespaces/shop/accesspolicies/p/status") => {
                let patch = body.collect().await.unwrap().to_bytes();
                let patch: Value = serde_json::from_slice(&patch).unwrap();
                self.change(|policy| policy["status"] = patch["status"].clone());
                self.0.lock().unwrap().policy.clone()
            }
            (method, path) => panic!("{method} {path}"),
        };
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = StatusCode::OK;
        response
    }

    /// A controller that has just begun, and knows all objects.
    fn controller(&self) -> Controller {
        let index = Index::new(TRUST_DOMAIN, Arc::default());
        index.set_own("outrigger", "controller-a");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "orders-1", "uid": "1"},
            "spec": {"serviceAccountName": "orders", "containers": [{"name": "outrigger-proxy"}]},
            "status": {"podIP": "10.244.0.1", "podIPs": [{"ip": "10.244.0.1"}]},
        });
        let (name, pod) = from_k8s::pod(&serde_json::from_value(pod).unwrap()).unwrap();
        index.apply(name, pod);
        let mut state = self.0.lock().unwrap();
        state.index = Some(Arc::clone(&index));
        state.tell();
        drop(state);
        let cluster = self.clone();
        let service = tower::service_fn(move |request| {
            let cluster = cluster.clone();
            async move { Ok::<_, Infallible>(cluster.answer(request).await) }
        });
        let client = Client::new(service, "default");
        let world = keys::Cluster::new(client.clone(), Arc::clone(&index));
        let fetcher = Fetcher::new(world, RootCertStore::empty()).unwrap();
        let mut tasks = JoinSet::new();
        let running = Arc::clone(&index);
        tasks.spawn(async move { running.run().await });
        tasks.spawn(status::run(client, Arc::clone(&index), Arc::default()));
        let random = SmallRng::seed_from_u64(1);
        tasks.spawn(jwks::run(Arc::clone(&index), fetcher, Arc::default(), random));
        index.set_synced();
        Controller { index, _tasks: tasks }
    }
}

impl State {
    fn tell(&self) {
        if let (Some(index), Value::Object(_)) = (&self.index, &self.policy) {
            let object = serde_json::from_value(self.policy.clone()).unwrap();
            let policy = Policy::read(PolicyKind::Access, &object);
            index.apply(
                from_k8s::object_name(&object.metadata),
                Object::Policy(Box::new(policy)),
            );
        }
    }
}

/// What fetches keys, tells sidecars, and says how it is.
struct Controller {
    index: Arc<Index>,
    _tasks: JoinSet<()>,
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let in_time = tokio::time::timeout(LONG, waiting).await;
    assert!(in_time.is_ok(), "never: {what}");
}

/// The sidecar has heard of the policy with this mark, and has so many keys then.
async fn is_heard(orders: &RunningProxy, mark: &str, keys: u64) {
    let http = Http::one();
    until(mark, async || {
        let config = http.get(orders.admin, "/config").await.body;
        let config: Value = serde_json::from_slice(&config).unwrap();
        let provider = &config["targets"]["access"]["providers"][0];
        let is_it = provider["audiences"][1] == mark;
        assert!(!is_it || provider["keys"] == keys, "{provider}");
        is_it
    })
    .await;
}

async fn status_of(orders: &RunningProxy, token: &str) -> u16 {
    let mut asks = request(Method::GET, orders.inbound[0], "/", "");
    let bearer = format!("Bearer {token}").parse().unwrap();
    asks.headers_mut().insert("authorization", bearer);
    Http::one().send(asks).await.unwrap().status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a provider of tokens"]
async fn tokens_of_a_real_provider_are_good_as_long_as_their_keys_are() {
    let mut provider = Provider::start().await.unwrap();
    let cluster = Cluster::new(&provider.ca);
    cluster.set_policy(&provider.issuer, "keys", "24h", "begun");
    let controller = cluster.controller();
    let running: Arc<Mutex<Arc<Index>>> = Arc::new(Mutex::new(Arc::clone(&controller.index)));
    let current = Arc::clone(&running);
    let discovery = move || -> Arc<dyn Discover> { Arc::clone(&*current.lock().unwrap()) as _ };
    let mut authority = Authority::with_changing_discovery(&["orders"], DAY, discovery).await;
    let app = App::start(|_| async { http::Response::new(text("hello")) }).await;
    let orders = Sidecar::new("orders").protects(app.address);
    let orders = orders.start_with(&authority, ask_the_controller).await;

    // What it issues is let in, and nothing else is.
    let first = provider.token("read").await.unwrap();
    until("its tokens are let in", async || {
        status_of(&orders, &first).await == 200
    })
    .await;
    until("it is said", async || cluster.said() == IN_FORCE).await;
    assert_eq!(status_of(&orders, &provider.token("write").await.unwrap()).await, 403);
    let (message, _) = first.rsplit_once('.').unwrap();
    assert_eq!(status_of(&orders, &format!("{message}.AAAA")).await, 401);

    // It signs with another key: its keys are good for a day, and are fetched again because a token names one that is not known.
    provider.rotate().await.unwrap();
    let second = provider.token("read").await.unwrap();
    assert_eq!(status_of(&orders, &second).await, 401);
    until("its new key is known", async || {
        status_of(&orders, &second).await == 200
    })
    .await;
    assert_eq!(status_of(&orders, &first).await, 401, "its key is gone");

    // It lies: what it said last is good, and it is said why there is nothing newer.
    cluster.set_policy(&provider.issuer, "keys", "10s", "soon");
    for (says, why) in [
        ("html", "it is no JWK Set (line 1, column 1)"),
        ("error", "the answer has the status 500"),
        ("huge", "the answer is larger than 1048576 bytes"),
        ("slow", "no whole answer within 2s"),
    ] {
        provider.says(says).await.unwrap();
        until(why, async || {
            let said = cluster.said();
            said.contains("are the last that could be fetched") && said.contains(why)
        })
        .await;
        assert_eq!(status_of(&orders, &second).await, 200, "{says}");
    }
    provider.says("good").await.unwrap();
    until("it is well again", async || cluster.said() == IN_FORCE).await;
    let third = provider.token("read").await.unwrap();
    assert_eq!(status_of(&orders, &third).await, 200);

    // It is down, and then the controller is another one, which has never had its keys.
    provider.stop().await.unwrap();
    until("it is down", async || cluster.said().contains("cannot connect to")).await;
    assert_eq!(status_of(&orders, &third).await, 200);
    authority.go_away().await;
    drop(controller);
    cluster.set_policy(&provider.issuer, "keys", "10s", "another");
    let controller = cluster.controller();
    *running.lock().unwrap() = Arc::clone(&controller.index);
    authority.come_back().await;
    until("it has no keys", async || {
        cluster.said().contains("its keys cannot be fetched")
    })
    .await;
    is_heard(&orders, "another", 1).await;
    assert_eq!(status_of(&orders, &third).await, 200, "the sidecar has them still");

    // Another place is another trust.
    for (path, mark) in [("others", "elsewhere"), ("keys", "back")] {
        cluster.set_policy(&provider.issuer, path, "10s", mark);
        is_heard(&orders, mark, 0).await;
        assert_eq!(status_of(&orders, &third).await, 401, "{path}");
    }
}
