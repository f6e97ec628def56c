//! The controller's process: configuration, logging, run, signal, drain.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use outrigger_api::{duration, ports};
use outrigger_controller::app::{self, Config};
use outrigger_controller::objects::networks::Networks;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Outrigger's control plane: issues identities, and streams discovery and policy to the sidecars.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The controller's own namespace.
    #[arg(long, env = "OUTRIGGER_NAMESPACE", default_value = "outrigger")]
    namespace: String,
    /// The controller's own pod. Not the host's name, which is cut at 63 characters.
    #[arg(long, env = "OUTRIGGER_POD", default_value = "")]
    pod: String,
    /// The controller's own ServiceAccount.
    #[arg(long, env = "OUTRIGGER_SERVICE_ACCOUNT", default_value = "outrigger-controller")]
    service_account: String,
    /// The trust domain of all SVIDs.
    #[arg(long, env = "OUTRIGGER_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// The Secret with the CA (tls.crt, tls.key; ca.crt for the roots). It has to be there; where it is empty, it is filled.
    #[arg(long, env = "OUTRIGGER_CA_SECRET", default_value = "outrigger-ca")]
    ca_secret: String,
    /// Where sidecars connect to.
    #[arg(long, env = "OUTRIGGER_LISTEN", default_value_t = SocketAddr::new([0; 16].into(), ports::CONTROLLER))]
    listen: SocketAddr,
    /// Where probes and metrics are served.
    #[arg(long, env = "OUTRIGGER_ADMIN", default_value_t = SocketAddr::new([0; 16].into(), ports::ADMIN))]
    admin: SocketAddr,
    /// The networks of the cluster's Services and pods (CIDR, separated by commas), beside its ServiceCIDRs. Sidecars pass on
    /// what is outside without asking. Empty: they ask for every address.
    #[arg(
        long,
        env = "OUTRIGGER_CLUSTER_NETWORKS",
        default_value = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fc00::/7"
    )]
    cluster_networks: Networks,
    /// How long SVIDs live: 10m to 720h.
    #[arg(long, env = "OUTRIGGER_SVID_TTL", default_value = "8h", value_parser = ttl)]
    svid_ttl: Duration,
    /// Refuse a pod's token from the address of another pod, instead of logging it.
    #[arg(long, env = "OUTRIGGER_CHECK_ADDRESS", action = clap::ArgAction::Set, default_value_t = false)]
    check_address: bool,
    /// Whether a Service of the type ExternalName may be the backend of a route.
    #[arg(long, env = "OUTRIGGER_ALLOW_EXTERNAL_NAME", default_value_t = false, action = clap::ArgAction::Set)]
    allow_external_name: bool,
    /// What is logged, like "info" or "outrigger_controller=debug".
    #[arg(long, env = "OUTRIGGER_LOG", default_value = "info")]
    log: EnvFilter,
}

fn ttl(text: &str) -> Result<Duration, String> {
    duration::parse_within(text, Duration::from_secs(600)..=Duration::from_secs(720 * 3600))
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(arguments.log.clone())
        .init();
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!(error = %format!("{e:#}"), "the controller ends");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // kube takes the process's default provider.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("another cryptography provider is installed already");
    }
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            tracing::info!("shutting down");
            shutdown.cancel();
        }
    });
    let client = kube::Client::try_default()
        .await
        .context("finding the API server: run in a cluster, or set KUBECONFIG")?;
    let config = Config {
        namespace: arguments.namespace,
        pod: arguments.pod,
        service_account: arguments.service_account,
        trust_domain: arguments.trust_domain,
        ca_secret: arguments.ca_secret,
        listen: arguments.listen,
        admin: arguments.admin,
        cluster_networks: arguments.cluster_networks,
        svid_ttl: arguments.svid_ttl,
        allow_external_names: arguments.allow_external_name,
        check_address: arguments.check_address,
    };
    app::run(config, client, shutdown).await
}
