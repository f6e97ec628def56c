//! A pod that has its sidecar, after other webhooks have changed it.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use outrigger_api::probes::{APP_PROBES, AppProbe};
use serde_json::json;

use super::operations::Operations;
use super::probes::{Circumstances, plan};
use super::{Outcome, PROXY_CONTAINER, Refusal, annotations, obstacles, sidecar};

/// What the sidecar has to know in addition. A sidecar whose environment does not say what it asks is of an older version, and
/// keeps what it has.
pub(super) fn patch(pod: &Pod, spec: &PodSpec, key: &str) -> Result<Outcome, Refusal> {
    let mut problems = obstacles::of_pod(spec);
    let rewrite = annotations::rewrite_probes(pod, &mut problems);
    if !problems.is_empty() {
        return Err(Refusal { problems });
    }
    let Some((list, index, proxy)) = find(spec) else {
        return Ok(Outcome::AlreadyInjected);
    };
    let Some(asked) = asked(proxy) else {
        return Ok(Outcome::AlreadyInjected);
    };
    let circumstances = Circumstances {
        rewrite,
        native: list == "initContainers",
        asked: &asked,
        // One key for all handlers of a pod.
        key: asked.iter().find_map(|probe| probe.key.as_deref()).unwrap_or(key),
    };
    let plan = plan(spec, &circumstances);
    let mut patch = Operations::default();
    for (name, value) in sidecar::variables(&plan) {
        let value = sidecar::escaped(&value);
        let mut env = proxy.env.iter().flatten();
        let place = env.position(|known| known.name == name && known.value.as_ref().is_some_and(|v| *v != value));
        if let Some(place) = place {
            let (index, place) = (index.to_string(), place.to_string());
            patch.replace(&["spec", list, &index, "env", &place, "value"], json!(value));
        }
    }
    for rewrite in plan.rewrites {
        patch.rewrite(rewrite);
    }
    if patch.is_empty() {
        return Ok(Outcome::AlreadyInjected);
    }
    Ok(Outcome::Patched {
        patch: patch.patch(),
        warnings: Vec::new(),
    })
}

fn find(spec: &PodSpec) -> Option<(&'static str, usize, &Container)> {
    let of = |list, containers: &'_ [Container]| {
        let index = containers.iter().position(|c| c.name == PROXY_CONTAINER)?;
        Some((list, index))
    };
    let init = spec.init_containers.as_deref().unwrap_or_default();
    if let Some((list, index)) = of("initContainers", init) {
        return Some((list, index, &init[index]));
    }
    let (list, index) = of("containers", &spec.containers)?;
    Some((list, index, &spec.containers[index]))
}

fn asked(proxy: &Container) -> Option<Vec<AppProbe>> {
    let variable = proxy
        .env
        .iter()
        .flatten()
        .find(|variable| variable.name == APP_PROBES)?;
    serde_json::from_str(&sidecar::unescaped(variable.value.as_deref()?)).ok()
}
