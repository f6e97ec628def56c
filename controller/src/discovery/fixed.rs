//! Targets that do not change by themselves: for tests without Kubernetes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::access as proto;
use outrigger_api::discovery::{Target, Workload, backend, target};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Caller, Discover, Known, Limits};
use crate::access::{Access, PodKey};
use crate::room::Payer;
use crate::split::{EndpointViews, Routes, SetName};
use crate::topic::{Followed, Reader, Topic};
use crate::topology::{Candidates, Place, TargetViews};

/// See the module.
#[derive(Default)]
pub struct FixedTargets {
    targets: HashMap<SocketAddr, Fixed>,
    sets: Mutex<HashMap<SetName, Topic<EndpointViews>>>,
    /// All other addresses.
    external: watch::Sender<Arc<TargetViews>>,
    place: watch::Sender<Arc<Place>>,
    access: Topic<Access>,
    workload: watch::Sender<Arc<Known>>,
    limits: watch::Sender<Arc<Limits>>,
}

struct Fixed {
    whole: watch::Sender<Arc<TargetViews>>,
    routes: Topic<Routes>,
}

impl FixedTargets {
    /// All other addresses are not in the cluster; about every workload nothing is known, until something is said.
    pub fn new(targets: impl IntoIterator<Item = (SocketAddr, Target)>) -> Self {
        let mut fixed = Self::default();
        for (address, target) in targets {
            let routes = fixed.split(address, target.clone());
            let of_address = Fixed {
                whole: watch::Sender::new(Arc::new(target.into())),
                routes: Topic::new(Arc::new(routes)),
            };
            fixed.targets.insert(address, of_address);
        }
        fixed
    }

    /// Replaces one of the targets.
    pub fn replace(&self, address: SocketAddr, target: Target) {
        if let Some(fixed) = self.targets.get(&address) {
            let routes = self.split(address, target.clone());
            if *fixed.routes.value() != routes {
                fixed.routes.replace(Arc::new(routes));
            }
            fixed.whole.send_replace(Arc::new(target.into()));
        }
    }

    /// Says something about every workload.
    pub fn set_workload(&self, workload: Workload) {
        self.workload.send_replace(Arc::new(workload.into()));
    }

    /// Says who may call every workload: at first, everybody.
    pub fn set_access(&self, access: proto::Access) {
        self.access.replace(Arc::new(Access::new(access, &Payer::default())));
    }

    /// Says how much every workload takes: at first, nothing is limited.
    pub fn set_limits(&self, limits: outrigger_api::limits::Limits) {
        self.limits
            .send_replace(Arc::new(Limits::new(limits, &Payer::default())));
    }

    /// Puts the endpoints of each backend into a set of its own.
    fn split(&self, address: SocketAddr, mut target: Target) -> Routes {
        let mut names = Vec::new();
        if let Some(target::Kind::Service(service)) = &mut target.kind {
            for (backend, number) in service.backends.iter_mut().zip(0..) {
                let Some(backend::Kind::Endpoints(endpoints)) = &mut backend.kind else {
                    continue;
                };
                let name = SetName {
                    namespace: "fixed".into(),
                    service: address.to_string().into(),
                    port: number,
                    ipv6: address.is_ipv6(),
                };
                let list = std::mem::take(&mut endpoints.endpoints).into_iter();
                let candidates = Candidates {
                    local: false,
                    secured: backend.tls.is_some(),
                    list: list.map(Into::into).collect(),
                };
                backend.kind = Some(backend::Kind::EndpointSet(name.to_string()));
                self.set(name.clone(), candidates);
                names.push(name);
            }
        }
        Routes::new(address, target, names)
    }

    fn set(&self, name: SetName, candidates: Candidates) {
        let mut sets = self.sets.lock();
        let mut views = EndpointViews::new(name.clone(), candidates, Payer::default(), 0);
        match sets.get(&name) {
            Some(topic) if *topic.value() == views => {}
            Some(topic) => {
                views.follow(&topic.value());
                topic.replace(Arc::new(views));
            }
            None => drop(sets.insert(name, Topic::new(Arc::new(views)))),
        }
    }
}

impl Discover for FixedTargets {
    fn follow_routes(&self, address: SocketAddr, _: &str, reader: Reader) -> Followed<Routes> {
        match self.targets.get(&address) {
            Some(fixed) => fixed.routes.follow(reader),
            None => Topic::new(Arc::new(Routes::new(address, Target::default(), Vec::new()))).follow(reader),
        }
    }

    fn follow_endpoints(&self, name: &SetName, reader: Reader) -> Followed<EndpointViews> {
        let mut sets = self.sets.lock();
        let nobody = || EndpointViews::new(name.clone(), Candidates::default(), Payer::default(), 0);
        let nobody = || Topic::new(Arc::new(nobody()));
        sets.entry(name.clone()).or_insert_with(nobody).follow(reader)
    }

    fn watch_target(&self, address: SocketAddr, _: &str) -> watch::Receiver<Arc<TargetViews>> {
        let fixed = self.targets.get(&address).map(|fixed| &fixed.whole);
        fixed.unwrap_or(&self.external).subscribe()
    }

    fn watch_place(&self, _: &Caller) -> watch::Receiver<Arc<Place>> {
        self.place.subscribe()
    }

    fn follow_access(&self, _: &PodKey, reader: Reader) -> Followed<Access> {
        self.access.follow(reader)
    }

    fn watch_workload(&self, _: &PodKey) -> watch::Receiver<Arc<Known>> {
        self.workload.subscribe()
    }

    fn watch_limits(&self, _: &PodKey) -> watch::Receiver<Arc<Limits>> {
        self.limits.subscribe()
    }

    // Its keys are fixed as well.
    fn unknown_key(&self, _: &PodKey, _: &str, _: &str) {}

    fn is_alive(&self, _: &Caller) -> bool {
        true
    }

    fn synced(&self) -> watch::Receiver<bool> {
        watch::Sender::new(true).subscribe()
    }
}
