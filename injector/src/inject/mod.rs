//! What is done to a pod. A pure function: the webhook and `outrigger inject` call the same one.
//!
//! Two containers come in. `outrigger-init` redirects the pod's traffic (the only part with `NET_ADMIN`) and exits;
//! `outrigger-proxy` is the sidecar. As a *native sidecar* (an init container that goes on running) both stand before all
//! of the app's own init containers, so that these have the mesh's network, the app never starts first, and a Job ends
//! when its app does. As an *ordinary* container the sidecar is the first of the containers, and its `postStart` holds
//! the others back until it is ready; `outrigger-init` is then the *last* init container, because the app's own init
//! containers would otherwise have their traffic redirected to a sidecar that does not run yet: they are not in the mesh.
//!
//! The patch is made of additions only. Nothing of the pod's own is rewritten, so fields that this version of the
//! injector does not know are kept.

mod annotations;
mod probes;
mod sidecar;
mod workload;

use std::collections::BTreeMap;
use std::fmt;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use k8s_openapi::api::core::v1::{Container, Namespace, Pod, PodSpec};
use outrigger_api::{labels, ports};
use serde_json::{Value, json};

use crate::settings::{Settings, VERSION};
use annotations::Overrides;

/// The name of the container that programs the capture.
pub const INIT_CONTAINER: &str = "outrigger-init";
/// The name of the sidecar's container.
pub const PROXY_CONTAINER: &str = "outrigger-proxy";
/// The name of the volume with the sidecar's token.
pub const TOKEN_VOLUME: &str = "outrigger-token";
/// The name of the volume with the trust bundle.
pub const TRUST_VOLUME: &str = "outrigger-trust";

/// Namespaces whose pods never get a sidecar, beside Outrigger's own: what runs there must start without a webhook.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// What a pod's namespace says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceMeta {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It has the sidecar already.
    AlreadyInjected,
    /// It says that it does not want one.
    OptedOut,
    /// Neither its namespace nor the pod itself asks for one, or the namespace is one that never gets any.
    NotSelected,
    /// It gets one.
    Patched {
        /// The additions (RFC 6902).
        patch: Patch,
        /// What the pod's author should look at, though the pod works.
        warnings: Vec<String>,
    },
}

/// Why a pod that should have a sidecar cannot have one: every reason, each for a person to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// At least one.
    pub problems: Vec<String>,
}

/// Says what a pod gets.
///
/// # Errors
/// When the pod is to have a sidecar and cannot, or when an annotation cannot be understood.
pub fn patch(pod: &Pod, namespace: &NamespaceMeta, settings: &Settings) -> Result<Outcome, Refusal> {
    if never(pod, namespace, settings) {
        return Ok(Outcome::NotSelected);
    }
    match word_of_pod(pod)? {
        Some(false) => return Ok(Outcome::OptedOut),
        None if !is_enabled(namespace.labels.get(labels::INJECT)) => return Ok(Outcome::NotSelected),
        _ => {}
    }
    if has_sidecar(pod) {
        return Ok(Outcome::AlreadyInjected);
    }
    let Some(spec) = &pod.spec else {
        let problems = vec!["spec is missing".to_owned()];
        return Err(Refusal { problems });
    };
    let mut problems = obstacles(spec);
    let overrides = Overrides::read(pod, namespace, settings, &mut problems);
    let controller_id = settings.controller_id().map_err(|why| problems.push(why)).ok();
    match controller_id {
        Some(controller_id) if problems.is_empty() => {
            let parts = sidecar::Parts {
                pod,
                spec,
                settings,
                overrides: &overrides,
            };
            Ok(Outcome::Patched {
                patch: additions(pod, spec, &overrides, &parts, controller_id.as_str()),
                warnings: overrides.warnings.clone(),
            })
        }
        _ => Err(Refusal { problems }),
    }
}

fn never(pod: &Pod, namespace: &NamespaceMeta, settings: &Settings) -> bool {
    // A mirror pod only shows what a kubelet runs from its own file: changing it changes nothing.
    let mirror = pod
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key(MIRROR_POD));
    mirror || namespace.name == settings.namespace || SYSTEM_NAMESPACES.contains(&namespace.name.as_str())
}

/// Whether the pod itself asks for a sidecar (`true`) or against one. "disabled" wins where label and annotation differ.
fn word_of_pod(pod: &Pod) -> Result<Option<bool>, Refusal> {
    let mut word = None;
    for (what, map) in [
        ("label", &pod.metadata.labels),
        ("annotation", &pod.metadata.annotations),
    ] {
        let Some(value) = map.as_ref().and_then(|m| m.get(labels::INJECT)) else {
            continue;
        };
        word = match value.as_str() {
            labels::ENABLED => Some(word.unwrap_or(true)),
            labels::DISABLED => Some(false),
            _ => {
                return Err(Refusal {
                    problems: vec![format!(
                        "{what} {}: {value:?} is neither {:?} nor {:?}",
                        labels::INJECT,
                        labels::ENABLED,
                        labels::DISABLED
                    )],
                });
            }
        };
    }
    Ok(word)
}

fn is_enabled(label: Option<&String>) -> bool {
    label.is_some_and(|value| value == labels::ENABLED)
}

