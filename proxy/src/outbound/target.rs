//! A target as one worker knows it: discovery's snapshot, and what only this worker has: balancers, connections, budget.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proxy_transport::error::{ProxyError, Reason};
use tokio::sync::watch;
use tokio::time::Instant;

use super::affinity::Caller;
use super::balance::{Balancer, Pick};
use super::breaker::{Breaker, Breakers};
use super::budget::Budgets;
use super::member::{EndpointLimit, Member};
use crate::dns::{Known, Resolver};
use crate::model::{AttemptRules, Backend, Endpoint, Endpoints, Service, ServiceName, Target};
use crate::telemetry::metrics::AtLimit;
use crate::telemetry::{ServiceMetrics, Telemetry};
use crate::usage::Registry;

/// A DNS name that was not used for so long makes room for others.
const NAME_IDLE: Duration = Duration::from_secs(60);

/// See the module. Connections hold it; the worker forgets it when none does and it was idle.
pub struct WorkerTarget {
    updates: RefCell<watch::Receiver<Arc<Target>>>,
    /// `None`: outside the cluster.
    snapshot: RefCell<Option<Rc<Snapshot>>>,
    pub budgets: RefCell<Budgets>,
    used: Cell<Instant>,
    caller: Caller,
    resolver: Resolver,
    telemetry: Telemetry,
    counts: Arc<Registry>,
}

/// One state of a Service. A request keeps the one that it began with.
pub struct Snapshot {
    pub service: Arc<Service>,
    backends: Vec<WorkerBackend>,
    pub metrics: Arc<ServiceMetrics>,
}

/// A backend with its balancer, which outlives the snapshot.
#[derive(Clone)]
pub struct WorkerBackend {
    backend: Arc<Backend>,
    balancer: Rc<RefCell<Balancer>>,
    /// What is limited at it.
    breakers: Rc<Breakers>,
    /// Addresses of a DNS name, as they come.
    names: Option<Rc<Names>>,
}

/// A DNS name, which is followed while it is used.
struct Names {
    host: Arc<str>,
    port: u16,
    resolver: Resolver,
    /// `None`: it is not followed.
    known: RefCell<Option<watch::Receiver<Known>>>,
    used: Cell<Instant>,
}

impl WorkerTarget {
    /// Begins with what `updates` holds.
    pub fn new(
        updates: watch::Receiver<Arc<Target>>,
        caller: Caller,
        resolver: Resolver,
        telemetry: Telemetry,
        counts: Arc<Registry>,
        now: Instant,
    ) -> Self {
        let target = Self {
            updates: RefCell::new(updates),
            snapshot: RefCell::new(None),
            budgets: RefCell::default(),
            used: Cell::new(now),
            caller,
            resolver,
            telemetry,
            counts,
        };
        target.refresh(now);
        target
    }

    /// The newest state. `None`: outside the cluster.
    pub fn current(&self, now: Instant) -> Option<Rc<Snapshot>> {
        self.used.set(now);
        self.take_update(now);
        self.snapshot.borrow().clone()
    }

    /// Whether connections of bytes may be put into TLS that the app does not speak itself ([`super::tls`]).
    pub fn begins_tls(&self, now: Instant) -> bool {
        let leads = |snapshot: &Snapshot| !snapshot.leads_nowhere();
        let secured = |snapshot: &Snapshot| snapshot.service.backends.iter().any(|backend| backend.tls.is_some());
        self.current(now)
            .is_some_and(|snapshot| leads(&snapshot) && secured(&snapshot))
    }

