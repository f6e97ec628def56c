//! Outrigger's shared vocabulary: the wire protocol between sidecar and controller, the CRD types, the labels and
//! annotations, and SPIFFE IDs.
//!
//! The code of the protobuf is written by `cargo run -p outrigger-protobuf`.
//!
//! Architecture Invariant: no I/O here, and nothing that only one of the rooms needs.

#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod address;
pub mod duration;
pub mod labels;
pub mod names;
pub mod pattern;
pub mod policy;
pub mod ports;
pub mod probes;
pub mod spiffe;

/// `outrigger.identity.v1`: CSR in, SVID out.
#[allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // generated; the documentation is in the .proto
pub mod identity {
    include!("generated/outrigger.identity.v1.rs");
}

/// The largest message of a discovery session, in bytes: some 40,000 endpoints of a Service. The controller sends none that is larger, and a
/// sidecar takes none.
pub const MAX_DISCOVERY_MESSAGE: usize = 4 << 20;

/// `outrigger.discovery.v1`: what is behind an address, and how it is called.
// Generated; the documentation is in the .proto. One message at a time is held as a `Kind`, so that its size costs nothing.
#[allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::large_enum_variant)]
pub mod discovery {
    include!("generated/outrigger.discovery.v1.rs");
}
