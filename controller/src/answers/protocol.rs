//! What is spoken on a port: the annotation first, then `appProtocol`, then the well-known ports.

use outrigger_api::discovery::Protocol;
use outrigger_api::ports;

use crate::objects::{ObjectName, Pod, PortSet, Service, ServicePort, TargetPort};
use crate::store::Store;

/// On a Service's port.
pub(super) fn of_port(store: &Store, name: &ObjectName, service: &Service, port: &ServicePort) -> Protocol {
    let opaque = service.opaque_ports.as_ref().or_else(|| of_namespace(store, name));
    if opaque.is_some_and(|ports| ports.contains(port.port)) {
        return Protocol::Opaque;
    }
    let target_is_opaque = matches!(port.target, TargetPort::Number(n) if ports::DEFAULT_OPAQUE.contains(&n));
    match port.protocol {
        Some(protocol) => protocol,
        None if target_is_opaque || ports::DEFAULT_OPAQUE.contains(&port.port) => Protocol::Opaque,
        None => Protocol::Unspecified,
    }
}

/// What is annotated of a pod's ports.
pub(super) fn opaque_ports<'a>(store: &'a Store, name: &ObjectName, pod: &'a Pod) -> Option<&'a PortSet> {
    pod.opaque_ports.as_ref().or_else(|| of_namespace(store, name))
}

fn of_namespace<'a>(store: &'a Store, name: &ObjectName) -> Option<&'a PortSet> {
    store.namespaces.get(&name.namespace)?.opaque_ports.as_ref()
}
