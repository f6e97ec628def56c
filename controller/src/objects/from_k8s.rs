//! Kubernetes objects into what is kept of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{DynamicObject, PartialObjectMeta};
use outrigger_api::address::why_no_backend;
use outrigger_api::discovery::Protocol;
use outrigger_api::labels;

use super::networks::Networks;
use super::{
    EndpointSlice, Namespace, Node, Object, ObjectName, Pod, PortSet, Service, ServicePort, SliceEndpoint, SlicePort,
    TargetPort,
};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The name of an object.
pub fn object_name(meta: &ObjectMeta) -> ObjectName {
    ObjectName::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// A Service.
pub fn service(service: &core::Service) -> Option<(ObjectName, Object)> {
    let spec = service.spec.as_ref()?;
    let ip_list = |list: &Option<Vec<String>>| list.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    let mut cluster_ips: Vec<IpAddr> = ip_list(&spec.cluster_ips);
    if cluster_ips.is_empty() {
        cluster_ips.extend(spec.cluster_ip.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()));
    }
    let ports = spec.ports.iter().flatten().filter(|p| is_tcp(p.protocol.as_deref()));
    let kept = Service {
        cluster_ips,
        ports: ports.filter_map(service_port).collect(),
        selector: spec.selector.clone().unwrap_or_default(),
        external_name: (spec.type_.as_deref() == Some("ExternalName"))
            .then(|| spec.external_name.as_deref().map(Arc::from))
            .flatten(),
        local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        client_affinity: spec.session_affinity.as_deref() == Some("ClientIP") && !ignores_affinity(&service.metadata),
        opaque_ports: annotated_ports(&service.metadata, labels::OPAQUE_PORTS),
    };
    Some((object_name(&service.metadata), Object::Service(kept)))
}

/// An EndpointSlice. Those of the address type `FQDN` are passed over, as kube-proxy does: Kubernetes gives them no meaning.
pub fn endpoint_slice(slice: &discovery::EndpointSlice) -> Option<(ObjectName, Object)> {
    let name = object_name(&slice.metadata);
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    if slice.address_type == "FQDN" {
        return None;
    }
    let ports = slice.ports.iter().flatten().filter(|p| is_tcp(p.protocol.as_deref()));
    let mut left_out = None;
    let endpoints = slice.endpoints.iter().filter(|endpoint| {
        let address = first_address(endpoint);
        let why = address.and_then(|address| Some((address, why_no_backend(address)?)));
        if let Some((address, why)) = why {
            tracing::warn!(namespace = %name.namespace, %address, "an endpoint is left out: it is {why}");
            left_out = Some(address);
        }
        why.is_none()
    });
    let endpoints = endpoints.filter_map(|e| slice_endpoint(e, &name.namespace)).collect();
    let kept = EndpointSlice {
        service: ObjectName::new(&name.namespace, service),
        endpoints,
        ports: ports
            .map(|p| SlicePort {
                name: p.name.as_deref().unwrap_or_default().into(),
                port: p.port.and_then(|port| u16::try_from(port).ok()),
            })
            .collect(),
        left_out,
    };
    Some((name, Object::EndpointSlice(kept)))
}

/// All addresses of one endpoint are the same endpoint; the API says to use the first.
fn first_address(endpoint: &discovery::Endpoint) -> Option<IpAddr> {
    endpoint.addresses.first()?.parse().ok()
}

