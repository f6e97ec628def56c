//! Outrigger's identities: who issues them, and the server that knows its peers by them.
//!
//! [`ca`] makes and holds the keys, and signs. [`service`] is the identity service: it issues an SVID to whoever an
//! [`service::Authenticator`] knows. [`server`] serves it over TLS, and beside it what is for peers that have an SVID. Nothing
//! here knows Kubernetes: the controller brings an authenticator that asks the API server, the demo one that knows its tokens.

#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod ca;
pub mod clock;
pub mod metrics;
pub mod peer;
mod proof;
pub mod refusals;
pub mod server;
pub mod service;
pub mod share;