    /// Since its last request or connection.
    pub fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.used.get())
    }

    /// Closes connections that were idle for too long, and those to endpoints that have gone.
    pub fn sweep(&self, now: Instant) {
        self.take_update(now);
        if let Some(snapshot) = &*self.snapshot.borrow() {
            for backend in &snapshot.backends {
                backend
                    .balancer
                    .borrow()
                    .members()
                    .iter()
                    .for_each(|m| m.pool.sweep(now));
                backend.names.iter().for_each(|names| names.sweep(now));
                backend.breakers.look(backend.name(), now);
            }
        }
    }

    fn take_update(&self, now: Instant) {
        // An error means that discovery has ended: the last state stays.
        if self.updates.borrow().has_changed().unwrap_or(false) {
            self.refresh(now);
        }
    }

    fn refresh(&self, now: Instant) {
        let target = Arc::clone(&self.updates.borrow_mut().borrow_and_update());
        let Target::Service(service) = &*target else {
            *self.snapshot.borrow_mut() = None;
            return;
        };
        let old = self.snapshot.borrow_mut().take();
        let mut backends: Vec<_> = service
            .backends
            .iter()
            .map(|backend| {
                let same = old
                    .as_ref()
                    .and_then(|old| old.backends.iter().find(|o| o.backend.name == backend.name));
                match same {
                    // Another one's endpoints have changed.
                    Some(same) if Arc::ptr_eq(&same.backend, backend) => same.clone(),
                    _ => WorkerBackend::new(backend, same, self.caller, &self.resolver, now),
                }
            })
            .collect();
        let of_routes = service.routes.iter().map(|route| &route.rules);
        let rules = of_routes.chain([&*service.rules]);
        self.budgets
            .borrow_mut()
            .keep(rules.map(|rules| &rules.attempt.retry.budget));
        let metrics = self.telemetry.metrics().service(Some(&service.name));
        for backend in &mut backends {
            backend.breakers = Rc::new(Breakers::new(&self.counts, service, backend.name()));
            let balancer = backend.balancer.borrow();
            balancer.count_at(&metrics);
            balancer.count_in(&self.counts, &service.name, backend.name());
            balancer.keep(|name| service.routes.iter().any(|route| &*route.name == name));
        }
        *self.snapshot.borrow_mut() = Some(Rc::new(Snapshot {
            metrics,
            service: Arc::clone(service),
            backends,
        }));
    }
}

impl Snapshot {
    /// Whether no connection can be carried anywhere: the Service has no ready endpoint, and no route to another.
    pub fn leads_nowhere(&self) -> bool {
        let nobody = |backend: &Arc<Backend>| match &backend.endpoints {
            Endpoints::Known(known) => known.is_empty(),
            Endpoints::NoSuchPort(_) => true,
            Endpoints::Dns { .. } => false,
        };
        let routed = !self.service.routes.is_empty() || !self.service.byte_routes.is_empty();
        !routed && self.service.backends.first().is_none_or(nobody)
    }

    /// What this worker knows of a backend, by its index in the Service.
    pub fn backend(&self, index: usize) -> Option<&WorkerBackend> {
        self.backends.get(index)
    }
}

impl WorkerBackend {
    /// Its name.
    pub fn name(&self) -> &ServiceName {
        &self.backend.name
    }

