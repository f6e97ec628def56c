//! The two containers and their volumes, as JSON.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use outrigger_api::names::is_namespace;
use outrigger_api::probes::{APP_PROBES, LET_IN};
use outrigger_api::{labels, ports};
use serde_json::{Map, Value, json};

use super::annotations::Overrides;
use super::probes::Plan;
use super::{Given, INIT_CONTAINER, PROXY_CONTAINER, TOKEN_VOLUME, TRUST_VOLUME, dns, workload};
use crate::settings::{ForwardedFor, NotSampled, Resources, Settings};

/// Everything that a sidecar is made of.
pub(super) struct Parts<'a> {
    pub(super) pod: &'a Pod,
    /// The name of its namespace; empty where it is not known yet.
    pub(super) namespace: &'a str,
    pub(super) settings: &'a Settings,
    pub(super) overrides: &'a Overrides,
    pub(super) probes: &'a Plan,
    pub(super) given: Given<'a>,
}

const ENTRYPOINT: &str = "/outrigger-proxy";
const TOKEN_DIRECTORY: &str = "/var/run/secrets/outrigger";
const TRUST_DIRECTORY: &str = "/var/run/secrets/outrigger-trust";
/// Of the volume in which a sidecar keeps the trust bundle. It writes a new file before it removes the old one.
const KEPT_LIMIT: &str = "128Ki";
const _: () = assert!(2 * labels::MAX_TRUST_BUNDLE <= 128 * 1024, "two files fit");
/// Seconds. kubelet renews a token at 80 % of its life.
const TOKEN_LIFE: u32 = 3600;
const NAMESPACE_VARIABLE: &str = "OUTRIGGER_NAMESPACE";
/// How often kubelet asks a starting sidecar, once a second, before it starts it anew.
const STARTUP_TRIES: u32 = 120;

