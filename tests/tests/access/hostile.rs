//! Who is refused costs no more than before there were policies, however often and in whatever form it asks.

use std::collections::VecDeque;
use std::net::SocketAddr;

use outrigger_tests::mesh::{Authority, Http, Sidecar, id};
use outrigger_tests::program::Program;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::scene::{NAMES, Witness};
use super::{DAY, SOON, soon};
use crate::tcp::hostile::hello;

/// Ends that an attacker keeps open.
const KEPT: usize = 300;
/// KiB that the sidecar may grow by, over all attacks, whatever their number. With ten thousand of each kind, a leak of 100 bytes for each
/// would be more.
const GROWTH: u64 = 8 * 1024;

/// Policies that look at everything that there is to look at.
const POLICIES: &str = "accessPolicies: [\
    {name: web, spec: {rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}], httpAttributes: [\
        {methods: [GET], paths: [{type: PathPrefix, value: /public}, {type: RegularExpression, value: \"/v[0-9]+/.*\"}], headers: [{name: x-key, value: secret}]}, \
        {methods: [GET], paths: [{type: Exact, value: /}]}]}]}}, \
    {name: no-admin, spec: {action: Deny, rules: [{sources: [{type: Any}], httpAttributes: [{paths: [{type: PathPrefix, value: /admin}]}]}]}}, \
    {name: tomorrow, spec: {mode: Audit}}]";

/// The addresses of loopback are as many clients.
async fn connect(from: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
    soon(socket.connect(to)).await.unwrap()
}

/// What is refused, whole or in pieces.
fn payloads() -> Vec<(&'static str, Vec<u8>)> {
    let get = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{more}\r\n").into_bytes();
    let long = "/..%2f".repeat(2_000);
    let named: String = (0..90).map(|n| format!("x-{n}, ")).collect();
    let fields: String = (0..90).map(|n| format!("x-{n}: {n}\r\n")).collect();
    vec![
        ("bytes", b"\0hello".to_vec()),
        ("the app's own TLS", hello("h2")),
        ("a path with thousands of readings", get(&long, "")),
        ("a path of slashes", get(&"/".repeat(12_000), "")),
        (
            "a path of encoded bytes",
            get(&format!("/{}", "%61%2e%2f%00".repeat(1_000)), ""),
        ),
        (
            "fields for this hop alone",
            get("/", &format!("{fields}Connection: {named}close\r\n")),
        ),
        (
            "an upgrade",
            get("/chat", "Upgrade: websocket\r\nConnection: upgrade\r\n"),
        ),
        ("many requests at once", get("/admin", "").repeat(50)),
        ("silence", Vec::new()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_refusals_of_each_kind_leave_nothing_behind() {
    refusals_leave_nothing_behind(1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes"]
async fn ten_thousand_refusals_of_each_kind_leave_nothing_behind() {
    refusals_leave_nothing_behind(10_000).await;
}

async fn refusals_leave_nothing_behind(attacks: usize) {
    let authority = Authority::start(&NAMES, DAY).await;
    let app = Witness::start().await;
    let orders = Sidecar::new("orders").protects(app.address).with(POLICIES);
    let orders = Program::start("orders", orders, &authority, None).await;
    let web = Sidecar::new("web").calls("orders", "http1", &[(orders.inbound[0], Some(id("orders")))], "{}");
    let web = web.start(&authority).await;
    let works = async || {
        let patient = Http::one().within(6 * SOON);
        assert_eq!(patient.get(web.outbound[0], "/").await.status, 200);
    };
    works().await;
    let attack = async |payload: &[u8], times: usize| {
        let mut kept = VecDeque::new();
        for _ in 0..times {
            let mut stream = connect(66, orders.inbound[0]).await;
            // One that is refused early may be reset by now.
            let _ = soon(stream.write_all(payload)).await;
            kept.push_back(stream);
            if kept.len() > KEPT {
                let mut oldest = kept.pop_front().unwrap();
                let _ = soon(oldest.read(&mut [0; 1024])).await;
            }
        }
    };
    // What it takes once: buffers, tables, series.
    for (_, payload) in payloads() {
        attack(&payload, KEPT).await;
    }
    works().await;
    let before = orders.memory();
    let seen = app.seen();
    for (name, payload) in payloads() {
        attack(&payload, attacks).await;
        works().await;
        let grown = orders.memory().saturating_sub(before);
        println!("{name}: {grown} KiB more");
        assert!(grown < GROWTH, "{name}: {grown} KiB more");
    }
    super::until("all are gone", async || orders.connections("inbound").await <= 2).await;
    assert_eq!(
        app.seen().1 - seen.1,
        payloads().len(),
        "the app has heard of what was refused"
    );
}
