//! Pods that asked for the mesh by their namespace, and cannot be in it: a refusal would keep them from running, so they are left alone,
//! and that is said.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, NodeSelectorTerm, Pod, PodSpec};

use super::all_containers;

const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
const WINDOWS: &str = "windows";

/// Containers by which a pod is a member of another mesh, and what that is called.
const SIDECARS: [(&str, &str); 5] = [
    ("istio-proxy", "Istio"),
    ("linkerd-proxy", "Linkerd"),
    ("consul-dataplane", "Consul"),
    ("kuma-sidecar", "Kuma"),
    ("osm-envoy", "Open Service Mesh"),
];
/// Labels and annotations by which another mesh's webhook puts its sidecar in, or says that it did.
const WORDS: [(&str, Option<&[&str]>, &str); 7] = [
    ("sidecar.istio.io/inject", Some(&["true"]), "Istio"),
    ("sidecar.istio.io/status", None, "Istio"),
    ("linkerd.io/inject", Some(&["enabled", "ingress"]), "Linkerd"),
    ("linkerd.io/proxy-version", None, "Linkerd"),
    ("consul.hashicorp.com/connect-inject", Some(&["true"]), "Consul"),
    ("kuma.io/sidecar-injection", Some(&["enabled", "true"]), "Kuma"),
    (
        "openservicemesh.io/sidecar-injection",
        Some(&["enabled", "true", "yes"]),
        "Open Service Mesh",
    ),
];

/// Why a pod gets no sidecar though it was asked for. `None`: there is no reason.
pub fn left_alone(pod: &Pod) -> Option<String> {
    let windows = pod.spec.as_ref().and_then(windows);
    let windows = windows.map(|field| format!("{field} says that it runs on Windows, and the sidecar on Linux only"));
    windows.or_else(|| {
        let (mesh, what) = other_mesh(pod)?;
        Some(format!(
            "its {what} says that it is in {mesh}'s mesh, and two sidecars cannot share a pod's traffic; take that away to have \
             Outrigger's"
        ))
    })
}

/// The field that says that the pod runs on Windows.
fn windows(spec: &PodSpec) -> Option<&'static str> {
    let selected = |selector: &BTreeMap<String, String>| {
        OS_LABELS
            .iter()
            .any(|key| selector.get(*key).is_some_and(|os| os == WINDOWS))
    };
    if spec.os.as_ref().is_some_and(|os| os.name == WINDOWS) {
        return Some("spec.os.name");
    }
    if spec.node_selector.as_ref().is_some_and(selected) {
        return Some("spec.nodeSelector");
    }
    let node_affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        node_affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    if required.is_some_and(|r| !r.node_selector_terms.is_empty() && r.node_selector_terms.iter().all(wants_windows)) {
        return Some("spec.affinity.nodeAffinity");
    }
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.windows_options.as_ref());
    let of_container = |container: &Container| {
        let context = container.security_context.as_ref();
        context.is_some_and(|context| context.windows_options.is_some())
    };
    (of_pod.is_some() || all_containers(spec).any(of_container)).then_some("securityContext.windowsOptions")
}

fn wants_windows(term: &NodeSelectorTerm) -> bool {
    term.match_expressions.iter().flatten().any(|expression| {
        let values = expression.values.as_deref().unwrap_or_default();
        let windows = !values.is_empty() && values.iter().all(|os| os == WINDOWS);
        OS_LABELS.contains(&expression.key.as_str()) && expression.operator == "In" && windows
    })
}

/// The name of the mesh, and what of the pod says it.
fn other_mesh(pod: &Pod) -> Option<(&'static str, String)> {
    let containers = pod.spec.iter().flat_map(all_containers);
    let by_container = containers.filter_map(|container| {
        let (name, mesh) = SIDECARS.iter().find(|(name, _)| *name == container.name)?;
        Some((*mesh, format!("container {name}")))
    });
    let maps = [
        ("label", &pod.metadata.labels),
        ("annotation", &pod.metadata.annotations),
    ];
    let words = maps.into_iter().flat_map(|(what, map)| {
        let said = move |(key, values, mesh): &(&'static str, Option<&[&str]>, &'static str)| {
            let value = map.as_ref()?.get(*key)?;
            let holds = values.is_none_or(|values| values.contains(&value.as_str()));
            holds.then(|| (*mesh, format!("{what} {key}: {value:?}")))
        };
        WORDS.iter().filter_map(said)
    });
    by_container.chain(words).next()
}
