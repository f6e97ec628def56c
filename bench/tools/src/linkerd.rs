//! Linkerd's control plane with fixed answers, on one plaintext port: Identity, Destination, OutboundPolicies and
//! InboundServerPolicies. linkerd2-proxy takes a control plane without identity only on loopback, so there is one in each pod.
//!
//! It answers what the real controllers answer for a meshed Service: a balancer over `Destination.Get`, endpoints with a TLS
//! identity, the hint that HTTP/1 may be carried over HTTP/2, opaque transport for opaque ports; inbound policy lets in the
//! mesh's TLS only.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use futures_util::Stream;
use linkerd2_proxy_api::{destination as dst, http_route, identity, inbound, meta, net, outbound};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status};

use crate::certs::linkerd_name;

type Watch<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One update, then a stream that stays open.
fn once<T: Send + 'static>(t: T) -> Response<Watch<T>> {
    Response::new(Box::pin(tokio_stream::once(Ok(t)).chain(tokio_stream::pending())))
}

struct State {
    ca_pem: String,
    ca_key: String,
    dst_ip: IpAddr,
    inbound_port: u32,
    peer: String,
    opaque: Vec<u16>,
    h2: bool,
}

#[derive(Clone)]
struct Mock(Arc<State>);

const NAME: &str = "app.bench.svc.cluster.local";

fn secs(n: u64) -> Option<prost_types::Duration> {
    Duration::from_secs(n).try_into().ok()
}

fn md(kind: &str) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Default(kind.into())),
    })
}

fn svc_md(port: u16) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            group: "core".into(),
            kind: "Service".into(),
            name: "app".into(),
            namespace: "bench".into(),
            port: port.into(),
            ..Default::default()
        })),
    })
}

#[tonic::async_trait]
impl identity::identity_server::Identity for Mock {
    async fn certify(
        &self,
        req: Request<identity::CertifyRequest>,
    ) -> Result<Response<identity::CertifyResponse>, Status> {
        let req = req.into_inner();
        let bad = |e: rcgen::Error| Status::internal(e.to_string());
        let key = rcgen::KeyPair::from_pem(&self.0.ca_key).map_err(bad)?;
        let issuer = rcgen::Issuer::from_ca_cert_pem(&self.0.ca_pem, &key).map_err(bad)?;
        let der = req.certificate_signing_request.into();
        let mut csr = rcgen::CertificateSigningRequestParams::from_der(&der).map_err(bad)?;
        let now = time::OffsetDateTime::now_utc();
        csr.params.not_before = now - time::Duration::minutes(5);
        csr.params.not_after = now + time::Duration::hours(24);
        csr.params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        csr.params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let cert = csr.signed_by(&issuer).map_err(bad)?;
        Ok(Response::new(identity::CertifyResponse {
            leaf_certificate: cert.der().to_vec(),
            intermediate_certificates: vec![],
            valid_until: Some((SystemTime::now() + Duration::from_secs(86_000)).into()),
        }))
    }
}

#[tonic::async_trait]
impl dst::destination_server::Destination for Mock {
    type GetStream = Watch<dst::Update>;
    type GetProfileStream = Watch<dst::DestinationProfile>;

    async fn get(&self, req: Request<dst::GetDestination>) -> Result<Response<Watch<dst::Update>>, Status> {
        let path = req.into_inner().path;
        let port: u16 = path.rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(80);
        let s = &self.0;
        use dst::protocol_hint::{self as hint, Protocol};
        let opaque = s.opaque.contains(&port);
        let addr = dst::WeightedAddr {
            addr: Some(SocketAddr::new(s.dst_ip, port).into()),
            weight: 10_000,
            tls_identity: Some(dst::TlsIdentity {
                strategy: Some(dst::tls_identity::Strategy::DnsLikeIdentity(
                    dst::tls_identity::DnsLikeIdentity { name: s.peer.clone() },
                )),
                server_name: Some(dst::tls_identity::DnsLikeIdentity { name: s.peer.clone() }),
            }),
            protocol_hint: Some(dst::ProtocolHint {
                protocol: if opaque {
                    Some(Protocol::Opaque(hint::Opaque {}))
                } else if s.h2 {
                    Some(Protocol::H2(hint::H2 {}))
                } else {
                    None
                },
                opaque_transport: (opaque || s.h2).then(|| dst::protocol_hint::OpaqueTransport {
                    inbound_port: s.inbound_port,
                }),
            }),
            metric_labels: [("pod".to_string(), "server".to_string())].into(),
            ..Default::default()
        };
        Ok(once(dst::Update {
            update: Some(dst::update::Update::Add(dst::WeightedAddrSet {
                addrs: vec![addr],
                metric_labels: [
                    ("service".to_string(), "app".to_string()),
                    ("namespace".to_string(), "bench".to_string()),
                ]
                .into(),
            })),
        }))
    }

