//! TLS that this sidecar begins with an endpoint outside of the mesh, where a BackendTLSPolicy says so ([`BackendTls`]). The handshake ends with a
//! server that the policy believes, or the connection is not used: nothing is ever sent to it in plaintext.

use std::io;
use std::net::SocketAddr;

use http::uri::Scheme;
use http::{Request, Uri};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::{Io, ReadAhead, Stream};
use rustls::{AlertDescription, CertificateError, Error, OtherError};
use tokio_rustls::TlsConnector;

use crate::identity::MeshProtocol;
use crate::model::{BackendTls, Inside, OtherName};
use crate::telemetry::metrics::Handshake;

/// A handshake for what `protocol` says. Has no timeout of its own. Beside the result there is what is counted.
pub async fn connect(
    tls: &BackendTls,
    io: Io,
    to: SocketAddr,
    protocol: MeshProtocol,
) -> (Handshake, Result<Stream, ProxyError>) {
    let failed = |cause, words: String| {
        let detail = format!(
            "TLS to {to}, as {} for the policy {}, failed: {words}",
            tls.hostname, tls.policy
        );
        (cause, Err(ProxyError::new(Reason::TlsFailed, detail)))
    };
    let inside = match protocol {
        MeshProtocol::Http1 => Inside::Http1,
        MeshProtocol::Http2 => Inside::Http2,
        MeshProtocol::Opaque => Inside::Bytes,
    };
    let (config, server) = match tls.client(inside) {
        Ok(client) => client,
        Err(why) => return failed(Handshake::Other, why.to_owned()),
    };
    let connector = TlsConnector::from(config.clone());
    let stream = match connector.connect(server, ReadAhead::new(io)).await {
        Ok(stream) => stream,
        Err(error) => {
            let (cause, words) = explain(&error, inside);
            return failed(cause, words);
        }
    };
    // A server that says nothing would take the preface of HTTP/2 for what it likes.
    if inside == Inside::Http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return failed(Handshake::NoProtocol, NO_HTTP2.to_owned());
    }
    (Handshake::Ok, Ok(Stream::Secured(Box::new(stream))))
}

/// In HTTP/2 each request says its scheme, and servers refuse one that is not the connection's (RFC 9113 section 8.3.1).
pub fn name_scheme<B>(request: &mut Request<B>) {
    let mut parts = request.uri().clone().into_parts();
    if parts.path_and_query.is_none() {
        return; // CONNECT
    }
    // A URI that names a scheme names a server as well: without one, the address will be put in.
    if parts.scheme.is_some() {
        parts.scheme = Some(Scheme::HTTPS);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

const NO_HTTP2: &str =
    "the server does not choose HTTP/2 (ALPN h2), and the request is one of HTTP/2 or gRPC: check that it offers it";

/// rustls' error in words that say what to check.
fn explain(error: &io::Error, inside: Inside) -> (Handshake, String) {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        None => (
            Handshake::Closed,
            format!("the connection ended in the handshake ({error}): check that the server speaks TLS, and its log"),
        ),
        Some(Error::InvalidCertificate(invalid)) => certificate_error(invalid),
        Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol) | Error::NoApplicationProtocol) => (
            Handshake::NoProtocol,
            match inside {
                Inside::Http2 => NO_HTTP2.to_owned(),
                _ => "the server does not speak HTTP/1.1 (ALPN http/1.1), which the request is one of".to_owned(),
            },
        ),
        Some(Error::AlertReceived(alert)) => (
            Handshake::RefusedByPeer,
            format!("the server ended the handshake with the alert {alert:?}: its log says why"),
        ),
        Some(Error::InvalidMessage(_)) => (
            Handshake::NotTls,
            "what the server answers is no TLS: check its port".to_owned(),
        ),
        Some(Error::NoCertificatesPresented) => {
            (Handshake::NoCertificate, "the server shows no certificate".to_owned())
        }
        Some(other) => (Handshake::Other, other.to_string()),
    }
}

fn certificate_error(error: &CertificateError) -> (Handshake, String) {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            Handshake::UnknownIssuer,
            "its certificate is signed by none of the policy's CA certificates; the server must show intermediate ones itself"
                .to_owned(),
        ),
        CertificateError::Other(OtherError(other)) if other.is::<OtherName>() => {
            (Handshake::IdentityMismatch, other.to_string())
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            (Handshake::IdentityMismatch, bounded(error))
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (Handshake::Expired, bounded(error)),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            (Handshake::NotYetValid, bounded(error))
        }
        _ => (
            Handshake::Other,
            format!("its certificate is not accepted: {}", bounded(error)),
        ),
    }
}

/// It may quote the certificate, which has as many names as its owner likes.
fn bounded(error: &CertificateError) -> String {
    error.to_string().chars().take(512).collect()
}
