//! `outrigger check`: is this cluster's mesh in order? Facts are gathered first (`check/gather.rs`); what they mean is
//! decided by pure functions here.

mod gather;
mod metrics;
mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use outrigger_api::labels;
use outrigger_injector::certs;
use outrigger_injector::inject::{left_to_kubelet, shared_processes};

/// Look at a cluster's mesh and say what is wrong with it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The namespace that Outrigger is installed in
    #[arg(long, value_name = "NAMESPACE", default_value = "outrigger")]
    outrigger_namespace: String,
    /// A context of the kubeconfig, instead of the current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// Prints a line for each finding. The exit code is 1 when something is wrong, 0 with warnings only.
///
/// # Errors
/// When the cluster cannot be reached or does not let the user look.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = connect(args.context).await?;
    let facts = gather::facts(&client, &args.outrigger_namespace).await?;
    let findings = findings(&facts);
    for finding in &findings {
        println!("{finding}");
    }
    let wrong = findings.iter().filter(|f| f.level == Level::Wrong).count();
    match wrong {
        0 => println!("\nThe mesh is in order."),
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
    /// Whether the cluster serves the kinds of `outrigger.dev`, and those of Gateway API.
    own_kinds: bool,
    gateway_api: bool,
    /// The trust bundle (PEM) in Outrigger's own namespace, `None` where it is missing: new sidecars get this one.
    bundle: Option<String>,
    /// The same in every labelled namespace.
    bundles: BTreeMap<String, Option<String>>,
    /// The pods of the labelled namespaces.
    pods: Vec<Pod>,
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
    findings.push(deployment(facts, "outrigger-controller", facts.controller.as_ref()));
    findings.push(deployment(facts, "outrigger-injector", facts.injector.as_ref()));
    findings.push(webhooks(facts));
    findings.extend(facts.missing_secrets.iter().map(|name| {
        wrong(
            format!("Secret {}/{name} is missing", facts.namespace),
            "helm upgrade brings it back, empty; do it while the old pods still run, which know what belongs into it",
        )
    }));
    findings.push(match facts.own_kinds {
        true => good("the CRDs of outrigger.dev are there"),
        false => wrong(
            "the CRDs of outrigger.dev are missing",
            "outrigger crds | kubectl apply --server-side -f -",
        ),
    });
    findings.push(good(match facts.gateway_api {
        true => "Gateway API is installed: HTTPRoute and GRPCRoute are in force",
        false => "Gateway API is not installed: everything works, except for routes",
    }));
    findings.extend(trust::findings(facts));
    findings.extend(sidecars(facts));
    findings.extend(probes(facts));
    findings.extend(guests(facts));
    findings.extend(versions(facts));
    findings.extend(networks(facts));
    findings.extend(servers_first(&facts.sidecars_say));
    findings
}

fn deployment(facts: &Facts, name: &str, deployment: Option<&Deployment>) -> Finding {
    let namespace = &facts.namespace;
    let Some(deployment) = deployment else {
        return wrong(
            format!("there is no Deployment {namespace}/{name}"),
            format!("helm install outrigger charts/outrigger -n {namespace} --create-namespace"),
        );
    };
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
    let text = format!("{name}: {ready} of {wanted} replicas are ready");
    let hint = format!("kubectl describe pods -n {namespace} -l app.kubernetes.io/name={name}");
    match ready {
        _ if ready >= wanted && ready > 0 => good(text),
        0 => wrong(text, hint),
        _ => warning(text, hint),
    }
}

fn webhooks(facts: &Facts) -> Finding {
    let Some(configuration) = &facts.webhooks else {
        return wrong(
            "there is no MutatingWebhookConfiguration outrigger-injector: new pods get no sidecar",
            "helm upgrade brings it back",
        );
    };
    let log = format!(
        "kubectl logs -n {} deployment/outrigger-injector says why",
        facts.namespace
    );
    for webhook in configuration.webhooks.iter().flatten() {
        let name = &webhook.name;
        let bundle = webhook
            .client_config
            .ca_bundle
            .as_ref()
            .map(|b| String::from_utf8_lossy(&b.0).into_owned());
        let Some(bundle) = bundle.filter(|b| !b.is_empty()) else {
            return wrong(
                format!("webhook {name} has no CA bundle: pods cannot be made in labelled namespaces"),
                log,
            );
        };
        match certs::ends(&bundle) {
            Err(why) => return wrong(format!("webhook {name}: its CA bundle is not valid: {why}"), log),
            // The bundle holds an old CA beside the new one during a rotation.
            Ok(ends) => match ends.into_iter().max().map(|end| left(end, facts.now)) {
                None | Some(None) => return wrong(format!("webhook {name}: its CA bundle has expired"), log),
                Some(Some(left)) if left < WEBHOOK_WARNING => {
                    return warning(format!("webhook {name}: its CA bundle expires in {}", days(left)), log);
                }
                Some(Some(_)) => {}
            },
        }
    }
    good("the webhook configuration has a valid CA bundle")
}

/// Pods that should have a sidecar.
fn sidecars(facts: &Facts) -> Vec<Finding> {
    let (mut with, mut without, mut unready) = (0, Vec::new(), Vec::new());
    for pod in facts.pods.iter().filter(|pod| lives(pod)) {
        let name = name(pod);
        if version(pod).is_some() {
            with += 1;
            if sidecar_is_unready(pod) {
                unready.push(name);
            }
        } else if !opted_out(pod) {
            without.push(name);
        }
    }
    let mut findings = Vec::new();
    if !without.is_empty() {
        findings.push(wrong(
            format!("pods without a sidecar in labelled namespaces: {}", some(&without)),
            "they are older than the label: kubectl rollout restart brings it in",
        ));
    }
    if !unready.is_empty() {
        findings.push(wrong(
            format!("sidecars that are not ready: {}", some(&unready)),
            "kubectl logs POD -c outrigger-proxy says why",
        ));
    }
    if findings.is_empty() {
        findings.push(good(format!(
            "every pod of the labelled namespaces has what it wants: {with} with a sidecar"
        )));
    }
    findings
}

