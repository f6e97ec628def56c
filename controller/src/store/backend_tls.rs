//! BackendTLSPolicies, and by which Services they are found.

use std::collections::{BTreeSet, HashMap};

use super::objects::Objects;
use crate::objects::ObjectName;
use crate::objects::backend_tls::{BackendTls, Target};

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct BackendTlsPolicies {
    all: Objects<ObjectName, BackendTls>,
    /// By the Services that they hold for: the oldest first, and those of one age by their names.
    of: HashMap<ObjectName, BTreeSet<(i64, ObjectName)>>,
}

impl BackendTlsPolicies {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &BackendTls> {
        self.all.iter().map(|(_, policy)| policy)
    }

    pub(super) fn get(&self, name: &ObjectName) -> Option<&BackendTls> {
        self.all.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.all.keys()
    }

    /// The one that is in force for all of a Service, or for a port, by its name: the oldest.
    pub(crate) fn at(&self, service: &ObjectName, section: Option<&str>) -> Option<&BackendTls> {
        let is_it = |target: &Target| target.service == *service && target.section.as_deref() == section;
        let names = self.of.get(service).into_iter().flatten();
        let mut policies = names.filter_map(|(_, name)| self.all.get(name));
        policies.find(|policy| policy.targets.iter().any(is_it))
    }

    /// The one that is in force for calls of a port: its own goes before the Service's.
    pub(crate) fn of_port(&self, service: &ObjectName, port: &str) -> Option<&BackendTls> {
        self.at(service, Some(port)).or_else(|| self.at(service, None))
    }

    /// Gives the Services that may be called otherwise now: none for a status that was written.
    pub(super) fn set(&mut self, name: ObjectName, policy: Option<BackendTls>) -> BTreeSet<ObjectName> {
        let old = self.all.get(&name);
        let mut touched = BTreeSet::new();
        let differs = match (old, &policy) {
            (Some(old), Some(new)) => !old.same_spec(new),
            (old, new) => old.is_some() || new.is_some(),
        };
        if differs {
            for (service, entry) in old.into_iter().flat_map(entries) {
                super::remove_from(&mut self.of, &service, &entry);
                touched.insert(service);
            }
            for (service, entry) in policy.iter().flat_map(entries) {
                self.of.entry(service.clone()).or_default().insert(entry);
                touched.insert(service);
            }
        }
        self.all.set(name, policy);
        touched
    }
}

fn entries(policy: &BackendTls) -> impl Iterator<Item = (ObjectName, (i64, ObjectName))> {
    let services = policy.targets.iter().map(|target| target.service.clone());
    services.map(|service| (service, (policy.created, policy.name.clone())))
}
