//! Faults on purpose, in every version of HTTP and in gRPC: what an app sees, what is said of it, and what stays as if nothing had been.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, Request, Response};
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::identity::Clock;
use outrigger_tests::mesh::{
    App, Authority, Collector, SOON, Seen, Sidecar, attribute, attribute_of, id, metric, text, until,
};

use super::Speaks;

const DAY: Duration = Duration::from_secs(86_400);
const LATER: &str = "until: '9999-01-01T00:00:00Z'";

/// A caller, and an app behind a sidecar that counts what comes to it, and says of itself that it has a fault.
struct Lab {
    web: RunningProxy,
    _orders: RunningProxy,
    asked: Arc<AtomicUsize>,
    _app: App,
    _authority: Authority,
}

impl Lab {
    async fn new(policy: &str) -> Self {
        Self::by(policy, Clock::system(), "").await
    }

    async fn by(policy: &str, clock: Clock, line: &str) -> Self {
        let authority = Authority::start(&["web", "orders"], DAY).await;
        let asked = Arc::<AtomicUsize>::default();
        let app = App::start({
            let asked = Arc::clone(&asked);
            move |request: Request<_>| {
                asked.fetch_add(1, SeqCst);
                let grpc = request.headers().get("content-type").cloned();
                async move {
                    let mut response = Response::new(text("ok"));
                    let headers = response.headers_mut();
                    headers.insert("outrigger-fault", HeaderValue::from_static("abort"));
                    if let Some(grpc) = grpc {
                        headers.insert("content-type", grpc);
                        headers.insert("grpc-status", HeaderValue::from_static("0"));
                    }
                    response
                }
            }
        })
        .await;
        let orders = Sidecar::new("orders").protects(app.address).start(&authority).await;
        let endpoints = [(orders.inbound[0], Some(id("orders")))];
        let web = Sidecar::new("web").by(clock).with(line);
        let web = web.calls("orders", "detect", &endpoints, policy);
        Self {
            web: web.start(&authority).await,
            _orders: orders,
            asked,
            _app: app,
            _authority: authority,
        }
    }

    async fn send(&self, speaks: Speaks, headers: &[(&'static str, &'static str)]) -> Seen {
        speaks.send(self.web.outbound[0], headers).await
    }

    /// Waits until so much has come to the app, so much counts as the Service's requests and attempts, and so much was aborted and delayed.
    async fn counts(&self, expected: [u64; 5]) {
        until(&format!("{expected:?}"), async || self.counted() == expected).await;
    }

    fn counted(&self) -> [u64; 5] {
        let of = |name: &str, labels: &[&str]| metric(&self.web, name, &[&["orders\""], labels].concat());
        [
            self.asked.load(SeqCst) as u64,
            of("outrigger_requests_total", &[]),
            of("outrigger_upstream_attempts_total", &[]),
            of("outrigger_faults_total", &["kind=\"abort\""]),
            of("outrigger_faults_total", &["kind=\"delay\""]),
        ]
    }
}

fn said<'a>(seen: &'a Seen, name: &str) -> Option<&'a str> {
    seen.headers.get(name).map(|value| value.to_str().unwrap())
}

/// The answer of each kind of abort, which nobody tries again although 503 and UNAVAILABLE would be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_is_answered_at_once_and_by_nobody_else() {
    use Speaks::{Grpc, Http1, Http2};
    for (speaks, abort, status, grpc) in [
        (Http1, "status: 503", 503, None),
        (Http2, "status: 503", 503, None),
        (Grpc, "status: 503", 200, Some("14")),
        (Http1, "status: 418", 418, None),
        (Http2, "status: 599", 599, None),
        (Grpc, "status: 418", 200, Some("2")),
        (Grpc, "status: 404", 200, Some("12")),
        (Grpc, "status: 504", 200, Some("4")),
        (Grpc, "grpcStatus: 8", 200, Some("8")),
        (Grpc, "grpcStatus: 14", 200, Some("14")),
    ] {
        let policy =
            format!("{{retry: {{nonIdempotent: true}}, faults: [{{percent: 100, {LATER}, abort: {{{abort}}}}}]}}");
        let lab = Lab::new(&policy).await;
        let seen = lab.send(speaks, &[]).await;
        assert_eq!(seen.status, status, "{speaks:?} {abort}");
        assert_eq!(said(&seen, "grpc-status"), grpc, "{speaks:?} {abort}");
        let marks = (said(&seen, "outrigger-error"), said(&seen, "outrigger-fault"));
        assert_eq!(marks, (Some("fault-injected"), Some("abort")), "{speaks:?} {abort}");
        // Trailers only, in the head.
        assert!(
            speaks != Grpc || seen.body.is_empty() && seen.trailers.is_none(),
            "{seen:?}"
        );
        lab.counts([0, 0, 0, 1, 0]).await;
        let errors = metric(&lab.web, "outrigger_errors_total", &["reason=\"fault-injected\""]);
        assert_eq!(errors, 1);
    }
}

