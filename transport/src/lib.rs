//! What a sidecar's proxy does with connections and with HTTP, whoever calls and whatever is decided about a request.
//!
//! It knows no configuration, no discovery, no identities and no telemetry: who uses it decides, and hears of what happened by
//! a small trait ([`server::OnEnd`], [`body::OnTooLarge`], [`room::Observer`]).
//!
//! | layer | what | uses |
//! |---|---|---|
//! | [`server`] | the side that is called: one connection of a client, what is refused of it, the responses | all below |
//! | [`client`] | the side that calls: connections to one peer, and requests that are sent on them | [`body`] and all below |
//! | [`body`] | the bodies of requests: as they come, are kept for another attempt, are copied for a mirror, go | all below |
//! | [`drain`] | the end of a process: what is open and in flight on a worker | [`room`] |
//! | [`room`] | how many connections a worker holds, and which one is closed for another | [`net`] |
//! | [`cause`], [`grpc`] | what an error of the HTTP library means, what gRPC says in headers and trailers | [`headers`], [`error`] |
//! | [`authority`], [`error`], [`headers`], [`limits`], [`net`] | whom a request is for, one value for what can go wrong, headers, bounds, connections and bytes | nothing |
//!
//! A layer never uses one above it.

#![warn(missing_docs)]

mod executor;

pub mod authority;
pub mod body;
pub mod cause;
pub mod client;
pub mod drain;
pub mod error;
pub mod grpc;
pub mod headers;
pub mod limits;
pub mod net;
pub mod room;
pub mod server;
