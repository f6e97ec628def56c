//! Suites that others wrote: h2spec against the listeners of sidecars, h2specd against their connections to a server, and the
//! gRPC project's interop client and server with sidecars in between.
//!
//! `tests/cluster/build conformance` makes the programs. They are looked for on the PATH.

mod h2spec;
mod h2specd;
mod interop;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::identity::MeshProtocol;
use outrigger_tests::mesh::{Authority, Sidecar, id};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// A program on the PATH that ends when this test does, however that ends.
fn program(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found: Option<PathBuf> = std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.exists());
    let found = found.unwrap_or_else(|| {
        panic!("{name} is not on the PATH: run tests/cluster/build conformance, which puts it into ~/.cache/outrigger-cluster/bin")
    });
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(found);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn authority() -> Authority {
    Authority::start(&["web", "orders"], Duration::from_secs(86_400)).await
}

/// A way to an app, through sidecars that live as long as it does.
struct Way {
    name: &'static str,
    to: SocketAddr,
    _sidecars: Vec<RunningProxy>,
}

impl Way {
    /// Outbound listener, mutual TLS, inbound listener.
    async fn through_two(authority: &Authority, app: SocketAddr) -> Self {
        let orders = Sidecar::new("orders").protects(app).start(authority).await;
        let endpoint = [(orders.inbound[0], Some(id("orders")))];
        let web = Sidecar::new("web").calls("orders", "http2", &endpoint, "{}");
        let web = web.start(authority).await;
        Self {
            name: "outbound, mutual TLS, inbound",
            to: web.outbound[0],
            _sidecars: vec![web, orders],
        }
    }

    /// The outbound listener alone; its endpoint is not of the mesh.
    async fn out(authority: &Authority, app: SocketAddr) -> Self {
        let web = Sidecar::new("web").calls("orders", "http2", &[(app, None)], "{}");
        let web = web.start(authority).await;
        Self {
            name: "outbound",
            to: web.outbound[0],
            _sidecars: vec![web],
        }
    }

    /// The inbound listener alone; its client is not of the mesh.
    async fn inside(authority: &Authority, app: SocketAddr) -> Self {
        let orders = Sidecar::new("orders").protects(app).start(authority).await;
        Self {
            name: "inbound",
            to: orders.inbound[0],
            _sidecars: vec![orders],
        }
    }

    /// The inbound listener, with the client's bytes in mutual TLS as they are: only this end of it is HTTP/2.
    async fn inside_tls(authority: &Authority, app: SocketAddr) -> Self {
        let orders = Sidecar::new("orders").protects(app).start(authority).await;
        let web = Sidecar::new("web").start(authority).await;
        let credentials = web.identity().ready().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (to, inbound) = (listener.local_addr().unwrap(), orders.inbound[0]);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let credentials = credentials.clone();
                tokio::spawn(async move {
                    let tcp = TcpStream::connect(inbound).await.unwrap();
                    let peer = id("orders");
                    let tls = credentials.connect(tcp, inbound.ip(), &peer, MeshProtocol::Http2);
                    // The suite is about how connections break.
                    _ = copy_bidirectional(&mut client, &mut tls.await.unwrap()).await;
                });
            }
        });
        Self {
            name: "inbound, mutual TLS",
            to,
            _sidecars: vec![web, orders],
        }
    }
}
