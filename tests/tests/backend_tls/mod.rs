//! BackendTLSPolicy as callers' sidecars carry it out: TLS with servers outside of the mesh, in HTTP/1, HTTP/2, gRPC and bytes.

mod hostile;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::{backend_tls, subject_alt_name};
use outrigger_controller::discovery::FixedTargets;
use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{Authority, Http, SOON, Seen, Sidecar, request, text, until};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const DAY: Duration = Duration::from_secs(86_400);
const NAME: &str = "pay.example.com";
const ID: &str = "spiffe://example.com/ns/pay/sa/pay";
const H1: &[u8] = b"http/1.1";
const H2: &[u8] = b"h2";
/// What nobody may read who is no server that is believed.
const SECRET: &str = "s3cret";

/// An authority, which signs certificates of servers.
struct Ca {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        Self { der, issuer }
    }

    /// Of a server with the name and the SPIFFE ID.
    fn server(&self, expired: bool) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let id = rcgen::SanType::URI(ID.try_into().unwrap());
        params.subject_alt_names.push(id);
        if expired {
            params.not_after = time::OffsetDateTime::from_unix_timestamp(1_000_000_000).unwrap();
        }
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (der, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }
}

/// A server outside of the mesh. With ALPN it speaks HTTP, and says in its answers how it was asked: "SERVER ALPN SCHEME"; without, it answers
/// requests as well, and echoes what is none.
struct Server {
    address: SocketAddr,
    /// Handshakes that ended well.
    shaken: Arc<AtomicUsize>,
    /// The server that was asked for last.
    asked: Arc<Mutex<String>>,
}

/// Protocols by their names in ALPN.
type Alpn = &'static [&'static [u8]];

#[derive(Clone, Copy, Default)]
struct Kind {
    alpn: Alpn,
    versions: Option<&'static SupportedProtocolVersion>,
    expired: bool,
    echoes: bool,
}

/// What it has to accept TLS with.
fn acceptor(ca: &Ca, kind: Kind) -> TlsAcceptor {
    let (certificate, key) = ca.server(kind.expired);
    let versions = kind.versions.map_or(vec![&TLS13, &TLS12], |version| vec![version]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = kind.alpn.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

async fn server(ca: &Ca, kind: Kind) -> Server {
    let acceptor = acceptor(ca, kind);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server {
        address: listener.local_addr().unwrap(),
        shaken: Arc::default(),
        asked: Arc::default(),
    };
    let (shaken, asked) = (Arc::clone(&server.shaken), Arc::clone(&server.asked));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, shaken, asked) = (acceptor.clone(), Arc::clone(&shaken), Arc::clone(&asked));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                shaken.fetch_add(1, Ordering::SeqCst);
                let connection = stream.get_ref().1;
                let name = connection.server_name().unwrap_or("nobody").to_owned();
                let alpn = connection.alpn_protocol().unwrap_or(b"-").to_vec();
                let alpn = String::from_utf8(alpn).unwrap();
                asked.lock().unwrap().clone_from(&name);
                if kind.echoes {
                    let (mut read, mut write) = split(stream);
                    let _ = copy(&mut read, &mut write).await;
                    return;
                }
                let answer = move |request: Request<Incoming>| {
                    let scheme = request.uri().scheme_str().unwrap_or("-").to_owned();
                    let answer = Response::new(text(format!("{name} {alpn} {scheme}")));
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                };
                let served = auto::Builder::new(TokioExecutor::new());
                let _ = served.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    server
}

/// A server that speaks no TLS, and what it was sent.
async fn plaintext() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, all) = (listener.local_addr().unwrap(), Arc::clone(&heard));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    all.lock().unwrap().extend_from_slice(&buffer[..length]);
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
        }
    });
    (address, heard)
}

/// Whether any of what is meant for TLS is in there as it is.
fn has_of_a_request(heard: &[u8]) -> bool {
    let has = |part: &[u8]| heard.windows(part.len()).any(|window| window == part);
    has(SECRET.as_bytes()) || has(b"POST") || has(b"PRI * HTTP")
}

