//! One GET of a JWK Set. Who wrote the policy may be any tenant, so what is called, how long and how much is the controller's to
//! say: the address is looked at after the name was resolved, and that very address is connected to; nothing is followed; and of
//! what came back, an error quotes nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use outrigger_access::jwt::MAX_JWKS;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::objects::ObjectName;
use crate::objects::keys::{ConfigMapKey, KeyPlace, KeySource};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Of a response's head.
const MAX_HEAD: usize = 64 * 1024;

/// What the fetcher has to ask others for.
pub trait World: Send + Sync + 'static {
    /// The addresses of a full name: no search domain may make another one of it.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, String>>;

    /// Whether a policy may have something fetched from there.
    fn may_call(&self, address: IpAddr) -> bool;

    /// The value of a ConfigMap's key.
    fn config_map<'a>(&'a self, map: ObjectName, key: &'a str) -> BoxFuture<'a, Result<String, String>>;

    /// Where a Service has the port.
    fn service(&self, service: ObjectName, port: u16) -> Result<SocketAddr, String>;
}

/// See the module.
pub struct Fetcher<W> {
    world: W,
    /// With the public roots.
    tls: Arc<ClientConfig>,
}

/// What is asked for.
struct Target<'a> {
    addresses: Vec<SocketAddr>,
    /// Of HTTPS.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    authority: String,
    path: &'a str,
    /// Of the caller's time.
    until: Instant,
}

impl<W: World> Fetcher<W> {
    /// A URL's certificate must be of one of the roots, where its policy names no others.
    ///
    /// # Errors
    /// When rustls has no protocol version.
    pub fn new(world: W, roots: RootCertStore) -> Result<Self, rustls::Error> {
        Ok(Self {
            world,
            tls: Arc::new(config(roots)?),
        })
    }

    /// The bytes that are there now.
    ///
    /// # Errors
    /// Why there are none, in words for a status.
    pub async fn fetch(&self, source: &KeySource) -> Result<Vec<u8>, String> {
        let until = Instant::now() + source.timeout;
        let fetch = async {
            match &source.place {
                KeyPlace::ConfigMap(map) => self.config_map(source, map).await,
                KeyPlace::Url { host, port, path, ca } => {
                    let tls = match ca {
                        None => Arc::clone(&self.tls),
                        Some(ca) => self.tls_with(source, ca).await?,
                    };
                    let addresses = self.addresses(host).await?;
                    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
                    let name = name.map_err(|_| format!("{host} is no name that a certificate can have"))?;
                    get(Target {
                        addresses: addresses.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect(),
                        tls: Some((tls, name)),
                        authority: if *port == 443 {
                            host.to_string()
                        } else {
                            format!("{host}:{port}")
                        },
                        path,
                        until,
                    })
                    .await
                }
                KeyPlace::Service { name, port, path } => {
                    let address = self.world.service(source.object(name), *port)?;
                    self.permitted(&[address.ip()])?;
                    get(Target {
                        addresses: vec![address],
                        tls: None,
                        authority: format!("{name}.{}:{port}", source.namespace),
                        path,
                        until,
                    })
                    .await
                }
            }
        };
        match timeout_at(until, fetch).await {
            Ok(result) => result,
            Err(_) => Err(format!("no whole answer within {:?}", source.timeout)),
        }
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let literal = host.trim_matches(['[', ']']).parse();
        let mut addresses = match literal {
            Ok(address) => vec![address],
            Err(_) => self.world.resolve(host).await?,
        };
        addresses.truncate(MAX_ADDRESSES);
        self.permitted(&addresses)?;
        Ok(addresses)
    }

    /// All of them: a name that has one of these among its addresses is not made for us.
    fn permitted(&self, addresses: &[IpAddr]) -> Result<(), String> {
        match addresses.iter().find(|address| !self.world.may_call(**address)) {
            Some(address) => Err(format!(
                "{address} is not called: loopback, link-local, unspecified and multicast addresses, and those of cloud metadata, are refused"
            )),
            None => Ok(()),
        }
    }

