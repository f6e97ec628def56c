//! What the tests of the whole mesh share.

pub mod cluster;
pub mod jaeger;
pub mod kube;
