//! Who speaks first, and what an app is told that connects to nobody.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Config;
use outrigger_tests::mesh::{Authority, Http, Sidecar, id, metric};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{app, authority, soon, until};

/// Longer than any test waits: whatever waits for the first bytes of a client is found out.
fn for_ever(config: &mut Config) {
    config.detect_timeout = Duration::from_secs(60);
}

/// Two time-outs of detection are enough to see whether there is one.
fn briefly(config: &mut Config) {
    config.detect_timeout = Duration::from_millis(300);
}

async fn web(authority: &Authority, protocol: &str, endpoints: &[SocketAddr]) -> RunningProxy {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| (*endpoint, None)).collect();
    let policy = "{retry: {attempts: 0}}";
    let web = Sidecar::new("web").calls("orders", protocol, &endpoints, policy);
    web.start_with(authority, for_ever).await
}

/// How a connection ends on which the app says nothing.
async fn end_of_silence(to: SocketAddr) -> ErrorKind {
    let reached = async { TcpStream::connect(to).await?.read_u8().await };
    soon(reached).await.unwrap_err().kind()
}

#[tokio::test]
async fn a_service_that_has_nobody_resets_at_once() {
    let authority = authority().await;
    for protocol in ["opaque", "tls", "detect"] {
        let web = web(&authority, protocol, &[]).await;
        for n in 1..=2 {
            assert_eq!(
                end_of_silence(web.outbound[0]).await,
                ErrorKind::ConnectionReset,
                "{protocol}"
            );
            let reason = ["reason=\"no-endpoints\""];
            assert_eq!(metric(&web, "outrigger_errors_total", &reason), n, "{protocol}");
        }
        // What is not HTTP gets no answer of HTTP either. The reset may come before the connection is even looked at.
        let reached = async {
            let mut client = TcpStream::connect(web.outbound[0]).await?;
            client.write_all(b"\0word").await?;
            client.read_u8().await
        };
        let error = soon(reached).await.unwrap_err();
        let told = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(told.contains(&error.kind()), "{protocol}: {error}");
    }
}

/// A client of HTTP is owed a reason, also on a port that nobody declared, if it speaks without delay.
#[tokio::test]
async fn a_service_that_has_nobody_tells_clients_of_http_why() {
    let authority = authority().await;
    for protocol in ["http1", "http2", "detect"] {
        let web = web(&authority, protocol, &[]).await;
        for http in [Http::one(), Http::two()] {
            let told = async || {
                let get = outrigger_tests::mesh::request(http::Method::GET, web.outbound[0], "/", "");
                match http.send(get).await {
                    Ok(seen) => {
                        assert_eq!((seen.status, seen.error()), (503, Some("no-endpoints")));
                        true
                    }
                    // On a machine that is busy the request may come too late, where nobody declared HTTP.
                    Err(error) => {
                        assert_eq!(protocol, "detect", "{error}");
                        false
                    }
                }
            };
            until("it is told", told).await;
        }
    }
}

#[tokio::test]
async fn an_endpoint_of_a_declared_port_is_dialled_before_the_app_speaks() {
    let authority = authority().await;
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for protocol in ["opaque", "tls"] {
        let web = web(&authority, protocol, &[endpoint.local_addr().unwrap()]).await;
        let mut client = TcpStream::connect(web.outbound[0]).await.unwrap();
        let (mut server, _) = soon(endpoint.accept()).await.unwrap();
        server.write_all(b"!").await.unwrap();
        assert_eq!(soon(client.read_u8()).await.unwrap(), b'!', "{protocol}");
    }
    let nobody = endpoint.local_addr().unwrap();
    drop(endpoint);
    for protocol in ["opaque", "tls"] {
        let web = web(&authority, protocol, &[nobody]).await;
        assert_eq!(
            end_of_silence(web.outbound[0]).await,
            ErrorKind::ConnectionReset,
            "{protocol}"
        );
        let reason = ["reason=\"connect-failed\""];
        assert_eq!(metric(&web, "outrigger_errors_total", &reason), 1, "{protocol}");
    }
}

