//! A request and its response, from the head of the one to the last byte of the other, in either direction: [`Call::begin`],
//! [`Call::attempt`] for each attempt, and an end, which every call has once: [`Call::respond`] and its like hand it over to
//! the response's body, and a call that is dropped before has lost its client.
//!
//! Who hears of it is in [`crate::telemetry`].

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Response};
use outrigger_proxy_transport::body::Received;
use outrigger_proxy_transport::drain::InFlight;
use outrigger_proxy_transport::error::ProxyError;
use outrigger_proxy_transport::headers::{OUTRIGGER_FALLBACK, OUTRIGGER_FAULT};
use outrigger_proxy_transport::server::{Ended, OnEnd, ResponseBody, error_response};
use tokio::time::Instant;

use crate::model::ServiceName;
use crate::telemetry::{
    AttemptEnd, AuthDecision, Direction, FallbackCause, FallbackNote, FaultNote, Peer, RequestEnd, RequestInfo,
    ServiceMetrics, SpanStart, Status, Telemetry, request_id,
};

/// What a request is for.
#[derive(Clone, Copy)]
pub enum Callee<'a> {
    /// Outbound, with its metrics.
    Service(&'a ServiceName, &'a Arc<ServiceMetrics>),
    /// Outbound: nobody knows what.
    Unknown,
    /// Inbound: the app, at this port.
    App(u16),
}

/// Who an attempt is with.
pub trait Remote {
    /// Who it is, and where.
    fn peer(&self) -> Peer<'_>;
}

/// What this sidecar says in place of a server.
pub enum LocalReply {
    Error(ProxyError),
    /// In the name of a route.
    Response(Box<Response<ResponseBody>>),
}

impl From<ProxyError> for LocalReply {
    fn from(error: ProxyError) -> Self {
        Self::Error(error)
    }
}

impl From<Response<ResponseBody>> for LocalReply {
    fn from(response: Response<ResponseBody>) -> Self {
        Self::Response(Box::new(response))
    }
}

/// See the module.
pub struct Call {
    pub request: RequestInfo,
    /// When the head of the request was there.
    pub started: Instant,
    telemetry: Telemetry,
    metrics: Arc<ServiceMetrics>,
    /// Of the request's body.
    received: Rc<Received>,
    /// The one that is under way, or whose response is.
    attempt: Option<Attempt>,
    attempts: u32,
    status: Status,
    /// There is a span, though there was no attempt.
    told: bool,
    ended: bool,
    _in_flight: InFlight,
}

/// Of somebody else about a request, before an attempt is made.
pub struct Question {
    asked: RequestInfo,
    span: SpanStart,
}

struct Attempt {
    span: SpanStart,
    remote: Rc<dyn Remote>,
}

impl Call {
    /// Begins at the head of a request. Makes a request ID, if there is none, and puts it into the head.
    pub fn begin(
        telemetry: &Telemetry,
        callee: Callee<'_>,
        head: &mut Parts,
        received: Rc<Received>,
        in_flight: InFlight,
    ) -> Self {
        let (direction, service, port, metrics) = match callee {
            Callee::Service(name, metrics) => (Direction::Outbound, Some(name.clone()), name.port, Arc::clone(metrics)),
            Callee::Unknown => (Direction::Outbound, None, 0, telemetry.metrics().service(None)),
            Callee::App(port) => (Direction::Inbound, None, port, telemetry.metrics().port(port)),
        };
        let id = request_id(head);
        let context = telemetry.context(&head.headers, &id);
        Self {
            request: RequestInfo::new(direction, service, port, id, context, head),
            started: Instant::now(),
            telemetry: telemetry.clone(),
            metrics,
            received,
            attempt: None,
            attempts: 0,
            status: Status::default(),
            told: false,
            ended: false,
            _in_flight: in_flight,
        }
    }

