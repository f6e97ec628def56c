//! TLS of the app itself: sidecars carry it, and see nothing but its first bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_proxy::config::Mtls;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::server::{ResolvesServerCertUsingSni, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{app, authority, handshakes, pair, soon};

/// The app's own CA: the mesh knows nothing of it.
pub(super) struct Pki(CertifiedIssuer<'static, KeyPair>);

impl Pki {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (
            certificate.der().clone(),
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
    }

    pub(super) fn client(&self, certificate: Option<&str>, alpn: &[&[u8]]) -> TlsConnector {
        let builder = ClientConfig::builder().with_root_certificates(self.roots());
        let mut config = match certificate {
            Some(name) => {
                let (certificate, key) = self.issue(name, ExtendedKeyUsagePurpose::ClientAuth);
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

/// Says which name it was called by, which protocol was agreed on, and whether a certificate came; then it echoes.
pub(super) async fn tls_app(pki: &Pki, wants_certificate: bool) -> SocketAddr {
    let mut names = ResolvesServerCertUsingSni::new();
    for name in ["shop.example", "bank.example"] {
        let (certificate, key) = pki.issue(name, ExtendedKeyUsagePurpose::ServerAuth);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(vec![certificate], key, &provider).unwrap();
        names.add(name, key).unwrap();
    }
    let builder = ServerConfig::builder();
    let builder = match wants_certificate {
        true => builder.with_client_cert_verifier(WebPkiClientVerifier::builder(pki.roots()).build().unwrap()),
        false => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(names));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    app(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            // A client without a certificate is what one of the tests is about.
            let Ok(mut tls) = acceptor.accept(stream).await else {
                return;
            };
            let connection = tls.get_ref().1;
            let alpn = connection
                .alpn_protocol()
                .map(|name| String::from_utf8_lossy(name).into_owned());
            let seen = format!(
                "{} {} {}\n",
                connection.server_name().unwrap(),
                alpn.unwrap_or_default(),
                connection.peer_certificates().is_some()
            );
            tls.write_all(seen.as_bytes()).await.unwrap();
            let mut said = Vec::new();
            tls.read_to_end(&mut said).await.unwrap();
            tls.write_all(&said).await.unwrap();
            tls.shutdown().await.unwrap();
        }
    })
    .await
}

pub(super) async fn call(to: SocketAddr, client: &TlsConnector, name: &'static str) -> std::io::Result<String> {
    let stream = TcpStream::connect(to).await?;
    let mut tls = client.connect(ServerName::try_from(name).unwrap(), stream).await?;
    tls.write_all(b"hello").await?;
    tls.shutdown().await?;
    let mut heard = String::new();
    tls.read_to_string(&mut heard).await?;
    Ok(heard)
}

#[tokio::test]
async fn the_app_sees_its_own_tls_and_the_client_the_apps_certificate() {
    let authority = authority().await;
    let pki = Pki::new();
    let server = tls_app(&pki, false).await;
    for protocol in ["detect", "opaque", "tls"] {
        let mesh = pair(&authority, server, protocol, Mtls::Strict).await;
        // The client checks the certificate against the app's CA and the name.
        for name in ["shop.example", "bank.example"] {
            for (alpn, agreed) in [
                (&[][..], ""),
                (&[&b"http/1.1"[..]][..], "http/1.1"),
                (&[b"h2", b"http/1.1"], "h2"),
            ] {
                let heard = soon(call(mesh.to, &pki.client(None, alpn), name)).await.unwrap();
                assert_eq!(heard, format!("{name} {agreed} false\nhello"), "{protocol}");
            }
        }
        // All of it within mutual TLS of the mesh.
        assert_eq!(handshakes(&mesh.orders, "inbound", "ok"), 6, "{protocol}");
    }
}

#[tokio::test]
async fn certificates_of_clients_reach_the_app() {
    let authority = authority().await;
    let pki = Pki::new();
    let server = tls_app(&pki, true).await;
    for protocol in ["detect", "opaque"] {
        let mesh = pair(&authority, server, protocol, Mtls::Strict).await;
        let heard = soon(call(mesh.to, &pki.client(Some("buyer"), &[b"h2"]), "shop.example")).await;
        assert_eq!(heard.unwrap(), "shop.example h2 true\nhello", "{protocol}");
        // The app's refusal is the app's: its alert comes through.
        let refused = soon(call(mesh.to, &pki.client(None, &[]), "shop.example"))
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("CertificateRequired"),
            "{protocol}: {refused}"
        );
    }
}

/// From outside the mesh, by the app's own sidecar only.
#[tokio::test]
async fn tls_of_the_app_from_outside_the_mesh() {
    let authority = authority().await;
    let pki = Pki::new();
    let server = tls_app(&pki, false).await;
    for protocol in ["detect", "opaque"] {
        let mesh = pair(&authority, server, protocol, Mtls::Permissive).await;
        let inbound = mesh.orders.inbound[0];
        for alpn in [&[][..], &[&b"h2"[..]]] {
            let heard = soon(call(inbound, &pki.client(None, alpn), "shop.example"))
                .await
                .unwrap();
            assert!(
                heard.starts_with("shop.example ") && heard.ends_with("\nhello"),
                "{heard}"
            );
        }
        // Where mutual TLS of the mesh is required, other TLS is not it.
        let mesh = pair(&authority, server, protocol, Mtls::Strict).await;
        let refused = soon(call(mesh.orders.inbound[0], &pki.client(None, &[]), "shop.example")).await;
        assert!(refused.is_err(), "{protocol}: {refused:?}");
    }
}