/// Greets whoever connects, and then echoes; or, when told so, speaks HTTP.
struct Server {
    address: SocketAddr,
    http: Arc<AtomicBool>,
}

impl Server {
    async fn start() -> Self {
        let http = Arc::new(AtomicBool::new(false));
        let is_http = Arc::clone(&http);
        let address = app(move |mut stream| {
            let greets = !is_http.load(SeqCst);
            async move {
                if greets {
                    let _ = stream.write_all(b"INFO {}\r\n").await;
                }
                let mut said = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut said).await {
                    let answer: &[u8] = match greets {
                        true => &said[..length],
                        false => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                    };
                    let _ = stream.write_all(answer).await;
                }
            }
        })
        .await;
        Self { address, http }
    }
}

/// Waits for the greeting before it says anything.
async fn greeted(to: SocketAddr) {
    let mut client = TcpStream::connect(to).await.unwrap();
    let mut heard = [0; 9];
    soon(client.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"INFO {}\r\n");
    client.write_all(b"PING").await.unwrap();
    let mut heard = [0; 4];
    soon(client.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"PING");
}

fn timeouts(proxy: &RunningProxy) -> u64 {
    metric(proxy, "outrigger_detect_timeouts_total", &[])
}

/// Connects until the port is remembered, and once more, for which nobody waits.
async fn is_remembered(to: SocketAddr, by: &RunningProxy, labels: &[&str]) {
    let remembered = || metric(by, "outrigger_server_first_ports", labels) == 1;
    // Once, where the greeting comes without delay.
    until("it is remembered", async || {
        greeted(to).await;
        remembered()
    })
    .await;
    let before = timeouts(by);
    assert!(before > 0, "nobody could know it before");
    greeted(to).await;
    assert_eq!(timeouts(by), before, "{labels:?}");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_remembered_until_a_client_speaks_http() {
    let authority = authority().await;
    for in_mesh in [true, false] {
        let server = Server::start().await;
        let orders = Sidecar::new("orders").protects(server.address);
        let orders = orders.start(&authority).await;
        let endpoint = match in_mesh {
            true => (orders.inbound[0], Some(id("orders"))),
            false => (server.address, None),
        };
        let web = Sidecar::new("web").calls("orders", "detect", &[endpoint], "{}");
        let web = web.start_with(&authority, briefly).await;
        let labels = ["direction=\"outbound\"", "service=\"shop/orders\""];
        is_remembered(web.outbound[0], &web, &labels).await;
        assert_eq!(timeouts(&orders), 0, "in the mesh the caller's sidecar waits");
        // The port is of HTTP now. Nothing of it is carried as bytes, and what was remembered is wrong.
        server.http.store(true, SeqCst);
        for n in 1..=3 {
            assert_eq!(Http::one().get(web.outbound[0], "/").await.status, 200);
            let served = metric(&web, "outrigger_requests_total", &["outbound", "success"]);
            assert_eq!(served, n, "in the mesh: {in_mesh}");
        }
        assert_eq!(metric(&web, "outrigger_server_first_ports", &labels), 0);
    }
}

/// From outside the mesh.
#[tokio::test]
async fn an_app_that_speaks_first_is_remembered_by_its_own_sidecar() {
    let authority = authority().await;
    let server = Server::start().await;
    let orders = Sidecar::new("orders").protects(server.address);
    let orders = orders.start_with(&authority, briefly).await;
    is_remembered(orders.inbound[0], &orders, &["direction=\"inbound\""]).await;
    // Clients of HTTP are still understood.
    server.http.store(true, SeqCst);
    assert_eq!(Http::one().get(orders.inbound[0], "/").await.status, 200);
    assert_eq!(metric(&orders, "outrigger_requests_total", &["inbound", "success"]), 1);
}
