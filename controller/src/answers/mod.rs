//! Answers from the store: what is behind an address, in which order routes hold, and what policy is in force.
//!
//! Architecture Invariant: an answer depends on the store alone, but for whether there is room for it (`room.rs`), and names everything it was made from.

pub(crate) mod access;
pub(crate) mod backend_tls;
pub(crate) mod build;
mod endpoints;
pub(crate) mod limits;
pub(crate) mod own;
mod protocol;
mod routing;
mod traffic;
mod uneven;

pub(crate) use self::access::{ports_at, provider_of, selecting};
pub(crate) use self::limits::{is_whole_mesh, ready_pods};
pub(crate) use self::routing::{OverBudget, displaced_by, resolve};
pub(crate) use self::traffic::{is_overridden, unresolved};
pub(crate) use self::uneven::Uneven;
