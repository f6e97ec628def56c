//! Soaks a mesh: traffic of every kind through real sidecars, while replicas, network and controller fail at random. It ends
//! with 1 when something happened that must not.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use outrigger_tests::soak::{Listeners, be_sidecar, soak};

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// How long there are faults: "30m".
    #[arg(long = "for", default_value = "30s", value_parser = outrigger_api::duration::parse)]
    length: Duration,
    /// Requests a second. A build without optimisation takes about 7 ms of CPU time for each.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Makes the same faults and requests again.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Is one of its sidecars.
    #[command(hide = true)]
    Sidecar(Listeners),
}

fn main() -> Result<ExitCode> {
    let Arguments {
        part,
        length,
        rate,
        seed,
        json,
    } = Arguments::parse();
    if let Some(Part::Sidecar(listeners)) = part {
        return be_sidecar(listeners);
    }
    let seed = seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    eprintln!("seed {seed}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(soak(length, rate, seed))?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
