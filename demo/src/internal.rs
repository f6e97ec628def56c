//! The subcommands that the demo starts itself with, one for each process. They end with the demo, even if it is killed.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use outrigger_api::spiffe::SpiffeId;
use outrigger_issuer::ca::Ca;
use outrigger_issuer::metrics::Metrics;
use outrigger_issuer::server::{ServerTls, serve};
use outrigger_issuer::service::{Issuer, StaticTokens};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::plan::{ISSUER_ACCOUNT, ISSUER_NAMESPACE, NAMESPACE, TRUST_DOMAIN};
use super::processes::PARENT;

const SVID_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The issuer of the demo.
#[derive(clap::Args, Debug)]
pub struct IssuerArgs {
    #[arg(long)]
    listen: SocketAddr,
    /// Holds `<service account>.token` for each sidecar; `ca.pem`, the trust bundle, is written there.
    #[arg(long)]
    directory: PathBuf,
}

/// The sidecar's own command line, without the name of the program.
#[derive(clap::Args, Debug)]
pub struct ProxyArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs a sidecar.
pub(crate) fn proxy(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    end_with_parent()?;
    let program = OsString::from("outrigger-proxy");
    Ok(outrigger_proxy::cli::main(
        std::iter::once(program).chain(args.arguments),
    ))
}

/// Runs a service of the shop.
pub(crate) fn shop(args: outrigger_shop::Args) -> anyhow::Result<ExitCode> {
    end_with_parent()?;
    log();
    runtime()?.block_on(outrigger_shop::run(args))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the issuer.
pub(crate) fn issuer(args: IssuerArgs) -> anyhow::Result<ExitCode> {
    end_with_parent()?;
    log();
    runtime()?.block_on(issue(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn issue(args: IssuerArgs) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminated = signal(SignalKind::terminate())?;
    let cancel = shutdown.clone();
    tokio::spawn(async move {
        terminated.recv().await;
        cancel.cancel();
    });
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("the issuer cannot listen on {}", args.listen))?;
    let ca = Ca::generate(TRUST_DOMAIN)?;
    std::fs::write(args.directory.join("ca.pem"), ca.bundle_pem())?;
    let (_never_changes, ca) = watch::channel(Arc::new(ca));
    let metrics = Arc::new(Metrics::default());
    let issuer = Issuer::new(
        ca.clone(),
        tokens(&args.directory)?,
        TRUST_DOMAIN,
        SVID_LIFETIME,
        metrics.clone(),
    );
    let id = SpiffeId::new(TRUST_DOMAIN, ISSUER_NAMESPACE, ISSUER_ACCOUNT)?;
    let tls = ServerTls {
        ca,
        id,
        ttl: SVID_LIFETIME,
        metrics,
    };
    serve(listener, tls, issuer, Routes::default(), shutdown).await
}

/// Each token file is the token of the service account that it is named after.
fn tokens(directory: &std::path::Path) -> anyhow::Result<StaticTokens> {
    let mut tokens = StaticTokens::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "token")
            && let Some(account) = path.file_stem().and_then(|stem| stem.to_str())
        {
            tokens = tokens.with(std::fs::read_to_string(&path)?.trim(), NAMESPACE, account);
        }
    }
    Ok(tokens)
}

/// Has the kernel kill this process when the demo ends, however it ends. It must be called before any thread is made.
fn end_with_parent() -> anyhow::Result<()> {
    let parent: i32 = std::env::var(PARENT)
        .ok()
        .and_then(|pid| pid.parse().ok())
        .context("this is a part of `outrigger demo`, which starts it by itself")?;
    set_pdeathsig(Signal::SIGKILL).context("cannot ask to be ended with the demo")?;
    // The demo may have ended before the kernel was asked.
    anyhow::ensure!(getppid().as_raw() == parent, "the demo has ended");
    Ok(())
}

fn log() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
