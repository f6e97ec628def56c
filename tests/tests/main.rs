//! The mesh as a whole: a module for each layer, and all of them in one program, because each program of its own would link
//! the whole mesh once more. Tests that need root, other servers or a cluster are ignored here; `tests/run` runs them, a module
//! at a time.
//!
//! The tests of a program run side by side, in threads. So no test changes what belongs to the process (its environment, its
//! namespaces, its allocator, a global subscriber), and none measures it: a sidecar whose memory, CPU time or log is looked at runs
//! in a process of its own ([`outrigger_tests::program::Program`]).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod access;
mod apiserver;
mod architecture;
mod authority;
mod backend_tls;
mod callers;
mod capture;
mod cluster;
mod conformance;
mod demo;
mod documents;
mod errors;
mod examples;
mod gateway_api;
mod http1;
mod http2;
mod lifecycle;
mod limits;
mod mesh;
mod mesh_http;
mod mirrors;
mod netns;
mod probes;
mod routes;
mod servers;
mod tcp;
mod traces;
