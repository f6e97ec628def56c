//! What a pod's telemetry is called: the name of what its author wrote.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

const TEMPLATE_HASH: &str = "pod-template-hash";
const NAME_LABELS: [&str; 2] = ["app.kubernetes.io/name", "app"];

/// The minutes since 1970 that a CronJob puts behind the names of its Jobs, from 2020 to 2060. A date like 20261122 is
/// none of them.
const CRON_MINUTES: std::ops::Range<u32> = 26_297_280..47_336_400;

/// The owner's name (of a ReplicaSet: its Deployment's; of a CronJob's Job: the CronJob's), else the name in the usual
/// labels, else the pod's own.
pub(super) fn name(pod: &Pod) -> String {
    let owners = pod.metadata.owner_references.iter().flatten();
    if let Some(owner) = owners.clone().find(|o| o.controller == Some(true)) {
        return of_owner(owner, label(pod, TEMPLATE_HASH));
    }
    let labelled = NAME_LABELS
        .iter()
        .find_map(|key| label(pod, key))
        .filter(|name| !name.is_empty());
    let own = pod.metadata.name.as_deref().filter(|name| !name.is_empty());
    let generated = pod
        .metadata
        .generate_name
        .as_deref()
        .map(|name| name.trim_end_matches('-'));
    labelled.or(own).or(generated).unwrap_or("unknown").to_owned()
}

fn of_owner(owner: &OwnerReference, template_hash: Option<&str>) -> String {
    let stem = match owner.kind.as_str() {
        "ReplicaSet" => template_hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-')),
        "Job" => owner.name.rsplit_once('-').and_then(|(stem, minutes)| {
            let minutes = minutes.parse().ok()?;
            CRON_MINUTES.contains(&minutes).then_some(stem)
        }),
        _ => None,
    };
    stem.filter(|stem| !stem.is_empty()).unwrap_or(&owner.name).to_owned()
}

fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
}
