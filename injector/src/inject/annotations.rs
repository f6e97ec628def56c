//! What a pod's annotations (and for some its namespace's) say about its sidecar.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use outrigger_api::{labels, ports};

use super::{NamespaceMeta, quality, shared_processes};
use crate::quantity;
use crate::settings::{ForwardedFor, Resources, Settings, log_filter};

/// How this pod's sidecar differs from the others.
#[derive(Debug)]
pub(super) struct Overrides {
    pub(super) native: bool,
    pub(super) mtls: &'static str,
    pub(super) rewrite_probes: bool,
    pub(super) log_level: String,
    pub(super) access_log: bool,
    pub(super) forwarded_for: ForwardedFor,
    pub(super) opaque_ports: String,
    pub(super) skip_inbound_ports: String,
    pub(super) skip_outbound_ports: String,
    pub(super) skip_outbound_cidrs: String,
    pub(super) skip_uids: String,
    pub(super) resources: Resources,
    pub(super) drain_timeout: Duration,
    pub(super) warnings: Vec<String>,
}

/// Kubernetes' own default of `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;
/// What is left of the grace period for the sidecar's own end after its drain.
const END: i64 = 2;

const OUR_PREFIX: &str = "outrigger.dev/";
const KNOWN: [&str; 17] = [
    labels::INJECT,
    labels::PROXY_VERSION,
    labels::OPAQUE_PORTS,
    labels::SKIP_INBOUND_PORTS,
    labels::SKIP_OUTBOUND_PORTS,
    labels::SKIP_OUTBOUND_CIDRS,
    labels::SKIP_UIDS,
    labels::MTLS,
    labels::REWRITE_PROBES,
    labels::NATIVE_SIDECAR,
    labels::LOG_LEVEL,
    labels::ACCESS_LOG,
    labels::FORWARDED_FOR,
    labels::CPU_REQUEST,
    labels::CPU_LIMIT,
    labels::MEMORY_REQUEST,
    labels::MEMORY_LIMIT,
];

impl Overrides {
    /// Reads them all. What cannot be understood goes into `problems`, all of it.
    pub(super) fn read(pod: &Pod, namespace: &NamespaceMeta, settings: &Settings, problems: &mut Vec<String>) -> Self {
        let empty = BTreeMap::new();
        let mut source = Source {
            pod: pod.metadata.annotations.as_ref().unwrap_or(&empty),
            namespace: &namespace.annotations,
            problems,
        };
        let native = source.pod(labels::NATIVE_SIDECAR, boolean);
        let opaque = source.inherited(labels::OPAQUE_PORTS, port_list).unwrap_or_default();
        let lists = [settings.opaque_ports.clone(), opaque];
        Self {
            // "true" cannot make a cluster have them.
            native: settings.native_sidecars && native.unwrap_or(true),
            mtls: source.mtls(),
            rewrite_probes: source.pod(labels::REWRITE_PROBES, boolean).unwrap_or(true),
            log_level: source
                .pod(labels::LOG_LEVEL, text(log_filter))
                .unwrap_or_else(|| settings.log_level.clone()),
            access_log: source.pod(labels::ACCESS_LOG, boolean).unwrap_or(settings.access_log),
            forwarded_for: source
                .pod(labels::FORWARDED_FOR, forwarded_for)
                .unwrap_or(settings.forwarded_for),
            opaque_ports: lists
                .iter()
                .filter(|l| !l.is_empty())
                .cloned()
                .collect::<Vec<_>>()
                .join(","),
            skip_inbound_ports: source.pod(labels::SKIP_INBOUND_PORTS, port_list).unwrap_or_default(),
            skip_outbound_ports: source.pod(labels::SKIP_OUTBOUND_PORTS, port_list).unwrap_or_default(),
            skip_outbound_cidrs: source.pod(labels::SKIP_OUTBOUND_CIDRS, text(cidrs)).unwrap_or_default(),
            skip_uids: source.pod(labels::SKIP_UIDS, text(uids)).unwrap_or_default(),
            resources: resources(&mut source, &default_resources(pod, settings), pod),
            drain_timeout: drain_timeout(pod, settings),
            warnings: unknown(source.pod).into_iter().chain(source.weaker()).collect(),
        }
        .with_warnings(pod)
    }

