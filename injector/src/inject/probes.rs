//! The probes and lifecycle handlers by which kubelet reaches the pod's app over the network.
//!
//! kubelet is no member of the mesh. Where it asks the app itself, a `strict` sidecar needs an exception for plaintext, which
//! everybody else can use as well, and a TCP probe sees the sidecar's port and not the app's. So kubelet is pointed at the
//! sidecar's admin port, and the sidecar asks the app from inside the pod ([`Plan::asked`]). What is left as it is has
//! an exception ([`Plan::let_in`]): by annotation, or because kubelet asks before there is a sidecar.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, GRPCAction, HTTPGetAction, LifecycleHandler, Pod, PodSpec, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use outrigger_api::probes::{AppProbe, Ask, GRPC_HEALTH, HttpGet, KEY_HEADER, Kind, path, request_target};
use outrigger_api::{labels, ports};
use serde::Serialize;
use serde_json::{Value, json};

use super::{INIT_CONTAINER, PROXY_CONTAINER};

/// Bytes of all probes together in the environment, and of all exceptions: Linux takes 128 KiB for one variable.
const MAX_BYTES: usize = 64 * 1024;
/// kubelet's own default of `timeoutSeconds`.
const DEFAULT_TIMEOUT: i32 = 1;
/// Of a container's name (RFC 1123). kube-apiserver refuses other names, after this webhook.
const MAX_NAME: usize = 63;

/// What becomes of the probes of a pod.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Handlers that now point at the sidecar.
    pub(super) rewrites: Vec<Rewrite>,
    /// What the sidecar asks in kubelet's place.
    pub(super) asked: Vec<AppProbe>,
    /// What kubelet asks itself, and is let in for as plaintext; sorted, each once.
    pub(super) let_in: BTreeSet<LetIn>,
    /// What kubelet asks itself, in words.
    pub(super) left: Vec<String>,
}

/// A handler in the pod, and what stands there instead.
#[derive(Debug)]
pub(super) struct Rewrite {
    /// Where it is: "spec", "containers", "0", "livenessProbe".
    pub(super) at: Vec<String>,
    /// `httpGet`, `tcpSocket` or `grpc`.
    pub(super) from: &'static str,
    /// The `httpGet` of the sidecar's admin port.
    pub(super) to: Value,
}

/// One exception of a `strict` sidecar. Without a path or a target: a connection, of which no byte is passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct LetIn {
    port: u16,
    /// Of a gRPC health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'static str>,
    /// Path and query of a GET.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// What the plan depends on beside the pod's containers.
pub(super) struct Circumstances<'a> {
    /// The annotation does not forbid it.
    pub(super) rewrite: bool,
    /// The sidecar starts before all of the app's init containers, where the pod does not have it yet.
    pub(super) native: bool,
    /// What the sidecar of the pod asks already, when the pod is looked at again.
    pub(super) asked: &'a [AppProbe],
    /// What is to be the key of lifecycle handlers ([`AppProbe::key`]).
    pub(super) key: &'a str,
}

/// Says what becomes of each probe and handler.
pub(super) fn plan(spec: &PodSpec, circumstances: &Circumstances<'_>) -> Plan {
    let mut plan = Plan::default();
    let (mut bytes, mut bytes_let_in) = (0, 0);
    for site in sites(spec) {
        if let Some(known) = site.asked_by(circumstances.asked)
            && !plan.has(&known)
        {
            bytes += size(&known);
            plan.asked.push(known);
            continue;
        }
        let why = match site.probe(circumstances.key) {
            Err(why) => why,
            Ok(_) if !circumstances.rewrite => Some(format!("{} is \"false\"", labels::REWRITE_PROBES)),
            Ok(_) if site.is_before_sidecar(spec, circumstances.native) => {
                Some("its container starts before the sidecar".to_owned())
            }
            Ok(probe) if plan.has(&probe) || bytes + size(&probe) > MAX_BYTES => {
                Some("it does not fit into the sidecar's environment".to_owned())
            }
            Ok(probe) => {
                bytes += size(&probe);
                plan.rewrites.push(site.rewrite(&probe));
                plan.asked.push(probe);
                continue;
            }
        };
        if let Some(why) = why {
            plan.left
                .push(format!("{} of container {}: {why}", site.field, site.container.name));
            // What does not fit is refused: a sidecar whose environment is too large would not start.
            if let Some(exception) = site.let_in()
                && bytes_let_in + size(&exception) <= MAX_BYTES
            {
                bytes_let_in += size(&exception);
                plan.let_in.insert(exception);
            }
        }
    }
    plan
}

