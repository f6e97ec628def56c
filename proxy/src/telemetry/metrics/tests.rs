#![allow(clippy::unwrap_used)]
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use outrigger_proxy_transport::body::OnTooLarge;
use outrigger_proxy_transport::error::Reason;

use super::{Handshake, IDLE, MAX_PORTS, MAX_SERVICES, Metrics, NotMirrored};
use crate::model::ServiceName;
use crate::telemetry::{
    AccessDecision, AttemptEnd, Direction, Peer, RequestEnd, RequestInfo, ServiceMetrics, SpanStart, Status,
    TraceContext, TunnelEnds, request_id,
};

fn service(name: &str, port: u16) -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        name: name.into(),
        port,
    }
}

const OK: Status = Status {
    http: Some(200),
    grpc: None,
    reason: None,
};

fn request(direction: Direction, method: &str) -> RequestInfo {
    let request = Request::builder()
        .method(method)
        .uri("/")
        .header("traceparent", "00-00000000000000000000000000000abc-0000000000000001-00");
    let mut head = request.body(()).unwrap().into_parts().0;
    let context = TraceContext::extract(&head.headers).unwrap();
    let id = request_id(&mut head);
    RequestInfo::new(direction, None, 8080, id, context, &head)
}

/// A request that ended, in mutual TLS or not.
fn ends(metrics: &Metrics, of: &ServiceMetrics, request: &RequestInfo, status: Status, millis: u64, mtls: bool) {
    let orders = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
    metrics.request_ended(&RequestEnd {
        request,
        metrics: of,
        peer: Peer {
            identity: mtls.then_some(&orders),
            address: None,
        },
        status,
        duration: Duration::from_millis(millis),
        retries: 0,
        request_bytes: 0,
        response_bytes: 0,
    });
}

/// A GET of a Service, or of something outside the cluster.
fn ends_well(metrics: &Metrics, service: Option<&ServiceName>) {
    let request = request(Direction::Outbound, "GET");
    ends(metrics, &metrics.service(service), &request, OK, 30, true);
}

#[expect(
    clippy::disallowed_methods,
    reason = "a span says when it began by the machine's clock"
)]
fn attempt_ends(metrics: &Metrics, of: &ServiceMetrics, direction: Direction, resend: u32, status: u16) {
    metrics.attempt_ended(&AttemptEnd {
        request: &request(direction, "GET"),
        metrics: of,
        span: SpanStart {
            id: [1; 8],
            at: std::time::SystemTime::now(),
            instant: tokio::time::Instant::now(),
        },
        resend,
        peer: Peer::default(),
        status: Status {
            http: Some(status),
            ..OK
        },
    });
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new())
}

/// The value of a series, by its beginning.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(&format!("{series} ")))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn reasons_are_listed_in_their_own_order() {
    for (i, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, i, "{reason:?}");
    }
}

