//! What makes a sidecar impossible in a pod that is to have one.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use outrigger_api::ports;

use super::{INIT_CONTAINER, NamespaceMeta, PROXY_CONTAINER, TOKEN_VOLUME, TRUST_VOLUME, all_containers};

/// The label by which Kubernetes holds a namespace's pods to one of its Pod Security Standards.
pub const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// What of the pod has a name of the sidecar's.
pub(super) fn clashes(spec: &PodSpec) -> Vec<String> {
    let ours = |name: &str| name == INIT_CONTAINER || name == PROXY_CONTAINER;
    let containers = all_containers(spec)
        .filter(|c| ours(&c.name))
        .map(|c| ("container", &c.name));
    let ours = |name: &str| name == TOKEN_VOLUME || name == TRUST_VOLUME;
    let volumes = spec.volumes.iter().flatten().filter(|v| ours(&v.name));
    let volumes = volumes.map(|v| ("volume", &v.name));
    containers
        .chain(volumes)
        .map(|(what, name)| format!("{what} {name:?}: the name is the sidecar's; call yours something else"))
        .collect()
}

/// Kubernetes would refuse the pod after the webhook, and name a container that its author does not know.
pub(super) fn of_namespace(namespace: &NamespaceMeta) -> Option<String> {
    let level = namespace.labels.get(POD_SECURITY)?;
    forbids_capture(level).then(|| {
        format!(
            "the namespace has the label {POD_SECURITY}: {level}, which forbids the capability NET_ADMIN that {INIT_CONTAINER} needs to \
             capture the pod's traffic; label it \"privileged\" (audit and warn may stay as they are)"
        )
    })
}

/// Whether a namespace with this Pod Security Standard lets no pod have a sidecar.
pub fn forbids_capture(level: &str) -> bool {
    ["baseline", "restricted"].contains(&level)
}

/// What else makes a sidecar impossible in this pod.
pub(super) fn of_pod(spec: &PodSpec) -> Vec<String> {
    let mut problems = Vec::new();
    if spec.host_network == Some(true) {
        problems.push("spec.hostNetwork is true: capture would redirect the traffic of the whole node".to_owned());
    }
    let pod_uid = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let of_app = |c: &&Container| c.name != INIT_CONTAINER && c.name != PROXY_CONTAINER;
    for container in all_containers(spec).filter(of_app) {
        let name = &container.name;
        let uid = container
            .security_context
            .as_ref()
            .and_then(|c| c.run_as_user)
            .or(pod_uid);
        if uid == Some(i64::from(ports::PROXY_UID)) {
            problems.push(format!(
                "container {name:?}: runAsUser {} is the sidecar's own user, whose traffic is not captured; use another",
                ports::PROXY_UID
            ));
        }
        let ours = [ports::OUTBOUND, ports::INBOUND, ports::ADMIN].map(i32::from);
        for port in container
            .ports
            .iter()
            .flatten()
            .filter(|p| ours.contains(&p.container_port))
        {
            problems.push(format!(
                "container {name:?}: port {} is the sidecar's; let the app listen on another",
                port.container_port
            ));
        }
    }
    problems
}
