//! XMesh (Gateway API, GEP-3949): where a mesh says which features of Gateway API it supports.

use kube::core::DynamicObject;
use outrigger_api::names;
use serde_json::Value;

/// The API group of what Gateway API still tries out.
pub const GROUP: &str = "gateway.networking.x-k8s.io";

/// An XMesh that is Outrigger's.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    pub(crate) generation: i64,
    pub(crate) resource_version: String,
    /// `spec.parametersRef` is there: Outrigger has none.
    pub(crate) has_parameters: bool,
    /// `status.conditions` as it is now.
    pub(crate) conditions: Vec<Value>,
    /// `status.supportedFeatures` as it is now.
    pub(crate) features: Vec<Value>,
}

impl Mesh {
    /// `None`: it is another mesh's.
    pub(crate) fn read(object: &DynamicObject) -> Option<Self> {
        let text = |path: &str| object.data.pointer(path).and_then(Value::as_str);
        if text("/spec/controllerName") != Some(names::CONTROLLER) {
            return None;
        }
        let list = |path: &str| object.data.pointer(path).and_then(Value::as_array).cloned();
        Some(Self {
            generation: object.metadata.generation.unwrap_or(0),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            has_parameters: object.data.pointer("/spec/parametersRef").is_some(),
            conditions: list("/status/conditions").unwrap_or_default(),
            features: list("/status/supportedFeatures").unwrap_or_default(),
        })
    }
}