/// The probes and handlers that kubelet sends to the app itself, in words. For a pod that has its sidecar.
pub fn left_to_kubelet(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let annotations = pod.metadata.annotations.as_ref();
    let no = annotations.is_some_and(|a| a.get(labels::REWRITE_PROBES).is_some_and(|word| word.trim() == "false"));
    let asks = sites(spec).filter(|site| site.points_at_sidecar().is_none());
    asks.filter_map(|site| {
        let why = match site.probe("") {
            Err(why) => why?,
            Ok(_) if no => format!("{} is \"false\"", labels::REWRITE_PROBES),
            Ok(_) if site.is_before_sidecar(spec, true) => "its container starts before the sidecar".to_owned(),
            Ok(_) => "its sidecar's version does not ask it".to_owned(),
        };
        Some(format!("{} of container {}: {why}", site.field, site.container.name))
    })
    .collect()
}

impl Plan {
    fn has(&self, probe: &AppProbe) -> bool {
        let same = |known: &AppProbe| known.kind == probe.kind && known.container == probe.container;
        self.asked.iter().any(same)
    }
}

fn size(entry: &impl Serialize) -> usize {
    json!(entry).to_string().len()
}

/// One probe or lifecycle handler of a container.
struct Site<'a> {
    container: &'a Container,
    /// `initContainers` or `containers`, and the place in it.
    list: &'static str,
    index: usize,
    kind: Kind,
    /// The name of the field.
    field: &'static str,
    timeout: Option<i32>,
    action: Action<'a>,
}

/// What kubelet does over the network.
#[derive(Clone, Copy)]
enum Action<'a> {
    Http(&'a HTTPGetAction),
    Tcp(&'a TCPSocketAction),
    Grpc(&'a GRPCAction),
}

fn sites(spec: &PodSpec) -> impl Iterator<Item = Site<'_>> {
    let init = spec.init_containers.iter().flatten().enumerate();
    let init = init.map(|(index, container)| ("initContainers", index, container));
    let containers = spec.containers.iter().enumerate();
    let containers = containers.map(|(index, container)| ("containers", index, container));
    init.chain(containers)
        .filter(|(_, _, container)| container.name != INIT_CONTAINER && container.name != PROXY_CONTAINER)
        .flat_map(|(list, index, container)| of_container(list, index, container))
}

fn of_container<'a>(list: &'static str, index: usize, container: &'a Container) -> Vec<Site<'a>> {
    let site = |kind, field, timeout, action| Site {
        container,
        list,
        index,
        kind,
        field,
        timeout,
        action,
    };
    let probes = [
        (Kind::Startup, "startupProbe", &container.startup_probe),
        (Kind::Readiness, "readinessProbe", &container.readiness_probe),
        (Kind::Liveness, "livenessProbe", &container.liveness_probe),
    ];
    let lifecycle = container.lifecycle.as_ref();
    let handlers = [
        (
            Kind::PostStart,
            "postStart",
            lifecycle.and_then(|l| l.post_start.as_ref()),
        ),
        (Kind::PreStop, "preStop", lifecycle.and_then(|l| l.pre_stop.as_ref())),
    ];
    let probes = probes.into_iter().filter_map(|(kind, field, probe)| {
        let probe = probe.as_ref()?;
        Some(site(kind, field, Some(timeout(probe)), of_probe(probe)?))
    });
    let handlers = handlers
        .into_iter()
        .filter_map(|(kind, field, handler)| Some(site(kind, field, None, of_handler(handler?)?)));
    probes.chain(handlers).collect()
}

/// kube-apiserver makes 0 the default.
fn timeout(probe: &Probe) -> i32 {
    probe.timeout_seconds.filter(|s| *s > 0).unwrap_or(DEFAULT_TIMEOUT)
}

/// `None` too where there is more than one: kube-apiserver refuses that, and must see it.
fn of_probe(probe: &Probe) -> Option<Action<'_>> {
    match (&probe.http_get, &probe.tcp_socket, &probe.grpc, &probe.exec) {
        (Some(http), None, None, None) => Some(Action::Http(http)),
        (None, Some(tcp), None, None) => Some(Action::Tcp(tcp)),
        (None, None, Some(grpc), None) => Some(Action::Grpc(grpc)),
        _ => None,
    }
}

/// A handler's `tcpSocket` is not there for kubelet: it fails without a look at the app ("invalid handler", in Kubernetes'
/// pkg/kubelet/lifecycle/handlers.go), and must fail with a sidecar too.
fn of_handler(handler: &LifecycleHandler) -> Option<Action<'_>> {
    match (&handler.http_get, &handler.tcp_socket, &handler.exec, &handler.sleep) {
        (Some(http), None, None, None) => Some(Action::Http(http)),
        _ => None,
    }
}

