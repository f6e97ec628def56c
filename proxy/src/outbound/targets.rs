//! The Services and pods that one worker knows. What is outside the cluster is not kept: nothing is known of it that the next
//! connection could use.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::target::WorkerTarget;
use crate::discovery::TargetKey;

/// A target without connections is forgotten after this.
const IDLE: Duration = Duration::from_secs(60);
/// Of all workers. From this number on, a new one takes the place of the one that was used longest ago, if any has no
/// connection. It is half of what discovery keeps: the rest is for what is only asked for.
const MAX_TARGETS: usize = 2048;

/// See the module.
pub struct Targets {
    known: RefCell<HashMap<TargetKey, Rc<WorkerTarget>>>,
    limit: usize,
}

impl Targets {
    /// Those of one of `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self {
            known: RefCell::default(),
            limit: MAX_TARGETS / workers.max(1),
        }
    }

    /// One that is known.
    pub fn get(&self, key: &TargetKey) -> Option<Rc<WorkerTarget>> {
        self.known.borrow().get(key).map(Rc::clone)
    }

    /// One more.
    pub fn insert(&self, key: TargetKey, target: Rc<WorkerTarget>, now: Instant) {
        let mut targets = self.known.borrow_mut();
        if targets.len() >= self.limit {
            let unused = targets.iter().filter(|(_, target)| Rc::strong_count(target) == 1);
            let longest = unused.max_by_key(|(_, target)| target.idle(now));
            if let Some(longest) = longest.map(|(key, _)| key.clone()) {
                targets.remove(&longest);
            }
        }
        targets.insert(key, target);
    }

    /// Closes connections that were idle for too long, and forgets targets that were.
    pub fn sweep(&self, now: Instant) {
        self.known.borrow_mut().retain(|_, target| {
            target.sweep(now);
            Rc::strong_count(target) > 1 || target.idle(now) < IDLE
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::dns::Resolver;
    use crate::model::Workload;
    use crate::model::{Protocol, Service, ServiceName, Target};
    use crate::outbound::affinity::Caller;
    use crate::telemetry::{Settings, Telemetry};

    fn key(n: usize) -> TargetKey {
        TargetKey::Address(SocketAddr::from(([10, 96, 0, 1], u16::try_from(n).unwrap())))
    }

    fn add(targets: &Targets, n: usize, resolver: &Resolver, telemetry: &Telemetry) -> Rc<WorkerTarget> {
        let service = Service {
            name: ServiceName {
                namespace: "shop".into(),
                name: "orders".into(),
                port: 80,
            },
            protocol: Protocol::Detect,
            routes: Arc::default(),
            byte_routes: Arc::default(),
            backends: Vec::new(),
            rules: Arc::default(),
        };
        let updates = watch::channel(Arc::new(Target::Service(Arc::new(service)))).1;
        let now = Instant::now();
        let caller = Caller::new(&Workload {
            name: "web".into(),
            namespace: "shop".into(),
            pod: "web-1".into(),
            service_account: "web".into(),
            trust_domain: "cluster.local".into(),
            node: "".into(),
            pod_ips: Vec::new(),
        });
        let target = WorkerTarget::new(
            updates,
            caller,
            resolver.clone(),
            telemetry.clone(),
            Arc::default(),
            now,
        );
        let target = Rc::new(target);
        targets.insert(key(n), Rc::clone(&target), now);
        target
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_not_used_makes_room_and_one_in_use_never() {
        let resolver = Resolver::start(Some(&[])).unwrap();
        let telemetry = Telemetry::start(&Settings::default(), &resolver).unwrap();
        let targets = Targets::new(2);
        let limit = targets.limit;
        let mut in_use = vec![add(&targets, 0, &resolver, &telemetry)];
        for n in 1..limit {
            tokio::time::advance(Duration::from_millis(1)).await;
            add(&targets, n, &resolver, &telemetry);
        }
        // The second is used again.
        targets.get(&key(1)).unwrap().current(Instant::now());
        in_use.push(add(&targets, limit, &resolver, &telemetry));
        for (n, known) in [(0, true), (1, true), (2, false), (3, true), (limit, true)] {
            assert_eq!(targets.get(&key(n)).is_some(), known, "{n}");
        }
        // Where all are in use there are more.
        in_use.extend((0..limit).filter_map(|n| targets.get(&key(n))));
        in_use.push(add(&targets, limit + 1, &resolver, &telemetry));
        assert_eq!(targets.known.borrow().len(), limit + 1);
        drop(in_use);
        tokio::time::advance(IDLE).await;
        targets.sweep(Instant::now());
        assert!(targets.known.borrow().is_empty());
    }
}
