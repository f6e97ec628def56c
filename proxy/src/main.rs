//! The sidecar's program: see `outrigger_proxy::cli`.

use std::process::ExitCode;

/// Each request takes and frees buffers of 8 KiB, which glibc's joins and cuts again: a fifth of the CPU with a thousand
/// connections.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Where the system gives huge pages unasked, an idle sidecar would fill a small part of each. Without, it is slower.
    let _ = nix::sys::prctl::set_thp_disable(true);
    outrigger_proxy::cli::main(std::env::args_os())
}
