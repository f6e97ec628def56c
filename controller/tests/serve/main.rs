//! The server over real TLS on loopback, without Kubernetes.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use outrigger_api::discovery::discovery_client::DiscoveryClient;
use outrigger_api::discovery::{Endpoint, Pod, Target, WatchTargetRequest, WatchWorkloadRequest, backend, target};
use outrigger_api::identity::IssueRequest;
use outrigger_api::identity::identity_client::IdentityClient;
use outrigger_api::spiffe::SpiffeId;
use outrigger_controller::discovery::{self, Discover, FixedTargets};
use outrigger_controller::index::Index;
use outrigger_controller::metrics::Metrics;
use outrigger_controller::objects::{Kind, from_k8s};
use outrigger_issuer::ca::{Ca, IssuedSvid, spiffe_id};
use outrigger_issuer::server::{ServerTls, serve_within};
use outrigger_issuer::service::{Issuer, StaticTokens};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint as TonicEndpoint};

const HOUR: Duration = Duration::from_secs(3600);
const TARGET: &str = "10.96.0.1:80";
const BUDGET: u64 = 64 << 20;

mod attacks;
mod memory;
mod sessions;

struct Server {
    address: SocketAddr,
    ca: watch::Sender<Arc<Ca>>,
    metrics: Arc<Metrics>,
    targets: Arc<FixedTargets>,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn controller_id() -> SpiffeId {
    SpiffeId::new("cluster.local", "outrigger", "outrigger-controller").unwrap()
}

fn pod(address: &str) -> Target {
    Target {
        kind: Some(target::Kind::Pod(Pod {
            endpoint: Some(Endpoint {
                address: address.to_owned(),
                ..Endpoint::default()
            }),
            ..Pod::default()
        })),
    }
}

async fn start() -> Server {
    let targets = Arc::new(FixedTargets::new([(TARGET.parse().unwrap(), pod("10.0.0.1:80"))]));
    start_with(targets.clone(), targets).await
}

async fn start_with(discovery: Arc<dyn Discover>, targets: Arc<FixedTargets>) -> Server {
    start_of(Ca::generate("cluster.local").unwrap(), BUDGET, discovery, targets).await
}

async fn start_of(ca: Ca, budget: u64, discovery: Arc<dyn Discover>, targets: Arc<FixedTargets>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ca = watch::Sender::new(Arc::new(ca));
    let metrics = Arc::new(Metrics::default());
    let tokens = StaticTokens::new().with("token-of-orders", "shop", "orders");
    let issuer = Issuer::new(ca.subscribe(), tokens, "cluster.local", HOUR, metrics.issuer());
    let tls = ServerTls {
        ca: ca.subscribe(),
        id: controller_id(),
        ttl: HOUR,
        metrics: metrics.issuer(),
    };
    let shutdown = CancellationToken::new();
    let discovery = discovery::routes(discovery, metrics.clone(), ca.subscribe(), shutdown.clone());
    let served = tokio::spawn(serve_within(budget, listener, tls, issuer, discovery, shutdown.clone()));
    Server {
        address,
        ca,
        metrics,
        targets,
        shutdown,
        served,
    }
}

impl Server {
    async fn connect(&self, svid: Option<IssuedSvid>) -> Channel {
        self.try_connect(svid, &[&rustls::version::TLS13]).await.unwrap()
    }

