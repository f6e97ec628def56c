//! HTTP as both directions need it, in three layers that know only those before them: [`body`], [`client`], [`server`].

pub mod body;
pub mod cause;
pub mod client;
mod executor;
pub mod grpc;
pub mod headers;
pub mod limits;
pub mod server;
