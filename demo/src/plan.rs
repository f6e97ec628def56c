//! Who runs where: the shop's services, a sidecar beside each, the issuer, and the ports of all of them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context;
use outrigger_api::spiffe::SpiffeId;
use serde::Serialize;

pub(super) const TRUST_DOMAIN: &str = "demo.outrigger";
pub(super) const NAMESPACE: &str = "shop";
pub(super) const ISSUER_NAMESPACE: &str = "outrigger";
pub(super) const ISSUER_ACCOUNT: &str = "outrigger-controller";

/// Who calls whom, and what they speak. `load` is the customers: it has a sidecar, and no app to protect.
pub(super) const CALLS: [Call; 4] = [
    Call {
        from: "load",
        to: "web",
        protocol: "http1",
    },
    Call {
        from: "web",
        to: "orders",
        protocol: "http1",
    },
    Call {
        from: "orders",
        to: "inventory",
        protocol: "http1",
    },
    Call {
        from: "orders",
        to: "payments",
        protocol: "http2",
    },
];
/// The apps and their sidecars.
pub(super) const SERVICES: [&str; 4] = ["web", "orders", "inventory", "payments"];
/// All sidecars.
pub(super) const SIDECARS: [&str; 5] = ["load", "web", "orders", "inventory", "payments"];

pub(super) struct Call {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) protocol: &'static str,
}

/// Every address of the demo that another process must know.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) issuer: SocketAddr,
    apps: Vec<SocketAddr>,
    inbound: Vec<SocketAddr>,
    outbound: Vec<SocketAddr>,
    admin: Vec<SocketAddr>,
}

impl Plan {
    /// Chooses free ports. Another process may take one before ours does; then the start is tried again with others.
    pub(super) fn new() -> anyhow::Result<Self> {
        let count = 1 + 2 * SERVICES.len() + CALLS.len() + SIDECARS.len();
        let mut ports = free_ports(count)?.into_iter();
        let mut take = |count| ports.by_ref().take(count).collect::<Vec<_>>();
        Ok(Self {
            apps: take(SERVICES.len()),
            inbound: take(SERVICES.len()),
            outbound: take(CALLS.len()),
            admin: take(SIDECARS.len()),
            issuer: take(1).first().copied().context("too few ports")?,
        })
    }

    /// Where the service's app listens. In a mesh only its sidecar calls it there.
    pub(super) fn app(&self, service: &str) -> Option<SocketAddr> {
        at(&SERVICES, service, &self.apps)
    }

    /// Where the sidecar of `from` takes calls to `to`.
    pub(super) fn outbound(&self, from: &str, to: &str) -> Option<SocketAddr> {
        let call = CALLS.iter().position(|call| call.from == from && call.to == to)?;
        self.outbound.get(call).copied()
    }

    /// The sidecars and their admin addresses.
    pub(super) fn admins(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        SIDECARS.into_iter().zip(self.admin.iter().copied())
    }

    /// What the shop's binary is told to run this service.
    pub(super) fn app_arguments(&self, service: &str, seed: Option<u64>) -> Vec<String> {
        let url = |to: &str| self.outbound(service, to).map(|outbound| format!("http://{outbound}"));
        let listen = self.app(service).map(|app| app.to_string());
        let seed = seed
            .filter(|_| ["inventory", "payments"].contains(&service))
            .map(|seed| seed.to_string());
        let options = [
            ("--listen", listen),
            ("--orders-url", url("orders")),
            ("--inventory-url", url("inventory")),
            ("--payments-url", url("payments")),
            ("--seed", seed),
        ];
        let given = options
            .into_iter()
            .filter_map(|(option, value)| Some([option.to_owned(), value?]));
        std::iter::once(service.to_owned()).chain(given.flatten()).collect()
    }

    /// The standalone file of this sidecar. `directory` holds its token and the trust bundle.
    pub(super) fn sidecar_yaml(&self, name: &str, directory: &Path, otlp: SocketAddr) -> anyhow::Result<String> {
        let file = |name: String| directory.join(name).to_string_lossy().into_owned();
        let calls = || CALLS.iter().zip(&self.outbound).filter(|(call, _)| call.from == name);
        let services = calls().map(|(call, _)| {
            let inbound = at(&SERVICES, call.to, &self.inbound).context("the service has no sidecar")?;
            let endpoint = EndpointYaml {
                address: inbound,
                identity: identity(call.to)?,
            };
            Ok(ServiceYaml {
                name: call.to,
                protocol: call.protocol,
                endpoints: [endpoint],
            })
        });
        let inbound = at(&SERVICES, name, &self.inbound).zip(self.app(name));
        let yaml = SidecarYaml {
            workload: WorkloadYaml {
                name,
                namespace: NAMESPACE,
                service_account: name,
                pod: format!("{name}-1"),
                trust_domain: TRUST_DOMAIN,
            },
            admin: at(&SIDECARS, name, &self.admin).context("the sidecar has no admin port")?,
            identity: IdentityYaml {
                issuer: self.issuer,
                issuer_id: SpiffeId::new(TRUST_DOMAIN, ISSUER_NAMESPACE, ISSUER_ACCOUNT)?.to_string(),
                token_file: file(format!("{name}.token")),
                trust_bundle_file: file("ca.pem".to_owned()),
            },
            outbound: calls()
                .map(|(call, listen)| OutboundYaml {
                    listen: *listen,
                    service: call.to,
                })
                .collect(),
            inbound: inbound
                .into_iter()
                .map(|(listen, app)| InboundYaml { listen, app })
                .collect(),
            services: services.collect::<anyhow::Result<_>>()?,
            tracing: TracingYaml {
                endpoint: format!("http://{otlp}"),
                protocol: "grpc",
                sample_ratio: 1.0,
            },
            mtls: "strict",
            drain_timeout: "3s",
        };
        Ok(serde_saphyr::to_string(&yaml)?)
    }
}

