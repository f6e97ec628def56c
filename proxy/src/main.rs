//! The sidecar's program: see `outrigger_proxy::cli`.

use std::process::ExitCode;

/// Each request takes and frees buffers of 8 KiB, which glibc's joins and cuts again: a fifth of the CPU with a thousand
/// connections. Without huge pages, of which an idle sidecar would fill a small part of each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    outrigger_proxy::cli::main(std::env::args_os())
}
