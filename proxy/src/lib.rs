//! Outrigger's sidecar. `ARCHITECTURE.md` follows a request through these modules.

pub mod admin;
pub mod capture;
pub mod config;
pub mod discovery;
pub mod dns;
pub mod error;
pub mod identity;
pub mod model;
pub mod telemetry;
