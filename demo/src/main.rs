//! `outrigger-demo`: the demo by itself.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Outrigger's demo. The whole command line is `cargo run --release -p outrigger`.
#[derive(Parser, Debug)]
#[command(name = "outrigger-demo", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Demo(outrigger_demo::Command),
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(command) => command.run(),
        Command::Other(arguments) => Err(elsewhere(&arguments)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// `cargo run` without a package runs this program, so whoever wants another command comes here.
fn elsewhere(arguments: &[OsString]) -> anyhow::Error {
    let arguments: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    anyhow::anyhow!(
        "this program has the demo only: try cargo run --release -p outrigger -- {}",
        arguments.join(" ")
    )
}
