//! How far a policy reaches that the called pods' own sidecars enforce: its pods, and those of them that do not enforce it.

use outrigger_api::labels;
use outrigger_api::policy::access::Unresolved;

use super::Absent;
use super::uncaptured::Uncaptured;
use crate::answers::ports_at;
use crate::objects::policy::{Attachment, TargetKind};
use crate::objects::{ObjectName, Pod};
use crate::store::Store;

/// Pods that are named, of those without a sidecar.
const NAMED_PODS: usize = 3;

/// Pods of one target.
#[derive(Default)]
pub(super) struct Reach {
    all: usize,
    /// Without a sidecar.
    pub(super) bare: usize,
    /// Of those: the ones that say so themselves.
    left_out: usize,
    /// The first names of the others.
    named: Vec<String>,
    /// No controller tells their sidecars anything.
    away: usize,
    uncaptured: Uncaptured,
}

impl Reach {
    /// `access` is the policy, if it may name ports itself.
    pub(super) fn new(store: &Store, absent: &Absent, access: Option<&Unresolved>, attachment: &Attachment) -> Self {
        let mut reach = Self::default();
        for (name, pod) in reached(store, attachment) {
            reach.all += 1;
            if !pod.in_mesh {
                reach.bare(name, pod);
            }
            reach.away += usize::from(absent.has(name));
            reach.uncaptured.add(store, access, attachment, pod);
        }
        reach
    }

    fn bare(&mut self, name: &ObjectName, pod: &Pod) {
        self.bare += 1;
        if pod.left_out {
            self.left_out += 1;
        } else if self.named.len() < NAMED_PODS {
            self.named.push(name.to_string());
        }
    }

    /// Of sidecars that no controller tells anything; `so`: what comes of it.
    pub(super) fn away(&self, so: &str) -> Option<String> {
        (self.away > 0).then(|| {
            format!(
                "no controller has told the sidecars of {} of {} pods anything for a minute or more: {so}",
                self.away, self.all
            )
        })
    }

    /// Of pods and ports without a sidecar in the way; `what` they do.
    pub(super) fn open(&self, what: &str) -> impl Iterator<Item = String> {
        let all = self.all;
        let without = self.bare - self.left_out;
        let bare = (without > 0).then(|| {
            let more = match without - self.named.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let names = self.named.join(", ");
            format!("{without} of {all} pods have no sidecar, and {what}: {names}{more}")
        });
        let left_out = (self.left_out > 0).then(|| {
            format!(
                "{} of {all} pods are left out on purpose ({}: {}), and {what}",
                self.left_out,
                labels::INJECT,
                labels::DISABLED
            )
        });
        [bare, left_out, self.uncaptured.text(all, what)].into_iter().flatten()
    }
}

/// The pods that have not ended. Of the whole mesh: those of namespaces that are in it, and whoever else has a sidecar.
pub(super) fn selected<'a>(
    store: &'a Store,
    attachment: &'a Attachment,
) -> Box<dyn Iterator<Item = (&'a ObjectName, &'a Pod)> + 'a> {
    let Ok(target) = &attachment.target else {
        return Box::new(std::iter::empty());
    };
    if target.kind == TargetKind::Namespace && target.name.name == store.own.namespace {
        let injected = |name: &ObjectName| {
            store
                .namespaces
                .get(&name.namespace)
                .is_some_and(|namespace| namespace.inject)
        };
        let pods = store.pods.iter().filter(|(_, pod)| !pod.ended);
        return Box::new(pods.filter(move |(name, pod)| pod.in_mesh || injected(name)));
    }
    let namespace = match target.kind {
        TargetKind::Namespace => &target.name.name,
        _ => &target.name.namespace,
    };
    let pods = store.pods_of_namespace(namespace);
    Box::new(pods.filter(|(_, pod)| ports_at(store, attachment, pod).is_some()))
}

/// Those of them that have a port that is meant: a Service may select none of a pod's.
pub(super) fn reached<'a>(
    store: &'a Store,
    attachment: &'a Attachment,
) -> impl Iterator<Item = (&'a ObjectName, &'a Pod)> {
    let has_ports = move |pod: &Pod| {
        ports_at(store, attachment, pod)
            .flatten()
            .is_none_or(|ports| !ports.is_empty())
    };
    selected(store, attachment).filter(move |(_, pod)| has_ports(pod))
}
