//! The row of RateLimitPolicy.

use kube::CustomResourceExt;
use outrigger_api::address::why_no_backend;
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
/// is said to callers changes no limit. A store of which not all fields are known is not asked.
fn compile(name: &ObjectName, spec: Value, unknown: &[String]) -> Result<Compiled, Vec<String>> {
    // Without it, the policy would hold for more than it was written for.
    if let Some(mistake) = of_targets(unknown) {
        return Err(vec![mistake]);
    }
    let spec = RateLimitPolicySpec::deserialize(spec).map_err(|e| vec![format!("spec: {e}")])?;
    let mut policy = spec.to_wire(&name.to_string(), &name.namespace)?;
    if let Some(ip) = policy.store_address()
        && let Some(why) = why_no_backend(ip)
    {
        return Err(vec![format!("global.address: {ip} is {why}, another one for each pod")]);
    }
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
            Part::Store => policy.leave_out_store(),
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
    if policy.asks_store() {
        needs.push((Feature::GlobalLimits, "the scope Global"));
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
    Store,
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
        None if field.starts_with("spec.global.") => Part::Store,
        None => Part::All,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use outrigger_api::policy::access::{Cluster, JwksSpec};
    use outrigger_api::policy::selector::LabelSelector;
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

    #[test]
    fn a_store_that_is_another_one_for_each_pod_or_not_understood_is_not_asked() {
        let name = ObjectName {
            namespace: "shop".into(),
            name: "p".into(),
        };
        let limit = json!({"rate": {"requests": 5, "interval": "1s"}, "scope": "Global"});
        let spec = |address: &str| json!({"targetRefs": [{"kind": "Namespace", "name": "shop"}], "limits": [limit], "global": {"address": address}});
        for (address, why) in [
            ("127.0.0.1:6379", "127.0.0.1 is a loopback address"),
            ("[::1]:6379", "::1 is a loopback address"),
            ("[::ffff:127.0.0.1]:6379", "::ffff:127.0.0.1 is a loopback address"),
            ("169.254.169.254:80", "169.254.169.254 is a link-local address"),
            ("0.0.0.0:6379", "0.0.0.0 is an unspecified address"),
        ] {
            let mistakes = compile(&name, spec(address), &[]).err().unwrap();
            assert!(
                mistakes[0].starts_with(&format!("global.address: {why}")),
                "{mistakes:?}"
            );
        }
        for address in ["redis.shop.svc:6379", "10.0.0.7:6379"] {
            let compiled = compile(&name, spec(address), &[]).unwrap();
            assert!(compiled.needs.contains(&(Feature::GlobalLimits, "the scope Global")));
        }
        let newer = ["spec.global.newer".to_owned()];
        let Message::RateLimit(policy) = compile(&name, spec("redis.shop.svc:6379"), &newer).unwrap().message else {
            panic!("another kind");
        };
        let told = policy.resolve(None, Some(2), &NoCluster);
        assert_eq!((told.global, told.limits[0].shares), (None, 2));
    }

    struct NoCluster;

    impl Cluster for NoCluster {
        fn trust_domain(&self) -> &'static str {
            "cluster.local"
        }

        fn namespaces(&self, _: &LabelSelector) -> Vec<String> {
            Vec::new()
        }

        fn port(&self, _: &str) -> Option<u16> {
            None
        }

        fn jwks(&self, _: &JwksSpec) -> String {
            String::new()
        }
    }
}
