//! The file of a standalone sidecar.

mod access;
mod rate_limits;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_api::discovery as proto;
use outrigger_api::policy::TrafficPolicySpec;
use outrigger_api::spiffe::SpiffeId;
use outrigger_api::{labels, ports};
use outrigger_proxy_transport::room::Budget;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use self::access::AccessPolicyEntry;
use self::rate_limits::RateLimitPolicyEntry;
use super::{Config, Destination, InboundDestination, InboundListener, Mtls, OutboundListener, limits};
use crate::discovery::{DiscoveryConfig, StaticTargets};
use crate::dns::HostPort;
use crate::identity::{FirstRoots, IdentityConfig};
use crate::model::{Target, Workload, from_proto};
use crate::telemetry::{TracingConfig, TracingProtocol};

pub(super) fn parse(name: &str, text: &str) -> Result<Config, Vec<String>> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| vec![structure(name, text, &error)])?;
    let mut reader = Reader {
        name,
        errors: Vec::new(),
    };
    match reader.config(file) {
        Some(config) if reader.errors.is_empty() => Ok(config),
        _ => Err(reader.errors),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    workload: WorkloadEntry,
    admin: Option<Spanned<String>>,
    identity: IdentityEntry,
    #[serde(default)]
    outbound: Vec<OutboundEntry>,
    #[serde(default)]
    inbound: Vec<InboundEntry>,
    #[serde(default)]
    services: Vec<ServiceEntry>,
    #[serde(default)]
    access_policies: Vec<AccessPolicyEntry>,
    #[serde(default)]
    rate_limit_policies: Vec<RateLimitPolicyEntry>,
    tracing: Option<TracingEntry>,
    #[serde(default)]
    access_log: bool,
    log: Option<Spanned<String>>,
    mtls: Option<Spanned<String>>,
    forwarded_for: Option<Spanned<String>>,
    opaque_ports: Option<Spanned<String>>,
    workers: Option<Spanned<u64>>,
    drain_timeout: Option<Spanned<String>>,
    detect_timeout: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorkloadEntry {
    name: Spanned<String>,
    namespace: Option<String>,
    service_account: Option<String>,
    pod: Option<String>,
    trust_domain: Option<String>,
}

impl WorkloadEntry {
    fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    fn trust_domain(&self) -> &str {
        self.trust_domain.as_deref().unwrap_or("cluster.local")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IdentityEntry {
    issuer: Spanned<String>,
    issuer_id: Spanned<String>,
    token_file: PathBuf,
    trust_bundle_file: PathBuf,
    #[serde(default)]
    close_expired: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OutboundEntry {
    listen: Spanned<String>,
    service: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InboundEntry {
    listen: Spanned<String>,
    app: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceEntry {
    name: Spanned<String>,
    namespace: Option<String>,
    port: Option<u16>,
    protocol: Option<Spanned<String>>,
    #[serde(default)]
    endpoints: Vec<EndpointEntry>,
    dns: Option<DnsEntry>,
    policy: Option<Spanned<TrafficPolicySpec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EndpointEntry {
    address: Spanned<String>,
    identity: Option<Spanned<String>>,
    zone: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DnsEntry {
    host: String,
    port: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TracingEntry {
    endpoint: Spanned<String>,
    ca_certificates: Option<Spanned<String>>,
    protocol: Option<Spanned<String>>,
    sample_ratio: Option<Spanned<f64>>,
    not_sampled: Option<Spanned<String>>,
}

/// Collects the mistakes, each as "file:line: field: what".
struct Reader<'a> {
    name: &'a str,
    errors: Vec<String>,
}

impl Reader<'_> {
    /// `None` only where `errors` says why.
    fn config(&mut self, file: File) -> Option<Config> {
        let folder = Path::new(self.name).parent().unwrap_or(Path::new("")).to_owned();
        let services = self.services(&file.services, &file.workload);
        let access = self.access(&file.access_policies, &file.workload);
        let limits = self.rate_limits(&file.rate_limit_policies, &file.workload);
        let outbound = self.outbound(&file.outbound, &services);
        let inbound = self.inbound(&file.inbound);
        let workload_id = self.workload(&file.workload);
        let issuer = self.field("identity.issuer", &file.identity.issuer, |text| {
            text.parse::<HostPort>()
        });
        let issuer_id = self.field("identity.issuerId", &file.identity.issuer_id, |text| {
            limits::spiffe_id(text)
        });
        let tracing = file.tracing.as_ref().and_then(|entry| self.tracing(entry));
        let admin = match &file.admin {
            Some(admin) => self.field("admin", admin, |text| socket(text)),
            None => Some(SocketAddr::from(([127, 0, 0, 1], ports::ADMIN))),
        };
        let log = self.optional("log", file.log.as_ref(), |text| limits::log_filter(text));
        let mtls = self.optional("mtls", file.mtls.as_ref(), |text| limits::mtls(text));
        let forwarded_for = self.optional("forwardedFor", file.forwarded_for.as_ref(), |text| {
            limits::forwarded_for(text)
        });
        let opaque_ports = self.optional("opaquePorts", file.opaque_ports.as_ref(), |text| {
            labels::parse_ports(text)
        });
        let workers = self.optional("workers", file.workers.as_ref(), |&number| limits::workers(number));
        let drain = self.optional("drainTimeout", file.drain_timeout.as_ref(), |text| {
            limits::drain_timeout(text)
        });
        let detect = self.optional("detectTimeout", file.detect_timeout.as_ref(), |text| {
            limits::detect_timeout(text)
        });

        let (workload, id) = workload_id?;
        Some(Config {
            workload,
            outbound,
            inbound,
            admin: admin?,
            identity: IdentityConfig {
                id,
                issuer: issuer?,
                issuer_id: issuer_id?,
                token_file: folder.join(file.identity.token_file),
                roots: FirstRoots::File(folder.join(file.identity.trust_bundle_file)),
            },
            discovery: DiscoveryConfig::Standalone(StaticTargets {
                services,
                access,
                limits,
            }),
            tracing,
            access_log: file.access_log,
            log: log.unwrap_or_else(|| "info".to_owned()),
            mtls: mtls.unwrap_or(Mtls::Permissive),
            forwarded_for: forwarded_for.unwrap_or_default(),
            app_probes: Vec::new(),
            let_in: Vec::new(),
            opaque_ports: opaque_ports.unwrap_or_default(),
            workers: workers.unwrap_or(1),
            drain_timeout: drain.unwrap_or(std::time::Duration::from_secs(30)),
            detect_timeout: detect.unwrap_or(std::time::Duration::from_secs(1)),
            native: false,
            close_expired: file.identity.close_expired,
            budget: Budget::default(),
            dns_servers: None,
        })
    }

    fn workload(&mut self, entry: &WorkloadEntry) -> Option<(Workload, SpiffeId)> {
        let name = &entry.name.value;
        let or_name = |text: &Option<String>| Arc::<str>::from(text.as_deref().unwrap_or(name));
        let workload = Workload {
            name: name.as_str().into(),
            namespace: entry.namespace().into(),
            pod: or_name(&entry.pod),
            service_account: or_name(&entry.service_account),
            trust_domain: entry.trust_domain().into(),
            node: "".into(),
            pod_ips: Vec::new(),
        };
        let id = SpiffeId::new(&workload.trust_domain, &workload.namespace, &workload.service_account);
        match id {
            Ok(id) => Some((workload, id)),
            Err(error) => {
                self.wrong("workload", entry.name.referenced, &error.to_string());
                None
            }
        }
    }

    fn outbound(
        &mut self,
        entries: &[OutboundEntry],
        services: &HashMap<Arc<str>, Arc<Target>>,
    ) -> Vec<OutboundListener> {
        let mut listeners = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let listen = self.field(&format!("outbound[{index}].listen"), &entry.listen, |text| socket(text));
            match (services.get_key_value(entry.service.value.as_str()), listen) {
                (Some((name, _)), Some(listen)) => listeners.push(OutboundListener {
                    listen,
                    to: Destination::Named(name.clone()),
                }),
                (Some(_), None) => {}
                (None, _) => self.wrong(
                    &format!("outbound[{index}].service"),
                    entry.service.referenced,
                    &format!("{:?} is not the name of one of the services", entry.service.value),
                ),
            }
        }
        listeners
    }

    fn inbound(&mut self, entries: &[InboundEntry]) -> Vec<InboundListener> {
        let mut listeners = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let listen = self.field(&format!("inbound[{index}].listen"), &entry.listen, |text| socket(text));
            let app = self.field(&format!("inbound[{index}].app"), &entry.app, |text| socket(text));
            if let (Some(listen), Some(app)) = (listen, app) {
                listeners.push(InboundListener {
                    listen,
                    to: InboundDestination::Fixed(app),
                });
            }
        }
        listeners
    }

    fn tracing(&mut self, entry: &TracingEntry) -> Option<TracingConfig> {
        let endpoint = self.field("tracing.endpoint", &entry.endpoint, |text| {
            limits::tracing_endpoint(text)
        });
        let protocol = self.optional("tracing.protocol", entry.protocol.as_ref(), |text| {
            limits::tracing_protocol(text)
        });
        let ratio = self.optional("tracing.sampleRatio", entry.sample_ratio.as_ref(), |&ratio| {
            limits::sample_ratio(ratio)
        });
        let not_sampled = self.optional("tracing.notSampled", entry.not_sampled.as_ref(), |text| {
            limits::not_sampled(text)
        });
        let certificates = self.optional("tracing.caCertificates", entry.ca_certificates.as_ref(), |text| {
            let certificates = limits::ca_certificates(text)?;
            if let Some(endpoint) = &endpoint {
                limits::ca_certificates_are_used(endpoint, &certificates)?;
            }
            Ok(certificates)
        });
        Some(TracingConfig {
            endpoint: endpoint?,
            ca_certificates: certificates.unwrap_or_default(),
            protocol: protocol.unwrap_or(TracingProtocol::Grpc),
            sample_ratio: ratio.unwrap_or(1.0),
            not_sampled: not_sampled.unwrap_or_default(),
        })
    }

    /// Services become what discovery would stream, so that there is one conversion.
    fn services(&mut self, entries: &[ServiceEntry], workload: &WorkloadEntry) -> HashMap<Arc<str>, Arc<Target>> {
        let mut services = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let path = format!("services[{index}]");
            let target = self.service(&path, entry, workload);
            let name = Arc::<str>::from(entry.name.value.as_str());
            if services.insert(name, Arc::new(target)).is_some() {
                let wrong = format!("{:?} is there twice", entry.name.value);
                self.wrong(&format!("{path}.name"), entry.name.referenced, &wrong);
            }
        }
        services
    }

    fn service(&mut self, path: &str, entry: &ServiceEntry, workload: &WorkloadEntry) -> Target {
        let protocol = self.optional(&format!("{path}.protocol"), entry.protocol.as_ref(), |text| {
            protocol(text)
        });
        let mut first_port = entry.dns.as_ref().map(|dns| dns.port);
        let mut endpoints = Vec::new();
        for (index, endpoint) in entry.endpoints.iter().enumerate() {
            let path = format!("{path}.endpoints[{index}]");
            let address = self.field(&format!("{path}.address"), &endpoint.address, |text| socket(text));
            let identity = self.optional(&format!("{path}.identity"), endpoint.identity.as_ref(), |text| {
                limits::spiffe_id(text)
            });
            first_port = first_port.or(address.map(|address| address.port()));
            endpoints.push(proto::Endpoint {
                address: address.map(|address| address.to_string()).unwrap_or_default(),
                identity: identity.map(|id| id.to_string()).unwrap_or_default(),
                zone: endpoint.zone.clone().unwrap_or_default(),
                remote: false,
                pod: String::new(),
            });
        }
        let kind = match (&entry.dns, entry.endpoints.is_empty()) {
            (None, _) => proto::backend::Kind::Endpoints(proto::Endpoints { endpoints }),
            (Some(dns), true) => proto::backend::Kind::Dns(proto::DnsName {
                host: dns.host.clone(),
                port: dns.port.into(),
            }),
            (Some(_), false) => {
                self.wrong(
                    path,
                    entry.name.referenced,
                    "has both endpoints and dns; give one of them",
                );
                return Target::External;
            }
        };
        let policy = entry
            .policy
            .as_ref()
            .and_then(|spec| self.policy(&format!("{path}.policy"), spec));
        let name = proto::ServiceRef {
            namespace: entry
                .namespace
                .clone()
                .unwrap_or_else(|| workload.namespace().to_owned()),
            name: entry.name.value.clone(),
            port: entry.port.or(first_port).unwrap_or(0).into(),
        };
        Target::Service(Arc::new(from_proto::service(&proto::Service {
            r#ref: Some(name.clone()),
            protocol: protocol.unwrap_or(proto::Protocol::Unspecified).into(),
            routes: Vec::new(),
            byte_routes: Vec::new(),
            backends: vec![proto::Backend {
                r#ref: Some(name),
                policy: None,
                kind: Some(kind),
                client_affinity: false,
                tls: None,
            }],
            policy,
        })))
    }

    fn policy(&mut self, path: &str, spec: &Spanned<TrafficPolicySpec>) -> Option<proto::Policy> {
        if !spec.value.target_refs.is_empty() {
            let wrong = "belongs to the service that it stands in; leave it out";
            self.wrong(&format!("{path}.targetRefs"), spec.referenced, wrong);
        }
        let fallback = spec.value.fallback.as_ref();
        if fallback.is_some_and(|fallback| fallback.backend_refs.is_some()) {
            let wrong = "services of this file have no other backends; give a response";
            self.wrong(&format!("{path}.fallback.backendRefs"), spec.referenced, wrong);
        }
        match spec.value.to_proto() {
            Ok(mut policy) => {
                if let Some(sessions) = &mut policy.session_persistence {
                    // No controller says it. So sessions end with this process.
                    sessions.key = vec![0; 32];
                    if aws_lc_rs::rand::fill(&mut sessions.key).is_err() {
                        let none = format!("{path}.sessionPersistence: this system has no random numbers for its key");
                        self.wrong_at(spec.referenced, &none);
                    }
                }
                Some(policy)
            }
            Err(errors) => {
                for error in errors {
                    self.wrong_at(spec.referenced, &format!("{path}.{error}"));
                }
                None
            }
        }
    }

    fn field<T, U>(
        &mut self,
        path: &str,
        value: &Spanned<T>,
        parse: impl FnOnce(&T) -> Result<U, String>,
    ) -> Option<U> {
        parse(&value.value)
            .map_err(|error| self.wrong(path, value.referenced, &error))
            .ok()
    }

    fn optional<T, U>(
        &mut self,
        path: &str,
        value: Option<&Spanned<T>>,
        parse: impl FnOnce(&T) -> Result<U, String>,
    ) -> Option<U> {
        self.field(path, value?, parse)
    }

    fn wrong(&mut self, path: &str, at: Location, what: &str) {
        self.wrong_at(at, &format!("{path}: {what}"));
    }

    fn wrong_at(&mut self, at: Location, what: &str) {
        self.errors.push(format!("{}:{}: {what}", self.name, at.line()));
    }
}

/// A mistake in the structure: the parser stops at it. The line itself is shown, because the message may not name the
/// field.
fn structure(name: &str, text: &str, error: &serde_saphyr::Error) -> String {
    let error = error.without_snippet();
    let Some(at) = error.location() else {
        return format!("{name}: {error}");
    };
    let line = usize::try_from(at.line()).unwrap_or(1);
    let source = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let source: String = source.trim().chars().take(100).collect();
    format!("{name}:{line}: {error} in `{source}`")
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not an address and a port, like \"127.0.0.1:7001\""))
}

fn protocol(text: &str) -> Result<proto::Protocol, String> {
    match text {
        "detect" => Ok(proto::Protocol::Unspecified),
        "http1" => Ok(proto::Protocol::Http1),
        "http2" => Ok(proto::Protocol::Http2),
        "tls" => Ok(proto::Protocol::Tls),
        "opaque" => Ok(proto::Protocol::Opaque),
        _ => Err(format!("{text:?} is none of detect, http1, http2, tls, opaque")),
    }
}
