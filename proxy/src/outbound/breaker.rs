//! How much this sidecar asks of a backend at a time, where a policy limits it (`limits`).
//!
//! What it protects: a backend from more requests and connections than it can carry, and the app from requests that pile up behind one that does
//! not answer. What is beyond a limit is answered at once, and never tried again: another attempt would be one more of what there is too much of.
//! Where an attempt was made before, what that one came to is the answer ([`super::earlier`]).
//! Nobody is ejected for it.
//!
//! What it does not protect from: other callers. Each sidecar counts its own requests, so a backend has at most the limit times the pods that call it.
//!
//! **Requests** are counted from before their first attempt to the last byte of their response, and so is each attempt for its endpoint; another
//! endpoint is asked in the place of one that has enough. **Connections** are counted as long as they are open. Who needs one more waits, of which
//! there may be so many **pending** requests: until one is given back, or closed; an idle one is closed for it. A connection of bytes does not
//! wait, since others may last for days.

use std::sync::Arc;
use std::time::Duration;

use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::count::{Bound, Count, Held, Place};
use tokio::time::Instant;

use super::member::{InHand, Member};
use crate::model::{CallLimits, Service, ServiceName};
use crate::telemetry::ServiceMetrics;
use crate::telemetry::metrics::AtLimit;
use crate::usage::{Key, Part, Registry, Usage};

/// After this a client may try again.
pub const AGAIN: Duration = Duration::from_secs(1);

/// The counts of one backend of a Service, as far as policies limit something.
#[derive(Default)]
pub struct Breakers {
    /// Those that are counted together first, and then those of routes.
    counts: Vec<(Option<Arc<str>>, Arc<Usage>)>,
}

/// What one request is limited by at its backend.
pub struct Breaker<'a> {
    pub limits: &'a CallLimits,
    /// Of all requests of the Service,
    all: &'a Usage,
    /// and of those that are counted together with this one.
    own: &'a Usage,
    pub backend: &'a ServiceName,
    pub metrics: &'a ServiceMetrics,
}

/// What the connections to one endpoint are limited by.
pub struct Bounds<'a> {
    connections: Vec<Bound>,
    pending: Option<Bound>,
    breaker: &'a Breaker<'a>,
    member: &'a Member,
    /// The request that needs a connection. `None`: a connection of bytes, which does not wait.
    request: Option<&'a InHand>,
    again: bool,
}

impl Breakers {
    /// Those of a backend, whatever its Service and the routes limit.
    pub fn new(registry: &Registry, service: &Service, backend: &ServiceName) -> Self {
        let of_routes = service.routes.iter().map(|route| &route.rules);
        let rules = of_routes.chain([&*service.rules]);
        let limits = rules.filter_map(|rules| rules.attempt.limits.as_deref());
        let mut parts: Vec<_> = limits.map(|limits| limits.counters.clone()).collect();
        if parts.is_empty() {
            return Self::default();
        }
        parts.push(None);
        parts.sort_unstable();
        parts.dedup();
        let counts = parts.into_iter().map(|route| {
            let key = Key {
                service: service.name.clone(),
                backend: backend.clone(),
                part: route.clone().map_or(Part::All, Part::Route),
            };
            (route, registry.of(key))
        });
        Self {
            counts: counts.collect(),
        }
    }

    /// What requests with these limits are limited by.
    pub fn of<'a>(
        &'a self,
        limits: &'a CallLimits,
        backend: &'a ServiceName,
        metrics: &'a ServiceMetrics,
    ) -> Option<Breaker<'a>> {
        let own = self.counts.iter().find(|(route, _)| *route == limits.counters);
        Some(Breaker {
            limits,
            all: &self.counts.first()?.1,
            own: &own?.1,
            backend,
            metrics,
        })
    }

    /// Says which storms are over.
    pub fn look(&self, backend: &ServiceName, now: Instant) {
        for (route, counts) in &self.counts {
            if let Some(refused) = counts.storm.is_over(now) {
                tracing::info!(%backend, route = route.as_deref(), refused, "nothing is over a limit any more");
            }
        }
    }
}

impl<'a> Breaker<'a> {
    /// One more request. `None`: there is no limit.
    ///
    /// # Errors
    /// [`Reason::Overloaded`].
    pub fn request(&self) -> Result<Option<Place>, ProxyError> {
        let Some(most) = self.limits.requests else {
            return Ok(None);
        };
        let requests = bound(&self.own.requests, most);
        requests.take().map(Some).ok_or_else(|| self.refuse(AtLimit::Requests))
    }

    /// One more request for an endpoint. `Ok(None)`: there is no limit.
    ///
    /// # Errors
    /// It has as many as it may have.
    pub fn of_endpoint(&self, member: &Member) -> Result<Option<Place>, AtLimit> {
        let Some(most) = self.limits.endpoint_requests else {
            return Ok(None);
        };
        bound(&member.usage().requests, most)
            .take()
            .map(Some)
            .ok_or(AtLimit::EndpointRequests)
    }

