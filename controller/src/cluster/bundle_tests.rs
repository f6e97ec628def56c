#![allow(clippy::unwrap_used)]

use std::convert::Infallible;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;

/// An API server with the ConfigMap of one namespace, and somebody who writes it again as often as he is `left` to.
#[derive(Default)]
struct ApiServer {
    map: Mutex<ConfigMap>,
    watches: Mutex<Vec<mpsc::UnboundedSender<Value>>>,
    /// When the controller wrote.
    writes: Mutex<Vec<Instant>>,
    left: Mutex<usize>,
}

impl ApiServer {
    async fn answer(&self, request: Request<Body>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            let (sender, receiver) = mpsc::unbounded_channel();
            // It may have changed since the list.
            sender.send(self.event()).unwrap();
            self.watches.lock().push(sender);
            let lines = UnboundedReceiverStream::new(receiver)
                .map(|event| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))));
            return Response::new(StreamBody::new(lines).boxed_unsync());
        }
        let body = match *request.method() {
            Method::PATCH => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                self.writes.lock().push(Instant::now());
                self.set(&serde_json::from_slice(&body).unwrap());
                let written = json!(*self.map.lock());
                let mut left = self.left.lock();
                if *left > 0 {
                    *left -= 1;
                    self.set(&json!({"data": {TRUST_BUNDLE_KEY: "another bundle"}}));
                }
                written
            }
            _ => json!({"metadata": {"resourceVersion": "1"}, "items": [*self.map.lock()]}),
        };
        Response::new(Full::from(body.to_string()).boxed_unsync())
    }

    fn set(&self, wanted: &Value) {
        let mut map =
            json!({"metadata": {"namespace": "outrigger", "name": TRUST_BUNDLE_CONFIG_MAP, "resourceVersion": "2"}});
        map["data"] = wanted["data"].clone();
        *self.map.lock() = serde_json::from_value(map).unwrap();
        let event = self.event();
        self.watches.lock().retain(|watch| watch.send(event.clone()).is_ok());
    }

    fn event(&self) -> Value {
        json!({"type": "MODIFIED", "object": *self.map.lock()})
    }

    fn is(&self, bundle: &str) -> bool {
        let map = self.map.lock();
        map.data.as_ref().is_some_and(|data| data[TRUST_BUNDLE_KEY] == bundle)
    }
}

#[tokio::test(start_paused = true)]
async fn who_writes_it_again_and_again_is_written_against_at_a_pace() {
    let server = Arc::<ApiServer>::default();
    server.set(&json!({"data": {TRUST_BUNDLE_KEY: "nobody's"}}));
    *server.left.lock() = 500;
    let answering = Arc::clone(&server);
    let service = tower::service_fn(move |request| {
        let server = Arc::clone(&answering);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let (ca, follow) = watch::channel(Arc::new(Ca::generate("cluster.local").unwrap()));
    let (_namespaces, wanted) = watch::channel(BTreeSet::new());
    let running = tokio::spawn(run(
        Client::new(service, "outrigger"),
        "outrigger".to_owned(),
        follow,
        wanted,
    ));

    tokio::time::sleep(Duration::from_secs(600)).await;
    let times = server.writes.lock().clone();
    let pauses: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(pauses[..6], [2, 4, 8, 16, 32, 60], "{pauses:?}");
    assert!(pauses[6..].iter().all(|pause| *pause == 60), "{pauses:?}");
    // In the end it is right, and what is new is written at once where it was left alone for a while.
    *server.left.lock() = 0;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(server.is(&ca.borrow().bundle_pem()));
    let (before, now) = (server.writes.lock().len(), Instant::now());
    ca.send_replace(Arc::new(Ca::generate("cluster.local").unwrap()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(server.is(&ca.borrow().bundle_pem()));
    assert_eq!(server.writes.lock()[before..], [now]);
    running.abort();
}

#[test]
fn only_what_differs_is_written() {
    let wanted = ["a", "b", "c", "d"].map(Arc::from).into();
    let mut present = Present::new();
    present.insert("a".into(), Some("new".to_owned()));
    present.insert("b".into(), Some("old".to_owned()));
    present.insert("c".into(), None);
    present.insert("elsewhere".into(), Some("old".to_owned()));
    let written: Vec<_> = to_write(&wanted, "new", &present).into_iter().map(|n| &**n).collect();
    assert_eq!(written, ["b", "c", "d"]);
}

#[test]
fn each_has_a_pause_of_its_own_and_nothing_is_kept_of_one_that_is_left_alone() {
    let (mut pauses, now) = (Pauses::default(), Instant::now());
    let at = |seconds| now + Duration::from_secs(seconds);
    let [one, other]: [Arc<str>; 2] = ["one", "other"].map(Arc::from);
    for (namespace, second, may) in [
        (&one, 0, true),
        (&one, 1, false),
        (&other, 1, true),
        (&one, 2, true),
        (&one, 5, false),
        (&one, 6, true),
        // From its last pause on, it was left alone for the longest.
        (&one, 74, true),
        (&one, 75, false),
        (&one, 76, true),
    ] {
        assert_eq!(pauses.begin(namespace, at(second)), may, "{namespace} {second}");
    }
    assert_eq!(pauses.0.len(), 2);
    pauses.forget(at(77));
    assert_eq!(
        pauses.0.keys().map(|namespace| &**namespace).collect::<Vec<_>>(),
        ["one"]
    );
}
