//! One request of the app: route, filters, attempts, response.

use std::rc::Rc;
use std::sync::Arc;

use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use outrigger_proxy_transport::body::{BodySource, ClientBody, OnTooLarge};
use outrigger_proxy_transport::client::upgrade;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::headers::{strip_hop_by_hop, strip_ours, strip_response, wants_upgrade};
use outrigger_proxy_transport::server::{HttpVersion, ResponseBody, check};

use super::attempts::{Answer, Attempts, Record, attempt_until_final};
use super::mirror::mirror;
use super::target::{Snapshot, WorkerTarget};
use super::{State, filters, route};
use crate::exchange::Exchange;
use crate::model::{Filter, Policy};
use crate::telemetry::Direction;

/// Answers a request.
pub async fn handle(
    state: &Rc<State>,
    target: &Rc<WorkerTarget>,
    version: HttpVersion,
    mut request: Request<ClientBody>,
) -> Response<ResponseBody> {
    let now = tokio::time::Instant::now();
    let Some(snapshot) = target.current(now) else {
        let gone = ProxyError::new(
            Reason::NoEndpoints,
            "the Service is gone since the connection was made; reconnect",
        );
        return refuse(state, request, &gone);
    };
    let upgrade = wants_upgrade(request.method(), request.headers()).then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    let name = &snapshot.service.name;
    let telemetry = &state.context.process.telemetry;
    let in_flight = state.context.activity.begin();
    let exchange = Exchange::begin(
        telemetry,
        Direction::Outbound,
        Some(name),
        name.port,
        &mut head,
        body.received(),
        in_flight,
    );
    let mut record = Record::new(exchange, Arc::clone(&snapshot.metrics));
    match plan(
        state,
        &snapshot,
        &mut head,
        upgrade.is_some() && version == HttpVersion::Http1,
    ) {
        Ok(Planned::Answer(response)) => record.answered(*response),
        Ok(Planned::Send {
            policy,
            backend,
            filters,
        }) => {
            target.budget.borrow_mut().deposit(now);
            let body = body_source(body, &policy, &record);
            let attempts = Attempts {
                state,
                target,
                backend,
                policy: &policy,
                version,
            };
            match attempt_until_final(attempts, &head, &body, &mut record).await {
                Ok(answer) => {
                    mirror(state, &snapshot, &filters, version, &head, &body);
                    respond(state, answer, upgrade, &filters, record)
                }
                Err(error) => record.failed(&error),
            }
        }
        Err(error) => record.failed(&error),
    }
}

/// Answers that a request cannot be carried out.
pub fn refuse(state: &State, request: Request<ClientBody>, error: &ProxyError) -> Response<ResponseBody> {
    let telemetry = &state.context.process.telemetry;
    let (mut head, body) = request.into_parts();
    let in_flight = state.context.activity.begin();
    let exchange = Exchange::begin(
        telemetry,
        Direction::Outbound,
        None,
        0,
        &mut head,
        body.received(),
        in_flight,
    );
    let mut response = Record::new(exchange, telemetry.metrics().service(None)).failed(error);
    if head.version < http::Version::HTTP_2 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What is to be done with a request.
enum Planned<'a> {
    /// A redirect.
    Answer(Box<Response<ResponseBody>>),
    Send {
        policy: Arc<Policy>,
        backend: &'a super::target::WorkerBackend,
        /// The route's, then the backend's own.
        filters: [&'a [Filter]; 2],
    },
}

fn plan<'a>(state: &State, snapshot: &'a Snapshot, head: &mut Parts, upgrade: bool) -> Result<Planned<'a>, ProxyError> {
    check(head)?;
    strip_ours(&mut head.headers);
    let chosen = route::choose(&snapshot.service, head)?;
    let of_route = chosen.route.map_or(&[] as &[Filter], |route| &route.filters);
    strip_hop_by_hop(&mut head.headers, upgrade);
    if let Some(redirect) = filters::on_request(of_route.iter(), chosen.prefix, head)? {
        return Ok(Planned::Answer(Box::new(redirect)));
    }
    let service = &snapshot.service;
    let (backend, of_backend) = match service.backends.first() {
        Some(own) if own.client_affinity => route::backend(service, &chosen, &mut state.caller.draws(&service.name))?,
        _ => route::backend(service, &chosen, &mut *state.context.rng.borrow_mut())?,
    };
    if let Some(redirect) = filters::on_request(of_backend.iter(), chosen.prefix, head)? {
        return Ok(Planned::Answer(Box::new(redirect)));
    }
    let backend = snapshot.backend(backend).ok_or_else(|| {
        ProxyError::new(
            Reason::InvalidBackend,
            "the route's backend is not one of the Service's",
        )
    })?;
    Ok(Planned::Send {
        policy: Arc::clone(chosen.policy),
        backend,
        filters: [of_route, of_backend],
    })
}

fn body_source(body: ClientBody, policy: &Policy, record: &Record) -> BodySource {
    let limit = policy.retry.max_body_bytes;
    if policy.retry.attempts == 0 {
        BodySource::new(body, 0, None)
    } else if body.size_hint().lower() > limit as u64 {
        record.metrics.body_not_kept();
        BodySource::new(body, 0, None)
    } else {
        BodySource::new(body, limit, Some(record.metrics.clone()))
    }
}

fn respond(
    state: &Rc<State>,
    answer: Answer,
    upgrade: Option<OnUpgrade>,
    filters: &[&[Filter]; 2],
    record: Record,
) -> Response<ResponseBody> {
    let Answer {
        mut response,
        from_sidecar,
        lease,
        deadline,
    } = answer;
    let switches = response.status() == http::StatusCode::SWITCHING_PROTOCOLS
        || (record.exchange.is_connect() && response.status().is_success());
    let lease = match (switches, upgrade) {
        (true, Some(client)) => {
            let server = hyper::upgrade::on(&mut response);
            upgrade::join(client, server, state.context.activity.begin(), lease);
            None
        }
        (_, _) => (!switches).then_some(lease),
    };
    strip_response(&mut response);
    filters::on_response(filters.iter().copied().flatten(), response.headers_mut());
    let grpc = record.exchange.is_grpc();
    record.respond(response.map(|body| {
        ResponseBody::streaming(body, grpc, from_sidecar)
            .with_lease(lease)
            .with_deadline(deadline)
    }))
}
