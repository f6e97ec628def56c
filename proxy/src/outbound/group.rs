//! What endpoints of one backend say together: whether more of them fail than may be left out (see [`ejection`](super::ejection)), and how
//! long those take that are near the caller, and the others (see [`zones`](super::zones)).

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::time::Instant;

use super::ejection::{LeftOut, most};
use super::member::Member;
use super::zones::Zones;
use crate::model::{Balancing, ServiceName};
use crate::telemetry::ServiceMetrics;
use crate::telemetry::metrics::Ejected;
use crate::usage::{Key, Part, Registry, Usage};

/// See the module.
#[derive(Default)]
pub struct Group {
    members: RefCell<Vec<Weak<Member>>>,
    /// At most one for each route that counts apart, and one for all others.
    crowds: RefCell<Vec<Crowd>>,
    metrics: OnceCell<Arc<ServiceMetrics>>,
    /// Where the endpoints' limits are counted, and for which Service and backend.
    counts: OnceCell<(Arc<Registry>, ServiceName, ServiceName)>,
    /// Some are near the caller, and some are not.
    has_zones: Cell<bool>,
    pub zones: RefCell<Zones>,
}

/// For requests that are counted together.
struct Crowd {
    counters: Option<Arc<str>>,
    /// Too many fail, so all are used.
    too_many: bool,
    /// Until when that holds if nothing happens. `None`: it has to be counted again.
    known_until: Option<Instant>,
}

impl Group {
    /// Those that there are.
    pub fn members(&self) -> Vec<Rc<Member>> {
        self.members.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Others are there from now on, of which so many are near the caller.
    pub fn replace(&self, members: &[Rc<Member>], near: usize) {
        self.has_zones.set((1..members.len()).contains(&near));
        self.zones.borrow_mut().resize(near, members.len());
        *self.members.borrow_mut() = members.iter().map(Rc::downgrade).collect();
        self.changed();
    }

    /// An endpoint is left out from now on, or is not any more.
    pub fn changed(&self) {
        for crowd in &mut *self.crowds.borrow_mut() {
            crowd.known_until = None;
        }
    }

    /// Whether requests of a rule use endpoints that fail as well, because too many do.
    pub fn uses_all(&self, rules: &Balancing, now: Instant) -> bool {
        let mut crowds = self.crowds.borrow_mut();
        let counters = rules.counters();
        let known = crowds.iter().position(|crowd| crowd.counters.as_ref() == counters);
        let index = known.unwrap_or_else(|| {
            crowds.push(Crowd {
                counters: counters.cloned(),
                too_many: false,
                known_until: None,
            });
            crowds.len() - 1
        });
        let crowd = &mut crowds[index];
        if crowd.known_until.is_none_or(|until| until <= now) {
            self.count(crowd, rules, now);
        }
        crowd.too_many
    }

    /// Whether it matters how long which of them take.
    pub fn has_zones(&self) -> bool {
        self.has_zones.get()
    }

    /// Where ejections are counted.
    pub fn count_at(&self, metrics: &Arc<ServiceMetrics>) {
        self.metrics.get_or_init(|| Arc::clone(metrics));
    }

    /// Where limits are counted that hold for all workers.
    pub fn count_in(&self, counts: &Arc<Registry>, service: &ServiceName, backend: &ServiceName) {
        self.counts
            .get_or_init(|| (Arc::clone(counts), service.clone(), backend.clone()));
    }

    /// What all workers have of an endpoint.
    pub fn usage_of(&self, endpoint: SocketAddr) -> Arc<Usage> {
        self.counts
            .get()
            .map_or_else(Arc::default, |(counts, service, backend)| {
                counts.of(Key {
                    service: service.clone(),
                    backend: backend.clone(),
                    part: Part::Endpoint(endpoint),
                })
            })
    }

    /// Forgets what is known for routes that are no more.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        let is_there = |crowd: &Crowd| crowd.counters.as_ref().is_none_or(|route| is_there(route));
        self.crowds.borrow_mut().retain(is_there);
    }

    /// An endpoint is left out from now on.
    pub fn say_ejected(&self, member: &Member, rules: &Balancing, now: Instant) {
        let (Some(why), Some(until)) = (member.left_out(rules, now), member.ends(rules)) else {
            return;
        };
        let why = match why {
            LeftOut::Absent => Ejected::Absent,
            LeftOut::Failing => Ejected::Failing,
        };
        self.tell(why);
        tracing::info!(
            endpoint = %member.endpoint.address,
            pod = member.endpoint.pod.as_deref(),
            route = rules.counters().map(|route| &**route),
            why = why.name(),
            time = ?until.saturating_duration_since(now),
            "an endpoint is left out"
        );
    }

    fn count(&self, crowd: &mut Crowd, rules: &Balancing, now: Instant) {
        let members = self.members();
        let (mut absent, mut failing, mut until) = (0, 0, None::<Instant>);
        for member in &members {
            match member.left_out(rules, now) {
                None => continue,
                Some(LeftOut::Absent) => absent += 1,
                Some(LeftOut::Failing) => failing += 1,
            }
            until = until.into_iter().chain(member.ends(rules)).min();
        }
        let present = members.len() - absent;
        let allowed = most(rules.ejection(), present);
        let too_many = failing > allowed;
        if too_many && !crowd.too_many {
            self.tell(Ejected::TooMany);
            tracing::warn!(
                failing,
                allowed,
                present,
                absent,
                route = crowd.counters.as_deref(),
                endpoint = members.first().map(|member| member.endpoint.address.to_string()),
                "more endpoints fail than may be left out, so all of them are used; see ejection.maxEjectedPercent"
            );
        }
        (crowd.too_many, crowd.known_until) = (too_many, until);
    }

    fn tell(&self, what: Ejected) {
        if let Some(metrics) = self.metrics.get() {
            metrics.ejected(what);
        }
    }
}
