//! HTTP/1 as bytes: what a client writes, what the app reads, and back. Through two sidecars with mutual TLS, through the
//! outbound one alone, and through the inbound one alone.

mod connections;
mod fidelity;
mod half_close;
mod idle;
mod limits;
mod ours;
mod refused;
mod tunnels;
mod unsent;
mod wire;
