//! What a request costs in allocations on its way through two sidecars: a number that is written down, so that a change that
//! adds to it is seen.
//!
//! The only test of its program: everything that the process allocates is counted.

#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use outrigger_tests::mesh::{Authority, Sidecar, id};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const WARM_UP: usize = 200;
const REQUESTS: usize = 1000;
/// For one request in HTTP/1.1 with a few headers and a response of 1 KiB, in both sidecars together.
const MOST: usize = 64;

/// Answers every request on a connection, and allocates nothing for it.
fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let response = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\nContent-Type: text/plain\r\n\r\n",
            [b'x'; 1024].as_slice(),
        ]
        .concat();
        for stream in listener.incoming() {
            let (mut stream, response) = (stream.unwrap(), response.clone());
            thread::spawn(move || {
                let mut head = [0; 4096];
                while stream.read(&mut head).is_ok_and(|read| read > 0) {
                    stream.write_all(&response).unwrap();
                }
            });
        }
    });
    address
}

fn send(stream: &mut TcpStream, times: usize, more: &str) {
    let asks = format!("GET /orders/17 HTTP/1.1\r\nHost: orders\r\nUser-Agent: test\r\nAccept: */*\r\n{more}\r\n");
    let mut response = [0; 8192];
    for _ in 0..times {
        stream.write_all(asks.as_bytes()).unwrap();
        let mut read = 0;
        // The head is shorter than this, and the body is 1 KiB.
        while read < 1024 || !response[..read].ends_with(&[b'x'; 1024]) {
            let some = stream.read(&mut response[read..]).unwrap();
            assert!(some > 0, "the connection was closed");
            read += some;
        }
        assert!(response.starts_with(b"HTTP/1.1 200 "));
    }
}

/// Whether the caller is let in is decided for each request, by who it is and by what it asks for.
const POLICIES: &str = "accessPolicies: [\
    {name: readers, spec: {rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}], \
        httpAttributes: [{methods: [GET], paths: [{type: PathPrefix, value: /orders}]}]}]}}, \
    {name: no-admin, spec: {action: Deny, rules: [{sources: [{type: Any}], \
        httpAttributes: [{paths: [{type: PathPrefix, value: /admin}]}]}]}}]";

/// Who has a token, of an issuer whose key RFC 8037 has (appendix A.1).
const TOKENS: &str = r#"accessPolicies: [{name: tokens, spec: {
    jwt: {providers: [{name: login, issuer: me, audiences: [orders], algorithms: [EdDSA], claimToHeaders: [{claim: iss, header: x-issuer}],
        jwks: {inline: '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'}}]},
    rules: [{sources: [{type: JWT, jwt: {provider: login}}]}]}}]"#;
/// {"iss":"me","aud":"orders","exp":253402300799}
const TOKEN: &str = "Authorization: Bearer eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJtZSIsImF1ZCI6Im9yZGVycyIsImV4cCI6MjUzNDAyMzAwNzk5fQ.\
    h5_qt-sONr2pLzKP7dd4010xRdVkzJio4quX23rZlzsGewvW8inRNMzNjAX3Wbuk3y_RpW1xhng3r_R_JUq-CA\r\n";
/// For one that is verified already: a list of tokens, and what the app hears.
const OF_A_TOKEN: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_allocates_no_more_than_it_did() {
    let without = of_each("accessPolicies: []", "").await;
    assert!(
        without <= MOST,
        "{without} allocations for a request are more than {MOST}"
    );
    let with = of_each(POLICIES, "").await;
    assert!(
        with <= without,
        "{with} allocations for a request with policies, and {without} without"
    );
    let header = of_each("accessPolicies: []", TOKEN).await;
    let token = of_each(TOKENS, TOKEN).await;
    assert!(
        token <= header + OF_A_TOKEN,
        "{token} allocations for a request with a token, and {header} with one that nobody looks at"
    );
}

/// How often a request allocates.
async fn of_each(policies: &str, more: &str) -> usize {
    let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
    let inbound = Sidecar::new("orders")
        .protects(app())
        .with(policies)
        .start(&authority)
        .await;
    let endpoints = [(inbound.inbound[0], Some(id("orders")))];
    let outbound = Sidecar::new("web").calls("orders", "http1", &endpoints, "{}");
    let outbound = outbound.start(&authority).await;
    let mut stream = TcpStream::connect(outbound.outbound[0]).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    tokio::task::block_in_place(|| {
        send(&mut stream, WARM_UP, more);
        let region = Region::new(ALLOCATOR);
        send(&mut stream, REQUESTS, more);
        let change = region.change();
        let each = (change.allocations + change.reallocations) / REQUESTS;
        println!(
            "{each} allocations for a request, {} bytes",
            change.bytes_allocated / REQUESTS
        );
        each
    })
}
