//! What a question has come to: a request that is let through, with changes of its head, or an answer to its client.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use outrigger_proxy_transport::error::{ProxyError, Reason, grpc_status_of};
use outrigger_proxy_transport::grpc::GRPC_STATUS;
use outrigger_proxy_transport::headers::{OUTRIGGER_ERROR, is_reserved};
use outrigger_proxy_transport::server::{ResponseBody, error_response};

use crate::telemetry::AuthDecision;

#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// In their order.
    Admitted(Vec<Change>),
    Denied(Denial),
}

/// Of the head of a request that is let through.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    Remove(HeaderName),
    /// Behind what is there.
    Append(HeaderName, HeaderValue),
    /// In the place of what is there.
    Set(HeaderName, HeaderValue),
    /// The same, only where something is there.
    Replace(HeaderName, HeaderValue),
    /// Only where nothing is there.
    Default(HeaderName, HeaderValue),
}

/// What the client hears in place of an answer of the Service called.
#[derive(Debug, PartialEq)]
pub(super) struct Denial {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// `None`: it could not be read, or is too large.
    pub(super) body: Option<Bytes>,
}

impl Verdict {
    pub(super) fn decision(&self) -> AuthDecision {
        match self {
            Self::Admitted(_) => AuthDecision::Admitted,
            Self::Denied(_) => AuthDecision::Denied,
        }
    }
}

impl Change {
    pub(super) fn apply(self, headers: &mut HeaderMap) {
        match self {
            Self::Remove(name) => drop(headers.remove(name)),
            Self::Append(name, value) => drop(headers.append(name, value)),
            Self::Set(name, value) => drop(headers.insert(name, value)),
            Self::Replace(name, value) if headers.contains_key(&name) => drop(headers.insert(name, value)),
            Self::Replace(..) => {}
            Self::Default(name, value) => drop(headers.entry(name).or_insert(value)),
        }
    }
}

impl Denial {
    /// A denial must not look like what the client asked for: what is no status of one is 403.
    pub(super) fn status(said: Option<StatusCode>) -> StatusCode {
        let is_denial = |status: &StatusCode| (300..600).contains(&status.as_u16());
        said.filter(is_denial).unwrap_or(StatusCode::FORBIDDEN)
    }

    /// As the client gets it: the answer as it came, marked as none of the Service called. To gRPC, its status, and headers that are not about
    /// the body, which it could not read.
    pub(super) fn reply(self, grpc: bool) -> Response<ResponseBody> {
        let Self {
            status,
            mut headers,
            body,
        } = self;
        let reserved: Vec<HeaderName> = headers.keys().filter(|name| is_reserved(name)).cloned().collect();
        reserved.iter().for_each(|name| drop(headers.remove(name)));
        if grpc || body.is_none() {
            for about_body in [
                CONTENT_TYPE,
                CONTENT_ENCODING,
                CONTENT_LANGUAGE,
                CONTENT_RANGE,
                CONTENT_LENGTH,
            ] {
                headers.remove(about_body);
            }
        }
        if grpc {
            let denied = format!("the external authorization of its route does not let the request through ({status})");
            let mut response = error_response(&ProxyError::new(Reason::AuthDenied, denied), true);
            let own = std::mem::replace(response.headers_mut(), headers);
            // What gRPC says of the call is the sidecar's word.
            own.iter()
                .for_each(|(name, value)| drop(response.headers_mut().insert(name.clone(), value.clone())));
            let said = grpc_status_of(status);
            response.headers_mut().insert(GRPC_STATUS, said.into());
            return response;
        }
        let mut response = Response::new(ResponseBody::ready(body.unwrap_or_default()));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        let code = HeaderValue::from_static(Reason::AuthDenied.code());
        response.headers_mut().insert(OUTRIGGER_ERROR, code);
        response
    }
}
