//! What is not HTTP: TLS of the app itself, bytes of any protocol, and peers that mean harm.

mod app_tls;
pub(crate) mod certificates;
mod crowd;
mod exhaustion;
mod first_words;
pub(crate) mod hostile;
mod idle;
mod outlived;
mod routed;
mod streams;

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Mtls;
use outrigger_tests::mesh::{Authority, Sidecar, id, metric, until_within};
use tokio::net::{TcpListener, TcpStream};

/// Everything on loopback is there within this, or never.
const SOON: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(86_400);

/// A client's sidecar, and an app behind its own.
struct Pair {
    web: RunningProxy,
    orders: RunningProxy,
    /// Where the client connects to.
    to: SocketAddr,
}

async fn authority() -> Authority {
    Authority::start(&["web", "orders"], DAY).await
}

/// `protocol` is what discovery says of the service; the app's own sidecar is told by its port, if that is `opaque`.
async fn pair(authority: &Authority, app: SocketAddr, protocol: &str, mtls: Mtls) -> Pair {
    let port = app.port();
    let orders = Sidecar::new("orders").protects(app);
    let orders = match protocol {
        "opaque" => orders.with(&format!("opaquePorts: \"{port}\"")),
        _ => orders,
    };
    let orders = orders.start_with(authority, |config| config.mtls = mtls).await;
    let web = Sidecar::new("web")
        // On a busy machine a handshake takes its time, and no test here is about a second attempt.
        .calls(
            "orders",
            protocol,
            &[(orders.inbound[0], Some(id("orders")))],
            "{timeouts: {connect: 10s}}",
        )
        .start(authority)
        .await;
    Pair {
        to: web.outbound[0],
        web,
        orders,
    }
}

/// How many handshakes ended so.
fn handshakes(proxy: &RunningProxy, direction: &str, result: &str) -> u64 {
    let labels = [format!("direction=\"{direction}\""), format!("result=\"{result}\"")];
    metric(
        proxy,
        "outrigger_tls_handshakes_total",
        &[labels[0].as_str(), labels[1].as_str()],
    )
}

/// Waits for a condition that must come true.
async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    until_within(SOON, what, condition).await;
}

/// Does not wait for ever.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it takes too long")
}

/// An app that does `serve` with each connection.
async fn app<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// This process holds both ends of many connections.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