    /// What requests with these rules are limited by.
    pub fn breaker<'a>(&'a self, rules: &'a AttemptRules, metrics: &'a ServiceMetrics) -> Option<Breaker<'a>> {
        self.breakers.of(rules.limits.as_ref()?, self.name(), metrics)
    }

    /// An endpoint for the next attempt. A name that has not been resolved yet is waited for, at most for `limit`.
    ///
    /// # Errors
    /// [`Reason::NoEndpoints`]; [`Reason::Overloaded`] where each of them has as much as it may have, as `breaker` says.
    pub async fn pick(
        &self,
        mut pick: Pick<'_>,
        breaker: Option<&Breaker<'_>>,
        limit: Duration,
    ) -> Result<Rc<Member>, ProxyError> {
        let mut known = Ok(());
        if let Some(names) = &self.names {
            known = self.resolved(names, limit).await;
            pick.now = Instant::now();
        }
        let mut picked = self.balancer.borrow().pick(&pick);
        if let (None, Some(EndpointLimit::Connections(_))) = (&picked, pick.limit)
            && self.close_one_idle(&pick)
        {
            // Its own task closes it, and is before this one.
            tokio::task::yield_now().await;
            picked = self.balancer.borrow().pick(&pick);
        }
        picked.ok_or_else(|| {
            let balancer = self.balancer.borrow();
            if let Some(breaker) = breaker.filter(|_| !balancer.members().is_empty()) {
                return breaker.refuse(match pick.limit {
                    Some(EndpointLimit::Connections(_)) => AtLimit::EndpointConnections,
                    _ => AtLimit::EndpointRequests,
                });
            }
            let why = known.err().unwrap_or_else(|| match &self.backend.endpoints {
                Endpoints::NoSuchPort(ports) => format!("the Service has no such port; its ports are {ports:?}"),
                _ => "check its selector and the readiness of its pods".to_owned(),
            });
            ProxyError::new(
                Reason::NoEndpoints,
                format!("{} has no ready endpoint; {why}", self.name()),
            )
        })
    }

    /// Where each endpoint has all of its connections: rather one to an endpoint that works.
    fn close_one_idle(&self, pick: &Pick<'_>) -> bool {
        let balancer = self.balancer.borrow();
        let (good, bad): (Vec<_>, Vec<_>) =
            { balancer.members().iter() }.partition(|member| member.left_out(pick.rules, pick.now).is_none());
        good.iter().chain(&bad).any(|member| member.pool.close_idle())
    }

    fn new(
        backend: &Arc<Backend>,
        old: Option<&WorkerBackend>,
        caller: Caller,
        resolver: &Resolver,
        now: Instant,
    ) -> Self {
        let balancer = old.map_or_else(Rc::default, |old| Rc::clone(&old.balancer));
        let names = match &backend.endpoints {
            Endpoints::Known(endpoints) => {
                let affinity = backend.client_affinity.then_some(caller);
                let tls = backend.tls.as_ref();
                balancer.borrow_mut().update_secured(endpoints, tls, affinity, now);
                None
            }
            Endpoints::NoSuchPort(_) => {
                balancer.borrow_mut().update(&[], None, now);
                None
            }
            Endpoints::Dns { host, port } => {
                let same = old.filter(|old| {
                    // Its addresses are taken over when they change: with other TLS they are others.
                    let tls = |backend: &Backend| backend.tls.as_ref().map(Arc::as_ptr);
                    matches!(&old.backend.endpoints, Endpoints::Dns { host: h, port: p } if h == host && p == port)
                        && tls(&old.backend) == tls(backend)
                });
                Some(same.and_then(|old| old.names.clone()).unwrap_or_else(|| {
                    balancer.borrow_mut().update(&[], None, now);
                    Rc::new(Names {
                        host: Arc::clone(host),
                        port: *port,
                        resolver: resolver.clone(),
                        known: RefCell::new(None),
                        used: Cell::new(now),
                    })
                }))
            }
        };
        Self {
            backend: Arc::clone(backend),
            balancer,
            breakers: Rc::default(),
            names,
        }
    }

    /// Takes over the addresses of a name as they are now.
    ///
    /// # Errors
    /// Why there may be none.
    async fn resolved(&self, names: &Names, limit: Duration) -> Result<(), String> {
        names.wait(limit).await?;
        let mut known = names.known.borrow_mut();
        let Some(known) = known.as_mut() else { return Ok(()) };
        let update = |addresses: &[SocketAddr]| {
            let endpoints: Vec<_> = addresses.iter().map(|address| not_in_the_mesh(*address)).collect();
            // Kubernetes gives affinity to what is behind a Service's address, and a name has none.
            let tls = self.backend.tls.as_ref();
            self.balancer
                .borrow_mut()
                .update_secured(&endpoints, tls, None, Instant::now());
        };
        let changed = known.has_changed().unwrap_or(false);
        let host = &names.host;
        match &*known.borrow_and_update() {
            Known::Addresses(addresses) if changed => update(addresses),
            Known::Addresses(_) => {}
            Known::Nothing => {
                if changed {
                    update(&[]);
                }
                return Err(format!("the name {host} does not exist in DNS, or has no address"));
            }
            Known::Failed(error) => return Err(format!("the name {host} cannot be resolved: {error}")),
            Known::NotYet => return Err(format!("the name {host} was not resolved within {limit:?}")),
        }
        Ok(())
    }
}

impl Names {
    /// Follows the name, and waits until something is known of it, at most for `limit`.
    ///
    /// # Errors
    /// When it cannot be followed.
    async fn wait(&self, limit: Duration) -> Result<(), String> {
        self.used.set(Instant::now());
        // A clone, because a `RefCell` must not stay borrowed across an await.
        let mut known = {
            let mut known = self.known.borrow_mut();
            let known = match &mut *known {
                Some(known) => known,
                none => none.insert(self.resolver.watch(&self.host, self.port)?),
            };
            match *known.borrow() {
                Known::NotYet => known.clone(),
                _ => return Ok(()),
            }
        };
        let _ = tokio::time::timeout(limit, known.wait_for(|known| *known != Known::NotYet)).await;
        Ok(())
    }

    fn sweep(&self, now: Instant) {
        if now.saturating_duration_since(self.used.get()) >= NAME_IDLE {
            self.known.take();
        }
    }
}

fn not_in_the_mesh(address: SocketAddr) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address,
        identity: None,
        zone: None,
        pod: None,
        remote: false,
    })
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
