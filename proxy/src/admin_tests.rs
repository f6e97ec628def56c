#![allow(clippy::unwrap_used)]
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outrigger_api::probes::{AppProbe, Ask, HttpGet, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{AdminState, serve};
use crate::dns::Resolver;
use crate::probe::AppProbes;
use crate::telemetry::{Settings, Telemetry};

struct Admin {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    state: AdminState,
    /// Accepts connections.
    _app: TcpListener,
}

/// A handler of an app that is not there.
fn handler(port: u16) -> AppProbe {
    AppProbe {
        container: "app".to_owned(),
        kind: Kind::PreStop,
        port,
        timeout: None,
        key: None,
        ask: Ask::Tcp,
    }
}

async fn start() -> Admin {
    start_with(0).await
}

/// So many bytes more in `/config`.
async fn start_with(padding: usize) -> Admin {
    outrigger_proxy_transport::net::listen::raise_file_limit();
    let socket = TcpSocket::new_v4().unwrap();
    // So that an answer which nobody reads need not be a large one.
    socket.set_send_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let address = listener.local_addr().unwrap();
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = Arc::clone(&ready);
    let resolver = Resolver::start(Some(&[])).unwrap();
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let probe = |container: &str, port| AppProbe {
        container: container.to_owned(),
        kind: Kind::Readiness,
        port,
        timeout: Some(60),
        key: None,
        ask: Ask::Tcp,
    };
    let port = app.local_addr().unwrap().port();
    let hung = AppProbe {
        timeout: Some(600),
        ask: Ask::Http(HttpGet {
            target: "/".to_owned(),
            tls: false,
            headers: Vec::new(),
        }),
        ..probe("hung", port)
    };
    let probes = vec![probe("up", port), hung, handler(1)];
    let state = AdminState {
        probes: Arc::new(AppProbes::new(address.ip(), probes)),
        telemetry: Telemetry::start(&Settings::default(), &resolver).unwrap(),
        ready: Arc::new(move || match is_ready.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("no SVID yet".into()),
        }),
        config: Arc::new(move || serde_json::json!({"workload": "orders", "padding": "x".repeat(padding)})),
        log: None,
        shutdown: CancellationToken::new(),
    };
    tokio::spawn(serve(listener, state.clone()));
    Admin {
        address,
        ready,
        state,
        _app: app,
    }
}

impl Admin {
    async fn ask(&self, request: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
        (status, answer)
    }
}

#[tokio::test]
async fn probes_say_what_they_wait_for() {
    let admin = start().await;
    assert_eq!(admin.ask("GET /livez", "").await.0, 200);
    let (status, answer) = admin.ask("GET /readyz", "").await;
    assert!(
        status == 503 && answer.ends_with("not ready: no SVID yet\n"),
        "{answer}"
    );
    admin.ready.store(true, Ordering::Relaxed);
    assert_eq!(admin.ask("GET /readyz", "").await.0, 200);
}

