//! The ports and paths at which kubelet itself calls the pod. A `strict` sidecar lets in exactly these without mTLS.

use k8s_openapi::api::core::v1::{
    Container, GRPCAction, HTTPGetAction, LifecycleHandler, PodSpec, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;

use super::all_containers;

/// One of them. Without a path any bytes to the port are let in: a TCP probe, or TLS that the app ends itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Entry {
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

/// What kubelet asks for with a gRPC probe.
const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";

/// All probes and lifecycle handlers that reach the pod by its network, sorted, each once.
pub(super) fn entries(spec: &PodSpec) -> Vec<Entry> {
    let mut entries: Vec<_> = all_containers(spec).flat_map(of_container).collect();
    entries.sort();
    entries.dedup();
    entries
}

fn of_container(container: &Container) -> Vec<Entry> {
    let probes = [
        &container.startup_probe,
        &container.readiness_probe,
        &container.liveness_probe,
    ];
    let lifecycle = container.lifecycle.as_ref();
    let handlers = [
        lifecycle.and_then(|l| l.post_start.as_ref()),
        lifecycle.and_then(|l| l.pre_stop.as_ref()),
    ];
    let of_probe = |Probe {
                        http_get,
                        tcp_socket,
                        grpc,
                        ..
                    }: &Probe| {
        let http = http_get.as_ref().and_then(|h| http_entry(h, container));
        let tcp = tcp_socket.as_ref().and_then(|t| tcp_entry(t, container));
        http.or(tcp).or(grpc.as_ref().and_then(grpc_entry))
    };
    let of_handler = |LifecycleHandler {
                          http_get, tcp_socket, ..
                      }: &LifecycleHandler| {
        let http = http_get.as_ref().and_then(|h| http_entry(h, container));
        http.or(tcp_socket.as_ref().and_then(|t| tcp_entry(t, container)))
    };
    let probes = probes.into_iter().flatten().filter_map(of_probe);
    probes
        .chain(handlers.into_iter().flatten().filter_map(of_handler))
        .collect()
}

fn http_entry(http: &HTTPGetAction, container: &Container) -> Option<Entry> {
    let port = port(&http.port, http.host.as_deref(), container)?;
    let https = http.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let path = http.path.as_deref().unwrap_or("/");
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = format!("/{}", path.strip_prefix('/').unwrap_or(path));
    Some(Entry {
        port,
        path: (!https).then_some(path),
    })
}

fn tcp_entry(tcp: &TCPSocketAction, container: &Container) -> Option<Entry> {
    Some(Entry {
        port: port(&tcp.port, tcp.host.as_deref(), container)?,
        path: None,
    })
}

fn grpc_entry(grpc: &GRPCAction) -> Option<Entry> {
    let port = u16::try_from(grpc.port).ok().filter(|&p| p != 0)?;
    Some(Entry {
        port,
        path: Some(GRPC_PATH.to_owned()),
    })
}

/// The number of a port that may be named, as kubelet finds it: among the ports of the same container. `None` for a
/// name that is nowhere (kubelet's probe fails, with or without a sidecar) and for another host than the pod.
fn port(port: &IntOrString, host: Option<&str>, container: &Container) -> Option<u16> {
    if host.is_some_and(|h| !h.is_empty()) {
        return None;
    }
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|&p| p != 0)
}
