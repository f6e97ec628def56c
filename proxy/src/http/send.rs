//! Sends one request on one connection, and says what it means when that fails.

use std::error::Error as _;
use std::io::ErrorKind;
use std::net::SocketAddr;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol;

use super::body::RequestBody;
use super::expect::await_answer;
use super::headers::{add_host, check_response, complete_uri};
use super::multiplex::Slot;
use super::pool::{Checkout, Lease, Sender};
use crate::error::{ProxyError, Reason};
use crate::outbound::replay::ClientBroke;

/// A request that has no response.
pub struct Failure {
    pub error: ProxyError,
    /// The connection had carried a request before, so the server may just have closed it.
    pub reused: bool,
    /// Not a byte of it was sent.
    pub unsent: bool,
}

impl Failure {
    /// A failure before there was a connection.
    pub fn before_sending(error: ProxyError) -> Self {
        Self {
            error,
            reused: false,
            unsent: true,
        }
    }
}

/// Sends the request; gives the head of the response, and what it holds of the connection until its end.
///
/// # Errors
/// Why there is no response.
pub async fn send(
    checkout: Checkout,
    mut request: Request<RequestBody>,
    to: SocketAddr,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let reused = checkout.reused;
    match checkout.sender {
        Sender::Http1(mut idling) => {
            // A client's HTTP/1.0 request is not a reason to close the connection to the server.
            if std::mem::replace(request.version_mut(), Version::HTTP_11) == Version::HTTP_10 {
                add_host(&mut request, to);
            }
            let awaited = await_answer(&mut request);
            match idling.sender.try_send_request(request).await {
                Ok(response) => {
                    if let Err(what) = check_response(response.headers()) {
                        return Err(failure(Reason::UpstreamProtocol, what, false, reused, to));
                    }
                    idling.refused = awaited.and_then(|answer| answer.refused());
                    Ok((response, Lease::Http1(idling)))
                }
                Err(mut broken) => {
                    let unsent = broken.take_message().is_some();
                    let error = broken.error();
                    Err(failure(classify(error), &with_causes(error), unsent, reused, to))
                }
            }
        }
        Sender::Http2(slot) => {
            *request.version_mut() = Version::HTTP_2;
            complete_uri(&mut request, to);
            if request.extensions().get::<Protocol>().is_some() && !slot.takes_extended_connect().await {
                return Err(Failure {
                    error: ProxyError::new(
                        Reason::UpstreamProtocol,
                        format!("{to} does not offer extended CONNECT (RFC 8441); use HTTP/1.1 for WebSockets"),
                    ),
                    reused,
                    unsent: false,
                });
            }
            match slot.sender().try_send_request(request).await {
                Ok(response) => Ok((response, Lease::Http2(slot))),
                Err(mut broken) => {
                    let unsent = broken.take_message().is_some() || slot.never_began();
                    Err(http2_failure(broken.error(), &slot, unsent, reused, to))
                }
            }
        }
    }
}

fn http2_failure(error: &hyper::Error, slot: &Slot, unsent: bool, reused: bool, to: SocketAddr) -> Failure {
    // The library tells a request that still waits in a connection nothing but that it is gone.
    let gone = error.is_user() || error.is_canceled();
    // Of an alert, it keeps only text and the kind. One that comes before SETTINGS is about the handshake.
    let look = |error: &hyper::Error| match slot.never_began() && causes(error).any(is_invalid_data) {
        true => (Reason::TlsFailed, with_causes(error)),
        false => (classify(error), with_causes(error)),
    };
    let (reason, why) = if gone {
        let broken = slot.broken(look);
        // In peace, after a GOAWAY: a stream that had begun would have had its end (RFC 9113 section 6.8).
        let reason = match slot.ended_in_peace() {
            true => Reason::UpstreamRefused,
            false => Reason::UpstreamReset,
        };
        broken.unwrap_or_else(|| (reason, "the connection has ended".to_owned()))
    } else {
        look(error)
    };
    if !h2_cause(error).is_some_and(h2::Error::is_reset) {
        slot.leave();
    }
    failure(reason, &why, unsent, reused, to)
}

fn failure(reason: Reason, why: &str, unsent: bool, reused: bool, to: SocketAddr) -> Failure {
    let reason = match reason {
        Reason::UpstreamProtocol | Reason::TlsFailed => reason,
        _ if unsent => Reason::UpstreamRefused,
        _ => reason,
    };
    let what = match reason {
        Reason::UpstreamRefused => "refused the request unprocessed",
        Reason::UpstreamProtocol => "does not answer in HTTP as it should; check the Service's appProtocol",
        Reason::TlsFailed => "ended the TLS handshake after we had done our part; its log says why",
        Reason::ClientClosed => "was not sent all of the request, because the client broke off",
        Reason::BadRequest => "was not sent all of the request, because its body is malformed",
        _ => "closed the connection before it answered; check whether it restarted or crashed",
    };
    Failure {
        error: ProxyError::new(reason, format!("{to} {what}: {why}")),
        reused,
        unsent,
    }
}

fn classify(error: &hyper::Error) -> Reason {
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

fn with_causes(error: &hyper::Error) -> String {
    causes(error).fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
