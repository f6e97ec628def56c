//! `outrigger check`: is this cluster's mesh in order? Facts are gathered first (`check/gather.rs`); what they mean is
//! decided by pure functions, here and beside.

mod crds;
mod gather;
mod installed;
mod metrics;
mod namespaces;
mod objects;
mod pods;
mod trust;
mod what_if;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::DynamicObject;
use outrigger_api::labels;

use crate::cluster::{self, printable};

/// Look at a cluster's mesh and say what is wrong with it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The namespace that Outrigger is installed in
    #[arg(long, value_name = "NAMESPACE", default_value = "outrigger")]
    outrigger_namespace: String,
    /// A context of the kubeconfig, instead of the current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// AccessPolicies that are not in force yet: say whom they would shut out, of those who call now, and look at nothing else
    #[arg(long, value_name = "FILE")]
    what_if: Option<PathBuf>,
}

/// Prints a line for each finding. The exit code is 1 when something is wrong, 0 with warnings only.
///
/// # Errors
/// When the cluster cannot be reached or does not let the user look.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = cluster::connect(args.context).await?;
    if let Some(file) = &args.what_if {
        return what_if::run(&client, &args.outrigger_namespace, file).await;
    }
    let facts = gather::facts(&client, &args.outrigger_namespace).await?;
    let findings = findings(&facts);
    for finding in &findings {
        println!("{finding}");
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    let (wrong, warnings) = (count(Level::Wrong), count(Level::Warning));
    match (wrong, warnings) {
        (0, 0) => println!("\nThe mesh is in order."),
        (0, _) => println!("\nThe mesh works; warnings: {warnings}."),
        _ => println!("\n{wrong} of {} checks failed.", findings.len()),
    }
    Ok(ExitCode::from(u8::from(wrong > 0)))
}

/// What was found in the cluster.
#[derive(Debug)]
struct Facts {
    /// Where Outrigger is installed.
    namespace: String,
    cluster_version: String,
    controller: Option<Deployment>,
    injector: Option<Deployment>,
    webhooks: Option<MutatingWebhookConfiguration>,
    /// Secrets of the chart that are not there.
    missing_secrets: Vec<&'static str>,
    /// Those of Outrigger's own kinds, by name. Those that are not there and those that the user may not look at are left out.
    crds: BTreeMap<String, CustomResourceDefinition>,
    /// Whether the cluster serves the kinds of `outrigger.dev`, and those of Gateway API.
    own_kinds: bool,
    gateway_api: bool,
    /// The trust bundle (PEM) in Outrigger's own namespace, `None` where it is missing: new sidecars get this one.
    bundle: Option<String>,
    /// The same in every labelled namespace.
    bundles: BTreeMap<String, Option<String>>,
    /// All of the cluster.
    namespaces: Vec<Namespace>,
    /// The pods of the labelled namespaces.
    pods: Vec<Pod>,
    /// All that the controller writes conditions on: policies, routes and XMeshes.
    objects: Vec<DynamicObject>,
    /// What their sidecars count.
    sidecars_say: metrics::Said,
    /// What the controllers count.
    controllers_say: metrics::Said,
    now: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    text: String,
    /// What to do.
    hint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Good,
    Warning,
    Wrong,
}

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The webhook's CA is renewed by the injector with a third of its year left: one that is nearer to its end was not.
const WEBHOOK_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// Names in one line.
const MAX_NAMES: usize = 5;

fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![good(format!("Kubernetes {} answers", facts.cluster_version))];
    findings.extend(installed::findings(facts));
    findings.extend(crds::findings(facts));
    findings.extend(trust::findings(facts));
    findings.extend(namespaces::findings(facts));
    findings.extend(objects::findings(facts));
    findings.extend(pods::findings(facts));
    findings.extend(metrics::findings(facts));
    findings
}

/// Running pods whose sidecar is ready: those that can be asked.
fn with_ready_sidecar(pods: &[Pod]) -> impl Iterator<Item = (String, String)> {
    let ready = pods.iter().filter(|pod| has_sidecar(pod) && !sidecar_is_unready(pod));
    ready.filter_map(|pod| Some((pod.metadata.namespace.clone()?, pod.metadata.name.clone()?)))
}

fn has_sidecar(pod: &Pod) -> bool {
    lives(pod) && version(pod).is_some()
}

fn sidecar_is_unready(pod: &Pod) -> bool {
    let mut containers = pod.status.iter().flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    });
    containers.any(|container| container.name == "outrigger-proxy" && !container.ready)
}

fn lives(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    !matches!(phase, "Succeeded" | "Failed") && pod.metadata.deletion_timestamp.is_none()
}

fn name(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let [namespace, name] = [&metadata.namespace, &metadata.name].map(|n| n.as_deref().unwrap_or_default());
    format!("{namespace}/{name}")
}

fn version(pod: &Pod) -> Option<&str> {
    Some(pod.metadata.labels.as_ref()?.get(labels::PROXY_VERSION)?.as_str())
}

/// A variable of the sidecar's environment.
fn proxy_variable<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let spec = pod.spec.as_ref()?;
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let proxy = containers.find(|container| container.name == labels::PROXY_CONTAINER)?;
    let mut env = proxy.env.iter().flatten();
    env.find(|variable| variable.name == name)?.value.as_deref()
}

fn time(time: &Time) -> SystemTime {
    SystemTime::from(time.0)
}

fn left(end: SystemTime, now: SystemTime) -> Option<Duration> {
    end.duration_since(now).ok().filter(|left| !left.is_zero())
}

fn days(time: Duration) -> String {
    match time.as_secs() / DAY.as_secs() {
        0 => format!("{} hours", time.as_secs() / 3600),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

/// A few of the names, and how many more there are.
fn some<T: AsRef<str>>(names: &[T]) -> String {
    let mut text = names
        .iter()
        .take(MAX_NAMES)
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > MAX_NAMES {
        text += &format!(" and {} more", names.len() - MAX_NAMES);
    }
    text
}

fn good(text: impl Into<String>) -> Finding {
    Finding {
        level: Level::Good,
        text: text.into(),
        hint: String::new(),
    }
}

fn warning(text: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding {
        level: Level::Warning,
        text: text.into(),
        hint: hint.into(),
    }
}

fn wrong(text: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding {
        level: Level::Wrong,
        text: text.into(),
        hint: hint.into(),
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.level {
            Level::Good => '✓',
            Level::Warning => '!',
            Level::Wrong => '✗',
        };
        write!(f, "{mark} {}", printable(&self.text))?;
        if self.hint.is_empty() {
            Ok(())
        } else {
            write!(f, "\n    {}", printable(&self.hint))
        }
    }
}

#[cfg(test)]
mod tests;