fn policy(trusted: &[&Ca], names: &[&str]) -> proto::BackendTls {
    let san = |name: &&str| proto::SubjectAltName {
        kind: Some(match name.contains(':') {
            true => subject_alt_name::Kind::Uri((*name).to_owned()),
            false => subject_alt_name::Kind::Hostname((*name).to_owned()),
        }),
    };
    proto::BackendTls {
        policy: "shop/pay".to_owned(),
        hostname: NAME.to_owned(),
        subject_alt_names: names.iter().map(san).collect(),
        trust: Some(backend_tls::Trust::Ca(proto::CaCertificates {
            certificates: trusted.iter().map(|ca| ca.der.to_vec()).collect(),
        })),
    }
}

pub(crate) fn target(server: SocketAddr, protocol: proto::Protocol, tls: Option<proto::BackendTls>) -> proto::Target {
    let name = proto::ServiceRef {
        namespace: "shop".to_owned(),
        name: "pay".to_owned(),
        port: 443,
    };
    proto::Target {
        kind: Some(proto::target::Kind::Service(proto::Service {
            r#ref: Some(name.clone()),
            protocol: protocol.into(),
            backends: vec![proto::Backend {
                r#ref: Some(name),
                kind: Some(proto::backend::Kind::Endpoints(proto::Endpoints {
                    endpoints: vec![proto::Endpoint {
                        address: server.to_string(),
                        ..proto::Endpoint::default()
                    }],
                })),
                tls,
                ..proto::Backend::default()
            }],
            ..proto::Service::default()
        })),
    }
}

/// A sidecar whose app calls one Service.
pub(crate) struct Calls {
    targets: Arc<FixedTargets>,
    web: RunningProxy,
    _authority: Authority,
}

const SERVICE: ([u8; 4], u16) = ([10, 96, 0, 1], 443);

impl Calls {
    pub(crate) async fn start(target: proto::Target) -> Self {
        let targets = Arc::new(FixedTargets::new([(SERVICE.into(), target)]));
        let authority = Authority::with_discovery(&["web"], DAY, Some(Arc::clone(&targets) as _)).await;
        let web = Sidecar::new("web").calls_address(SERVICE.into());
        let web = web
            .start_with(&authority, |config| config.detect_timeout = Duration::from_millis(300))
            .await;
        Self {
            targets,
            web,
            _authority: authority,
        }
    }

    pub(crate) fn to(&self) -> SocketAddr {
        self.web.outbound[0]
    }

    fn replace(&self, target: proto::Target) {
        self.targets.replace(SERVICE.into(), target);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
    Grpc,
}

const EACH: [Speaks; 3] = [Speaks::Http1, Speaks::Http2, Speaks::Grpc];

impl Speaks {
    fn client(self) -> Http {
        match self {
            Self::Http1 => Http::one(),
            Self::Http2 | Self::Grpc => Http::two(),
        }
    }

    async fn ask(self, client: &Http, to: SocketAddr) -> Seen {
        let mut call = request(Method::POST, to, "/pay.Pay/Pay", SECRET);
        if self == Self::Grpc {
            let headers = call.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("te", HeaderValue::from_static("trailers"));
        }
        client.send(call).await.unwrap()
    }

