//! Sends one request on one connection, and says what it means when that fails.

use std::error::Error as _;
use std::net::SocketAddr;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::body::RequestBody;
use super::headers::complete_uri;
use super::pool::{Checkout, Lease, Sender};
use crate::error::{ProxyError, Reason};
use crate::outbound::replay::ClientBroke;

/// A request that has no response.
#[derive(Debug)]
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

/// Sends the request; gives the head of the response, and the connection to be given back after its body.
///
/// # Errors
/// Why there is no response.
pub async fn send(
    checkout: Checkout,
    mut request: Request<RequestBody>,
    to: SocketAddr,
) -> Result<(Response<Incoming>, Option<Lease>), Failure> {
    let reused = checkout.reused;
    match checkout.sender {
        Sender::Http1(mut lease) => {
            // A client's HTTP/1.0 request is not a reason to close the connection to the server.
            *request.version_mut() = Version::HTTP_11;
            match lease.sender.try_send_request(request).await {
                Ok(response) => Ok((response, Some(lease))),
                Err(error) => Err(failure(&error, reused, to)),
            }
        }
        Sender::Http2(mut sender) => {
            *request.version_mut() = Version::HTTP_2;
            complete_uri(&mut request, to);
            match sender.try_send_request(request).await {
                Ok(response) => Ok((response, None)),
                Err(error) => Err(failure(&error, reused, to)),
            }
        }
    }
}

fn failure(error: &TrySendError<Request<RequestBody>>, reused: bool, to: SocketAddr) -> Failure {
    let unsent = error.message().is_some();
    let reason = if unsent {
        Reason::UpstreamRefused
    } else {
        classify(error.error())
    };
    let what = match reason {
        Reason::UpstreamRefused => "refused the request unprocessed",
        Reason::UpstreamProtocol => "does not answer in HTTP as it should; check the Service's appProtocol",
        Reason::ClientClosed => "was not sent all of the request, because the client broke off",
        _ => "closed the connection before it answered; check whether it restarted or crashed",
    };
    Failure {
        error: ProxyError::new(reason, format!("{to} {what}: {}", with_causes(error.error()))),
        reused,
        unsent,
    }
}

fn classify(error: &hyper::Error) -> Reason {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<ClientBroke>() {
            return Reason::ClientClosed;
        }
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            // RFC 9113 section 8.7: REFUSED_STREAM, and streams above a GOAWAY's last one, were not processed. h2 gives
            // a remote GOAWAY as the error of just those.
            let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM) || h2.is_go_away();
            if refused && h2.is_remote() {
                return Reason::UpstreamRefused;
            }
            if h2.is_library() && h2.reason().is_some_and(is_protocol_error) {
                return Reason::UpstreamProtocol;
            }
        }
        cause = error.source();
    }
    if error.is_user() {
        Reason::ClientClosed
    } else if error.is_parse() {
        Reason::UpstreamProtocol
    } else {
        Reason::UpstreamReset
    }
}

/// What h2 itself says of frames that are not HTTP/2 (RFC 9113 section 7).
fn is_protocol_error(reason: h2::Reason) -> bool {
    matches!(
        reason,
        h2::Reason::PROTOCOL_ERROR
            | h2::Reason::FRAME_SIZE_ERROR
            | h2::Reason::FLOW_CONTROL_ERROR
            | h2::Reason::COMPRESSION_ERROR
    )
}

fn with_causes(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