    fn with_warnings(mut self, pod: &Pod) -> Self {
        if let Some(field) = pod.spec.as_ref().and_then(shared_processes) {
            self.warnings.push(format!(
                "spec.{field} is true: the app sees the sidecar's process; as root it can end it, and with the capability \
                 SYS_PTRACE read the token and the key by which the pod is known"
            ));
        }
        let restart = pod
            .spec
            .as_ref()
            .and_then(|s| s.restart_policy.as_deref())
            .unwrap_or("Always");
        if !self.native && restart != "Always" {
            self.warnings.push(format!(
                "the sidecar is an ordinary container and does not end with the app: as its last act the app must POST to \
                 http://127.0.0.1:{}/shutdown with the header {}: 1, or the pod never completes",
                ports::ADMIN,
                ports::ADMIN_HEADER
            ));
        }
        self
    }
}

/// The one annotation that counts also when a pod is looked at again.
pub(super) fn rewrite_probes(pod: &Pod, problems: &mut Vec<String>) -> bool {
    let empty = BTreeMap::new();
    let mut source = Source {
        pod: pod.metadata.annotations.as_ref().unwrap_or(&empty),
        namespace: &empty,
        problems,
    };
    source.pod(labels::REWRITE_PROBES, boolean).unwrap_or(true)
}

/// The annotations, and what is wrong with them.
struct Source<'a> {
    pod: &'a BTreeMap<String, String>,
    namespace: &'a BTreeMap<String, String>,
    problems: &'a mut Vec<String>,
}

impl Source<'_> {
    /// The pod's own word.
    fn pod<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.pod.get(key)?;
        self.parsed("annotation", key, value.clone(), parse)
    }

    /// The pod's own word, or else its namespace's.
    fn inherited<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if self.pod.contains_key(key) {
            return self.pod(key, parse);
        }
        let value = self.namespace.get(key)?;
        self.parsed("annotation of the namespace", key, value.clone(), parse)
    }

    /// The stricter of the two: what a namespace says about mutual TLS holds for everybody who may make pods in it.
    fn mtls(&mut self) -> &'static str {
        let own = self.pod(labels::MTLS, mtls);
        let of_namespace = self.namespace.get(labels::MTLS).cloned();
        let of_namespace =
            of_namespace.and_then(|value| self.parsed("annotation of the namespace", labels::MTLS, value, mtls));
        match (own, of_namespace) {
            (Some("strict"), _) | (_, Some("strict")) => "strict",
            _ => "permissive",
        }
    }

    /// A word about an annotation of the pod that is not followed.
    fn weaker(&self) -> Option<String> {
        let says = |annotations: &BTreeMap<String, String>, value: &str| {
            annotations.get(labels::MTLS).is_some_and(|found| found.trim() == value)
        };
        (says(self.pod, "permissive") && says(self.namespace, "strict")).then(|| {
            format!(
                "annotation {}: the namespace says \"strict\", which a pod cannot weaken; the pod is strict",
                labels::MTLS
            )
        })
    }

    fn parsed<T>(
        &mut self,
        what: &str,
        key: &str,
        value: String,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(value.trim())
            .map_err(|why| self.problems.push(format!("{what} {key}: {why}")))
            .ok()
    }
}

