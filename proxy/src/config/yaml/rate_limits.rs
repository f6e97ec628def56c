//! The policies of a standalone file: how much its app takes.

use std::collections::HashSet;

use outrigger_api::limits as proto;
use outrigger_api::policy::limits::RateLimitPolicySpec;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::access::Standalone;
use super::{Reader, WorkloadEntry};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RateLimitPolicyEntry {
    name: Spanned<String>,
    spec: Spanned<RateLimitPolicySpec>,
}

impl Reader<'_> {
    /// Policies become what the controller would say, so that there is one reading of them.
    pub(super) fn rate_limits(&mut self, entries: &[RateLimitPolicyEntry], workload: &WorkloadEntry) -> proto::Limits {
        let mut message = proto::Limits::default();
        let mut names = HashSet::new();
        for (index, entry) in entries.iter().enumerate() {
            let path = format!("rateLimitPolicies[{index}]");
            if !names.insert(entry.name.value.as_str()) {
                let wrong = format!("{:?} is there twice", entry.name.value);
                self.wrong(&format!("{path}.name"), entry.name.referenced, &wrong);
            }
            message.policies.extend(self.rate_limit_policy(&path, entry, workload));
        }
        message
    }

    fn rate_limit_policy(
        &mut self,
        path: &str,
        entry: &RateLimitPolicyEntry,
        workload: &WorkloadEntry,
    ) -> Option<proto::Policy> {
        let (spec, at) = (&entry.spec.value, entry.spec.referenced);
        if !spec.target_refs.is_empty() {
            let wrong = "it holds for the sidecar that the file is of; leave it out";
            self.wrong(&format!("{path}.spec.targetRefs"), at, wrong);
        }
        let namespace = workload.namespace();
        let policy = match spec.to_wire(&format!("{namespace}/{}", entry.name.value), namespace) {
            Ok(policy) => policy,
            Err(mistakes) => {
                for mistake in mistakes {
                    self.wrong_at(at, &format!("{path}.spec.{mistake}"));
                }
                return None;
            }
        };
        if policy.selects_namespaces() {
            let wrong =
                "namespaces have to be named, and not selected by their labels: there is no cluster that could say it";
            self.wrong(&format!("{path}.spec.limits"), at, wrong);
        }
        if policy.divided().next().is_some() {
            let wrong = "the scope has to be Pod or Global: there is no cluster that could say how many pods there are";
            self.wrong(&format!("{path}.spec.limits"), at, wrong);
        }
        let cluster = Standalone {
            trust_domain: workload.trust_domain(),
        };
        Some(policy.resolve(None, None, &cluster))
    }
}
