//! `outrigger-shop <service>`: see the library.

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    outrigger_shop::run(outrigger_shop::Args::parse()).await
}