    /// An attempt begins, and a span. The one before has ended.
    pub fn attempt(&mut self, remote: Rc<dyn Remote>) {
        let span = self.telemetry.start_span();
        self.attempts += 1;
        self.attempt = Some(Attempt { span, remote });
    }

    /// It is delayed on purpose, answered on purpose, or both. Its response says so, and no metric of the Service counts it.
    pub fn fault(&mut self, delay: Option<Duration>, abort: bool) {
        let fault = FaultNote {
            at: self.telemetry.start_span().at,
            delay,
            abort,
        };
        self.metrics.fault(&fault);
        self.request.fault = Some(Box::new(fault));
    }

    /// It is answered in place of a failure, which ends the attempt that is under way. Its response says so.
    pub fn fallback(&mut self, cause: FallbackCause, failure: Status) {
        let at = self.telemetry.start_span().at;
        self.metrics.fallback();
        self.request.fallback = Some(Box::new(FallbackNote { at, cause }));
        match self.attempt {
            Some(_) => self.end_attempt(failure),
            None => self.answered_here(failure),
        }
    }

    /// A span of its own says what was done to it.
    fn answered_here(&mut self, status: Status) {
        self.told = true;
        let span = self.telemetry.span_since(self.started);
        let end = AttemptEnd {
            resend: self.attempts,
            ..self.attempt_end(span, Peer::default(), status)
        };
        self.telemetry.answered_here(&end);
    }

    /// A question about the request is sent to `service`, with a span of its own, the parent of whatever is done for the answer.
    pub fn question(&self, service: &ServiceName, head: &mut Parts) -> Question {
        let span = self.telemetry.start_span();
        let RequestInfo {
            request_id, context, ..
        } = &self.request;
        context.inject(span.id, &mut head.headers);
        let (id, context) = (request_id.clone(), context.clone());
        Question {
            asked: RequestInfo::new(
                Direction::Outbound,
                Some(service.clone()),
                service.port,
                id,
                context,
                head,
            ),
            span,
        }
    }

    /// It has come to this.
    pub fn answered(&self, question: &Question, peer: Peer<'_>, status: Status, decision: AuthDecision) {
        let end = AttemptEnd {
            request: &question.asked,
            metrics: &self.metrics,
            span: question.span,
            resend: 0,
            peer,
            status,
        };
        self.telemetry.asked(&end, decision);
    }

    /// Makes the attempt the parent of whatever the receiver of these headers does.
    pub fn propagate(&self, headers: &mut HeaderMap) {
        if let Some(attempt) = &self.attempt {
            self.request.context.inject(attempt.span.id, headers);
        }
    }

    /// A server that takes the request gets it now.
    pub fn sent(&self) {
        self.received.sent_head();
    }

    /// The attempt ended, and there may be another one. The last one ends with the call.
    pub fn end_attempt(&mut self, status: Status) {
        if let Some(attempt) = self.attempt.take() {
            self.attempt_ended(&attempt, status);
        }
    }

    /// A server's response, on its way to the client. `held` is let go when the call ends.
    pub fn respond(
        mut self,
        mut response: Response<ResponseBody>,
        held: impl Sized + 'static,
    ) -> Response<ResponseBody> {
        match &self.request.fault {
            Some(fault) => _ = response.headers_mut().insert(OUTRIGGER_FAULT, fault.mark()),
            // A peer's sidecar that says it is not believed.
            None => _ = response.headers_mut().remove(OUTRIGGER_FAULT),
        }
        match self.request.fallback.as_ref().and_then(|fallback| fallback.mark()) {
            Some(mark) => _ = response.headers_mut().insert(OUTRIGGER_FALLBACK, mark),
            None => _ = response.headers_mut().remove(OUTRIGGER_FALLBACK),
        }
        self.status = Status::of(response.status(), response.headers());
        let responding = Responding {
            call: self,
            _held: held,
        };
        response.map(|body| body.with_end(Box::new(responding)))
    }