/// `None`: it cannot be called.
fn slice_endpoint(endpoint: &discovery::Endpoint, namespace: &str) -> Option<SliceEndpoint> {
    let conditions = endpoint.conditions.as_ref();
    // What is not said: ready is true, serving is as ready, terminating is false (EndpointConditions).
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    // `publishNotReadyAddresses` makes an endpoint ready whatever its pod says, and also one that terminates: that one is
    // called where there is nobody else.
    let usable = ready || serving && terminating;
    let pod = endpoint.target_ref.as_ref();
    let pod = pod.filter(|t| t.kind.as_deref() == Some("Pod")).and_then(|t| {
        let namespace = t.namespace.as_deref().filter(|ns| !ns.is_empty()).unwrap_or(namespace);
        Some(ObjectName::new(namespace, t.name.as_deref()?))
    });
    let hints = endpoint.hints.as_ref();
    let for_nodes = hints.and_then(|h| h.for_nodes.as_ref()).into_iter().flatten();
    let for_zones = hints.and_then(|h| h.for_zones.as_ref()).into_iter().flatten();
    usable.then_some(())?;
    Some(SliceEndpoint {
        address: first_address(endpoint)?,
        ready: ready && !terminating,
        node: endpoint.node_name.as_deref().map(Arc::from),
        zone: endpoint.zone.as_deref().map(Arc::from),
        for_nodes: for_nodes.map(|hint| Arc::from(hint.name.as_str())).collect(),
        for_zones: for_zones.map(|hint| Arc::from(hint.name.as_str())).collect(),
        pod,
    })
}

/// A Pod.
pub fn pod(pod: &core::Pod) -> Option<(ObjectName, Object)> {
    let spec = pod.spec.as_ref()?;
    let status = pod.status.as_ref();
    let ended = matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
    // Several pods answer at a node's address; and the address of an ended pod may be another's by now.
    let addressable = !ended && spec.host_network != Some(true);
    let mut ips: Vec<IpAddr> = Vec::new();
    if let Some(status) = status.filter(|_| addressable) {
        let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        ips.extend(
            listed
                .chain(status.pod_ip.as_deref())
                .filter_map(|ip| ip.parse::<IpAddr>().ok()),
        );
        ips.sort_unstable();
        ips.dedup();
    }
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers()
        .flat_map(|c| c.ports.iter().flatten())
        .filter(|p| is_tcp(p.protocol.as_deref()))
        .filter_map(|p| Some((Arc::from(p.name.as_deref()?), u16::try_from(p.container_port).ok()?)));
    let mut conditions = status.iter().flat_map(|s| s.conditions.iter().flatten());
    let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    // What cannot be changed any more says whether there is a sidecar and which ports are its; labels and annotations can be.
    let capture = containers().find(|c| c.name == labels::INIT_CONTAINER);
    let kept = Pod {
        uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
        ended,
        ready: is_ready && !ended && pod.metadata.deletion_timestamp.is_none(),
        grace_ends: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0.into()),
        ips,
        node: spec.node_name.as_deref().map(Arc::from),
        service_account: spec.service_account_name.as_deref().unwrap_or("default").into(),
        in_mesh: !ended && containers().any(|c| c.name == labels::PROXY_CONTAINER),
        left_out: [&pod.metadata.labels, &pod.metadata.annotations]
            .into_iter()
            .flatten()
            .any(|said| said.get(labels::INJECT).is_some_and(|value| value == labels::DISABLED)),
        ports: ports.collect(),
        skip_inbound: capture
            .map(|capture| ports_in_env(&pod.metadata, capture, labels::SKIP_INBOUND_PORTS_VARIABLE))
            .unwrap_or_default(),
        opaque_ports: annotated_ports(&pod.metadata, labels::OPAQUE_PORTS),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
    };
    Some((object_name(&pod.metadata), Object::Pod(kept)))
}

/// A Node, of which the metadata is enough.
pub fn node(node: &PartialObjectMeta<core::Node>) -> Option<(ObjectName, Object)> {
    let meta = &node.metadata;
    let zone = meta.labels.as_ref().and_then(|l| l.get(ZONE_LABEL));
    let kept = Node {
        zone: zone.map(|zone| Arc::from(zone.as_str())),
    };
    Some((object_name(meta), Object::Node(kept)))
}

/// A Namespace.
pub fn namespace(namespace: &core::Namespace) -> Option<(ObjectName, Object)> {
    let meta = &namespace.metadata;
    let label = meta.labels.as_ref().and_then(|l| l.get(labels::INJECT));
    let kept = Namespace {
        inject: label.is_some_and(|value| value == labels::ENABLED),
        terminating: meta.deletion_timestamp.is_some(),
        labels: meta.labels.clone().unwrap_or_default(),
        opaque_ports: annotated_ports(meta, labels::OPAQUE_PORTS),
    };
    Some((object_name(meta), Object::Namespace(kept)))
}

