//! Peers that mean harm, or are broken: each gets its answer, and nobody else is harmed.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use outrigger_proxy::config::Mtls;
use outrigger_tests::mesh::{Authority, Http, Sidecar, id, metric};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificates::{Flaw, Identity, right};
use super::{app, authority, handshakes, pair, raise_file_limit, soon, until};

/// Believes everything: a client that means harm does not check whom it meets.
#[derive(Debug)]
struct Credulous(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

pub(crate) fn client(identity: Option<Identity>, alpn: &[&str]) -> Arc<ClientConfig> {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let builder = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(algorithms)));
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Says a word over TLS, and gives the answer.
async fn speak(to: SocketAddr, client: &Arc<ClientConfig>) -> std::io::Result<String> {
    let name = ServerName::try_from("orders.peer").unwrap();
    let stream = TcpStream::connect(to).await?;
    let mut tls = TlsConnector::from(Arc::clone(client)).connect(name, stream).await?;
    // Who refuses may have closed already; its alert can still be read.
    let _ = tls.write_all(b"\0hello").await;
    let _ = tls.shutdown().await; // flushes
    let mut heard = String::new();
    tls.read_to_string(&mut heard).await?;
    Ok(heard)
}

/// An app that echoes, and counts its connections.
async fn echo() -> (SocketAddr, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let address = app(move |mut stream| {
        counted.fetch_add(1, SeqCst);
        async move {
            let mut said = Vec::new();
            // A client that breaks off is what some tests are about.
            if stream.read_to_end(&mut said).await.is_ok() {
                let _ = stream.write_all(&said).await;
            }
        }
    })
    .await;
    (address, connections)
}

/// One word through both sidecars.
async fn works(to: SocketAddr) {
    let mut client = TcpStream::connect(to).await.unwrap();
    client.write_all(b"\0word").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    soon(client.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"\0word");
}

#[tokio::test]
async fn clients_with_the_wrong_certificate_get_an_alert_and_never_plaintext() {
    let authority = authority().await;
    let (server, connections) = echo().await;
    for mtls in [Mtls::Permissive, Mtls::Strict] {
        let mesh = pair(&authority, server, "opaque", mtls).await;
        let inbound = mesh.orders.inbound[0];
        let before = connections.load(SeqCst);
        let refused = async |config: &Arc<ClientConfig>| soon(speak(inbound, config)).await.unwrap_err().to_string();
        for flaw in Flaw::ALL {
            if flaw == Flaw::OtherWorkload {
                continue; // a client may be any workload
            }
            let already = handshakes(&mesh.orders, "inbound", flaw.result());
            let identity = flaw.identity(&authority, "web");
            let error = refused(&client(Some(identity), &["outrigger/tcp"])).await;
            let alert = match flaw {
                Flaw::Expired | Flaw::NotYetValid => "CertificateExpired",
                _ => "CertificateUnknown",
            };
            assert!(error.contains(alert), "{flaw:?}: {error}");
            let counted = async || handshakes(&mesh.orders, "inbound", flaw.result()) == already + 1;
            until(flaw.result(), counted).await;
        }
        let error = refused(&client(None, &["outrigger/h1"])).await;
        assert!(error.contains("CertificateRequired"), "{error}");
        until("it is counted", async || {
            handshakes(&mesh.orders, "inbound", "no-certificate") == 1
        })
        .await;
        assert_eq!(connections.load(SeqCst), before, "the app was called");
        // The control: a right one, as anybody whom the CA signed.
        let identity = right(&authority, "web");
        let heard = soon(speak(inbound, &client(Some(identity), &["outrigger/tcp"])))
            .await
            .unwrap();
        assert_eq!(heard, "\0hello");
        works(mesh.to).await;
    }
}

/// A client of TLS 1.3 may have said much when its certificate is looked at: with that unread, a close would be a reset.
#[tokio::test]
async fn an_alert_is_not_lost_in_a_reset() {
    let authority = authority().await;
    let (server, _) = echo().await;
    let mesh = pair(&authority, server, "opaque", Mtls::Strict).await;
    let connector = TlsConnector::from(client(None, &["outrigger/h1"]));
    for _ in 0..20 {
        let stream = TcpStream::connect(mesh.orders.inbound[0]).await.unwrap();
        let name = ServerName::try_from("orders.peer").unwrap();
        let mut tls = connector.connect(name, stream).await.unwrap();
        soon(tls.write_all(&[b'x'; 256 * 1024])).await.unwrap();
        let error = soon(tls.read_u8()).await.unwrap_err().to_string();
        assert!(error.contains("CertificateRequired"), "{error}");
    }
}

