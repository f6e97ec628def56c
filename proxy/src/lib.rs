//! Outrigger's sidecar. `ARCHITECTURE.md` follows a request through these modules.

#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_types))]

mod backoff;
mod shared;
#[cfg(test)]
mod sizes;
mod usage;

pub mod admin;
pub mod app;
pub mod call;
pub mod capture;
pub mod cli;
pub mod config;
pub mod context;
pub mod discovery;
pub mod dns;
pub mod identity;
pub mod inbound;
pub mod model;
pub mod outbound;
pub mod probe;
mod store;
pub mod telemetry;
pub mod worker;
