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
    let mut left_out: Vec<_> = of_limits.map(|field| part(field)).collect();
    // The last first, so that the others keep their positions.
    left_out.sort_unstable();
    left_out.dedup();
    for part in left_out.into_iter().rev() {
        match part {
            Part::All => {
                policy.leave_out(None);
                policy.leave_out_connections();
            }
            Part::Connections => policy.leave_out_connections(),
            Part::Limit(n) => policy.leave_out(Some(n)),
        }
    }
    let mut needs = vec![(Feature::RateLimits, "RateLimitPolicy")];
    if policy.limits_connections() {
        needs.push((Feature::ConnectionLimits, "connections"));
    }
    if policy.tokens().next().is_some() {
        needs.push((Feature::LimitClaims, "claims and tokens"));
    }
    Ok(Compiled {
        needs,
        message: Message::RateLimit(policy),
        mistakes: Vec::new(),
    })
}

/// What a field may be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    All,
    Connections,
    Limit(usize),
}

fn part(field: &str) -> Part {
    let limit = || {
        let (number, _) = field.strip_prefix("spec.limits[")?.split_once(']')?;
        number.parse().ok()
    };
    match limit() {
        Some(n) => Part::Limit(n),
        None if field.starts_with("spec.connections.") => Part::Connections,
        None => Part::All,
    }
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
        let spec = json!({"targetRefs": [{"kind": "Namespace", "name": "shop"}], "limits": [limit, limit, limit], "connections": {"max": 9}});
        let rows: [(&[&str], &[&str], bool); 8] = [
            (&[], &["0", "1", "2"], true),
            (&["spec.response.newer"], &["0", "1", "2"], true),
            (&["spec.limits[1].newer"], &["0", "2"], true),
            (&["spec.connections.newer"], &["0", "1", "2"], false),
            (&["spec.connections.newer", "spec.limits[0].newer"], &["1", "2"], false),
            (
                &[
                    "spec.limits[0].rate.newer",
                    "spec.response.newer",
                    "spec.limits[2].newer",
                ],
                &["1"],
                true,
            ),
            (&["spec.newer"], &[], false),
            (&["spec.responses"], &[], false),
        ];
        for (unknown, left, connections) in rows {
            let fields: Vec<String> = unknown.iter().map(|field| (*field).to_owned()).collect();
            let Message::RateLimit(policy) = compile(&name, spec.clone(), &fields).unwrap().message else {
                panic!("another kind");
            };
            let names: Vec<&str> = policy.divided().map(|(name, _)| name).collect();
            assert_eq!(names, left, "{unknown:?}");
            assert_eq!(policy.limits_connections(), connections, "{unknown:?}");
        }
    }
}