    fn is_refused(self, seen: &Seen) -> bool {
        let status = match self {
            Self::Grpc => seen.headers.get("grpc-status").is_some_and(|status| status == "14"),
            _ => seen.status == 503,
        };
        status && seen.error() == Some("tls-failed")
    }
}

fn says(seen: &Seen) -> String {
    let message = seen
        .headers
        .get("grpc-message")
        .map(|message| message.to_str().unwrap());
    format!(
        "{} {}",
        message.unwrap_or_default(),
        String::from_utf8_lossy(&seen.body)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_the_server_that_the_policy_believes_and_no_other() {
    let (ca, other) = (Ca::new(), Ca::new());
    let both = Kind {
        alpn: &[H2, H1],
        ..Kind::default()
    };
    let versioned = |version| Kind {
        versions: Some(version),
        ..both
    };
    let expired = Kind { expired: true, ..both };
    let nobody = proto::BackendTls {
        trust: Some(backend_tls::Trust::Nobody("it has no certificate".to_owned())),
        ..policy(&[], &[])
    };
    let system = proto::BackendTls {
        trust: Some(backend_tls::Trust::System(proto::SystemRoots {})),
        ..policy(&[], &[])
    };
    let other_name = proto::BackendTls {
        hostname: "other.example.com".to_owned(),
        ..policy(&[&ca], &[])
    };
    for (name, kind, tls, works) in [
        ("the right CA", both, policy(&[&ca], &[]), Ok(())),
        ("one of two CAs", both, policy(&[&other, &ca], &[]), Ok(())),
        ("TLS 1.2", versioned(&TLS12), policy(&[&ca], &[]), Ok(())),
        ("TLS 1.3", versioned(&TLS13), policy(&[&ca], &[]), Ok(())),
        (
            "another CA",
            both,
            policy(&[&other], &[]),
            Err("none of the policy's CA certificates"),
        ),
        (
            "the public CAs",
            both,
            system,
            Err("none of the policy's CA certificates"),
        ),
        ("another name", both, other_name, Err("other.example.com")),
        ("a URI", both, policy(&[&ca], &[ID]), Ok(())),
        (
            "another URI",
            both,
            policy(&[&ca], &["spiffe://example.com/x"]),
            Err("none of the subjectAltNames"),
        ),
        (
            "another listed name",
            both,
            policy(&[&ca], &["b.example.com"]),
            Err("none of the subjectAltNames"),
        ),
        ("an expired certificate", expired, policy(&[&ca], &[]), Err("expired")),
        ("nobody", both, nobody, Err("it has no certificate")),
    ] {
        let server = server(&ca, kind).await;
        let calls = Calls::start(target(server.address, proto::Protocol::Unspecified, Some(tls))).await;
        for speaks in EACH {
            let seen = speaks.ask(&speaks.client(), calls.to()).await;
            match works {
                Ok(()) => {
                    let expected = match speaks {
                        Speaks::Http1 => format!("{NAME} http/1.1 -"),
                        _ => format!("{NAME} h2 https"),
                    };
                    assert_eq!(says(&seen).trim(), expected, "{name}, {speaks:?}");
                }
                Err(part) => {
                    assert!(speaks.is_refused(&seen), "{name}, {speaks:?}: {}", seen.status);
                    assert!(says(&seen).contains(part), "{name}, {speaks:?}: {}", says(&seen));
                }
            }
        }
    }
}

/// Which ALPN protocols a server knows, and whether it answers requests of HTTP/1 and of HTTP/2.
#[tokio::test(flavor = "multi_thread")]
async fn http_2_needs_a_server_that_chooses_it() {
    let ca = Ca::new();
    for (alpn, one, two) in [
        (&[][..], true, false),
        (&[H1], true, false),
        (&[H2], false, true),
        (&[H1, H2], true, true),
    ] {
        let kind = Kind {
            alpn,
            ..Kind::default()
        };
        let server = server(&ca, kind).await;
        let tls = Some(policy(&[&ca], &[]));
        let calls = Calls::start(target(server.address, proto::Protocol::Unspecified, tls)).await;
        for speaks in EACH {
            let works = if speaks == Speaks::Http1 { one } else { two };
            let seen = speaks.ask(&speaks.client(), calls.to()).await;
            match works {
                true => assert_eq!(seen.error(), None, "{alpn:?}, {speaks:?}: {}", says(&seen)),
                false => {
                    assert!(speaks.is_refused(&seen), "{alpn:?}, {speaks:?}");
                    let protocol = if speaks == Speaks::Http1 { "HTTP/1.1" } else { "HTTP/2" };
                    assert!(says(&seen).contains(protocol), "{}", says(&seen));
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_plaintext_is_sent_nothing_of_what_is_meant_for_tls() {
    let ca = Ca::new();
    let (address, heard) = plaintext().await;
    for protocol in [proto::Protocol::Unspecified, proto::Protocol::Opaque] {
        let calls = Calls::start(target(address, protocol, Some(policy(&[&ca], &[])))).await;
        if protocol == proto::Protocol::Opaque {
            let mut stream = TcpStream::connect(calls.to()).await.unwrap();
            stream.write_all(SECRET.as_bytes()).await.unwrap();
            let read = timeout(SOON, stream.read(&mut [0; 8])).await.unwrap();
            assert!(!matches!(read, Ok(1..)), "{read:?}");
        } else {
            for speaks in EACH {
                let seen = speaks.ask(&speaks.client(), calls.to()).await;
                assert!(speaks.is_refused(&seen), "{speaks:?}: {}", seen.status);
                assert!(says(&seen).contains("no TLS"), "{}", says(&seen));
            }
        }
    }
    let heard = heard.lock().unwrap().clone();
    // Handshake records of TLS, and no byte of a request.
    assert_eq!(heard.first(), Some(&0x16));
    assert!(!has_of_a_request(&heard));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_put_into_tls_unless_the_app_speaks_it_itself() {
    let ca = Ca::new();
    let kind = Kind {
        echoes: true,
        ..Kind::default()
    };
    let server = server(&ca, kind).await;
    for protocol in [
        proto::Protocol::Opaque,
        proto::Protocol::Unspecified,
        proto::Protocol::Tls,
    ] {
        let calls = Calls::start(target(server.address, protocol, Some(policy(&[&ca], &[])))).await;
        let mut stream = TcpStream::connect(calls.to()).await.unwrap();
        let word = b"\x00\x01hello";
        stream.write_all(word).await.unwrap();
        let mut heard = [0; 7];
        timeout(SOON, stream.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(&heard, word, "{protocol:?}");
        assert_eq!(*server.asked.lock().unwrap(), NAME);

        // The app's own TLS is with the server itself: it asks for another name, and shows what it likes.
        let mut roots = RootCertStore::empty();
        roots.add(ca.der.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName(roots)))
            .with_no_client_auth();
        let stream = TcpStream::connect(calls.to()).await.unwrap();
        let name = ServerName::try_from("own.example.com").unwrap();
        let connected = timeout(SOON, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
        let mut stream = connected.unwrap().unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        timeout(SOON, stream.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(
            (&heard, &**server.asked.lock().unwrap()),
            (b"hello", "own.example.com"),
            "{protocol:?}"
        );
    }
}

/// Believes the authority, whatever the name is.
#[derive(Debug)]
struct AnyName(RootCertStore);

impl rustls::client::danger::ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let certificate = rustls::server::ParsedCertificate::try_from(end_entity)?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.0,
            intermediates,
            now,
            algorithms.all,
        )?;
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_another_trust_are_not_used_again() {
    let (old, new) = (Ca::new(), Ca::new());
    let kind = Kind {
        alpn: &[H2, H1],
        ..Kind::default()
    };
    for speaks in [Speaks::Http1, Speaks::Http2] {
        let server = server(&old, kind).await;
        let with = |tls| target(server.address, proto::Protocol::Unspecified, tls);
        let calls = Calls::start(with(Some(policy(&[&old], &[])))).await;
        let (client, to) = (speaks.client(), calls.to());
        let shaken = || server.shaken.load(Ordering::SeqCst);
        for _ in 0..3 {
            assert_eq!(speaks.ask(&client, to).await.error(), None);
        }
        assert_eq!(shaken(), 1, "it is kept: {speaks:?}");
        // The server has not changed yet: what was believed is not any more.
        calls.replace(with(Some(policy(&[&new], &[]))));
        until("the other authority holds", async || {
            speaks.is_refused(&speaks.ask(&client, to).await)
        })
        .await;
        // Both: a rotation that goes on.
        calls.replace(with(Some(policy(&[&new, &old], &[]))));
        until("both hold", async || speaks.ask(&client, to).await.error().is_none()).await;
        assert!(shaken() >= 2, "on a connection of its own: {speaks:?}");
        // Without a policy it is plaintext, which this server does not take.
        calls.replace(with(None));
        until("it is plaintext", async || {
            let seen = speaks.ask(&client, to).await;
            seen.error().is_some_and(|error| error != "tls-failed")
        })
        .await;
    }
}

#[tokio::test]
async fn config_shows_it() {
    let ca = Ca::new();
    let address: SocketAddr = ([127, 0, 0, 1], 1).into();
    let calls = Calls::start(target(address, proto::Protocol::Http1, Some(policy(&[&ca], &[ID])))).await;
    assert_eq!(Http::one().get(calls.to(), "/").await.error(), Some("connect-failed"));
    let config: Bytes = Http::one().get(calls.web.admin, "/config").await.body;
    let config = String::from_utf8(config.to_vec()).unwrap();
    for part in ["\"policy\": \"shop/pay\"", NAME, "\"roots\": 1", "\"names\": 1"] {
        assert!(config.contains(part), "{part}: {config}");
    }
}
