//! Another Service that is asked in place of one that fails, in every version of HTTP and in gRPC: when, with what, and what is said of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::{HeaderValue, Method, Response};
use http_body_util::BodyExt;
use outrigger_api::discovery::backend::Kind;
use outrigger_api::discovery::target::Kind as TargetKind;
use outrigger_api::discovery::{Backend, Endpoints, Protocol, SessionPersistence, SessionType, Target};
use outrigger_api::policy::TrafficPolicySpec;
use outrigger_controller::discovery::FixedTargets;
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{
    App, Authority, Body, Collector, Http, SOON, Seen, Sidecar, attribute, metric, request, status, text,
};

use super::{Speaks, orders, orders_address, until};

const DAY: Duration = Duration::from_secs(86_400);

/// What becomes of a request at the Service that the app calls.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fails {
    Nobody,
    Refused,
    Hangs,
    Status(u16),
    Grpc(&'static str),
}

/// Who is asked in its place.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spare {
    /// Says what it was sent.
    Works,
    Fails,
    Hangs,
    Nobody,
    /// The controller says one that is none of the Service's.
    None,
}

struct Lab {
    web: RunningProxy,
    /// How many requests each has had.
    asked: [Arc<AtomicUsize>; 2],
    _held: (Authority, Vec<App>, Vec<RunningProxy>),
}

async fn app(fails: Option<Fails>, asked: Arc<AtomicUsize>) -> App {
    App::start(move |request| {
        asked.fetch_add(1, SeqCst);
        async move {
            let (head, body) = request.into_parts();
            let mut response: Response<Body> = match fails {
                Some(Fails::Status(code)) => status(code),
                Some(Fails::Grpc(_)) => status(200),
                Some(_) => std::future::pending().await,
                None => {
                    let body = body.collect().await.unwrap().to_bytes();
                    Response::new(text([&b"spare: "[..], &body].concat()))
                }
            };
            let is_grpc = head
                .headers
                .get("content-type")
                .is_some_and(|is| is == "application/grpc");
            let grpc = match fails {
                Some(Fails::Grpc(code)) => Some(code),
                _ => is_grpc.then_some("0"),
            };
            if let Some(code) = grpc {
                let headers = response.headers_mut();
                headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                headers.insert("grpc-status", HeaderValue::from_static(code));
            }
            response
        }
    })
    .await
}

impl Lab {
    async fn new(speaks: Speaks, fails: Fails, spare: Spare, policy: &str, line: &str) -> Self {
        let targets = Arc::new(FixedTargets::new([(orders_address(), Target::default())]));
        let authority =
            Authority::with_discovery(&["web", "orders", "spare"], DAY, Some(Arc::clone(&targets) as _)).await;
        let asked: [Arc<AtomicUsize>; 2] = Default::default();
        let [own, other] = asked.clone();
        let apps = vec![
            app(Some(fails), own).await,
            app(
                match spare {
                    Spare::Fails => Some(Fails::Status(503)),
                    Spare::Hangs => Some(Fails::Hangs),
                    _ => None,
                },
                other,
            )
            .await,
        ];
        let mut sidecars = Vec::new();
        for (name, app) in ["orders", "spare"].into_iter().zip(&apps) {
            sidecars.push(Sidecar::new(name).protects(app.address).start(&authority).await);
        }
        let protocol = match speaks {
            Speaks::Http1 => Protocol::Http1,
            Speaks::Http2 | Speaks::Grpc => Protocol::Http2,
        };
        let own = match fails {
            Fails::Nobody => vec![],
            Fails::Refused => vec![("orders", ([127, 0, 0, 1], 1).into())],
            _ => vec![("orders", sidecars[0].inbound[0])],
        };
        let mut target = orders(protocol, &own);
        let spares = match spare {
            Spare::Nobody => vec![],
            _ => vec![("spare", sidecars[1].inbound[0])],
        };
        let Some(TargetKind::Service(service)) = &mut target.kind else {
            panic!("it is a Service");
        };
        service.backends.push(backend(orders(protocol, &spares)));
        let spec: TrafficPolicySpec = serde_saphyr::from_str(policy).unwrap();
        let mut policy = spec.to_proto().unwrap();
        for asked in policy.fallback.iter_mut().flat_map(|fallback| &mut fallback.backends) {
            asked.backend = Some(if spare == Spare::None { 7 } else { 1 });
        }
        policy.session_persistence = Some(SessionPersistence {
            r#type: SessionType::Header.into(),
            name: "x-session".to_owned(),
            key: vec![7; 32],
            ..SessionPersistence::default()
        });
        service.policy = Some(policy);
        targets.replace(orders_address(), target);
        let web = Sidecar::new("web").with(line).calls_address(orders_address());
        Self {
            web: web.start(&authority).await,
            asked,
            _held: (authority, apps, sidecars),
        }
    }

