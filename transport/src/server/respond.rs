//! The one place where an error becomes a response.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::response::ResponseBody;
use crate::error::{ProxyError, Reason};
use crate::grpc::{GRPC_PUSHBACK, grpc_trailers};
use crate::headers::OUTRIGGER_ERROR;

/// Answers in the sidecar's own name: the status, the code in `outrigger-error`, and a sentence. A gRPC client gets a
/// response of trailers only (PROTOCOL-HTTP2.md).
pub fn error_response(error: &ProxyError, grpc: bool) -> Response<ResponseBody> {
    if grpc {
        let mut response = Response::new(ResponseBody::ready(Bytes::new()));
        *response.headers_mut() = grpc_trailers(error);
        let content_type = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        return response;
    }
    let body = format!("{}\nSee docs/errors.md#{}\n", error.detail, error.reason.code());
    let mut response = Response::new(ResponseBody::ready(body.into()));
    *response.status_mut() = error.reason.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(OUTRIGGER_ERROR, HeaderValue::from_static(error.reason.code()));
    if let Some(challenge) = challenge(error) {
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

/// How to come in (RFC 6750 section 3): who has brought no token hears of no error. A realm has to be named where nothing else is,
/// and says nothing of the workload.
fn challenge(error: &ProxyError) -> Option<HeaderValue> {
    match error.reason {
        Reason::TokenRequired => Some(HeaderValue::from_static(r#"Bearer realm="outrigger""#)),
        Reason::TokenInvalid => {
            // What `error_description` may have.
            let is_text = |c: &char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\');
            let told: String = error.detail.chars().filter(is_text).collect();
            let told = format!(r#"Bearer realm="outrigger", error="invalid_token", error_description="{told}""#);
            HeaderValue::try_from(told).ok()
        }
        _ => None,
    }
}

/// Says when a client may try again: in seconds (RFC 9110 section 10.2.3), and to one of gRPC in milliseconds too (gRFC A6); at least one.
pub fn say_when(headers: &mut HeaderMap, wait: Duration, grpc: bool) {
    let parts = |part: u128| wait.as_micros().div_ceil(part).max(1);
    // Digits are a value.
    let value = |number: u128| HeaderValue::try_from(number.to_string()).ok();
    if let Some(seconds) = value(parts(1_000_000)) {
        headers.insert(RETRY_AFTER, seconds);
    }
    if let Some(millis) = value(parts(1000)).filter(|_| grpc) {
        headers.insert(GRPC_PUSHBACK, millis);
    }
}

/// A response without a body, in the name of a route.
pub fn empty_response(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::ready(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// The reason that a sidecar's response names.
pub fn reason_of(headers: &HeaderMap) -> Option<Reason> {
    let code = headers.get(OUTRIGGER_ERROR)?.as_bytes();
    Reason::ALL.into_iter().find(|reason| reason.code().as_bytes() == code)
}

#[cfg(test)]
mod tests {
    use super::{error_response, reason_of};
    use crate::error::{ProxyError, Reason};

    #[test]
    fn every_reason_is_told_in_both_tongues() {
        for reason in Reason::ALL {
            let error = ProxyError::new(reason, "why: 100 %\n");
            let plain = error_response(&error, false);
            assert_eq!(plain.status(), reason.status());
            assert_eq!(reason_of(plain.headers()), Some(reason));
            let challenge = match reason {
                Reason::TokenRequired => Some(r#"Bearer realm="outrigger""#),
                Reason::TokenInvalid => {
                    Some(r#"Bearer realm="outrigger", error="invalid_token", error_description="why: 100 %""#)
                }
                _ => None,
            };
            assert_eq!(
                plain.headers().get("www-authenticate").map(|v| v.as_bytes()),
                challenge.map(str::as_bytes)
            );
            let grpc = error_response(&error, true);
            assert_eq!(grpc.status(), 200);
            assert_eq!(grpc.headers()["grpc-status"], reason.grpc_status().to_string());
            assert_eq!(
                grpc.headers()["grpc-message"],
                format!("why: 100 %25%0A ({})", reason.code())
            );
        }
    }
}
