//! The row of AccessPolicy.

use kube::CustomResourceExt;
use outrigger_access::jwt::KeySet;
use outrigger_access::met_by_nothing;
use outrigger_api::discovery::Feature;
use outrigger_api::policy::access::{AccessPolicy, AccessPolicySpec, Unresolved};
use serde::Deserialize;
use serde_json::Value;

use super::{Compiled, Message, ObjectName, Row, TargetKind, of_targets};

pub(super) const ROW: Row = Row {
    resource: AccessPolicy::api_resource,
    crd: AccessPolicy::crd,
    targets: &[TargetKind::Namespace, TargetKind::Service, TargetKind::Pods],
    for_callers: false,
    joined: true,
    compile,
};

/// A policy that cannot be read, or not all of it, is none that is not there: it holds as far as it opens nothing.
fn compile(name: &ObjectName, spec: Value, unknown: &[String]) -> Result<Compiled, Vec<String>> {
    let audit = spec.get("mode").is_some_and(|mode| mode == "Audit");
    let full_name = name.to_string();
    let (mut policy, mut mistakes) = match AccessPolicySpec::deserialize(spec) {
        Ok(mut spec) => {
            let unusable = usable_keys(&mut spec);
            let (policy, mut mistakes) = spec.to_wire(&full_name, &name.namespace);
            for mistake in &mut mistakes {
                let better = unusable.iter().find(|(at, _)| mistake.starts_with(&format!("{at}: ")));
                if let Some((at, why)) = better {
                    *mistake = format!("{at}: {why}");
                }
            }
            mistakes.extend(met_by_nothing(&spec));
            (policy, mistakes)
        }
        Err(e) => {
            let mut policy = Unresolved::unreadable(&full_name);
            policy.audit = audit;
            (policy, vec![format!("spec: {e}")])
        }
    };
    mistakes.extend(of_targets(unknown));
    for field in unknown {
        policy.doubt(rule(field));
    }
    Ok(Compiled {
        needs: vec![(Feature::Access, "AccessPolicy")],
        message: Message::Access(policy),
        mistakes,
    })
}

/// Leaves of sets of keys that stand in the policy what sidecars are to have, and nothing of those in which there is nothing of the
/// kind: the policy's reader finds that a mistake. The field of each of these, and why.
fn usable_keys(spec: &mut AccessPolicySpec) -> Vec<(String, String)> {
    let mut unusable = Vec::new();
    let providers = spec.jwt.iter_mut().flat_map(|jwt| jwt.providers.iter_mut());
    for (n, provider) in providers.enumerate() {
        let Some(inline) = &mut provider.jwks.inline else {
            continue;
        };
        *inline = match KeySet::read(inline.as_bytes()) {
            Ok(reading) => reading.usable.to_json(),
            Err(why) => {
                unusable.push((format!("jwt.providers[{n}].jwks.inline"), why.to_string()));
                String::new()
            }
        };
    }
    unusable
}

/// In which rule the field is. None: it may be about all of them.
fn rule(field: &str) -> Option<usize> {
    let (number, _) = field.strip_prefix("spec.rules[")?.split_once(']')?;
    number.parse().ok()
}
