//! The environment that the injector writes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use outrigger_api::probes::{APP_PROBES, AppProbe, GRPC_HEALTH, LET_IN};
use outrigger_api::spiffe::SpiffeId;
use outrigger_api::{labels, ports};
use outrigger_proxy_transport::room::Budget;
use serde::Deserialize;

use super::{Config, Destination, InboundDestination, InboundListener, LetIn, OutboundListener, Plaintext, limits};
use crate::discovery::DiscoveryConfig;
use crate::dns::HostPort;
use crate::identity::{FirstRoots, IdentityConfig};
use crate::model::Workload;
use crate::telemetry::{TracingConfig, TracingProtocol};

pub(super) fn parse(get: &dyn Fn(&str) -> Option<String>) -> Result<Config, Vec<String>> {
    let mut env = Env {
        get,
        errors: Vec::new(),
    };
    let config = env.config();
    match config {
        Some(config) if env.errors.is_empty() => Ok(config),
        _ => Err(env.errors),
    }
}

struct Env<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<String>,
}

impl Env<'_> {
    /// Reads every variable, so that every mistake is found. `None` only where `errors` says why.
    fn config(&mut self) -> Option<Config> {
        let namespace = self.required("OUTRIGGER_NAMESPACE", |text| Ok(Arc::<str>::from(text)));
        let service_account = self.required("OUTRIGGER_SERVICE_ACCOUNT", |text| Ok(Arc::<str>::from(text)));
        let trust_domain = self.or_default("OUTRIGGER_TRUST_DOMAIN", "cluster.local", |text| {
            Ok(Arc::<str>::from(text))
        });
        let pod = self.required("OUTRIGGER_POD", |text| Ok(Arc::<str>::from(text)));
        let name = self.optional("OUTRIGGER_WORKLOAD", |text| Ok(Arc::<str>::from(text)));
        let node = self.optional("OUTRIGGER_NODE", |text| Ok(Arc::<str>::from(text)));
        let pod_ips = self.required("OUTRIGGER_POD_IPS", pod_ips);
        let controller = self.required("OUTRIGGER_CONTROLLER", HostPort::from_str);
        let controller_id = self.required("OUTRIGGER_CONTROLLER_ID", limits::spiffe_id);
        let token_file = self.required("OUTRIGGER_TOKEN_FILE", |text| Ok(text.into()));
        let roots = self.roots();
        let tracing = self.tracing();
        let log = self.or_default("OUTRIGGER_LOG", "info", limits::log_filter);
        let access_log = self.or_default("OUTRIGGER_ACCESS_LOG", "false", boolean);
        let mtls = self.or_default("OUTRIGGER_MTLS", "permissive", limits::mtls);
        let forwarded_for = self.or_default("OUTRIGGER_FORWARDED_FOR", "Leave", limits::forwarded_for);
        let app_probes = self.or_default(APP_PROBES, "[]", app_probes);
        let let_in = self.or_default(LET_IN, "[]", let_in);
        let opaque_ports = self.or_default("OUTRIGGER_OPAQUE_PORTS", "", labels::parse_ports);
        let drain_timeout = self.or_default("OUTRIGGER_DRAIN_TIMEOUT", "30s", limits::drain_timeout);
        let detect_timeout = self.or_default("OUTRIGGER_DETECT_TIMEOUT", "1s", limits::detect_timeout);
        let native = self.or_default(labels::NATIVE_SIDECAR_VARIABLE, "false", boolean);
        let close_expired = self.or_default("OUTRIGGER_CLOSE_EXPIRED", "false", boolean);
        let workers = self.or_default("OUTRIGGER_WORKERS", "1", |text| {
            limits::workers(text.parse().map_err(|_| format!("{text:?} is not a number"))?)
        });

        let id = SpiffeId::new(
            trust_domain.as_deref()?,
            namespace.as_deref()?,
            service_account.as_deref()?,
        )
        .map_err(|error| {
            self.errors.push(format!(
                "OUTRIGGER_TRUST_DOMAIN, OUTRIGGER_NAMESPACE, OUTRIGGER_SERVICE_ACCOUNT: {error}"
            ));
        })
        .ok();
        let (controller, controller_id, pod_ips, pod) = (controller?, controller_id?, pod_ips?, pod?);
        Some(Config {
            outbound: outbound(&pod_ips),
            inbound: inbound(&pod_ips),
            admin: admin(&pod_ips),
            workload: Workload {
                name: name.unwrap_or_else(|| pod.clone()),
                namespace: namespace?,
                pod,
                service_account: service_account?,
                trust_domain: trust_domain?,
                node: node.unwrap_or_default(),
                pod_ips,
            },
            identity: IdentityConfig {
                id: id?,
                issuer: controller.clone(),
                issuer_id: controller_id.clone(),
                token_file: token_file?,
                roots: roots?,
            },
            discovery: DiscoveryConfig::Controller {
                address: controller,
                id: controller_id,
            },
            tracing,
            access_log: access_log?,
            log: log?,
            mtls: mtls?,
            forwarded_for: forwarded_for?,
            app_probes: app_probes?,
            let_in: let_in?,
            opaque_ports: opaque_ports?,
            workers: workers?,
            drain_timeout: drain_timeout?,
            detect_timeout: detect_timeout?,
            native: native?,
            close_expired: close_expired?,
            budget: Budget::default(),
            dns_servers: None,
        })
    }

    /// Where the environment has roots, no file that others may write is looked at.
    fn roots(&mut self) -> Option<FirstRoots> {
        let before = self.errors.len();
        match self.optional(labels::TRUST_BUNDLE_VARIABLE, limits::roots) {
            Some(roots) => {
                let kept = self.required("OUTRIGGER_TRUST_BUNDLE_KEPT", |text| Ok(text.into()))?;
                Some(FirstRoots::Given { roots, kept })
            }
            // Of `outrigger inject`, or of the injector of the version before.
            None if self.errors.len() == before => {
                self.required("OUTRIGGER_TRUST_BUNDLE_FILE", |text| Ok(FirstRoots::File(text.into())))
            }
            None => None,
        }
    }

    fn tracing(&mut self) -> Option<TracingConfig> {
        let endpoint = self.optional("OUTRIGGER_TRACING_ENDPOINT", limits::tracing_endpoint);
        let protocol = self.or_default("OUTRIGGER_TRACING_PROTOCOL", "grpc", limits::tracing_protocol);
        let ratio = self.or_default("OUTRIGGER_TRACING_SAMPLE_RATIO", "1", |text| {
            limits::sample_ratio(text.parse().map_err(|_| format!("{text:?} is not a number"))?)
        });
        let not_sampled = self.or_default("OUTRIGGER_TRACING_NOT_SAMPLED", "Omit", limits::not_sampled);
        let name = "OUTRIGGER_TRACING_CA_CERTIFICATES";
        let certificates = self.optional(name, limits::ca_certificates).unwrap_or_default();
        let used = { endpoint.as_ref() }.map_or(Ok(()), |to| limits::ca_certificates_are_used(to, &certificates));
        if let Err(error) = used {
            self.errors.push(format!("{name}: {error}"));
        }
        Some(TracingConfig {
            endpoint: endpoint?,
            ca_certificates: certificates,
            protocol: protocol.unwrap_or(TracingProtocol::Grpc),
            sample_ratio: ratio?,
            not_sampled: not_sampled?,
        })
    }

    /// An empty variable is an absent one: that is what an empty value in a manifest is.
    fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = (self.get)(name).filter(|text| !text.trim().is_empty())?;
        parse(text.trim())
            .map_err(|error| self.errors.push(format!("{name}: {error}")))
            .ok()
    }

    fn required<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let before = self.errors.len();
        let value = self.optional(name, parse);
        if value.is_none() && self.errors.len() == before {
            self.errors.push(format!("{name}: is not set"));
        }
        value
    }

    fn or_default<T>(&mut self, name: &str, default: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let before = self.errors.len();
        let value = self.optional(name, &parse);
        if value.is_none() && self.errors.len() == before {
            return parse(default).ok();
        }
        value
    }
}