impl Site<'_> {
    /// What the sidecar is to ask. An error says why it cannot, or `None` where kubelet does not reach the app either.
    fn probe(&self, key: &str) -> Result<AppProbe, Option<String>> {
        if let Some(host) = self.host() {
            return Err(Some(format!("it asks the host {host:?}")));
        }
        let name = &self.container.name;
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(valid) {
            return Err(None);
        }
        let port = self.port().filter(|port| !is_sidecars(*port)).ok_or(None)?;
        Ok(AppProbe {
            container: name.clone(),
            kind: self.kind,
            port,
            timeout: self.seconds(),
            key: self.kind.is_handler().then(|| key.to_owned()),
            ask: match self.action {
                Action::Http(http) => Ask::Http(http_get(http).ok_or(None)?),
                Action::Tcp(_) => Ask::Tcp,
                Action::Grpc(grpc) => Ask::Grpc(grpc.service.clone().unwrap_or_default()),
            },
        })
    }

    fn seconds(&self) -> Option<u32> {
        self.timeout.and_then(|seconds| u32::try_from(seconds).ok())
    }

    /// Another host than the pod.
    fn host(&self) -> Option<&str> {
        let host = match self.action {
            Action::Http(http) => http.host.as_deref(),
            Action::Tcp(tcp) => tcp.host.as_deref(),
            Action::Grpc(_) => None,
        };
        host.filter(|host| !host.is_empty())
    }

    /// The number of a port that may be named, as kubelet finds it: among the ports of the same container. `None` for a
    /// name that is nowhere: kubelet's probe fails, with or without a sidecar.
    fn port(&self) -> Option<u16> {
        let port = match self.action {
            Action::Http(http) => &http.port,
            Action::Tcp(tcp) => &tcp.port,
            Action::Grpc(grpc) => return u16::try_from(grpc.port).ok().filter(|&p| p != 0),
        };
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                let named = ports.find(|p| p.name.as_deref() == Some(name));
                named.map(|p| p.container_port).or_else(|| name.parse().ok())?
            }
        };
        u16::try_from(number).ok().filter(|&p| p != 0)
    }

    /// kubelet starts init containers, and then the others, in their order, and asks from then on.
    fn is_before_sidecar(&self, spec: &PodSpec, native: bool) -> bool {
        let place = |containers: &[Container]| containers.iter().position(|c| c.name == PROXY_CONTAINER);
        let init = spec.init_containers.as_deref().and_then(place);
        match (init, place(&spec.containers), self.list) {
            (Some(sidecar), _, list) => list == "initContainers" && self.index < sidecar,
            (None, Some(sidecar), "containers") => self.index < sidecar,
            (None, Some(_), _) => true,
            (None, None, list) => list == "initContainers" && !native,
        }
    }

    /// The path of the sidecar's that it points at already.
    fn points_at_sidecar(&self) -> Option<&str> {
        match self.action {
            Action::Http(http) if self.port() == Some(ports::ADMIN) => Some(http.path.as_deref().unwrap_or_default()),
            _ => None,
        }
    }

    /// What the sidecar asks for it already, with the time that kubelet waits now: that stands in the pod's own fields, where
    /// another webhook, or a person after `outrigger inject`, may have changed it.
    fn asked_by(&self, asked: &[AppProbe]) -> Option<AppProbe> {
        let at = self.points_at_sidecar()?;
        let mut own = asked
            .iter()
            .filter(|p| p.kind == self.kind && p.container == self.container.name);
        let known = own.find(|probe| path(&probe.container, probe.kind) == at)?;
        Some(AppProbe {
            timeout: self.seconds(),
            ..known.clone()
        })
    }

    fn rewrite(&self, probe: &AppProbe) -> Rewrite {
        let mut to = json!({"path": path(&probe.container, probe.kind), "port": ports::ADMIN});
        if let Some(key) = &probe.key {
            to["httpHeaders"] = json!([{"name": KEY_HEADER, "value": key}]);
        }
        let mut at = vec!["spec".to_owned(), self.list.to_owned(), self.index.to_string()];
        if self.kind.is_handler() {
            at.push("lifecycle".to_owned());
        }
        at.push(self.field.to_owned());
        let from = match self.action {
            Action::Http(_) => "httpGet",
            Action::Tcp(_) => "tcpSocket",
            Action::Grpc(_) => "grpc",
        };
        Rewrite { at, from, to }
    }

    /// The exception for what kubelet asks itself. HTTPS has none: what is in the app's own TLS cannot be looked at.
    fn let_in(&self) -> Option<LetIn> {
        if self.host().is_some() {
            return None;
        }
        let mut entry = LetIn {
            port: self.port().filter(|port| !is_sidecars(*port))?,
            ..LetIn::default()
        };
        match self.action {
            Action::Http(http) if is_https(http) => return None,
            Action::Http(http) => entry.target = Some(http_get(http)?.target),
            Action::Tcp(_) => {}
            Action::Grpc(_) => entry.path = Some(GRPC_HEALTH),
        }
        Some(entry)
    }
}

/// The app does not listen there.
fn is_sidecars(port: u16) -> bool {
    [ports::OUTBOUND, ports::INBOUND, ports::ADMIN].contains(&port)
}

fn is_https(http: &HTTPGetAction) -> bool {
    http.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"))
}

fn http_get(http: &HTTPGetAction) -> Option<HttpGet> {
    let headers = http.http_headers.iter().flatten();
    Some(HttpGet {
        target: request_target(http.path.as_deref().unwrap_or("/"))?,
        tls: is_https(http),
        headers: headers.map(|h| (h.name.clone(), h.value.clone())).collect(),
    })
}

#[cfg(test)]
mod tests;
