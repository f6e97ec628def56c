#![allow(clippy::unwrap_used)]
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{AdminState, serve};
use crate::dns::Resolver;
use crate::telemetry::{Settings, Telemetry};

struct Admin {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    state: AdminState,
}

async fn start() -> Admin {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = Arc::clone(&ready);
    let resolver = Resolver::start(Some(&[])).unwrap();
    let state = AdminState {
        telemetry: Telemetry::start(&Settings::default(), &resolver).unwrap(),
        ready: Arc::new(move || match is_ready.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("no SVID yet".into()),
        }),
        config: Arc::new(|| serde_json::json!({"workload": "orders"})),
        log: None,
        shutdown: CancellationToken::new(),
    };
    tokio::spawn(serve(listener, state.clone()));
    Admin { address, ready, state }
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
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
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
    assert_eq!(admin.ask("PUT /accesslog", "true\n").await.0, 200);
    assert!(admin.state.telemetry.access_log());
    assert_eq!(admin.ask("PUT /accesslog", "loud").await.0, 400);
    assert_eq!(admin.ask("PUT /accesslog", &"x".repeat(5000)).await.0, 413);
    assert_eq!(admin.ask("PUT /loglevel", "debug").await.0, 404);
    assert_eq!(admin.ask("POST /shutdown", "").await.0, 200);
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
        .ask("POST /shutdown HTTP/1.1\r\nOrigin: http://evil\r\nX: ", "")
        .await;
    assert_eq!(status, 403);
    assert!(!admin.state.shutdown.is_cancelled());
}