/// The sidecar's resources. A request above a limit that was not asked for together with it is no mistake: the other one
/// follows.
fn resources(source: &mut Source<'_>, defaults: &Resources, pod: &Pod) -> Resources {
    let mut pair = |request: &str, limit: &str, defaults: [&Option<String>; 2]| {
        let checked = text(|value: &str| quantity::parse(value).map(drop));
        let asked = [source.pod(request, &checked), source.pod(limit, &checked)];
        let mut pair = [
            asked[0].clone().or_else(|| defaults[0].clone()),
            asked[1].clone().or_else(|| defaults[1].clone()),
        ];
        if let [Some(least), Some(most)] = &pair
            && let (Ok(low), Ok(high)) = (quantity::parse(least), quantity::parse(most))
            && low > high
        {
            match &asked {
                [Some(_), Some(_)] => source.problems.push(format!(
                    "annotations {request}: {least:?} and {limit}: {most:?}: the request is more than the limit"
                )),
                [Some(_), None] => pair[1] = pair[0].clone(),
                _ => pair[0] = pair[1].clone(),
            }
        }
        (pair, asked)
    };
    let cpu = [&defaults.cpu_request, &defaults.cpu_limit];
    let memory = [&defaults.memory_request, &defaults.memory_limit];
    let (cpu, asked_cpu) = pair(labels::CPU_REQUEST, labels::CPU_LIMIT, cpu);
    let (memory, asked_memory) = pair(labels::MEMORY_REQUEST, labels::MEMORY_LIMIT, memory);
    let resources = Resources::from([cpu, memory]);
    match pod.spec.as_ref().is_some_and(quality::is_guaranteed) {
        true => quality::guaranteed(resources, &Resources::from([asked_cpu, asked_memory])),
        false => resources,
    }
}

/// A pod with resources of its own as a whole shares them with its sidecar, whose own might not fit into them.
fn default_resources(pod: &Pod, settings: &Settings) -> Resources {
    let of_pod = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    of_pod.map_or_else(
        || settings.resources.clone(),
        |_| Resources::from([[None, None], [None, None]]),
    )
}

/// The drain ends before kubelet's patience does.
fn drain_timeout(pod: &Pod, settings: &Settings) -> Duration {
    let grace = pod
        .spec
        .as_ref()
        .and_then(|s| s.termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE);
    // Never 0: a drain without any time would cut the response that is being written.
    let left = u64::try_from(grace.saturating_sub(END)).unwrap_or(0).max(1);
    settings.drain().min(Duration::from_secs(left))
}

fn unknown(annotations: &BTreeMap<String, String>) -> Vec<String> {
    annotations
        .keys()
        .filter(|key| key.starts_with(OUR_PREFIX) && !KNOWN.contains(&key.as_str()))
        .map(|key| {
            format!(
                "annotation {key} is none that Outrigger {} knows; it does nothing",
                crate::settings::VERSION
            )
        })
        .collect()
}

fn boolean(value: &str) -> Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{value:?} is neither \"true\" nor \"false\"")),
    }
}

fn mtls(value: &str) -> Result<&'static str, String> {
    match value {
        "strict" => Ok("strict"),
        "permissive" => Ok("permissive"),
        _ => Err(format!("{value:?} is neither \"strict\" nor \"permissive\"")),
    }
}

fn forwarded_for(value: &str) -> Result<ForwardedFor, String> {
    match value {
        "Leave" => Ok(ForwardedFor::Leave),
        "Append" => Ok(ForwardedFor::Append),
        _ => Err(format!("{value:?} is neither \"Leave\" nor \"Append\"")),
    }
}

fn port_list(value: &str) -> Result<String, String> {
    labels::parse_ports(value)?;
    Ok(value.to_owned())
}

fn cidrs(value: &str) -> Result<(), String> {
    for part in elements(value) {
        let (address, length) = part.split_once('/').unwrap_or((part, ""));
        let longest = match address.parse() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return Err(format!("{part:?} is not an address or a network like \"10.0.0.0/8\"")),
        };
        let valid = !part.contains('/') || length.parse::<u8>().is_ok_and(|l| l <= longest);
        if !valid {
            return Err(format!("{part:?}: the length of the prefix is not 0 to {longest}"));
        }
    }
    Ok(())
}

fn uids(value: &str) -> Result<(), String> {
    for part in elements(value) {
        part.parse::<u32>()
            .map_err(|_| format!("{part:?} is not a numeric user ID"))?;
    }
    Ok(())
}

fn elements(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// A parser that keeps the text which `check` finds right.
fn text(check: impl Fn(&str) -> Result<(), String>) -> impl Fn(&str) -> Result<String, String> {
    move |value| check(value).map(|()| value.to_owned())
}
