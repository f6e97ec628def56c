//! What an app is told of who calls it: `outrigger-client-id`, which nobody else can say, and `X-Forwarded-For`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Response};
use outrigger_api::discovery::{Protocol, Workload};
use outrigger_controller::discovery::FixedTargets;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Config;
use outrigger_tests::mesh::{App, Authority, Http, SOON, Sidecar, id, request, text};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::tcp::certificates::right;
use crate::tcp::hostile::client;

const DAY: Duration = Duration::from_secs(86_400);
const FORGED: &str = "spiffe://mesh.test/ns/shop/sa/admin";

/// Answers with the lines of both headers that it got: "CLIENT ID; FORWARDED FOR".
async fn app() -> App {
    App::start(async |request| {
        let lines = ["outrigger-client-id", "x-forwarded-for"].map(|name| {
            let lines = request.headers().get_all(name).iter();
            let lines: Vec<_> = lines.map(|line| line.to_str().unwrap()).collect();
            lines.join(" | ")
        });
        Response::new(text(lines.join("; ")))
    })
    .await
}

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
    Grpc,
}

const EACH: [Speaks; 3] = [Speaks::Http1, Speaks::Http2, Speaks::Grpc];

impl Speaks {
    fn protocol(self) -> &'static str {
        if self == Self::Http1 { "http1" } else { "http2" }
    }

    /// What the app got of a request with these lines, and with a forged identity.
    async fn told(self, to: SocketAddr, forwarded: &[&str]) -> String {
        let mut call = request(Method::POST, to, "/", "");
        let headers = call.headers_mut();
        for (name, value) in [("outrigger-client-id", FORGED); 2]
            .into_iter()
            .chain(forwarded.iter().map(|line| ("x-forwarded-for", *line)))
        {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let http = match self {
            Self::Http1 => {
                // What a client has removed for this hop, the sidecar says after that.
                headers.insert("connection", HeaderValue::from_static("outrigger-client-id"));
                Http::one()
            }
            Self::Http2 => Http::two(),
            Self::Grpc => {
                headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                headers.insert("te", HeaderValue::from_static("trailers"));
                Http::two()
            }
        };
        let seen = http.send(call).await.unwrap();
        assert_eq!(seen.status, 200, "{self:?}");
        String::from_utf8(seen.body.to_vec()).unwrap()
    }
}

/// A caller's sidecar and an app behind its own, of whose file this is a line.
async fn pair(authority: &Authority, app: SocketAddr, protocol: &str, line: &str) -> (RunningProxy, RunningProxy) {
    let orders = Sidecar::new("orders").protects(app).with(line).start(authority).await;
    let endpoint = (orders.inbound[0], Some(id("orders")));
    let web = Sidecar::new("web").calls("orders", protocol, &[endpoint], "{}");
    (web.start(authority).await, orders)
}

async fn authority() -> Authority {
    Authority::start(&["web", "orders"], DAY).await
}

