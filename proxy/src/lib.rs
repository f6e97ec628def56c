//! Outrigger's sidecar. `ARCHITECTURE.md` follows a request through these modules.

mod backoff;
mod shared;
pub mod admin;
pub mod capture;
pub mod config;
pub mod discovery;
pub mod dns;
pub mod error;
pub mod identity;
pub mod model;
pub mod telemetry;
