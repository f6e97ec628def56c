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

/// A policy that cannot be read is not in force. A limit of which not all fields are known is left out: nobody knows what it would be. What
/// is said to callers changes no limit.
fn compile(name: &ObjectName, spec: Value, unknown: &[String]) -> Result<Compiled, Vec<String>> {
    // Without it, the policy would hold for more than it was written for.
    if let Some(mistake) = of_targets(unknown) {
        return Err(vec![mistake]);
    }
    let spec = RateLimitPolicySpec::deserialize(spec).map_err(|e| vec![format!("spec: {e}")])?;
    let mut policy = spec.to_wire(&name.to_string(), &name.namespace)?;
    let of_limits = unknown.iter().filter(|field| !field.starts_with("spec.response."));
    let mut left_out: Vec<_> = of_limits.map(|field| limit(field)).collect();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn an_unknown_field_leaves_out_what_it_may_be_about() {
        let name = ObjectName {
            namespace: "shop".into(),
            name: "p".into(),
        };
        let limit = json!({"rate": {"requests": 5, "interval": "1s"}, "scope": "Service"});
        let spec = json!({"targetRefs": [{"kind": "Namespace", "name": "shop"}], "limits": [limit, limit, limit]});
        let rows: [(&[&str], &[&str]); 6] = [
            (&[], &["0", "1", "2"]),
            (&["spec.response.newer"], &["0", "1", "2"]),
            (&["spec.limits[1].newer"], &["0", "2"]),
            (
                &[
                    "spec.limits[0].rate.newer",
                    "spec.response.newer",
                    "spec.limits[2].newer",
                ],
                &["1"],
            ),
            (&["spec.newer"], &[]),
            (&["spec.responses"], &[]),
        ];
        for (unknown, left) in rows {
            let fields: Vec<String> = unknown.iter().map(|field| (*field).to_owned()).collect();
            let Message::RateLimit(policy) = compile(&name, spec.clone(), &fields).unwrap().message else {
                panic!("another kind");
            };
            let names: Vec<&str> = policy.divided().map(|(name, _)| name).collect();
            assert_eq!(names, left, "{unknown:?}");
        }
    }
}