    /// The same for one whose place was given back, and that is still there: it counts, whether there is room or not.
    pub fn of_endpoint_again(&self, member: &Member) -> Option<Place> {
        let most = self.limits.endpoint_requests?;
        Some(bound(&member.usage().requests, most).beyond())
    }

    /// What the connection of a request is limited by. `again`: of one that was sent before. It has given its connection back, so who waits
    /// for another one is no one more; were it refused, its client would hear that nothing of it was sent.
    pub fn bounds(&'a self, request: &'a InHand, again: bool) -> Bounds<'a> {
        Bounds {
            request: Some(request),
            again,
            ..self.bounds_of(request.member())
        }
    }

    fn bounds_of(&'a self, member: &'a Member) -> Bounds<'a> {
        let all = self.limits.connections.map(|most| bound(&self.all.connections, most));
        let endpoint = self.limits.endpoint_connections;
        let endpoint = endpoint.map(|most| bound(&member.usage().connections, most));
        Bounds {
            connections: all.into_iter().chain(endpoint).collect(),
            pending: self.limits.pending.map(|most| bound(&self.all.pending, most)),
            breaker: self,
            member,
            request: None,
            again: false,
        }
    }

    /// One more connection of bytes to an endpoint, for which an idle one is closed.
    ///
    /// # Errors
    /// Which limit leaves no place.
    pub async fn connection(&'a self, member: &'a Member) -> Result<Held, AtLimit> {
        let bounds = self.bounds_of(member);
        let mut held = Held::take(&bounds.connections);
        if held.is_err() && bounds.make_room() {
            // Its own task closes it, and is before this one.
            tokio::task::yield_now().await;
            held = Held::take(&bounds.connections);
        }
        held.map_err(|full| match full {
            0 if self.limits.connections.is_some() => AtLimit::Connections,
            _ => AtLimit::EndpointConnections,
        })
    }

    /// What is asked for is too much.
    pub fn refuse(&self, what: AtLimit) -> ProxyError {
        self.metrics.at_limit(what);
        let (backend, route) = (self.backend, self.limits.counters.as_deref());
        let route = route.filter(|_| matches!(what, AtLimit::Requests));
        if self.own.storm.refused(Instant::now()) {
            let limit = what.field();
            tracing::warn!(%backend, route, limit, "a limit is reached, and what is beyond it is refused; see limits of its TrafficPolicy");
        }
        let most = match what {
            AtLimit::Requests => self.limits.requests,
            AtLimit::Pending => self.limits.pending,
            AtLimit::Connections => self.limits.connections,
            AtLimit::EndpointRequests => self.limits.endpoint_requests,
            AtLimit::EndpointConnections => self.limits.endpoint_connections,
        };
        let (field, most) = (what.field(), most.unwrap_or_default());
        ProxyError::new(
            Reason::Overloaded,
            format!("this pod asks {backend} for as much as its TrafficPolicy allows: limits.{field} is {most}"),
        )
    }
}

impl Bounds<'_> {
    /// See [`Dialer::connections`](outrigger_proxy_transport::client::Dialer::connections).
    pub fn connections(&self) -> &[Bound] {
        &self.connections
    }

    /// See [`Dialer::wait`](outrigger_proxy_transport::client::Dialer::wait).
    ///
    /// # Errors
    /// [`Reason::Overloaded`].
    pub fn wait(&self) -> Result<Option<Place>, ProxyError> {
        let Some(pending) = &self.pending else {
            return Ok(None);
        };
        if self.again {
            return Ok(Some(pending.beyond()));
        }
        pending
            .take()
            .map(Some)
            .ok_or_else(|| self.breaker.refuse(AtLimit::Pending))
    }

    /// The request has to wait for a connection because of them.
    pub fn hold_back(&self) {
        if let Some(request) = self.request {
            request.hold_back();
        }
    }

    /// It has to wait no more.
    pub fn go_on(&self) {
        if let Some(request) = self.request {
            request.go_on(Instant::now());
        }
    }

    /// See [`Dialer::make_room`](outrigger_proxy_transport::client::Dialer::make_room). `false`: no connection is idle.
    pub fn make_room(&self) -> bool {
        let limits = self.breaker.limits;
        let all_full = limits
            .connections
            .is_some_and(|most| self.breaker.all.connections.taken() >= most);
        // Where only this endpoint has too many, one of another is of no use.
        match all_full {
            true => self.member.close_one_idle(),
            false => self.member.pool.close_idle(),
        }
    }
}

fn bound(count: &Arc<Count>, most: usize) -> Bound {
    Bound {
        count: Arc::clone(count),
        most,
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
