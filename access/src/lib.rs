//! Who may call: whether the AccessPolicies that select a pod let a connection or a request in.
//!
//! [`Access`] is compiled from what the controller says (`access.proto`, which has the meaning of each condition). Then
//! [`Access::decide`] is asked with [`Facts`], once for each request, and once for each connection that carries anything else.
//!
//! A condition may be unknown: this version does not know it, or it is faulty, or it is about HTTP and there are bytes. In an
//! Allow rule unknown counts as false, in a Deny rule as true. AND and OR keep that: so wherever something unknown stands, what it
//! counts as is put in its place ([`effect`]), and there is no third value to carry.
//!
//! The tokens of a request are verified before ([`Access::authenticate`]): they are facts.
//!
//! Architecture Invariant: no I/O here, no clock, no state between two requests; the same facts always have the same answer. What is
//! kept of verified tokens ([`jwt::Cache`]) is the caller's.

#![warn(missing_docs)]

mod decide;
mod effect;
mod facts;
mod host;
mod http_match;
pub mod jwt;
pub mod path;
mod policy;
pub mod remembered;
mod selection;
mod source;
mod unmet;
pub mod view;

pub use decide::{Access, Audited, By, Decision, Verdict};
pub use facts::{Caller, Carries, Facts, Head};
pub use jwt::Tokens;
pub use selection::{Asked, Selection};
pub use unmet::met_by_nothing;
