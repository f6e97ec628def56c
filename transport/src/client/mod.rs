//! The side that calls: connections to one peer, kept for the next request, and requests that are sent on them.

mod answer;
mod dialer;
mod dials;
mod leaving;
mod multiplex;
mod pool;
mod send;

pub use dialer::Dialer;
pub(crate) use leaving::Leaving;
pub use multiplex::Slot;
pub use pool::{Checkout, Idling, Lease, Pool, Sender};
pub use send::{Failure, send};
