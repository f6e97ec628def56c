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

/// `outrigger.access.v1`: who may call a pod.
pub use generated::access::v1 as access;
/// `outrigger.discovery.v1`: what is behind an address, and how it is called.
pub use generated::discovery::v1 as discovery;
/// `outrigger.identity.v1`: CSR in, SVID out.
pub use generated::identity::v1 as identity;
/// `outrigger.limits.v1`: how much a pod takes.
pub use generated::limits::v1 as limits;

/// The largest message of a discovery session, in bytes: some 40,000 endpoints of a Service. The controller sends none that is larger, and a
/// sidecar takes none.
pub const MAX_DISCOVERY_MESSAGE: usize = 4 << 20;

// The documentation is in the .proto. The modules have the names of the packages: that is how the code of one names another's.
// One message at a time is held as a `Kind`, so that its size costs nothing.
#[allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::large_enum_variant)]
mod generated {
    pub mod access {
        pub mod v1 {
            include!("generated/outrigger.access.v1.rs");
        }
    }
    pub mod discovery {
        pub mod v1 {
            include!("generated/outrigger.discovery.v1.rs");
        }
    }
    pub mod limits {
        pub mod v1 {
            include!("generated/outrigger.limits.v1.rs");
        }
    }
    pub mod identity {
        pub mod v1 {
            include!("generated/outrigger.identity.v1.rs");
        }
    }
}
