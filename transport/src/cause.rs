//! What an error of the HTTP library means for a request, and how it is said.

use std::error::Error as _;
use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::error::{ProxyError, Reason};

/// What hyper takes for an error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The client broke off while it sent the body.
#[derive(Debug, thiserror::Error)]
#[error("the client broke off: {0}")]
pub struct ClientBroke(#[source] pub BoxError);

/// The error of a request to `to` that has no response.
pub fn unanswered(reason: Reason, why: &str, unsent: bool, to: SocketAddr) -> ProxyError {
    let reason = match reason {
        Reason::UpstreamProtocol | Reason::TlsFailed => reason,
        _ if unsent => Reason::UpstreamRefused,
        _ => reason,
    };
    let what = match reason {
        Reason::UpstreamRefused => "refused the request unprocessed",
        Reason::UpstreamProtocol => "gave an answer that is not passed on",
        Reason::TlsFailed => "ended the TLS handshake after we had done our part; its log says why",
        Reason::ClientClosed => "was not sent all of the request, because the client broke off",
        Reason::BadRequest => "was not sent all of the request, because its body is malformed",
        _ => "closed the connection before it answered; check whether it restarted or crashed, or expects TLS",
    };
    ProxyError::new(reason, format!("{to} {what}: {why}"))
}

/// What broke a request.
pub fn classify(error: &hyper::Error) -> Reason {
    if let Some(h2) = h2_cause(error) {
        // RFC 9113 section 8.7: REFUSED_STREAM, and streams above a GOAWAY's last one, were not processed. h2 gives
        // a remote GOAWAY as the error of just those.
        let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM) || h2.is_go_away();
        if refused && h2.is_remote() {
            return Reason::UpstreamRefused;
        }
        if h2.is_library() {
            return Reason::UpstreamProtocol;
        }
    }
    if error.is_user() || causes(error).any(|cause| cause.is::<ClientBroke>()) {
        if causes(error).any(is_invalid_data) {
            Reason::BadRequest
        } else {
            Reason::ClientClosed
        }
    } else if causes(error).any(is_handshake_alert) {
        Reason::TlsFailed
    } else if error.is_parse() {
        Reason::UpstreamProtocol
    } else {
        Reason::UpstreamReset
    }
}

/// What broke an HTTP/2 connection to a peer before its SETTINGS. Of an alert, the library keeps only text and the kind.
pub fn classify_before_settings(error: &hyper::Error) -> Reason {
    match causes(error).any(is_invalid_data) {
        true => Reason::TlsFailed,
        false => classify(error),
    }
}

/// Of the client's body, it is what the guard of its connection says: a chunk's size that is none, for instance. Of the
/// connection to the server, what TLS says.
fn is_invalid_data(cause: &(dyn std::error::Error + 'static)) -> bool {
    let io = cause.downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == ErrorKind::InvalidData)
}

/// In TLS 1.3 a client has finished before the server looks at its certificate, so a refusal comes in place of the first
/// answer (RFC 8446 section 4.4.2.4). These alerts have no place after the handshake.
fn is_handshake_alert(cause: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        DecryptError, UnknownCA, UnsupportedCertificate,
    };
    let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    matches!(
        inner.and_then(|inner| inner.downcast_ref()),
        Some(rustls::Error::AlertReceived(
            AccessDenied
                | BadCertificate
                | CertificateExpired
                | CertificateRequired
                | CertificateRevoked
                | CertificateUnknown
                | DecryptError
                | UnknownCA
                | UnsupportedCertificate
        ))
    )
}

/// What HTTP/2 says about it, if it comes from there.
pub fn h2_cause(error: &hyper::Error) -> Option<&h2::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn causes(error: &hyper::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// What is wrong, for a person. The library tells the ways in which a message is no HTTP apart by its text alone.
pub fn describe(error: &hyper::Error) -> String {
    const OTHER: &str = "check the Service's appProtocol";
    if let Some(h2) = h2_cause(error).filter(|h2| h2.is_library()) {
        return match h2.is_reset() {
            true => format!("it is malformed, or its header section is larger than 64 KiB ({h2})"),
            false => format!("it is not HTTP/2 ({h2}); {OTHER}"),
        };
    }
    if !error.is_parse() {
        return with_causes(error);
    }
    if error.is_parse_too_large() {
        return "its header section has more than 100 lines, or more than 64 KiB".to_owned();
    }
    let text = with_causes(error);
    match text.as_str() {
        "invalid HTTP version parsed" => format!("it does not begin as HTTP/1 does; {OTHER}"),
        "invalid HTTP status-code parsed" => "its status is not a number from 100 to 999".to_owned(),
        "invalid HTTP header parsed" => {
            "a line of its head has a name, or a byte, that no header has (RFC 9112 section 5)".to_owned()
        }
        "invalid content-length parsed" => "its Content-Length is not a number, or lengths that differ".to_owned(),
        "unexpected transfer-encoding parsed" => "Transfer-Encoding in HTTP/1.0".to_owned(),
        _ => text,
    }
}

/// The error with all that caused it, in one line.
fn with_causes(error: &hyper::Error) -> String {
    causes(error).fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
