//! Everything that talks to the Kubernetes API server. What it learns goes into plain data ([`crate::index`],
//! [`outrigger_issuer::ca`]), and what is decided from that is carried out here.

mod bound_pod;
pub mod bundle;
pub mod ca_secret;
mod crds;
mod fill;
pub mod keys;
mod old_crds;
pub mod status;
mod token;
pub mod token_review;
pub mod watch;
