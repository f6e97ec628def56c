//! Pods whose sidecars no controller tells anything.
//!
//! A controller knows the sidecars that are connected to itself. So it is known where there is one controller, and where there are
//! several nothing is said. A sidecar takes its time to begin, and goes from a controller that ends to the next one: who has been
//! away for less than [`PATIENCE`] is not absent, or each rollout would be a change of statuses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::index::Callers;
use crate::objects::{ObjectName, Pod};
use crate::store::Store;

/// How long a sidecar may be away.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at all pods.
const INTERVAL: Duration = Duration::from_secs(1);

/// Since when each is away.
#[derive(Default)]
pub(crate) struct Absent {
    away: HashMap<ObjectName, Away>,
    /// None: there are several controllers, or it has not looked yet.
    looked: Option<Instant>,
}

struct Away {
    /// Another pod may get the name.
    uid: Arc<str>,
    since: Instant,
}

impl Absent {
    /// Looks who is connected.
    pub(crate) fn look(&mut self, store: &Store, callers: &Callers<'_>, now: Instant) {
        if !is_alone(store) {
            *self = Self::default();
            return;
        }
        if self.looked.is_some_and(|looked| now - looked < INTERVAL) {
            return;
        }
        self.looked = Some(now);
        let mut before = std::mem::take(&mut self.away);
        // Those that wait for a node, and those that end, have nothing to enforce.
        let running = |pod: &Pod| pod.in_mesh && pod.grace_ends.is_none() && !pod.ips.is_empty();
        for (name, pod) in store.pods.iter().filter(|(_, pod)| running(pod)) {
            if callers.hears(name, pod) {
                continue;
            }
            let away = before.remove(name).filter(|away| away.uid == pod.uid);
            let away = away.unwrap_or_else(|| Away {
                uid: Arc::clone(&pod.uid),
                since: now,
            });
            self.away.insert(name.clone(), away);
        }
    }

    pub(super) fn has(&self, pod: &ObjectName) -> bool {
        let away = self.away.get(pod).zip(self.looked);
        away.is_some_and(|(away, looked)| looked - away.since >= PATIENCE)
    }
}

/// Whether no other pod of the controller's ServiceAccount runs beside it. Not where it does not know itself.
fn is_alone(store: &Store) -> bool {
    let Some(own) = store.pods.get(&store.own) else {
        return false;
    };
    let mut beside = store.pods_of_namespace(&store.own.namespace);
    !beside.any(|(name, pod)| *name != store.own && pod.service_account == own.service_account)
}
