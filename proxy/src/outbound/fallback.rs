//! What is done where the Service cannot answer (`fallback` of a TrafficPolicy): the decision, the answer, and who is asked in its place.
//!
//! Retries come first: it is about the failure that the caller would see, whether an app says it or a sidecar, and about those failures alone
//! that the policy lists. It protects a caller from a Service that is not there. It does not say whether the Service has done what it was asked:
//! a request that was sent may have been carried out, as with the failure in whose place the answer stands. A response whose head has
//! gone to the caller stays what it is.
//!
//! Another backend is asked only where the Service cannot have seen the request, or where that may be carried out twice, as a retry is made;
//! and only as long as the request has time left. Where it is not asked, the failure stays.
//!
//! There is one level: what a route answers by itself, and what is refused before any endpoint is asked for, has no fallback; nor has what the
//! other backend answers, and it has no other policy than the Service's.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Response};
use outrigger_proxy_transport::body::BodySource;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::grpc::GRPC_STATUS;
use outrigger_proxy_transport::server::ResponseBody;
use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::time::Instant;

use super::attempts::{Attempts, Sent};
use super::breaker::Breaker;
use super::retry::repeatable;
use super::target::Snapshot;
use crate::call::{Call, LocalReply};
use crate::model::{Fallback, FallbackAnswer, FallbackBackend, FallbackWhen, Instead};
use crate::telemetry::{FallbackCause, Status};

/// What is to be done in place of a failure.
enum Done {
    Answered(LocalReply),
    /// This backend is to be asked, an index into the Service's.
    Ask(usize),
}

/// What a request has done to a server, and may do.
struct Again {
    /// It may be carried out twice.
    repeatable: bool,
    /// All of it can be sent once more, in time.
    possible: bool,
}

/// What is done in place of a failure, and of which. `None`: the failure stays, or it is none.
fn instead(
    fallback: &Fallback,
    said: Status,
    grpc: bool,
    again: impl FnOnce() -> Again,
    rng: &mut impl Rng,
) -> Option<(Done, FallbackCause)> {
    let cause = cause(&fallback.when, said, grpc)?;
    let done = match &fallback.instead {
        Instead::Answer(response) => Done::Answered(answer(response, grpc)?.into()),
        Instead::Ask(backends) => {
            let Again { repeatable, possible } = again();
            // A fault on purpose, and nobody to send it to: this sidecar's own words.
            let unseen = said.reason.is_some_and(|reason| {
                reason.never_processed() || matches!(reason, Reason::NoEndpoints | Reason::FaultInjected)
            });
            if !possible || !(repeatable || unseen) {
                return None;
            }
            Done::Ask(draw(backends, rng)?)
        }
    };
    Some((done, cause))
}

/// One of them by weight.
fn draw(backends: &[FallbackBackend], rng: &mut impl Rng) -> Option<usize> {
    let weighted = backends.choose_weighted(rng, |backend| backend.weight);
    weighted.ok().map(|backend| backend.backend)
}

/// What becomes of a request that was sent, or was not, where the policy has something in place of its failure.
pub async fn carry_out(
    fallback: &Fallback,
    sent: Sent,
    attempts: &Attempts<'_>,
    snapshot: &Snapshot,
    (head, body): (&Parts, &BodySource),
    call: &mut Call,
) -> Sent {
    let grpc = call.request.is_grpc();
    let said = match &sent {
        Ok(server) => Status::of(server.response.status(), server.response.headers()),
        Err(reply) => of_reply(reply, grpc),
    };
    let until = attempts.deadlines.request();
    let again = || Again {
        repeatable: repeatable(&head.method, &head.headers, &attempts.rules.retry),
        possible: body.can_repeat() && until.is_none_or(|until| Instant::now() < until),
    };
    let instead = instead(
        fallback,
        said,
        grpc,
        again,
        &mut *attempts.state.context.rng.borrow_mut(),
    );
    let Some((done, cause)) = instead else {
        return sent;
    };
    let backend = match done {
        Done::Answered(reply) => {
            begin(cause, said, sent, call);
            return Err(reply);
        }
        Done::Ask(backend) => backend,
    };
    // Where it cannot be asked, the failure stays: a backend that is none of the Service's is the fault of who names it, and one that has enough
    // to do has not had the request, which another server perhaps had.
    let Some(backend) = snapshot.backend(backend) else {
        return sent;
    };
    let breaker = backend.breaker(attempts.rules, attempts.metrics);
    let Ok(place) = breaker.as_ref().map(Breaker::request).transpose() else {
        return sent;
    };
    begin(cause, said, sent, call);
    let elsewhere = Attempts {
        backend,
        breaker: breaker.as_ref(),
        session: None,
        ..*attempts
    };
    Ok(elsewhere.send(head, body, place.flatten(), call).await?)
}

