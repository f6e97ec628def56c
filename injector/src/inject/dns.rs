//! Pods whose name servers are not the cluster's: their sidecars cannot find the controller by its name.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::PodSpec;

/// Whether the pod does not ask the cluster's own name servers, as far as Kubernetes says.
pub fn is_outside(spec: &PodSpec) -> bool {
    spec.dns_policy
        .as_deref()
        .is_some_and(|policy| ["Default", "None"].contains(&policy))
}

/// What the pod's author should know.
pub(super) fn warning(spec: &PodSpec, controller: Option<SocketAddr>) -> Option<String> {
    let policy = spec.dns_policy.as_deref().filter(|_| is_outside(spec))?;
    Some(match controller {
        Some(address) => format!(
            "dnsPolicy is {policy:?}: the sidecar has the controller's address as it is now, {address}, and sends its spans only where the \
             pod's name servers know the collector's name"
        ),
        None => format!(
            "dnsPolicy is {policy:?}: the pod's name servers must know the cluster's Services, or its sidecar finds no controller and never \
             gets ready"
        ),
    })
}
