//! Simulations on paused time, with a seed.

#![allow(clippy::unwrap_used)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::discovery as proto;
use outrigger_api::policy::TrafficPolicySpec;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, advance};

use super::super::testing::{NO_RULES, balancer, member};
use super::Breakers;
use crate::model::{Service, from_proto};
use crate::telemetry::Metrics;
use crate::usage::Registry;

const MS: Duration = Duration::from_millis(1);

fn policy(yaml: &str) -> proto::Policy {
    let spec: TrafficPolicySpec = serde_saphyr::from_str(yaml).unwrap();
    spec.to_proto().unwrap()
}

fn service(policy: proto::Policy, routes: Vec<(&str, Option<proto::Policy>)>) -> Service {
    let routes = routes.into_iter().map(|(name, policy)| proto::Route {
        name: name.to_owned(),
        policy,
        ..proto::Route::default()
    });
    from_proto::service(&proto::Service {
        policy: Some(policy),
        routes: routes.collect(),
        ..proto::Service::default()
    })
}

/// A backend that does 50 requests at once, each in 10 ms, and takes longer for each the more it has beyond that: 5,000 a second at
/// most.
struct Backend {
    ends: BinaryHeap<Reverse<Instant>>,
}

impl Backend {
    fn time(&self) -> Duration {
        let load = self.ends.len() as f64 / 50.0;
        (10 * MS).mul_f64(load.max(1.0).powi(2))
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_opens_once_in_a_storm_and_closes_once() {
    let (registry, metrics) = (Registry::default(), Metrics::new().service(None));
    let service = service(policy("limits: {maxRequests: 50}"), Vec::new());
    let breakers = Breakers::new(&registry, &service, &service.name);
    let limits = service.rules.attempt.limits.as_deref().unwrap();
    let breaker = breakers.of(limits, &service.name, &metrics).unwrap();
    let usage = &breakers.counts[0].1;
    let mut rng = SmallRng::seed_from_u64(7);
    let mut backend = Backend {
        ends: BinaryHeap::new(),
    };
    let mut places = Vec::new();
    let (mut began, mut over, mut in_storm, mut after) = (0, Vec::new(), 0, 0);
    let start = Instant::now();
    // A storm of 20,000 a second from the 10th to the 40th second; else 1,000 a second. The 25th second of it is quiet.
    for ms in 0..70_000_u64 {
        let storm = (10_000..40_000).contains(&ms) && !(25_000..26_000).contains(&ms);
        let now = start + Duration::from_millis(ms);
        while backend.ends.peek().is_some_and(|Reverse(end)| *end <= now) {
            backend.ends.pop();
            places.pop();
        }
        let arrive = if storm { 20.0 } else { 1.0 } * rng.random_range(0.0..2.0);
        for _ in 0..arrive as usize {
            let was_open = usage.storm.is_open();
            match breaker.request() {
                Ok(place) => {
                    places.push(place.unwrap());
                    in_storm += usize::from(storm);
                    backend.ends.push(Reverse(now + backend.time()));
                }
                Err(_) => {
                    began += usize::from(!was_open);
                    after += usize::from(ms >= 41_000);
                }
            }
        }
        assert!(places.len() <= 50);
        if ms % 1000 == 0 {
            over.extend(usage.storm.is_over(Instant::now()));
        }
        advance(MS).await;
    }
    assert_eq!((began, over.len(), after), (1, 1, 0));
    // What it can do it does: 29 seconds of 5,000.
    assert!(in_storm as f64 > 0.9 * 29.0 * 5000.0, "{in_storm}");
    // Whoever is answered is answered in time, and never was there more than it can carry.
    assert_eq!(backend.time(), 10 * MS);
    drop(places);
    assert_eq!(usage.requests.taken(), 0);
}

#[test]
fn a_route_that_says_how_many_counts_for_itself() {
    let (registry, metrics) = (Registry::default(), Metrics::new().service(None));
    let routes = vec![
        ("a", None),
        ("b", Some(policy("limits: {maxRequests: 1}"))),
        ("c", Some(policy("timeouts: {request: 1s}"))),
        ("d", Some(policy("limits: {maxRequests: 0}"))),
    ];
    let service = service(policy("limits: {maxRequests: 2, maxPendingRequests: 5}"), routes);
    let breakers = Breakers::new(&registry, &service, &service.name);
    let ask = |route: usize| {
        let limits = service.routes[route].rules.attempt.limits.as_deref().unwrap();
        assert_eq!(limits.pending, Some(5), "what a route does not say stays");
        breakers.of(limits, &service.name, &metrics).unwrap().request()
    };
    let of_b = ask(1).unwrap();
    assert!(ask(1).is_err());
    // The others together.
    let _of_a = ask(0).unwrap();
    let _of_c = ask(2).unwrap();
    assert!(ask(0).is_err() && ask(2).is_err());
    drop(of_b);
    let _of_b = ask(1).unwrap();
    // No limit.
    for _ in 0..10 {
        assert!(ask(3).unwrap().is_none());
    }
    // Another worker's are the same.
    let other = Breakers::new(&registry, &service, &service.name);
    assert!(Arc::ptr_eq(&other.counts[0].1, &breakers.counts[0].1));
}

#[test]
fn what_no_policy_limits_is_not_counted() {
    let service = service(proto::Policy::default(), vec![("a", None)]);
    assert!(
        Breakers::new(&Registry::default(), &service, &service.name)
            .counts
            .is_empty()
    );
}

/// A request that is sent again has given its connection back, and is no one more.
#[tokio::test(start_paused = true)]
async fn who_is_sent_again_waits_in_any_case() {
    let (registry, metrics) = (Registry::default(), Metrics::new().service(None));
    let service = service(policy("limits: {maxPendingRequests: 1}"), Vec::new());
    let breakers = Breakers::new(&registry, &service, &service.name);
    let limits = service.rules.attempt.limits.as_deref().unwrap();
    let breaker = breakers.of(limits, &service.name, &metrics).unwrap();
    let balancer = balancer(1, Instant::now());
    let request = member(&balancer, 1).take(&NO_RULES, Instant::now());
    let first = breaker.bounds(&request, false).wait().unwrap();
    assert!(breaker.bounds(&request, false).wait().is_err());
    let again = breaker.bounds(&request, true).wait().unwrap();
    drop(first);
    assert!(breaker.bounds(&request, false).wait().is_err(), "it counts");
    drop(again);
    assert!(breaker.bounds(&request, false).wait().is_ok());
}