    /// The response of this sidecar's own.
    pub fn reply(self, reply: LocalReply) -> Response<ResponseBody> {
        match reply {
            LocalReply::Error(error) => self.fail(&error),
            LocalReply::Response(response) => self.respond(*response, ()),
        }
    }

    /// The response to a request that failed.
    pub fn fail(self, error: &ProxyError) -> Response<ResponseBody> {
        tracing::debug!(error = %error, reason = error.reason.code(), "a request failed");
        let response = error_response(error, self.request.is_grpc());
        self.respond(response, ())
    }

    /// Tells of it once.
    fn end(&mut self, ended: Ended, bytes: u64) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.status.end(ended);
        let last = self.attempt.take();
        match &last {
            Some(attempt) => self.attempt_ended(attempt, self.status),
            None if self.attempts == 0 && self.request.fault.is_some() && !self.told => self.answered_here(self.status),
            None => {}
        }
        self.telemetry.request_ended(&RequestEnd {
            request: &self.request,
            metrics: &self.metrics,
            peer: last.as_ref().map(|attempt| attempt.remote.peer()).unwrap_or_default(),
            status: self.status,
            duration: self.started.elapsed(),
            retries: self.attempts.saturating_sub(1),
            request_bytes: self.received.bytes(),
            response_bytes: bytes,
        });
    }

    fn attempt_ended(&self, attempt: &Attempt, status: Status) {
        let end = self.attempt_end(attempt.span, attempt.remote.peer(), status);
        self.telemetry.attempt_ended(&end);
    }

    fn attempt_end<'a>(&'a self, span: SpanStart, peer: Peer<'a>, status: Status) -> AttemptEnd<'a> {
        AttemptEnd {
            request: &self.request,
            metrics: &self.metrics,
            span,
            resend: self.attempts.saturating_sub(1),
            peer,
            status,
        }
    }
}

impl Drop for Call {
    /// The client went away before there was a response.
    fn drop(&mut self) {
        self.end(Ended::Cancelled, 0);
    }
}

/// A call whose response is on its way to the client.
struct Responding<H> {
    call: Call,
    _held: H,
}

impl<H> OnEnd for Responding<H> {
    fn ended(mut self: Box<Self>, ended: Ended, bytes: u64) {
        self.call.end(ended, bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Call, Callee};
    use crate::dns::Resolver;
    use crate::telemetry::{Settings, Telemetry};
    use http::{HeaderValue, Request, Response};
    use outrigger_proxy_transport::body::Received;
    use outrigger_proxy_transport::drain::Activity;
    use outrigger_proxy_transport::server::ResponseBody;
    use std::rc::Rc;

    /// Whatever a peer's sidecar says of a fault or a fallback: only this one knows whether there was one.
    #[tokio::test]
    async fn marks_are_of_this_sidecar() {
        let telemetry = Telemetry::start(&Settings::default(), &Resolver::start(Some(&[])).unwrap()).unwrap();
        for (abort, expected) in [(None, None), (Some(true), Some("abort"))] {
            let (mut head, ()) = Request::new(()).into_parts();
            let in_flight = Rc::new(Activity::default()).begin();
            let received = Rc::<Received>::default();
            let mut call = Call::begin(&telemetry, Callee::Unknown, &mut head, received, in_flight);
            if let Some(abort) = abort {
                call.fault(None, abort);
            }
            let mut response = Response::new(ResponseBody::ready("".into()));
            let forged = HeaderValue::from_static("delay");
            response.headers_mut().insert("outrigger-fallback", forged.clone());
            response.headers_mut().insert("outrigger-fault", forged);
            let response = call.respond(response, ());
            assert!(!response.headers().contains_key("outrigger-fallback"));
            let mark = response.headers().get("outrigger-fault");
            assert_eq!(mark.map(|mark| mark.to_str().unwrap()), expected);
        }
    }
}
