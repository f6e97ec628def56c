//! Sends one request on one connection, and says what it means when that fails.

use std::net::SocketAddr;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol;

use super::answer::Asked;
use super::multiplex::Slot;
use super::pool::{Checkout, Lease, Sender};
use crate::authority;
use crate::body::{RequestBody, await_answer};
use crate::cause::{classify, describe, h2_cause, unanswered};
use crate::error::{ProxyError, Reason};

/// A request that has no response.
pub struct Failure {
    /// Why, as the client is told.
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
    let asked = Asked::of(&request);
    let improper = |what| failure(Reason::UpstreamProtocol, what, false, reused, to);
    match checkout.sender {
        Sender::Http1(mut idling) => {
            // A client's HTTP/1.0 request is not a reason to close the connection to the server.
            let from = std::mem::replace(request.version_mut(), Version::HTTP_11);
            authority::complete(&mut request, from, to);
            let awaited = await_answer(&mut request);
            match idling.sender.try_send_request(request).await {
                Ok(mut response) => {
                    asked.check(&mut response).map_err(improper)?;
                    idling.refused = awaited.and_then(|answer| answer.refused());
                    Ok((response, Lease::Http1(idling)))
                }
                Err(mut broken) => {
                    let unsent = broken.take_message().is_some();
                    let error = broken.error();
                    Err(failure(classify(error), &describe(error), unsent, reused, to))
                }
            }
        }
        Sender::Http2(slot) => {
            *request.version_mut() = Version::HTTP_2;
            authority::complete(&mut request, Version::HTTP_2, to);
            if request.extensions().get::<Protocol>().is_some() && !slot.takes_extended_connect() {
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
                Ok(mut response) => {
                    asked.check(&mut response).map_err(improper)?;
                    Ok((response, Lease::Http2(slot)))
                }
                Err(mut broken) => {
                    let unsent = broken.take_message().is_some();
                    Err(http2_failure(broken.error(), &slot, unsent, reused, to))
                }
            }
        }
    }
}

fn http2_failure(error: &hyper::Error, slot: &Slot, unsent: bool, reused: bool, to: SocketAddr) -> Failure {
    // The library tells a request that still waits in a connection nothing but that it is gone.
    let gone = error.is_user() || error.is_canceled();
    let look = |error: &hyper::Error| (classify(error), describe(error));
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
    Failure {
        error: unanswered(reason, why, unsent, to),
        reused,
        unsent,
    }
}
