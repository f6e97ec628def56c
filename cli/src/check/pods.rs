//! The pods of the labelled namespaces.

use std::collections::BTreeSet;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::Pod;
use outrigger_api::labels;
use outrigger_injector::inject::{left_alone, left_to_kubelet, shared_processes};

use super::namespaces::{labelled_at, says_strict};
use super::{Facts, Finding, good, lives, name, sidecar_is_unready, some, time, version, warning, wrong};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = sidecars(facts);
    findings.extend(strictness(facts));
    findings.extend(probes(facts));
    findings.extend(guests(facts));
    findings.extend(versions(facts));
    findings
}

/// Pods with a sidecar.
fn meshed(facts: &Facts) -> impl Iterator<Item = &Pod> {
    facts.pods.iter().filter(|pod| lives(pod) && version(pod).is_some())
}

/// Pods that should have a sidecar.
fn sidecars(facts: &Facts) -> Vec<Finding> {
    let with: Vec<_> = meshed(facts).collect();
    let wanting = facts.pods.iter();
    let wanting = wanting.filter(|pod| lives(pod) && version(pod).is_none() && !opted_out(pod));
    let (apart, without): (Vec<_>, Vec<_>) = wanting.partition(|pod| left_alone(pod).is_some());
    let mut findings = Vec::new();
    for why in [Without::Label, Without::Webhook, Without::Unknown] {
        let names: Vec<_> = without
            .iter()
            .filter(|pod| why_without(facts, pod) == why)
            .map(|pod| name(pod))
            .collect();
        if !names.is_empty() {
            findings.push(wrong(
                format!(
                    "pods without a sidecar in labelled namespaces, {}: {}",
                    why.text(),
                    some(&names)
                ),
                "kubectl rollout restart brings it in; a pod without a Deployment or the like has to be made anew",
            ));
        }
    }
    let unready: Vec<_> = with
        .iter()
        .filter(|pod| sidecar_is_unready(pod))
        .map(|pod| name(pod))
        .collect();
    if !unready.is_empty() {
        findings.push(wrong(
            format!("sidecars that are not ready: {}", some(&unready)),
            "kubectl logs POD -c outrigger-proxy says why",
        ));
    }
    if findings.is_empty() {
        findings.push(good(format!(
            "every pod of the labelled namespaces has what it wants: {} with a sidecar",
            with.len()
        )));
    }
    let apart: Vec<_> = apart
        .iter()
        .filter_map(|pod| Some(format!("{} ({})", name(pod), left_alone(pod)?)))
        .collect();
    if !apart.is_empty() {
        findings.push(warning(
            format!("pods that the injector leaves alone: {}", some(&apart)),
            format!(
                "they are outside of the mesh; the label {}: {} says that it is meant so",
                labels::INJECT,
                labels::DISABLED
            ),
        ));
    }
    findings
}

/// Why a pod has no sidecar, as far as times tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    Label,
    Webhook,
    Unknown,
}

impl Without {
    fn text(self) -> &'static str {
        match self {
            Self::Label => "older than the label",
            Self::Webhook => "made before the webhook was there, or was there again",
            Self::Unknown => "made while the webhook did not answer for them, or older than the label",
        }
    }
}

fn why_without(facts: &Facts, pod: &Pod) -> Without {
    let made: Option<SystemTime> = pod.metadata.creation_timestamp.as_ref().map(time);
    let namespace = facts
        .namespaces
        .iter()
        .find(|namespace| namespace.metadata.name == pod.metadata.namespace);
    let label = namespace.and_then(labelled_at);
    let webhook = facts
        .webhooks
        .as_ref()
        .and_then(|webhooks| webhooks.metadata.creation_timestamp.as_ref());
    match made {
        Some(made) if label.is_some_and(|label| made < label) => Without::Label,
        Some(made) if webhook.is_some_and(|webhook| made < time(webhook)) => Without::Webhook,
        _ => Without::Unknown,
    }
}

/// What a namespace says of mutual TLS holds for pods that are made from then on.
fn strictness(facts: &Facts) -> Vec<Finding> {
    let strict = facts.namespaces.iter().filter(|namespace| says_strict(namespace));
    let strict: BTreeSet<_> = strict
        .filter_map(|namespace| namespace.metadata.name.as_ref())
        .collect();
    let lax = meshed(facts).filter(|pod| {
        let namespace = pod.metadata.namespace.as_ref();
        !is_strict(pod) && namespace.is_some_and(|namespace| strict.contains(namespace))
    });
    let lax: Vec<_> = lax.map(name).collect();
    if lax.is_empty() {
        return Vec::new();
    }
    vec![wrong(
        format!(
            "pods that take plaintext though their namespace says {}: strict: {}",
            labels::MTLS,
            some(&lax)
        ),
        "they are older than the annotation, which holds for new pods only: kubectl rollout restart",
    )]
}

/// What kubelet asks apps itself.
fn probes(facts: &Facts) -> Option<Finding> {
    let left: Vec<_> = meshed(facts)
        .flat_map(|pod| {
            left_to_kubelet(pod)
                .into_iter()
                .map(|what| format!("{}: {what}", name(pod)))
        })
        .collect();
    if left.is_empty() {
        return None;
    }
    Some(warning(
        format!(
            "kubelet asks these apps itself, and not their sidecars: {}",
            some(&left)
        ),
        "a strict sidecar lets the same request in from everybody, in plaintext, and refuses HTTPS; \
         see \"Probes\" in docs/configuration.md",
    ))
}

/// Pods whose apps see their sidecars' processes.
fn guests(facts: &Facts) -> Option<Finding> {
    let shared: Vec<_> = meshed(facts)
        .filter_map(|pod| Some(format!("{} ({})", name(pod), shared_processes(pod.spec.as_ref()?)?)))
        .collect();
    (!shared.is_empty()).then(|| {
        warning(
            format!("these apps see the processes of their sidecars: {}", some(&shared)),
            "as root they can end them, and with the capability SYS_PTRACE read the token and the key by which the pod is known",
        )
    })
}

fn versions(facts: &Facts) -> Option<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let versions: BTreeSet<_> = meshed(facts).filter_map(version).collect();
    let others: Vec<_> = versions.iter().filter(|version| **version != own).copied().collect();
    if versions.is_empty() {
        return None;
    }
    if others.is_empty() {
        return Some(good(format!("all sidecars have version {own}, as this program")));
    }
    Some(warning(
        format!(
            "this program has version {own}, and there are sidecars of {}",
            some(&others)
        ),
        "after an upgrade: kubectl rollout restart brings the new sidecar in",
    ))
}

fn is_strict(pod: &Pod) -> bool {
    super::proxy_variable(pod, "OUTRIGGER_MTLS") == Some("strict")
}

fn opted_out(pod: &Pod) -> bool {
    let maps = [&pod.metadata.labels, &pod.metadata.annotations];
    maps.into_iter()
        .flatten()
        .any(|map| map.get(labels::INJECT).is_some_and(|word| word == labels::DISABLED))
}
