//! Durations that nobody means, by everybody who may say one: the controller, a client, an app. A time plus a duration panics where
//! it overflows, and takes all connections of that worker with it.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, Response};
use outrigger_api::discovery::target::Kind as TargetKind;
use outrigger_api::discovery::{Policy, Protocol, Retry};
use outrigger_controller::discovery::FixedTargets;
use outrigger_tests::mesh::{App, Authority, Http, Sidecar, request, text};

use super::{orders, orders_address};

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

/// All durations of a policy at once.
fn policy(millis: u64) -> Policy {
    Policy {
        request_timeout_ms: Some(millis),
        backend_request_timeout_ms: Some(millis),
        connect_timeout_ms: Some(millis),
        idle_timeout_ms: Some(millis),
        response_headers_timeout_ms: Some(millis),
        retry: Some(Retry {
            backoff_max_ms: Some(millis),
            ..Retry::default()
        }),
        ..Policy::default()
    }
}

/// What an app says of when to ask again.
const AFTER: [(&str, &str); 9] = [
    ("retry-after", "18446744073709551615"),
    ("retry-after", "9223372036854775807"),
    ("retry-after", "99999999999999999999999999"),
    ("retry-after", "-1"),
    ("retry-after", "NaN"),
    ("retry-after", "1e308"),
    ("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT"),
    ("grpc-retry-pushback-ms", "18446744073709551615"),
    ("grpc-retry-pushback-ms", "-9223372036854775808"),
];

/// How long a gRPC client says that it waits.
const WAITS: [&str; 7] = ["99999999H", "99999999S", "999999999999H", "-1H", "1.5H", "NaNS", ""];

#[tokio::test]
async fn absurd_durations_end_nothing() {
    // Says what its client asks it to say, with 503.
    let app = App::start(|request| async move {
        let header = |name: &str| request.headers().get(name).cloned();
        let mut response = Response::new(text("as asked"));
        if let (Some(name), Some(value)) = (header("say"), header("says")) {
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            response.headers_mut().insert(name, value);
        }
        response
    })
    .await;
    for millis in [u64::MAX, u64::MAX - 1, i64::MAX as u64, u64::MAX / 1000, 0] {
        let mut target = orders(Protocol::Http1, &[]);
        let targets = Arc::new(FixedTargets::new([(orders_address(), target.clone())]));
        let authority = Authority::with_discovery(&["web", "orders"], DAY, Some(targets.clone())).await;
        let server = Sidecar::new("orders").protects(app.address).start(&authority).await;
        target = orders(Protocol::Http1, &[("orders", server.inbound[0])]);
        if let Some(TargetKind::Service(service)) = &mut target.kind {
            service.policy = Some(policy(millis));
        }
        targets.replace(orders_address(), target);
        let web = Sidecar::new("web")
            .calls_address(orders_address())
            .start(&authority)
            .await;
        let client = Http::one();
        let send = async |headers: &[(&'static str, &'static str)]| {
            let mut request = request(Method::GET, web.outbound[0], "/", "");
            for (name, value) in headers {
                request.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            client.send(request).await
        };
        for (name, value) in AFTER {
            let seen = send(&[("say", name), ("says", value)]).await;
            let seen = seen.unwrap_or_else(|e| panic!("{millis} ms, {name}: {value}: {e}"));
            assert_eq!(seen.status, 503, "{millis} ms, {name}: {value}");
        }
        for value in WAITS {
            let seen = send(&[("content-type", "application/grpc"), ("grpc-timeout", value)]).await;
            let seen = seen.unwrap_or_else(|e| panic!("{millis} ms, grpc-timeout: {value}: {e}"));
            assert_eq!(seen.status, 200, "{millis} ms, grpc-timeout: {value}");
        }
    }
}