fn has_sidecar(pod: &Pod) -> bool {
    let labelled = pod
        .metadata
        .labels
        .as_ref()
        .is_some_and(|l| l.contains_key(labels::PROXY_VERSION));
    let has = |name: &str| {
        pod.spec
            .as_ref()
            .is_some_and(|s| all_containers(s).any(|c| c.name == name))
    };
    labelled && has(INIT_CONTAINER) && has(PROXY_CONTAINER)
}

fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// What makes a sidecar impossible in this pod.
fn obstacles(spec: &PodSpec) -> Vec<String> {
    let mut problems = Vec::new();
    if spec.host_network == Some(true) {
        problems.push("spec.hostNetwork is true: capture would redirect the traffic of the whole node".to_owned());
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        problems.push("spec.os.name is \"windows\": the sidecar runs on Linux only".to_owned());
    }
    let pod_uid = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    for container in all_containers(spec) {
        let name = &container.name;
        if name == INIT_CONTAINER || name == PROXY_CONTAINER {
            problems.push(format!(
                "container {name:?}: the name is the sidecar's; call yours something else"
            ));
        }
        let uid = container
            .security_context
            .as_ref()
            .and_then(|c| c.run_as_user)
            .or(pod_uid);
        if uid == Some(i64::from(ports::PROXY_UID)) {
            problems.push(format!(
                "container {name:?}: runAsUser {} is the sidecar's own user, whose traffic is not captured; use another",
                ports::PROXY_UID
            ));
        }
        let ours = [ports::OUTBOUND, ports::INBOUND, ports::ADMIN].map(i32::from);
        for port in container
            .ports
            .iter()
            .flatten()
            .filter(|p| ours.contains(&p.container_port))
        {
            problems.push(format!(
                "container {name:?}: port {} is the sidecar's; let the app listen on another",
                port.container_port
            ));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        if volume.name == TOKEN_VOLUME || volume.name == TRUST_VOLUME {
            problems.push(format!(
                "volume {:?}: the name is the sidecar's; call yours something else",
                volume.name
            ));
        }
    }
    problems
}

fn additions(
    pod: &Pod,
    spec: &PodSpec,
    overrides: &Overrides,
    parts: &sidecar::Parts<'_>,
    controller_id: &str,
) -> Patch {
    let mut patch = Additions::default();
    patch.entry(
        ["metadata", "labels"],
        pod.metadata.labels.as_ref(),
        labels::PROXY_VERSION,
        json!(VERSION),
    );
    let init_containers = spec.init_containers.as_deref().map(<[_]>::len);
    let proxy = parts.proxy_container(controller_id);
    if overrides.native {
        patch.elements(
            ["spec", "initContainers"],
            init_containers,
            0,
            [parts.init_container(), proxy],
        );
    } else {
        patch.elements(
            ["spec", "initContainers"],
            init_containers,
            init_containers.unwrap_or(0),
            [parts.init_container()],
        );
        patch.elements(["spec", "containers"], Some(spec.containers.len()), 0, [proxy]);
        let annotations = pod.metadata.annotations.as_ref();
        // The sidecar comes first here; `kubectl logs` and `exec` without -c still mean the app.
        if let Some(app) = spec.containers.first()
            && annotations.is_none_or(|a| !a.contains_key(DEFAULT_CONTAINER))
        {
            patch.entry(
                ["metadata", "annotations"],
                annotations,
                DEFAULT_CONTAINER,
                json!(app.name),
            );
        }
    }
    let volumes = spec.volumes.as_deref().map(<[_]>::len);
    patch.elements(["spec", "volumes"], volumes, volumes.unwrap_or(0), sidecar::volumes());
    Patch(patch.0)
}

/// Additions to a document, in the order in which they are carried out.
#[derive(Default)]
struct Additions(Vec<PatchOperation>);

impl Additions {
    /// One entry of the map at `path`, which is made when the pod has none.
    fn entry(&mut self, path: [&str; 2], map: Option<&BTreeMap<String, String>>, key: &str, value: Value) {
        match map {
            Some(_) => self.add(&[path[0], path[1], key], value),
            None => self.add(&path, json!({ key: value })),
        }
    }

    /// Elements of the list at `path` (of `length`, `None` when the pod has no such list), from index `at` on.
    fn elements<const N: usize>(&mut self, path: [&str; 2], length: Option<usize>, at: usize, elements: [Value; N]) {
        if length.is_none() {
            return self.add(&path, Value::Array(elements.into()));
        }
        for (index, element) in (at..).zip(elements) {
            self.add(&[path[0], path[1], &index.to_string()], element);
        }
    }

    fn add(&mut self, path: &[&str], value: Value) {
        let path = PointerBuf::from_tokens(path.iter().copied());
        self.0.push(PatchOperation::Add(AddOperation { path, value }));
    }
}

impl From<&Namespace> for NamespaceMeta {
    fn from(namespace: &Namespace) -> Self {
        Self {
            name: namespace.metadata.name.clone().unwrap_or_default(),
            labels: namespace.metadata.labels.clone().unwrap_or_default(),
            annotations: namespace.metadata.annotations.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Outrigger cannot put its sidecar into this pod: {}. Correct it, or run the pod without a sidecar by its label \
             {}: {}",
            self.problems.join("; "),
            labels::INJECT,
            labels::DISABLED
        )
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests;