/// And one of gRPC alone is none for other requests, whose app then says nothing of a fault that anybody believes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_fault_nothing_is_marked_and_all_is_counted() {
    let of_grpc = format!("{{faults: [{{percent: 100, {LATER}, abort: {{grpcStatus: 14}}}}]}}");
    let none = format!("{{faults: [{{percent: 0, {LATER}, abort: {{status: 503}}}}]}}");
    for (speaks, policy) in [
        (Speaks::Http1, &of_grpc),
        (Speaks::Http2, &of_grpc),
        (Speaks::Http1, &none),
        (Speaks::Http2, &none),
        (Speaks::Grpc, &none),
    ] {
        let lab = Lab::new(policy).await;
        let seen = lab.send(speaks, &[]).await;
        assert_eq!((seen.status, &*seen.body), (200, &b"ok"[..]), "{speaks:?} {policy}");
        assert_eq!(said(&seen, "outrigger-fault"), None, "{speaks:?} {policy}");
        lab.counts([1, 1, 1, 0, 0]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delay_comes_before_the_answer_and_stands_in_no_metric_of_the_service() {
    for speaks in Speaks::ALL {
        for (abort, status, mark, asked, kinds) in [
            ("", 200, "delay", 1, [0, 1]),
            (", abort: {status: 500}", 500, "delay, abort", 0, [1, 1]),
        ] {
            let policy = format!("{{faults: [{{percent: 100, {LATER}, delay: {{fixed: 200ms}}{abort}}}]}}");
            let lab = Lab::new(&policy).await;
            let began = Instant::now();
            let seen = lab.send(speaks, &[]).await;
            assert!(began.elapsed() >= Duration::from_millis(200), "{speaks:?} {abort}");
            let status = if speaks == Speaks::Grpc { 200 } else { status };
            assert_eq!(
                (seen.status, said(&seen, "outrigger-fault")),
                (status, Some(mark)),
                "{speaks:?}"
            );
            let [aborts, delays] = kinds;
            lab.counts([asked, 0, 0, aborts, delays]).await;
        }
    }
}

/// As it would be if the server took so long: the limit of the request is over, and so is that of a gRPC caller. That of an attempt begins
/// with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delay_is_a_part_of_what_the_request_may_take() {
    let hour = format!("faults: [{{percent: 100, {LATER}, delay: {{fixed: 1h}}}}]");
    let short = format!("faults: [{{percent: 100, {LATER}, delay: {{fixed: 300ms}}}}]");
    let caller = ("grpc-timeout", "200m");
    for (speaks, policy, headers, error) in [
        (
            Speaks::Http1,
            format!("{{timeouts: {{request: 200ms}}, {hour}}}"),
            &[][..],
            Some("request-timeout"),
        ),
        (
            Speaks::Http2,
            format!("{{timeouts: {{request: 200ms}}, {hour}}}"),
            &[],
            Some("request-timeout"),
        ),
        (
            Speaks::Grpc,
            format!("{{timeouts: {{request: 200ms}}, {hour}}}"),
            &[],
            Some("request-timeout"),
        ),
        (Speaks::Grpc, format!("{{{hour}}}"), &[caller], Some("request-timeout")),
        (
            Speaks::Http1,
            format!("{{timeouts: {{backendRequest: 200ms, responseHeaders: 200ms, idle: 200ms}}, {short}}}"),
            &[],
            None,
        ),
    ] {
        let lab = Lab::new(&policy).await;
        let seen = lab.send(speaks, headers).await;
        assert_eq!(seen.error(), error, "{speaks:?} {policy}");
        assert_eq!(said(&seen, "outrigger-fault"), Some("delay"), "{speaks:?} {policy}");
        let asked = u64::from(error.is_none());
        lab.counts([asked, 0, 0, 0, 1]).await;
        let errors = metric(&lab.web, "outrigger_errors_total", &[]);
        assert_eq!(errors, 0, "what a fault has done is no error: {speaks:?} {policy}");
    }
}

/// Nobody has to take it away: no word of a controller, and no new file.
#[tokio::test]
async fn a_fault_ends_by_itself() {
    let began = SystemTime::now();
    let passed = Arc::<AtomicU64>::default();
    let clock = {
        let passed = Arc::clone(&passed);
        Clock::new(move || began + Duration::from_secs(passed.load(SeqCst)))
    };
    let until = began + Duration::from_secs(600);
    let until = time::OffsetDateTime::from(until)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    let policy = format!("{{faults: [{{percent: 100, until: '{until}', abort: {{status: 503}}}}]}}");
    let lab = Lab::by(&policy, clock, "").await;
    for (seconds, status) in [(0, 503), (598, 503), (600, 200), (3600, 200)] {
        passed.store(seconds, SeqCst);
        assert_eq!(lab.send(Speaks::Http1, &[]).await.status, status, "after {seconds} s");
    }
}

#[tokio::test]
async fn who_asks_for_it_has_it() {
    let policy = "{faults: [{percent: 100, onlyWhenHeader: {name: x-chaos, value: 'on'}, abort: {status: 503}}]}";
    let lab = Lab::new(policy).await;
    for (headers, status) in [
        (&[][..], 200),
        (&[("x-chaos", "off")], 200),
        (&[("x-chaos", "on")], 503),
        // It takes none of what sidecars say to one another.
        (&[("outrigger-fault", "abort")], 200),
    ] {
        assert_eq!(lab.send(Speaks::Http1, headers).await.status, status, "{headers:?}");
    }
}

/// 100 % of the requests have an abort, and none takes anything of the retry budget; the endpoint is as good as before.
#[tokio::test]
async fn faults_are_nothing_that_is_learned() {
    let policy = "{ejection: {consecutiveFailures: 1}, \
                  faults: [{percent: 100, onlyWhenHeader: {name: x-chaos}, abort: {status: 503}}]}";
    let lab = Lab::new(policy).await;
    for _ in 0..50 {
        assert_eq!(lab.send(Speaks::Http1, &[("x-chaos", "1")]).await.status, 503);
    }
    assert_eq!(lab.send(Speaks::Http1, &[]).await.status, 200);
    lab.counts([1, 1, 1, 50, 0]).await;
    for name in [
        "outrigger_endpoint_ejections_total",
        "outrigger_retry_budget_exhausted_total",
        "outrigger_retries_total",
    ] {
        assert_eq!(metric(&lab.web, name, &[]), 0, "{name}");
    }
}

/// The span of the attempt, or where there is none one of the request's own, says what was done.
#[tokio::test]
async fn spans_say_what_was_done() {
    for (fault, error, kind, delay) in [
        ("abort: {status: 503}", Some("fault-injected"), "abort", None),
        ("delay: {fixed: 20ms}", None, "delay", Some("20ms")),
        (
            "delay: {fixed: 20ms}, abort: {status: 503}",
            Some("fault-injected"),
            "delay, abort",
            Some("20ms"),
        ),
    ] {
        let mut collector = Collector::start().await;
        let policy = format!("{{faults: [{{percent: 100, {LATER}, {fault}}}]}}");
        let lab = Lab::by(&policy, Clock::system(), &collector.line()).await;
        lab.send(Speaks::Http1, &[]).await;
        lab.web.telemetry().flush(SOON).await;
        let (_, span) = collector.any().await;
        assert_eq!(attribute(&span, "error.type").as_deref(), error, "{fault}");
        let [event] = &span.events[..] else {
            panic!("{fault}: {:?}", span.events)
        };
        assert_eq!(event.name, "outrigger.fault");
        assert!(
            (span.start_time_unix_nano..=span.end_time_unix_nano).contains(&event.time_unix_nano),
            "{fault}"
        );
        let said = |key: &str| attribute_of(&event.attributes, key);
        assert_eq!(said("outrigger.fault").as_deref(), Some(kind));
        assert_eq!(said("outrigger.fault.delay").as_deref(), delay);
    }
}
