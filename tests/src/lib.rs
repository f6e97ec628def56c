//! What the tests of the whole mesh share.

pub mod cluster;
pub mod control_plane;
pub mod jaeger;
pub mod kube;
pub mod mesh;
pub mod netns;
pub mod probed;
pub mod program;
pub mod provider;
pub mod routes;
pub mod soak;
