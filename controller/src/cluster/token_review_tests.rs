#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// What an API server says to TokenReviews and of one pod, and how often it was asked.
#[derive(Default)]
struct ApiServer {
    pod: Option<Value>,
    reviews: AtomicUsize,
    pods_read: AtomicUsize,
    /// Reviews wait until it is open.
    busy: Option<Arc<tokio::sync::Semaphore>>,
}

impl ApiServer {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (status, body) = if request.uri().path().ends_with("/tokenreviews") {
            self.reviews.fetch_add(1, Ordering::Relaxed);
            if let Some(busy) = &self.busy {
                let _open = busy.acquire().await;
            }
            (201, reviewed())
        } else {
            self.pods_read.fetch_add(1, Ordering::Relaxed);
            let missing = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
            self.pod.clone().map_or((404, missing), |pod| (200, pod))
        };
        let body = Body::from(body.to_string().into_bytes());
        Response::builder().status(status).body(body).unwrap()
    }
}

/// The token of the pod orders-1, whose UID is u1.
fn reviewed() -> Value {
    let extra = json!({
        "authentication.kubernetes.io/pod-name": ["orders-1"], "authentication.kubernetes.io/pod-uid": ["u1"],
    });
    let user = json!({"username": "system:serviceaccount:shop:orders", "extra": extra});
    json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {},
        "status": {"authenticated": true, "audiences": ["outrigger"], "user": user},
    })
}

fn pod(name: &str, uid: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "uid": uid},
        "spec": {"serviceAccountName": "orders", "containers": []}, "status": {"podIP": ip, "phase": "Running"},
    })
}

