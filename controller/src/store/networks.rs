//! The networks of the cluster's Services and pods: what is outside of them, sidecars pass on without asking.
//!
//! The list is what the operator says, and the cluster's ServiceCIDRs. Nobody can prove it right; a Service or pod with an
//! address outside of it proves it wrong, and a wrong list would send plaintext past the mesh. So from then on it is not
//! told to anybody, and every address is asked for, until the list is another one that holds all there is. It does not come
//! back when that pod is gone: the next one may come from the same network.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::objects::ObjectName;
use crate::objects::networks::{Holder, Networks};

#[derive(Clone, Default)]
pub(super) struct ClusterNetworks {
    configured: Networks,
    /// By the ServiceCIDR's name.
    of_services: BTreeMap<ObjectName, Networks>,
    /// How many addresses are outside, of Services and of pods.
    outside: [usize; 2],
    /// Whether all objects are known that were there at the start. Before that nobody is told anything.
    complete: bool,
    refuted: bool,
}

impl ClusterNetworks {
    /// What sidecars are told. Nothing: they ask for every address.
    pub(super) fn told(&self) -> Vec<String> {
        match self.refuted {
            true => Vec::new(),
            false => self.networks().map(ToString::to_string).collect(),
        }
    }

    /// How many addresses are outside of the list, and whether it was proved wrong.
    pub(super) fn outside(&self) -> ([(Holder, usize); 2], bool) {
        let [services, pods] = self.outside;
        ([(Holder::Service, services), (Holder::Pod, pods)], self.refuted)
    }

    /// An object has these addresses instead of those. True: the list is proved wrong by it.
    pub(super) fn moved(&mut self, holder: Holder, name: &ObjectName, old: &[IpAddr], new: &[IpAddr]) -> bool {
        let count = |ips: &[IpAddr]| ips.iter().filter(|ip| !self.contains(**ip)).count();
        let (left, came) = (count(old), count(new));
        let before = self.outside[holder as usize];
        self.outside[holder as usize] = (before + came).saturating_sub(left);
        let refutes = self.complete && came > 0;
        if refutes && (before == 0 || !self.refuted) {
            warn(holder, name, new);
        }
        let first = refutes && !self.refuted;
        self.refuted |= refutes;
        first
    }

    /// The operator's list. It is to be judged anew.
    pub(super) fn configure(&mut self, networks: Networks) {
        self.configured = networks;
    }

    /// A ServiceCIDR has these networks; `None`: it is gone. True: the list is another one, and to be judged anew.
    pub(super) fn set_service_cidr(&mut self, name: ObjectName, networks: Option<Networks>) -> bool {
        if self.of_services.get(&name) == networks.as_ref() {
            return false;
        }
        match networks {
            Some(networks) => drop(self.of_services.insert(name, networks)),
            None => drop(self.of_services.remove(&name)),
        }
        true
    }

    pub(super) fn service_cidrs(&self) -> impl Iterator<Item = &ObjectName> {
        self.of_services.keys()
    }

    /// All objects of the start are known: from now on the list is judged.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    /// Judges the list by all addresses that there are.
    pub(super) fn judge<'a>(&mut self, all: impl Iterator<Item = (Holder, &'a ObjectName, &'a [IpAddr])>) {
        (self.outside, self.refuted) = ([0, 0], false);
        for (holder, name, ips) in all {
            self.moved(holder, name, &[], ips);
        }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        self.configured.0.is_empty() || self.networks().any(|network| network.contains(&ip))
    }

    fn networks(&self) -> impl Iterator<Item = &IpNet> {
        // Where the operator says nothing, Services alone would make a list without pods.
        let of_services = self.of_services.values().filter(|_| !self.configured.0.is_empty());
        self.configured
            .0
            .iter()
            .chain(of_services.flat_map(|networks| &networks.0))
    }
}

fn warn(holder: Holder, name: &ObjectName, ips: &[IpAddr]) {
    tracing::warn!(
        kind = ?holder, %name, ?ips,
        "an address is outside of clusterNetworks: sidecars ask for every address until the value is mended"
    );
}
