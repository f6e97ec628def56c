//! How much: whether the RateLimitPolicies that select a pod admit a request.
//!
//! [`Limiter`] is told what the controller says (`limits.proto`), and asked with facts and a time, once for each request. What a request
//! matches is found in a plan that nobody changes, without a lock. What it takes stands in buckets, which all workers of a sidecar share:
//! a limit is of the pod. One lock holds all of them while a decision is made, because tokens are taken only where all limits admit; it is
//! held for some table look-ups, and by nobody where no limit matches.
//!
//! A bucket is exact: it counts in whole numbers, of which a microsecond gives `requests` back and a request takes as many as an
//! interval has microseconds (times the shares). So in no window more comes through than the burst and what the rate gives meanwhile.
//!
//! Memory is bounded whoever calls: a key is kept as a hash of 64 bits with a random key, each limit has at most as many buckets as it says,
//! and all together have at most [`MOST_BUCKETS`]. A bucket that is full again is worth nothing, and goes for a new one: those idle for longest
//! first. Where none is, further keys share a bucket, or are refused. Two keys of one hash would share a bucket: among 10,000 that is
//! one chance in 10^11.
//!
//! What all pods count together stands in a store that they share ([`store`]): one question for each request that matches such a limit.
//!
//! Connections that carry bytes are counted beside that, under a lock of their own: how many are open, of all and of one caller, and how many
//! come. The lock is taken when one begins and when it ends.
//!
//! When policies change, a limit of the same name and the same key keeps its buckets, at its new rate: who has used up an hour has not got it
//! back because a pod came or went.
//!
//! Architecture Invariant: no I/O and no clock here; time is an argument.

#![warn(missing_docs)]

mod asking;
mod bucket;
mod connections;
mod decide;
mod key;
mod open;
mod plan;
mod settle;
pub mod store;
mod table;
pub mod view;

pub use connections::{Connection, Denied, Place};
pub use decide::{Limiter, Outcome, Refused, Standing};
pub use plan::{Headers, MOST_BUCKETS};
