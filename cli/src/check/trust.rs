//! Whom sidecars trust.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use outrigger_api::labels;
use outrigger_injector::{certs, roots};

use super::{
    DAY, Facts, Finding, days, good, left, lives, name, proxy_variable, sidecar_is_unready, some, warning, wrong,
};

/// Roots are renewed by people, who need time for it.
const ROOT_WARNING: Duration = Duration::from_secs(60 * DAY.as_secs());

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.bundles.is_empty() {
        let hint = format!("kubectl label namespace NAME {}={}", labels::INJECT, labels::ENABLED);
        findings.push(warning("no namespace is labelled for injection", hint));
    }
    let config_map = labels::TRUST_BUNDLE_CONFIG_MAP;
    let namespace = &facts.namespace;
    let controller = format!("kubectl logs -n {namespace} deployment/outrigger-controller says why");
    let Some(bundle) = &facts.bundle else {
        let text = format!("ConfigMap {namespace}/{config_map} is missing: no pod can be made in labelled namespaces");
        findings.push(wrong(text, &controller));
        return findings;
    };
    let usable = roots::check(bundle).and_then(|()| certs::ends(bundle).map_err(|why| why.to_string()));
    findings.push(match usable {
        Err(why) => wrong(format!("ConfigMap {namespace}/{config_map}: {why}"), &controller),
        Ok(ends) => validity(&ends, facts.now),
    });
    let others = facts.bundles.iter().filter(|(_, other)| other.as_ref() != Some(bundle));
    let others: Vec<_> = others.map(|(namespace, _)| namespace).collect();
    if !others.is_empty() {
        findings.push(warning(
            format!(
                "ConfigMap {config_map} is missing or is not as in {namespace}: {}; pods of `outrigger inject` and of the version \
                 before start with it",
                some(&others)
            ),
            "look again in a minute; if it stays so: may the controller's ServiceAccount write it, and who else does?",
        ));
    }
    findings.extend(strangers(&facts.pods, bundle));
    findings
}

pub(super) fn validity(ends: &[SystemTime], now: SystemTime) -> Finding {
    let hint = "give the Secret outrigger-ca a new CA: the controllers change over to it by themselves (docs/configuration.md)";
    match ends.iter().max().map(|end| left(*end, now)) {
        None => wrong("the trust bundle is empty", hint),
        Some(None) => wrong("every root of the trust bundle has expired", hint),
        Some(Some(left)) if left < ROOT_WARNING => warning(
            format!("the newest root of the trust bundle expires in {}", days(left)),
            hint,
        ),
        Some(Some(left)) => good(format!("the trust bundle is valid for {}", days(left))),
    }
}

/// Pods that wait, and were made with roots none of which is left. One that has run once knows newer ones, and forgets them with its
/// node's memory.
fn strangers(pods: &[Pod], bundle: &str) -> Option<Finding> {
    let now = certificates(bundle);
    let waiting = pods.iter().filter(|pod| lives(pod) && sidecar_is_unready(pod));
    let strangers = waiting.filter(|pod| {
        proxy_variable(pod, labels::TRUST_BUNDLE_VARIABLE).is_some_and(|first| now.is_disjoint(&certificates(first)))
    });
    let names: Vec<_> = strangers.map(name).collect();
    if names.is_empty() {
        return None;
    }
    Some(wrong(
        format!(
            "these pods were made with roots that are gone, and may not know the controller: {}",
            some(&names)
        ),
        "kubectl delete pod: what takes its place has the roots of today",
    ))
}

/// Each certificate of a PEM text, as it stands there without white space.
fn certificates(pem: &str) -> BTreeSet<String> {
    let parts = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
    let parts = parts.filter_map(|part| Some(part.split_once("-----END")?.0));
    parts.map(|text| text.split_whitespace().collect()).collect()
}
