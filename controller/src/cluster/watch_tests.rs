#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::atomic::{AtomicU16, Ordering};

use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::discovery::Discover;
use crate::testing::pod_key;

/// How long the start is watched: with time that is paused, a moment.
const LONG: Duration = Duration::from_secs(600);

/// An API server with no objects at all.
struct ApiServer {
    has_own_kinds: bool,
    /// What it answers to a list of AccessPolicies.
    access: AtomicU16,
    /// And to one of TrafficPolicies.
    traffic: u16,
    /// And to one of RateLimitPolicies.
    limits: AtomicU16,
}

impl ApiServer {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            return std::future::pending().await;
        }
        let (status, body) = match request.uri().path() {
            "/apis" => (200, self.groups()),
            "/apis/outrigger.dev/v1alpha1" => (200, own_kinds()),
            path if path.ends_with("/accesspolicies") => (self.access.load(Ordering::Relaxed), nothing()),
            path if path.ends_with("/trafficpolicies") => (self.traffic, nothing()),
            path if path.ends_with("/ratelimitpolicies") => (self.limits.load(Ordering::Relaxed), nothing()),
            _ => (200, nothing()),
        };
        let body = match status {
            200 => body,
            _ => json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}),
        };
        let body = Body::from(body.to_string().into_bytes());
        Response::builder().status(status).body(body).unwrap()
    }

    fn groups(&self) -> Value {
        let version = json!({"groupVersion": "outrigger.dev/v1alpha1", "version": "v1alpha1"});
        let group = json!({"name": "outrigger.dev", "versions": [version], "preferredVersion": version});
        let groups = if self.has_own_kinds { vec![group] } else { Vec::new() };
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }
}

fn own_kinds() -> Value {
    let kind = |kind: &str, plural: &str| json!({"name": plural, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["list", "watch"]});
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "outrigger.dev/v1alpha1",
        "resources": [
            kind("AccessPolicy", "accesspolicies"),
            kind("TrafficPolicy", "trafficpolicies"),
            kind("RateLimitPolicy", "ratelimitpolicies"),
        ],
    })
}

fn nothing() -> Value {
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []})
}

/// A controller's index, which is filled from that server.
fn starts(server: ApiServer) -> (Arc<ApiServer>, Arc<Index>) {
    let server = Arc::new(server);
    let answering = Arc::clone(&server);
    let service = tower::service_fn(move |request| {
        let server = Arc::clone(&answering);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let client = Client::new(service, "outrigger");
    let index = Index::new("cluster.local", Arc::default());
    tokio::spawn(run(client, Arc::clone(&index), CancellationToken::new()));
    (server, index)
}

async fn is_synced(index: &Index) -> bool {
    tokio::time::sleep(LONG).await;
    *index.synced().borrow()
}

#[tokio::test(start_paused = true)]
async fn without_the_policies_of_who_may_call_nobody_is_told_anything() {
    for refusal in [403, 404, 500] {
        let (server, index) = starts(ApiServer {
            has_own_kinds: true,
            access: refusal.into(),
            traffic: 200,
            limits: 200.into(),
        });
        assert!(!is_synced(&index).await, "{refusal}");
        server.access.store(200, Ordering::Relaxed);
        assert!(is_synced(&index).await, "{refusal}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_or_can_be_done_without_holds_nobody_up() {
    for (has_own_kinds, traffic) in [(false, 200), (true, 200), (true, 403)] {
        let (_server, index) = starts(ApiServer {
            has_own_kinds,
            access: 200.into(),
            traffic,
            limits: 200.into(),
        });
        assert!(is_synced(&index).await, "{has_own_kinds} {traffic}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_limits_nothing_is_told_until_their_policies_have_been_listed() {
    for (has_own_kinds, refusal) in [(true, 403), (true, 404), (true, 500), (false, 500)] {
        let (server, index) = starts(ApiServer {
            has_own_kinds,
            access: 200.into(),
            traffic: 200,
            limits: refusal.into(),
        });
        assert!(is_synced(&index).await, "{refusal}");
        let watch = index.watch_limits(&pod_key("shop", "web-1", "web"));
        let is_told = || watch.borrow().said().is_some();
        // Where there is no such kind, that is known.
        assert_eq!(is_told(), !has_own_kinds, "{refusal}");
        server.limits.store(200, Ordering::Relaxed);
        tokio::time::sleep(LONG).await;
        assert!(is_told(), "{refusal}");
    }
}