/// What kubelet asks apps itself.
fn probes(facts: &Facts) -> Option<Finding> {
    let meshed = facts.pods.iter().filter(|pod| lives(pod) && version(pod).is_some());
    let left: Vec<_> = meshed
        .flat_map(|pod| {
            left_to_kubelet(pod)
                .into_iter()
                .map(|what| format!("{}: {what}", name(pod)))
        })
        .collect();
    if left.is_empty() {
        return None;
    }
    Some(warning(
        format!(
            "kubelet asks these apps itself, and not their sidecars: {}",
            some(&left)
        ),
        "a strict sidecar lets the same request in from everybody, in plaintext, and refuses HTTPS; \
         see \"Probes\" in docs/configuration.md",
    ))
}

/// Pods whose apps see their sidecars' processes.
fn guests(facts: &Facts) -> Option<Finding> {
    let meshed = facts.pods.iter().filter(|pod| lives(pod) && version(pod).is_some());
    let shared: Vec<_> = meshed
        .filter_map(|pod| Some(format!("{} ({})", name(pod), shared_processes(pod.spec.as_ref()?)?)))
        .collect();
    (!shared.is_empty()).then(|| {
        warning(
            format!("these apps see the processes of their sidecars: {}", some(&shared)),
            "as root they can end them, and with the capability SYS_PTRACE read the token and the key by which the pod is known",
        )
    })
}

fn versions(facts: &Facts) -> Option<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let versions: BTreeSet<_> = facts.pods.iter().filter(|pod| lives(pod)).filter_map(version).collect();
    let others: Vec<_> = versions.iter().filter(|version| **version != own).copied().collect();
    if versions.is_empty() {
        return None;
    }
    if others.is_empty() {
        return Some(good(format!("all sidecars have version {own}, as this program")));
    }
    Some(warning(
        format!(
            "this program has version {own}, and there are sidecars of {}",
            some(&others)
        ),
        "after an upgrade: kubectl rollout restart brings the new sidecar in",
    ))
}

/// What sidecars found out about ports, and what should have been declared.
fn servers_first(said: &metrics::Said) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |what: &str, ports: &BTreeSet<String>| {
        let ports: Vec<_> = ports.iter().collect();
        if !ports.is_empty() {
            let text = format!("{what} that speak first, though nobody declared it: {}", some(&ports));
            let hint = format!(
                "a connection waits a second whenever this is not known yet: give the Service's port the appProtocol tcp, or \
                 annotate the Service with {}",
                labels::OPAQUE_PORTS
            );
            findings.push(warning(text, hint));
        }
    };
    add("servers", &said.servers_first);
    add("apps", &said.apps_first);
    findings.extend(unread("sidecars", said));
    findings
}

/// What the controller found out about `clusterNetworks`.
fn networks(facts: &Facts) -> Vec<Finding> {
    let said = &facts.controllers_say;
    let refuted = said.outside_networks.map(|addresses| {
        warning(
            format!(
                "{addresses} addresses of Services and pods are outside of clusterNetworks: sidecars ask the controller for every \
                 address"
            ),
            format!(
                "kubectl logs -n {} deployment/outrigger-controller names one; add its network to the chart's value clusterNetworks",
                facts.namespace
            ),
        )
    });
    refuted.into_iter().chain(unread("controllers", said)).collect()
}

fn unread(whose: &str, said: &metrics::Said) -> Option<Finding> {
    let (pods, why) = said.failed.as_ref()?;
    Some(warning(
        format!("the metrics of {pods} {whose} could not be read: {why}"),
        "is the pod ready, and are you allowed to get pods/proxy?",
    ))
}

/// Running pods whose sidecar is ready: those that can be asked.
fn with_ready_sidecar(pods: &[Pod]) -> impl Iterator<Item = (String, String)> {
    let ready = pods
        .iter()
        .filter(|pod| lives(pod) && version(pod).is_some() && !sidecar_is_unready(pod));
    ready.filter_map(|pod| Some((pod.metadata.namespace.clone()?, pod.metadata.name.clone()?)))
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

fn opted_out(pod: &Pod) -> bool {
    let maps = [&pod.metadata.labels, &pod.metadata.annotations];
    maps.into_iter()
        .flatten()
        .any(|map| map.get(labels::INJECT).is_some_and(|word| word == labels::DISABLED))
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
        write!(f, "{mark} {}", self.text)?;
        if self.hint.is_empty() {
            Ok(())
        } else {
            write!(f, "\n    {}", self.hint)
        }
    }
}

async fn connect(context: Option<String>) -> anyhow::Result<kube::Client> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // an error: there is one already
    let options = kube::config::KubeConfigOptions {
        context,
        ..Default::default()
    };
    // Without a kubeconfig, as in a pod, the pod's own account is taken.
    let config = match kube::Config::from_kubeconfig(&options).await {
        Ok(config) => config,
        Err(error) if options.context.is_some() => return Err(error).context("kubeconfig"),
        Err(_) => kube::Config::infer()
            .await
            .context("neither a kubeconfig nor a cluster around this process")?,
    };
    kube::Client::try_from(config).context("connecting to Kubernetes")
}

#[cfg(test)]
mod tests;
