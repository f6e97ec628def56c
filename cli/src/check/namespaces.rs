//! What namespaces say, and whether it can be so.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use outrigger_api::labels;
use outrigger_injector::inject::{POD_SECURITY, forbids_capture};

use super::{Facts, Finding, some, time, wrong};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mistyped = facts.namespaces.iter().filter_map(|namespace| {
        let word = namespace.labels().get(labels::INJECT)?;
        let known = [labels::ENABLED, labels::DISABLED].contains(&word.as_str());
        (!known).then(|| format!("{} ({word:?})", namespace.name_any()))
    });
    let mistyped: Vec<_> = mistyped.collect();
    if !mistyped.is_empty() {
        findings.push(wrong(
            format!(
                "namespaces whose label {} says nothing: {}",
                labels::INJECT,
                some(&mistyped)
            ),
            format!(
                "their pods get no sidecar: kubectl label --overwrite namespace NAME {}={}",
                labels::INJECT,
                labels::ENABLED
            ),
        ));
    }
    let forbidding = facts
        .namespaces
        .iter()
        .filter(|namespace| is_labelled(namespace))
        .filter_map(|namespace| {
            let level = namespace.labels().get(POD_SECURITY)?;
            forbids_capture(level).then(|| format!("{} ({level})", namespace.name_any()))
        });
    let forbidding: Vec<_> = forbidding.collect();
    if !forbidding.is_empty() {
        findings.push(wrong(
            format!("namespaces whose Pod Security lets no pod have a sidecar: {}", some(&forbidding)),
            format!(
                "capture needs NET_ADMIN in a container that exits before the app starts: label them {POD_SECURITY}=privileged, or take \
                 {} away (docs/configuration.md)",
                labels::INJECT
            ),
        ));
    }
    findings
}

/// Whether its pods are to have sidecars.
pub(super) fn is_labelled(namespace: &Namespace) -> bool {
    namespace
        .labels()
        .get(labels::INJECT)
        .is_some_and(|word| word == labels::ENABLED)
}

/// Whether its new pods refuse plaintext.
pub(super) fn says_strict(namespace: &Namespace) -> bool {
    namespace
        .annotations()
        .get(labels::MTLS)
        .is_some_and(|word| word.trim() == "strict")
}

/// When the label was last written, as kube-apiserver has noted it beside the field.
pub(super) fn labelled_at(namespace: &Namespace) -> Option<SystemTime> {
    let field = format!("f:{}", labels::INJECT);
    let writers = namespace.metadata.managed_fields.iter().flatten();
    let writers = writers.filter(|entry| {
        let fields = entry
            .fields_v1
            .as_ref()
            .and_then(|fields| fields.0.get("f:metadata")?.get("f:labels"));
        fields.is_some_and(|labels| labels.get(&field).is_some())
    });
    writers.filter_map(|entry| entry.time.as_ref().map(time)).max()
}
