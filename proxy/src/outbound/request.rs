//! One request of the app: it begins, passes its rules, is sent, and is responded to.

pub mod cors;
pub mod filters;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use outrigger_proxy_transport::body::{BodySource, ClientBody, OnTooLarge};
use outrigger_proxy_transport::client::Lease;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::headers::{strip_hop_by_hop, strip_ours, strip_response, wants_upgrade};
use outrigger_proxy_transport::server::{HttpVersion, ResponseBody, check, reason_of, say_when, upgrade};
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::affinity::Caller;
use super::attempts::{Attempts, Deadlines, Sent, ServerResponse};
use super::auth::Asked;
use super::breaker::Breaker;
use super::faults::{Injected, decide};
use super::mirror::mirror;
use super::route::Chosen;
use super::sessions::Session;
use super::target::{Snapshot, WorkerTarget};
use super::waits::Moving;
use super::{State, breaker, fallback, route};
use crate::call::{Call, Callee, LocalReply};
use crate::identity::Clock;
use crate::model::{AttemptRules, ExternalAuth, Fallback, Filters, RequestRules, RouteRules, Service};

/// Answers a request.
pub async fn handle(
    state: &Rc<State>,
    target: &Rc<WorkerTarget>,
    version: HttpVersion,
    mut request: Request<ClientBody>,
) -> Response<ResponseBody> {
    let now = Instant::now();
    let Some(snapshot) = target.current(now) else {
        let gone = ProxyError::new(
            Reason::NoEndpoints,
            "the Service is gone since the connection was made; reconnect",
        );
        return refuse(state, request, &gone);
    };
    let upgrade = wants_upgrade(request.method(), request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (mut head, mut body) = request.into_parts();
    let callee = Callee::Service(&snapshot.service.name, &snapshot.metrics);
    let mut call = begin(state, callee, &mut head, &body);

    let facts = Facts {
        caller: state.caller,
        rng: &state.context.rng,
        clock: state.context.process.identity.clock(),
        keeps_upgrade: upgrade.is_some() && version == HttpVersion::Http1,
    };
    let ask = async |auth: &ExternalAuth, timeout, head: &mut Parts| {
        let asked = Asked {
            state,
            snapshot: &snapshot,
            call: &call,
            timeout,
        };
        asked.ask(auth, head, &mut body).await
    };
    let plan = match apply_rules(&snapshot.service, facts, &mut head, ask).await {
        Ok(plan) => plan,
        Err(Refusal { reply, cors }) => return shared(cors.as_ref(), call.reply(reply)),
    };
    let Some(backend) = snapshot.backend(plan.backend) else {
        let none = "the route's backend is not one of the Service's";
        let error = ProxyError::new(Reason::InvalidBackend, none);
        return shared(plan.cors.as_ref(), call.fail(&error));
    };

    let deadlines = Deadlines::new(&call, &head, plan.timeout);
    let passed = match &plan.fault {
        None => Ok(()),
        // Boxed: most requests have none (`outbound::sizes`).
        Some(fault) => Box::pin(fault.carry_out(deadlines.request(), &mut call)).await,
    };
    let breaker = backend.breaker(plan.attempt, &snapshot.metrics);
    let place = passed.and_then(|()| Ok(breaker.as_ref().map(Breaker::request).transpose()?.flatten()));
    // What is refused adds nothing to the budget, and no mirror gets it.
    if place.is_ok() {
        // Both may have taken their time.
        let now = match (&plan.fault, &plan.filters[0].external_auth) {
            (None, None) => now,
            _ => Instant::now(),
        };
        target
            .budgets
            .borrow_mut()
            .of(&plan.attempt.retry.budget, now)
            .deposit(now);
        mirror(state, &snapshot, plan.filters, version, &head, &body);
    }
    let moving = Moving::of(&body, plan.idle, plan.attempt);
    let body = body_source(body, &plan, &snapshot);
    let attempts = Attempts {
        state,
        target,
        backend,
        rules: plan.attempt,
        breaker: breaker.as_ref(),
        metrics: &snapshot.metrics,
        deadlines,
        moving: moving.as_ref(),
        version,
        session: plan.session.as_ref().and_then(Session::endpoint),
    };
    let mut sent: Sent = match place {
        Ok(place) => attempts.send(&head, &body, place, &mut call).await.map_err(Into::into),
        Err(reply) => Err(reply),
    };
    if let Some(fallback) = plan.fallback {
        // Boxed: few policies have one (`outbound::sizes`).
        sent = Box::pin(fallback::carry_out(
            fallback,
            sent,
            &attempts,
            &snapshot,
            (&head, &body),
            &mut call,
        ))
        .await;
    }
    match sent {
        Ok(response) => {
            let response = respond(state, call, response, upgrade, &plan, moving.as_ref());
            shared(plan.cors.as_ref(), response)
        }
        Err(reply) => fail(call, reply, &plan),
    }
}

/// The answer of this sidecar.
fn fail(call: Call, reply: LocalReply, plan: &Plan<'_>) -> Response<ResponseBody> {
    let grpc = call.request.is_grpc();
    let at_limit = matches!(&reply, LocalReply::Error(error) if error.reason == Reason::Overloaded);
    let mut response = call.reply(reply);
    if at_limit {
        say_when(response.headers_mut(), breaker::AGAIN, grpc);
    }
    shared(plan.cors.as_ref(), response)
}

/// The response, with what pages of other origins may do with it.
fn shared(cors: Option<&cors::Answer<'_>>, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if let Some(cors) = cors {
        cors.add(response.headers_mut());
    }
    response
}