#[tokio::test]
async fn other_tls_is_no_mesh_tls() {
    let authority = authority().await;
    let (server, connections) = echo().await;
    for protocol in ["opaque", "detect"] {
        let mesh = pair(&authority, server, protocol, Mtls::Strict).await;
        let before = connections.load(SeqCst);
        for alpn in [&[][..], &["h2"], &["outrigger/h9"], &["outrigger"]] {
            // Even with a certificate that would be right.
            let config = client(Some(right(&authority, "web")), alpn);
            let error = soon(speak(mesh.orders.inbound[0], &config)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{alpn:?}");
        }
        assert_eq!(connections.load(SeqCst), before, "the app was called");
        let refused = ["reason=\"plaintext-refused\""];
        assert_eq!(metric(&mesh.orders, "outrigger_errors_total", &refused), 4);
        works(mesh.to).await;
    }
}

/// A ClientHello as bytes.
pub(crate) fn hello(alpn: &str) -> Vec<u8> {
    let name = ServerName::try_from("orders.peer").unwrap();
    let mut connection = ClientConnection::new(client(None, &[alpn]), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// A lost packet: the second half of a sidecar's ClientHello comes later than detection waits.
#[tokio::test]
async fn half_a_client_hello_is_waited_for() {
    let authority = authority().await;
    let (server, connections) = echo().await;
    let orders = Sidecar::new("orders")
        .protects(server)
        .with("detectTimeout: 100ms")
        .start(&authority)
        .await;
    let hello = hello("outrigger/tcp");
    let mut stream = TcpStream::connect(orders.inbound[0]).await.unwrap();
    stream.write_all(&hello[..hello.len() / 2]).await.unwrap();
    // Nothing comes: neither an answer nor an end.
    let early = tokio::time::timeout(std::time::Duration::from_millis(500), stream.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
    stream.write_all(&hello[hello.len() / 2..]).await.unwrap();
    // A handshake record (22), as of a ServerHello: it was taken for what it is.
    assert_eq!(soon(stream.read_u8()).await.unwrap(), 22);
    assert_eq!(connections.load(SeqCst), 0, "the app saw half a ClientHello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_never_end_harm_nobody_and_end() {
    raise_file_limit();
    let authority = authority().await;
    let (server, connections) = echo().await;
    let mesh = pair(&authority, server, "opaque", Mtls::Strict).await;
    let hello = hello("outrigger/tcp");
    let half_open = join_all((0..500).map(|i| {
        let (hello, inbound) = (&hello, mesh.orders.inbound[0]);
        async move {
            let mut stream = TcpStream::connect(inbound).await.unwrap();
            // Some stop within the ClientHello, others after it.
            let length = if i % 2 == 0 { hello.len() / 2 } else { hello.len() };
            stream.write_all(&hello[..length]).await.unwrap();
            stream
        }
    }))
    .await;
    for _ in 0..20 {
        works(mesh.to).await;
    }
    assert_eq!(connections.load(SeqCst), 20);
    let ended = half_open.into_iter().map(async |mut stream| {
        let mut answer = Vec::new();
        // By an end or by a reset.
        let _ = soon(stream.read_to_end(&mut answer)).await;
    });
    join_all(ended).await;
    until("they are counted", async || {
        handshakes(&mesh.orders, "inbound", "timeout") == 250
    })
    .await;
    until("no connection is left", async || {
        metric(&mesh.orders, "outrigger_connections_open", &["inbound"]) == 0
    })
    .await;
    works(mesh.to).await;
}

/// A server at an endpoint's address: how it answers handshakes.
fn server(identity: Identity, alpn: &[&str], version: &'static SupportedProtocolVersion) -> ServerConfig {
    let mut config = ServerConfig::builder_with_protocol_versions(&[version])
        .with_no_client_auth()
        .with_single_cert(identity.0, identity.1)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// Answers an HTTP/1 request, or echoes; keeps what it was told.
async fn serve(config: ServerConfig) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let keep = Arc::clone(&told);
    let address = app(move |stream| {
        let (acceptor, keep) = (acceptor.clone(), Arc::clone(&keep));
        async move {
            // Clients refuse this server, or it refuses them: that is what it is for.
            let mut tls = match acceptor.accept(stream).into_fallible().await {
                Ok(tls) => tls,
                Err((_, mut stream)) => {
                    // The alert is not to be lost in a reset.
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                    return;
                }
            };
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = tls.read(&mut buffer).await {
                keep.lock().unwrap().extend_from_slice(&buffer[..n]);
                let answer: &[u8] = match buffer.starts_with(b"GET ") {
                    true => b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                    false => &buffer[..n],
                };
                let _ = tls.write_all(answer).await;
            }
        }
    })
    .await;
    (address, told)
}

/// What a client is told of an endpoint that discovery calls `orders`: by HTTP/1, and on an opaque port.
async fn seen_by_clients(authority: &Authority, endpoint: SocketAddr, code: &str, result: &str) {
    let endpoint = [(endpoint, Some(id("orders")))];
    for protocol in ["http1", "opaque"] {
        let web = Sidecar::new("web")
            .calls("orders", protocol, &endpoint, "{retry: {attempts: 0}}")
            .start(authority)
            .await;
        if protocol == "http1" {
            let seen = Http::one().get(web.outbound[0], "/secret").await;
            assert_eq!(seen.error(), Some(code), "{result}: {seen:?}");
        } else {
            let mut stream = TcpStream::connect(web.outbound[0]).await.unwrap();
            let _ = stream.write_all(b"\0secret").await;
            let error = soon(stream.read_u8()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{result}");
        }
        let reason = format!("reason=\"{code}\"");
        assert_eq!(
            metric(&web, "outrigger_errors_total", &[&reason]),
            1,
            "{protocol} {result}"
        );
        assert_eq!(handshakes(&web, "outbound", result), 1, "{protocol} {result}");
    }
}

const MESH: &[&str] = &["outrigger/h1", "outrigger/h2", "outrigger/tcp"];

#[tokio::test]
async fn endpoints_with_the_wrong_certificate_are_told_nothing() {
    let authority = authority().await;
    for flaw in Flaw::ALL {
        let (endpoint, told) = serve(server(flaw.identity(&authority, "orders"), MESH, &TLS13)).await;
        let code = match flaw.result() {
            "identity-mismatch" => "identity-mismatch",
            _ => "tls-failed",
        };
        seen_by_clients(&authority, endpoint, code, flaw.result()).await;
        assert!(told.lock().unwrap().is_empty(), "{flaw:?}");
    }
    // The control.
    let (endpoint, told) = serve(server(right(&authority, "orders"), MESH, &TLS13)).await;
    let endpoint = [(endpoint, Some(id("orders")))];
    let web = Sidecar::new("web")
        .calls("orders", "http1", &endpoint, "{}")
        .start(&authority)
        .await;
    assert_eq!(Http::one().get(web.outbound[0], "/secret").await.status, 200);
    assert!(!told.lock().unwrap().is_empty());
}

#[tokio::test]
async fn endpoints_that_are_no_sidecars_are_told_nothing() {
    let authority = authority().await;
    let right = || right(&authority, "orders");
    for (config, result) in [
        (server(right(), &["h2"], &TLS13), "refused-by-peer"),
        (server(right(), &[], &TLS13), "no-protocol"),
        (server(right(), MESH, &TLS12), "refused-by-peer"),
    ] {
        let (endpoint, told) = serve(config).await;
        seen_by_clients(&authority, endpoint, "tls-failed", result).await;
        assert!(told.lock().unwrap().is_empty(), "{result}");
    }
    // One that speaks no TLS, and one that closes.
    let plain = app(async |mut stream| {
        let mut told = vec![0; 4096];
        let n = stream.read(&mut told).await.unwrap();
        assert!(!told[..n].windows(6).any(|word| word == b"secret"), "in plaintext");
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    seen_by_clients(&authority, plain, "tls-failed", "not-tls").await;
    let closing = app(async |mut stream| {
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    seen_by_clients(&authority, closing, "tls-failed", "closed").await;
}

/// TLS 1.3's client has finished when the server looks at its certificate: the refusal comes with the first answer.
#[tokio::test]
async fn an_endpoint_that_does_not_trust_us_is_a_failure_of_tls() {
    let authority = authority().await;
    let stranger = outrigger_issuer::ca::Ca::generate("mesh.test").unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(stranger.bundle()[0].clone()).unwrap();
    let (chain, key) = right(&authority, "orders");
    let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = MESH.iter().map(|name| name.as_bytes().to_vec()).collect();
    let (endpoint, _) = serve(config).await;
    let endpoint = [(endpoint, Some(id("orders")))];
    for protocol in ["http1", "http2", "opaque"] {
        let web = Sidecar::new("web")
            .calls("orders", protocol, &endpoint, "{}")
            .start(&authority)
            .await;
        if protocol != "opaque" {
            let http = match protocol {
                "http2" => Http::two(),
                _ => Http::one(),
            };
            let seen = http.post(web.outbound[0], "/", "secret").await;
            assert_eq!(seen.error(), Some("tls-failed"), "{protocol}: {seen:?}");
        } else {
            let mut stream = TcpStream::connect(web.outbound[0]).await.unwrap();
            let error = soon(stream.read_u8()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_closed_at_once_leave_nothing_behind() {
    raise_file_limit();
    let authority = authority().await;
    let (server, _) = echo().await;
    for protocol in ["opaque", "detect"] {
        let mesh = pair(&authority, server, protocol, Mtls::Permissive).await;
        for to in [mesh.to, mesh.orders.inbound[0]] {
            for round in 0..5 {
                let flood = (0..100).map(|i| async move {
                    let stream = TcpStream::connect(to).await.unwrap();
                    // By a reset, or by an end.
                    if (round + i) % 2 == 0 {
                        stream.set_zero_linger().unwrap();
                    }
                });
                join_all(flood).await;
            }
            until("no connection is left", async || {
                let open = |proxy| metric(proxy, "outrigger_connections_open", &[]);
                open(&mesh.web) == 0 && open(&mesh.orders) == 0
            })
            .await;
            works(mesh.to).await;
        }
    }
}
