//! Kubernetes' quality of service. A pod is Guaranteed, the last one to be evicted, only where every container has what it requests
//! as its limit: a sidecar with less would make it Burstable.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::all_containers;
use crate::quantity;
use crate::settings::Resources;

/// What a sidecar of a Guaranteed pod has at least. With its usual request, which is no limit elsewhere, it would be throttled.
const CPU: &str = "100m";

/// Whether the pod is Guaranteed as its author wrote it.
pub(super) fn is_guaranteed(spec: &PodSpec) -> bool {
    // Resources of the pod as a whole decide alone.
    spec.resources.is_none() && all_containers(spec).all(container_is_guaranteed)
}

fn container_is_guaranteed(container: &Container) -> bool {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    ["cpu", "memory"].iter().all(|name| {
        let amount = |text: &str| quantity::parse(text).ok().filter(|amount| *amount > 0);
        let limit = limits.and_then(|limits| amount(&limits.get(*name)?.0));
        let request = requests.and_then(|requests| requests.get(*name));
        limit.is_some() && request.is_none_or(|request| amount(&request.0) == limit)
    })
}

/// The same resources, with requests that are limits. What was asked for by annotation stays as it is.
pub(super) fn guaranteed(resources: Resources, asked: &Resources) -> Resources {
    let of = |[request, limit]: [Option<String>; 2], [asked, asked_limit]: [&Option<String>; 2], least: &str| {
        if asked.is_some() && asked_limit.is_some() {
            return [request, limit];
        }
        let more = |text: &str| quantity::parse(text).ok();
        let of_request = match (asked, &request) {
            (None, Some(request)) if more(request) >= more(least) => request.clone(),
            (None, _) => least.to_owned(),
            (Some(asked), _) => asked.clone(),
        };
        // A limit that was not asked for gives way to a request that was.
        let both = limit.filter(|_| asked.is_none()).unwrap_or(of_request);
        [Some(both.clone()), Some(both)]
    };
    let memory = Resources::default().memory_limit.unwrap_or_default();
    let cpu = of(
        [resources.cpu_request, resources.cpu_limit],
        [&asked.cpu_request, &asked.cpu_limit],
        CPU,
    );
    let memory = of(
        [resources.memory_request, resources.memory_limit],
        [&asked.memory_request, &asked.memory_limit],
        &memory,
    );
    Resources::from([cpu, memory])
}
