//! The sidecar's program: see `outrigger_proxy::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    outrigger_proxy::cli::main(std::env::args_os())
}