/// Answers that a request cannot be carried out.
pub fn refuse(state: &State, request: Request<ClientBody>, error: &ProxyError) -> Response<ResponseBody> {
    let (mut head, body) = request.into_parts();
    let mut response = begin(state, Callee::Unknown, &mut head, &body).fail(error);
    if head.version < http::Version::HTTP_2 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn begin(state: &State, callee: Callee<'_>, head: &mut Parts, body: &ClientBody) -> Call {
    let telemetry = &state.context.process.telemetry;
    Call::begin(telemetry, callee, head, body.received(), state.context.activity.begin())
}

/// What rules decide from, beside the head of the request.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// This pod.
    pub caller: Caller,
    pub rng: &'a RefCell<SmallRng>,
    /// Read where a rule ends at a time.
    pub clock: &'a Clock,
    /// The request may become another protocol's connection.
    pub keeps_upgrade: bool,
}

/// What is to be done with a request that has passed its rules.
pub struct Plan<'a> {
    /// Index into [`Service::backends`].
    pub backend: usize,
    /// The route's, then the backend's own.
    pub filters: [&'a Filters; 2],
    /// What is to be said in the response.
    pub cors: Option<cors::Answer<'a>>,
    /// All attempts together.
    pub timeout: Option<Duration>,
    /// Without a byte.
    pub idle: Option<Duration>,
    /// What is done to it on purpose.
    pub fault: Option<Box<Injected>>,
    /// What stands in for a failure.
    pub fallback: Option<&'a Fallback>,
    pub session: Option<Session<'a>>,
    pub attempt: &'a AttemptRules,
}

/// What answers a request in place of a server.
pub struct Refusal<'a> {
    pub reply: LocalReply,
    /// As in [`Plan`].
    pub cors: Option<cors::Answer<'a>>,
}

impl<T: Into<LocalReply>> From<T> for Refusal<'_> {
    fn from(reply: T) -> Self {
        Self {
            reply: reply.into(),
            cors: None,
        }
    }
}

/// All that may change or answer a request before it is sent, in its order. `ask` is what an external authorization is asked by, about the head
/// and within the route's limit: what it has for an error answers the request.
///
/// # Errors
/// What answers the request in place of a server.
pub async fn apply_rules<'a>(
    service: &'a Service,
    // Not borrowed: it would have a place of its own in the future of each request (`outbound::sizes`).
    facts: Facts<'_>,
    head: &mut Parts,
    ask: impl AsyncFnOnce(&'a ExternalAuth, Option<Duration>, &mut Parts) -> Result<(), LocalReply>,
) -> Result<Plan<'a>, Refusal<'a>> {
    check(head)?;
    strip_ours(&mut head.headers);
    let chosen = route::choose(service, head)?;
    let RouteRules { request, attempt } = chosen.rules;
    let RequestRules {
        filters,
        timeout,
        idle,
        faults,
        fallback,
        sessions,
    } = request;
    // Before the filters that change the request: it is about what the page asked for.
    let cors = filters.cors.as_ref().map(|cors| cors::on_request(cors, head));
    let cors = cors.transpose()?;
    // Before them too: it is about what the app has sent.
    let fault = match faults.is_empty() {
        true => None,
        false => decide(faults, head, facts.clock.now(), &mut *facts.rng.borrow_mut()).map(Box::new),
    };
    // Before the filters as well: it is about what the client was told.
    let session = sessions.as_deref();
    let mut session = session.map(|sessions| Session::of(sessions, &chosen, head, facts.clock.now()));
    strip_hop_by_hop(&mut head.headers, facts.keeps_upgrade);
    // Behind what is of the client's page alone, a preflight, and before all that changes the request, answers it (a redirect, a fault) or does
    // something for it (a limit, a mirror, an attempt): it is about what the client asks for, and who is not let through gets nothing else.
    if let Some(auth) = &filters.external_auth
        // Boxed: most routes have none (`outbound::sizes`).
        && let Err(reply) = Box::pin(ask(auth, *timeout, head)).await
    {
        return Err(Refusal { reply, cors });
    }
    match apply_filters(service, &facts, &chosen, session.as_mut(), head) {
        Err(reply) => Err(Refusal { reply, cors }),
        Ok((backend, of_backend)) => Ok(Plan {
            backend,
            filters: [filters, of_backend],
            cors,
            timeout: *timeout,
            idle: *idle,
            fault,
            fallback: fallback.as_deref(),
            session,
            attempt,
        }),
    }
}