impl Parts<'_> {
    /// `outrigger-init`: runs as root with `NET_ADMIN` alone, and exits.
    pub(super) fn init_container(&self) -> Value {
        let overrides = self.overrides;
        let mut env = Env::default();
        env.unless_empty(labels::SKIP_INBOUND_PORTS_VARIABLE, &overrides.skip_inbound_ports);
        env.unless_empty("OUTRIGGER_SKIP_OUTBOUND_PORTS", &overrides.skip_outbound_ports);
        env.unless_empty("OUTRIGGER_SKIP_OUTBOUND_CIDRS", &overrides.skip_outbound_cidrs);
        env.unless_empty("OUTRIGGER_SKIP_UIDS", &overrides.skip_uids);
        let mut container = json!({
            "name": INIT_CONTAINER,
            "image": self.settings.image,
            "imagePullPolicy": self.settings.image_pull_policy.as_str(),
            "command": [ENTRYPOINT, "init"],
            "resources": resources(&overrides.resources),
            "securityContext": security_context(json!({
                "runAsUser": 0,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            })),
            "terminationMessagePolicy": "FallbackToLogsOnError",
        });
        if !env.0.is_empty() {
            container["env"] = Value::Array(env.0);
        }
        container
    }

    /// `outrigger-proxy`, as a native sidecar or as an ordinary container.
    pub(super) fn proxy_container(&self, controller_id: &str) -> Value {
        let probe = |path: &str| json!({"httpGet": {"path": path, "port": ports::ADMIN}});
        let mut container = json!({
            "name": PROXY_CONTAINER,
            "image": self.settings.image,
            "imagePullPolicy": self.settings.image_pull_policy.as_str(),
            "command": [ENTRYPOINT, "run"],
            "env": self.env(controller_id),
            "ports": [{"name": "outrigger-admin", "containerPort": ports::ADMIN, "protocol": "TCP"}],
            "resources": resources(&self.overrides.resources),
            "securityContext": security_context(json!({
                "runAsUser": ports::PROXY_UID,
                "runAsGroup": ports::PROXY_UID,
                "runAsNonRoot": true,
                "capabilities": {"drop": ["ALL"]},
            })),
            "startupProbe": with(probe("/readyz"), json!({"periodSeconds": 1, "failureThreshold": STARTUP_TRIES})),
            "readinessProbe": with(probe("/readyz"), json!({"periodSeconds": 10, "timeoutSeconds": 2})),
            // Slow to give up: a sidecar that is only short of CPU time is not helped by being killed.
            "livenessProbe": with(probe("/livez"), json!({"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6})),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                {"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": true},
                with(
                    json!({"name": TRUST_VOLUME, "mountPath": TRUST_DIRECTORY}),
                    if self.given.roots.is_some() { json!({}) } else { json!({"readOnly": true}) },
                ),
            ],
        });
        if self.overrides.native {
            container["restartPolicy"] = json!("Always");
        } else {
            // kubelet starts containers one after the other and waits for this handler.
            container["lifecycle"] = json!({"postStart": {"exec": {"command": [ENTRYPOINT, "wait"]}}});
        }
        container
    }

    fn env(&self, controller_id: &str) -> Value {
        let overrides = self.overrides;
        let mut env = Env::default();
        env.field(NAMESPACE_VARIABLE, "metadata.namespace");
        env.field("OUTRIGGER_POD", "metadata.name");
        env.field("OUTRIGGER_SERVICE_ACCOUNT", "spec.serviceAccountName");
        env.field("OUTRIGGER_NODE", "spec.nodeName");
        env.field("OUTRIGGER_POD_IPS", "status.podIPs");
        env.value("OUTRIGGER_WORKLOAD", workload::name(self.pod));
        env.value("OUTRIGGER_TRUST_DOMAIN", &self.settings.trust_domain);
        env.value("OUTRIGGER_CONTROLLER", self.controller());
        env.value("OUTRIGGER_CONTROLLER_ID", controller_id);
        env.value("OUTRIGGER_TOKEN_FILE", format!("{TOKEN_DIRECTORY}/token"));
        match self.given.roots {
            Some(roots) => {
                env.value(labels::TRUST_BUNDLE_VARIABLE, roots);
                env.value("OUTRIGGER_TRUST_BUNDLE_KEPT", format!("{TRUST_DIRECTORY}/roots.der"));
            }
            None => env.value(
                "OUTRIGGER_TRUST_BUNDLE_FILE",
                format!("{TRUST_DIRECTORY}/{}", labels::TRUST_BUNDLE_KEY),
            ),
        }
        if let Some(tracing) = &self.settings.tracing {
            let endpoint = in_namespace(&escaped(&tracing.endpoint), self.namespace);
            env.as_it_is("OUTRIGGER_TRACING_ENDPOINT", &endpoint);
            if !tracing.ca_certificates.is_empty() {
                env.value("OUTRIGGER_TRACING_CA_CERTIFICATES", &tracing.ca_certificates);
            }
            env.value("OUTRIGGER_TRACING_PROTOCOL", tracing.protocol.as_str());
            env.value("OUTRIGGER_TRACING_SAMPLE_RATIO", tracing.sample_ratio.to_string());
            if tracing.not_sampled == NotSampled::Pass {
                env.value("OUTRIGGER_TRACING_NOT_SAMPLED", "Pass");
            }
        }
        env.value("OUTRIGGER_LOG", &overrides.log_level);
        env.value("OUTRIGGER_ACCESS_LOG", overrides.access_log.to_string());
        env.value("OUTRIGGER_MTLS", overrides.mtls);
        if overrides.forwarded_for == ForwardedFor::Append {
            env.value("OUTRIGGER_FORWARDED_FOR", "Append");
        }
        for (name, value) in variables(self.probes) {
            env.value(name, value);
        }
        env.unless_empty("OUTRIGGER_OPAQUE_PORTS", &overrides.opaque_ports);
        env.value("OUTRIGGER_DRAIN_TIMEOUT", in_seconds(overrides.drain_timeout));
        if overrides.native {
            env.value(labels::NATIVE_SIDECAR_VARIABLE, "true");
        }
        if self.settings.close_expired {
            env.value("OUTRIGGER_CLOSE_EXPIRED", "true");
        }
        Value::Array(env.0)
    }

    /// Where the sidecar finds the controller.
    fn controller(&self) -> String {
        let by_address = self.pod.spec.as_ref().is_some_and(dns::is_outside);
        let address = self.given.controller.filter(|_| by_address);
        address.map_or_else(|| self.settings.controller(), |address| address.to_string())
    }

    /// The two volumes.
    pub(super) fn volumes(&self) -> [Value; 2] {
        let token = json!({
            "name": TOKEN_VOLUME,
            "projected": {"sources": [{"serviceAccountToken": {
                "audience": labels::TOKEN_AUDIENCE,
                "expirationSeconds": TOKEN_LIFE,
                "path": "token",
            }}]},
        });
        let trust = match self.given.roots {
            // In memory: on disk, the cluster autoscaler would take it for data, and leave the pod's node alone.
            Some(_) => json!({"name": TRUST_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": KEPT_LIMIT}}),
            None => json!({"name": TRUST_VOLUME, "configMap": {"name": labels::TRUST_BUNDLE_CONFIG_MAP}}),
        };
        [token, trust]
    }
}

/// What the sidecar is told of the app's probes. Both are there even where they are empty: so it is seen which sidecars know
/// them.
pub(super) fn variables(probes: &Plan) -> [(&'static str, String); 2] {
    [
        (APP_PROBES, json!(probes.asked).to_string()),
        (LET_IN, json!(probes.let_in).to_string()),
    ]
}

/// The URL of a collector. A host without a dot is a Service of the pod's own namespace, and is written out: the search domains of a
/// pod go on with those of its node, where a stranger may have that name.
fn in_namespace(endpoint: &str, namespace: &str) -> String {
    let uri: Option<http::Uri> = endpoint.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let name = host.to_ascii_lowercase();
    let is_service = is_namespace(&name) && name != "localhost";
    // What stands before the host where there is no user's name.
    let Some((scheme, rest)) = endpoint.split_once(&format!("://{host}")).filter(|_| is_service) else {
        return endpoint.to_owned();
    };
    match namespace {
        "" => format!("{scheme}://{host}.$({NAMESPACE_VARIABLE}).svc{rest}"),
        namespace => format!("{scheme}://{host}.{namespace}.svc{rest}"),
    }
}

/// Kubernetes expands $(NAME) in values, and makes one of two dollar signs; ours are meant as they stand.
pub(super) fn escaped(value: &str) -> String {
    value.replace('$', "$$")
}

/// The contrary of [`escaped`].
pub(super) fn unescaped(value: &str) -> String {
    value.replace("$$", "$")
}

/// Environment variables in the order in which they are added.
#[derive(Default)]
struct Env(Vec<Value>);

impl Env {
    fn value(&mut self, name: &str, value: impl Into<String>) {
        self.as_it_is(name, &escaped(&value.into()));
    }

    /// A value in which Kubernetes expands $(NAME).
    fn as_it_is(&mut self, name: &str, value: &str) {
        self.0.push(json!({"name": name, "value": value}));
    }

    fn unless_empty(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.value(name, value);
        }
    }

    fn field(&mut self, name: &str, path: &str) {
        self.0
            .push(json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}));
    }
}

fn security_context(own: Value) -> Value {
    with(
        json!({
            "allowPrivilegeEscalation": false,
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "RuntimeDefault"},
        }),
        own,
    )
}

fn resources(resources: &Resources) -> Value {
    let map = |cpu: &Option<String>, memory: &Option<String>| {
        let pairs = [("cpu", cpu), ("memory", memory)];
        let map: Map<_, _> = pairs
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_owned(), json!(v.as_ref()?))))
            .collect();
        Some(Value::Object(map)).filter(|m| *m != json!({}))
    };
    let mut value = json!({});
    if let Some(requests) = map(&resources.cpu_request, &resources.memory_request) {
        value["requests"] = requests;
    }
    if let Some(limits) = map(&resources.cpu_limit, &resources.memory_limit) {
        value["limits"] = limits;
    }
    value
}

fn in_seconds(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// `base` with the fields of `more`.
fn with(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}