fn token(issuer: &str) -> String {
    let claims = json!({
        "iss": issuer, "aud": "outrigger", "exp": 4_000_000_000_u64,
        "kubernetes.io": {
            "namespace": "shop", "pod": {"name": "orders-1", "uid": "u1"}, "serviceaccount": {"name": "orders"},
        },
    });
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

struct Scene {
    server: Arc<ApiServer>,
    reviews: TokenReviews,
    index: Arc<Index>,
    metrics: Arc<Metrics>,
}

fn scene(server: ApiServer, check_address: bool) -> Scene {
    let (server, metrics) = (Arc::new(server), Arc::new(Metrics::default()));
    let answering = Arc::clone(&server);
    let service = tower::service_fn(move |request| {
        let server = Arc::clone(&answering);
        async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
    });
    let index = Index::new("cluster.local", Arc::clone(&metrics));
    let client = Client::new(service, "default");
    Scene {
        reviews: TokenReviews::new(client, Arc::clone(&index), Arc::clone(&metrics), check_address),
        server,
        index,
        metrics,
    }
}

impl Scene {
    fn knows(&self, pod: &Value) {
        let (name, object) = from_k8s::pod(&serde_json::from_value(pod.clone()).unwrap()).unwrap();
        self.index.apply(name, object);
    }

    async fn ask(&self, caller: [u8; 4]) -> Result<String, AuthError> {
        let account = self.reviews.authenticate(&token("cluster"), caller.into()).await?;
        Ok(format!("{}/{}", account.namespace, account.name))
    }
}

const OWN: [u8; 4] = [10, 0, 0, 1];

#[tokio::test]
async fn a_pod_that_the_index_knows_is_not_read() {
    let scene = scene(ApiServer::default(), false);
    scene.knows(&pod("orders-1", "u1", "10.0.0.1"));
    assert_eq!(scene.ask(OWN).await.unwrap(), "shop/orders");
    assert_eq!(scene.server.pods_read.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn where_the_index_lags_the_pod_is_read_once() {
    for known in [None, Some(pod("orders-1", "u0", "10.0.0.1"))] {
        let server = ApiServer {
            pod: Some(pod("orders-1", "u1", "10.0.0.1")),
            ..ApiServer::default()
        };
        let scene = scene(server, false);
        known.iter().for_each(|pod| scene.knows(pod));
        assert_eq!(scene.ask(OWN).await.unwrap(), "shop/orders");
        assert_eq!(scene.server.pods_read.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn a_token_of_a_pod_that_is_gone_or_another_is_refused() {
    for (pod, why) in [
        (None, "does not exist"),
        (Some(pod("orders-1", "u2", "10.0.0.1")), "earlier pod"),
    ] {
        let scene = scene(
            ApiServer {
                pod,
                ..ApiServer::default()
            },
            false,
        );
        let error = scene.ask(OWN).await.unwrap_err();
        assert!(
            matches!(&error, AuthError::Refused(said) if said.contains(why)),
            "{error}"
        );
    }
}

#[tokio::test]
async fn garbage_does_not_reach_the_api_server() {
    let scene = scene(ApiServer::default(), false);
    for garbage in ["", "x", "e30.e30.e30"] {
        let error = scene.reviews.authenticate(garbage, OWN.into()).await.unwrap_err();
        assert!(matches!(error, AuthError::Refused(_)), "{error}");
    }
    assert_eq!(scene.server.reviews.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_address_of_another_pod_is_counted_and_refused_only_if_asked_for() {
    for (check, caller, allowed, counted) in [
        (false, OWN, true, 0),
        (false, [10, 0, 0, 2], true, 1),
        (true, OWN, true, 0),
        (true, [10, 0, 0, 2], false, 1),
        // A node's address, behind which pods may be, is no pod's.
        (true, [192, 168, 0, 1], true, 0),
    ] {
        let scene = scene(ApiServer::default(), check);
        scene.knows(&pod("orders-1", "u1", "10.0.0.1"));
        scene.knows(&pod("evil", "u9", "10.0.0.2"));
        assert_eq!(scene.ask(caller).await.is_ok(), allowed, "{check} {caller:?}");
        let line = format!("caller_address_mismatches_total {counted}");
        assert!(scene.metrics.encode().contains(&line), "{check} {caller:?}");
    }
}

/// One address fills the queue; another one comes, and has its turn.
#[tokio::test]
async fn whoever_asks_most_is_sent_away_and_not_who_comes_last() {
    let busy = Arc::new(tokio::sync::Semaphore::new(0));
    let server = ApiServer {
        busy: Some(Arc::clone(&busy)),
        ..ApiServer::default()
    };
    let scene = Arc::new(scene(server, false));
    scene.knows(&pod("orders-1", "u1", "10.0.0.1"));
    let asking = |caller: [u8; 4]| {
        let scene = Arc::clone(&scene);
        tokio::spawn(async move { scene.ask(caller).await })
    };
    let flood: Vec<_> = (0..REVIEWS.working + REVIEWS.waiting + 100)
        .map(|_| asking([10, 0, 0, 9]))
        .collect();
    while scene.reviews.turns.waiting() < REVIEWS.waiting {
        tokio::task::yield_now().await;
    }
    let honest = asking(OWN);
    tokio::task::yield_now().await;
    busy.add_permits(10_000);
    assert_eq!(honest.await.unwrap().unwrap(), "shop/orders");
    let mut crowded = 0;
    for asked in flood {
        crowded += usize::from(matches!(asked.await.unwrap(), Err(AuthError::Crowded)));
    }
    assert_eq!(
        crowded, 101,
        "the 100 beyond the bound, and one more for the honest caller"
    );
    assert_eq!(
        scene.server.reviews.load(Ordering::Relaxed),
        REVIEWS.working + REVIEWS.waiting
    );
}

fn status(authenticated: bool, audience: &str, user: &str) -> TokenReviewStatus {
    TokenReviewStatus {
        authenticated: Some(authenticated),
        audiences: Some(vec![audience.to_owned()]),
        user: Some(UserInfo {
            username: Some(user.to_owned()),
            ..UserInfo::default()
        }),
        error: None,
    }
}

#[test]
fn only_a_service_account_for_our_audience() {
    let user = "system:serviceaccount:shop:orders";
    let account_ref = account(status(true, "outrigger", user)).unwrap();
    assert_eq!((&*account_ref.namespace, &*account_ref.name), ("shop", "orders"));
    assert!(account(status(false, "outrigger", user)).is_err());
    assert!(account(status(true, "https://kubernetes.default.svc", user)).is_err());
    assert!(account(status(true, "outrigger", "system:node:n1")).is_err());
    let mut none = status(true, "outrigger", user);
    none.audiences = None;
    assert!(account(none).is_err());
}

#[test]
fn only_a_token_that_is_bound_to_a_pod() {
    let user = "system:serviceaccount:shop:orders";
    let mut status = status(true, "outrigger", user);
    assert!(bound_pod(status.clone()).unwrap_err().contains("not bound to a pod"));
    let extra = |key: &str, value: &str| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    let both = [extra("pod-name", "orders-1"), extra("pod-uid", "u1")];
    status.user.as_mut().unwrap().extra = Some(both.clone().into());
    let bound = bound_pod(status.clone()).unwrap();
    assert_eq!(
        (bound.name.to_string(), &*bound.uid, &*bound.service_account),
        ("shop/orders-1".to_owned(), "u1", "orders")
    );
    for one in both {
        status.user.as_mut().unwrap().extra = Some([one].into());
        assert!(bound_pod(status.clone()).is_err());
    }
}
