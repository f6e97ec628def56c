//! The row of TrafficPolicy.

use kube::CustomResourceExt;
use outrigger_api::policy::{TrafficPolicy, TrafficPolicySpec, needs};
use serde::Deserialize;
use serde_json::Value;

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

fn compile(_: &ObjectName, spec: Value, unknown: &[String]) -> Result<Compiled, Vec<String>> {
    // Without it, the policy would hold for more than it was written for.
    if let Some(mistake) = of_targets(unknown) {
        return Err(vec![mistake]);
    }
    let spec = TrafficPolicySpec::deserialize(spec).map_err(|e| vec![format!("spec: {e}")])?;
    let policy = spec.to_proto()?;
    Ok(Compiled {
        needs: needs(&policy),
        message: Message::Traffic(Box::new(policy)),
        mistakes: Vec::new(),
    })
}
