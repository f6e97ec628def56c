//! Answers from the store: what is behind an address, in which order routes hold, and what policy is in force.
//!
//! Architecture Invariant: an answer depends on the store alone, and names everything it was made from.

mod attachment;
pub(crate) mod build;
mod endpoints;
mod routing;

pub(crate) use self::attachment::{Attached, attached_to};
pub(crate) use self::routing::{OverBudget, is_displaced, resolve};
