//! Whether the CRDs are as this program would print them, and what the API server has dropped because they were not.

use kube::ResourceExt;
use outrigger_api::policy::crd::{self, APPLY};

use super::{Facts, Finding, good, some, warning, wrong};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    if !facts.own_kinds {
        return vec![wrong("the CRDs of outrigger.dev are missing", APPLY)];
    }
    let mut findings = Vec::new();
    for ours in crd::crds() {
        let name = ours.name_any();
        // Whoever may look at none of them is told nothing.
        let Some(theirs) = facts.crds.get(&name) else {
            if !facts.crds.is_empty() {
                findings.push(wrong(format!("the CRD {name} is missing"), APPLY));
            }
            continue;
        };
        let version = crd::version(theirs).unwrap_or("of a version that did not say so");
        let (lacks, more) = (crd::lacking(theirs, &ours), crd::lacking(&ours, theirs));
        if !lacks.is_empty() {
            findings.push(wrong(
                format!(
                    "the CRD {name} ({version}) is older than this program: the API server drops what it has not, {}",
                    some(&lacks)
                ),
                APPLY,
            ));
        } else if !more.is_empty() {
            findings.push(warning(
                format!(
                    "the CRD {name} ({version}) is newer than this program: it has {}",
                    some(&more)
                ),
                "use the outrigger of that version",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(good(
            "the CRDs of outrigger.dev are there, with all that this program knows",
        ));
    }
    findings
}
