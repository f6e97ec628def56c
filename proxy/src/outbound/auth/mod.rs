//! External authorization (Gateway API, HTTPExternalAuthFilter; GEP-1494): a Service is asked whether a request is let through, before anything of
//! it is sent on.
//!
//! **It fails closed.** What lets a request through is one answer, and nothing else: not a Service that is away, nor one that is late, nor one whose
//! words make no sense. What stands in for failures of the Service called (retries, fallbacks) does not stand in for this one.
//!
//! **It is no wall.** The caller's sidecar asks, so a pod without one, and a call of a pod's own address, is not asked about. Who may call is what an
//! AccessPolicy says, which the callee enforces.
//!
//! The Service that is asked is called as any other: its endpoint is picked, mutual TLS holds, and how it answers is said of its own endpoints. Nothing
//! of it is said of the Service called: no attempt is made before there is an answer. A question that no server has seen, or that was sent on a
//! connection which had just ended, is asked again, a few times. All of it has [`LIMIT`], and ends with `timeouts.request` and a gRPC caller's
//! own limit.

mod grpc;
mod http;
#[cfg(test)]
mod tests;
mod verdict;
pub mod wire;

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use ::http::request::Parts;
use ::http::{HeaderMap, HeaderName, Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use outrigger_proxy_transport::body::{AheadRoom, ClientBody, NotRead, RequestBody};
use outrigger_proxy_transport::client::Lease;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::headers::{is_reserved, strip_response};
use outrigger_proxy_transport::net::HttpVersion;
use outrigger_proxy_transport::server::reason_of;
use tokio::time::{Instant, timeout_at};

use self::verdict::Verdict;
use super::State;
use super::attempts::{self, Deadlines};
use super::beside::{SentBeside, send_beside};
use super::member::{InHand, Member};
use super::target::{Snapshot, WorkerBackend};
use crate::call::{Call, LocalReply, Remote};
use crate::model::{AuthProtocol, ExternalAuth};
use crate::telemetry::{AuthDecision, Peer, Status};

/// For all of a question: for a body that is read for it, and for the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Endpoints that are tried with one question.
const TRIES: usize = 3;
/// Bytes of the bodies that are read ahead on one worker.
const ROOM: usize = 16 * 1024 * 1024;
/// Bytes of an answer that are read: its head is bounded as any other.
const MAX_ANSWER: usize = 64 * 1024;

/// What one worker has for questions.
pub struct Asking {
    room: AheadRoom,
}

/// A request that is asked about.
pub struct Asked<'a> {
    pub state: &'a Rc<State>,
    pub snapshot: &'a Snapshot,
    pub call: &'a Call,
    /// The route's, for all of the request.
    pub timeout: Option<Duration>,
}

/// A question, as it is sent.
struct Question {
    head: Parts,
    /// What is said, and then what is not copied for it.
    body: [Bytes; 2],
    version: HttpVersion,
}

/// When there must be an answer.
struct Limit {
    until: Instant,
    /// Nothing ends the request itself before.
    is_own: bool,
}

/// A server's answer, of which the body is not read yet.
struct Answer {
    response: Response<Incoming>,
    member: Rc<Member>,
    /// Both end when it has been read.
    lease: Lease,
    _in_hand: InHand,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            room: AheadRoom::new(ROOM),
        }
    }
}