#[test]
fn durations_by_service_method_status_and_error() {
    let metrics = metrics();
    let orders = service("orders", 8080);
    ends_well(&metrics, Some(&orders));
    let failed = Status {
        http: Some(503),
        reason: Some(Reason::NoEndpoints),
        ..OK
    };
    let get = request(Direction::Outbound, "GET");
    ends(&metrics, &metrics.service(Some(&orders)), &get, failed, 60_000, false);
    let grpc = Status { grpc: Some(0), ..OK };
    let to_app = request(Direction::Inbound, "GET");
    ends(&metrics, &metrics.port(8080), &to_app, grpc, 30, true);
    ends_well(&metrics, None);
    let text = metrics.text();
    let ok = r#"service="shop/orders",http_request_method="GET",http_response_status_code="200""#;
    let name = "http_client_request_duration_seconds";
    assert_eq!(value(&text, &format!("{name}_count{{{ok}}}")), Some(1.0), "{text}");
    assert_eq!(value(&text, &format!("{name}_sum{{{ok}}}")), Some(0.03));
    assert_eq!(
        value(&text, &format!("{name}_bucket{{le=\"0.025\",{ok}}}")),
        Some(0.0),
        "{text}"
    );
    assert_eq!(value(&text, &format!("{name}_bucket{{le=\"0.05\",{ok}}}")), Some(1.0));
    let failed =
        r#"service="shop/orders",http_request_method="GET",http_response_status_code="503",error_type="no-endpoints""#;
    assert_eq!(
        value(&text, &format!("{name}_bucket{{le=\"10.0\",{failed}}}")),
        Some(0.0)
    );
    assert_eq!(
        value(&text, &format!("{name}_bucket{{le=\"+Inf\",{failed}}}")),
        Some(1.0)
    );
    assert!(text.contains(r#"service="_external",http_request_method="GET""#));
    let server =
        r#"server_port="8080",http_request_method="GET",http_response_status_code="200",rpc_grpc_status_code="0""#;
    assert_eq!(
        value(
            &text,
            &format!("http_server_request_duration_seconds_count{{{server}}}")
        ),
        Some(1.0)
    );
    let requests = |rest: &str| value(&text, &format!("outrigger_requests_total{{{rest}}}"));
    let of = r#"direction="outbound",service="shop/orders""#;
    assert_eq!(requests(&format!(r#"{of},outcome="success",tls="true""#)), Some(1.0));
    assert_eq!(requests(&format!(r#"{of},outcome="failure",tls="false""#)), Some(1.0));
    let inbound = r#"direction="inbound",server_port="8080",outcome="success",tls="true""#;
    assert_eq!(requests(inbound), Some(1.0));
    assert_eq!(
        value(&text, r#"outrigger_errors_total{reason="no-endpoints"}"#),
        Some(1.0)
    );
}

#[test]
fn attempts_retries_and_budget() {
    let metrics = metrics();
    let orders = metrics.service(Some(&service("orders", 8080)));
    attempt_ends(&metrics, &orders, Direction::Outbound, 0, 503);
    attempt_ends(&metrics, &orders, Direction::Outbound, 1, 200);
    orders.budget_exhausted();
    orders.body_not_kept();
    orders.not_mirrored(NotMirrored::TooSlow);
    // Another port of the same Service.
    let other_port = metrics.service(Some(&service("orders", 9090)));
    attempt_ends(&metrics, &other_port, Direction::Outbound, 0, 200);
    // The app is not called in attempts.
    attempt_ends(&metrics, &orders, Direction::Inbound, 0, 200);
    let text = metrics.text();
    let of = |name: &str, rest: &str| value(&text, &format!("{name}{{service=\"shop/orders\"{rest}}}"));
    assert_eq!(
        of("outrigger_upstream_attempts_total", ",outcome=\"success\""),
        Some(2.0),
        "{text}"
    );
    assert_eq!(
        of("outrigger_upstream_attempts_total", ",outcome=\"failure\""),
        Some(1.0)
    );
    assert_eq!(of("outrigger_retries_total", ",result=\"success\""), Some(1.0));
    assert_eq!(of("outrigger_retries_total", ",result=\"failure\""), Some(0.0));
    assert_eq!(of("outrigger_retry_budget_exhausted_total", ""), Some(1.0));
    assert_eq!(of("outrigger_request_bodies_not_kept_total", ""), Some(1.0));
    let not_mirrored = "outrigger_requests_not_mirrored_total";
    assert_eq!(of(not_mirrored, ",reason=\"too-slow\""), Some(1.0));
    assert_eq!(of(not_mirrored, ",reason=\"failed\""), Some(0.0));
    assert_eq!(text.matches("outrigger_upstream_attempts_total{").count(), 2);
}

#[test]
fn connections_handshakes_and_certificates() {
    let metrics = metrics();
    metrics.handshake(Direction::Outbound, Handshake::Ok);
    metrics.handshake(Direction::Inbound, Handshake::IdentityMismatch);
    metrics.handshake(Direction::Inbound, Handshake::Other);
    let plain = metrics.connection(Direction::Inbound, false);
    let mut tls = metrics.connection(Direction::Inbound, false);
    tls.set_tls();
    metrics.expiry("leaf", || Some(3600.5));
    metrics.expiry("root", || None);
    metrics.detect_timeout();
    let text = metrics.text();
    for (series, expected) in [
        (
            r#"outrigger_tls_handshakes_total{direction="outbound",result="ok"}"#,
            1.0,
        ),
        (
            r#"outrigger_tls_handshakes_total{direction="inbound",result="identity-mismatch"}"#,
            1.0,
        ),
        (
            r#"outrigger_tls_handshakes_total{direction="inbound",result="other"}"#,
            1.0,
        ),
        (r#"outrigger_connections_open{direction="inbound",tls="false"}"#, 1.0),
        (r#"outrigger_connections_open{direction="inbound",tls="true"}"#, 1.0),
        (r#"outrigger_cert_expiry_seconds{kind="leaf"}"#, 3600.5),
        ("outrigger_detect_timeouts_total", 1.0),
        ("outrigger_spans_dropped_total", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}");
    }
    assert!(value(&text, "process_resident_memory_bytes").unwrap() > 1e6);
    assert!(value(&text, "process_open_fds").unwrap() >= 3.0);
    assert!(!text.contains("kind=\"root\""));
    drop((plain, tls));
    let open = r#"outrigger_connections_open{direction="inbound",tls="true"}"#;
    assert_eq!(value(&metrics.text(), open), Some(0.0));
}

#[tokio::test]
async fn tasks_are_counted_until_they_end() {
    let metrics = metrics();
    metrics.runtime(tokio::runtime::Handle::current());
    let tasks = || value(&metrics.text(), "outrigger_tasks_alive");
    let before = tasks().unwrap();
    let task = tokio::spawn(std::future::pending::<()>());
    assert_eq!(tasks(), Some(before + 1.0));
    task.abort();
    let _ = task.await;
    assert_eq!(tasks(), Some(before));
}

#[test]
fn tunnels_count_their_bytes() {
    let metrics = metrics();
    let ends = |direction, service: Option<ServiceName>| TunnelEnds {
        direction,
        service,
        port: 5432,
        peer: None,
        endpoint: None,
    };
    for (sent, received, ends) in [
        (1, 2, ends(Direction::Outbound, Some(service("db", 5432)))),
        (10, 20, ends(Direction::Outbound, Some(service("db", 5432)))),
        (3, 4, ends(Direction::Outbound, None)),
        (5, 6, ends(Direction::Inbound, None)),
    ] {
        let counted = metrics.tunnel(&ends);
        counted.tunnel_began();
        counted.tunnel_moved(sent, received);
    }
    ends_well(&metrics, Some(&service("web", 80)));
    let text = metrics.text();
    for (of, expected) in [
        (r#"direction="outbound",service="shop/db""#, [2.0, 11.0, 22.0]),
        (r#"direction="outbound",service="_external""#, [1.0, 3.0, 4.0]),
        (r#"direction="inbound",server_port="5432""#, [1.0, 5.0, 6.0]),
    ] {
        let counted = ["connections", "sent_bytes", "received_bytes"]
            .map(|what| value(&text, &format!("outrigger_tcp_{what}_total{{{of}}}")).unwrap());
        assert_eq!(counted, expected, "{of}");
    }
    assert!(!text.contains(r#"outrigger_tcp_connections_total{direction="outbound",service="shop/web""#));
}

/// Whatever is called, by whatever method, with whatever status: the series are bounded, and nothing is lost.
#[test]
fn label_sets_are_bounded() {
    let metrics = metrics();
    let services = MAX_SERVICES + 10;
    for i in 0..services {
        ends_well(&metrics, Some(&service(&format!("s{i}"), 80)));
    }
    for port in 0..1000 {
        let to_app = request(Direction::Inbound, "GET");
        ends(&metrics, &metrics.port(port), &to_app, OK, 30, true);
    }
    let odd = service("odd", 80);
    let odd = metrics.service(Some(&odd)).label.clone();
    assert_eq!(odd, "_overflow");
    let first = service("s0", 80);
    let brew = request(Direction::Outbound, "BREW");
    for status in 0..=999 {
        let odd = Status {
            http: Some(status),
            grpc: Some(status),
            reason: None,
        };
        ends(&metrics, &metrics.service(Some(&first)), &brew, odd, 30, true);
    }
    let text = metrics.text();
    assert!(!text.contains("BREW") && !text.contains("=\"999\""));
    let count = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
    assert!(count("http_client_request_duration_seconds_count{service=\"shop/s0\"") <= 65);
    assert_eq!(
        count("outrigger_requests_total{direction=\"inbound\""),
        4 * (MAX_PORTS + 1)
    );
    let overflow = r#"outrigger_requests_total{direction="outbound",service="_overflow",outcome="success",tls="true"}"#;
    assert_eq!(value(&text, overflow), Some(10.0));
    let counts = text
        .lines()
        .filter(|line| line.starts_with("http_client_request_duration_seconds_count"));
    let total: f64 = counts
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert!((total - (services + 1000) as f64).abs() < 0.5);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_nobody_calls_leaves() {
    let metrics = metrics();
    let (orders, web) = (service("orders", 80), service("web", 80));
    ends_well(&metrics, Some(&orders));
    let held = metrics.service(Some(&web));
    attempt_ends(&metrics, &held, Direction::Outbound, 0, 200);
    metrics.text();
    tokio::time::advance(IDLE / 2).await;
    assert!(metrics.text().contains("shop/orders"));
    tokio::time::advance(IDLE).await;
    let text = metrics.text();
    assert!(!text.contains("shop/orders"), "{text}");
    assert!(text.contains("shop/web"), "who is held is kept");
    ends_well(&metrics, Some(&orders));
    assert!(metrics.text().contains("shop/orders"));
}

/// What has no Service has one name, without the namespace that it has not.
#[test]
fn a_service_without_a_namespace_is_a_name_alone() {
    let unknown = ServiceName {
        namespace: "".into(),
        name: "unknown".into(),
        port: 0,
    };
    assert_eq!(unknown.label(), "unknown");
    assert_eq!(unknown.to_string(), "unknown:0");
    assert_eq!(service("orders", 80).label(), "shop/orders");
    assert_eq!(service("orders", 80).to_string(), "orders.shop:80");
}

#[test]
fn decisions_are_counted_by_policy_and_rule_and_bounded() {
    use AccessDecision::{Allowed, Audited, Denied};
    let metrics = Arc::new(Metrics::new());
    metrics.access(Allowed, "shop/web", "callers", "");
    metrics.access(Allowed, "shop/web", "callers", "");
    metrics.access(Denied, "shop/web", "", "");
    metrics.access(Denied, "shop/web", "", "token-expired");
    metrics.access(Allowed, "", "", "");
    metrics.access(Audited, "mesh/tomorrow", "", "");
    let series = |metrics: &Arc<Metrics>| -> Vec<String> {
        let text = metrics.text();
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("outrigger_access_total"));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(
        series(&metrics),
        [
            r#"{decision="allowed"} 1"#,
            r#"{decision="allowed",policy="shop/web",rule="callers"} 2"#,
            r#"{decision="denied",policy="shop/web"} 1"#,
            r#"{decision="denied",policy="shop/web",reason="token-expired"} 1"#,
            r#"{decision="audited",policy="mesh/tomorrow"} 1"#,
        ]
    );
    // A policy that has gone takes its series with it, so those of the next ones have room.
    metrics.retain_access(|policy| policy == "shop/web");
    assert_eq!(series(&metrics).len(), 4);
    for n in 0..10_000 {
        metrics.access(Denied, "shop/web", &format!("rule {n}"), "");
        metrics.access(Allowed, &format!("shop/{n}"), "", "");
        metrics.access(Audited, &format!("shop/{n}"), "", "");
    }
    let all = series(&metrics);
    assert_eq!(all.len(), 200);
    let counted: u64 = all
        .iter()
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(counted, 5 + 30_000, "nothing is lost");
    for decision in ["allowed", "denied", "audited"] {
        let overflow = format!("{{decision=\"{decision}\",policy=\"_overflow\"}}");
        assert!(all.iter().any(|line| line.starts_with(&overflow)), "{overflow}");
    }
    metrics.retain_access(|_| false);
    assert_eq!(
        series(&metrics).len(),
        1 + 3,
        "what is of no policy stays, and what could not be told apart"
    );
}