    async fn send(&self, speaks: Speaks, headers: &[(&'static str, &'static str)]) -> Seen {
        speaks.send(self.web.outbound[0], headers).await
    }

    fn asked(&self) -> [usize; 2] {
        self.asked.clone().map(|asked| asked.load(SeqCst))
    }

    fn fallbacks(&self) -> u64 {
        metric(&self.web, "outrigger_fallbacks_total", &["orders\""])
    }
}

/// That of the Service "spare" with these endpoints.
fn backend(target: Target) -> Backend {
    let Some(TargetKind::Service(mut service)) = target.kind else {
        panic!("it is a Service");
    };
    let mut backend = service.backends.remove(0);
    if backend.kind.is_none() {
        backend.kind = Some(Kind::Endpoints(Endpoints::default()));
    }
    backend.r#ref.as_mut().unwrap().name = "spare".to_owned();
    backend
}

fn said<'a>(seen: &'a Seen, name: &str) -> Option<&'a str> {
    seen.headers.get(name).map(|value| value.to_str().unwrap())
}

const ANY: &str = "{reasons: [NoEndpoints, Overloaded, Timeout], statuses: [503], grpcStatuses: [14]}";

fn policy(more: &str) -> String {
    format!("{{fallback: {{when: {ANY}, backendRefs: [{{name: spare, port: 8080}}]}}{more}}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_gets_what_the_service_has_not_seen_or_may_see_twice() {
    use Fails::{Hangs, Nobody, Refused, Status};
    let key = &[("idempotency-key", "7")][..];
    let (once, twice) = (", retry: {attempts: 0}", ", retry: {attempts: 0, nonIdempotent: true}");
    let short = ", retry: {attempts: 0}, timeouts: {backendRequest: 200ms}";
    let fault = ", faults: [{percent: 100, until: '9999-01-01T00:00:00Z', abort: {status: 503}}]";
    for (fails, more, headers, cause) in [
        (Nobody, "", &[][..], Some("no-endpoints")),
        (Refused, "", &[], Some("status-503")),
        (Status(503), once, &[], None),
        (Status(503), once, key, Some("status-503")),
        (Status(503), twice, &[], Some("status-503")),
        (Hangs, short, &[], None),
        (Hangs, short, key, Some("attempt-timeout")),
        // There is no time left.
        (Hangs, ", timeouts: {request: 200ms}", key, None),
        (Status(200), fault, &[], Some("status-503")),
        (Status(500), once, key, None),
    ] {
        for speaks in Speaks::ALL {
            // The same, as a server of gRPC says it.
            let (fails, cause) = match (speaks, fails, cause) {
                (Speaks::Grpc, Status(503), cause) => (Fails::Grpc("14"), cause.map(|_| "grpc-status-14")),
                (Speaks::Grpc, Refused | Status(200), Some(_)) => (fails, Some("grpc-status-14")),
                _ => (fails, cause),
            };
            let lab = Lab::new(speaks, fails, Spare::Works, &policy(more), "").await;
            let seen = lab.send(speaks, headers).await;
            let at = format!("{speaks:?} {fails:?} {more} {headers:?}: {seen:?}");
            assert_eq!(said(&seen, "outrigger-fallback"), cause, "{at}");
            assert_eq!(lab.asked()[1], usize::from(cause.is_some()), "{at}");
            assert_eq!(lab.fallbacks(), u64::from(cause.is_some()), "{at}");
            if cause.is_some() {
                assert_eq!((seen.status, &*seen.body), (200, &b"spare: an order"[..]), "{at}");
                let grpc = (speaks == Speaks::Grpc).then_some("0");
                assert_eq!((said(&seen, "grpc-status"), seen.error()), (grpc, None), "{at}");
                // No session is at an endpoint of another Service.
                assert_eq!(said(&seen, "x-session"), None, "{at}");
            }
        }
    }
}

/// One level: what it answers is the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_answers_is_the_answer() {
    for (spare, error, asked) in [(Spare::Fails, None, 1), (Spare::Nobody, Some("no-endpoints"), 0)] {
        let lab = Lab::new(
            Speaks::Http1,
            Fails::Nobody,
            spare,
            &policy(", retry: {attempts: 0}"),
            "",
        )
        .await;
        let seen = lab.send(Speaks::Http1, &[]).await;
        assert_eq!((seen.status, seen.error()), (503, error), "{spare:?}");
        assert_eq!(said(&seen, "outrigger-fallback"), Some("no-endpoints"), "{spare:?}");
        assert_eq!(lab.asked(), [0, asked], "{spare:?}");
    }
}