impl Asked<'_> {
    /// Asks about a request, and changes its head as the answer says. Its body is read where that is to be sent along, and can be read again.
    ///
    /// # Errors
    /// What answers the request, which is not let through.
    pub async fn ask(&self, auth: &ExternalAuth, head: &mut Parts, body: &mut ClientBody) -> Result<(), LocalReply> {
        let Some(backend) = auth.backend.and_then(|index| self.snapshot.backend(index)) else {
            let none = "there is no Service of the name that the ExternalAuth filter of the matching route has; the route's status names it";
            return Err(ProxyError::new(Reason::InvalidBackend, none).into());
        };
        let verdict = self.verdict(auth, backend, head, body).await;
        match verdict {
            Ok(Verdict::Admitted(changes)) => {
                self.count(AuthDecision::Admitted);
                changes.into_iter().for_each(|change| change.apply(&mut head.headers));
                Ok(())
            }
            Ok(Verdict::Denied(denial)) => {
                self.count(AuthDecision::Denied);
                Err(denial.reply(self.call.request.is_grpc()).into())
            }
            Err(error) => {
                self.count(AuthDecision::Failed);
                Err(error.into())
            }
        }
    }

    fn count(&self, decision: AuthDecision) {
        self.snapshot.metrics.external_auth(decision);
    }

    async fn verdict(
        &self,
        auth: &ExternalAuth,
        backend: &WorkerBackend,
        head: &mut Parts,
        body: &mut ClientBody,
    ) -> Result<Verdict, ProxyError> {
        let limit = Limit::of(self.call, head, self.timeout);
        let body = match auth.max_body {
            None => None,
            Some(most) => {
                let read = timeout_at(limit.until, self.read(most, head, body)).await;
                Some(read.map_err(|_| late_body(&limit))??)
            }
        };
        let mut question = self.question(auth, backend, head, body)?;
        let asked = self.call.question(backend.name(), &mut question.head);
        let (verdict, peer, status) = match limit.hold(backend, self.answer(backend, question)).await {
            Ok(Ok(answer)) => {
                let status = Status::of(answer.response.status(), answer.response.headers());
                let member = Rc::clone(&answer.member);
                let judged = limit.hold(backend, self.judge(auth, backend, answer)).await;
                (judged.flatten(), Some(member), status)
            }
            Ok(Err(error)) => {
                let status = Status::failure(error.reason);
                (Err(unavailable(backend, &error.detail)), None, status)
            }
            Err(late) => {
                let status = Status::failure(late.reason);
                (Err(late), None, status)
            }
        };
        let decision = match &verdict {
            Ok(verdict) => verdict.decision(),
            Err(_) => AuthDecision::Failed,
        };
        let peer = peer.as_ref().map_or(Peer::default(), |member| member.peer());
        self.call.answered(&asked, peer, status, decision);
        verdict
    }

    /// All of the request's body.
    async fn read(&self, limit: usize, head: &mut Parts, body: &mut ClientBody) -> Result<Bytes, ProxyError> {
        let read = body.read_ahead(limit, &self.state.asking.room).await;
        // It is here: the client has been told to go on, and need not be told again.
        head.headers.remove(::http::header::EXPECT);
        read.map_err(|why| match why {
            NotRead::TooLarge => ProxyError::new(
                Reason::BodyTooLarge,
                format!("its body has more than the {limit} bytes of forwardBody.maxSize of its route's ExternalAuth filter"),
            ),
            NotRead::NoRoom => ProxyError::new(
                Reason::Overloaded,
                "there is no memory left for the bodies that ExternalAuth filters have sent along; is forwardBody needed?",
            ),
            NotRead::Broken(error) => {
                ProxyError::new(Reason::ClientClosed, format!("the request's body broke off: {error}"))
            }
        })
    }

    fn question(
        &self,
        auth: &ExternalAuth,
        backend: &WorkerBackend,
        head: &Parts,
        body: Option<Bytes>,
    ) -> Result<Question, ProxyError> {
        let mut question = match &auth.protocol {
            AuthProtocol::Http { path, headers, .. } => http::question(path, headers, head, body)?,
            AuthProtocol::Grpc { headers } => {
                let process = &self.state.context.process;
                let facts = grpc::Facts {
                    caller: process.identity.current().map(|credentials| credentials.id.to_string()),
                    service: self.snapshot.service.name.to_string(),
                    now: process.identity.clock().now(),
                };
                grpc::question(headers.as_deref(), head, body, facts, backend.name())
            }
        };
        http::trace(&head.headers, &mut question.head.headers);
        Ok(question)
    }

    /// Sends the question until somebody answers it, to one endpoint after the other.
    async fn answer(&self, backend: &WorkerBackend, question: Question) -> Result<Answer, ProxyError> {
        let mut tried: Vec<Rc<Member>> = Vec::new();
        loop {
            let sent = send_beside(self.state, backend, &tried, question.version, question.request()).await?;
            let SentBeside {
                member,
                in_hand,
                result,
            } = sent;
            tried.push(Rc::clone(&member));
            let error = match result {
                Ok((response, lease)) => match reason_of(response.headers()) {
                    // A sidecar's word, and not the server's.
                    Some(reason) => {
                        attempts::discard(response, lease);
                        let said = format!("the sidecar of {} says {}", member.endpoint.address, reason.code());
                        let again = reason.never_processed();
                        (ProxyError::new(reason, said), again)
                    }
                    None => {
                        return Ok(Answer {
                            response,
                            member,
                            lease,
                            _in_hand: in_hand,
                        });
                    }
                },
                Err(failure) => {
                    let again = failure.unsent || failure.reused || failure.error.reason.never_processed();
                    (failure.error, again)
                }
            };
            match error {
                (_, true) if tried.len() < TRIES => {}
                (error, _) => return Err(error),
            }
        }
    }

    async fn judge(&self, auth: &ExternalAuth, backend: &WorkerBackend, answer: Answer) -> Result<Verdict, ProxyError> {
        let Answer {
            mut response, lease, ..
        } = answer;
        strip_response(&mut response);
        match &auth.protocol {
            AuthProtocol::Http { response_headers, .. } if http::admits(&response) => {
                let changes = http::changes(response_headers.as_deref(), response.headers());
                attempts::discard(response, lease);
                Ok(Verdict::Admitted(changes))
            }
            AuthProtocol::Http { .. } => {
                let (head, body) = response.into_parts();
                let body = Limited::new(body, MAX_ANSWER).collect().await;
                if body.is_ok() {
                    lease.release();
                }
                // A denial is one also where its body is too large, or broke.
                Ok(Verdict::Denied(http::denial(
                    head,
                    body.ok().map(|body| body.to_bytes()),
                )))
            }
            AuthProtocol::Grpc { .. } => {
                let (head, body) = response.into_parts();
                let body = Limited::new(body, MAX_ANSWER).collect().await;
                let body = body.map_err(|error| unavailable(backend, &format!("its answer is no answer: {error}")))?;
                lease.release();
                let trailers = body.trailers().cloned().unwrap_or_default();
                grpc::verdict(&head, &body.to_bytes(), &trailers).map_err(|what| unavailable(backend, &what))
            }
        }
    }
}

