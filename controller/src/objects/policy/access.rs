//! The row of AccessPolicy.

use kube::CustomResourceExt;
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
        Ok(spec) => spec.to_wire(&full_name, &name.namespace),
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

/// In which rule the field is. None: it may be about all of them.
fn rule(field: &str) -> Option<usize> {
    let (number, _) = field.strip_prefix("spec.rules[")?.split_once(']')?;
    number.parse().ok()
}
