//! Outrigger's own kinds: policies, and what all of them have. Each has a file of its own, and a line in [`crd::crds`].

pub mod access;
#[cfg(feature = "kube")]
pub mod crd;
pub mod limits;
pub mod selector;
mod traffic;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::traffic::*;

/// What a policy is attached to (Gateway API, GEP-713).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// "" for a Service or a Namespace, "gateway.networking.k8s.io" for a route.
    #[serde(default)]
    pub group: String,
    /// `Service`, `Namespace`, `HTTPRoute` or `GRPCRoute`.
    pub kind: String,
    /// Of a Service of another namespace: then the policy holds for callers of its own namespace. Default: the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// The object's name. Of a Namespace: the policy's own.
    pub name: String,
    /// The name of one port of the Service, or of one rule of the route. Default: the whole object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

impl TargetRef {
    /// Whether it is a route, or a rule of one.
    fn is_route(&self) -> bool {
        matches!(&*self.kind, "HTTPRoute" | "GRPCRoute")
    }
}

/// What has become of a policy (Gateway API, GEP-713).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// What has become of it at each of its targets; of all controllers.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub ancestors: Vec<Ancestor>,
    /// All of that in one: `Accepted`, with the reason of the first target where it is not, or of the policy itself; and, where it is
    /// accepted at a target, `Programmed`, with the reason of the first of these where it is not.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// A policy at one of its targets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ancestor {
    /// The target.
    pub ancestor_ref: AncestorRef,
    /// Who says so.
    pub controller_name: String,
    /// `Accepted`: it is in force there. Reasons: `Accepted`, `Conflicted` (an older policy is), `Invalid`, `TargetNotFound`.
    /// `Programmed`: the sidecars that carry it out do as it says. Reasons: `Programmed`, `PartiallyProgrammed` (a sidecar or the
    /// controller does not know all of it), `Overridden` (what is nearer to the requests says all that it says), `OldCRD` (the CRD
    /// has not all fields that the controller knows: those that the policy was written with are lost).
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// Gateway API's `ParentReference`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct AncestorRef {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A condition as in Kubernetes' `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which condition.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One CamelCase word.
    pub reason: String,
    /// For a person.
    pub message: String,
    /// RFC 3339.
    pub last_transition_time: String,
    /// The generation that the condition was made for.
    #[serde(default)]
    pub observed_generation: i64,
}
