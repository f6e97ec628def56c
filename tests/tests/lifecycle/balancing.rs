//! What a TrafficPolicy says of endpoints, in every version of HTTP and in gRPC.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::{HeaderValue, Method, Response};
use outrigger_tests::mesh::{App, Authority, Body, Http, Sidecar, id, metric, request, status, text};

const DAY: Duration = Duration::from_secs(86_400);

/// How an app answers.
#[derive(Clone, Copy, Debug)]
enum Says {
    Status(u16),
    /// In the head, without a message.
    Grpc(&'static str),
}

impl Says {
    fn response(self) -> Response<Body> {
        match self {
            Self::Status(code) => status(code),
            Self::Grpc(code) => {
                let mut response = status(200);
                let headers = response.headers_mut();
                headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                headers.insert("grpc-status", HeaderValue::from_static(code));
                response
            }
        }
    }
}

/// How many of 60 requests the one of two endpoints gets that answers so.
async fn asked(protocol: &str, says: Says, policy: &str) -> (usize, u64) {
    let authority = Authority::start(&["web", "orders"], DAY).await;
    let asked = Arc::<AtomicUsize>::default();
    let bad = App::start({
        let asked = Arc::clone(&asked);
        move |_| {
            asked.fetch_add(1, SeqCst);
            async move { says.response() }
        }
    });
    let good = match says {
        Says::Status(_) => Says::Status(200),
        Says::Grpc(_) => Says::Grpc("0"),
    };
    let apps = [bad.await, App::start(move |_| async move { good.response() }).await];
    let one = Sidecar::new("orders").protects(apps[0].address).start(&authority).await;
    let two = Sidecar::new("orders").protects(apps[1].address).start(&authority).await;
    let endpoints = [&one, &two].map(|proxy| (proxy.inbound[0], Some(id("orders"))));
    let web = Sidecar::new("web").calls("orders", protocol, &endpoints, policy);
    let web = web.start(&authority).await;
    let client = if protocol == "http1" { Http::one() } else { Http::two() };
    for _ in 0..60 {
        let mut request = request(Method::POST, web.outbound[0], "/", "");
        if matches!(says, Says::Grpc(_)) {
            let headers = request.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        }
        client.send(request).await.unwrap();
    }
    let ejected = metric(&web, "outrigger_endpoint_ejections_total", &["reason=\"failing\""]);
    (asked.load(SeqCst), ejected)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn which_answers_leave_an_endpoint_out_is_up_to_the_policy() {
    let listed = "{ejection: {consecutiveFailures: 1, statuses: [500], grpcStatuses: [13], baseEjectionTime: 1h, \
                  maxEjectionTime: 1h}}";
    for (protocol, says, policy, is_failure) in [
        ("http1", Says::Status(500), listed, true),
        ("http2", Says::Status(500), listed, true),
        ("http2", Says::Grpc("13"), listed, true),
        ("http1", Says::Status(500), "{}", false),
        ("http2", Says::Status(500), "{}", false),
        ("http2", Says::Grpc("13"), "{}", false),
        // Whatever is listed.
        ("http1", Says::Status(403), listed, false),
        ("http2", Says::Status(429), listed, false),
        ("http2", Says::Grpc("7"), listed, false),
    ] {
        let (asked, ejected) = asked(protocol, says, policy).await;
        assert_eq!(ejected, u64::from(is_failure), "{protocol} {says:?} {policy}");
        assert!(!is_failure || asked == 1, "{protocol} {says:?} {policy}: {asked}");
    }
}

/// Who answers each of 24 requests or connections, one after the other, of the one of three apps that each is sent to.
async fn answered(protocol: &str, policy: &str, line: &str) -> Vec<String> {
    let authority = Authority::start(&["web", "orders"], DAY).await;
    let mut apps = Vec::new();
    let mut endpoints = Vec::new();
    let mut sidecars = Vec::new();
    for number in 0..3 {
        let app = App::start(move |_| async move { Response::new(text(number.to_string())) }).await;
        let sidecar = Sidecar::new("orders").protects(app.address).start(&authority).await;
        endpoints.push((sidecar.inbound[0], Some(id("orders"))));
        apps.push(app);
        sidecars.push(sidecar);
    }
    let web = Sidecar::new("web").calls("orders", protocol, &endpoints, policy);
    let web = web.start(&authority).await;
    let mut answered = Vec::new();
    let client = |protocol| if protocol == "http2" { Http::two() } else { Http::one() };
    let kept = client(protocol);
    for _ in 0..24 {
        let mut request = request(Method::GET, web.outbound[0], "/items", "");
        let (name, value) = line.split_once(": ").unwrap();
        request.headers_mut().insert(
            http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
        // Of what is carried as bytes, each connection is chosen for.
        let seen = match protocol {
            "opaque" => client(protocol).send(request).await,
            _ => kept.send(request).await,
        };
        answered.push(String::from_utf8(seen.unwrap().body.to_vec()).unwrap());
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_type_in_each_protocol() {
    let turns = "{loadBalancer: {type: RoundRobin}}";
    let hash = |on: &str| format!("{{loadBalancer: {{type: ConsistentHash, consistentHash: {{keys: [{{{on}}}]}}}}}}");
    for protocol in ["http1", "http2", "opaque"] {
        let all = answered(protocol, turns, "x-user: 1").await;
        for turn in all.windows(3) {
            assert!(
                turn[0] != turn[1] && turn[1] != turn[2] && turn[2] != turn[0],
                "{protocol}: {all:?}"
            );
        }
        for (on, line) in [
            ("type: Header, name: x-user", "x-user: 7"),
            ("type: Cookie, name: s", "cookie: a=b; s=7"),
            ("type: Path", "x-user: 1"),
            ("type: Caller", "x-user: 1"),
        ] {
            let all = answered(protocol, &hash(on), line).await;
            let is_one = all.iter().all(|who| *who == all[0]);
            // Nothing is known of bytes but who sends them.
            assert_eq!(
                is_one,
                protocol != "opaque" || on == "type: Caller",
                "{protocol} {on}: {all:?}"
            );
        }
    }
}
