//! Connections of bytes before anybody has said a word, and those that last while policies change.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use outrigger_api::access::Access;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Config;
use outrigger_tests::mesh::{Authority, Sidecar, heard, metric};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::scene::{Scene, policies_of};
use super::{DAY, soon, until};

const NOBODY: &str = "[{name: nobody, spec: {}}]";
const WEB: &str = "[{name: web, spec: {rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}]}}]";
const ANYBODY: &str = "[{name: anybody, spec: {rules: [{sources: [{type: Any}]}]}}]";
const GETS: &str = "[{name: gets, spec: {rules: [{sources: [{type: Any}], httpAttributes: [{methods: [GET]}]}]}}]";

/// An app that greets whoever connects, and counts them.
async fn greets() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, greeted) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&greeted);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                stream.write_all(b"220 hello\r\n").await.unwrap();
                // Until the client goes.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    (address, greeted)
}

/// The sidecar of an app that speaks first, on a port of which this is declared or nothing, with the policies of a standalone file.
async fn mail(authority: &Authority, app: SocketAddr, declared: bool, policies: &str) -> RunningProxy {
    let mail = Sidecar::new("orders")
        .protects(app)
        .with(&format!("accessPolicies: {policies}"));
    let mail = match declared {
        true => mail.with(&format!("opaquePorts: \"{}\"", app.port())),
        false => mail,
    };
    let briefly = |config: &mut Config| config.detect_timeout = Duration::from_millis(500);
    mail.start_with(authority, briefly).await
}

#[tokio::test]
async fn an_app_that_speaks_first_speaks_to_whom_policies_let_in() {
    let authority = Authority::start(&["orders"], DAY).await;
    for declared in [true, false] {
        for (policies, is_in) in [(NOBODY, false), (WEB, false), (GETS, false), (ANYBODY, true)] {
            let (app, greeted) = greets().await;
            let mail = mail(&authority, app, declared, policies).await;
            // More than once: what was learnt of the port changes nothing.
            for n in 1..=3 {
                match soon(heard(mail.inbound[0], b"", 11)).await {
                    Ok(heard) => assert!(is_in && heard == b"220 hello\r\n", "{policies}, declared: {declared}"),
                    Err(error) => assert!(
                        !is_in && error.kind() == ErrorKind::ConnectionReset,
                        "{policies}, declared: {declared}: {error}"
                    ),
                }
                let expected = if is_in { n } else { 0 };
                assert_eq!(greeted.load(SeqCst), expected, "{policies}, declared: {declared}");
            }
        }
    }
}

/// An echo both ways, again and again.
async fn echoes(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"\0word").await?;
    stream.read_exact(&mut [0; 5]).await.map(drop)
}

async fn is_reset(stream: &mut TcpStream) {
    let error = soon(stream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Those that say nothing hear of it too, and those who may go on lose nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_connections_are_asked_about_again_when_policies_change() {
    let scene = Scene::new().await;
    let mut web = TcpStream::connect(scene.web.outbound[1]).await.unwrap();
    let mut jobs = TcpStream::connect(scene.jobs.outbound[1]).await.unwrap();
    let mut stranger = TcpStream::connect(scene.orders.inbound[0]).await.unwrap();
    for client in [&mut web, &mut jobs, &mut stranger] {
        soon(echoes(client)).await.unwrap();
    }
    // In plaintext and in mutual TLS, by rules and by a default deny.
    scene.enforces(WEB).await;
    is_reset(&mut jobs).await;
    is_reset(&mut stranger).await;
    soon(echoes(&mut web)).await.unwrap();
    let denied = ["decision=\"denied\"", "policy=\"shop/web\""];
    assert_eq!(metric(&scene.orders, "outrigger_access_total", &denied), 2);
    assert_eq!(metric(&scene.orders, "outrigger_errors_total", &["access-denied"]), 2);
    // Nothing changes for it by another policy that lets it in, nor in a new session that says the same.
    scene.enforces(ANYBODY).await;
    scene.script.becomes(super::script::Version::Now);
    scene.enforces(ANYBODY).await;
    soon(echoes(&mut web)).await.unwrap();
    // Bytes are nothing that a rule about HTTP lets in.
    scene.enforces(GETS).await;
    is_reset(&mut web).await;
    until("its place is free", async || {
        metric(&scene.orders, "outrigger_connections_open", &["inbound"]) == 0
    })
    .await;
    // And its app's end is closed too, so the tunnel has ended.
    scene.enforces("[]").await;
    let mut again = TcpStream::connect(scene.web.outbound[1]).await.unwrap();
    soon(echoes(&mut again)).await.unwrap();
}

/// A connection that takes nothing: the sidecar cannot write to it, and does not read from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_stuck_is_reset_as_well() {
    let scene = Scene::new().await;
    let stuck = TcpStream::connect(scene.orders.inbound[0]).await.unwrap();
    // The app echoes until nobody takes any more.
    let fill = async {
        let chunk = [0_u8; 64 * 1024];
        loop {
            stuck.writable().await.unwrap();
            let _ = stuck.try_write(&chunk);
        }
    };
    let full = async {
        let mut last = (0, tokio::time::Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let sent = metric(&scene.orders, "outrigger_tcp_sent_bytes_total", &["inbound"]);
            if sent != last.0 {
                last = (sent, tokio::time::Instant::now());
            } else if last.1.elapsed() > Duration::from_millis(500) {
                return;
            }
        }
    };
    tokio::select! {
        () = fill => {}
        () = soon(full) => {}
    }
    assert_eq!(metric(&scene.orders, "outrigger_connections_open", &["inbound"]), 1);
    scene.enforces(NOBODY).await;
    until("it is gone", async || {
        metric(&scene.orders, "outrigger_connections_open", &["inbound"]) == 0
    })
    .await;
}

/// A policy of another port is none: not even counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_no_policy_selects_is_as_it_was() {
    let scene = Scene::new().await;
    let mut access: Access = policies_of(NOBODY);
    access.enforced[0].ports = Some(outrigger_api::access::Ports { numbers: vec![1] });
    scene.script.says(access);
    let admin = scene.orders.admin;
    until("it is in force", async || {
        let config = outrigger_tests::mesh::Http::one().get(admin, "/config").await.body;
        String::from_utf8_lossy(&config).contains("shop/nobody")
    })
    .await;
    for to in [scene.orders.inbound[0], scene.jobs.outbound[1]] {
        soon(echoes(&mut TcpStream::connect(to).await.unwrap())).await.unwrap();
    }
    assert_eq!(
        outrigger_tests::mesh::Http::one()
            .get(scene.jobs.outbound[0], "/")
            .await
            .status,
        200
    );
    assert_eq!(metric(&scene.orders, "outrigger_access_total", &[]), 0);
}
