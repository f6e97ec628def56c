//! gRPC's interop test cases (doc/interop-test-descriptions.md of the gRPC project), its Go client and server on both ends.
//!
//! Left out, because they need TLS or credentials of the app itself: `compute_engine_creds`, `service_account_creds`,
//! `jwt_token_creds`, `per_rpc_creds`, `oauth2_auth_token`, `google_default_credentials`,
//! `compute_engine_channel_credentials`; and `pick_first_unary`, because the Go server does not say who it is. The Go client
//! has none of the compression cases.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::task::JoinSet;

use super::{Way, authority, program};

const CASES: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "orca_per_rpc",
    "orca_oob",
    "rpc_soak",
    "channel_soak",
];

/// Of the two soak cases: many calls of a few hundred KB each way, on one connection and on one for each call.
const SOAK: [&str; 8] = [
    "--soak_iterations",
    "100",
    "--soak_num_threads",
    "10",
    "--soak_overall_timeout_seconds",
    "100",
    "--soak_per_iteration_max_acceptable_latency_ms",
    "60000",
];
/// The load reports of the two ORCA cases are seen by a balancer of the client's own. (With one server it is pick_first.)
const BALANCER: &str = r#"{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}"#;
/// A case that takes longer hangs.
const HANGS: Duration = Duration::from_secs(120);

/// The server, and where it listens.
async fn server() -> (Child, std::net::SocketAddr) {
    let mut server = program("grpc-interop-server")
        .args(["--port", "0"])
        .env("GRPC_GO_LOG_SEVERITY_LEVEL", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let port = loop {
        let line = lines.next_line().await.unwrap().expect("the server ended");
        if let Some((_, port)) = line.split_once("interop server listening on [::]:") {
            break port.trim().parse().unwrap();
        }
    };
    // It must not wait for a reader.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (server, ([127, 0, 0, 1], port).into())
}

/// `Err`: what the client says about it.
async fn case(name: &str, port: u16) -> Result<(), String> {
    let client = program("grpc-interop-client")
        .args(["--server_host", "127.0.0.1", "--server_port"])
        .arg(port.to_string())
        .args(["--test_case", name])
        .args(SOAK)
        .args(["--service_config_json", BALANCER])
        .env("GRPC_GO_LOG_SEVERITY_LEVEL", "info")
        .output();
    let output = tokio::time::timeout(HANGS, client).await;
    let output = output.map_err(|_| format!("{name} does not end"))?.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() && said.lines().any(|line| line.ends_with(" done")) {
        Ok(())
    } else {
        Err(format!("{name}: {}\n{said}", output.status))
    }
}

async fn one_after_the_other(way: Way) {
    let mut failed = Vec::new();
    for name in CASES {
        failed.extend(case(name, way.to.port()).await.err());
    }
    println!("{}: {} cases, {} failed", way.name, CASES.len(), failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
#[ignore = "needs h2spec and the gRPC interop programs"]
async fn through_two_sidecars() {
    let (authority, (_server, app)) = (authority().await, server().await);
    one_after_the_other(Way::through_two(&authority, app).await).await;
}

#[tokio::test]
#[ignore = "needs h2spec and the gRPC interop programs"]
async fn through_an_outbound_sidecar() {
    let (authority, (_server, app)) = (authority().await, server().await);
    one_after_the_other(Way::out(&authority, app).await).await;
}

#[tokio::test]
#[ignore = "needs h2spec and the gRPC interop programs"]
async fn through_an_inbound_sidecar() {
    let (authority, (_server, app)) = (authority().await, server().await);
    one_after_the_other(Way::inside(&authority, app).await).await;
}

/// All cases share the connections between the sidecars.
#[tokio::test]
#[ignore = "needs h2spec and the gRPC interop programs"]
async fn through_two_sidecars_at_the_same_time() {
    let (authority, (_server, app)) = (authority().await, server().await);
    let way = Way::through_two(&authority, app).await;
    let port = way.to.port();
    let mut cases = JoinSet::new();
    for name in CASES {
        cases.spawn(case(name, port));
    }
    let failed: Vec<String> = cases.join_all().await.into_iter().filter_map(Result::err).collect();
    println!("{}: {} cases at once, {} failed", way.name, CASES.len(), failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
