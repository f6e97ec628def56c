//! Traffic capture: the nftables rules of a pod, made by `outrigger-proxy init`, the only part that needs NET_ADMIN.
//!
//! One table `inet outrigger` for IPv4 and IPv6. It is sent to the kernel by netlink as one transaction, so that there is
//! never a moment with half of it, and a second run replaces the first. Whatever goes wrong, the process says so and exits
//! with an error: the pod does not start, rather than to run uncaptured.
//!
//! | chain | captured | left alone |
//! |---|---|---|
//! | `outbound` (nat, output) | TCP of this pod's processes, to the outbound listener | the sidecar itself, so that nothing loops; excluded users; loopback, which is where a pod reaches itself; excluded ports and addresses |
//! | `inbound` (nat, prerouting) | TCP from elsewhere to one of the pod's addresses, to the inbound listener | loopback; the admin port; excluded ports |
//!
//! A connection from elsewhere straight to one of the sidecar's own listeners is dropped: it has no original destination,
//! and would make the sidecar call itself. So is one from elsewhere that is for another host: a pod does not route.

mod config;
mod netlink;
mod nftables;
mod rules;

use std::io;

pub use config::CaptureConfig;

use netlink::{Answer, Netfilter};
use rules::Rule;

/// Why the capture rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// NET_ADMIN is missing.
    #[error(
        "the kernel does not let this container set up traffic capture ({0}); the init container runs as root with the \
         capability NET_ADMIN: check the pod's security context, and that the cluster's admission policies allow them"
    )]
    NotAllowed(io::Error),
    /// nf_tables, or a part of it.
    #[error(
        "the kernel cannot do what traffic capture needs ({0}); it needs Linux 5.2 or later with nf_tables: check that the \
         modules nf_tables, nft_chain_nat, nft_redir and nft_fib_inet can be loaded on the node"
    )]
    NotSupported(String),
    /// The rules are not there after they were taken.
    #[error(
        "{found} of {expected} capture rules are in force; does something else on the node change the pod's nftables?"
    )]
    Incomplete { expected: usize, found: usize },
    /// Anything else that the kernel says.
    #[error("traffic capture could not be set up: {0}")]
    Other(String),
}

/// Puts the rules in force in this network namespace, all or none, and reads them back.
///
/// # Errors
/// When the kernel does not take them, or does not have them afterwards. The old state, if any, is in force then.
pub fn apply(config: &CaptureConfig) -> Result<(), CaptureError> {
    match replace(&rules::plan(config, true)) {
        Err(CaptureError::NotSupported(why)) => {
            replace(&rules::plan(config, false))?;
            tracing::warn!(
                why,
                "the kernel has no fib expression (module nft_fib_inet): what is for other hosts is captured too, and refused by the sidecar"
            );
            Ok(())
        }
        done => done,
    }
}

fn replace(rules: &[Rule]) -> Result<(), CaptureError> {
    let mut netfilter = Netfilter::open().map_err(unsupported)?;
    match netfilter.transact(&nftables::replace_table(rules)).map_err(other)? {
        Answer::Done => {}
        Answer::Refused(error, detail) => return Err(refused(error, detail)),
    }
    let found = netfilter
        .count_rules(&nftables::list_rules(), nftables::is_our_rule)
        .map_err(other)?;
    if found != rules.len() {
        return Err(CaptureError::Incomplete {
            expected: rules.len(),
            found,
        });
    }
    tracing::info!(rules = found, "traffic capture is in force");
    Ok(())
}

fn refused(error: io::Error, detail: Option<String>) -> CaptureError {
    let text = detail.map_or_else(|| error.to_string(), |detail| format!("{error}: {detail}"));
    match nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        nix::errno::Errno::EPERM | nix::errno::Errno::EACCES => CaptureError::NotAllowed(error),
        // What the kernel says of a chain type, an expression or a family that it does not have.
        nix::errno::Errno::ENOENT
        | nix::errno::Errno::EOPNOTSUPP
        | nix::errno::Errno::EPROTONOSUPPORT
        | nix::errno::Errno::EAFNOSUPPORT
        | nix::errno::Errno::EINVAL => CaptureError::NotSupported(text),
        _ => CaptureError::Other(text),
    }
}

/// There is no netlink socket for netfilter.
fn unsupported(error: io::Error) -> CaptureError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => CaptureError::NotAllowed(error),
        _ => CaptureError::NotSupported(error.to_string()),
    }
}

fn other(error: io::Error) -> CaptureError {
    CaptureError::Other(format!("no answer from the kernel: {error}"))
}
