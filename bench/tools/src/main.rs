//! The small programs of `bench/`, in one: what each contender needs beside it, and the load that no packaged tool makes.

mod certs;
mod control;
mod linkerd;
mod load;
mod renew;
mod server;
mod token;

use clap::Parser;
use tokio::task::LocalSet;

#[derive(Parser)]
#[command(version, about)]
enum Command {
    /// Makes a CA and a certificate for each pod.
    Certs(certs::Options),
    /// Makes a key of an issuer of tokens, and one token.
    Token(token::Options),
    /// Is Outrigger's controller, with fixed answers.
    Control(control::Options),
    /// Is Linkerd's control plane, with fixed answers.
    LinkerdControl(linkerd::Options),
    /// Is an app that speaks HTTP/2, gRPC included.
    Http2Server(server::Options),
    /// Sends requests at a constant rate; latency counts from the intended moment.
    Rate(load::Rate),
    /// Sends each request on a new connection.
    Connect(load::Connect),
    /// Opens connections, uses each once, and keeps them.
    Hold(load::Hold),
    /// Renews SVIDs as sidecars do, at a real controller and a real kube-apiserver, and says what that costs them.
    Renew(renew::Options),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Certs(options) => certs::run(&options),
        Command::Token(options) => token::run(&options),
        Command::Control(options) => on_one_thread(control::run(options)),
        Command::LinkerdControl(options) => on_one_thread(linkerd::run(options)),
        Command::Http2Server(options) => on_one_thread(server::run(options)),
        Command::Rate(options) => load::rate(&options),
        Command::Connect(options) => load::connect(&options),
        Command::Hold(options) => load::hold(&options),
        Command::Renew(options) => on_one_thread(async { LocalSet::new().run_until(renew::run(options)).await }),
    }
}

fn on_one_thread(run: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run)
}
