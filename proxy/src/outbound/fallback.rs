//! What a request is answered with where the Service cannot answer (`fallback` of a TrafficPolicy): the decision, and the answer.
//!
//! Retries come first: it is about the failure that the caller would see, whether an app says it or a sidecar, and about those failures alone
//! that the policy lists. It protects a caller from a Service that is not there. It does not say whether the Service has done what it was asked:
//! a request that was sent may have been carried out, as with the failure in whose place the answer stands. A response whose head has
//! gone to the caller stays what it is.
//!
//! There is one level: what a route answers by itself, and what is refused before any endpoint is asked for, has no fallback.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::grpc::GRPC_STATUS;
use outrigger_proxy_transport::server::ResponseBody;

use crate::call::LocalReply;
use crate::model::{Fallback, FallbackWhen};
use crate::telemetry::{FallbackCause, Status};

/// The answer in place of a failure, and of which. `None`: the failure stays, or it is none.
pub fn instead(fallback: &Fallback, said: Status, grpc: bool) -> Option<(Response<ResponseBody>, FallbackCause)> {
    let cause = cause(&fallback.when, said, grpc)?;
    Some((answer(fallback, grpc)?, cause))
}

/// What the caller would see of an error of this sidecar's.
pub fn of_error(error: &ProxyError, grpc: bool) -> Status {
    Status {
        http: Some(if grpc { 200 } else { error.reason.status().as_u16() }),
        grpc: grpc.then(|| error.reason.grpc_status()),
        reason: Some(error.reason),
    }
}

/// The same of its answer.
pub fn of_reply(reply: &LocalReply, grpc: bool) -> Status {
    match reply {
        LocalReply::Error(error) => of_error(error, grpc),
        LocalReply::Response(response) => Status::of(response.status(), response.headers()),
    }
}

fn cause(when: &FallbackWhen, said: Status, grpc: bool) -> Option<FallbackCause> {
    let is_listed = |reason: &Reason| match reason {
        Reason::NoEndpoints => when.no_endpoints,
        Reason::Overloaded => when.overloaded,
        Reason::RequestTimeout | Reason::AttemptTimeout | Reason::ConnectTimeout | Reason::IdleTimeout => when.timeout,
        _ => false,
    };
    let reason = said.reason.filter(is_listed).map(FallbackCause::Reason);
    let is_status = |status: &u16| when.statuses.iter().any(|listed| listed.as_u16() == *status);
    let status = said.http.filter(is_status).map(FallbackCause::Status);
    let of_grpc = said.grpc.filter(|status| grpc && when.grpc_statuses.contains(status));
    reason.or(status).or(of_grpc.map(FallbackCause::Grpc))
}