    async fn get_profile(
        &self,
        req: Request<dst::GetDestination>,
    ) -> Result<Response<Watch<dst::DestinationProfile>>, Status> {
        let path = req.into_inner().path;
        let port: u16 = path.rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(80);
        Ok(once(dst::DestinationProfile {
            fully_qualified_name: NAME.into(),
            opaque_protocol: self.0.opaque.contains(&port),
            parent_ref: svc_md(port),
            ..Default::default()
        }))
    }
}

#[tonic::async_trait]
impl outbound::outbound_policies_server::OutboundPolicies for Mock {
    type WatchStream = Watch<outbound::OutboundPolicy>;

    async fn get(&self, _: Request<outbound::TrafficSpec>) -> Result<Response<outbound::OutboundPolicy>, Status> {
        Err(Status::unimplemented("the proxy watches"))
    }

    async fn watch(
        &self,
        req: Request<outbound::TrafficSpec>,
    ) -> Result<Response<Watch<outbound::OutboundPolicy>>, Status> {
        let req = req.into_inner();
        let port = match req.target {
            Some(outbound::traffic_spec::Target::Addr(net::TcpAddress { port, .. })) => port as u16,
            Some(outbound::traffic_spec::Target::Authority(a)) => {
                a.rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(80)
            }
            None => return Err(Status::invalid_argument("no target")),
        };
        let backend = outbound::Backend {
            metadata: svc_md(port),
            queue: Some(outbound::Queue {
                capacity: 100,
                failfast_timeout: secs(3),
            }),
            kind: Some(outbound::backend::Kind::Balancer(outbound::backend::BalanceP2c {
                discovery: Some(outbound::backend::EndpointDiscovery {
                    kind: Some(outbound::backend::endpoint_discovery::Kind::Dst(
                        outbound::backend::endpoint_discovery::DestinationGet {
                            path: format!("{NAME}:{port}"),
                        },
                    )),
                }),
                load: Some(outbound::backend::balance_p2c::Load::PeakEwma(
                    outbound::backend::balance_p2c::PeakEwma {
                        default_rtt: Duration::from_millis(30).try_into().ok(),
                        decay: secs(10),
                    },
                )),
            })),
        };
        let http = || outbound::HttpRoute {
            metadata: md("http"),
            hosts: vec![],
            rules: vec![outbound::http_route::Rule {
                matches: vec![http_route::HttpRouteMatch {
                    path: Some(http_route::PathMatch {
                        kind: Some(http_route::path_match::Kind::Prefix("/".into())),
                    }),
                    ..Default::default()
                }],
                backends: Some(outbound::http_route::Distribution {
                    kind: Some(outbound::http_route::distribution::Kind::FirstAvailable(
                        outbound::http_route::distribution::FirstAvailable {
                            backends: vec![outbound::http_route::RouteBackend {
                                backend: Some(backend.clone()),
                                ..Default::default()
                            }],
                        },
                    )),
                }),
                ..Default::default()
            }],
        };
        let opaque = outbound::proxy_protocol::Opaque {
            routes: vec![outbound::OpaqueRoute {
                metadata: md("opaque"),
                rules: vec![outbound::opaque_route::Rule {
                    backends: Some(outbound::opaque_route::Distribution {
                        kind: Some(outbound::opaque_route::distribution::Kind::FirstAvailable(
                            outbound::opaque_route::distribution::FirstAvailable {
                                backends: vec![outbound::opaque_route::RouteBackend {
                                    backend: Some(backend.clone()),
                                    ..Default::default()
                                }],
                            },
                        )),
                    }),
                    ..Default::default()
                }],
            }],
        };
        use outbound::proxy_protocol::{Detect, Http1, Http2, Kind};
        let kind = if self.0.opaque.contains(&port) {
            Kind::Opaque(opaque)
        } else {
            Kind::Detect(Detect {
                timeout: secs(10),
                http1: Some(Http1 {
                    routes: vec![http()],
                    ..Default::default()
                }),
                http2: Some(Http2 {
                    routes: vec![http()],
                    ..Default::default()
                }),
                opaque: Some(opaque),
            })
        };
        Ok(once(outbound::OutboundPolicy {
            metadata: svc_md(port),
            protocol: Some(outbound::ProxyProtocol { kind: Some(kind) }),
        }))
    }
}

