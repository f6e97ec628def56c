//! Balancers in simulated time, for tests.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::pattern;
use outrigger_api::policy::TrafficPolicySpec;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::balance::{Balancer, Pick};
use super::health::Answer;
use super::member::Member;
use crate::model::{AttemptRules, Balancing, Endpoint, Filters, RouteRules};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Without a policy.
pub(super) static NO_RULES: Balancing = Balancing::NONE;

/// What a policy says of which endpoint a request goes to.
pub(super) fn rules(policy: &str) -> Balancing {
    let AttemptRules { balancing, .. } = rules_of(policy).attempt;
    balancing
}

/// Those of a policy, as a standalone file has it.
pub(super) fn rules_of(policy: &str) -> RouteRules {
    let spec: TrafficPolicySpec = serde_saphyr::from_str(policy).unwrap();
    let policy = spec.to_proto().unwrap();
    RouteRules::from_proto(
        &RouteRules::default(),
        Some(&policy),
        Filters::default(),
        &mut pattern::Budget::default(),
    )
}

/// Of one address.
pub(super) fn endpoints(ports: impl IntoIterator<Item = u16>) -> Vec<Arc<Endpoint>> {
    let endpoint = |port| Endpoint {
        address: ([10, 0, 0, 1], port).into(),
        identity: None,
        zone: None,
        pod: None,
        remote: false,
    };
    ports.into_iter().map(|port| Arc::new(endpoint(port))).collect()
}

/// With ports 1 to `n`.
pub(super) fn balancer(n: u16, now: Instant) -> Balancer {
    let mut balancer = Balancer::default();
    balancer.update(&endpoints(1..=n), None, now);
    balancer
}

pub(super) fn member(balancer: &Balancer, of: u16) -> Rc<Member> {
    let mut members = balancer.members().iter();
    Rc::clone(members.find(|m| port(m) == of).unwrap())
}

pub(super) fn port(member: &Member) -> u16 {
    member.endpoint.address.port()
}

pub(super) fn rng(seed: u64) -> RefCell<SmallRng> {
    RefCell::new(SmallRng::seed_from_u64(seed))
}

/// The endpoint of a request that was sent to `tried`.
pub(super) fn pick_by(
    balancer: &Balancer,
    rules: &Balancing,
    tried: &[Rc<Member>],
    now: Instant,
    rng: &RefCell<SmallRng>,
) -> Rc<Member> {
    let key = None;
    let pick = Pick {
        tried,
        now,
        rng,
        rules,
        key,
        session: None,
        limit: None,
    };
    balancer.pick(&pick).unwrap()
}

/// The endpoint of a request that has something to go by, or not.
pub(super) fn pick_keyed(
    balancer: &Balancer,
    rules: &Balancing,
    key: Option<u64>,
    now: Instant,
    rng: &RefCell<SmallRng>,
) -> Rc<Member> {
    let tried = &[];
    let pick = Pick {
        tried,
        now,
        rng,
        rules,
        key,
        session: None,
        limit: None,
    };
    balancer.pick(&pick).unwrap()
}

/// A request that begins at `now`; gives when it has ended.
pub(super) fn ask_by(member: &Rc<Member>, rules: &Balancing, answer: Answer, time: Duration, now: Instant) -> Instant {
    member.take(rules, now).end(answer, now + time);
    now + time
}
