//! Connections to the collector, in TLS where its endpoint is `https://`.
//!
//! It protects spans from who is between, and from who has taken the collector's name: its certificate has to be for the endpoint's host, and signed
//! by whom [`TracingConfig::ca_certificates`] names, or else by a public authority. Where it is not, nothing is sent. This sidecar shows no certificate.
//!
//! There is one connection: who connects has given the one before up, and that is cut. A collector that reads nothing would keep what waits in
//! it for as long as it likes, the goodbye of TLS with it, and each attempt would leave another one behind.

use std::io;
use std::sync::Arc;

use http::Uri;
use outrigger_api::discovery as proto;
use outrigger_api::discovery::backend_tls::Trust;
use outrigger_proxy_transport::net::{Notice, Standing, Term, Termed};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::dns::Resolver;
use crate::model::{BackendTls, Inside};
use crate::telemetry::{TracingConfig, TracingProtocol};

/// What OTLP is spoken over.
pub(super) type Connection = Box<dyn Carries>;

pub(super) trait Carries: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carries for T {}

/// Resolves the collector's name when it is needed, and connects.
#[derive(Clone)]
pub(super) struct Dial {
    resolver: Resolver,
    host: String,
    port: u16,
    /// `None`: plaintext.
    tls: Option<(Arc<BackendTls>, Inside)>,
    /// The end of the connection that was made last.
    last: Arc<Mutex<Option<Notice>>>,
}

impl Dial {
    /// Nothing is resolved or connected yet.
    ///
    /// # Errors
    /// The endpoint is none.
    pub(super) fn new(config: &TracingConfig, resolver: Resolver) -> Result<Self, String> {
        let endpoint = &config.endpoint;
        let (Some(scheme @ ("http" | "https")), Some(host)) = (endpoint.scheme_str(), endpoint.host()) else {
            return Err(format!(
                "the tracing endpoint {endpoint} is not of the form http://HOST:PORT or https://HOST:PORT"
            ));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let (port, inside) = match config.protocol {
            TracingProtocol::Grpc => (4317, Inside::Http2),
            TracingProtocol::Http => (4318, Inside::Http1),
        };
        Ok(Self {
            resolver,
            port: endpoint.port_u16().unwrap_or(port),
            tls: (scheme == "https").then(|| (secured(endpoint, &host, config), inside)),
            host,
            last: Arc::default(),
        })
    }

    /// Cuts the connection before. Has no timeout of its own.
    ///
    /// # Errors
    /// Why nothing may be sent.
    pub(super) async fn connect(&self) -> io::Result<Connection> {
        let (term, notice) = Term::begin();
        if let Some(before) = self.last.lock().replace(notice) {
            before.give(Standing::Cut);
        }
        let tcp = Termed::new(self.open().await?, term);
        let Some((tls, inside)) = &self.tls else {
            return Ok(Box::new(tcp));
        };
        let (config, server) = tls.client(*inside).map_err(io::Error::other)?;
        let failed = |error: io::Error| io::Error::other(format!("TLS with {} failed: {error}", self.host));
        let stream = TlsConnector::from(Arc::clone(config)).connect(server, tcp).await;
        let stream = stream.map_err(failed)?;
        if *inside == Inside::Http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other(format!(
                "{} does not choose HTTP/2 (ALPN h2), which gRPC needs",
                self.host
            )));
        }
        Ok(Box::new(stream))
    }

    async fn open(&self) -> io::Result<TcpStream> {
        let addresses = self.resolver.resolve(&self.host).await.map_err(io::Error::other)?;
        let mut result = Err(io::ErrorKind::NotFound.into());
        for address in addresses {
            result = TcpStream::connect((address, self.port)).await;
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

/// As a BackendTLSPolicy would say it.
fn secured(endpoint: &Uri, host: &str, config: &TracingConfig) -> Arc<BackendTls> {
    BackendTls::from_proto(&proto::BackendTls {
        policy: endpoint.to_string(),
        hostname: host.to_owned(),
        trust: Some(match &*config.ca_certificates {
            [] => Trust::System(proto::SystemRoots::default()),
            certificates => Trust::Ca(proto::CaCertificates {
                certificates: certificates.to_vec(),
            }),
        }),
        ..proto::BackendTls::default()
    })
}