#[tokio::test]
async fn an_app_is_told_who_is_proven_to_call_it_and_nothing_by_a_client() {
    let (authority, app) = (authority().await, app().await);
    for speaks in EACH {
        let (web, orders) = pair(&authority, app.address, speaks.protocol(), "").await;
        let (proven, nobody) = (format!("{}; ", id("web")), "; ".to_owned());
        for (to, client) in [(web.outbound[0], proven), (orders.inbound[0], nobody)] {
            for forwarded in [&[][..], &["192.0.2.1"], &["192.0.2.1, b", "c"]] {
                let told = speaks.told(to, forwarded).await;
                assert_eq!(told, format!("{client}{}", forwarded.join(" | ")), "{speaks:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_clients_address_comes_last_where_that_is_asked_for() {
    let (authority, app) = (authority().await, app().await);
    for speaks in EACH {
        let (web, orders) = pair(&authority, app.address, speaks.protocol(), "forwardedFor: Append").await;
        let (proven, nobody) = (format!("{}; ", id("web")), "; ".to_owned());
        for (to, client) in [(web.outbound[0], proven), (orders.inbound[0], nobody)] {
            for (forwarded, line) in [
                (&[][..], "127.0.0.1"),
                (&["192.0.2.1"], "192.0.2.1, 127.0.0.1"),
                (&["192.0.2.1, b", "c"], "192.0.2.1, b, c, 127.0.0.1"),
            ] {
                assert_eq!(
                    speaks.told(to, forwarded).await,
                    format!("{client}{line}"),
                    "{speaks:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_address_of_ipv6_stands_as_it_is_and_one_of_ipv4_as_ipv4() {
    let (authority, app) = (authority().await, app().await);
    for (listen, client) in [("[::1]:0", "::1"), ("127.0.0.1:0", "127.0.0.1")] {
        let orders = Sidecar::new("orders")
            .protects(app.address)
            .with("forwardedFor: Append")
            .start_with(&authority, |config: &mut Config| {
                config.inbound[0].listen = listen.parse().unwrap();
            })
            .await;
        let told = Speaks::Http1.told(orders.inbound[0], &["fd00::9"]).await;
        assert_eq!(told, format!("; fd00::9, {client}"));
    }
}

#[tokio::test]
async fn a_pod_that_calls_itself_is_told_its_own_address() {
    let (authority, app) = (authority().await, app().await);
    let own: IpAddr = app.address.ip();
    let orders = Sidecar::new("orders")
        .protects(app.address)
        .calls("myself", "http1", &[(app.address, Some(id("orders")))], "{}")
        .with("forwardedFor: Append")
        .start_with(&authority, |config: &mut Config| config.workload.pod_ips = vec![own])
        .await;
    let told = Speaks::Http1.told(orders.outbound[0], &[]).await;
    assert_eq!(told, format!("{}; {own}", id("orders")));
}

/// A connection of a member that calls what is inside bytes, whatever it is.
async fn of_bytes(authority: &Authority, to: SocketAddr) -> TlsStream<TcpStream> {
    let client = client(Some(right(authority, "web")), &["outrigger/tcp"]);
    let stream = TcpStream::connect(to).await.unwrap();
    let name = ServerName::try_from("orders.peer").unwrap();
    TlsConnector::from(client).connect(name, stream).await.unwrap()
}

/// A sidecar that its controller has told that the app's port is HTTP.
async fn declared(authority: &Authority, targets: &FixedTargets, app: SocketAddr) -> RunningProxy {
    targets.set_workload(Workload {
        protocols: [(app.port().into(), Protocol::Http1.into())].into(),
        ..Workload::default()
    });
    let orders = Sidecar::new("orders").protects(app).calls_address(app);
    let orders = orders
        .start_with(authority, |config| config.detect_timeout = Duration::from_millis(100))
        .await;
    let told = async {
        let port = app.port().to_string();
        loop {
            let config = Http::one().get(orders.admin, "/config").await.body;
            let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
            if config["targets"]["workload"]["protocols"].get(&port).is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, told).await.expect("it is not told");
    orders
}

async fn all(stream: &mut TlsStream<TcpStream>) -> String {
    let mut all = Vec::new();
    // Who refuses may close without a goodbye.
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut all)).await;
    let _ = read.expect("it is not closed");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn http_that_a_member_calls_bytes_is_read_all_the_same_where_http_is_declared() {
    let targets = Arc::new(FixedTargets::default());
    let authority = Authority::with_discovery(&["web", "orders"], DAY, Some(Arc::clone(&targets) as _)).await;
    let app = app().await;
    let orders = declared(&authority, &targets, app.address).await;
    let head = format!("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\nOutrigger-Client-Id: {FORGED}\r\n\r\n");
    // Whole; after a silence, and in two pieces with one between: longer than detection lasts.
    for pieces in [&[(false, 0..head.len())][..], &[(true, 0..2), (true, 2..head.len())]] {
        let mut stream = of_bytes(&authority, orders.inbound[0]).await;
        for (waits, piece) in pieces {
            if *waits {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            stream.write_all(&head.as_bytes()[piece.clone()]).await.unwrap();
        }
        let answer = all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with(&format!("{}; ", id("web"))), "{answer}");
    }
    // What is no HTTP is refused as that.
    let mut stream = of_bytes(&authority, orders.inbound[0]).await;
    stream.write_all(b"\r\nhello\r\n\r\n").await.unwrap();
    let answer = all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

/// An app that takes its own TLS on a port that its Service calls HTTP gets it still.
#[tokio::test]
async fn tls_of_the_app_on_a_port_of_http_passes_as_bytes() {
    let targets = Arc::new(FixedTargets::default());
    let authority = Authority::with_discovery(&["web", "orders"], DAY, Some(Arc::clone(&targets) as _)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let orders = declared(&authority, &targets, listener.local_addr().unwrap()).await;
    let mut stream = of_bytes(&authority, orders.inbound[0]).await;
    let hello = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00";
    stream.write_all(hello).await.unwrap();
    let accepted = tokio::time::timeout(SOON, listener.accept()).await;
    let (mut app, _) = accepted.expect("the app is not called").unwrap();
    let mut came = [0; 10];
    app.read_exact(&mut came).await.unwrap();
    assert_eq!(&came, hello);
    app.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
}