/// A ServiceCIDR, of whichever version. What cannot be read in it is as if it were not there: then its Services are outside.
pub fn service_cidr(object: &DynamicObject) -> Option<(ObjectName, Object)> {
    let cidrs = object.data.get("spec")?.get("cidrs")?.as_array()?;
    let cidrs = cidrs.iter().filter_map(|cidr| cidr.as_str()?.parse().ok());
    let networks = Networks(cidrs.collect());
    Some((object_name(&object.metadata), Object::ServiceCidr(networks)))
}

fn service_port(port: &core::ServicePort) -> Option<ServicePort> {
    let number = u16::try_from(port.port).ok()?;
    Some(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        port: number,
        target: match &port.target_port {
            Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
            Some(IntOrString::Int(target)) => TargetPort::Number(u16::try_from(*target).ok()?),
            None => TargetPort::Number(number),
        },
        protocol: port.app_protocol.as_deref().and_then(app_protocol),
    })
}

/// `appProtocol` (KEP-3726, IANA service names, and names in use). What is not known is detected.
fn app_protocol(name: &str) -> Option<Protocol> {
    Some(match name.to_ascii_lowercase().as_str() {
        "http" | "http1" | "http/1.1" | "kubernetes.io/ws" | "ws" | "grpc-web" => Protocol::Http1,
        "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" => Protocol::Http2,
        "https" | "tls" | "h2" | "grpcs" | "kubernetes.io/wss" | "wss" => Protocol::Tls,
        "tcp" | "mysql" | "postgresql" | "postgres" | "redis" | "mongo" | "mongodb" | "smtp" | "submission"
        | "imap" | "pop3" | "ftp" | "ssh" | "telnet" | "amqp" | "mqtt" | "kafka" | "nats" | "cassandra"
        | "memcache" | "memcached" | "zookeeper" | "ldap" | "ms-sql-s" => Protocol::Opaque,
        _ => return None,
    })
}

/// TCP is what is meant where nothing is said.
fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|p| p == "TCP")
}

/// Ports from a container's environment. None, where they cannot be read: the container does not start with them either.
fn ports_in_env(pod: &ObjectMeta, container: &core::Container, variable: &str) -> PortSet {
    let variables = container.env.iter().flatten();
    // Of several with one name the last counts.
    let value = variables
        .rev()
        .find(|v| v.name == variable)
        .and_then(|v| v.value.as_deref());
    match labels::parse_ports(value.unwrap_or_default()) {
        Ok(ranges) => PortSet(ranges),
        Err(e) => {
            tracing::warn!(pod = %object_name(pod), variable, error = %e, "a container's environment is passed over");
            PortSet::default()
        }
    }
}

/// Whether the Service's owner wants its `sessionAffinity` passed over.
fn ignores_affinity(meta: &ObjectMeta) -> bool {
    let annotations = meta.annotations.as_ref();
    match annotations
        .and_then(|a| a.get(labels::SESSION_AFFINITY))
        .map(String::as_str)
    {
        None => false,
        Some(labels::IGNORE) => true,
        Some(value) => {
            let (object, annotation) = (object_name(meta), labels::SESSION_AFFINITY);
            tracing::warn!(%object, annotation, value, "an annotation is passed over: it can only be \"ignore\"");
            false
        }
    }
}

/// Ports from an annotation. One that cannot be read is as if it were not there: it makes nothing stricter or looser.
fn annotated_ports(meta: &ObjectMeta, annotation: &str) -> Option<PortSet> {
    let annotations: &BTreeMap<String, String> = meta.annotations.as_ref()?;
    match labels::parse_ports(annotations.get(annotation)?) {
        Ok(ranges) => Some(PortSet(ranges)),
        Err(e) => {
            tracing::warn!(object = %object_name(meta), annotation, error = %e, "an annotation is passed over");
            None
        }
    }
}
