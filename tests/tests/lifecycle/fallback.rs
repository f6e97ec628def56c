//! What stands in for a failure, in every version of HTTP and in gRPC: which failures, what a caller sees, and what is said of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::HeaderValue;
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{
    App, Authority, Collector, SOON, Seen, Sidecar, attribute, attribute_of, id, metric, status, until,
};

use super::Speaks;

const DAY: Duration = Duration::from_secs(86_400);
/// To both kinds of callers.
const ANSWER: &str = "response: {status: 200, grpcStatus: 9, headers: [{name: x-from, value: fallback}], body: later}";

/// What becomes of a request without a fallback.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fails {
    /// No endpoint is there.
    Nobody,
    /// The one that is there cannot be connected to.
    Refused,
    Hangs,
    /// The app says so.
    Status(u16),
    Grpc(&'static str),
}

/// A caller, and what it calls.
struct Lab {
    web: RunningProxy,
    _orders: RunningProxy,
    asked: Arc<AtomicUsize>,
    _app: App,
    _authority: Authority,
}

impl Lab {
    async fn new(fails: Fails, policy: &str, line: &str) -> Self {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let asked = Arc::<AtomicUsize>::default();
        let app = App::start({
            let asked = Arc::clone(&asked);
            move |_| {
                asked.fetch_add(1, SeqCst);
                async move {
                    let mut response = match fails {
                        Fails::Status(code) => status(code),
                        Fails::Grpc(_) => status(200),
                        _ => std::future::pending().await,
                    };
                    if let Fails::Grpc(code) = fails {
                        let headers = response.headers_mut();
                        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                        headers.insert("grpc-status", HeaderValue::from_static(code));
                    }
                    // Nobody takes an app's word for a fallback.
                    let headers = response.headers_mut();
                    headers.insert("outrigger-fallback", HeaderValue::from_static("no-endpoints"));
                    response
                }
            }
        })
        .await;
        let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
        let endpoints = match fails {
            Fails::Nobody => vec![],
            Fails::Refused => vec![(([127, 0, 0, 1], 1).into(), Some(id("orders")))],
            _ => vec![(orders.inbound[0], Some(id("orders")))],
        };
        // Where nobody is there, a client that may not speak HTTP is reset.
        let protocol = if fails == Fails::Nobody { "http1" } else { "detect" };
        let web = Sidecar::new("web")
            .with(line)
            .calls("orders", protocol, &endpoints, policy);
        Self {
            web: web.start(&authority).await,
            _orders: orders,
            asked,
            _app: app,
            _authority: authority,
        }
    }

    async fn send(&self, speaks: Speaks) -> Seen {
        speaks.send(self.web.outbound[0], &[]).await
    }

    fn of_service(&self, name: &str, labels: &[&str]) -> u64 {
        metric(&self.web, name, &[&["orders\""], labels].concat())
    }
}

