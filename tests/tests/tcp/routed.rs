//! TLSRoutes and TCPRoutes: where a connection of bytes goes, of TLS by the name of the server that it asks for.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::discovery::{DiscoveryConfig, StaticTargets};
use outrigger_proxy::model::{Service, Target, from_proto};
use outrigger_tests::mesh::{Authority, Sidecar, metric};
use rustls::ClientConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::app_tls::{Pki, call, tls_app};
use super::{app, authority, soon};
use outrigger_api::discovery as proto;

/// The host names of a route, and its backends by index and weight.
type Of<'a> = (&'a [&'a str], &'a [(u32, u32)]);

/// A Service whose backends are these, the first one its own, with routes of bytes.
fn service(backends: &[SocketAddr], routes: &[Of<'_>]) -> Service {
    let backend = |(n, address): (usize, &SocketAddr)| proto::Backend {
        r#ref: Some(proto::ServiceRef {
            namespace: "shop".to_owned(),
            name: format!("orders-{n}"),
            port: 443,
        }),
        kind: Some(proto::backend::Kind::Endpoints(proto::Endpoints {
            endpoints: vec![proto::Endpoint {
                address: address.to_string(),
                ..proto::Endpoint::default()
            }],
        })),
        ..proto::Backend::default()
    };
    let route = |(n, (hostnames, backends)): (usize, &Of<'_>)| proto::ByteRoute {
        name: format!("shop/route-{n}/0"),
        hostnames: hostnames.iter().map(|&name| name.to_owned()).collect(),
        backends: backends
            .iter()
            .map(|&(backend, weight)| proto::WeightedBackend {
                backend,
                weight,
                filters: Vec::new(),
            })
            .collect(),
    };
    let is_tls = routes.iter().any(|(hostnames, _)| !hostnames.is_empty());
    let protocol = if is_tls {
        proto::Protocol::Tls
    } else {
        proto::Protocol::Opaque
    };
    from_proto::service(&proto::Service {
        protocol: protocol.into(),
        byte_routes: routes.iter().enumerate().map(route).collect(),
        backends: backends.iter().enumerate().map(backend).collect(),
        ..proto::Service::default()
    })
}

/// A sidecar whose app calls it.
async fn start(authority: &Authority, service: Service) -> RunningProxy {
    let target = Arc::new(Target::Service(Arc::new(service)));
    Sidecar::new("web")
        .calls("orders", "opaque", &[], "{}")
        .start_with(authority, |config| {
            config.discovery = DiscoveryConfig::Standalone(StaticTargets {
                services: HashMap::from([("orders".into(), target)]),
                ..StaticTargets::default()
            });
        })
        .await
}

/// Says its name, once it has heard a byte.
async fn named(name: &'static str) -> SocketAddr {
    app(move |mut stream| async move {
        if stream.read_u8().await.is_ok() {
            let _ = stream.write_all(name.as_bytes()).await;
        }
    })
    .await
}

/// The first bytes of a client of TLS.
fn hello(pki: &Pki, server: &str) -> Vec<u8> {
    let client = pki.client(None, &[]);
    let name = server.to_owned().try_into().unwrap();
    let mut connection = ClientConnection::new(Arc::clone(client.config()), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// Who answers these bytes.
async fn answer(to: SocketAddr, pieces: &[&[u8]]) -> Result<String, io::ErrorKind> {
    let talk = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        for piece in pieces {
            stream.write_all(piece).await?;
            tokio::task::yield_now().await;
        }
        let mut heard = [0];
        stream.read_exact(&mut heard).await?;
        Ok::<_, io::Error>(String::from_utf8(heard.to_vec()).unwrap())
    };
    soon(talk).await.map_err(|error| error.kind())
}

const RESET: Result<&str, io::ErrorKind> = Err(io::ErrorKind::ConnectionReset);

#[tokio::test]
async fn tls_goes_to_the_backend_of_the_server_that_it_asks_for() {
    let (authority, pki) = (authority().await, Pki::new());
    let backends = [named("0").await, named("1").await, named("2").await];
    let service = service(
        &backends,
        &[
            (&["*.example"], &[(1, 1)]),
            (&["shop.example"], &[(2, 1)]),
            (&["gone.example"], &[(9, 1)]),
            (&["none.example"], &[]),
        ],
    );
    let web = start(&authority, service).await;
    let to = web.outbound[0];
    for (server, expected) in [
        ("shop.example", Ok("2")),
        ("SHOP.example", Ok("2")),
        ("bank.example", Ok("1")),
        ("other.test", RESET),
        // A client that asks for an address names no server.
        ("10.0.0.1", RESET),
        ("gone.example", RESET),
        ("none.example", RESET),
    ] {
        let bytes = hello(&pki, server);
        assert_eq!(answer(to, &[&bytes]).await.as_deref(), expected.as_deref(), "{server}");
        let pieces: Vec<_> = bytes.chunks(50).collect();
        assert_eq!(
            answer(to, &pieces).await.as_deref(),
            expected.as_deref(),
            "{server} in pieces"
        );
    }
    // What is no TLS has no route; it is not the Service's own backend that gets it.
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n"[..],
        b"\0\0\0\x08\x04\xd2\x16\x2f",
    ] {
        assert_eq!(answer(to, &[bytes]).await.as_deref(), RESET.as_deref(), "{bytes:?}");
    }
    let errors = |reason| metric(&web, "outrigger_errors_total", &[reason]);
    assert_eq!(errors("reason=\"no-route\""), 6);
    assert_eq!(errors("reason=\"invalid-backend\""), 4);
}

#[tokio::test]
async fn a_handshake_is_between_the_client_and_the_backend() {
    let (authority, pki) = (authority().await, Pki::new());
    let (nobody, server) = (named("0").await, tls_app(&pki, false).await);
    let web = start(
        &authority,
        service(&[nobody, server], &[(&["shop.example"], &[(1, 1)])]),
    )
    .await;
    let heard = soon(call(web.outbound[0], &pki.client(None, &[b"h2"]), "shop.example")).await;
    assert_eq!(heard.unwrap(), "shop.example h2 false\nhello");
}

#[tokio::test]
async fn a_tcp_route_splits_all_connections_by_weight() {
    let authority = authority().await;
    let backends = [named("0").await, named("1").await, named("2").await];
    let web = start(&authority, service(&backends, &[(&[], &[(1, 1), (2, 3), (9, 1)])])).await;
    let mut heard: HashMap<String, u32> = HashMap::new();
    for n in 0..500 {
        // Also what looks like HTTP: the route says that it is bytes.
        let bytes = if n % 2 == 0 {
            &b"GET / HTTP/1.1\r\n\r\n"[..]
        } else {
            b"\0"
        };
        let from = answer(web.outbound[0], &[bytes])
            .await
            .unwrap_or_else(|error| format!("{error:?}"));
        *heard.entry(from).or_default() += 1;
    }
    // Five standard deviations of a binomial distribution.
    let of = |who: &str| heard.get(who).copied().unwrap_or_default();
    assert!(
        (56..=144).contains(&of("1")) && (246..=354).contains(&of("2")),
        "{heard:?}"
    );
    assert!(
        (56..=144).contains(&of("ConnectionReset")) && heard.len() == 3,
        "{heard:?}"
    );
}
