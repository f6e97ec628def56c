//! How much this pod takes: one [`Limiter`] for all workers, and its clock.

use std::sync::Arc;
use std::time::Duration;

use outrigger_access::Facts;
use outrigger_api::limits as proto;
use outrigger_api::spiffe::SpiffeId;
use outrigger_limits::store::{Answer, Ask, Store};
use outrigger_limits::view::PolicyView;
use outrigger_limits::{Connection, Denied, Limiter, Outcome};
use tokio::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Limits {
    limiter: Arc<Limiter>,
    /// Times are counted from here.
    since: Instant,
}

impl Limits {
    pub(super) fn new(message: &proto::Limits) -> Self {
        let limits = Self {
            limiter: Arc::default(),
            since: Instant::now(),
        };
        limits.update(message);
        limits
    }

    /// From now on.
    pub(super) fn update(&self, message: &proto::Limits) {
        self.limiter.update(message, self.at(Instant::now()));
    }

    /// Whether no request is limited.
    pub fn is_empty(&self) -> bool {
        self.limiter.is_empty()
    }

    /// Whether a limit in force is about requests to the port.
    pub fn counts_requests(&self, port: u16) -> bool {
        self.limiter.counts_requests(port)
    }

    /// What becomes of a request that came at this time. `None`: no limit is about it.
    pub fn decide(&self, facts: &Facts<'_>, at: Instant) -> Option<Outcome> {
        self.limiter.decide(facts, self.at(at))
    }

    /// What becomes of it by what stores have said, now. Gives what they have to be told.
    pub fn settle(&self, outcome: &mut Outcome, answers: &[Answer]) -> Vec<Ask> {
        self.limiter.settle(outcome, answers, self.at(Instant::now()))
    }

    /// The stores that limits are counted in.
    pub fn stores(&self) -> Vec<Store> {
        self.limiter.stores()
    }

    /// What becomes of a connection of bytes that comes now.
    ///
    /// # Errors
    /// A policy refuses it.
    pub fn connect(&self, port: u16, identity: Option<&SpiffeId>) -> Result<Connection, Denied> {
        self.limiter.connect(port, identity, self.at(Instant::now()))
    }

    /// Another one whenever it is told something.
    pub fn version(&self) -> u64 {
        self.limiter.version()
    }

    /// Whether there is a policy of this name.
    pub fn has_policy(&self, name: &str) -> bool {
        self.limiter.has_policy(name)
    }

    pub(super) fn view(&self) -> Vec<PolicyView> {
        self.limiter.view()
    }

    fn at(&self, time: Instant) -> Duration {
        time.saturating_duration_since(self.since)
    }
}
