//! AccessPolicies: who may call a pod.
//!
//! All policies that select a pod are joined, and none goes before another one. They are those of its own namespace, on the Namespace, on
//! Services whose selector takes the pod and on pods by their labels, and those on Outrigger's own namespace, which are the whole mesh's.
//! A policy that is not valid holds as well, as far as it opens nothing.
//!
//! What is not known closes: of a pod that the controller does not know yet, nobody can say that no policy selects it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrigger_api::access as proto;
use outrigger_api::policy::access::{Cluster, JwksSpec};
use outrigger_api::policy::selector::LabelSelector;

use crate::access::{Access, PodKey, nobody};
use crate::objects::keys::KeySource;
use crate::objects::policy::{Attachment, Policy, PolicyKind, Target, TargetKind};
use crate::objects::{ObjectName, Pod};
use crate::room::Room;
use crate::store::{Dep, Deps, Store};

/// Stands for policies of which nobody can say whether they select the pod.
const UNKNOWN_POD: &str = "(unknown pod)";

/// Ports of a pod. None: all.
pub(super) type Ports = Option<BTreeSet<u16>>;

/// What the pod's sidecar is told.
pub(crate) fn access(store: &Store, room: &Room, key: &PodKey, deps: &mut Deps) -> Access {
    let name = &key.name;
    deps.insert(Dep::Pod(name.clone()));
    deps.insert(Dep::Services(name.namespace.clone()));
    for namespace in [&name.namespace, &store.own.namespace] {
        deps.insert(Dep::Policies(PolicyKind::Access, namespace.clone()));
    }
    let pod = pod_of(store, key);
    let mut told = proto::Access::default();
    for (policy, ports) in selecting(store, PolicyKind::Access, name, pod) {
        let Some(access) = policy.access() else { continue };
        if access.selects_namespaces() {
            deps.insert(Dep::Namespaces);
        }
        let list = if access.audit {
            &mut told.audited
        } else {
            &mut told.enforced
        };
        deps.extend(policy.key_sources().map(Dep::Keys));
        let of_pod = OfPod {
            store,
            pod,
            policies: &policy.name.namespace,
        };
        list.push(access.resolve(numbers(ports), &of_pod));
    }
    if pod.is_none() && may_be_selected(store, name) {
        told.enforced.push(nobody(UNKNOWN_POD, None));
    }
    Access::new(told, &room.payer(&name.namespace))
}

/// As they are told.
pub(super) fn numbers(ports: Ports) -> Option<proto::Ports> {
    let numbers = ports?.into_iter().map(u32::from).collect();
    Some(proto::Ports { numbers })
}

/// The policies of a kind that select the pod, and at which ports, by their names. Of a pod that is not known: those for which its
/// namespace is enough.
pub(crate) fn selecting<'a>(
    store: &'a Store,
    kind: PolicyKind,
    name: &ObjectName,
    pod: Option<&Pod>,
) -> Vec<(&'a Policy, Ports)> {
    let mut selecting: BTreeMap<&ObjectName, (&Policy, Ports)> = BTreeMap::new();
    let mut add = |policy: &'a Policy, ports: Ports| {
        let (_, all) = selecting
            .entry(&policy.name)
            .or_insert_with(|| (policy, Some(BTreeSet::new())));
        *all = all.take().zip(ports).map(|(all, ports)| &all | &ports);
    };
    let at = |target| store.policies.at(kind, target);
    for namespace in [&store.own.namespace, &name.namespace] {
        at(Target::namespace(namespace)).for_each(|policy| add(policy, None));
    }
    if let Some(pod) = pod {
        let of_pods = Target::pods(&name.namespace);
        let by_labels = at(of_pods.clone()).filter(|policy| {
            let attachments = policy.attachments.iter().filter(|a| a.target.as_ref() == Ok(&of_pods));
            { attachments }.any(|attachment| takes(attachment, pod))
        });
        by_labels.for_each(|policy| add(policy, None));
        for (service_name, service) in store.services_selecting(&name.namespace, pod) {
            let whole = Target::service(service_name);
            for port in &service.ports {
                let ports: BTreeSet<u16> = pod.port_behind(port).into_iter().collect();
                for target in [whole.clone(), whole.section(&port.name)] {
                    at(target).for_each(|policy| add(policy, Some(ports.clone())));
                }
            }
        }
    }
    let selecting = selecting.into_values();
    selecting
        .filter(|(_, ports)| ports.as_ref().is_none_or(|ports| !ports.is_empty()))
        .collect()
}

