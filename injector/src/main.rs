//! The life of the process: flags, logging, settings, serve, signal, drain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use outrigger_api::ports;
use outrigger_injector::app::{self, Options};
use outrigger_injector::selftest;
use outrigger_injector::settings::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Outrigger's admission webhook: puts the sidecar into the pods of labelled namespaces.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// What is logged: "info", "debug", "outrigger_injector=debug".
    #[arg(
        long,
        env = "OUTRIGGER_LOG",
        default_value = "info",
        value_name = "FILTER",
        global = true
    )]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the webhook.
    Serve(Serve),
    /// Ask kube-apiserver, in a dry run, for a pod, and look whether it has a sidecar (`helm test` runs this).
    Test(Test),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// The settings of the sidecars, a YAML file (the chart mounts it from a ConfigMap).
    #[arg(long, env = "OUTRIGGER_SETTINGS", value_name = "FILE")]
    settings: PathBuf,
    /// Where the webhook listens for HTTPS [default: all addresses, port 14443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Where /livez, /readyz and /metrics are [default: all addresses, port 14190]
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
}

#[derive(Debug, clap::Args)]
struct Test {
    /// Where the pod would be made.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// The controller's gRPC port, which must accept connections.
    #[arg(long, value_name = "HOST:PORT")]
    controller: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::builder()
        .parse(&args.log)
        .context("--log")?;
    tracing_subscriber::fmt().json().with_env_filter(filter).init();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // an error: there is one already
    let client = async || kube::Client::try_default().await.context("connecting to Kubernetes");
    match args.command {
        Command::Serve(args) => serve(args, client().await?).await,
        Command::Test(args) => selftest::run(client().await?, &args.namespace, &args.controller).await,
    }
}

async fn serve(args: Serve, client: kube::Client) -> anyhow::Result<()> {
    let settings = Settings::load(&args.settings)?;
    let any = any_address();
    let options = Options::new(
        settings,
        args.listen.unwrap_or_else(|| SocketAddr::new(any, ports::WEBHOOK)),
        args.admin.unwrap_or_else(|| SocketAddr::new(any, ports::ADMIN)),
    );
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let running = app::start(options, client, shutdown.clone()).await?;
    tracing::info!(webhook = %running.webhook, admin = %running.admin, "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending");
    shutdown.cancel();
    running.ended().await;
    Ok(())
}

/// All addresses of both families; of IPv4 alone where the kernel has no IPv6.
fn any_address() -> IpAddr {
    match std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}
