//! Sidecars that start and end, and a mesh that changes under load. In one process.

mod affinity;
mod backends;
mod balancing;
mod breaker;
mod controller;
mod durations;
mod earlier;
mod endpoints;
mod fallback;
mod fallback_backends;
mod faults;
mod hung;
mod names;
mod sessions;
mod skew;
mod stop;

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderValue, Method, Request};
use outrigger_api::discovery::backend::Kind;
use outrigger_api::discovery::target::Kind as TargetKind;
use outrigger_api::discovery::{Backend, Endpoint, Endpoints, Policy, Protocol, Retry, Service, ServiceRef, Target};
use outrigger_tests::mesh::{Body, Http, SOON, Seen, id, request};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// What a client and an app speak.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Speaks {
    Http1,
    Http2,
    Grpc,
}

impl Speaks {
    const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Grpc];

    /// A request on a connection of its own.
    async fn send(self, to: SocketAddr, headers: &[(&'static str, &'static str)]) -> Seen {
        let mut request: Request<Body> = request(Method::POST, to, "/shop.Orders/Get", "an order");
        let grpc = [("content-type", "application/grpc")];
        let grpc = if self == Self::Grpc { &grpc[..] } else { &[] };
        for (name, value) in headers.iter().chain(grpc) {
            request.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        let http = if self == Self::Http1 { Http::one() } else { Http::two() };
        http.send(request).await.unwrap()
    }
}

/// The Service's address; nothing listens there.
const ORDERS: &str = "10.96.0.1:8080";

fn orders_address() -> SocketAddr {
    ORDERS.parse().unwrap()
}

/// The Service "orders" with these endpoints: the workload's name, and where it is.
fn orders(protocol: Protocol, endpoints: &[(&str, SocketAddr)]) -> Target {
    let endpoints = endpoints.iter().map(|(name, address)| Endpoint {
        address: address.to_string(),
        identity: id(name).to_string(),
        ..Endpoint::default()
    });
    service(
        protocol,
        Kind::Endpoints(Endpoints {
            endpoints: endpoints.collect(),
        }),
    )
}

fn service(protocol: Protocol, kind: Kind) -> Target {
    let name = ServiceRef {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        port: 8080,
    };
    // What is proved is that nothing is lost, not how little a machine that is busy retries.
    let retry = Retry {
        budget_min_per_second: Some(1000),
        ..Retry::default()
    };
    Target {
        kind: Some(TargetKind::Service(Service {
            r#ref: Some(name.clone()),
            protocol: protocol.into(),
            backends: vec![Backend {
                r#ref: Some(name),
                kind: Some(kind),
                policy: None,
                client_affinity: false,
                tls: None,
            }],
            policy: Some(Policy {
                retry: Some(retry),
                connect_timeout_ms: Some(10_000),
                ..Policy::default()
            }),
            byte_routes: Vec::new(),
            routes: Vec::new(),
        })),
    }
}

/// Clients that send one POST after the other, each of which must be answered 200, until they are told to end.
struct Load {
    clients: Vec<JoinHandle<usize>>,
    end: CancellationToken,
}

impl Load {
    fn start(http: &Http, to: SocketAddr, clients: usize) -> Self {
        let end = CancellationToken::new();
        let client = |_| {
            let (http, end) = (http.clone(), end.clone());
            tokio::spawn(async move {
                let mut sent = 0;
                while !end.is_cancelled() {
                    let seen = http.send(request(Method::POST, to, "/", "order")).await.unwrap();
                    assert_eq!(seen.status, 200, "after {sent}: {seen:?}");
                    sent += 1;
                }
                sent
            })
        };
        Self {
            clients: (0..clients).map(client).collect(),
            end,
        }
    }

    /// How many requests there were, none of them lost.
    async fn none_lost(self) -> usize {
        self.end.cancel();
        let mut all = 0;
        for client in self.clients {
            let sent = client.await.unwrap();
            assert!(sent > 0, "a client sent nothing");
            all += sent;
        }
        all
    }
}

/// Waits until a condition holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(
        tokio::time::timeout(SOON, waiting).await.is_ok(),
        "not within {SOON:?}: {what}"
    );
}
