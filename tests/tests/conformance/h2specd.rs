//! h2specd, a server that answers what it should not, against a sidecar that calls it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use http::Method;
use outrigger_tests::mesh::{Http, Sidecar, request};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;

use super::{authority, program};

/// Each has a port of its own, from the first on.
const CASES: u16 = 57;
const FIRST_PORT: u16 = 20_000;

/// Cases that fail, and why that is as it should be.
const KNOWN: [(&str, &str); 3] = [
    ("8: closed: Sends a DATA frame", CLOSED),
    ("9: closed: Sends a HEADERS frame", CLOSED),
    (
        "2: Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream",
        "the request has ended, so there is nothing more to send, and h2 does not count that window any more",
    ),
];
const CLOSED: &str = "h2 ends the stream, not the connection; RFC 9113 section 5.1 made the connection error a MAY";

/// A loopback address of this process alone: h2specd takes ports in a row, which nobody can reserve.
fn own_address() -> Ipv4Addr {
    let [.., high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high, middle, low)
}

#[tokio::test]
#[ignore = "needs h2spec and the gRPC interop programs"]
async fn calls_to_a_server() {
    let (authority, address) = (authority().await, own_address());
    let sidecar = (0..CASES).fold(Sidecar::new("web"), |sidecar, case| {
        let server = SocketAddr::from((address, FIRST_PORT + case));
        // A case ends with its first connection.
        sidecar.calls(
            &format!("case-{case}"),
            "http2",
            &[(server, None)],
            "{retry: {attempts: 0}}",
        )
    });
    let sidecar = sidecar.start(&authority).await;

    // h2specd runs a command with the URL that is to be called. This one tells the URL to this test, and waits.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let command = directory.path().join("call");
    let port = listener.local_addr().unwrap().port();
    let script = format!("#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/{port}\necho \"$1\" >&3\nread -r _ <&3\n");
    std::fs::write(&command, script).unwrap();
    std::fs::set_permissions(&command, std::fs::Permissions::from_mode(0o755)).unwrap();
    let outbound = sidecar.outbound.clone();
    tokio::spawn(async move {
        let http = Http::two();
        while let Ok((stream, _)) = listener.accept().await {
            let (http, outbound) = (http.clone(), outbound.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut url = String::new();
                stream.read_line(&mut url).await.unwrap();
                let url: http::Uri = url.trim().parse().unwrap();
                let case = usize::from(url.port_u16().unwrap() - FIRST_PORT);
                // Whether there is an answer is not the question.
                _ = http.send(request(Method::GET, outbound[case], "/", "")).await;
            });
        }
    });

    let output = program("h2specd")
        .args(["--strict", "--host", &address.to_string()])
        .args(["--from-port", &FIRST_PORT.to_string()])
        .arg("--exec")
        .arg(&command)
        .output();
    let output = output.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    // What failed is said a second time at the end.
    let cases = said.split("Failures:").next().unwrap().lines().map(str::trim);
    let failed: Vec<&str> = cases.filter_map(|line| line.strip_prefix("× ")).collect();
    let known: Vec<&str> = KNOWN.iter().map(|(case, _)| *case).collect();
    let total = said.lines().find(|line| line.contains(" tests, ")).unwrap_or_default();
    println!("{total}; as they should: {known:#?}");
    let passed = usize::from(CASES) - KNOWN.len();
    let expected = format!("{CASES} tests, {passed} passed, 0 skipped, {} failed", KNOWN.len());
    assert_eq!((total, failed), (expected.as_str(), known), "{said}");
}
