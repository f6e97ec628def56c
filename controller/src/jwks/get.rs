//! One GET, up to its body.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use outrigger_access::jwt::MAX_JWKS;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::fetch::World;

/// Of a response's head, and of what is read at once, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// What is asked for.
pub(super) struct Target<'a> {
    pub(super) addresses: Vec<SocketAddr>,
    /// Of HTTPS.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) authority: String,
    pub(super) path: &'a str,
}

/// The body of an answer that is as it should be so far.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    incoming: Incoming,
    /// Ends with this.
    _connection: JoinSet<hyper::Result<()>>,
}

impl Body {
    /// Reads until it has ended, or is larger than so many bytes. Returns whether it has ended.
    ///
    /// # Errors
    /// When it breaks off.
    pub(super) async fn read(&mut self, most: usize) -> Result<bool, String> {
        while self.bytes.len() <= most {
            match self.incoming.frame().await {
                None => return Ok(true),
                Some(Ok(frame)) => self.bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Some(Err(_)) => return Err("the answer breaks off".to_owned()),
            }
        }
        Ok(false)
    }
}

/// What is said of a body that is larger than [`MAX_JWKS`].
pub(super) fn too_large() -> String {
    format!("the answer is larger than {MAX_JWKS} bytes")
}

/// Asks for it; the connection has to be there until then.
///
/// # Errors
/// When what comes is no answer to read, in words for a status.
pub(super) async fn get<W: World>(world: &W, target: Target<'_>, until: Instant) -> Result<Body, String> {
    let tcp = connect(world, &target.addresses, until).await?;
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
pub(super) async fn connect<W: World>(
    world: &W,
    addresses: &[SocketAddr],
    until: Instant,
) -> Result<W::Stream, String> {
    let mut error = "the name has no address".to_owned();
    for (left, address) in (1..=addresses.len() as u32).rev().zip(addresses) {
        let share = until.saturating_duration_since(Instant::now()) / left;
        match timeout(share, world.connect(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Err(_) => error = format!("cannot connect to {address}: no answer within {share:?}"),
            Ok(Err(e)) => error = format!("cannot connect to {address}: {e}"),
        }
    }
    Err(error)
}

async fn exchange<S>(stream: S, authority: &str, path: &str) -> Result<Body, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|_| NOT_HTTP.to_owned())?;
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
    if response.body().size_hint().lower() > MAX_JWKS as u64 {
        return Err(too_large());
    }
    Ok(Body {
        bytes: Vec::new(),
        incoming: response.into_body(),
        _connection: connections,
    })
}

pub(super) const NOT_HTTP: &str = "the answer is not HTTP/1.1, or none came";
