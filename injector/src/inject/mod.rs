//! What is done to a pod. A pure function: the webhook and `outrigger inject` call the same one.
//!
//! Two containers come in. `outrigger-init` redirects the pod's traffic (the only part with `NET_ADMIN`) and exits;
//! `outrigger-proxy` is the sidecar. As a *native sidecar* (an init container that goes on running) both stand before all
//! of the app's own init containers, so that these have the mesh's network, the app never starts first, and a Job ends
//! when its app does. As an *ordinary* container the sidecar is the first of the containers, and its `postStart` holds
//! the others back until it is ready; `outrigger-init` is then the *last* init container, because the app's own init
//! containers would otherwise have their traffic redirected to a sidecar that does not run yet: they are not in the mesh.
//!
//! The patch adds, and rewrites one thing of the pod's own: the `httpGet`, `tcpSocket` or `grpc` of a probe or a lifecycle
//! handler becomes an `httpGet` of the sidecar's admin port ([`probes`]). The rest of a probe, its times and thresholds, and
//! every field that this version of the injector does not know are kept.
//!
//! A pod that has its sidecar already is looked at again, because another webhook may have added containers or probes since
//! (`reinvocationPolicy: IfNeeded`): the sidecar's environment then gets what it does not know yet.

mod again;
mod annotations;
mod apart;
mod dns;
mod obstacles;
mod operations;
mod probes;
mod quality;
mod sidecar;
mod workload;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use json_patch::Patch;
use k8s_openapi::api::core::v1::{Container, Namespace, Pod, PodSpec};
use outrigger_api::labels;
pub use outrigger_api::labels::{INIT_CONTAINER, PROXY_CONTAINER};
use rustls::crypto::aws_lc_rs;
use serde_json::{Value, json};

use crate::settings::{Settings, VERSION};
use annotations::Overrides;
pub use apart::left_alone;
pub use dns::is_outside as has_other_name_servers;
pub use obstacles::{POD_SECURITY, forbids_capture};
use operations::Operations;
pub use probes::left_to_kubelet;
use probes::{Circumstances, Plan};

/// The name of the volume with the sidecar's token.
pub const TOKEN_VOLUME: &str = "outrigger-token";
/// The name of the volume with the trust bundle: what the sidecar keeps of it, or the ConfigMap.
pub const TRUST_VOLUME: &str = "outrigger-trust";

/// Namespaces whose pods never get a sidecar, beside Outrigger's own: what runs there must start without a webhook.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// What a pod's namespace says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceMeta {
    /// Its name; empty where it is not known yet.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It has the sidecar already, and the sidecar knows the rest of the pod.
    AlreadyInjected,
    /// It says that it does not want one.
    OptedOut,
    /// Neither its namespace nor the pod itself asks for one, or the namespace is one that never gets any.
    NotSelected,
    /// It was to have one, and cannot, and runs without: [`left_alone`] says why.
    LeftAlone(String),
    /// It gets one, or its sidecar gets to know what was added to the pod.
    Patched {
        /// The changes (RFC 6902).
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

/// What a sidecar is given beside the settings: it is not the same for each pod, or not always.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// What kubelet must show before the sidecar carries out a lifecycle handler of the app: a random text ([`random_key`]),
    /// because every pod of the cluster can reach the sidecar's admin port.
    pub key: &'a str,
    /// The roots that it trusts until the controller has said others, PEM ([`crate::roots::check`]). `None`: it reads them from
    /// the ConfigMap of the pod's namespace, and so whoever may write ConfigMaps there says which they are.
    pub roots: Option<&'a str>,
    /// Where the controller is, for pods whose name servers do not know its name ([`has_other_name_servers`]). `None`: nobody knows.
    pub controller: Option<SocketAddr>,
}

/// Says what a pod gets.
///
/// # Errors
/// When the pod is to have a sidecar and cannot, or when an annotation cannot be understood.
pub fn patch(pod: &Pod, namespace: &NamespaceMeta, settings: &Settings, given: Given<'_>) -> Result<Outcome, Refusal> {
    if never(pod, namespace, settings) {
        return Ok(Outcome::NotSelected);
    }
    match word_of_pod(pod)? {
        Some(false) => return Ok(Outcome::OptedOut),
        None if !is_enabled(namespace.labels.get(labels::INJECT)) => return Ok(Outcome::NotSelected),
        _ => {}
    }
    let Some(spec) = &pod.spec else {
        let problems = vec!["spec is missing".to_owned()];
        return Err(Refusal { problems });
    };
    if has_sidecar(pod) {
        return again::patch(pod, spec, given.key);
    }
    if let Some(why) = left_alone(pod) {
        return Ok(Outcome::LeftAlone(why));
    }
    let mut problems = obstacles::clashes(spec);
    problems.extend(obstacles::of_namespace(namespace));
    problems.extend(obstacles::of_pod(spec));
    let overrides = Overrides::read(pod, namespace, settings, &mut problems);
    let controller_id = settings.controller_id().map_err(|why| problems.push(why)).ok();
    match controller_id {
        Some(controller_id) if problems.is_empty() => {
            let circumstances = Circumstances {
                rewrite: overrides.rewrite_probes,
                native: overrides.native,
                asked: &[],
                key: given.key,
            };
            let plan = probes::plan(spec, &circumstances);
            let parts = sidecar::Parts {
                pod,
                namespace: &namespace.name,
                settings,
                overrides: &overrides,
                probes: &plan,
                given,
            };
            let init = parts.init_container();
            let proxy = parts.proxy_container(controller_id.as_str());
            let volumes = parts.volumes();
            Ok(Outcome::Patched {
                patch: changes(pod, spec, overrides.native, [init, proxy], volumes, plan),
                warnings: overrides
                    .warnings
                    .into_iter()
                    .chain(dns::warning(spec, given.controller))
                    .collect(),
            })
        }
        _ => Err(Refusal { problems }),
    }
}

/// A key for [`patch`]: 128 random bits.
///
/// # Errors
/// When the system has no random numbers.
pub fn random_key() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    let random = aws_lc_rs::default_provider().secure_random;
    random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
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

/// The field of the pod that lets its containers see one another's processes, where it has one.
pub fn shared_processes(spec: &PodSpec) -> Option<&'static str> {
    match () {
        () if spec.share_process_namespace == Some(true) => Some("shareProcessNamespace"),
        () if spec.host_pid == Some(true) => Some("hostPID"),
        () => None,
    }
}

fn changes(
    pod: &Pod,
    spec: &PodSpec,
    native: bool,
    [init, proxy]: [Value; 2],
    added: [Value; 2],
    probes: Plan,
) -> Patch {
    let mut patch = Operations::default();
    // First, as long as the app's containers are where they were.
    for rewrite in probes.rewrites {
        patch.rewrite(rewrite);
    }
    patch.entry(
        ["metadata", "labels"],
        pod.metadata.labels.as_ref(),
        labels::PROXY_VERSION,
        json!(VERSION),
    );
    let init_containers = spec.init_containers.as_deref().map(<[_]>::len);
    if native {
        patch.elements(["spec", "initContainers"], init_containers, 0, [init, proxy]);
    } else {
        let last = init_containers.unwrap_or(0);
        patch.elements(["spec", "initContainers"], init_containers, last, [init]);
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
    patch.elements(["spec", "volumes"], volumes, volumes.unwrap_or(0), added);
    patch.patch()
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
