//! Policies of all kinds, and by what they are attached to.

use std::collections::{BTreeSet, HashMap};

use super::objects::Objects;
use crate::objects::ObjectName;
use crate::objects::policy::{Policy, PolicyKind, Target};

#[derive(Clone, Default)]
pub(crate) struct Policies {
    all: Objects<(PolicyKind, ObjectName), Policy>,
    /// Those that can hold, the oldest first, and those of one age by their names.
    attached: HashMap<(PolicyKind, Target), BTreeSet<(i64, ObjectName)>>,
}

impl Policies {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.all.iter().map(|(_, policy)| policy)
    }

    pub(crate) fn get(&self, kind: PolicyKind, name: &ObjectName) -> Option<&Policy> {
        self.all.get(&(kind, name.clone()))
    }

    pub(super) fn names(&self, kind: PolicyKind) -> impl Iterator<Item = &ObjectName> {
        let names = self.all.keys().filter(move |(k, _)| *k == kind);
        names.map(|(_, name)| name)
    }

    pub(crate) fn of_namespace(&self, kind: PolicyKind, namespace: &str) -> impl Iterator<Item = &Policy> {
        let from = (kind, ObjectName::new(namespace, ""));
        let policies = self.all.from(from);
        let policies = policies.take_while(move |((k, name), _)| *k == kind && *name.namespace == *namespace);
        policies.map(|(_, policy)| policy)
    }

    /// Those that are attached to this very target and can hold there, the oldest first.
    pub(crate) fn at(&self, kind: PolicyKind, target: Target) -> impl Iterator<Item = &Policy> {
        let names = self.attached.get(&(kind, target)).into_iter().flatten();
        names.filter_map(move |(_, name)| self.all.get(&(kind, name.clone())))
    }

    /// Whether sidecars may be told something else now: a status that was written is a new version of the object, and changes
    /// nothing for them.
    pub(super) fn set(&mut self, kind: PolicyKind, name: ObjectName, policy: Option<Policy>) -> bool {
        let key = (kind, name);
        let old = self.all.get(&key);
        let differs = match (old, &policy) {
            (Some(old), Some(new)) => !old.same_spec(new),
            (old, new) => old.is_some() || new.is_some(),
        };
        if differs {
            for (target, entry) in old.into_iter().flat_map(entries) {
                super::remove_from(&mut self.attached, &(kind, target), &entry);
            }
            for (target, entry) in policy.iter().flat_map(entries) {
                self.attached.entry((kind, target)).or_default().insert(entry);
            }
        }
        self.all.set(key, policy);
        differs
    }
}

fn entries(policy: &Policy) -> impl Iterator<Item = (Target, (i64, ObjectName))> {
    let targets = policy.targets().cloned();
    targets.map(|target| (target, (policy.created, policy.name.clone())))
}