#[tokio::test]
async fn metrics_and_config() {
    let admin = start().await;
    let (status, answer) = admin.ask("GET /metrics", "").await;
    assert!(
        status == 200 && answer.contains("process_resident_memory_bytes "),
        "{answer}"
    );
    assert!(answer.contains("content-type: application/openmetrics-text") && answer.ends_with("# EOF\n"));
    let (status, answer) = admin.ask("GET /config?x", "").await;
    assert!(status == 200 && answer.contains("\"workload\": \"orders\""), "{answer}");
    let (status, answer) = admin.ask("HEAD /config", "").await;
    assert!(status == 200 && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn switches() {
    let admin = start().await;
    assert!(!admin.state.telemetry.access_log());
    assert_eq!(admin.ask("PUT /accesslog", "true\n").await.0, 403);
    assert!(!admin.state.telemetry.access_log(), "it was not said that it is meant");
    let meant = |request: &str| format!("{request} HTTP/1.1\r\noutrigger-admin: 1\r\nX: ");
    assert_eq!(admin.ask(&meant("PUT /accesslog"), "true\n").await.0, 200);
    assert!(admin.state.telemetry.access_log());
    assert_eq!(admin.ask(&meant("PUT /accesslog"), "loud").await.0, 400);
    assert_eq!(admin.ask(&meant("PUT /accesslog"), &"x".repeat(5000)).await.0, 413);
    assert_eq!(admin.ask(&meant("PUT /loglevel"), "debug").await.0, 404);
    assert_eq!(admin.ask("POST /shutdown", "").await.0, 403);
    assert!(!admin.state.shutdown.is_cancelled());
    assert_eq!(admin.ask(&meant("POST /shutdown"), "").await.0, 200);
    assert!(admin.state.shutdown.is_cancelled());
}

#[tokio::test]
async fn what_is_not_there_and_what_is_not_allowed() {
    let admin = start().await;
    assert_eq!(admin.ask("GET /", "").await.0, 404);
    let (status, answer) = admin.ask("GET /shutdown", "").await;
    assert!(status == 405 && answer.contains("allow: POST"), "{answer}");
    assert_eq!(admin.ask("DELETE /loglevel", "").await.0, 405);
    assert_eq!(admin.ask("POST /metrics", "").await.0, 405);
    let (status, _) = admin
        .ask(
            "POST /shutdown HTTP/1.1\r\noutrigger-admin: 1\r\nOrigin: http://evil\r\nX: ",
            "",
        )
        .await;
    assert_eq!(status, 403);
    assert!(!admin.state.shutdown.is_cancelled());
}

#[tokio::test]
async fn the_apps_probes() {
    let admin = start().await;
    let (status, answer) = admin.ask("GET /probe/up/readiness", "").await;
    // A kept connection that is closed would be asked once more.
    assert!(
        status == 200 && answer.contains("\r\nconnection: close\r\n"),
        "{answer}"
    );
    assert_eq!(admin.ask("GET /probe/up/liveness", "").await.0, 404);
    assert_eq!(admin.ask("POST /probe/up/readiness", "").await.0, 405);
    assert_eq!(admin.ask("HEAD /probe/up/readiness", "").await.0, 405);
    // No answer at all: kubelet takes any for a success of a handler.
    assert_eq!(admin.ask("GET /probe/app/preStop", "").await, (0, String::new()));
}

/// A connection of somebody else.
async fn stranger(admin: &Admin, says: &str) -> TcpStream {
    stranger_at(admin, 2, says).await
}

/// The same of one of several.
async fn stranger_at(admin: &Admin, last: u8, says: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    let mut stream = socket.connect(admin.address).await.unwrap();
    // It may have been closed for another.
    let _ = stream.write_all(says.as_bytes()).await;
    stream
}

/// kubelet's three questions. Without an answer it would kill the sidecar.
async fn kubelet_is_answered(admin: &Admin) {
    for (path, expected) in [("/livez", 200), ("/readyz", 503), ("/probe/up/readiness", 200)] {
        let request = format!("GET {path}");
        let asked = tokio::time::timeout(Duration::from_secs(20), admin.ask(&request, ""));
        let (status, answer) = asked.await.unwrap_or_else(|_| panic!("{path} is not answered"));
        assert_eq!(status, expected, "{path}: {answer}");
    }
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let admin = start().await;
    let mut silent = VecDeque::new();
    for says in ["", "GET /livez HTTP/1.1\r\nX: "] {
        for _ in 0..400 {
            silent.push_back(stranger(&admin, says).await);
        }
        kubelet_is_answered(&admin).await;
    }
    // And ten thousand, one after the other.
    for number in 0..10_000 {
        silent.push_back(stranger(&admin, "").await);
        silent.pop_front();
        if number % 500 == 0 {
            kubelet_is_answered(&admin).await;
        }
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_keep_nobody_out() {
    let admin = start_with(256 << 10).await;
    let mut deaf = Vec::new();
    for _ in 0..400 {
        deaf.push(stranger(&admin, "GET /config HTTP/1.1\r\nHost: x\r\n\r\n").await);
    }
    kubelet_is_answered(&admin).await;
    // One address does not have all of them.
    assert_eq!(admin.ask("GET /metrics", "").await.0, 200);
    let mut refused = stranger(&admin, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut answer = String::new();
    refused.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(" 503 ") && answer.contains("ask again"), "{answer}");
    drop(deaf);
}

#[tokio::test]
async fn who_waits_for_a_hung_app_keeps_nobody_out() {
    let admin = start().await;
    let mut waiting = Vec::new();
    for _ in 0..400 {
        waiting.push(stranger(&admin, "GET /probe/hung/readiness HTTP/1.1\r\nHost: x\r\n\r\n").await);
    }
    kubelet_is_answered(&admin).await;
    drop(waiting);
}

/// A few wait at a time for one address. Many addresses, or many probes, would be all connections of the port.
#[tokio::test]
async fn many_pods_that_wait_for_a_hung_app_keep_nobody_out() {
    let admin = start().await;
    let mut waiting = Vec::new();
    for last in 2..62 {
        for _ in 0..4 {
            waiting.push(stranger_at(&admin, last, "GET /probe/hung/readiness HTTP/1.1\r\nHost: x\r\n\r\n").await);
        }
    }
    kubelet_is_answered(&admin).await;
    drop(waiting);
}