/// What the breaker refuses was sent to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_a_limit_goes_there() {
    let lab = Lab::new(
        Speaks::Http1,
        Fails::Hangs,
        Spare::Works,
        &policy(", limits: {maxRequests: 1}"),
        "",
    )
    .await;
    let to = lab.web.outbound[0];
    let first = tokio::spawn(async move { Speaks::Http1.send(to, &[]).await });
    until("the first one is under way", async || lab.asked() == [1, 0]).await;
    let seen = lab.send(Speaks::Http1, &[]).await;
    assert_eq!(
        (&*seen.body, said(&seen, "outrigger-fallback")),
        (&b"spare: an order"[..], Some("overloaded"))
    );
    assert_eq!(said(&seen, "retry-after"), None);
    first.abort();
}

/// A body is kept for it, as for a retry, up to `retry.maxBodyBytes`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_kept_goes_nowhere_else() {
    for (most, served) in [(4, false), (1000, true)] {
        let more = format!(", retry: {{attempts: 0, maxBodyBytes: {most}}}");
        let lab = Lab::new(Speaks::Http1, Fails::Status(503), Spare::Works, &policy(&more), "").await;
        let to = lab.web.outbound[0];
        let mut put = request(Method::PUT, to, "/", "an order");
        put.headers_mut().insert("x-any", HeaderValue::from_static("1"));
        let seen = Http::one().send(put).await.unwrap();
        assert_eq!(
            (seen.status == 200, lab.asked()),
            (served, [1, usize::from(served)]),
            "{most}"
        );
    }
}

/// The failure's span has the event, and that of the other backend has none.
#[tokio::test]
async fn each_attempt_has_its_span() {
    let mut collector = Collector::start().await;
    let lab = Lab::new(
        Speaks::Http1,
        Fails::Status(503),
        Spare::Works,
        &policy(", retry: {attempts: 0, nonIdempotent: true}"),
        &collector.line(),
    )
    .await;
    lab.send(Speaks::Http1, &[]).await;
    let mut spans = Vec::new();
    for _ in 0..2 {
        lab.web.telemetry().flush(SOON).await;
        spans.push(collector.any().await.1);
    }
    let status = |n: usize| attribute(&spans[n], "http.response.status_code");
    let events = |n: usize| {
        spans[n]
            .events
            .iter()
            .map(|event| event.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (status(0).as_deref(), events(0)),
        (Some("503"), vec!["outrigger.fallback".to_owned()])
    );
    assert_eq!((status(1).as_deref(), events(1)), (Some("200"), vec![]));
}

/// Where there is nobody to ask, the failure is not lost.
#[tokio::test]
async fn a_backend_that_is_none_leaves_the_failure() {
    for speaks in Speaks::ALL {
        for (fails, status, error) in [
            (Fails::Status(503), 503, None),
            (Fails::Nobody, 503, Some("no-endpoints")),
        ] {
            let policy = "{retry: {attempts: 0, nonIdempotent: true}, fallback: {when: {reasons: [NoEndpoints], statuses: [503], grpcStatuses: [14]}, \
                          backendRefs: [{name: spare, port: 80}]}}";
            let lab = Lab::new(speaks, fails, Spare::None, policy, "").await;
            let seen = lab.send(speaks, &[]).await;
            let is_grpc = speaks == Speaks::Grpc && error.is_some();
            let seen_status = if is_grpc { 200 } else { status };
            assert_eq!(
                (seen.status, seen.error()),
                (seen_status, error),
                "{speaks:?} {fails:?}"
            );
            assert!(!seen.headers.contains_key("outrigger-fallback"), "{speaks:?} {fails:?}");
        }
    }
}

/// One that has enough to do has not had the request, which the first one had: what that one answered stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_has_enough_to_do_leaves_the_failure() {
    for speaks in Speaks::ALL {
        let fails = if speaks == Speaks::Grpc {
            Fails::Grpc("14")
        } else {
            Fails::Status(503)
        };
        let more = ", retry: {attempts: 0, nonIdempotent: true}, limits: {maxRequests: 1}";
        let lab = Lab::new(speaks, fails, Spare::Hangs, &policy(more), "").await;
        let to = lab.web.outbound[0];
        let held = tokio::spawn(async move { speaks.send(to, &[]).await });
        until("it is asked", async || lab.asked()[1] == 1).await;
        let seen = lab.send(speaks, &[]).await;
        assert_eq!(
            (seen.error(), said(&seen, "outrigger-fallback")),
            (None, None),
            "{speaks:?}: {seen:?}"
        );
        match speaks {
            Speaks::Grpc => assert_eq!(said(&seen, "grpc-status"), Some("14")),
            _ => assert_eq!(seen.status, 503),
        }
        assert_eq!(lab.asked(), [2, 1], "{speaks:?}");
        held.abort();
    }
}