impl Limit {
    fn of(call: &Call, head: &Parts, timeout: Option<Duration>) -> Self {
        let own = Instant::now() + LIMIT;
        let request = Deadlines::new(call, head, timeout).request();
        match request.filter(|request| *request < own) {
            Some(request) => Self {
                until: request,
                is_own: false,
            },
            None => Self {
                until: own,
                is_own: true,
            },
        }
    }

    async fn hold<T>(&self, backend: &WorkerBackend, does: impl Future<Output = T>) -> Result<T, ProxyError> {
        timeout_at(self.until, does).await.map_err(|_| match self.is_own {
            true => unavailable(backend, &format!("there is no answer within {LIMIT:?}")),
            false => ProxyError::new(
                Reason::RequestTimeout,
                "the request's time was up before its ExternalAuth filter had an answer; see timeouts.request and the caller's \
                 grpc-timeout",
            ),
        })
    }
}

impl Question {
    fn request(&self) -> Request<RequestBody> {
        let body = match self.body.iter().all(Bytes::is_empty) {
            true => RequestBody::Empty,
            false => RequestBody::Own(Box::new(self.body.clone())),
        };
        Request::from_parts(self.head.clone(), body)
    }
}

/// Nobody was asked.
fn late_body(limit: &Limit) -> ProxyError {
    let why = match limit.is_own {
        true => format!("its body did not come within {LIMIT:?}"),
        false => "the request's time was up before its body had come".to_owned(),
    };
    let which = "forwardBody of its route's ExternalAuth filter waits for all of it";
    ProxyError::new(Reason::RequestTimeout, format!("{why}, and {which}"))
}

/// Nobody has said whether the request is let through.
fn unavailable(backend: &WorkerBackend, why: &str) -> ProxyError {
    ProxyError::new(
        Reason::AuthUnavailable,
        format!(
            "{}, which has to let the request through, does not say so: {why}",
            backend.name()
        ),
    )
}

/// Of a list (`None`: all), what may be told or taken: not what frames or routes a message, and nothing that only sidecars say.
fn listed<'a>(list: Option<&'a [HeaderName]>, headers: &'a HeaderMap) -> impl Iterator<Item = &'a HeaderName> {
    let all = list.is_none().then(|| headers.keys());
    let some = list.into_iter().flatten();
    let names = all.into_iter().flatten().chain(some);
    names.filter(|name| !is_reserved(name) && **name != ::http::header::EXPECT)
}

/// For a message of gRPC.
fn since_1970(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
