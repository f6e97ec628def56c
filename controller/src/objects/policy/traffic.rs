//! The row of TrafficPolicy.

use kube::CustomResourceExt;
use outrigger_api::policy::{TrafficPolicy, TrafficPolicySpec, needs};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Compiled, Message, ObjectName, RouteKind, Row, TargetKind, of_targets};

pub(super) const ROW: Row = Row {
    resource: TrafficPolicy::api_resource,
    crd: TrafficPolicy::crd,
    targets: &[
        TargetKind::Namespace,
        TargetKind::Service,
        TargetKind::Route(RouteKind::Http),
        TargetKind::Route(RouteKind::Grpc),
    ],
    for_callers: true,
    joined: false,
    compile,
};

/// A fault, or a fallback, of which not all fields are known is left out: what is not known may be what it is not for.
fn compile(name: &ObjectName, mut spec: Value, unknown: &[String]) -> Result<Compiled, Vec<String>> {
    // Without it, the policy would hold for more than it was written for.
    if let Some(mistake) = of_targets(unknown) {
        return Err(vec![mistake]);
    }
    leave_out(&mut spec, unknown);
    let spec = TrafficPolicySpec::deserialize(spec).map_err(|e| vec![format!("spec: {e}")])?;
    let mut policy = spec.to_proto()?;
    let backends = policy.fallback.iter_mut().flat_map(|fallback| &mut fallback.backends);
    for backend in backends.filter(|backend| backend.namespace.is_empty()) {
        backend.namespace = name.namespace.to_string();
    }
    Ok(Compiled {
        needs: needs(&policy),
        message: Message::Traffic(Box::new(policy)),
        mistakes: Vec::new(),
    })
}

fn leave_out(spec: &mut Value, unknown: &[String]) {
    let has = |part: &str| {
        let mut rest = unknown.iter().filter_map(|field| field.strip_prefix(part));
        rest.any(|rest| rest.starts_with(['.', '[']))
    };
    if has("spec.fallback") {
        // None, where the lack of it would let an outer policy's hold.
        spec["fallback"] = json!({});
    }
    if let Some(faults) = spec.get_mut("faults").and_then(Value::as_array_mut) {
        let mut number = 0..;
        faults.retain(|_| number.next().is_some_and(|n| !has(&format!("spec.faults[{n}]"))));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_an_unknown_field_may_narrow_is_left_out() {
        let name = ObjectName {
            namespace: "shop".into(),
            name: "p".into(),
        };
        let fault = |status: u16| json!({"abort": {"status": status}, "percent": 10, "onlyWhenHeader": {"name": "x-chaos", "value": "1"}});
        let spec = json!({
            "targetRefs": [{"kind": "Service", "name": "cart"}],
            "faults": [fault(500), fault(501), fault(502)],
            "fallback": {"when": {"statuses": [503]}, "response": {"status": 200}},
            "timeouts": {"request": "1s"},
        });
        let rows: [(&[&str], &[u32], bool); 8] = [
            (&[], &[500, 501, 502], true),
            (
                &["spec.newer", "spec.timeouts.newer", "spec.fallbacks"],
                &[500, 501, 502],
                true,
            ),
            (&["spec.faults[1].newer"], &[500, 502], true),
            (
                &["spec.faults[0].matches[0].newer", "spec.faults[2].abort.newer"],
                &[501],
                true,
            ),
            (&["spec.faults[10].newer"], &[500, 501, 502], true),
            (&["spec.fallback.newer"], &[500, 501, 502], false),
            (
                &["spec.faults[0].newer", "spec.faults[1].newer", "spec.faults[2].newer"],
                &[],
                true,
            ),
            (
                &["spec.fallback.when.newer", "spec.faults[0].newer"],
                &[501, 502],
                false,
            ),
        ];
        for (unknown, faults, fallback) in rows {
            let fields: Vec<String> = unknown.iter().map(|field| (*field).to_owned()).collect();
            let compiled = compile(&name, spec.clone(), &fields).unwrap();
            let needs = |field: &str| compiled.needs.iter().any(|(_, needed)| *needed == field);
            assert_eq!(
                (needs("faults"), needs("fallback")),
                (!faults.is_empty(), fallback),
                "{unknown:?}"
            );
            let Message::Traffic(policy) = compiled.message else {
                panic!("another kind");
            };
            let left: Vec<u32> = policy
                .faults
                .unwrap()
                .in_order
                .iter()
                .map(|fault| fault.abort.as_ref().unwrap().http_status)
                .collect();
            assert_eq!(left, faults, "{unknown:?}");
            assert_eq!(policy.fallback.unwrap().when.is_some(), fallback, "{unknown:?}");
            assert!(policy.request_timeout_ms.is_some());
        }
    }
}
