//! The row of RateLimitPolicy.

use kube::CustomResourceExt;
use outrigger_api::discovery::Feature;
use outrigger_api::policy::limits::{RateLimitPolicy, RateLimitPolicySpec};
use serde::Deserialize;
use serde_json::Value;

use super::{Compiled, Message, ObjectName, Row, TargetKind, of_targets};

pub(super) const ROW: Row = Row {
    resource: RateLimitPolicy::api_resource,
    crd: RateLimitPolicy::crd,
    targets: &[TargetKind::Namespace, TargetKind::Service, TargetKind::Pods],
    for_callers: false,
    joined: true,
    compile,
};

/// A policy that cannot be read is not in force. A limit of which not all fields are known is left out: nobody knows what it would be.
fn compile(name: &ObjectName, spec: Value, unknown: &[String]) -> Result<Compiled, Vec<String>> {
    // Without it, the policy would hold for more than it was written for.
    if let Some(mistake) = of_targets(unknown) {
        return Err(vec![mistake]);
    }
    let spec = RateLimitPolicySpec::deserialize(spec).map_err(|e| vec![format!("spec: {e}")])?;
    let mut policy = spec.to_wire(&name.to_string(), &name.namespace)?;
    let mut left_out: Vec<_> = unknown.iter().map(|field| limit(field)).collect();
    // The last first, so that the others keep their positions; `None`, which is all of them, is the least.
    left_out.sort_unstable();
    left_out.dedup();
    for limit in left_out.into_iter().rev() {
        policy.leave_out(limit);
    }
    Ok(Compiled {
        needs: vec![(Feature::RateLimits, "RateLimitPolicy")],
        message: Message::RateLimit(policy),
        mistakes: Vec::new(),
    })
}

/// In which limit the field is. None: it may be about all of them.
fn limit(field: &str) -> Option<usize> {
    let (number, _) = field.strip_prefix("spec.limits[")?.split_once(']')?;
    number.parse().ok()
}
