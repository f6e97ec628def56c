//! A real provider of tokens: the example server of github.com/zitadel/oidc, to which a test can do what happens to providers.
//!
//! `tests/cluster/build oidc` makes it. It is looked for on the PATH, and a test that does not find it fails.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;

/// See the module. It listens on an address of this machine that is not loopback, which no policy may name.
pub struct Provider {
    child: Child,
    /// "https://10.0.0.1:8443/".
    pub issuer: String,
    /// Whose certificate it has, in PEM.
    pub ca: String,
    address: SocketAddr,
    tls: TlsConnector,
    _files: TempDir,
}

impl Provider {
    /// With one key that signs.
    ///
    /// # Errors
    /// When it is not on the PATH, or the machine has no address but loopback.
    pub async fn start() -> Result<Self> {
        let address = own_address()?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names.push(SanType::IpAddress(address));
        let key = KeyPair::generate()?;
        let files = tempfile::tempdir()?;
        let (cert, private) = (files.path().join("cert.pem"), files.path().join("key.pem"));
        std::fs::write(&cert, params.signed_by(&key, &ca)?.pem())?;
        std::fs::write(&private, key.serialize_pem())?;
        let mut child = Command::new("oidc-provider")
            .args(["-listen", &format!("{address}:0")])
            .arg("-cert")
            .arg(cert)
            .arg("-key")
            .arg(private)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("oidc-provider is not on the PATH: tests/cluster/build oidc")?;
        let stdout = child.stdout.take().context("no output")?;
        let mut issuer = String::new();
        BufReader::new(stdout).read_line(&mut issuer).await?;
        let issuer = issuer.trim().to_owned();
        let address = issuer.trim_start_matches("https://").trim_end_matches('/');
        let address = address.parse().with_context(|| format!("it says {issuer:?}"))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok(Self {
            child,
            address,
            issuer,
            ca: ca.pem(),
            tls: TlsConnector::from(Arc::new(config)),
            _files: files,
        })
    }

    /// A token for the audience "orders" with this scope, good for five minutes.
    ///
    /// # Errors
    /// When it gives none.
    pub async fn token(&self, scope: &str) -> Result<String> {
        let form = format!("grant_type=client_credentials&scope={scope}");
        let answer: Value = serde_json::from_str(&self.ask(Method::POST, "/oauth/token", form).await?)?;
        let token = answer["access_token"].as_str();
        Ok(token.with_context(|| format!("no token: {answer}"))?.to_owned())
    }

    /// It signs with a new key from now on, and has forgotten the one before.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn rotate(&self) -> Result<()> {
        self.ask(Method::POST, "/test/rotate", String::new()).await.map(drop)
    }

    /// What is where its keys are, in a word of the program: "good", "html", "error" and so on.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn says(&self, what: &str) -> Result<()> {
        let path = format!("/test/keys?as={what}");
        self.ask(Method::POST, &path, String::new()).await.map(drop)
    }

    /// It ends.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn stop(&mut self) -> Result<()> {
        self.child.kill().await.context("the provider cannot be stopped")
    }

    async fn ask(&self, method: Method, path: &str, form: String) -> Result<String> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::from(self.address.ip());
        let stream = self.tls.connect(name, stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/x-www-form-urlencoded")
            .header("authorization", format!("Basic {}", STANDARD.encode("sid1:verysecret")))
            .body(Full::new(bytes::Bytes::from(form)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        connection.abort();
        let body = String::from_utf8_lossy(&body).into_owned();
        ensure!(status == StatusCode::OK, "{path}: {status} {body}");
        Ok(body)
    }
}

/// The one that this machine would call others from.
fn own_address() -> Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Nothing is sent.
    socket
        .connect("192.0.2.1:9")
        .context("this machine has no address but loopback")?;
    Ok(socket.local_addr()?.ip())
}
