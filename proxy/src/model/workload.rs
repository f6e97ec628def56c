//! The pod that this sidecar stands in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Protocol;

/// Who this sidecar stands beside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// `service.name` in telemetry: the name of what owns the pod.
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub pod: Arc<str>,
    pub service_account: Arc<str>,
    pub trust_domain: Arc<str>,
    /// Empty outside Kubernetes.
    pub node: Arc<str>,
    /// Empty outside Kubernetes.
    pub pod_ips: Vec<IpAddr>,
}

/// What the controller says about this very pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadInfo {
    /// The app's protocol by port, where a Service says so.
    pub protocols: HashMap<u16, Protocol>,
    /// Ports whose bytes are not looked into.
    pub opaque_ports: Vec<u16>,
    /// What is outside of them is not in the cluster. Empty: nothing is known.
    pub cluster_networks: Vec<IpNet>,
}

impl WorkloadInfo {
    /// Whether the address is known not to be in the cluster.
    pub fn is_outside(&self, ip: IpAddr) -> bool {
        // An IPv4 address in IPv6 form is what a dual-stack socket says of an IPv4 connection.
        let ip = ip.to_canonical();
        !self.cluster_networks.is_empty() && !self.cluster_networks.iter().any(|network| network.contains(&ip))
    }
}
