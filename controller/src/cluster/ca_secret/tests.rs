#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::follow::{Follower, lost_roots};
use super::*;
use outrigger_issuer::ca::CaPem;
use outrigger_issuer::ca::rotation::WAIT;

const HOUR: Duration = Duration::from_secs(3600);

/// An API server with one Secret, whose watches never say anything.
#[derive(Default)]
struct ApiServer {
    secret: Mutex<Secret>,
    writes: Mutex<usize>,
}

impl ApiServer {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            std::future::pending::<()>().await;
        }
        let list = request.uri().path().ends_with("/secrets");
        let (method, body) = (request.method().clone(), request.into_body());
        let (status, body) = match method {
            Method::PUT => {
                let body = body.collect().await.unwrap().to_bytes();
                self.put(serde_json::from_slice(&body).unwrap())
            }
            _ if list => {
                let list = json!({"apiVersion": "v1", "kind": "SecretList", "metadata": {"resourceVersion": "1"}, "items": [self.get()]});
                (200, list)
            }
            _ => (200, serde_json::to_value(self.get()).unwrap()),
        };
        let body = Body::from(body.to_string().into_bytes());
        Response::builder().status(status).body(body).unwrap()
    }

    fn put(&self, secret: Secret) -> (u16, Value) {
        if secret.metadata.resource_version != self.get().metadata.resource_version {
            let conflict = json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409});
            return (409, conflict);
        }
        *self.writes.lock() += 1;
        (200, serde_json::to_value(self.set(secret)).unwrap())
    }

    fn get(&self) -> Secret {
        self.secret.lock().clone()
    }

    fn set(&self, mut secret: Secret) -> Secret {
        let mut held = self.secret.lock();
        let version = held
            .metadata
            .resource_version
            .as_deref()
            .map_or(0, |v| v.parse().unwrap());
        secret.metadata.name = Some("outrigger-ca".to_owned());
        secret.metadata.resource_version = Some((version + 1).to_string());
        held.clone_from(&secret);
        secret
    }

    /// As a person or cert-manager does it, who may keep what else there is.
    fn want(&self, pem: &CaPem, whole: bool) {
        let mut secret = if whole { Secret::default() } else { self.get() };
        fields::set_wanted(&mut secret, pem);
        self.set(secret);
    }

    fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request| {
            let server = Arc::clone(&server);
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        });
        Client::new(service, "outrigger")
    }
}

struct Controller {
    server: Arc<ApiServer>,
    follower: Follower,
    ca: watch::Receiver<Arc<Ca>>,
}

impl Controller {
    async fn start(server: &Arc<ApiServer>) -> Self {
        let secret = CaSecret::new(server.client(), "outrigger", "outrigger-ca", "cluster.local", HOUR);
        let rotation = secret.read_or_make().await.unwrap();
        let (sender, ca) = watch::channel(rotation.ca().clone());
        let mut started = Self {
            server: Arc::clone(server),
            follower: Follower::new(secret, rotation, sender, Arc::default()),
            ca,
        };
        started.see().await;
        started
    }

    async fn see(&mut self) {
        self.follower.seen(self.server.get()).await;
    }

    fn issues_by(&self, pem: &CaPem) -> bool {
        self.ca.borrow().pem().certificates == pem.certificates
    }

    fn keys(&self) -> Vec<String> {
        self.server.get().data.unwrap().into_keys().collect()
    }
}

fn new_ca() -> CaPem {
    Ca::generate("cluster.local").unwrap().pem().clone()
}

const PLAIN: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];
const WAITING: [&str; 6] = [
    "ca.crt",
    "previous-ca.crt",
    "previous.crt",
    "previous.key",
    "tls.crt",
    "tls.key",
];
const TRUSTING: [&str; 5] = ["ca.crt", "previous-ca.crt", "previous-until", "tls.crt", "tls.key"];

#[tokio::test(start_paused = true)]
async fn a_new_ca_waits_also_across_a_restart() {
    let server = Arc::new(ApiServer::default());
    let mut controller = Controller::start(&server).await;
    let (old, new) = (fields::wanted(&server.get()).unwrap(), new_ca());
    assert_eq!(controller.keys(), PLAIN);
    server.want(&new, false);
    controller.see().await;
    assert!(controller.issues_by(&old) && controller.ca.borrow().bundle().len() == 2);
    assert_eq!(controller.keys(), WAITING);
    tokio::time::advance(WAIT / 2).await;
    let mut controller = Controller::start(&server).await;
    assert!(controller.issues_by(&old) && controller.ca.borrow().bundle().len() == 2);
    assert_eq!(controller.follower.rest(), Some(WAIT));
    tokio::time::advance(WAIT).await;
    controller.follower.advance().await;
    assert!(controller.issues_by(&new) && controller.ca.borrow().bundle().len() == 2);
    assert_eq!(controller.keys(), TRUSTING, "the old key is gone");
    assert!(Controller::start(&server).await.issues_by(&new));
}

