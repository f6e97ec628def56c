//! The row of TrafficPolicy.

use kube::CustomResourceExt;
use outrigger_api::policy::{TrafficPolicy, TrafficPolicySpec, needs};
use serde::Deserialize;
use serde_json::Value;

use super::{Compiled, Message, RouteKind, Row, TargetKind};

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
    compile,
};

fn compile(spec: Value) -> Result<Compiled, Vec<String>> {
    let spec = TrafficPolicySpec::deserialize(spec).map_err(|e| vec![format!("spec: {e}")])?;
    let policy = spec.to_proto()?;
    Ok(Compiled {
        needs: needs(&policy),
        message: Message::Traffic(policy),
    })
}