fn pod_ips(text: &str) -> Result<Vec<IpAddr>, String> {
    text.split(',')
        .map(|part| {
            let part = part.trim();
            part.parse().map_err(|_| format!("{part:?} is not an IP address"))
        })
        .collect()
}

/// Captured connections come from the pod itself: by loopback, of the families that the pod has.
fn outbound(pod_ips: &[IpAddr]) -> Vec<OutboundListener> {
    families(pod_ips, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
        .map(|ip| OutboundListener {
            listen: SocketAddr::new(ip, ports::OUTBOUND),
            to: Destination::Original,
        })
        .collect()
}

/// Captured connections come to the pod's address, or, from the pod itself, to loopback.
fn inbound(pod_ips: &[IpAddr]) -> Vec<InboundListener> {
    families(pod_ips, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED)
        .map(|ip| InboundListener {
            listen: SocketAddr::new(ip, ports::INBOUND),
            to: InboundDestination::Original,
        })
        .collect()
}

fn families(pod_ips: &[IpAddr], v4: Ipv4Addr, v6: Ipv6Addr) -> impl Iterator<Item = IpAddr> {
    let v4 = pod_ips.iter().any(IpAddr::is_ipv4).then_some(IpAddr::V4(v4));
    let v6 = pod_ips.iter().any(IpAddr::is_ipv6).then_some(IpAddr::V6(v6));
    v4.into_iter().chain(v6)
}

/// kubelet and Prometheus use the pod's first address.
fn admin(pod_ips: &[IpAddr]) -> SocketAddr {
    let ip: IpAddr = match pod_ips.first() {
        Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        Some(IpAddr::V4(_)) | None => Ipv4Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, ports::ADMIN)
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn app_probes(text: &str) -> Result<Vec<AppProbe>, String> {
    serde_json::from_str(text).map_err(|error| format!("is not a list of probes: {error}"))
}

fn let_in(text: &str) -> Result<Vec<LetIn>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        port: u16,
        path: Option<String>,
        target: Option<String>,
    }
    let written: Vec<Written> = serde_json::from_str(text)
        .map_err(|error| format!("is not a list like [{{\"port\":8080,\"target\":\"/ready\"}}]: {error}"))?;
    let what = |entry: Written| LetIn {
        port: entry.port,
        what: match (entry.target, entry.path) {
            (Some(target), _) => Plaintext::Get(target),
            (None, Some(path)) if path == GRPC_HEALTH => Plaintext::GrpcHealth,
            (None, Some(path)) => Plaintext::GetPath(path),
            (None, None) => Plaintext::Connection,
        },
    };
    Ok(written.into_iter().map(what).collect())
}
