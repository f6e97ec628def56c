//! The policies of a standalone file: who may call its app.

use std::collections::HashSet;

use outrigger_access::jwt::KeySet;
use outrigger_access::met_by_nothing;
use outrigger_api::access as proto;
use outrigger_api::policy::access::{AccessPolicySpec, Cluster, JwksSpec};
use outrigger_api::policy::selector::LabelSelector;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Reader, WorkloadEntry};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AccessPolicyEntry {
    name: Spanned<String>,
    spec: Spanned<AccessPolicySpec>,
}

/// What a policy in a cluster may ask it.
pub(super) struct Standalone<'a> {
    pub(super) trust_domain: &'a str,
}

impl Cluster for Standalone<'_> {
    fn trust_domain(&self) -> &str {
        self.trust_domain
    }

    // What follows is reported as a mistake.
    fn namespaces(&self, _: &LabelSelector) -> Vec<String> {
        Vec::new()
    }

    fn port(&self, _: &str) -> Option<u16> {
        None
    }

    fn jwks(&self, keys: &JwksSpec) -> String {
        keys.inline.clone().unwrap_or_default()
    }
}

impl Reader<'_> {
    /// Policies become what the controller would say, so that there is one reading of them.
    pub(super) fn access(&mut self, entries: &[AccessPolicyEntry], workload: &WorkloadEntry) -> proto::Access {
        let mut message = proto::Access::default();
        let mut names = HashSet::new();
        for (index, entry) in entries.iter().enumerate() {
            let path = format!("accessPolicies[{index}]");
            if !names.insert(entry.name.value.as_str()) {
                let wrong = format!("{:?} is there twice", entry.name.value);
                self.wrong(&format!("{path}.name"), entry.name.referenced, &wrong);
            }
            let (policy, audit) = self.access_policy(&path, entry, workload);
            match audit {
                true => message.audited.push(policy),
                false => message.enforced.push(policy),
            }
        }
        message
    }

    /// The policy, and whether it is in Audit mode.
    fn access_policy(
        &mut self,
        path: &str,
        entry: &AccessPolicyEntry,
        workload: &WorkloadEntry,
    ) -> (proto::Policy, bool) {
        let (spec, at) = (&entry.spec.value, entry.spec.referenced);
        if !spec.target_refs.is_empty() {
            let wrong = "it holds for the sidecar that the file is of; leave it out";
            self.wrong(&format!("{path}.spec.targetRefs"), at, wrong);
        }
        let namespace = workload.namespace();
        let (policy, mistakes) = spec.to_wire(&format!("{namespace}/{}", entry.name.value), namespace);
        for mistake in mistakes.into_iter().chain(met_by_nothing(spec)) {
            self.wrong_at(at, &format!("{path}.spec.{mistake}"));
        }
        let outside = "there is no cluster that could say it";
        for name in policy.port_names() {
            let wrong = format!("the port {name:?} has to be a number: {outside}");
            self.wrong(&format!("{path}.spec.rules"), at, &wrong);
        }
        if policy.selects_namespaces() {
            let wrong = format!("namespaces have to be named, and not selected by their labels: {outside}");
            self.wrong(&format!("{path}.spec.rules"), at, &wrong);
        }
        self.keys(path, entry);
        let cluster = Standalone {
            trust_domain: workload.trust_domain(),
        };
        (policy.resolve(None, &cluster), policy.audit)
    }

    /// The keys of a policy's providers stand in the file: what else a policy may say of them, a controller would have to do.
    fn keys(&mut self, path: &str, entry: &AccessPolicyEntry) {
        let jwt = entry.spec.value.jwt.iter();
        for (n, provider) in jwt.flat_map(|jwt| &jwt.providers).enumerate() {
            let JwksSpec {
                inline,
                config_map_ref,
                remote,
            } = &provider.jwks;
            let elsewhere = [
                (
                    "remote",
                    remote.is_some(),
                    "no controller fetches keys for a standalone sidecar",
                ),
                (
                    "configMapRef",
                    config_map_ref.is_some(),
                    "there is no cluster that has one",
                ),
            ];
            let (at, place) = (entry.spec.referenced, format!("{path}.spec.jwt.providers[{n}].jwks"));
            for (field, _, why) in elsewhere.into_iter().filter(|(_, is_there, _)| *is_there) {
                let what = format!("{why}; write the keys into the file, as jwks.inline");
                self.wrong(&format!("{place}.{field}"), at, &what);
            }
            // What is no set at all has been said.
            let inline_at = format!("{place}.inline");
            if let Some(Err(why)) = inline.as_ref().map(|keys| KeySet::read(keys.as_bytes()))
                && !self.errors.iter().any(|error| error.contains(&inline_at))
            {
                self.wrong(&inline_at, at, &why.to_string());
            }
        }
    }
}