fn said<'a>(seen: &'a Seen, name: &str) -> Option<&'a str> {
    seen.headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_that_is_listed_has_the_answer_in_its_place() {
    use Speaks::{Grpc, Http1, Http2};
    for (speaks, fails, when, more, mark) in [
        (Http1, Fails::Nobody, "reasons: [NoEndpoints]", "", "no-endpoints"),
        (Http2, Fails::Nobody, "reasons: [NoEndpoints]", "", "no-endpoints"),
        (Grpc, Fails::Nobody, "reasons: [NoEndpoints]", "", "no-endpoints"),
        (Http1, Fails::Refused, "statuses: [503]", "", "status-503"),
        (Http2, Fails::Refused, "statuses: [503]", "", "status-503"),
        (Grpc, Fails::Refused, "grpcStatuses: [14]", "", "grpc-status-14"),
        (
            Http1,
            Fails::Hangs,
            "reasons: [Timeout]",
            ", timeouts: {request: 200ms}",
            "request-timeout",
        ),
        (
            Http2,
            Fails::Hangs,
            "reasons: [Timeout]",
            ", timeouts: {responseHeaders: 200ms}",
            "attempt-timeout",
        ),
        (
            Grpc,
            Fails::Hangs,
            "reasons: [Timeout]",
            ", timeouts: {idle: 200ms}",
            "idle-timeout",
        ),
        (Http1, Fails::Status(500), "statuses: [500]", "", "status-500"),
        (Http2, Fails::Status(500), "statuses: [500]", "", "status-500"),
        (Grpc, Fails::Grpc("8"), "grpcStatuses: [8]", "", "grpc-status-8"),
        // A refusal of the callee, by the user's word.
        (Http1, Fails::Status(429), "statuses: [403, 429]", "", "status-429"),
    ] {
        let lab = Lab::new(
            fails,
            &format!("{{fallback: {{when: {{{when}}}, {ANSWER}}}{more}}}"),
            "",
        )
        .await;
        let seen = lab.send(speaks).await;
        let grpc = speaks == Grpc;
        assert_eq!(seen.status, 200, "{speaks:?} {fails:?}");
        assert_eq!(said(&seen, "grpc-status"), grpc.then_some("9"), "{speaks:?} {fails:?}");
        assert_eq!(
            &*seen.body,
            if grpc { &b""[..] } else { b"later" },
            "{speaks:?} {fails:?}"
        );
        let kind = if grpc {
            "application/grpc"
        } else {
            "text/plain; charset=utf-8"
        };
        assert_eq!(said(&seen, "content-type"), Some(kind));
        let marks = (said(&seen, "outrigger-fallback"), seen.error(), said(&seen, "x-from"));
        assert_eq!(marks, (Some(mark), None, Some("fallback")), "{speaks:?} {fails:?}");
        assert_eq!(lab.of_service("outrigger_fallbacks_total", &[]), 1);
        // The caller has been served; the attempts say what the Service is like.
        until("it counts as what the client saw", async || {
            lab.of_service("outrigger_requests_total", &["outcome=\"success\""]) == 1
        })
        .await;
        let attempts = match fails {
            Fails::Nobody => 0,
            Fails::Refused => 3,
            Fails::Status(429) => 0,
            _ => 1,
        };
        // A gRPC status below 2, 4, 12 … is no failure of a server (OpenTelemetry).
        let attempts = if fails == Fails::Grpc("8") { 0 } else { attempts };
        let failed = lab.of_service("outrigger_upstream_attempts_total", &["outcome=\"failure\""]);
        assert_eq!(failed, attempts, "{speaks:?} {fails:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_is_not_listed_stays_what_it_is() {
    use Speaks::{Grpc, Http1, Http2};
    let all = "when: {reasons: [NoEndpoints, Overloaded, Timeout], statuses: [503], grpcStatuses: [14]}";
    for (speaks, fails, response, status) in [
        (Http1, Fails::Status(500), ANSWER, 500),
        (Http2, Fails::Status(403), ANSWER, 403),
        (Http1, Fails::Status(429), ANSWER, 429),
        (Grpc, Fails::Grpc("8"), ANSWER, 200),
        // The answer is not for such callers.
        (Http1, Fails::Nobody, "response: {grpcStatus: 9}", 503),
        (Grpc, Fails::Nobody, "response: {status: 200, body: later}", 200),
    ] {
        let lab = Lab::new(fails, &format!("{{fallback: {{{all}, {response}}}}}"), "").await;
        let seen = lab.send(speaks).await;
        assert_eq!(
            (seen.status, said(&seen, "outrigger-fallback")),
            (status, None),
            "{speaks:?} {fails:?}"
        );
        let grpc = match fails {
            Fails::Grpc(code) => Some(code),
            _ => (speaks == Grpc).then_some("14"),
        };
        assert_eq!(said(&seen, "grpc-status"), grpc, "{speaks:?} {fails:?}");
        assert_eq!(lab.of_service("outrigger_fallbacks_total", &[]), 0);
    }
}

/// Retries come first, and a fault on purpose is a failure like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_the_last_word() {
    let fallback = format!("fallback: {{when: {{statuses: [503]}}, {ANSWER}}}");
    let lab = Lab::new(
        Fails::Status(503),
        &format!("{{retry: {{nonIdempotent: true}}, {fallback}}}"),
        "",
    )
    .await;
    let seen = lab.send(Speaks::Http1).await;
    assert_eq!(
        (&*seen.body, said(&seen, "outrigger-fallback")),
        (&b"later"[..], Some("status-503"))
    );
    assert_eq!(lab.asked.load(SeqCst), 3);

    let fault = "faults: [{percent: 100, until: '9999-01-01T00:00:00Z', abort: {status: 503}}]";
    let lab = Lab::new(Fails::Status(200), &format!("{{{fault}, {fallback}}}"), "").await;
    let seen = lab.send(Speaks::Http2).await;
    let marks = (said(&seen, "outrigger-fallback"), said(&seen, "outrigger-fault"));
    assert_eq!(
        (&*seen.body, marks),
        (&b"later"[..], (Some("status-503"), Some("abort")))
    );
    assert_eq!(lab.asked.load(SeqCst), 0);
}

/// The failure, and that something stands in its place: in the span of the last attempt, or in one of the request's own.
#[tokio::test]
async fn the_span_has_the_failure_and_what_stands_for_it() {
    for (fails, when, error, cause) in [
        (Fails::Nobody, "reasons: [NoEndpoints]", "no-endpoints", "no-endpoints"),
        (Fails::Status(500), "statuses: [500]", "500", "status-500"),
    ] {
        let mut collector = Collector::start().await;
        let policy = format!("{{fallback: {{when: {{{when}}}, {ANSWER}}}}}");
        let lab = Lab::new(fails, &policy, &collector.line()).await;
        lab.send(Speaks::Http1).await;
        lab.web.telemetry().flush(SOON).await;
        let (_, span) = collector.any().await;
        assert_eq!(attribute(&span, "error.type").as_deref(), Some(error), "{fails:?}");
        let [event] = &span.events[..] else {
            panic!("{fails:?}: {:?}", span.events)
        };
        assert_eq!(event.name, "outrigger.fallback");
        let said = attribute_of(&event.attributes, "outrigger.fallback");
        assert_eq!(said.as_deref(), Some(cause));
        // One span, and no other of the same request.
        lab.web.telemetry().flush(SOON).await;
        assert_eq!(collector.drain().len(), 0, "{fails:?}");
    }
}

/// A response that has no body, and one that says its own kind.
#[tokio::test]
async fn what_an_answer_has() {
    for (response, kind, body) in [
        ("{status: 204}", None, ""),
        (
            "{status: 200, headers: [{name: Content-Type, value: application/json}], body: '[]'}",
            Some("application/json"),
            "[]",
        ),
    ] {
        let policy = format!("{{fallback: {{when: {{statuses: [500]}}, response: {response}}}}}");
        let lab = Lab::new(Fails::Status(500), &policy, "").await;
        let seen = lab.send(Speaks::Http1).await;
        assert_eq!(
            (said(&seen, "content-type"), &*seen.body),
            (kind, body.as_bytes()),
            "{response}"
        );
    }
}
