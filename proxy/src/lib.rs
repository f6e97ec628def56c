//! Outrigger's sidecar. `ARCHITECTURE.md` follows a request through these modules.

pub mod error;
pub mod identity;
pub mod model;
