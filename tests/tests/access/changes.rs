//! Policies that change while there are connections, and a controller that is away.

use http::{Method, Request};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_proxy::config::ForwardedFor;
use outrigger_tests::mesh::{Http, metric, text};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::scene::{Scene, policies_of};
use super::script::Version;
use super::{soon, until};

const NOBODY: &str = "[{name: nobody, spec: {}}]";
const WEB: &str = "[{name: web, spec: {rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}]}}]";
const CHAT: &str = "[{name: chat, spec: {rules: [{sources: [{type: Any}], httpAttributes: [{paths: [{type: PathPrefix, value: /chat}]}]}]}}]";
const QUIET: &str = "[{name: quiet, spec: {action: Deny, rules: [{sources: [{type: Any}], httpAttributes: [{headers: [{name: x-loud, value: \"1\"}]}]}]}}]";

/// A WebSocket, as far as sidecars are concerned.
async fn chat(scene: &Scene, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(scene.web.outbound[0]).await.unwrap();
    let asks = format!("GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n{more}Connection: Upgrade\r\n\r\n");
    stream.write_all(asks.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// A tunnel in HTTP/2 (RFC 9113 section 8.5).
async fn connect(scene: &Scene) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
    let stream = TcpStream::connect(scene.web.outbound[0]).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("chat:80")
        .body(text(""))
        .unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

async fn echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    stream.write_all(b"\0word").await?;
    stream.flush().await?;
    stream.read_exact(&mut [0; 5]).await.map(drop)
}

async fn ends(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let end = soon(stream.read_to_end(&mut Vec::new())).await;
    // HTTP/2 has no other end than a clean one.
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_policy_holds_for_the_next_request_of_a_connection() {
    let scene = Scene::new().await;
    for http in [Http::one(), Http::two()] {
        scene.enforces(WEB).await;
        let open = || metric(&scene.orders, "outrigger_tls_handshakes_total", &["inbound", "\"ok\""]);
        assert_eq!(http.get(scene.web.outbound[0], "/").await.status, 200);
        let before = open();
        scene.enforces(NOBODY).await;
        let seen = http.get(scene.web.outbound[0], "/").await;
        assert_eq!((seen.status, seen.error()), (403, Some("access-denied")));
        scene.enforces(WEB).await;
        assert_eq!(http.get(scene.web.outbound[0], "/").await.status, 200);
        assert_eq!(open(), before, "its connection is the same");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_lasts_as_long_as_the_request_that_began_it_is_let_in() {
    let scene = Scene::new().await;
    let (mut first, mut loud) = (chat(&scene, "").await, chat(&scene, "X-Loud: 1\r\n").await);
    let mut tunnel = connect(&scene).await;
    // The head is what is asked about: the path, a header, a method that has no path.
    scene.enforces(WEB).await;
    for _ in 0..2 {
        soon(echoes(&mut first)).await.unwrap();
        soon(echoes(&mut loud)).await.unwrap();
        soon(echoes(&mut tunnel)).await.unwrap();
        scene.enforces(WEB).await;
    }
    scene.enforces(CHAT).await;
    ends(&mut tunnel).await;
    soon(echoes(&mut first)).await.unwrap();
    soon(echoes(&mut loud)).await.unwrap();
    scene.enforces(QUIET).await;
    ends(&mut loud).await;
    soon(echoes(&mut first)).await.unwrap();
    scene.enforces(NOBODY).await;
    ends(&mut first).await;
    let denied = metric(&scene.orders, "outrigger_access_total", &["decision=\"denied\""]);
    assert_eq!(
        denied, 1,
        "what policies that are gone have refused is not counted any more"
    );
    assert_eq!(metric(&scene.orders, "outrigger_errors_total", &["access-denied"]), 3);
    // The HTTP/2 connection of the caller's sidecar, which had the tunnel, carries others.
    scene.enforces(WEB).await;
    soon(echoes(&mut connect(&scene).await)).await.unwrap();
}

/// And not by what the app was told of its caller since then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_is_asked_about_as_it_was_when_it_began() {
    const BEFORE: &str = "[{name: before, spec: {rules: [{sources: [{type: Any}], httpAttributes: [{headers: [{name: x-forwarded-for, value: 192.0.2.1}]}]}]}}]";
    const BEHIND: &str = "[{name: behind, spec: {rules: [{sources: [{type: Any}], httpAttributes: [{headers: [{name: x-forwarded-for, type: RegularExpression, value: \"192.*\"}]}]}]}}]";
    let scene = Scene::with(|config| config.forwarded_for = ForwardedFor::Append).await;
    scene.enforces(BEFORE).await;
    let mut tunnel = chat(&scene, "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert_eq!(scene.app.heard()["x-forwarded-for"], "192.0.2.1, 127.0.0.1");
    for policies in [BEHIND, BEFORE, BEHIND] {
        scene.enforces(policies).await;
        soon(echoes(&mut tunnel)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_controller_the_last_policies_stay_in_force() {
    let mut scene = Scene::new().await;
    scene.enforces(WEB).await;
    let mut living = TcpStream::connect(scene.web.outbound[1]).await.unwrap();
    soon(echoes(&mut living)).await.unwrap();
    scene.authority.go_away().await;
    scene.script.hangs_up();
    let statuses = async |scene: &Scene| {
        let web = Http::one().get(scene.web.outbound[0], "/").await.status;
        let jobs = Http::one().get(scene.jobs.outbound[0], "/").await.status;
        (web, jobs)
    };
    assert_eq!(statuses(&scene).await, (200, 403));
    // Told to nobody.
    scene.script.says(policies_of(NOBODY));
    assert_eq!(statuses(&scene).await, (200, 403));
    assert_eq!(Http::one().get(scene.orders.admin, "/readyz").await.status, 200);
    scene.authority.come_back().await;
    until("the change is caught up with", async || {
        statuses(&scene).await == (403, 403)
    })
    .await;
    ends(&mut living).await;
}

/// A rollback of the controller, or an upgrade that has begun, opens nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_of_the_version_before_opens_nothing() {
    let scene = Scene::new().await;
    scene.enforces(WEB).await;
    for version in [Version::WithoutAccess, Version::WithoutSessions] {
        scene.script.becomes(version);
        let admin = scene.orders.admin;
        let port = 7000 + u32::from(version == Version::WithoutSessions);
        scene.script.declares(outrigger_api::discovery::Workload {
            opaque_ports: vec![port],
            ..outrigger_api::discovery::Workload::default()
        });
        until("it is heard", async || {
            let config = Http::one().get(admin, "/config").await.body;
            let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
            config["targets"]["workload"]["opaquePorts"] == serde_json::json!([port])
        })
        .await;
        assert_eq!(
            Http::one().get(scene.jobs.outbound[0], "/").await.status,
            403,
            "{version:?}"
        );
    }
    scene.script.becomes(Version::Now);
    scene.enforces("[]").await;
    assert_eq!(Http::one().get(scene.jobs.outbound[0], "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_final() {
    let scene = Scene::new().await;
    let web = scene.caller("web", "{retry: {attempts: 3}}").await;
    scene.enforces(NOBODY).await;
    let grpc = async || {
        let mut call = outrigger_tests::mesh::request(Method::POST, web.outbound[0], "/shop.Orders/Get", "");
        call.headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        Http::two().send(call).await.unwrap()
    };
    for _ in 0..10 {
        assert_eq!(
            Http::one().get(web.outbound[0], "/").await.error(),
            Some("access-denied")
        );
        assert_eq!(grpc().await.error(), Some("access-denied"));
    }
    assert_eq!(metric(&web, "outrigger_retries_total", &[]), 0);
    assert_eq!(
        metric(&scene.orders, "outrigger_access_total", &["decision=\"denied\""]),
        20
    );
    assert_eq!(metric(&web, "outrigger_errors_total", &["access-denied"]), 20);
}