    async fn try_connect(
        &self,
        svid: Option<IssuedSvid>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Result<Channel, tonic::transport::Error> {
        let (config, address) = (Arc::new(self.client_config(svid, versions)), self.address);
        let connect = tower::service_fn(move |_| {
            let config = config.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tls(config, TcpStream::connect(address).await?).await?)) }
        });
        let endpoint = TonicEndpoint::from_static("http://controller.invalid");
        endpoint.connect_with_connector(connect).await
    }

    fn client_config(
        &self,
        svid: Option<IssuedSvid>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(IsController(self.ca.borrow().clone())));
        let mut config = match svid {
            Some(svid) => config.with_client_auth_cert(svid.chain, svid.key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    fn svid(&self, namespace: &str, account: &str) -> IssuedSvid {
        let id = SpiffeId::new("cluster.local", namespace, account).unwrap();
        self.ca.borrow().issue(&id, HOUR).unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(8), self.served)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// As a sidecar checks it: a chain to the bundle, and the controller's SPIFFE ID.
#[derive(Debug)]
struct IsController(Arc<Ca>);

impl ServerCertVerifier for IsController {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(self.0.bundle().iter().cloned());
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &rustls::server::ParsedCertificate::try_from(leaf)?,
            &roots,
            intermediates,
            now,
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .all,
        )?;
        assert_eq!(spiffe_id(leaf), Some(controller_id()));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

async fn tls(config: Arc<ClientConfig>, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("controller.invalid").unwrap();
    tokio_rustls::TlsConnector::from(config).connect(name, stream).await
}

fn csr(name: &str) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[tokio::test]
async fn a_token_and_a_csr_become_an_svid() {
    let server = start().await;
    let mut client = IdentityClient::new(server.connect(None).await);
    let request = |token: &str, csr: Vec<u8>| IssueRequest {
        csr,
        token: token.to_owned(),
    };
    let own = "spiffe://cluster.local/ns/shop/sa/orders";
    let answer = client
        .issue(request("token-of-orders", csr(own)))
        .await
        .unwrap()
        .into_inner();
    let leaf = CertificateDer::from(answer.certificate_chain[0].clone());
    assert_eq!(spiffe_id(&leaf).unwrap().as_str(), own);
    assert_eq!(answer.certificate_chain.len(), 1);
    assert_eq!(answer.trust_bundle, [server.ca.borrow().bundle()[0].to_vec()]);

    let other = csr("spiffe://cluster.local/ns/shop/sa/admin");
    for (request, code) in [
        (request("somebody-elses", csr(own)), Code::Unauthenticated),
        (request("", csr(own)), Code::Unauthenticated),
        (request(&"x".repeat(20_000), csr(own)), Code::Unauthenticated),
        (request("token-of-orders", other), Code::InvalidArgument),
        (request("token-of-orders", b"garbage".to_vec()), Code::InvalidArgument),
    ] {
        assert_eq!(client.issue(request).await.unwrap_err().code(), code);
    }
    let text = server.metrics.encode();
    assert!(text.contains("svids_issued_total{result=\"ok\"} 1"), "{text}");
    assert!(
        text.contains("svids_issued_total{result=\"unauthenticated\"} 3"),
        "{text}"
    );
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn discovery_is_for_workloads_only() {
    let server = start().await;
    let request = || WatchTargetRequest {
        address: TARGET.to_owned(),
        namespace: "shop".to_owned(),
        pod: String::new(),
    };
    let mut nobody = DiscoveryClient::new(server.connect(None).await);
    assert_eq!(
        nobody.watch_target(request()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    let mut other = DiscoveryClient::new(server.connect(Some(server.svid("elsewhere", "default"))).await);
    assert_eq!(
        other.watch_target(request()).await.unwrap_err().code(),
        Code::PermissionDenied
    );

    let mut client = DiscoveryClient::new(server.connect(Some(server.svid("shop", "orders"))).await);
    let mut updates = client.watch_target(request()).await.unwrap().into_inner();
    assert_eq!(updates.message().await.unwrap().unwrap(), pod("10.0.0.1:80"));
    server.targets.replace(TARGET.parse().unwrap(), pod("10.0.0.2:80"));
    assert_eq!(updates.message().await.unwrap().unwrap(), pod("10.0.0.2:80"));

    let malformed = WatchTargetRequest {
        address: "orders:80".to_owned(),
        namespace: String::new(),
        pod: String::new(),
    };
    assert_eq!(
        client.watch_target(malformed).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let long = "x".repeat(254);
    let too_long = WatchTargetRequest {
        pod: long.clone(),
        ..request()
    };
    let refused = client.watch_target(too_long).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let too_long = WatchWorkloadRequest {
        namespace: "shop".to_owned(),
        pod: long,
    };
    let refused = client.watch_workload(too_long).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let external = WatchTargetRequest {
        address: "192.0.2.1:443".to_owned(),
        namespace: String::new(),
        pod: String::new(),
    };
    let mut external = client.watch_target(external).await.unwrap().into_inner();
    assert_eq!(external.message().await.unwrap().unwrap(), Target::default());
    let workload = WatchWorkloadRequest {
        namespace: "shop".to_owned(),
        pod: "orders-1".to_owned(),
    };
    let mut workload = client.watch_workload(workload).await.unwrap().into_inner();
    assert!(workload.message().await.unwrap().is_some());
    assert!(server.metrics.encode().contains("streams_open{kind=\"target\"} 2"));

    // A shutdown ends the streams with a word, and does not wait for them to end by themselves.
    server.shutdown.cancel();
    assert_eq!(updates.message().await.unwrap_err().code(), Code::Unavailable);
    server.stop().await;
}

/// The Service at [`TARGET`] for callers on their own node only, with one endpoint on each node.
fn apply_local_service(index: &Index, on_n1: &str, on_n2: &str) {
    let service = json!({
        "metadata": {"namespace": "shop", "name": "agent"},
        "spec": {
            "clusterIPs": ["10.96.0.1"], "internalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80}],
        },
    });
    let slice = json!({
        "metadata": {"namespace": "shop", "name": "agent-x", "labels": {"kubernetes.io/service-name": "agent"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
        "endpoints": [{"addresses": [on_n1], "nodeName": "n1"}, {"addresses": [on_n2], "nodeName": "n2"}],
    });
    let (name, service) = from_k8s::service(&serde_json::from_value(service).unwrap()).unwrap();
    index.apply(name, service);
    let (name, slice) = from_k8s::endpoint_slice(&serde_json::from_value(slice).unwrap()).unwrap();
    index.apply(name, slice);
    index.flush();
}

fn addresses(target: &Target) -> Vec<String> {
    let Some(target::Kind::Service(service)) = &target.kind else {
        panic!("{target:?}");
    };
    let Some(backend::Kind::Endpoints(endpoints)) = &service.backends[0].kind else {
        panic!("{target:?}");
    };
    endpoints.endpoints.iter().map(|e| e.address.clone()).collect()
}

#[tokio::test]
async fn endpoints_are_those_of_where_the_caller_runs() {
    let index = Index::new("cluster.local", Arc::default());
    // These connections come from 127.0.0.1, which is the address of a pod of payments.
    for (account, pod, node, ip) in [
        ("orders", "orders-1", "n1", "10.244.0.1"),
        ("orders", "orders-2", "n2", "10.244.0.2"),
        ("payments", "payments-1", "n2", "127.0.0.1"),
        ("payments", "payments-2", "n1", "10.244.0.3"),
    ] {
        let pod = json!({
            "metadata": {"namespace": "shop", "name": pod},
            "spec": {"serviceAccountName": account, "nodeName": node, "containers": []},
            "status": {"podIPs": [{"ip": ip}]},
        });
        let (name, pod) = from_k8s::pod(&serde_json::from_value(pod).unwrap()).unwrap();
        index.apply(name, pod);
    }
    apply_local_service(&index, "10.0.0.1", "10.0.0.2");
    index.set_synced();
    let server = start_with(index.clone(), Arc::default()).await;
    let mut streams = Vec::new();
    for (account, pod, expected) in [
        ("orders", "orders-1", &["10.0.0.1:80"][..]),
        ("orders", "orders-2", &["10.0.0.2:80"]),
        // A sidecar of the version before says nothing, and its address is another account's.
        ("orders", "", &[]),
        // Nobody is another account's pod by saying so.
        ("orders", "payments-1", &[]),
        // The address of its connection tells more than its word.
        ("payments", "payments-2", &["10.0.0.2:80"]),
        ("payments", "", &["10.0.0.2:80"]),
    ] {
        let channel = server.connect(Some(server.svid("shop", account))).await;
        let request = WatchTargetRequest {
            address: TARGET.to_owned(),
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
        };
        let mut stream = DiscoveryClient::new(channel)
            .watch_target(request)
            .await
            .unwrap()
            .into_inner();
        let first = stream.message().await.unwrap().unwrap();
        assert_eq!(addresses(&first), expected, "{account} {pod}");
        streams.push(stream);
    }
    // A change on one node is sent to callers there alone: for those on the other, the next message is the next change.
    for (on_n1, on_n2, of, expected) in [
        ("10.0.0.3", "10.0.0.2", 0, "10.0.0.3:80"),
        ("10.0.0.3", "10.0.0.4", 1, "10.0.0.4:80"),
    ] {
        apply_local_service(&index, on_n1, on_n2);
        let next = streams[of].message().await.unwrap().unwrap();
        assert_eq!(addresses(&next), [expected]);
    }
    drop(streams);
    server.stop().await;
}

#[tokio::test]
async fn tls_1_2_and_unknown_roots_are_refused() {
    let server = start().await;
    assert!(server.try_connect(None, &[&rustls::version::TLS12]).await.is_err());
    let stranger = Ca::generate("cluster.local").unwrap();
    let id = SpiffeId::new("cluster.local", "shop", "orders").unwrap();
    let channel = server
        .try_connect(Some(stranger.issue(&id, HOUR).unwrap()), &[&rustls::version::TLS13])
        .await;
    // In TLS 1.3 the client learns of it only when it reads.
    if let Ok(channel) = channel {
        assert!(
            DiscoveryClient::new(channel)
                .watch_target(WatchTargetRequest::default())
                .await
                .is_err()
        );
    }
    server.stop().await;
}

/// An SVID lives on where its pod is gone, and so may a copy of its key.
#[tokio::test]
async fn an_identity_whose_last_pod_is_gone_learns_nothing() {
    let index = Index::new("cluster.local", Arc::new(Metrics::default()));
    let pod = |name: &str| {
        let pod = json!({
            "metadata": {"namespace": "shop", "name": name, "uid": name},
            "spec": {"serviceAccountName": "orders", "containers": []},
        });
        from_k8s::pod(&serde_json::from_value(pod).unwrap()).unwrap()
    };
    for name in ["orders-1", "orders-2"] {
        let (name, object) = pod(name);
        index.apply(name, object);
    }
    index.set_synced();
    let server = start_with(index.clone(), Arc::default()).await;
    let mut client = DiscoveryClient::new(server.connect(Some(server.svid("shop", "orders"))).await);
    let request = WatchTargetRequest {
        address: TARGET.to_owned(),
        ..WatchTargetRequest::default()
    };
    index.delete(Kind::Pod, pod("orders-1").0);
    assert!(client.watch_target(request.clone()).await.is_ok(), "one is left");
    index.delete(Kind::Pod, pod("orders-2").0);
    let refused = client.watch_target(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    drop(client);
    server.stop().await;
}

/// A root may have signed for other trust domains too.
#[tokio::test]
async fn another_trust_domain_is_refused() {
    let server = start().await;
    let id = SpiffeId::new("elsewhere.test", "shop", "orders").unwrap();
    let svid = server.ca.borrow().issue(&id, HOUR).unwrap();
    let request = WatchTargetRequest {
        address: TARGET.to_owned(),
        ..WatchTargetRequest::default()
    };
    // In TLS 1.3 the client learns of it only when it reads.
    if let Ok(channel) = server.try_connect(Some(svid), &[&rustls::version::TLS13]).await {
        let answer = DiscoveryClient::new(channel).watch_target(request).await;
        assert!(answer.is_err());
    }
    assert!(server.metrics.encode().contains("handshakes_failed_total 1"));
    server.stop().await;
}

/// A new one, whose bundle has other roots too.
fn ca_that_trusts(others: &str) -> Ca {
    let mut pem = Ca::generate("cluster.local").unwrap().pem().clone();
    pem.roots = Some(format!("{}{others}", pem.certificates));
    Ca::from_pem(pem, "cluster.local", std::time::SystemTime::now()).unwrap()
}

/// A sidecar's session, and a stream as the version before has it.
struct Connected {
    session: sessions::Session,
    stream: tonic::Streaming<Target>,
}

impl Connected {
    async fn open(server: &Server, svid: IssuedSvid) -> Option<Self> {
        let channel = server.try_connect(Some(svid), &[&rustls::version::TLS13]).await.ok()?;
        let request = WatchTargetRequest {
            address: TARGET.to_owned(),
            ..WatchTargetRequest::default()
        };
        let stream = DiscoveryClient::new(channel.clone()).watch_target(request).await.ok()?;
        let session = sessions::Session::open(channel, sessions::hello("")).await.ok()?;
        session.say(sessions::want(TARGET)).await;
        let mut connected = Self {
            session,
            stream: stream.into_inner(),
        };
        connected.hears().await.then_some(connected)
    }

    /// Whether it is told what is behind the address.
    async fn hears(&mut self) -> bool {
        let before = self.session.log.len();
        let routes = format!("routes {TARGET}");
        while !self.session.log[before..].contains(&routes) {
            if self.session.next().await.is_err() {
                return false;
            }
        }
        self.stream.message().await.is_ok()
    }

    /// Waits for the end of both.
    async fn ended(mut self) {
        while self.session.next().await.is_ok() {}
        while self.stream.message().await.is_ok() {}
    }
}

/// Whoever holds on to a connection has it no longer than his root is trusted.
#[tokio::test]
async fn a_connection_ends_when_its_root_is_removed() {
    let server = start().await;
    let old = server.ca.borrow().clone();
    let mut first = Connected::open(&server, server.svid("shop", "orders")).await.unwrap();
    let both = ca_that_trusts(&old.bundle_pem());
    server.ca.send_replace(Arc::new(both));
    let taken_up = async {
        loop {
            if let Some(connected) = Connected::open(&server, server.svid("shop", "orders")).await {
                return connected;
            }
        }
    };
    let mut second = tokio::time::timeout(Duration::from_secs(60), taken_up).await.unwrap();
    server.targets.replace(TARGET.parse().unwrap(), pod("10.0.0.2:80"));
    assert!(first.hears().await && second.hears().await);

    let mut new = server.ca.borrow().pem().clone();
    new.roots = None;
    let new = Ca::from_pem(new, "cluster.local", std::time::SystemTime::now()).unwrap();
    server.ca.send_replace(Arc::new(new));
    tokio::time::timeout(Duration::from_secs(60), first.ended())
        .await
        .unwrap();
    server.targets.replace(TARGET.parse().unwrap(), pod("10.0.0.3:80"));
    assert!(second.hears().await);
    drop(second);
    server.stop().await;
}

/// Nor longer than his SVID lives, also where nothing happens.
#[tokio::test]
async fn a_connection_ends_with_the_svid() {
    let server = start().await;
    let id = SpiffeId::new("cluster.local", "shop", "orders").unwrap();
    let opened = async {
        loop {
            // On a busy machine it may be over before there is a connection.
            let short = server.ca.borrow().issue(&id, Duration::from_secs(3)).unwrap();
            if let Some(connected) = Connected::open(&server, short).await {
                return connected;
            }
        }
    };
    let short = tokio::time::timeout(Duration::from_secs(60), opened).await.unwrap();
    let mut long = Connected::open(&server, server.svid("shop", "orders")).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), short.ended())
        .await
        .unwrap();
    server.targets.replace(TARGET.parse().unwrap(), pod("10.0.0.2:80"));
    assert!(long.hears().await);
    drop(long);
    server.stop().await;
}

#[tokio::test]
async fn a_new_ca_is_in_force_at_once_and_streams_live_on() {
    let server = start().await;
    let mut client = DiscoveryClient::new(server.connect(Some(server.svid("shop", "orders"))).await);
    let request = WatchTargetRequest {
        address: TARGET.to_owned(),
        namespace: "shop".to_owned(),
        pod: String::new(),
    };
    let mut updates = client.watch_target(request.clone()).await.unwrap().into_inner();
    updates.message().await.unwrap().unwrap();

    let old = server.ca.borrow().bundle_pem();
    server.ca.send_replace(Arc::new(ca_that_trusts(&old)));
    // Until the server has taken up the new root, handshakes fail.
    let mut connected = None;
    for _ in 0..100 {
        connected = server
            .try_connect(Some(server.svid("shop", "orders")), &[&rustls::version::TLS13])
            .await
            .ok();
        if connected.is_some() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut new = DiscoveryClient::new(connected.unwrap());
    new.watch_target(request).await.unwrap();
    server.targets.replace(TARGET.parse().unwrap(), pod("10.0.0.3:80"));
    assert_eq!(updates.message().await.unwrap().unwrap(), pod("10.0.0.3:80"));
    drop((client, new, updates));
    server.stop().await;
}