/// Those of the route, then those of the backend that the request goes to.
fn apply_filters<'a>(
    service: &'a Service,
    facts: &Facts<'_>,
    chosen: &Chosen<'a>,
    session: Option<&mut Session<'a>>,
    head: &mut Parts,
) -> Result<(usize, &'a Filters), LocalReply> {
    filters::on_request(&chosen.rules.request.filters, chosen.prefix(), head)?;
    let of_session = session.as_deref().and_then(|session| session.backend(service, chosen));
    let (backend, of_backend) = match (of_session, service.backends.first()) {
        (Some(of_session), _) => of_session,
        (None, Some(own)) if own.client_affinity => {
            route::backend(service, chosen, &mut facts.caller.draws(&service.name))?
        }
        _ => route::backend(service, chosen, &mut *facts.rng.borrow_mut())?,
    };
    if let Some((session, backend)) = session.zip(service.backends.get(backend)) {
        session.goes_to(&backend.name);
    }
    filters::on_request(of_backend, chosen.prefix(), head)?;
    Ok((backend, of_backend))
}

fn body_source(body: ClientBody, plan: &Plan<'_>, snapshot: &Snapshot) -> BodySource {
    let retry = &plan.attempt.retry;
    let limit = retry.max_body_bytes;
    if retry.attempts == 0 && !plan.fallback.is_some_and(|fallback| fallback.asks()) {
        BodySource::new(body, 0, None)
    } else if body.size_hint().lower() > limit as u64 {
        snapshot.metrics.body_not_kept();
        BodySource::new(body, 0, None)
    } else {
        BodySource::new(body, limit, Some(snapshot.metrics.clone()))
    }
}

fn respond(
    state: &State,
    call: Call,
    response: ServerResponse,
    upgrade: Option<OnUpgrade>,
    plan: &Plan<'_>,
    moving: Option<&Moving>,
) -> Response<ResponseBody> {
    let ServerResponse {
        mut response,
        from_sidecar,
        lease,
        mut in_flight,
        deadline,
    } = response;
    let (connect, activity) = (call.request.is_connect(), &state.context.activity);
    let until_cut = |lease: &Lease| {
        let term = lease.term();
        // A request that has become a connection of another protocol counts until that ends.
        let places = in_flight.take_places();
        async move {
            term.until_cut().await;
            drop(places);
        }
    };
    let lease = upgrade::join_if_switched(&mut response, connect, upgrade, until_cut, plan.idle, activity, lease);
    strip_response(&mut response);
    // What the app has not answered begins no session.
    let is_of_the_app = !from_sidecar || reason_of(response.headers()).is_none();
    for filters in plan.filters {
        filters::on_response(filters, response.headers_mut());
    }
    // What another backend answers is of no session.
    let is_of_the_app = is_of_the_app && call.request.fallback.is_none();
    if let Some(session) = plan.session.as_ref().filter(|_| is_of_the_app) {
        let now = state.context.process.identity.clock().now();
        session.answered(in_flight.member().reference(), response.headers_mut(), now);
    }
    let grpc = call.request.is_grpc();
    let response = response.map(|body| {
        ResponseBody::streaming(body, grpc, from_sidecar)
            .with_lease(lease)
            .with_deadline(deadline)
            .with_idle(moving.and_then(Moving::answered))
    });
    call.respond(response, in_flight)
}