/// Something else is done, and the failure is no more.
fn begin(cause: FallbackCause, said: Status, failure: Sent, call: &mut Call) {
    call.fallback(cause, said);
    if let Ok(server) = failure {
        server.discard();
    }
}

/// What the caller would see of an error of this sidecar's.
fn of_error(error: &ProxyError, grpc: bool) -> Status {
    Status {
        http: Some(if grpc { 200 } else { error.reason.status().as_u16() }),
        grpc: grpc.then(|| error.reason.grpc_status()),
        reason: Some(error.reason),
    }
}

/// The same of its answer.
fn of_reply(reply: &LocalReply, grpc: bool) -> Status {
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

fn answer(fallback: &FallbackAnswer, grpc: bool) -> Option<Response<ResponseBody>> {
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
    use super::{Again, Done, instead, of_error};
    use crate::call::LocalReply;
    use crate::model::{Fallback, FallbackBackend, FallbackWhen, Instead};
    use crate::telemetry::FallbackCause;
    use crate::telemetry::Status;
    use http::{HeaderMap, Response, StatusCode};
    use outrigger_proxy_transport::error::{ProxyError, Reason};
    use outrigger_proxy_transport::server::ResponseBody;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn answered(fallback: &Fallback, said: Status, grpc: bool) -> Option<(Response<ResponseBody>, FallbackCause)> {
        let again = || panic!("nobody is to be asked");
        match instead(fallback, said, grpc, again, &mut SmallRng::seed_from_u64(1))? {
            (Done::Answered(LocalReply::Response(response)), cause) => Some((*response, cause)),
            _ => panic!("it is no answer"),
        }
    }

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
            let answered = answered(rules.request.fallback.as_deref().unwrap(), said, grpc);
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
            let plain = answered(fallback, error(Reason::NoEndpoints, false), false);
            let plain = plain.map(|(response, _)| response.status().as_u16());
            let of_grpc = answered(fallback, error(Reason::NoEndpoints, true), true);
            let of_grpc = of_grpc.and_then(|(response, _)| Status::of(response.status(), response.headers()).grpc);
            assert_eq!((plain, of_grpc), (http, grpc), "{response}");
        }
    }

    fn asks(backends: &[(usize, u32)]) -> Fallback {
        let backends = backends
            .iter()
            .map(|&(backend, weight)| FallbackBackend { backend, weight });
        Fallback {
            when: FallbackWhen {
                no_endpoints: true,
                overloaded: true,
                timeout: true,
                statuses: [418, 500, 502, 503, 504]
                    .map(|status| StatusCode::from_u16(status).unwrap())
                    .into(),
                grpc_statuses: Vec::new(),
            },
            instead: Instead::Ask(backends.collect()),
        }
    }

    /// What the Service may have seen is sent to nobody else, unless it may be carried out twice.
    #[test]
    fn another_backend_is_asked_where_no_harm_is_done() {
        use Reason::{
            AppUnavailable, AttemptTimeout, ConnectFailed, FaultInjected, NoEndpoints, Overloaded, UpstreamReset,
        };
        let of_fault = Status {
            http: Some(418),
            ..error(FaultInjected, false)
        };
        for (said, once) in [
            (error(NoEndpoints, false), true),
            (error(Overloaded, false), true),
            (error(ConnectFailed, false), true),
            (error(AppUnavailable, false), true),
            (of_fault, true),
            (error(AttemptTimeout, false), false),
            (error(UpstreamReset, false), false),
            (head(500, None), false),
            (head(503, None), false),
        ] {
            for (repeatable, possible, asked) in [
                (false, true, once),
                (true, true, true),
                (true, false, false),
                (false, false, false),
            ] {
                let again = || Again { repeatable, possible };
                let instead = instead(&asks(&[(3, 1)]), said, false, again, &mut SmallRng::seed_from_u64(1));
                let to = instead.map(|(done, _)| match done {
                    Done::Ask(backend) => backend,
                    Done::Answered(_) => panic!("it has no answer"),
                });
                assert_eq!(to, asked.then_some(3), "{said:?} {repeatable} {possible}");
            }
        }
    }

    #[test]
    fn backends_are_asked_by_their_weights() {
        let (fallback, mut rng) = (asks(&[(1, 1), (2, 3)]), SmallRng::seed_from_u64(7));
        let mut counts = [0; 3];
        for _ in 0..4000 {
            let again = || Again {
                repeatable: true,
                possible: true,
            };
            if let Some((Done::Ask(backend), _)) = instead(&fallback, head(500, None), false, again, &mut rng) {
                counts[backend] += 1;
            }
        }
        assert_eq!(counts[1] + counts[2], 4000);
        assert!((900..1100).contains(&counts[1]), "{counts:?}");
    }
}