    async fn config_map(&self, source: &KeySource, map: &ConfigMapKey) -> Result<Vec<u8>, String> {
        let value = self.world.config_map(source.object(&map.name), &map.key).await;
        value.map(String::into_bytes)
    }

    async fn tls_with(&self, source: &KeySource, ca: &ConfigMapKey) -> Result<Arc<ClientConfig>, String> {
        let pem = self.config_map(source, ca).await?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
            added.ok_or_else(|| format!("{} of the ConfigMap {} is no PEM of certificates", ca.key, ca.name))?;
        }
        match roots.is_empty() {
            true => Err(format!("{} of the ConfigMap {} has no certificate", ca.key, ca.name)),
            false => config(roots).map(Arc::new).map_err(|e| e.to_string()),
        }
    }
}

fn config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn get(target: Target<'_>) -> Result<Vec<u8>, String> {
    let tcp = connect(&target.addresses, target.until).await?;
    match target.tls {
        None => exchange(tcp, &target.authority, target.path).await,
        Some((config, name)) => {
            let tls = TlsConnector::from(config).connect(name, tcp).await;
            let tls = tls.map_err(|e| tls_problem(&e).to_owned())?;
            exchange(tls, &target.authority, target.path).await
        }
    }
}

/// What rustls says of a certificate quotes it.
fn tls_problem(error: &std::io::Error) -> &'static str {
    use rustls::CertificateError as Bad;
    use rustls::Error::InvalidCertificate;
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(InvalidCertificate(Bad::UnknownIssuer)) => "its certificate is not of an authority that is trusted",
        Some(InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. })) => {
            "its certificate is for another name"
        }
        Some(InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => "its certificate has expired",
        Some(InvalidCertificate(_)) => "its certificate is not valid",
        _ => "the TLS handshake failed",
    }
}

/// The first that takes a connection. Each has its share of the time that is left: one that never answers leaves some to the others.
async fn connect(addresses: &[SocketAddr], until: Instant) -> Result<TcpStream, String> {
    let mut error = "the name has no address".to_owned();
    for (left, address) in (1..=addresses.len() as u32).rev().zip(addresses) {
        let share = until.saturating_duration_since(Instant::now()) / left;
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Err(_) => error = format!("cannot connect to {address}: no answer within {share:?}"),
            Ok(Err(e)) => error = format!("cannot connect to {address}: {e}"),
        }
    }
    Err(error)
}

async fn exchange<S>(stream: S, authority: &str, path: &str) -> Result<Vec<u8>, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|_| NOT_HTTP.to_owned())?;
    // Ends with this function.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let request = Request::get(path)
        .header(HOST, authority)
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(ACCEPT_ENCODING, "identity")
        .header(CONNECTION, "close")
        .header(USER_AGENT, "outrigger-controller")
        .body(Empty::new())
        .map_err(|_| "the URL cannot be asked for".to_owned())?;
    let response = sender.send_request(request).await.map_err(|_| NOT_HTTP.to_owned())?;
    if response.status() != StatusCode::OK {
        let what = if response.status().is_redirection() {
            ", and redirects are not followed"
        } else {
            ""
        };
        return Err(format!(
            "the answer has the status {}{what}",
            response.status().as_u16()
        ));
    }
    if response
        .headers()
        .get(CONTENT_ENCODING)
        .is_some_and(|coding| coding != "identity")
    {
        return Err("the answer is compressed".to_owned());
    }
    let body = Limited::new(response.into_body(), MAX_JWKS).collect().await;
    let body = body.map_err(|e| match e.is::<LengthLimitError>() {
        true => format!("the answer is larger than {MAX_JWKS} bytes"),
        false => "the answer breaks off".to_owned(),
    })?;
    Ok(body.to_bytes().to_vec())
}

const NOT_HTTP: &str = "the answer is not HTTP/1.1, or none came";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "fetch_tests.rs"]
mod tests;
