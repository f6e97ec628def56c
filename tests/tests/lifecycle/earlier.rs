//! A request that was sent and has failed, where a limit leaves no room to send it again: it has the answer of the app, and not `overloaded`, which says that
//! nothing was sent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{App, Authority, Body, Seen, Sidecar, id, metric, status, until};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::Speaks;

const DAY: Duration = Duration::from_secs(86_400);

/// An app that fails requests with the header `fails`, and wants them again in a second; others it holds until it is let.
struct Scene {
    speaks: Speaks,
    web: RunningProxy,
    go: Arc<Notify>,
    /// Whether the body of a failure may end. Of gRPC there is none.
    ends: watch::Sender<bool>,
    _orders: RunningProxy,
    _app: App,
    _authority: Authority,
}

impl Scene {
    async fn new(speaks: Speaks, limits: &str) -> Self {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let go = Arc::<Notify>::default();
        let (ends, ended) = watch::channel(true);
        let app = App::start({
            let go = Arc::clone(&go);
            move |request| {
                let (go, ended) = (Arc::clone(&go), ended.clone());
                async move {
                    if request.headers().contains_key("fails") {
                        return failure(speaks, ended);
                    }
                    go.notified().await;
                    let mut response = status(200);
                    if speaks == Speaks::Grpc {
                        says_grpc(&mut response, "0");
                    }
                    response
                }
            }
        })
        .await;
        let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
        let protocol = if speaks == Speaks::Http1 { "http1" } else { "http2" };
        let policy = format!("{{limits: {limits}, retry: {{nonIdempotent: true, attempts: 1}}}}");
        let web = Sidecar::new("web").calls("orders", protocol, &[(orders.inbound[0], Some(id("orders")))], &policy);
        Self {
            speaks,
            web: web.start(&authority).await,
            go,
            ends,
            _orders: orders,
            _app: app,
            _authority: authority,
        }
    }

    fn ask(&self, lines: &'static [(&'static str, &'static str)]) -> JoinHandle<Seen> {
        let (speaks, to) = (self.speaks, self.web.outbound[0]);
        tokio::spawn(async move { speaks.send(to, lines).await })
    }

    /// It has failed, and waits for a second from now on; meanwhile another request has the endpoint. On a machine that stands still for so long this
    /// shows nothing.
    async fn fails_and_is_overtaken(&self) -> [JoinHandle<Seen>; 2] {
        let fails = self.ask(&[("fails", "yes")]);
        until("it has failed once", async || {
            metric(&self.web, "outrigger_upstream_attempts_total", &["outcome=\"failure\""]) == 1
        })
        .await;
        [fails, self.ask(&[])]
    }

    async fn answered(&self, request: JoinHandle<Seen>) {
        until("it is answered", async || {
            self.go.notify_waiters();
            request.is_finished()
        })
        .await;
        assert_eq!(request.await.unwrap().status, 200);
    }
}

fn says_grpc(response: &mut Response<Body>, grpc_status: &'static str) {
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(grpc_status));
}

fn failure(speaks: Speaks, mut ended: watch::Receiver<bool>) -> Response<Body> {
    let mut response = match speaks {
        Speaks::Grpc => status(200),
        _ => {
            let begin = tokio_stream::once(Ok(Frame::data(Bytes::from_static(b"its words"))));
            let end = futures_util::stream::once(async move {
                let _ = ended.wait_for(|ends| *ends).await;
                Ok(Frame::data(Bytes::from_static(b" to the end")))
            });
            Response::new(BodyExt::boxed(StreamBody::new(begin.chain(end))))
        }
    };
    if speaks == Speaks::Grpc {
        says_grpc(&mut response, "14");
    } else {
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert("retry-after", HeaderValue::from_static("1"));
    headers.insert("of-the-app", HeaderValue::from_static("yes"));
    response
}

fn is_of_the_app(speaks: Speaks, seen: &Seen) {
    assert_eq!(seen.error(), None, "{speaks:?}: {:?}", seen.headers);
    assert_eq!(seen.headers.get("of-the-app").map(|v| v.as_bytes()), Some(&b"yes"[..]));
    match speaks {
        Speaks::Grpc => assert_eq!(seen.headers["grpc-status"], "14"),
        _ => assert_eq!((seen.status, &*seen.body), (503, &b"its words to the end"[..])),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_no_limit_lets_be_sent_again_has_the_answer_that_it_had() {
    for speaks in Speaks::ALL {
        for limits in [
            "{perEndpoint: {maxRequests: 1}}",
            "{perEndpoint: {maxRequests: 1}, maxRequests: 9, maxPendingRequests: 9}",
        ] {
            let scene = Scene::new(speaks, limits).await;
            let [fails, held] = scene.fails_and_is_overtaken().await;
            is_of_the_app(speaks, &fails.await.unwrap());
            scene.answered(held).await;
            // What was answered counts no more.
            scene.answered(scene.ask(&[])).await;
        }
    }
}

/// It is the endpoint's until its last byte, as any other answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_goes_out_after_all_counts_at_its_endpoint() {
    for speaks in [Speaks::Http1, Speaks::Http2] {
        let scene = Scene::new(speaks, "{perEndpoint: {maxRequests: 1}}").await;
        scene.ends.send_replace(false);
        let [fails, held] = scene.fails_and_is_overtaken().await;
        let refusals = || {
            let limit = ["limit=\"perEndpoint.maxRequests\""];
            metric(&scene.web, "outrigger_call_limit_refusals_total", &limit)
        };
        until("it is not sent again", async || refusals() == 1).await;
        scene.answered(held).await;
        let refused = scene.ask(&[]).await.unwrap();
        assert_eq!(
            (refused.status, refused.error()),
            (503, Some("overloaded")),
            "{speaks:?}"
        );
        scene.ends.send_replace(true);
        is_of_the_app(speaks, &fails.await.unwrap());
        scene.answered(scene.ask(&[])).await;
    }
}