#[tonic::async_trait]
impl inbound::inbound_server_policies_server::InboundServerPolicies for Mock {
    type WatchPortStream = Watch<inbound::Server>;

    async fn get_port(&self, _: Request<inbound::PortSpec>) -> Result<Response<inbound::Server>, Status> {
        Err(Status::unimplemented("the proxy watches"))
    }

    async fn watch_port(&self, req: Request<inbound::PortSpec>) -> Result<Response<Watch<inbound::Server>>, Status> {
        let port = req.into_inner().port as u16;
        use inbound::proxy_protocol::{Detect, Kind, Opaque};
        let authz = inbound::Authz {
            networks: vec![inbound::Network {
                net: Some(ipnet::IpNet::from(ipnet::Ipv4Net::default()).into()),
                except: vec![],
            }],
            authentication: Some(inbound::Authn {
                permit: Some(inbound::authn::Permit::MeshTls(inbound::authn::PermitMeshTls {
                    clients: Some(inbound::authn::permit_mesh_tls::Clients::Identities(
                        inbound::authn::permit_mesh_tls::PermitClientIdentities {
                            identities: vec![inbound::Identity {
                                name: linkerd_name("client"),
                            }],
                            suffixes: vec![],
                        },
                    )),
                })),
            }),
            labels: Default::default(),
            metadata: md("client-only"),
        };
        let kind = if self.0.opaque.contains(&port) {
            Kind::Opaque(Opaque {})
        } else {
            Kind::Detect(Detect {
                timeout: secs(10),
                http_routes: vec![inbound::HttpRoute {
                    metadata: md("default"),
                    hosts: vec![],
                    authorizations: vec![authz.clone()],
                    rules: vec![inbound::http_route::Rule {
                        matches: vec![http_route::HttpRouteMatch {
                            path: Some(http_route::PathMatch {
                                kind: Some(http_route::path_match::Kind::Prefix("/".into())),
                            }),
                            ..Default::default()
                        }],
                        filters: vec![],
                    }],
                }],
                http_local_rate_limit: None,
            })
        };
        Ok(once(inbound::Server {
            protocol: Some(inbound::ProxyProtocol { kind: Some(kind) }),
            server_ips: vec![],
            authorizations: vec![authz],
            labels: [
                ("name".to_string(), "app".to_string()),
                ("kind".to_string(), "server".to_string()),
            ]
            .into(),
        }))
    }
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Listens here, in plaintext.
    #[arg(long)]
    addr: SocketAddr,
    /// What `certs` has written.
    #[arg(long)]
    certs: PathBuf,
    /// The pod "server".
    #[arg(long)]
    server: IpAddr,
    /// Where its sidecar listens.
    #[arg(long, default_value_t = 4143)]
    inbound_port: u32,
    /// Ports whose bytes are not looked at.
    #[arg(long, value_delimiter = ',')]
    opaque: Vec<u16>,
    /// Hints that HTTP/1 may be carried over HTTP/2.
    #[arg(long)]
    http2: bool,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let mock = Mock(Arc::new(State {
        ca_pem: std::fs::read_to_string(options.certs.join("ca.pem"))?,
        ca_key: std::fs::read_to_string(options.certs.join("ca.key"))?,
        dst_ip: options.server,
        inbound_port: options.inbound_port,
        peer: linkerd_name("server"),
        opaque: options.opaque,
        h2: options.http2,
    }));
    tonic::transport::Server::builder()
        .add_service(identity::identity_server::IdentityServer::new(mock.clone()))
        .add_service(dst::destination_server::DestinationServer::new(mock.clone()))
        .add_service(outbound::outbound_policies_server::OutboundPoliciesServer::new(
            mock.clone(),
        ))
        .add_service(inbound::inbound_server_policies_server::InboundServerPoliciesServer::new(mock))
        .serve(options.addr)
        .await?;
    Ok(())
}
