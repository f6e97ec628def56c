//! Requests and connections, and what becomes of each by some policies. In a refusal, the app has heard nothing: of bytes not even
//! a connection.

use http::{HeaderName, HeaderValue, Method, Request};
use outrigger_api::discovery::{Protocol, Workload};
use outrigger_proxy::config::Mtls;
use outrigger_tests::mesh::{Body, Http, request};
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::SOON;
use super::scene::Scene;
use crate::tcp::hostile::hello;

/// Who calls, and how.
#[derive(Clone, Copy, Debug)]
enum By {
    /// A workload, through its own sidecar.
    Web,
    Jobs,
    /// Somebody in plaintext.
    Stranger,
    /// "web", with a connection that it makes by hand to the app's sidecar, with this ALPN.
    Hand(&'static str),
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
enum Sent {
    Get(&'static str),
    Post(&'static str),
    /// With this header.
    With(&'static str, &'static str),
    /// In HTTP/2.
    Two(&'static str),
    Grpc(&'static str),
    /// As it is written, in HTTP/1. It is to end its connection.
    Raw(&'static str),
    /// Bytes that are no HTTP for an app's sidecar that looks at them.
    Bytes(&'static [u8]),
    /// The first bytes of the app's own TLS.
    Tls,
}

use By::{Hand, Jobs, Stranger, Web};
use Outcome::{Bad, Denied, In, Reset};
use Sent::{Bytes, Get, Grpc, Post, Raw, Tls, Two, With};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The app has it.
    In,
    /// 403, and to gRPC 7.
    Denied,
    /// The connection is reset.
    Reset,
    /// It is no request.
    Bad,
}

const WEB: &str = "{type: ServiceAccount, serviceAccount: {name: web}}";
const ANY: &str = "{type: Any}";

/// A policy without `mode`: its name, what stands before the rules, and rules.
fn policy(name: &str, before: &str, rules: &[String]) -> String {
    format!("{{name: {name}, spec: {{{before} rules: [{}]}}}}", rules.join(", "))
}

fn rule(sources: &str, more: &str) -> String {
    format!("{{sources: [{sources}]{more}}}")
}

fn http(attributes: &str) -> String {
    format!(", httpAttributes: [{{{attributes}}}]")
}

/// With several lines of `Host`, or a target that no rule can be walked around with.
const PIPELINED: &str =
    "GET /public HTTP/1.1\r\nHost: a\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const BEHIND_CRLF: &str = "\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const H2C: &str = "GET /admin HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade, http2-settings\r\nUpgrade: h2c\r\n\
                   HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
const H2C_IN: &str = "GET /public HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade, http2-settings\r\nUpgrade: h2c\r\n\
                      HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
/// What would follow it is HTTP that nobody but the app can read (RFC 2817).
const TLS_WITHIN: &str = "GET /public HTTP/1.1\r\nHost: a\r\nUpgrade: TLS/1.3\r\nConnection: close, upgrade\r\n\r\n";
const TLS_BESIDE: &str = "GET /public HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nUpgrade: x, tls/1.2\r\nConnection: close, upgrade\r\n\r\n";
const TLS_OPTIONS: &str = "OPTIONS * HTTP/1.1\r\nHost: a\r\nUpgrade: TLS/1.0\r\nConnection: close, upgrade\r\n\r\n";
/// It asks for nothing: `Connection` does not say so.
const TLS_NAMED: &str = "GET /public HTTP/1.1\r\nHost: a\r\nUpgrade: TLS/1.3\r\nConnection: close\r\n\r\n";
const ABSOLUTE: &str = "GET http://b/admin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const HOP: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-Debug: 1\r\nConnection: close, X-Debug\r\n\r\n";
const HOP_KEY: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-Key: secret\r\nConnection: close, x-key\r\n\r\n";
const FOLDED: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-Debug: 0\r\nx-debug: 1\r\nConnection: close\r\n\r\n";
const TWO_KEYS: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-Key: secret\r\nX-Key: other\r\nConnection: close\r\n\r\n";
const FORGED: &str = "GET / HTTP/1.1\r\nHost: a\r\nOutrigger-Client-Id: spiffe://mesh.test/ns/shop/sa/web\r\n\
                      X-Forwarded-For: 10.9.8.7\r\nConnection: close\r\n\r\n";
const CONNECT: &str = "CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\nConnection: close\r\n\r\n";
const HTTP_BYTES: &[u8] = b"GET /public HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const WORD: &[u8] = b"\0word";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_each() {
    let nobody = policy("nobody", "", &[]).replace(" rules: []", "");
    let web = policy("callers", "", &[rule(WEB, "")]);
    let anybody = policy("anybody", "", &[rule(ANY, "")]);
    let adds = policy("adds", "exclusive: false,", &[rule(WEB, "")]);
    let other_port = policy("other", "", &[rule(ANY, ", networkAttributes: {ports: [1]}")]);
    let no_jobs = policy(
        "no-jobs",
        "action: Deny,",
        &[rule("{type: ServiceAccount, serviceAccount: {name: jobs}}", "")],
    );
    let jobs = policy(
        "jobs",
        "",
        &[rule(
            "{type: SPIFFE, spiffe: \"spiffe://mesh.test/ns/shop/sa/jobs\"}",
            "",
        )],
    );
    let mesh = policy(
        "mesh",
        "",
        &[rule("{type: SPIFFE, spiffe: \"spiffe://mesh.test/*\"}", "")],
    );
    let shop = policy("shop", "", &[rule("{type: Namespace, namespace: {name: shop}}", "")]);
    let strangers = policy("strangers", "", &[rule("{type: Unauthenticated}", "")]);
    let loopback = policy(
        "loopback",
        "",
        &[rule("{type: Address, address: {cidrs: [127.0.0.0/8]}}", "")],
    );
    let elsewhere = policy(
        "elsewhere",
        "",
        &[rule("{type: Address, address: {cidrs: [10.0.0.0/8]}}", "")],
    );
    let public = policy(
        "public",
        "",
        &[rule(
            WEB,
            &http("methods: [GET], paths: [{type: PathPrefix, value: /public}]"),
        )],
    );
    let no_admin = policy(
        "no-admin",
        "action: Deny,",
        &[rule(ANY, &http("paths: [{type: PathPrefix, value: /admin}]"))],
    );
    let no_debug = policy(
        "no-debug",
        "action: Deny,",
        &[rule(ANY, &http("headers: [{name: x-debug, value: \"1\"}]"))],
    );
    let key = policy(
        "key",
        "",
        &[rule(ANY, &http("headers: [{name: x-key, value: secret}]"))],
    );
    let forwarded = policy(
        "forwarded",
        "",
        &[rule("{type: Address, address: {cidrs: [10.9.8.7/32]}}", "")],
    );
    let host = policy("host", "", &[rule(ANY, &http("hosts: [\"a\"]"))]);
    let get_order = policy(
        "orders",
        "",
        &[rule(WEB, &http("grpc: {service: shop.Orders, method: Get}"))],
    );

    // The policies; who calls; what is sent; what becomes of it.
    let none: Vec<&String> = Vec::new();
    let cases: Vec<(Vec<&String>, By, Sent, Outcome)> = vec![
        // No policy, or none for the port: nothing changes.
        (none.clone(), Stranger, Get("/"), In),
        (none.clone(), Jobs, Grpc("/shop.Orders/Get"), In),
        (none, Stranger, Bytes(WORD), In),
        (vec![&other_port], Jobs, Get("/"), Denied),
        // A default deny, for everything that there is.
        (vec![&nobody], Web, Get("/"), Denied),
        (vec![&nobody], Web, Two("/"), Denied),
        (vec![&nobody], Web, Grpc("/shop.Orders/Get"), Denied),
        (vec![&nobody], Web, Bytes(WORD), Reset),
        (vec![&nobody], Web, Tls, Reset),
        (vec![&nobody], Stranger, Get("/"), Denied),
        (vec![&nobody], Stranger, Two("/"), Denied),
        (vec![&nobody], Stranger, Bytes(WORD), Reset),
        (vec![&nobody], Stranger, Tls, Reset),
        // By whom the peer has proven to be.
        (vec![&web], Web, Get("/"), In),
        (vec![&web], Web, Two("/"), In),
        (vec![&web], Web, Grpc("/shop.Orders/Get"), In),
        (vec![&web], Web, Bytes(WORD), In),
        (vec![&web], Web, Tls, In),
        (vec![&web], Jobs, Get("/"), Denied),
        (vec![&web], Jobs, Grpc("/shop.Orders/Get"), Denied),
        (vec![&web], Jobs, Bytes(WORD), Reset),
        (vec![&web], Stranger, Get("/"), Denied),
        (vec![&web], Stranger, Bytes(WORD), Reset),
        (vec![&mesh], Jobs, Get("/"), In),
        (vec![&mesh], Stranger, Get("/"), Denied),
        (vec![&shop], Web, Bytes(WORD), In),
        (vec![&shop], Stranger, Bytes(WORD), Reset),
        (vec![&strangers], Stranger, Get("/"), In),
        (vec![&strangers], Web, Get("/"), Denied),
        (vec![&loopback], Stranger, Bytes(WORD), In),
        (vec![&elsewhere], Stranger, Get("/"), Denied),
        (vec![&anybody], Stranger, Tls, In),
        // Joined.
        (vec![&web, &jobs], Jobs, Get("/"), In),
        (vec![&web, &jobs], Web, Get("/"), In),
        (vec![&adds], Jobs, Get("/"), In),
        (vec![&adds, &nobody], Web, Get("/"), In),
        (vec![&adds, &nobody], Jobs, Get("/"), Denied),
        (vec![&anybody, &no_jobs], Jobs, Get("/"), Denied),
        (vec![&anybody, &no_jobs], Jobs, Bytes(WORD), Reset),
        (vec![&anybody, &no_jobs], Web, Get("/"), In),
        // By what is asked for: no way round in another protocol.
        (vec![&public], Web, Get("/public/a"), In),
        (vec![&public], Web, Two("/public/a"), In),
        (vec![&public], Web, Post("/public/a"), Denied),
        (vec![&public], Web, Get("/private"), Denied),
        (vec![&public], Web, Get("/publicity"), Denied),
        (vec![&public], Jobs, Get("/public"), Denied),
        (vec![&public], Web, Bytes(WORD), Reset),
        (vec![&public], Web, Tls, Reset),
        (vec![&public], Hand("outrigger/tcp"), Bytes(HTTP_BYTES), Reset),
        (vec![&public], Hand("outrigger/h1"), Bytes(HTTP_BYTES), In),
        (vec![&public], Hand("outrigger/h1"), Raw(BEHIND_CRLF), Denied),
        (vec![&public], Web, Raw(H2C), Denied),
        (vec![&public], Web, Raw(H2C_IN), In),
        (vec![&public], Web, Raw(TLS_WITHIN), Denied),
        (vec![&public], Web, Raw(TLS_BESIDE), Denied),
        (vec![&public], Hand("outrigger/h1"), Raw(TLS_WITHIN), Denied),
        (vec![&public], Web, Raw(TLS_OPTIONS), Denied),
        (vec![&public], Web, Raw(TLS_NAMED), In),
        (vec![&public], Web, Raw(ABSOLUTE), Denied),
        (vec![&public], Web, Raw(CONNECT), Denied),
        // Paths that servers read in several ways meet no rule that allows, and each that denies.
        (vec![&public], Web, Get("/public/..%2fadmin"), Denied),
        (vec![&public], Web, Get("/public/%2e%2e/admin"), Denied),
        (vec![&public], Web, Get("/public//admin"), Denied),
        (vec![&public], Web, Get("/public;/../admin"), Denied),
        (vec![&public], Web, Get("/%70ublic"), In),
        (vec![&no_admin], Web, Get("/admin/users"), Denied),
        (vec![&no_admin], Web, Get("/%61dmin/users"), Denied),
        (vec![&no_admin], Web, Get("//admin"), Denied),
        (vec![&no_admin], Web, Get("/x/..%2fadmin"), Denied),
        (vec![&no_admin], Web, Get("/x/%2e%2e/admin"), Denied),
        (vec![&no_admin], Web, Get("/ADMIN"), Denied),
        (vec![&no_admin], Web, Get("/administrator"), In),
        (vec![&no_admin], Web, Raw(TLS_WITHIN), Denied),
        (vec![&no_admin], Web, Two("/admin"), Denied),
        (vec![&no_admin], Stranger, Raw(BEHIND_CRLF), Reset),
        (vec![&no_admin], Web, Raw(ABSOLUTE), Denied),
        (vec![&no_admin], Stranger, Bytes(WORD), Reset),
        (vec![&no_admin], Hand("outrigger/tcp"), Bytes(HTTP_BYTES), Reset),
        (vec![&no_admin], Hand("outrigger/h1"), Raw(PIPELINED), Denied),
        // By headers, and whom nobody can forge.
        (vec![&no_debug], Web, With("x-debug", "1"), Denied),
        (vec![&no_debug], Web, With("x-debug", "0"), In),
        (vec![&no_debug], Web, Raw(FOLDED), Denied),
        (vec![&no_debug], Stranger, Raw(HOP), Denied),
        (vec![&key], Stranger, With("x-key", "secret"), In),
        (vec![&key], Stranger, Raw(HOP_KEY), Denied),
        (vec![&key], Stranger, Raw(TWO_KEYS), Denied),
        (vec![&forwarded], Stranger, Raw(FORGED), Denied),
        (vec![&web], Stranger, Raw(FORGED), Denied),
        (vec![&host], Stranger, Raw(FOLDED), In),
        (vec![&host], Stranger, Raw(ABSOLUTE), Denied),
        (
            vec![&host],
            Stranger,
            Raw("GET / HTTP/1.1\r\nHost: b\r\nHost: a\r\nConnection: close\r\n\r\n"),
            Bad,
        ),
        // gRPC.
        (vec![&get_order], Web, Grpc("/shop.Orders/Get"), In),
        (vec![&get_order], Web, Grpc("/shop.Orders/Place"), Denied),
        (vec![&get_order], Web, Two("/shop.Orders/Get"), Denied),
        (vec![&get_order], Jobs, Grpc("/shop.Orders/Get"), Denied),
        // What a sidecar is asked in strict mode comes before: see below.
    ];
    assert!(cases.len() >= 30, "{}", cases.len());
    let scene = Scene::new().await;
    run(&scene, &cases).await;
}

/// A port that is declared to carry bytes: its sidecar does not look into them, whatever they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_port_that_is_declared() {
    let web = policy("callers", "", &[rule(WEB, "")]);
    let public = policy("public", "", &[rule(WEB, &http("methods: [GET]"))]);
    let public_for_all = policy("public", "", &[rule(ANY, &http("methods: [GET]"))]);
    let scene = Scene::new().await;
    let port = u32::from(scene.app.address.port());
    scene.script.declares(Workload {
        opaque_ports: vec![port],
        ..Workload::default()
    });
    let cases = vec![
        (vec![&web], Stranger, Bytes(HTTP_BYTES), Reset),
        (vec![&web], Hand("outrigger/tcp"), Bytes(WORD), In),
        (vec![&public_for_all], Stranger, Bytes(HTTP_BYTES), Reset),
        (vec![&public], Hand("outrigger/tcp"), Bytes(HTTP_BYTES), Reset),
        // A peer that says HTTP is taken at its word, and asked about each request.
        (vec![&public], Hand("outrigger/h1"), Bytes(HTTP_BYTES), In),
        (
            vec![&public],
            Hand("outrigger/h1"),
            Raw("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
            Denied,
        ),
    ];
    run(&scene, &cases).await;
    // And one that is declared to be HTTP.
    scene.script.declares(Workload {
        protocols: [(port, Protocol::Http1.into())].into(),
        ..Workload::default()
    });
    let cases = vec![
        (vec![&public_for_all], Stranger, Raw(BEHIND_CRLF), In),
        (vec![&public_for_all], Stranger, Bytes(HTTP_BYTES), In),
        (vec![&web], Stranger, Raw(BEHIND_CRLF), Denied),
        (vec![&web], Stranger, Tls, Reset),
    ];
    run(&scene, &cases).await;
}

/// Mutual TLS that is required comes first, and a policy that lets everybody in is no way around it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_strict_mutual_tls() {
    let anybody = policy("anybody", "", &[rule(ANY, "")]);
    let strangers = policy("strangers", "", &[rule("{type: Unauthenticated}", "")]);
    let scene = Scene::with(|config| config.mtls = Mtls::Strict).await;
    let cases = vec![
        (vec![&anybody], Web, Get("/"), In),
        (vec![&anybody], Stranger, Bytes(WORD), Reset),
        (vec![&strangers], Stranger, Bytes(WORD), Reset),
        (vec![&strangers], Web, Get("/"), Denied),
        (vec![&strangers], Web, Bytes(WORD), Reset),
    ];
    run(&scene, &cases).await;
    for http in [Http::one(), Http::two()] {
        let seen = http.get(scene.orders.inbound[0], "/").await;
        assert_eq!((seen.status, seen.error()), (403, Some("plaintext-refused")));
    }
}

async fn run(scene: &Scene, cases: &[(Vec<&String>, By, Sent, Outcome)]) {
    let mut in_force: Option<&Vec<&String>> = None;
    for (policies, by, sent, expected) in cases {
        if in_force != Some(policies) {
            let list: Vec<&str> = policies.iter().map(|policy| policy.as_str()).collect();
            scene.enforces(&format!("[{}]", list.join(", "))).await;
            in_force = Some(policies);
        }
        let before = scene.app.seen();
        let case = format!("{by:?} {sent:?} by {policies:?}");
        let outcome = tokio::time::timeout(SOON, call(scene, *by, *sent)).await;
        assert_eq!(outcome.as_ref(), Ok(expected), "{case}");
        let after = scene.app.seen();
        match expected {
            In => assert!(
                after.0 > before.0 || after.1 > before.1,
                "{case}: the app has heard nothing"
            ),
            Reset => assert_eq!(after, before, "{case}: the app has heard of it"),
            Denied if matches!(sent, Raw(PIPELINED)) => assert_eq!(after.1, before.1 + 1, "{case}"),
            Denied | Bad => assert_eq!(after.1, before.1, "{case}: the app has heard of it"),
        }
    }
}

async fn call(scene: &Scene, by: By, sent: Sent) -> Outcome {
    let (http, database) = match by {
        Web => (scene.web.outbound[0], scene.web.outbound[1]),
        Jobs => (scene.jobs.outbound[0], scene.jobs.outbound[1]),
        Stranger => (scene.orders.inbound[0], scene.orders.inbound[0]),
        Hand(alpn) => {
            let stream = Some(scene.by_hand("web", alpn).await.unwrap());
            return match sent {
                Raw(text) => raw(stream, text.as_bytes()).await,
                Bytes(bytes) if alpn == "outrigger/tcp" => echoed(stream, bytes).await,
                Bytes(bytes) => raw(stream, bytes).await,
                other => unreachable!("{other:?} is not sent by hand"),
            };
        }
    };
    match sent {
        Get(path) => answered(Http::one(), asks(Method::GET, http, path)).await,
        Post(path) => answered(Http::one(), asks(Method::POST, http, path)).await,
        Two(path) => answered(Http::two(), asks(Method::GET, http, path)).await,
        With(name, value) => {
            let mut request = asks(Method::GET, http, "/");
            let value = HeaderValue::from_static(value);
            request.headers_mut().insert(HeaderName::from_static(name), value);
            answered(Http::one(), request).await
        }
        Grpc(path) => {
            let mut request = asks(Method::POST, http, path);
            let kind = HeaderValue::from_static("application/grpc");
            request.headers_mut().insert("content-type", kind);
            answered(Http::two(), request).await
        }
        Raw(text) => raw(connected(http).await, text.as_bytes()).await,
        Bytes(bytes) if bytes == HTTP_BYTES => raw(connected(http).await, bytes).await,
        Bytes(bytes) => echoed(connected(database).await, bytes).await,
        Tls => echoed(connected(database).await, &hello("h2")).await,
    }
}

fn asks(method: Method, to: SocketAddr, path: &str) -> Request<Body> {
    request(method, to, path, "")
}

async fn answered(http: Http, request: Request<Body>) -> Outcome {
    let grpc = request.headers().contains_key("content-type");
    let seen = http.send(request).await.unwrap();
    match (seen.status, seen.error()) {
        (200, None) => In,
        (403, Some("access-denied")) if !grpc => {
            let said = String::from_utf8_lossy(&seen.body).into_owned();
            assert!(!said.contains("shop/"), "the caller is told of a policy: {said}");
            Denied
        }
        (200, Some("access-denied")) if grpc => {
            let trailers = seen.trailers.as_ref().unwrap_or(&seen.headers);
            let status = trailers.get("grpc-status").or(seen.headers.get("grpc-status"));
            assert_eq!(status.unwrap(), "7");
            Denied
        }
        (400, Some("bad-request")) => Bad,
        other => panic!("{other:?}"),
    }
}

/// A connection of which the sidecar may have made an end before it is looked at: `None`.
async fn connected(to: SocketAddr) -> Option<TcpStream> {
    match TcpStream::connect(to).await {
        Ok(stream) => Some(stream),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{error}"),
    }
}

/// What the last answer on a connection is.
async fn raw(stream: Option<impl AsyncRead + AsyncWrite + Unpin>, bytes: &[u8]) -> Outcome {
    let Some(mut stream) = stream else { return Reset };
    let mut answer = Vec::new();
    let heard = async {
        stream.write_all(bytes).await?;
        stream.flush().await?;
        stream.read_to_end(&mut answer).await
    };
    let heard = heard.await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Some(last) = answer.rfind("HTTP/1.1 ") else {
        assert!(heard.is_err(), "neither an answer nor a reset: {answer:?}");
        return Reset;
    };
    let last = &answer[last..];
    match &last[..12] {
        "HTTP/1.1 200" => In,
        "HTTP/1.1 403" => {
            assert!(last.contains("outrigger-error: access-denied"), "{last}");
            Denied
        }
        "HTTP/1.1 400" => Bad,
        _ => panic!("{last}"),
    }
}

/// An echo of bytes, or a reset.
async fn echoed(stream: Option<impl AsyncRead + AsyncWrite + Unpin>, bytes: &[u8]) -> Outcome {
    let Some(mut stream) = stream else { return Reset };
    let mut heard = vec![0; bytes.len()];
    let echo = async {
        stream.write_all(bytes).await?;
        stream.flush().await?;
        stream.read_exact(&mut heard).await
    };
    match echo.await {
        Ok(_) => {
            assert_eq!(heard, bytes);
            In
        }
        Err(error) => {
            let kinds = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
            // Inside of TLS an end without a goodbye is what a reset is.
            let kinds = [&kinds[..], &[std::io::ErrorKind::UnexpectedEof]].concat();
            assert!(kinds.contains(&error.kind()), "{error}");
            Reset
        }
    }
}