#[tokio::test(start_paused = true)]
async fn what_others_write_at_the_same_time_is_kept() {
    let server = Arc::new(ApiServer::default());
    let mut controller = Controller::start(&server).await;
    let mut other = Controller::start(&server).await;
    let (old, new) = (fields::wanted(&server.get()).unwrap(), new_ca());
    *server.writes.lock() = 0;
    server.want(&new, true);
    let stale = server.get();
    controller.see().await;
    // The other one has not seen yet what the first has written.
    other.follower.seen(stale).await;
    assert!(other.issues_by(&old));
    other.see().await;
    assert_eq!(
        (controller.keys(), *server.writes.lock()),
        (WAITING.map(str::to_owned).to_vec(), 1)
    );
    // Somebody who has the Secret as he wants it, and nothing else in it.
    server.want(&new, true);
    controller.see().await;
    other.see().await;
    assert!(controller.issues_by(&old) && other.issues_by(&old));
    assert_eq!(
        (controller.keys(), *server.writes.lock()),
        (PLAIN.map(str::to_owned).to_vec(), 1)
    );
    tokio::time::advance(WAIT).await;
    controller.follower.advance().await;
    other.follower.advance().await;
    assert!(controller.issues_by(&new) && other.issues_by(&new));
    assert_eq!(
        (controller.keys(), *server.writes.lock()),
        (TRUSTING.map(str::to_owned).to_vec(), 2)
    );
}

/// A process that begins when the Secret has a new CA, and nobody has kept the one before yet.
#[tokio::test(start_paused = true)]
async fn whoever_begins_in_between_takes_no_key_away() {
    let server = Arc::new(ApiServer::default());
    let mut controller = Controller::start(&server).await;
    let (old, new) = (fields::wanted(&server.get()).unwrap(), new_ca());
    server.want(&new, false);
    let seen_before = Controller::start(&server).await;
    let secret = CaSecret::new(server.client(), "outrigger", "outrigger-ca", "cluster.local", HOUR);
    let rotation = secret.read_or_make().await.unwrap();
    controller.see().await;
    assert!(controller.issues_by(&old));
    let (sender, ca) = watch::channel(rotation.ca().clone());
    let seen_later = Controller {
        server: Arc::clone(&server),
        follower: Follower::new(secret, rotation, sender, Arc::default()),
        ca,
    };
    for mut other in [seen_before, seen_later] {
        assert!(other.issues_by(&new), "it has not heard of another one");
        other.see().await;
        assert!(other.issues_by(&old) && other.ca.borrow().bundle().len() == 2);
    }
    assert_eq!(controller.keys(), WAITING);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_deleted_gets_all_of_it_again() {
    let server = Arc::new(ApiServer::default());
    let mut controller = Controller::start(&server).await;
    let (old, new) = (fields::wanted(&server.get()).unwrap(), new_ca());
    server.want(&new, false);
    controller.see().await;
    let whole = server.get().data;
    server.set(Secret::default());
    controller.see().await;
    assert!(server.get().data == whole && controller.issues_by(&old));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_hangs_and_time_are_enough() {
    let server = Arc::new(ApiServer::default());
    let Controller { follower, mut ca, .. } = Controller::start(&server).await;
    let (old, new) = (fields::wanted(&server.get()).unwrap(), new_ca());
    let (start, sender) = (Instant::now(), watch::Sender::new(ca.borrow().clone()));
    ca = sender.subscribe();
    let Follower {
        secret,
        rotation,
        metrics,
        ..
    } = follower;
    let following = tokio::spawn(secret.follow(rotation, sender, Arc::clone(&metrics)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.want(&new, false);
    ca.changed().await.unwrap();
    let published = start.elapsed();
    assert!(published <= Duration::from_secs(301), "{published:?}");
    assert!(ca.borrow_and_update().pem().certificates == old.certificates);
    assert!(metrics.encode().contains("outrigger_controller_ca_waits 1"));
    ca.changed().await.unwrap();
    assert_eq!(start.elapsed() - published, WAIT);
    assert!(ca.borrow_and_update().pem().certificates == new.certificates);
    assert!(metrics.encode().contains("outrigger_controller_ca_waits 0"));
    following.abort();
}

#[test]
fn a_root_that_is_gone_is_seen() {
    let [old, new] = [(); 2].map(|()| Ca::generate("mesh.test").unwrap());
    assert_eq!(lost_roots(&old, &old), 0);
    assert_eq!(lost_roots(&old, &new), 1);
    let both = CaPem {
        roots: Some(old.bundle_pem() + &new.bundle_pem()),
        ..new.pem().clone()
    };
    let both = Ca::from_pem(both, "mesh.test", std::time::SystemTime::now()).unwrap();
    assert_eq!((lost_roots(&old, &both), lost_roots(&both, &new)), (0, 1));
}