fn answer(fallback: &Fallback, grpc: bool) -> Option<Response<ResponseBody>> {
    let body = if grpc { Bytes::new() } else { fallback.body.clone() };
    let has_body = !body.is_empty();
    let mut response = Response::new(ResponseBody::ready(body));
    response.headers_mut().clone_from(&fallback.headers);
    if grpc {
        let status = fallback.grpc_status?;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, status.into());
        return Some(response);
    }
    *response.status_mut() = fallback.status?;
    if has_body {
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().entry(CONTENT_TYPE).or_insert(plain);
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::rules_of;
    use super::{instead, of_error};
    use crate::telemetry::Status;
    use http::{HeaderMap, StatusCode};
    use outrigger_proxy_transport::error::{ProxyError, Reason};

    fn error(reason: Reason, grpc: bool) -> Status {
        of_error(&ProxyError::new(reason, ""), grpc)
    }

    fn head(status: u16, grpc: Option<u16>) -> Status {
        let headers = grpc.map(|grpc| ("grpc-status".parse().unwrap(), grpc.into()));
        let headers = HeaderMap::from_iter(headers);
        Status::of(StatusCode::from_u16(status).unwrap(), &headers)
    }

    /// What stands in for each failure: where, and why.
    #[test]
    fn only_what_is_listed_is_answered_otherwise() {
        use Reason::{
            AccessDenied, AttemptTimeout, ConnectFailed, ConnectTimeout, IdleTimeout, NoEndpoints, Overloaded,
            RequestTimeout, UpstreamReset,
        };
        let both = "response: {status: 200, grpcStatus: 5, body: later}";
        for (when, said, grpc, cause) in [
            (
                "reasons: [NoEndpoints]",
                error(NoEndpoints, false),
                false,
                Some("no-endpoints"),
            ),
            (
                "reasons: [NoEndpoints]",
                error(NoEndpoints, true),
                true,
                Some("no-endpoints"),
            ),
            ("reasons: [NoEndpoints]", error(ConnectFailed, false), false, None),
            ("reasons: [NoEndpoints]", error(Overloaded, false), false, None),
            (
                "reasons: [Overloaded]",
                error(Overloaded, false),
                false,
                Some("overloaded"),
            ),
            ("reasons: [Overloaded]", error(NoEndpoints, false), false, None),
            (
                "reasons: [Timeout]",
                error(RequestTimeout, false),
                false,
                Some("request-timeout"),
            ),
            (
                "reasons: [Timeout]",
                error(AttemptTimeout, true),
                true,
                Some("attempt-timeout"),
            ),
            (
                "reasons: [Timeout]",
                error(ConnectTimeout, false),
                false,
                Some("connect-timeout"),
            ),
            (
                "reasons: [Timeout]",
                error(IdleTimeout, false),
                false,
                Some("idle-timeout"),
            ),
            ("reasons: [Timeout]", error(UpstreamReset, false), false, None),
            (
                "reasons: [NoEndpoints, Overloaded, Timeout]",
                head(503, None),
                false,
                None,
            ),
            ("statuses: [503]", head(503, None), false, Some("status-503")),
            ("statuses: [503]", head(502, None), false, None),
            (
                "statuses: [503]",
                error(ConnectFailed, false),
                false,
                Some("status-503"),
            ),
            ("statuses: [502, 503]", head(200, None), false, None),
            // What the callee refuses is an answer, unless the user lists it.
            ("statuses: [403]", error(AccessDenied, false), false, Some("status-403")),
            (
                "statuses: [503], reasons: [NoEndpoints, Overloaded, Timeout]",
                head(429, None),
                false,
                None,
            ),
            ("grpcStatuses: [14]", head(200, Some(14)), true, Some("grpc-status-14")),
            (
                "grpcStatuses: [14]",
                error(ConnectFailed, true),
                true,
                Some("grpc-status-14"),
            ),
            ("grpcStatuses: [14]", head(200, Some(8)), true, None),
            ("grpcStatuses: [14]", head(200, Some(0)), true, None),
            ("grpcStatuses: [14]", head(200, Some(14)), false, None),
            ("statuses: [503]", error(ConnectFailed, true), true, None),
            // A server that is none of gRPC.
            ("statuses: [503]", head(503, None), true, Some("status-503")),
        ] {
            let rules = rules_of(&format!("fallback: {{when: {{{when}}}, {both}}}"));
            let answered = instead(rules.request.fallback.as_deref().unwrap(), said, grpc);
            let answered = answered.map(|(response, cause)| {
                let expected = if grpc { Some(5) } else { None };
                assert_eq!(response.status(), 200, "{when} {said:?}");
                assert_eq!(
                    Status::of(response.status(), response.headers()).grpc,
                    expected,
                    "{when} {said:?}"
                );
                cause.text()
            });
            assert_eq!(answered.as_deref(), cause, "{when} {said:?} {grpc}");
        }
    }

    #[test]
    fn whom_an_answer_is_for() {
        for (response, http, grpc) in [
            ("{status: 200}", Some(200), None),
            ("{status: 429}", Some(429), Some(8)),
            ("{status: 503, grpcStatus: 1}", Some(503), Some(1)),
            ("{grpcStatus: 0}", None, Some(0)),
        ] {
            let rules = rules_of(&format!(
                "fallback: {{when: {{reasons: [NoEndpoints]}}, response: {response}}}"
            ));
            let fallback = rules.request.fallback.as_deref().unwrap();
            let plain = instead(fallback, error(Reason::NoEndpoints, false), false);
            let plain = plain.map(|(response, _)| response.status().as_u16());
            let of_grpc = instead(fallback, error(Reason::NoEndpoints, true), true);
            let of_grpc = of_grpc.and_then(|(response, _)| Status::of(response.status(), response.headers()).grpc);
            assert_eq!((plain, of_grpc), (http, grpc), "{response}");
        }
    }
}
