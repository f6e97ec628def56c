//! Discovery's messages, of a controller that is newer, or wrong.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::Request;
use outrigger_api::discovery as proto;
use outrigger_api::policy::{BUDGET_INTERVAL, RATE_COUNT, RATE_INTERVAL};
use outrigger_proxy::identity::Clock;
use outrigger_proxy::model::from_proto;
use outrigger_proxy::model::{Endpoints, RouteRules, Service, Target, Workload};
use outrigger_proxy::outbound::affinity::Caller;
use outrigger_proxy::outbound::request::{Facts, apply_rules, filters};
use outrigger_proxy::outbound::route;
use prost::Message;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::Input;

/// Which message it is, and its bytes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.flag() {
        if let Ok(message) = proto::Workload::decode(input.rest()) {
            workload(&message);
        }
    } else if let Ok(message) = proto::Target::decode(input.rest()) {
        target(&message);
    }
}

fn workload(message: &proto::Workload) {
    let info = from_proto::workload(message);
    assert!(info.opaque_ports.iter().all(|port| *port > 0) && !info.protocols.contains_key(&0));
    assert!(info.opaque_ports.len() <= message.opaque_ports.len());
}

fn target(message: &proto::Target) {
    let Target::Service(service) = from_proto::target(message) else {
        assert!(
            message.kind.is_none(),
            "what is in the cluster is called as if it were not"
        );
        return;
    };
    check_endpoints(message, &service);
    check_rules(&service.rules);
    service.routes.iter().for_each(|route| check_rules(&route.rules));
    let rng = SmallRng::seed_from_u64(1).into();
    let facts = Facts {
        caller: Caller::new(&Workload::default()),
        rng: &rng,
        clock: &Clock::system(),
        keeps_upgrade: false,
    };
    // So are connections of bytes.
    for server in [None, Some("a.example")] {
        if let Ok(backend) = route::backend_of_bytes(&service, server, &mut *facts.rng.borrow_mut()) {
            assert!(backend < service.backends.len());
        }
    }
    // Requests are answered, whatever the routes are.
    for (method, uri) in [("GET", "http://orders/a/b?c=d"), ("POST", "/"), ("OPTIONS", "*")] {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "orders.shop:80");
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        let planned = pin!(apply_rules(&service, facts, &mut head, async |_, _, _| Ok(())));
        let Poll::Ready(planned) = planned.poll(&mut Context::from_waker(Waker::noop())) else {
            unreachable!("nothing is waited for")
        };
        let Ok(plan) = planned else {
            continue;
        };
        assert!(plan.backend < service.backends.len());
        for of in plan.filters {
            filters::on_response(of, &mut http::HeaderMap::new());
        }
    }
}

/// An endpoint is never called in plaintext because its identity could not be read.
fn check_endpoints(message: &proto::Target, service: &Service) {
    let mut named = Vec::new();
    let mut plain = Vec::new();
    let mut sort = |endpoint: &proto::Endpoint| match endpoint.identity.is_empty() {
        true => plain.push(endpoint.address.clone()),
        false => named.push((endpoint.address.clone(), endpoint.identity.clone())),
    };
    match &message.kind {
        Some(proto::target::Kind::Service(service)) => {
            for backend in &service.backends {
                if let Some(proto::backend::Kind::Endpoints(list)) = &backend.kind {
                    list.endpoints.iter().for_each(&mut sort);
                }
            }
        }
        Some(proto::target::Kind::Pod(pod)) => pod.endpoint.iter().for_each(&mut sort),
        None => {}
    }
    for backend in &service.backends {
        let Endpoints::Known(endpoints) = &backend.endpoints else {
            continue;
        };
        for endpoint in endpoints {
            let parses = |address: &String| address.parse() == Ok(endpoint.address);
            match &endpoint.identity {
                None => assert!(plain.iter().any(parses), "{endpoint:?}"),
                Some(id) => assert!(named.iter().any(|(a, i)| parses(a) && i == id.as_str()), "{endpoint:?}"),
            }
        }
    }
}

fn check_rules(rules: &RouteRules) {
    let (request, attempt) = (&rules.request, &rules.attempt);
    let retry = &attempt.retry;
    assert!(retry.attempts <= 10 && retry.max_body_bytes <= 1 << 20);
    let budget = &retry.budget;
    assert!((0.0..=1.0).contains(&budget.ratio) && budget.min_count <= *RATE_COUNT.end());
    assert!(BUDGET_INTERVAL.contains(&budget.interval) && RATE_INTERVAL.contains(&budget.min_interval));
    assert!(retry.backoff_base <= retry.backoff_max && !attempt.connect_timeout.is_zero());
    let zero = |limit: Option<std::time::Duration>| limit.is_some_and(|limit| limit.is_zero());
    assert!(!zero(request.timeout) && !zero(attempt.timeout));
    if let Some(auth) = &request.filters.external_auth {
        assert!(auth.max_body.is_none_or(|max| (1..=1 << 20).contains(&max)));
    }
    assert!(!zero(request.idle) && !zero(attempt.response_headers));
    for n in [1, 2, 10, u32::MAX] {
        let wait = outrigger_proxy::outbound::retry::backoff(retry, n, &mut SmallRng::seed_from_u64(n.into()));
        assert!(wait <= retry.backoff_max);
    }
}
