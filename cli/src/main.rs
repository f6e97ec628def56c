//! `outrigger`: the command line.

#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_types))]

mod authz;
mod check;
mod cluster;
mod crds;
mod inject;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Outrigger, a service mesh for Kubernetes: mutual TLS, retries, timeouts and traces by a small sidecar.
#[derive(Parser, Debug)]
#[command(
    name = "outrigger",
    version,
    propagate_version = true,
    after_help = "Start with `outrigger demo`: it needs no cluster and no root."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Demo(outrigger_demo::Command),
    Inject(inject::Args),
    Check(check::Args),
    Authz(authz::Args),
    /// Print the custom resource definitions, for `kubectl apply --server-side --force-conflicts -f -`.
    Crds,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(command) => command.run(),
        Command::Inject(args) => inject::run(args).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => runtime().and_then(|runtime| runtime.block_on(check::run(args))),
        Command::Authz(args) => runtime().and_then(|runtime| runtime.block_on(authz::run(args))),
        Command::Crds => crds::run().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