/// Whether there is a policy of which only the pod itself says whether it is selected, or at which ports, and that may refuse somebody.
fn may_be_selected(store: &Store, name: &ObjectName) -> bool {
    let enforced = |policy: &&Policy| policy.access().is_some_and(|access| !access.audit && access.refuses());
    let of_namespace = store.policies.of_namespace(PolicyKind::Access, &name.namespace);
    let mut by_the_pod = of_namespace.filter(enforced).filter(|policy| {
        let mut targets = policy.targets();
        targets.any(|target| target.kind != TargetKind::Namespace)
    });
    let mut selecting = selecting(store, PolicyKind::Access, name, None)
        .into_iter()
        .map(|(policy, _)| policy);
    let names_ports = |policy: &Policy| {
        policy
            .access()
            .is_some_and(|access| access.port_names().next().is_some())
    };
    by_the_pod.next().is_some() || selecting.any(|policy| enforced(&policy) && names_ports(policy))
}

/// Whether a policy that is attached so selects the pod, which is of one of the target's namespaces; and at which ports.
pub(crate) fn ports_at(store: &Store, attachment: &Attachment, pod: &Pod) -> Option<Ports> {
    let target = attachment.target.as_ref().ok()?;
    match target.kind {
        TargetKind::Namespace => Some(None),
        TargetKind::Pods => takes(attachment, pod).then_some(None),
        TargetKind::Service => {
            let service = store
                .services
                .get(&target.name)
                .filter(|service| service.selects(pod))?;
            let ports = service.ports.iter();
            let meant = ports.filter(|port| target.section.is_none() || target.section.as_ref() == Some(&port.name));
            Some(Some(meant.filter_map(|port| pod.port_behind(port)).collect()))
        }
        TargetKind::Route(_) => None,
    }
}

/// A sidecar says itself which pod it is.
pub(super) fn pod_of<'a>(store: &'a Store, key: &PodKey) -> Option<&'a Pod> {
    let pod = store.pods.get(&key.name);
    pod.filter(|pod| pod.service_account == key.service_account)
}

/// Where the keys are of a provider of a policy that selects the pod.
pub(crate) fn provider_of(store: &Store, key: &PodKey, policy: &str, provider: &str) -> Option<KeySource> {
    let (namespace, name) = policy.split_once('/')?;
    if *namespace != *key.name.namespace && *namespace != *store.own.namespace {
        return None;
    }
    let policy = store
        .policies
        .get(PolicyKind::Access, &ObjectName::new(namespace, name))?;
    let pod = pod_of(store, key);
    let selects = |attachment: &Attachment| match (&attachment.target, pod) {
        (Ok(target), _) if target.kind == TargetKind::Namespace => true,
        // Of another namespace only the whole of it counts, and Outrigger's own is the mesh's.
        (Ok(_), Some(pod)) => *namespace == *key.name.namespace && ports_at(store, attachment, pod).is_some(),
        _ => false,
    };
    if !policy.attachments.iter().any(selects) {
        return None;
    }
    let mut providers = policy.access()?.providers();
    let (_, keys) = providers.find(|(name, _)| *name == provider)?;
    KeySource::new(&policy.name.namespace, keys)
}

fn takes(attachment: &Attachment, pod: &Pod) -> bool {
    attachment
        .selector
        .as_ref()
        .is_some_and(|selector| selector.matches(&pod.labels))
}

pub(super) struct OfPod<'a> {
    pub(super) store: &'a Store,
    pub(super) pod: Option<&'a Pod>,
    /// The namespace of the policy.
    pub(super) policies: &'a Arc<str>,
}

impl Cluster for OfPod<'_> {
    fn trust_domain(&self) -> &str {
        &self.store.trust_domain
    }

    fn namespaces(&self, selector: &LabelSelector) -> Vec<String> {
        let namespaces = self.store.namespaces.iter();
        let selected = namespaces.filter(|(_, namespace)| selector.matches(&namespace.labels));
        selected.map(|(name, _)| name.to_string()).collect()
    }

    fn port(&self, name: &str) -> Option<u16> {
        let mut ports = self.pod?.ports.iter();
        ports.find(|(known, _)| **known == *name).map(|(_, port)| *port)
    }

    fn jwks(&self, keys: &JwksSpec) -> String {
        let source = KeySource::new(self.policies, keys);
        let fetched = source.and_then(|source| self.store.keys_at(&source)?.jwks());
        fetched.or(keys.inline.as_deref()).unwrap_or_default().to_owned()
    }

    fn jwks_place(&self, keys: &JwksSpec) -> String {
        KeySource::new(self.policies, keys).map_or_else(String::new, |source| source.word())
    }
}