/// The SPIFFE ID of a service of the shop.
pub(super) fn identity(service: &str) -> anyhow::Result<String> {
    Ok(SpiffeId::new(TRUST_DOMAIN, NAMESPACE, service)?.to_string())
}

fn at(names: &[&str], name: &str, addresses: &[SocketAddr]) -> Option<SocketAddr> {
    addresses.get(names.iter().position(|n| *n == name)?).copied()
}

/// Free ports of 127.0.0.1, all different, below those that the kernel gives to outgoing connections: such a connection
/// cannot take one between the choice and its use.
fn free_ports(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..100 * count {
        if held.len() == count {
            break;
        }
        let port = rand::random_range(15_000..32_000);
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    }
    anyhow::ensure!(
        held.len() == count,
        "127.0.0.1 has too few free ports between 15000 and 32000"
    );
    held.iter().map(|listener| Ok(listener.local_addr()?)).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SidecarYaml<'a> {
    workload: WorkloadYaml<'a>,
    admin: SocketAddr,
    identity: IdentityYaml,
    outbound: Vec<OutboundYaml>,
    inbound: Vec<InboundYaml>,
    services: Vec<ServiceYaml>,
    tracing: TracingYaml,
    mtls: &'static str,
    drain_timeout: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadYaml<'a> {
    name: &'a str,
    namespace: &'static str,
    service_account: &'a str,
    pod: String,
    trust_domain: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IdentityYaml {
    issuer: SocketAddr,
    issuer_id: String,
    token_file: String,
    trust_bundle_file: String,
}

#[derive(Serialize)]
struct OutboundYaml {
    listen: SocketAddr,
    service: &'static str,
}

#[derive(Serialize)]
struct InboundYaml {
    listen: SocketAddr,
    app: SocketAddr,
}

#[derive(Serialize)]
struct ServiceYaml {
    name: &'static str,
    protocol: &'static str,
    endpoints: [EndpointYaml; 1],
}

#[derive(Serialize)]
struct EndpointYaml {
    address: SocketAddr,
    identity: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TracingYaml {
    endpoint: String,
    protocol: &'static str,
    sample_ratio: f64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;
    use std::path::Path;

    use outrigger_proxy::config::Config;

    use super::{CALLS, Plan, SERVICES, SIDECARS};

    #[test]
    fn ports_are_all_different() {
        let plan = Plan::new().unwrap();
        let lists = [&plan.apps, &plan.inbound, &plan.outbound, &plan.admin];
        let mut all: HashSet<_> = lists.into_iter().flatten().collect();
        all.insert(&plan.issuer);
        assert_eq!(all.len(), 2 * SERVICES.len() + CALLS.len() + SIDECARS.len() + 1);
    }

    #[test]
    fn every_sidecar_understands_its_file() {
        let plan = Plan::new().unwrap();
        for name in SIDECARS {
            let yaml = plan
                .sidecar_yaml(name, Path::new("/tmp/demo"), "127.0.0.1:4317".parse().unwrap())
                .unwrap();
            let config = Config::from_yaml(name, &yaml).unwrap_or_else(|errors| panic!("{errors:?} in\n{yaml}"));
            assert_eq!(&*config.workload.name, name);
            assert_eq!(
                config.outbound.len(),
                CALLS.iter().filter(|call| call.from == name).count()
            );
            assert_eq!(config.inbound.len(), usize::from(name != "load"));
        }
    }

    #[test]
    fn apps_call_their_sidecars() {
        let plan = Plan::new().unwrap();
        let arguments = plan.app_arguments("orders", Some(7)).join(" ");
        let app = plan.app("orders").unwrap();
        let inventory = plan.outbound("orders", "inventory").unwrap();
        let payments = plan.outbound("orders", "payments").unwrap();
        assert_eq!(
            arguments,
            format!("orders --listen {app} --inventory-url http://{inventory} --payments-url http://{payments}")
        );
        assert!(plan.app_arguments("inventory", Some(7)).join(" ").ends_with("--seed 7"));
    }
}
